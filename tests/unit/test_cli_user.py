"""--user with a name: the file that is read, what is refused, and that links stay in the root."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from fastns import _inside
from fastns.cli import UsageError
from fastns.cli._flags import spec_of
from fastns.cli._parser import parser_of
from fastns.spec import Spec

PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\nsam:x:1001:1002:Sam:/home/sam:/bin/sh\n"
    "sam:x:7:7::/:/bin/sh\nshort:x:3\nbig:x:4294967295:0::/:/x\nbad:x:x:0::/:/x\n"
    "away:x:5:6::/nowhere:/x\n"
)
GROUP = "root:x:0:\nstaff:x:50:sam\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, text in (("etc/passwd", PASSWD), ("etc/group", GROUP), ("other", "sam:x:8:9::/:/x")):
        (tmp_path / "root" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / path).write_text(text)
    (tmp_path / "root/home/sam").mkdir(parents=True)
    return tmp_path / "root"


def flags_of(*words: str) -> argparse.Namespace:
    return parser_of("run").parse([*words, "true"])


def spec(*words: str) -> Spec:
    return spec_of(flags_of(*words), {}, {})


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("root", "0:0"),
        ("sam", "1001:1002"),
        ("sam:staff", "1001:50"),
        ("sam:5", "1001:5"),
        ("5:staff", "5:50"),
        ("5", "5:0"),
        ("5:6", "5:6"),
    ],
)
def test_names_come_from_the_root(root: Path, text: str, ids: str) -> None:
    assert spec("--rootfs", str(root), "-u", text).user == ids


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nobody", "there is no user nobody in /etc/passwd of the root"),
        ("sam:wheel", "there is no group wheel in /etc/group of the root"),
        ("short", "there is no user short"),
        ("big", "/etc/passwd of the root has no number for it"),
        ("bad", "/etc/passwd of the root has no number for it"),
    ],
)
def test_an_unknown_name(root: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        spec("--rootfs", str(root), "-u", text)
    assert caught.value.message.startswith(f"--user {text}: ")
    assert "or give numbers" in str(caught.value.hint)


def test_home_is_the_users_if_it_exists(root: Path) -> None:
    home = ("--rootfs", str(root), "-u")
    assert spec(*home, "sam").environment()["HOME"] == "/home/sam"
    assert spec(*home, "sam", "-e", "HOME=/x").environment()["HOME"] == "/x"
    assert spec(*home, "away").environment()["HOME"] == "/"
    assert spec(*home, "1001").environment()["HOME"] == "/"


def test_the_file_is_the_one_visible_inside(root: Path, tmp_path: Path) -> None:
    name = ("--rootfs", str(root), "-u", "sam")
    other = root / "other"
    assert spec(*name, "--file", "/etc/passwd=sam:x:3:4::/:/x").user == "3:4"
    assert spec(*name, "-v", f"{other}:/etc/passwd:ro").user == "8:9"
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "passwd").write_text("sam:x:11:12::/:/x\n")
    assert spec(*name, "-v", f"{etc}:/etc").user == "11:12"
    assert spec(*name, "-v", f"{etc}:/etc", "-v", f"{other}:/etc/passwd").user == "8:9"
    with pytest.raises(UsageError, match="/etc/passwd is covered by the tmpfs at /etc"):
        spec(*name, "--tmpfs", "/etc")
    with pytest.raises(UsageError, match="joined mount namespace"):
        spec("-u", "sam", "--mountns", "/proc/1/ns/mnt")


def test_without_a_rootfs_the_hosts_file_is_read() -> None:
    assert spec("-u", "root").user == "0:0"


@pytest.mark.parametrize("how", ["link", "link of a directory", "up", "loop"])
def test_no_link_leads_out_of_the_root(root: Path, tmp_path: Path, how: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "passwd").write_text("sam:x:666:666::/:/x\n")
    passwd = root / "etc/passwd"
    if how == "link of a directory":
        (root / "etc").rename(root / "kept")
        (root / "etc").symlink_to(outside)
    else:
        passwd.unlink()
        to = {"link": str(outside / "passwd"), "up": "../../outside/passwd", "loop": "passwd"}
        passwd.symlink_to(to[how])
    with pytest.raises(UsageError, match=r"No such file|Too many levels"):
        spec("--rootfs", str(root), "-u", "sam")


def test_links_within_the_root_are_followed(root: Path) -> None:
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("/../link/../other")  # link leads to /home, so this is /other
    (root / "link").symlink_to("/home/../home/sam/..")
    assert spec("--rootfs", str(root), "-u", "sam").user == "8:9"


@pytest.mark.parametrize("kind", ["fifo", "directory", "large"])
def test_only_a_regular_file_of_limited_size_is_read(root: Path, kind: str) -> None:
    passwd = root / "etc/passwd"
    passwd.unlink()
    if kind == "fifo":
        os.mkfifo(passwd)  # has no writer, so opening it would block
    elif kind == "directory":
        passwd.mkdir()
    else:
        with passwd.open("wb") as file:
            file.truncate(1 << 40)
    with pytest.raises(UsageError, match=r"is not a regular file|has more than 4194304 bytes"):
        spec("--rootfs", str(root), "-u", "sam")


def test_a_file_of_exactly_the_limit_is_read(root: Path) -> None:
    (root / "x").write_bytes(b"abc")
    assert _inside.read(str(root), "/x", 3) == b"abc"
    with pytest.raises(OSError, match="more than 2"):
        _inside.read(str(root), "/x", 2)
    before = len(os.listdir("/proc/self/fd"))
    for path in ("/x", "/none", "/etc/passwd/x", "/.."):
        _inside.is_file(str(root), path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_links_in_a_circle(root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("/a")
    with pytest.raises(OSError, match="Too many levels"):
        _inside.read(str(root), "/a", 9)


def test_a_root_cannot_choose_a_user_of_the_host(root: Path) -> None:
    with pytest.raises(UsageError, match="would choose a user of the host"):
        spec("--rootfs", str(root), "--userns", "host", "--user", "sam")
    assert spec("--rootfs", str(root), "--userns", "host", "--user", "7:8").user == "7:8"
    assert spec("--rootfs", str(root), "--user", "sam").user == "1001:1002"
