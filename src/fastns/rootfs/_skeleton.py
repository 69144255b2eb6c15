"""What every root has: the usual directories and a minimal /etc.

It is added last, and does not replace a file that is to be copied from the host.
"""

from __future__ import annotations

import contextlib

from fastns.rootfs._host import walk
from fastns.rootfs._model import Entries, Entry, Unusable
from fastns.rootfs._read import open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastns.rootfs._model import Texts

LAYOUT = (
    *("/bin", "/sbin", "/lib", "/lib64", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64"),
    *("/usr/local/bin", "/usr/local/sbin", "/usr/libexec", "/usr/share", "/var/run"),
)
"""Links or directories as on the host; absent if the host has none."""
DIRECTORIES = {
    **{f"/{name}": 0o755 for name in ("bin", "dev", "etc", "home", "lib", "mnt", "opt", "proc")},
    **{f"/{name}": 0o755 for name in ("run", "sbin", "srv", "sys", "usr", "var")},
    "/root": 0o700,
    "/tmp": 0o1777,
    "/var/tmp": 0o1777,
}
"""Directories of every root, with their modes. A link that LAYOUT has put there stays."""
TEXTS = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "/etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    "/etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost\n",
    "/etc/hostname": "localhost\n",
    "/etc/resolv.conf": "",
}
"""Files written unless they are copied or already exist: a user may have changed them."""

LOCALE = "/usr/lib/locale/C.utf8"
"""The locale of glibc for LANG=C.UTF-8, the default inside. Without it text is taken for bytes."""
TERMINAL_LIBRARIES = ("libtinfo.so.", "libtinfow.so.", "libncurses.so.", "libncursesw.so.")
"""Libraries that read the terminal database, for shells, `less`, `top` and the like."""
TERMINALS = (
    *("dumb", "linux", "screen", "screen-256color", "tmux", "tmux-256color", "vt100", "vt220"),
    *("xterm", "xterm-256color"),
)
"""Entries of the terminal database that are copied with such a library, if the host has them."""
NSS_LIBRARIES = ("libnss_files.so.2", "libnss_dns.so.2")
"""The services that nsswitch.conf names above."""
NSS_BUILT_IN = b"GLIBC_2.34\0"
"""A symbol version of every C library that has these services built in."""
MAX_LIBC = 64 << 20
"""Bytes of a C library that are searched, many times its size."""


def lacks_services(libc: str) -> bool:
    """Whether this C library loads NSS_LIBRARIES at run time, as an older glibc does."""
    with open_file(libc) as file:
        return NSS_BUILT_IN not in file.read(MAX_LIBC)


def add_skeleton(entries: Entries, texts: Texts) -> None:
    """Add what every root has and is not planned yet. `texts` override TEXTS."""
    for path in LAYOUT:
        with contextlib.suppress(Unusable):  # not on this host, so nothing needs it
            entries |= walk(path)[1]
    for path, mode in DIRECTORIES.items():
        if path not in entries or entries[path].kind == "directory":
            entries[path] = Entry("directory", mode)
    for path, text in {**TEXTS, **texts}.items():
        entries.setdefault(path, Entry("text", source=text, size=len(text.encode())))
