"""nsjail, from Google. Raced if it is in PATH; Debian 12 does not package it."""

from compare.rivals import _program

NAME = "nsjail"
NOTE = "drops all capabilities, sets limits"


def find() -> str:
    return _program.find("nsjail")


def version() -> str:
    return "not reported"  # it has no option for that


class Rival(_program.Program):
    def argv(self, command: str) -> list[str]:
        options = ["--mode", "o", "--really_quiet", "--disable_clone_newnet", "--rw"]
        mounts = ["--chroot", str(self.root), "--tmpfsmount", "/tmp"]
        return [find(), *options, "--disable_clone_newuser", *mounts, "--", command]
