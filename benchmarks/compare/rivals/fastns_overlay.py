"""fastns: from a Template, with an overlay over the root for each sandbox."""

from pathlib import Path

from compare.rivals import _fastns
from compare.rivals._fastns import find, version

__all__ = ["NAME", "NOTE", "Rival", "find", "version"]
NAME = "fastns Template.run, overlay"
NOTE = "also an empty layer over the root for each"


class Rival(_fastns.FromTemplate):
    def __init__(self, root: Path) -> None:
        super().__init__(root, overlay=True)
