"""`python -m fastns`: the same program as the console script `fastns`."""

import sys

from fastns.cli import main

if __name__ == "__main__":
    sys.exit(main())
