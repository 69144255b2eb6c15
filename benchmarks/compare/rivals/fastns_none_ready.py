"""fastns: from a Template without ready sandboxes."""

from pathlib import Path

from compare.rivals import _fastns
from compare.rivals._fastns import find, version

__all__ = ["NAME", "NOTE", "Rival", "find", "version"]
NAME = "fastns Template.run, ready=0"
NOTE = "no sandbox made ahead"


class Rival(_fastns.FromTemplate):
    def __init__(self, root: Path) -> None:
        super().__init__(root, ready=0)
