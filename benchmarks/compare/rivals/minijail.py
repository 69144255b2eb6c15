"""minijail0, ChromeOS'; raced when it is in PATH."""

from compare.rivals import _program

NAME = "minijail0"
NOTE = ""


def find() -> str:
    return _program.find("minijail0")


def version() -> str:
    return _program.first_line(find(), "--version")


class Rival(_program.Program):
    def argv(self, command: str) -> list[str]:
        spaces = ["-p", "-v", "-l", "-N", "--uts"]
        mounts = ["-P", str(self.root), "-k", "proc,/proc,proc", "-k", "tmpfs,/tmp,tmpfs"]
        return [find(), *spaces, *mounts, "--", command]
