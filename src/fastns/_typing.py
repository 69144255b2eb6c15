"""Names for annotations, without the import of `typing`, which costs each start a millisecond."""

from __future__ import annotations

__all__ = ["GenericBase", "S", "overload"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Generic, overload

    from typing_extensions import TypeVar

    S = TypeVar("S", default=Any)  # the type that streams have: bytes, or str for text

    class GenericBase(Generic[S]):
        """A class with streams of S."""
else:
    S = "S"

    class GenericBase:
        """Sandbox[str] is Sandbox."""

        __slots__ = ()

        def __class_getitem__(cls, item):
            return cls

    def overload(function):
        return function
