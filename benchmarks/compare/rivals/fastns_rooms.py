"""fastns: in rooms of a Template as it comes, which serve one owner's commands again."""

from pathlib import Path

from compare.rivals import _fastns
from compare.rivals._fastns import find, version

__all__ = ["NAME", "NOTE", "Rival", "find", "version"]
NAME = "fastns Template(reuse=True).run, as it comes"
NOTE = "all defences, a network namespace and an overlay; a room serves again if proven unused"


class Rival(_fastns.FromTemplate):
    def __init__(self, root: Path) -> None:
        super().__init__(root, reuse=True, overlay=True, **_fastns.AS_IT_COMES)
