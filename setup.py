"""Builds the extension and the helper program; everything else is in pyproject.toml."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = ["error", "plan", "spawn", "staged", "idmap", "wait", "io", "batch", "child"]
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


class BuildExt(build_ext):
    """Compiles csrc/ as plain C, apart from Cython's output, and links the helper beside it."""

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

        helper = Path(self.get_ext_fullpath(ext.name)).parent / "_helper"
        helper.parent.mkdir(parents=True, exist_ok=True)
        command = [*compiler, "-std=gnu11", *CHILD, *WARNINGS, *STRICT, "-ffreestanding"]
        link = ["-static", "-nostdlib", "-no-pie", "-s", "-Wl,--build-id=none,-z,noexecstack"]
        subprocess.check_call(
            [*command, "-fno-pie", *link, "csrc/helper.c", "csrc/child.c", "-o", str(helper)]
        )

    def copy_extensions_to_source(self) -> None:
        """The in-place build (pip install -e): the helper goes where the extension goes."""
        super().copy_extensions_to_source()
        shutil.copy(Path(self.build_lib) / "fastns" / "_helper", "src/fastns/_helper")

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), str(Path(self.build_lib) / "fastns" / "_helper")]


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
