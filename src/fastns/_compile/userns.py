"""What the caller decides about user namespaces: the range of ids of root's sandboxes, and the
limit on inotify instances.

The range is root's own in /etc/subuid and /etc/subgid, or else one that no user has.
"""

from __future__ import annotations

from fastns._light import cached

SIZE = 65536
# Where a range may begin if root has none: above the ids that systemd uses for containers, below
# systemd's foreign ids and the ids with the highest bit set.
FIRST, LAST = 0x70000000, 0x7FFD0000
FILES = ("/etc/subuid", "/etc/subgid")
INOTIFY_LIMIT = "/proc/sys/user/max_inotify_instances"
INOTIFY_LIMITS = ("/proc/sys/fs/inotify/max_user_instances", INOTIFY_LIMIT)


@cached(1)
def range_of_root() -> tuple[int, int, int]:
    """(first uid, first gid, how many) outside; both begin at 0 inside."""
    uids, gids = (entries(path) for path in FILES)
    first_of_root = [
        [first for owner, first, size in listed if owner in ("root", "0") and size >= SIZE][:1]
        for listed in (uids, gids)
    ]
    if all(first_of_root):
        return first_of_root[0][0], first_of_root[1][0], SIZE
    free = unused([(first, size) for _, first, size in (*uids, *gids)])
    return free, free, SIZE


@cached(1)
def inotify_limit() -> bytes | None:
    """The limit for a user namespace, as text: half of the caller's, because inotify instances in
    it also count against its creator. None: the caller's limit cannot be read."""
    found = []
    try:
        for path in INOTIFY_LIMITS:
            with open(path, "rb", buffering=0) as file:
                found.append(int(file.read()))
    except (OSError, ValueError):
        return None
    return b"%d" % max(min(found) // 2, 1)


def entries(path: str) -> list[tuple[str, int, int]]:
    """(name or uid, first id, how many) of each line of a subuid(5) file."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.strip().split(":", 2) for line in file]
    except OSError:
        return []  # no such file: no user has a range
    # An id has at most 10 digits, and int() raises for text with thousands of them.
    return [
        (words[0], int(words[1]), int(words[2]))
        for words in lines
        if len(words) == 3 and all(word.isdecimal() and len(word) <= 10 for word in words[1:])
    ]


def unused(taken: list[tuple[int, int]]) -> int:
    """The first id of the lowest range from FIRST on that overlaps none of `taken`; FIRST if there
    is no such range."""
    first = FIRST
    for start, size in sorted(taken):
        if start < first + SIZE and first < start + size:
            first = -(-(start + size) // SIZE) * SIZE
    return first if first <= LAST else FIRST
