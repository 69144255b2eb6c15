"""Builds the extension, the two programs and the default filter; the rest is in pyproject.toml."""

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = [
    "error",
    "plan",
    "spawn",
    "staged",
    "template",
    "request",
    "memory",
    "idmap",
    "userns",
    "wait",
    "io",
    "job",
    "batch",
    "cgroup",
    "cputime",
    "child",
]
WARNINGS = ["-Wall", "-Wextra"]
STRICT = ["-Werror"] if os.environ.get("FASTNS_WERROR") == "1" else []
# Code that runs in a child sharing memory: no stack protector (it reads TLS), no loops turned into
# calls of libc, no sanitizer.
CHILD = [
    "-O2",
    "-fno-stack-protector",
    "-fno-tree-loop-distribute-patterns",
    "-fno-sanitize=all",
    "-fcf-protection=none" if os.uname().machine == "x86_64" else "-fno-common",
]

# The programs run from memory files made anew for each spawn: few pages are what counts.
PROGRAMS = {
    "exec": ["exec", "child"],
    "helper": ["helper", "server", "sandbox", "unpack", "netns", "closer", "child"],
}
PROGRAM = [
    "-ffreestanding",
    "-ffunction-sections",
    "-fno-asynchronous-unwind-tables",
    "-fno-pie",
    "-no-pie",
    "-static",
    "-nostdlib",
    "-s",
    "-Wl,--build-id=none,--gc-sections,-z,noexecstack,-z,noseparate-code,-z,norelro",
]


@functools.cache
def default_filters() -> dict[str, bytes]:
    """Name and content of each file of the default filter, by the package's own Python."""
    sys.path.insert(0, str(Path(__file__).parent / "src"))
    try:
        from fastns import _filters

        return _filters.make_all()
    finally:
        del sys.path[0]


class BuildExt(build_ext):
    """Compiles csrc/ as plain C, apart from Cython's output, and links the programs beside it."""

    def build_extension(self, ext: Extension) -> None:
        build = Path(self.build_temp) / "csrc"
        build.mkdir(parents=True, exist_ok=True)
        compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
        objects = []
        for name in SOURCES:
            target = build / f"{name}.o"
            flags = CHILD if name == "child" else ["-O2"]
            command = [*compiler, "-std=gnu11", "-fPIC", *flags, *WARNINGS, *STRICT]
            self.announce(f"compiling csrc/{name}.c", level=2)
            subprocess.check_call([*command, "-c", f"csrc/{name}.c", "-o", str(target)])
            objects.append(str(target))
        ext.extra_objects = objects
        super().build_extension(ext)

        command = [*compiler, "-std=gnu11", *CHILD, *PROGRAM, *WARNINGS, *STRICT]
        for name, sources in PROGRAMS.items():
            late = ["-DFNS_LATE_OPS"] if name == "exec" else []
            target = Path(self.get_ext_fullpath(ext.name)).parent / f"_{name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            files = [f"csrc/{source}.c" for source in sources]
            subprocess.check_call([*command, *late, *files, "-o", str(target)])
        filters = Path(self.get_ext_fullpath(ext.name)).parent / "filters"
        filters.mkdir(exist_ok=True)
        for name, code in default_filters().items():
            (filters / name).write_bytes(code)

    def copy_extensions_to_source(self) -> None:
        """The in-place build (pip install -e): the programs go where the extension goes."""
        super().copy_extensions_to_source()
        for name in PROGRAMS:
            shutil.copy(Path(self.build_lib) / "fastns" / f"_{name}", f"src/fastns/_{name}")
        filters = Path(self.build_lib) / "fastns" / "filters"
        shutil.copytree(filters, "src/fastns/filters", dirs_exist_ok=True)

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "fastns"
        built = [str(package / f"_{name}") for name in PROGRAMS]
        built += [str(package / "filters" / name) for name in default_filters()]
        return [*super().get_outputs(), *built]


setup(
    ext_modules=[
        Extension(
            "fastns._core",
            ["src/fastns/_core.pyx"],
            include_dirs=["csrc"],
            depends=[str(path) for path in Path("csrc").glob("*.[ch]")],
            extra_compile_args=["-O2", "-pthread"],
            # Every symbol is bound at load: the child must not enter the dynamic linker.
            extra_link_args=["-Wl,-z,now", "-pthread"],
        )
    ],
    cmdclass={"build_ext": BuildExt},
)
