"""fastns: from a Template, with a network namespace for each sandbox."""

from pathlib import Path

from compare.rivals import _fastns
from compare.rivals._fastns import find, version

__all__ = ["NAME", "NOTE", "Rival", "find", "version"]
NAME = "fastns Template.run, own network"
NOTE = "also a network namespace for each"


class Rival(_fastns.FromTemplate):
    def __init__(self, root: Path) -> None:
        super().__init__(root, network="none")
