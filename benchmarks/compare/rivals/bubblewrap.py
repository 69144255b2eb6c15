"""bubblewrap, which starts Flatpak's programs."""

from compare.rivals import _program

NAME = "bubblewrap"
NOTE = ""


def find() -> str:
    return _program.find("bwrap")


def version() -> str:
    return _program.first_line(find(), "--version")


class Rival(_program.Program):
    def argv(self, command: str) -> list[str]:
        spaces = ["--unshare-pid", "--unshare-uts", "--unshare-ipc", "--unshare-cgroup"]
        mounts = ["--bind", str(self.root), "/", "--proc", "/proc", "--tmpfs", "/tmp"]
        return [find(), *spaces, *mounts, command]
