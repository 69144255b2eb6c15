"""The result of each case, for the table at the end of `make escape`."""

RESULTS: dict[str, tuple[str, str]] = {}  # case -> (outcome, what was seen)
