"""What run(), spawn() and batches share: the command, text mode for its streams, its usage."""

from __future__ import annotations

import codecs
import os

from fastns import _core
from fastns._args import check_args, check_cwd, check_env, shown, wrong
from fastns._compile import compile, search_path
from fastns._record import record
from fastns.errors import SpecError
from fastns.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, TypeAlias

    from fastns._cause import Counts
    from fastns.template import Template

    Args: TypeAlias = Sequence[str | bytes | os.PathLike[str] | os.PathLike[bytes]]
    Used: TypeAlias = tuple[float, float, int, bool, Counts | None]
    """What _used() of _core reports: the first fields of a Usage, and the counts of its cgroups."""

# Unlike the incremental decoders of these encodings, and like bytes.decode(), they need no BOM.
WITHOUT_BOM = {"utf-16": codecs.utf_16_decode, "utf-32": codecs.utf_32_decode}


def exit_code(returncode: int) -> int:
    """The code a shell would show: 128+n after signal n."""
    return returncode if returncode >= 0 else 128 - returncode


@record(frozen=True)
class Usage:
    """What a sandbox used.

    Attributes:
        user_time: seconds of CPU time of its first process and of all children that were waited
            for; not of children that were killed with the sandbox or left behind.
        system_time: seconds of CPU time in the kernel, of the same processes.
        max_rss: bytes, of the largest process.
        max_rss_exact: False if the true value may be lower: a direct start begins with the peak of
            the caller, which survives exec.
        memory_peak: bytes, of all processes together, with tmpfs and memory files.
        pids_peak: processes and threads at once.
        io_read: bytes.
        io_write: bytes.
        cpu_time: seconds of CPU time of all processes, including those that nobody waited for.

    Those that can be None come from cgroups. They are None if no limit of that kind was set, or if
    the kernel does not report the value for this sandbox alone.
    """

    user_time: float
    system_time: float
    max_rss: int
    max_rss_exact: bool
    memory_peak: int | None = None
    pids_peak: int | None = None
    io_read: int | None = None
    io_write: int | None = None
    cpu_time: float | None = None

    @classmethod
    def of(cls, used: Used) -> Usage:
        """Makes a Usage from what _core reports."""
        counts = used[-1]
        if counts is None:
            return cls(*used[:-1])
        cpu = counts["cpu_time"]
        return cls(
            *used[:-1],
            memory_peak=counts["memory_peak"],
            pids_peak=counts["pids_peak"],
            io_read=counts["io_read"],
            io_write=counts["io_write"],
            cpu_time=None if cpu is None else cpu / 1e9,
        )

    def as_dict(self) -> dict[str, float]:
        """The fields that are known, without max_rss_exact, for JSON."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        del known["max_rss_exact"]
        return known


class Prepared:
    """What a Template passes as `spec` to run(), spawn() and the batch functions: its plan for
    sandboxes, and itself to start them."""

    def __init__(self, plan: _core.Plan, template: Template) -> None:
        self.plan = plan
        self.template = template


def plan_of(spec: Spec | _core.Plan | Prepared | None) -> _core.Plan:
    if isinstance(spec, _core.Plan):
        return spec
    if isinstance(spec, Prepared):
        return spec.plan
    if spec is not None and not isinstance(spec, Spec):
        raise SpecError(
            "spec",
            f"{shown(spec)}: expected a Spec, a Plan made by fastns.compile(), or None"
            " (a Template has spawn(), run() and batches of its own)",
        )
    return compile(spec)


def command(
    plan: _core.Plan, args: Args, env: Mapping[str, str] | None, cwd: Any
) -> tuple[tuple[bytes, ...], tuple[bytes, ...], tuple[bytes, ...], bytes]:
    """Returns argv, environment, directories to look for argv[0] in, and working directory."""
    argv = check_args(args)
    directories = plan.search_path
    environ = plan.environ
    if env is not None:
        environ = check_env(env)
        found = (entry[5:] for entry in environ if entry.startswith(b"PATH="))
        directories = search_path(next(found, None))
    return argv, environ, directories, plan.cwd if cwd is None else check_cwd(cwd)


@record(frozen=True)
class TextMode:
    """How bytes are decoded to text. None instead of a TextMode: they stay bytes."""

    encoding: str
    errors: str

    @classmethod
    def of(cls, text: bool | None, encoding: str | None, errors: str | None) -> TextMode | None:
        if not (text or encoding or errors):
            return None
        encoding = "utf-8" if encoding is None else encoding
        errors = "strict" if errors is None else errors
        try:
            "".encode(encoding)  # rot13 and the like are codecs, but not text encodings
        except (LookupError, TypeError, ValueError):
            raise wrong("encoding", encoding, "a text encoding such as 'utf-8'") from None
        try:
            codecs.lookup_error(errors)
        except (LookupError, TypeError, ValueError):
            raise wrong("errors", errors, "an error handler such as 'replace'") from None
        return cls(encoding, errors)

    def decode(self, data: bytes, cut: bool = False) -> str:
        """cut: the end of the output is missing, so an incomplete last character is left out."""
        codec = codecs.lookup(self.encoding)
        try:
            if cut and codec.name in WITHOUT_BOM:
                text = WITHOUT_BOM[codec.name](data, self.errors, False)[0]
            elif cut and codec.incrementaldecoder is not None:
                text = codec.incrementaldecoder(self.errors).decode(data)
            else:
                text = data.decode(self.encoding, self.errors)
        except UnicodeDecodeError:
            raise
        except UnicodeError as exc:  # of idna, for example
            raise UnicodeDecodeError(self.encoding, data, 0, len(data), str(exc)) from None
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def decode_partial(self, data: bytes | None) -> str | None:
        """Decodes the output so far after a timeout, whose error no other must replace: where
        `errors` fails, invalid bytes are replaced; if the codec still fails, all but ASCII is."""
        if data is None:
            return None
        for errors in (self.errors, "replace"):
            try:
                return TextMode(self.encoding, errors).decode(data, cut=True)
            except Exception:  # codecs and error handlers may be the caller's own
                continue
        return TextMode("ascii", "replace").decode(data)


def encode_input(input: Any, mode: TextMode | None) -> bytes:
    """The input of run() or communicate() as bytes. Raises SpecError, field "input"."""
    if input is None:
        return b""
    kind = type(input).__name__
    if mode is None:
        if isinstance(input, bytes):
            return input
        if isinstance(input, str):
            raise SpecError("input", "str given: expected bytes, or text=True")
        try:
            return memoryview(input).tobytes()
        except TypeError:
            raise SpecError("input", f"{kind} given: expected bytes") from None
    if not isinstance(input, str):
        raise SpecError("input", f"{kind} given: expected str, as text, encoding or errors is set")
    try:
        return input.encode(mode.encoding, mode.errors)
    except UnicodeError:
        raise wrong("input", input, f"text that {mode.encoding} can encode") from None
