"""fastns: from a Template of a spec that says nothing but its root and the network."""

from pathlib import Path

from compare.rivals import _fastns
from compare.rivals._fastns import find, version

__all__ = ["NAME", "NOTE", "Rival", "find", "version"]
NAME = "fastns Template.run, as it is by default"
NOTE = "also filter, user namespace, /sys, /dev, /run, masked paths: all that a spec has by itself"


class Rival(_fastns.FromTemplate):
    def __init__(self, root: Path) -> None:
        super().__init__(root, default_mounts=True, mounts=[], namespaces={}, seccomp="default")
