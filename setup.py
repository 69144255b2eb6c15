"""Builds the extension, the program, fastns-exec and the default filter.

The rest is in pyproject.toml.
"""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext

WARNINGS = ["-Wall", "-Wextra"]
STRICT = ["-Werror"] if os.environ.get("FASTNS_WERROR") == "1" else []
# The folders of csrc/ are named after the process that runs their code.
CALLER_FOLDERS = ["caller", "border", "shared"]
PROGRAM_FOLDERS = ["program", "border", "shared"]
# Flags for code that a child runs in the caller's memory: no stack protector, which reads TLS; no
# replacement of loops by calls to libc, and no atomics by calls to libgcc; no sanitizer.
CHILD = [
    *("-O2", "-fno-stack-protector", "-fno-tree-loop-distribute-patterns", "-fno-sanitize=all"),
    "-fcf-protection=none" if os.uname().machine == "x86_64" else "-mno-outline-atomics",
]
PROGRAM = [
    *("-ffreestanding", "-ffunction-sections", "-fno-asynchronous-unwind-tables", "-fno-pie"),
    *("-no-pie", "-static", "-nostdlib", "-s"),
    "-Wl,--build-id=none,--gc-sections,-z,noexecstack,-z,noseparate-code,-z,norelro",
    "-Wno-unused-parameter",  # all ops have the same parameters
]
# fastns-exec is static: the dynamic loader would take half as long as a start.
LAUNCHER_FLAGS = ["-O2", "-static", "-no-pie", "-s", "-Wl,--gc-sections,-z,noseparate-code"]


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in Path("csrc", folder).glob("*.c"))


def build_id() -> str:
    """Identifies the layout of plan files: a hash of the sources that define the layout."""
    digest = hashlib.sha256(os.uname().machine.encode())
    for path in sorted(Path("csrc").rglob("*.*")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def default_filters() -> dict[str, bytes]:
    """The files of the default filter, name -> content. The package's own code makes them."""
    sys.path.insert(0, str(Path(__file__).parent / "src"))
    try:
        from fastns import _filters

        return _filters.make_all()
    finally:
        del sys.path[0]


class BuildExt(build_ext):
    """Compiles csrc/ separately from Cython's output, and builds the program and fastns-exec."""

    def build_extension(self, ext: Extension) -> None:
        build = Path(self.build_temp)
        compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
        objects = []
        for source in [*sources(*CALLER_FOLDERS), Path("csrc/cli/planfile.c")]:
            target = (build / source).with_suffix(".o")
            target.parent.mkdir(parents=True, exist_ok=True)
            flags = CHILD if source.parent.name == "border" else ["-O2"]
            command = [*compiler, "-std=gnu11", "-fPIC", "-Icsrc", *flags, *WARNINGS, *STRICT]
            if source.stem == "planfile":
                command.append(f'-DFNS_BUILD="{build_id()}"')
            self.announce(f"compiling {source}", level=2)
            subprocess.check_call([*command, "-c", str(source), "-o", str(target)])
            objects.append(str(target))
        ext.extra_objects = objects
        super().build_extension(ext)

        package = Path(self.get_ext_fullpath(ext.name)).parent
        (package / "filters").mkdir(parents=True, exist_ok=True)
        for name, code in default_filters().items():
            (package / "filters" / name).write_bytes(code)
        command = [*compiler, "-std=gnu11", "-Icsrc", *CHILD, *PROGRAM, *WARNINGS, *STRICT]
        files = map(str, sources(*PROGRAM_FOLDERS))
        subprocess.check_call([*command, *files, "-o", str(package / "_program")])
        self.build_launcher(compiler, objects, package / "_program")

    def build_launcher(self, compiler: list[str], objects: list[str], program: Path) -> None:
        """Links fastns-exec from the extension's objects. The program is embedded in it."""
        macros = {"VERSION": self.distribution.get_version(), "PROGRAM_FILE": str(program)}
        defined = [f'-DFNS_{name}="{value}"' for name, value in macros.items()]
        files = [str(path) for path in sources("cli") if path.stem != "planfile"]
        command = [*compiler, "-std=gnu11", "-Icsrc", *LAUNCHER_FLAGS, *WARNINGS, *STRICT, *defined]
        target = Path(self.build_temp) / "fastns-exec"
        self.announce(f"linking {target}", level=2)
        try:
            subprocess.check_call([*command, *files, *objects, "-o", str(target)])
        except subprocess.CalledProcessError:
            raise SystemExit(
                "fastns-exec cannot be linked: it needs a static libc, of glibc 2.32 or newer "
                "(Debian: libc6-dev; Fedora: glibc-static)"
            ) from None

    def copy_extensions_to_source(self) -> None:
        """Copies the program and the filters beside the extension (for pip install -e)."""
        super().copy_extensions_to_source()
        package = Path(self.build_lib, "fastns")
        shutil.copy(package / "_program", "src/fastns/_program")
        shutil.copytree(package / "filters", "src/fastns/filters", dirs_exist_ok=True)

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib, "fastns")
        names = ["_program", *(f"filters/{name}" for name in default_filters())]
        return [*super().get_outputs(), *(str(package / name) for name in names)]


class BuildScripts(Command):
    """Adds fastns-exec to the scripts of the wheel. An installer makes scripts executable and puts
    them in the directory of `fastns`, also in an editable installation."""

    user_options: ClassVar[list[tuple[str, str, str]]] = []

    def initialize_options(self) -> None:
        self.build_dir = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_scripts", "build_dir"))

    def get_source_files(self) -> list[str]:
        return []  # fastns-exec is built

    def get_outputs(self) -> list[str]:
        return [str(Path(self.build_dir) / "fastns-exec")]

    def run(self) -> None:
        built = Path(self.get_finalized_command("build_ext").build_temp) / "fastns-exec"
        Path(self.build_dir).mkdir(parents=True, exist_ok=True)
        shutil.copy(built, self.get_outputs()[0])


setup(
    scripts=["fastns-exec"],
    ext_modules=[
        Extension(
            "fastns._core",
            ["src/fastns/_core.pyx", "src/fastns/_entry.c"],
            define_macros=[("PyInit__core", "fns_core_init")],  # _entry.c defines PyInit__core
            include_dirs=["csrc"],
            depends=[
                *map(str, Path("csrc").rglob("*.*")),
                *map(str, Path("src/fastns").glob("*.px[di]")),
            ],
            extra_compile_args=["-O2", "-pthread"],
            # Binds all symbols at load time: the child must not enter the dynamic linker.
            extra_link_args=["-Wl,-z,now", "-pthread"],
        )
    ],
    cmdclass={"build_ext": BuildExt, "build_scripts": BuildScripts},
)
