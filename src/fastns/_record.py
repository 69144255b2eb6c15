"""Frozen dataclasses without the import of `dataclasses`, which also imports `inspect`.

It pays: by `python -X importtime`, that import costs more than all modules of a start together.
A record is a dataclass to its users: fields(), replace(), asdict(), is_dataclass() and
FrozenInstanceError work on it. Type checkers see dataclasses.dataclass.
"""

__all__ = ["record"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:
    CO_VARKEYWORDS = 0x08  # inspect.CO_VARKEYWORDS

    def record(cls=None, *, frozen=True, kw_only=False):
        """The class decorator: @record or @record(kw_only=True). Every record is frozen."""
        if cls is None:
            return lambda cls: record(cls, kw_only=kw_only)
        names = tuple(cls.__dict__["__annotations__"])  # noqa: RUF063 - inspect again
        cls.__init__ = _make_init(cls, names, kw_only)
        cls.__eq__ = _eq
        cls.__repr__ = _repr
        cls.__setattr__ = _refuse
        cls.__delattr__ = _refuse
        cls._names = names
        cls.__match_args__ = () if kw_only else names
        cls.__dataclass_fields__ = _Fields(kw_only)
        if "__hash__" not in cls.__dict__ or cls.__hash__ is None:
            cls.__hash__ = _hash
        return cls

    def _arguments(self):
        fill(self, locals())  # noqa: F821 - see _make_init()

    def _make_init(cls, names, kw_only):
        """__init__ with the fields as its arguments. It is the code of _arguments() with other
        names, as source text would take longer to compile than all else here."""
        checks = hasattr(cls, "__post_init__")

        def fill(self, values):
            del values["self"]
            if kw_only:
                unknown = values.pop("unknown")
                if unknown:
                    raise _no_such_field(self, *unknown)
            self.__dict__.update(values)  # past __setattr__, which refuses
            if checks:
                self.__post_init__()

        varnames = ("self", *names, "unknown") if kw_only else ("self", *names)
        code = _arguments.__code__
        code = code.replace(
            co_name="__init__",
            co_qualname=f"{cls.__qualname__}.__init__",
            co_argcount=1 if kw_only else len(varnames),
            co_kwonlyargcount=len(names) if kw_only else 0,
            co_varnames=varnames,
            co_nlocals=len(varnames),
            co_flags=code.co_flags | (CO_VARKEYWORDS if kw_only else 0),
        )
        init = _function(cls, code, {"fill": fill})
        defaults = {name: cls.__dict__[name] for name in names if name in cls.__dict__}
        if kw_only:
            init.__kwdefaults__ = defaults
            # The same without **unknown, for inspect.signature() and help(), which follow
            # __wrapped__. It is never called.
            plain = code.replace(
                co_varnames=varnames[:-1],
                co_nlocals=len(names) + 1,
                co_flags=code.co_flags & ~CO_VARKEYWORDS,
            )
            init.__wrapped__ = _function(cls, plain, {})
            init.__wrapped__.__kwdefaults__ = defaults
        else:
            init.__defaults__ = tuple(defaults.values())
        return init

    def _function(cls, code, scope):
        made = type(_arguments)(code, scope)
        made.__qualname__ = code.co_qualname
        made.__module__ = cls.__module__
        made.__annotations__ = {**cls.__dict__["__annotations__"], "return": None}  # noqa: RUF063
        return made

    def _no_such_field(self, name, *_):
        import difflib

        near = difflib.get_close_matches(name, self._names, n=1, cutoff=0.8)
        return TypeError(
            f"{type(self).__qualname__}.__init__() got an unexpected keyword argument {name!r}"
            + (f". Did you mean {near[0]!r}?" if near else "")
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
