"""fastns: from a Template, with a network namespace from a pool for each sandbox."""

from pathlib import Path

from compare.rivals import _fastns
from compare.rivals._fastns import find, version

__all__ = ["NAME", "NOTE", "Rival", "find", "version"]
NAME = "fastns Template.run, network pool"
NOTE = "also a network namespace for each, made ahead"


class Rival(_fastns.FromTemplate):
    def __init__(self, root: Path) -> None:
        super().__init__(root, pools={"netns_pool": 16}, network="none")
