"""Replaces functools.lru_cache: importing `functools` takes longer than any module of a start."""

__all__ = ["cached"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from functools import lru_cache as cached
else:

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
