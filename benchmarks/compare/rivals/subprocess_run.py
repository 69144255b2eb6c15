"""subprocess.run. It starts all contenders that are programs, so none of them can be faster."""

from compare.rivals._program import Program

NAME = "subprocess.run"
NOTE = "isolates nothing"


def find() -> str:
    return ""


def version() -> str:
    return "Python's"


class Rival(Program):
    def argv(self, command: str) -> list[str]:
        return [f"{self.root}{command}"]
