"""The result of each case, for the table at the end of `make escape`.

Outcomes: "blocked", and the control worked; "blocked twice": by the defence and by the user
namespace of root's sandboxes; "kernel refuses anyway": the control failed too; "FAILED".
"""

RESULTS: dict[str, tuple[str, str]] = {}  # case -> (outcome, what was seen)
