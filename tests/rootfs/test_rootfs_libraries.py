"""fastns.rootfs.build finds the libraries that ld.so(8) would load, by reading ELF files."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fastns.rootfs import RootfsError, _loader, _resolve, build

Compile = Callable[..., Path]
Inside = Callable[..., "subprocess.CompletedProcess[str]"]

CALL = "int a(void); int main(void) { return a() - 7; }"
AARCH64 = 183


def make_foreign(path: Path) -> None:
    """Turn an ELF file into one for another machine."""
    with path.open("r+b") as file:
        file.seek(18)
        file.write(struct.pack("<H", AARCH64))


def test_runpath_with_origin(tmp_path: Path, cc: Compile, library: Compile, inside: Inside) -> None:
    lib = library(tmp_path / "app/lib/liba.so.1", "a")
    program = cc(tmp_path / "app/bin/tool", CALL, lib, "-Wl,-rpath,$ORIGIN/../lib")
    root = build(tmp_path / "root", [program])
    assert str(lib) in root.libraries
    inside(root.path, program)


def test_origin_is_the_directory_of_the_real_program(
    tmp_path: Path, cc: Compile, library: Compile, inside: Inside
) -> None:
    lib = library(tmp_path / "app/liba.so.1", "a")
    program = cc(tmp_path / "app/tool", CALL, lib, "-Wl,-rpath,${ORIGIN}")
    (tmp_path / "link").symlink_to(program)
    root = build(tmp_path / "root", [tmp_path / "link"])
    inside(root.path, tmp_path / "link")


def test_rpath_is_used_for_the_libraries_of_libraries(
    tmp_path: Path, cc: Compile, library: Compile, inside: Inside
) -> None:
    lib_b = library(tmp_path / "lib/libb.so.1", "b")
    lib_a = library(tmp_path / "lib/liba.so.1", "a", "-Wl,--no-as-needed", lib_b)
    flags = [lib_a, f"-Wl,-rpath-link,{tmp_path}/lib"]
    rpath = f"-Wl,--disable-new-dtags,-rpath,{tmp_path}/lib"
    program = cc(tmp_path / "tool", CALL, *flags, rpath)
    root = build(tmp_path / "root", [program])
    assert {str(lib_a), str(lib_b)} < set(root.libraries)
    inside(root.path, program)


def test_runpath_is_not(tmp_path: Path, cc: Compile, library: Compile) -> None:
    """DT_RUNPATH, unlike DT_RPATH, is not searched for the libraries of libraries."""
    lib_b = library(tmp_path / "lib/libb.so.1", "b")
    lib_a = library(tmp_path / "lib/liba.so.1", "a", "-Wl,--no-as-needed", lib_b)
    flags = [lib_a, f"-Wl,-rpath-link,{tmp_path}/lib"]
    runpath = f"-Wl,--enable-new-dtags,-rpath,{tmp_path}/lib"
    program = cc(tmp_path / "tool", CALL, *flags, runpath)
    assert subprocess.run([program], check=False, capture_output=True).returncode == 127
    with pytest.raises(RootfsError) as caught:
        build(tmp_path / "root", [program])
    assert caught.value.missing == (f"libb.so.1: needed by {lib_a}, not found",)


def test_a_loaded_library_satisfies_later_needs(
    tmp_path: Path, cc: Compile, library: Compile, inside: Inside
) -> None:
    lib_b = library(tmp_path / "lib/libb.so.1", "b")
    lib_a = library(tmp_path / "lib/liba.so.1", "a", "-Wl,--no-as-needed", lib_b)
    runpath = f"-Wl,--enable-new-dtags,-rpath,{tmp_path}/lib"
    program = cc(tmp_path / "tool", CALL, "-Wl,--no-as-needed", lib_a, lib_b, runpath)
    root = build(tmp_path / "root", [program])
    inside(root.path, program)


def test_library_by_path(tmp_path: Path, cc: Compile, inside: Inside) -> None:
    lib = cc(tmp_path / "lib/liba.so", "int a(void) { return 7; }", "-shared", "-fPIC")
    program = cc(tmp_path / "tool", CALL, lib)  # without a soname the program needs the path
    root = build(tmp_path / "root", [program])
    assert str(lib) in root.libraries
    inside(root.path, program)


def test_library_of_another_machine_is_skipped(
    tmp_path: Path, cc: Compile, library: Compile, inside: Inside
) -> None:
    wrong = library(tmp_path / "wrong/liba.so.1", "a")
    right = library(tmp_path / "right/liba.so.1", "a")
    program = cc(tmp_path / "tool", CALL, right, f"-Wl,-rpath,{wrong.parent}:{right.parent}")
    make_foreign(wrong)
    root = build(tmp_path / "root", [program])
    assert str(right) in root.libraries
    assert str(wrong) not in root.files
    inside(root.path, program)


def test_program_of_another_machine(tmp_path: Path, cc: Compile) -> None:
    program = cc(tmp_path / "tool", "int main(void) { return 0; }")
    make_foreign(program)
    with pytest.raises(RootfsError) as caught:
        build(tmp_path / "root", [program])
    assert caught.value.missing == (f"libc.so.6: needed by {program}, not found",)
    static = cc(tmp_path / "static", "int main(void) { return 0; }", "-static")
    make_foreign(static)
    assert str(static) in build(tmp_path / "root", [static]).files


def test_missing_libraries_are_all_named(tmp_path: Path, cc: Compile, library: Compile) -> None:
    libs = [library(tmp_path / f"lib{name}.so.1", name) for name in "abc"]
    program = cc(tmp_path / "tool", CALL, "-Wl,--no-as-needed", *libs)
    for lib in libs[1:]:
        lib.unlink()
    with pytest.raises(RootfsError) as caught:
        build(tmp_path / "root", [program, "no-such-command"])
    assert caught.value.missing == (
        "command no-such-command: not found in PATH",
        *(f"lib{name}.so.1: needed by {program}, not found" for name in "abc"),
    )
    assert not (tmp_path / "root").exists()


def test_missing_loader(tmp_path: Path, cc: Compile) -> None:
    loader = f"{tmp_path}/ld.so"
    program = cc(tmp_path / "tool", CALL + "int a(void) {return 7;}", f"-Wl,-I{loader}")
    with pytest.raises(RootfsError) as caught:
        build(tmp_path / "root", [program])
    assert caught.value.missing == (f"loader {loader}: needed by {program}, does not exist",)


def test_broken_elf_file(tmp_path: Path, cc: Compile) -> None:
    program = cc(tmp_path / "tool", "int main(void) { return 0; }")
    os.truncate(program, 200)
    with pytest.raises(RootfsError, match="tool: is a broken ELF file"):
        build(tmp_path / "root", [program])


def test_broken_library(tmp_path: Path, cc: Compile, library: Compile) -> None:
    lib = library(tmp_path / "liba.so.1", "a")
    program = cc(tmp_path / "tool", CALL, lib, "-Wl,-rpath,$ORIGIN")
    os.truncate(lib, 100)
    with pytest.raises(RootfsError, match=r"liba\.so\.1: needed by .*/tool, .*broken ELF file"):
        build(tmp_path / "root", [program])


def test_libraries_of_extra(tmp_path: Path, library: Compile) -> None:
    lib_b = library(tmp_path / "deps/libb.so.1", "b")
    flags = ["-Wl,--no-as-needed", lib_b, "-Wl,-rpath,$ORIGIN/../deps"]
    plugin = library(tmp_path / "data/plugin.so", "a", *flags)
    root = build(tmp_path / "root", [], extra=[plugin.parent])
    assert str(lib_b) in root.libraries
    assert str(plugin) in root.files


def test_library_of_extra_may_be_another_extra(tmp_path: Path, library: Compile) -> None:
    lib_b = library(tmp_path / "data/deep/libb.so.1", "b")
    plugin = library(tmp_path / "data/plugin.so", "a", "-Wl,--no-as-needed", lib_b)
    root = build(tmp_path / "root", [], extra=[tmp_path / "data"])
    assert {str(lib_b), str(plugin)} < set(root.files)
    lib_b.unlink()
    with pytest.raises(RootfsError) as caught:
        build(tmp_path / "second", [], extra=[tmp_path / "data"])
    assert caught.value.missing == (f"libb.so.1: needed by {plugin}, not found",)


def test_configured_directory_needs_the_cache(
    tmp_path: Path, cc: Compile, library: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    lib = library(tmp_path / "lib/liba.so.1", "a")
    program = cc(tmp_path / "tool", CALL, lib)
    monkeypatch.setattr(_loader, "configured_dirs", lambda _: [str(lib.parent)])
    root = build(tmp_path / "root", [program])
    assert str(lib) in root.libraries
    assert ("/etc/ld.so.cache" in root.files) == os.path.exists("/etc/ld.so.cache")
    assert "/etc/ld.so.cache" not in build(tmp_path / "plain", ["cat"]).files


def test_ld_so_conf(tmp_path: Path) -> None:
    """The directories of ld.so.conf are in order, with included files, each once."""
    conf = tmp_path / "ld.so.conf"
    conf.write_text(
        "# comment\n/a /b:/c,/a/\ninclude conf.d/*.conf\nhwcap 0 nosegneg\n\n/d=libc6 # more\n"
    )
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "2.conf").write_text("/second\n")
    (tmp_path / "conf.d" / "1.conf").write_text(f"/first\ninclude {conf}\n")
    expected = ["/a", "/b", "/c", "/first", "/second", "/d"]
    assert _loader.configured_dirs(str(conf)) == expected
    assert _loader.configured_dirs(str(tmp_path / "none")) == []


def test_old_c_library_brings_the_name_services(
    tmp_path: Path, library: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = {
        str(library(tmp_path / "lib" / name, "a"))
        for name in ("libnss_files.so.2", "libnss_dns.so.2")
    }
    monkeypatch.setattr(_loader, "configured_dirs", lambda _: [f"{tmp_path}/lib"])
    assert not services & set(build(tmp_path / "new", []).files)
    monkeypatch.setattr(_resolve, "NSS_BUILT_IN", b"a symbol version of the far future")
    assert services <= set(build(tmp_path / "old", []).libraries)
