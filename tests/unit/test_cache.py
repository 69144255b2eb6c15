"""cached(), the replacement for functools.lru_cache."""

from __future__ import annotations

import pytest

from fastns._light import cached


def test_recently_used_results_are_kept() -> None:
    calls: list[tuple[int, ...]] = []

    @cached(2)
    def total(*numbers: int) -> int:
        """Says what it adds."""
        calls.append(numbers)
        return sum(numbers)

    assert total.__doc__ == "Says what it adds."
    assert [total(1, 2), total(1, 2), total(3)] == [3, 3, 3]
    assert calls == [(1, 2), (3,)]
    for number in range(10):
        assert total(100) == 100  # used often, so it is not dropped
        total(number)
    assert calls.count((100,)) == 1
    total(1, 2)
    assert calls.count((1, 2)) == 2  # dropped, because it was not used
    total.cache_clear()
    total(100)
    assert calls.count((100,)) == 2


def test_an_exception_is_not_kept() -> None:
    answers: list[int | None] = [None, 3]

    @cached(1)
    def half(_number: int) -> int:
        answer = answers.pop(0)
        if answer is None:
            raise ValueError
        return answer

    with pytest.raises(ValueError):  # noqa: PT011 - raised above
        half(6)
    assert [half(6), half(6)] == [3, 3]
