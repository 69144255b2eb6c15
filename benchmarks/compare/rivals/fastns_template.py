"""fastns: from a Template, which makes sandboxes ahead."""

from pathlib import Path

from compare.rivals import _fastns
from compare.rivals._fastns import find, version

__all__ = ["NAME", "NOTE", "Rival", "find", "version"]
NAME = "fastns Template.run"
NOTE = "from a Template, with sandboxes made ahead"


class Rival(_fastns.FromTemplate):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
