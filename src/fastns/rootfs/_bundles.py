"""Bundles: what some programs open only while they run, such as the standard library of an
interpreter, the parts of a compiler, or CA certificates. It is found by file names; nothing is run.

A bundle is a list of commands and extra paths. The marker records these, so a later build does not
need the bundle's name.
"""

from __future__ import annotations

import glob
import os
import re

from fastns._light import record
from fastns.errors import RootfsError
from fastns.rootfs._host import Unusable, in_path, shebang, walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

INSIDE = "/usr/local/bin:/usr/bin:/bin"
"""The PATH inside. A bundle's command is looked up here first, then in the caller's PATH."""
RESOLVER = "/etc/resolv.conf"
MAX_RESOLVER = 64 << 10  # bytes of the host's file that are read

PERL_PLACES = (
    *("/etc/perl", "/usr/lib/*/perl-base", "/usr/lib/*/perl", "/usr/lib/*/perl5", "/usr/lib/perl5"),
    *("/usr/lib64/perl5", "/usr/share/perl", "/usr/share/perl5", "/usr/local/share/perl"),
    *("/usr/local/share/perl5", "/usr/local/lib/*/perl", "/usr/local/lib64/perl5"),
)
GCC_PLACES = ("/usr/lib/gcc", "/usr/lib64/gcc", "/usr/libexec/gcc", "/usr/include")
GCC_FILES = (
    *("*crt1.o", "crti.o", "crtn.o", "libc.a", "libc.so", "libc_nonshared.a", "libc.so.6"),
    *("libm.a", "libm-*.a", "libm.so", "libmvec.a"),
    *("libm.so.6", "libmvec*.so*", "libdl.a", "libpthread.a", "librt.a", "libutil.a"),
)
"""Files of the C library that the linker needs, in the directory of libc.so."""
NETWORK_PLACES = (
    *("/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/ssl/openssl.cnf", "/usr/lib/ssl"),
    *("/etc/pki/tls/certs", "/etc/pki/tls/cert.pem", "/etc/pki/ca-trust/extracted"),
    *("/etc/pki/tls/openssl.cnf", "/etc/services", "/etc/protocols"),
)


@record(frozen=True)
class Bundle:
    """What is added to a build. `texts`: (path inside, content)."""

    commands: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()


def bundle_of(name: str, commands: Sequence[str]) -> Bundle:
    """The bundle of that name, for the programs of its kind among `commands`. If there are none, it
    is for this machine's own program, which it adds.

    Raises RootfsError if there is no such bundle, or if this machine lacks what belongs to it.
    """
    if name == "network":
        return _network()
    if name not in INTERPRETERS:
        raise RootfsError(f"bundle {name!r}: expected one of {', '.join(sorted(BUNDLES))}")
    kind = INTERPRETERS[name]
    places = [found for found in map(_place, commands) if found and kind.is_one(found)]
    own = [path for path in places if not _is_script(path)]  # a script starts another program
    extra: list[str] = []
    added: list[str] = []
    if not own:
        added = [p for each in kind.commands if (p := in_path(each, INSIDE) or in_path(each))]
        if not added or not kind.is_one(added[0]):
            missing = f"command {kind.commands[0]}"
            raise RootfsError(
                f"{missing}: needed by the bundle {name}, not found in PATH", missing=(missing,)
            )
        own = added[:1]
    for path in own:
        found = kind.places(path)
        if not found:
            raise RootfsError(
                f"bundle {name}: what {path} needs is not where it usually is",
                hint="name it with --extra",
            )
        extra += found
    return Bundle(tuple(added), tuple(dict.fromkeys(extra)))


def hints_of(commands: Iterable[str], files: Iterable[str]) -> tuple[str, ...]:
    """One sentence for each thing that commands of a root are known to lack."""
    there = list(files)
    hints = []
    for path in commands:
        for name, kind in INTERPRETERS.items():
            if not kind.is_one(path):
                continue
            if _is_script(path):
                hints.append(
                    f"{path} is a script that finds an interpreter elsewhere: name that interpreter"
                )
                continue
            key = kind.places(path)[:1]
            if key and not any(file.startswith(f"{key[0]}/") for file in there):
                hints.append(f"{path} needs {key[0]} to run: add --with {name}")
    return tuple(dict.fromkeys(hints))


# ---- the kinds ----


def _python(path: str) -> list[str]:
    end = _end(path)
    prefix = os.path.dirname(os.path.dirname(end))
    version = re.fullmatch(r"python(3\.\d+)", os.path.basename(end))
    number = version[1] if version else "3.*"
    libraries = _there(f"{prefix}/{lib}/python{number}/os.py" for lib in ("lib", "lib64"))
    found = [os.path.dirname(library) for library in libraries]
    if found and prefix == "/usr":
        found += _there(["/usr/lib/python3/dist-packages"])
    environment = os.path.dirname(os.path.dirname(path))  # perhaps a virtual environment
    if found and os.path.isfile(f"{environment}/pyvenv.cfg"):
        found += _there([f"{environment}/pyvenv.cfg", f"{environment}/lib"])
    return found


def _perl(path: str) -> list[str]:
    prefix = os.path.dirname(os.path.dirname(_end(path)))
    own = [] if prefix in ("/usr", "") else [f"{prefix}/lib/perl5", f"{prefix}/lib"]
    found = _there(own) or _there(PERL_PLACES)
    return sorted(found, key=lambda place: place == "/etc/perl")  # last: it has no libraries


def _gcc(_path: str) -> list[str]:
    found = _there(GCC_PLACES)
    for library in _there(("/usr/lib/*/libc.so", "/usr/lib64/libc.so", "/usr/lib/libc.so")):
        directory = os.path.dirname(library)
        found += _there(f"{directory}/{name}" for name in GCC_FILES)
    return found


@record(frozen=True)
class _Kind:
    commands: tuple[str, ...]
    """Looked up if no command of this kind is given. The first one must exist."""
    form: str  # a regular expression that matches the names of programs of this kind
    places: Callable[[str], list[str]]
    """The existing paths that a program needs, the most important first."""

    def is_one(self, path: str) -> bool:
        return any(re.fullmatch(self.form, os.path.basename(end)) for end in (path, _end(path)))


INTERPRETERS = {
    "python": _Kind(("python3",), r"python(3(\.\d+)?)?", _python),
    "perl": _Kind(("perl",), r"perl[\d.]*", _perl),
    "gcc": _Kind(
        ("gcc", "as", "ld", "cc", "cpp", "g++", "c++"),
        r"(.*-)?(gcc|cc|g\+\+|c\+\+|cpp)(-[\d.]+)?",
        _gcc,
    ),
}
BUNDLES = (*INTERPRETERS, "network")


def _network() -> Bundle:
    """CA certificates, and the host's current name servers."""
    try:
        with open(RESOLVER, "rb") as file:
            servers = file.read(MAX_RESOLVER).decode("utf-8", "replace")
    except OSError:
        servers = ""
    certificates = tuple(_there(NETWORK_PLACES))
    if not any("cert" in path or "trust" in path for path in certificates):
        raise RootfsError(
            "bundle network: no CA certificates in /etc/ssl or /etc/pki",
            hint="install the ca-certificates package",
        )
    return Bundle(extra=certificates, texts=((RESOLVER, servers),) if servers else ())


# ---- names ----


def _there(patterns: Iterable[str]) -> list[str]:
    return [path for pattern in patterns for path in sorted(glob.glob(pattern))]


def _place(command: str) -> str | None:
    return os.path.abspath(command) if "/" in command else in_path(command)


def _end(path: str) -> str:
    try:
        return walk(path)[0]
    except Unusable:
        return path


def _is_script(path: str) -> bool:
    try:
        return bool(shebang(path))
    except OSError:
        return False
