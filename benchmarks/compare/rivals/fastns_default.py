"""fastns: from a Template with the defaults, except a root and the host's network."""

from pathlib import Path

from compare.rivals import _fastns
from compare.rivals._fastns import find, version

__all__ = ["NAME", "NOTE", "Rival", "find", "version"]
NAME = "fastns Template.run, all defences"
NOTE = "all defaults but the network: also filter, user namespace, /sys, /dev, /run, masked paths"


class Rival(_fastns.FromTemplate):
    def __init__(self, root: Path) -> None:
        super().__init__(root, default_mounts=True, mounts=[], namespaces={}, seccomp="default")
