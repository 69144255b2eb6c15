"""Frozen dataclasses without the import of `dataclasses`.

That import brings `inspect` and takes longer than all of fastns' own, on every start of the
command.
A record is made the same way and is a dataclass to whoever asks: fields(), replace(), asdict(),
is_dataclass() and FrozenInstanceError work as ever. Type checkers see dataclasses.dataclass.
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

    def _make_init(cls, names, kw_only):
        defaults = {f"_{name}": cls.__dict__[name] for name in names if name in cls.__dict__}
        arguments = [f"{name}=_{name}" if f"_{name}" in defaults else name for name in names]
        if kw_only:
            arguments = ["*", *arguments, "**unknown"]
        lines = [f"def __init__(self, {', '.join(arguments)}):"]
        if kw_only:
            lines.append("    if unknown: raise no_such_field(self, *unknown)")
        lines.append("    values = self.__dict__")  # past __setattr__, which refuses
        lines += [f"    values[{name!r}] = {name}" for name in names]
        if hasattr(cls, "__post_init__"):
            lines.append("    self.__post_init__()")
        scope = {**defaults, "no_such_field": _no_such_field}
        exec("\n".join(lines), scope)
        init = scope["__init__"]
        init.__qualname__ = f"{cls.__qualname__}.__init__"
        init.__module__ = cls.__module__
        init.__annotations__ = {**cls.__annotations__, "return": None}
        if kw_only:
            init.__wrapped__ = _without_unknown(init)
        return init

    def _without_unknown(init):
        """The same signature without **unknown, for inspect.signature() and help(), which look at
        what is wrapped. Never called. Compiling it would cost each start 0.2 ms."""
        code = init.__code__
        plain = code.replace(co_flags=code.co_flags & ~CO_VARKEYWORDS)
        function = type(init)(plain, init.__globals__, init.__name__)
        function.__kwdefaults__ = init.__kwdefaults__
        function.__annotations__ = init.__annotations__
        function.__qualname__ = init.__qualname__
        return function

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
        """Makes __dataclass_fields__ when somebody asks for it."""

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
