"""unshare from util-linux, with mount and chroot in a shell script, as one writes it by hand."""

from compare.rivals import _program

NAME = "unshare + sh"
NOTE = "chroot, not pivot_root: the host's root is a few system calls away"
SCRIPT = 'mount -t proc proc "$1/proc" && mount -t tmpfs tmpfs "$1/tmp" && exec chroot "$1" "$2"'


def find() -> str:
    return _program.find("unshare")


def version() -> str:
    return _program.first_line(find(), "--version")


class Rival(_program.Program):
    def argv(self, command: str) -> list[str]:
        flags = ["--pid", "--fork", "--mount", "--uts", "--ipc", "--cgroup"]
        return [find(), *flags, "sh", "-c", SCRIPT, "sh", str(self.root), command]
