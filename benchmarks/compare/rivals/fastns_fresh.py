"""fastns: from a Template as it comes, with a network namespace of its own."""

from pathlib import Path

from compare.rivals import _fastns
from compare.rivals._fastns import find, version

__all__ = ["NAME", "NOTE", "Rival", "find", "version"]
NAME = "fastns Template.run, as it comes"
NOTE = "all defences, and a network namespace, which serves again if proven unused"


class Rival(_fastns.FromTemplate):
    def __init__(self, root: Path) -> None:
        super().__init__(root, read_only=True, **_fastns.AS_IT_COMES)
