"""kern; raced when it is in PATH."""

from compare.rivals import _program

NAME = "kern"
NOTE = ""


def find() -> str:
    return _program.find("kern")


def version() -> str:
    return _program.first_line(find(), "--version")


class Rival(_program.Program):
    def argv(self, command: str) -> list[str]:
        return [find(), "run", "--rootfs", str(self.root), "--", command]
