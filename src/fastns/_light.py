"""Stand-ins for parts of dataclasses, functools and typing, whose imports would slow down each
start. Type checkers see the originals.
"""

__all__ = ["GenericBase", "S", "cached", "overload", "record"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass as record
    from functools import lru_cache as cached
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

    # ---- functools.lru_cache ----

    def cached(maxsize):
        """Keeps the results of at least the last `maxsize` different calls, and of at most twice as
        many. Thread-safe, though two threads may compute the same result."""

        def decorate(function):
            recent, older = {}, {}

            def call(*args):
                nonlocal recent, older
                try:
                    return recent[args]
                except KeyError:
                    pass
                found = older[args] if args in older else function(*args)
                if len(recent) >= maxsize:
                    recent, older = {}, recent
                recent[args] = found
                return found

            def cache_clear():
                nonlocal recent, older
                recent, older = {}, {}

            call.__name__, call.__doc__ = function.__name__, function.__doc__
            call.cache_clear = cache_clear
            return call

        return decorate

    # ---- dataclasses.dataclass ----

    def record(cls=None, *, frozen=True, kw_only=False):
        """The class decorator: @record or @record(kw_only=True). Every record is frozen.

        To its users a record is a dataclass: fields(), replace(), asdict(), is_dataclass() and
        FrozenInstanceError work on it."""
        if cls is None:
            return lambda cls: record(cls, kw_only=kw_only)
        cls._names = tuple(cls.__dict__["__annotations__"])  # noqa: RUF063 - would import inspect
        init = _make_init(cls, kw_only)
        cls.__init__ = _with_suggestions(init) if kw_only else init
        cls.__eq__ = _eq
        cls.__repr__ = _repr
        cls.__setattr__ = cls.__delattr__ = _refuse
        cls.__match_args__ = () if kw_only else cls._names
        cls.__dataclass_fields__ = _Fields(kw_only)
        if "__hash__" not in cls.__dict__ or cls.__hash__ is None:
            cls.__hash__ = _hash
        return cls

    def _arguments(self):
        fill(self, locals())  # noqa: F821 - see _make_init()

    def _make_init(cls, kw_only):
        """Makes an __init__ that takes the fields, from the code of _arguments() with other names.
        Compiling source text would take longer than everything else here."""
        names = cls._names
        checks = hasattr(cls, "__post_init__")

        def fill(self, values):
            del values["self"]
            self.__dict__.update(values)  # bypasses __setattr__, which refuses
            if checks:
                self.__post_init__()

        code = _arguments.__code__.replace(
            co_name="__init__",
            co_qualname=f"{cls.__qualname__}.__init__",
            co_argcount=1 if kw_only else len(names) + 1,
            co_kwonlyargcount=len(names) if kw_only else 0,
            co_varnames=("self", *names),
            co_nlocals=len(names) + 1,
        )
        init = type(_arguments)(code, {"fill": fill})
        init.__qualname__, init.__module__ = code.co_qualname, cls.__module__
        init.__annotations__ = {**cls.__dict__["__annotations__"], "return": None}  # noqa: RUF063
        defaults = {name: cls.__dict__[name] for name in names if name in cls.__dict__}
        if kw_only:
            init.__kwdefaults__ = defaults
        else:
            init.__defaults__ = tuple(defaults.values())
        return init

    def _with_suggestions(init):
        """`init`, but its error for an unknown field suggests one with a similar name, or says what
        the class has as `_no_NAME`."""

        def __init__(self, **values):
            for name in values:
                if name not in self._names:
                    raise _no_such_field(self, name)
            init(self, **values)

        __init__.__qualname__, __init__.__module__ = init.__qualname__, init.__module__
        __init__.__wrapped__ = init  # for inspect.signature() and help()
        return __init__

    def _no_such_field(self, name):
        import difflib

        near = difflib.get_close_matches(name, self._names, n=1, cutoff=0.8)
        more = f"Did you mean {near[0]!r}?" if near else getattr(self, f"_no_{name}", "")
        return TypeError(
            f"{type(self).__qualname__}.__init__() got an unexpected keyword argument {name!r}"
            + (f". {more}" if more else "")
        )

    def _values(self):
        return tuple([getattr(self, name) for name in self._names])

    def _eq(self, other):
        if other.__class__ is not self.__class__:
            return NotImplemented
        return _values(self) == _values(other)

    def _hash(self):
        return hash(_values(self))

    def _repr(self):
        items = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._names)
        return f"{self.__class__.__qualname__}({items})"

    def _refuse(self, name, *value):
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot change field {name!r}: use dataclasses.replace()")

    class _Fields:
        """Makes __dataclass_fields__ on the first access."""

        def __init__(self, kw_only):
            self.kw_only = kw_only

        def __get__(self, instance, owner):
            import dataclasses

            items = []
            for name in owner._names:
                default = owner.__dict__.get(name, dataclasses.MISSING)
                field = dataclasses.field(default=default, kw_only=self.kw_only)
                items.append((name, owner.__annotations__[name], field))
            model = dataclasses.make_dataclass(owner.__name__, items)
            return model.__dataclass_fields__
