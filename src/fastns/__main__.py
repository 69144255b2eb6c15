"""`python -m fastns`: the same program as the console script `fastns`."""

from fastns.cli import program

if __name__ == "__main__":
    program()
