"""minijail0, from ChromeOS. Raced if it is in PATH."""

from compare.rivals import _program

NAME = "minijail0"
NOTE = "keeps all capabilities"


def find() -> str:
    return _program.find("minijail0")


def version() -> str:
    return "not reported"  # it has no option for that


class Rival(_program.Program):
    def argv(self, command: str) -> list[str]:
        # Without -I, a process of minijail0 is pid 1, and /proc is mounted twice.
        spaces = ["-p", "-I", "-v", "-l", "-N", "--uts"]
        mounts = ["-P", str(self.root), "-k", "proc,/proc,proc", "-k", "tmpfs,/tmp,tmpfs"]
        return [find(), *spaces, *mounts, "--", command]
