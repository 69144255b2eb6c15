"""What annotations need, without the import of `typing`, which costs each start a millisecond.

S is the type that streams hold: bytes, or str where text was requested.
"""

from __future__ import annotations

__all__ = ["GenericBase", "S", "overload"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Generic, overload

    from typing_extensions import TypeVar

    S = TypeVar("S", default=Any)

    class GenericBase(Generic[S]):
        """A class whose streams hold S."""
else:
    S = "S"

    class GenericBase:
        """Lets Sandbox[str] be written; it is Sandbox itself."""

        __slots__ = ()

        def __class_getitem__(cls, item):
            return cls

    def overload(function):
        return function
