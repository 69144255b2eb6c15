"""Names for annotations, without importing `typing`, which would slow down each start."""

from __future__ import annotations

__all__ = ["GenericBase", "S", "overload"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Generic, overload

    from typing_extensions import TypeVar

    S = TypeVar("S", default=Any)  # what streams carry: bytes, or str for text

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
