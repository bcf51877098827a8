"""Wheels and tarballs: only wanted members, within limits, and nothing is written."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile

import pytest

from pipeline.errors import DataError
from pipeline.files import packages
from pipeline.files.packages import is_wheel, read_package


def tarball(path, members, **changes):
    """A tarball by Python's own writer; a member may be a TarInfo without content."""
    with tarfile.open(path, "w:gz", **changes) as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def link(name, kind, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def wanted(name):
    return name.endswith(".tflite")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tarball_is_read_as_pythons_own_writer_wrote_it(form, tmp_path):
    deep = "/".join(["folder" * 5] * 4) + "/b.tflite"
    members = [("a.txt", b"no"), ("p/a.tflite", b"net" * 999), ("p/e.tflite", b"")]
    if form != tarfile.PAX_FORMAT:
        members.append((deep[:99], b"long names are looked up for nobody"))
    path = tarball(tmp_path / "a.tgz", members, format=form)
    assert read_package(path, wanted) == {"p/a.tflite": b"net" * 999, "p/e.tflite": b""}


def test_a_long_name_of_the_posix_format_is_put_together(tmp_path):
    name = "folder/" * 20 + "net.tflite"
    path = tarball(tmp_path / "a.tgz", [(name, b"net")], format=tarfile.USTAR_FORMAT)
    assert read_package(path, wanted) == {name: b"net"}


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([(link("a.tflite", tarfile.SYMTYPE, "/etc/passwd"), b"")], "'a.tflite' is a link"),
        ([(link("a.tflite", tarfile.LNKTYPE, "b"), b"")], "'a.tflite' is a link"),
        ([(link("a.tflite", tarfile.FIFOTYPE, ""), b"")], "is no regular file"),
        ([("a.tflite", b"1"), ("a.tflite", b"2")], "has 'a.tflite' twice"),
    ],
)
def test_odd_wanted_members_of_a_tarball_are_rejected(members, text, tmp_path):
    with pytest.raises(DataError, match=text):
        read_package(tarball(tmp_path / "a.tgz", members), wanted)


def test_names_that_lead_out_of_the_folder_write_nothing(tmp_path):
    members = [("../../evil", b"x"), ("/abs", b"x"), (link("l", tarfile.SYMTYPE, "/"), b"")]
    path = tarball(tmp_path / "a.tgz", [*members, ("../a.tflite", b"net")])
    assert read_package(path, wanted) == {"../a.tflite": b"net"}
    assert [*tmp_path.iterdir()] == [path]


def test_every_cut_and_every_flipped_header_byte_of_a_tarball_is_found(tmp_path):
    whole = gzip.decompress(tarball(tmp_path / "a.tgz", [("a.tflite", b"net" * 99)]).read_bytes())
    broken = [whole[:size] for size in (0, 1, 511, 600, 1024)]
    broken += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, 512, 7)]
    for data in broken:
        (tmp_path / "b.tgz").write_bytes(gzip.compress(data))
        with pytest.raises(DataError, match=r"b.tgz: (is damaged|the gzip)"):
            read_package(tmp_path / "b.tgz", wanted)


@pytest.mark.parametrize("size", [b"-0000000001\0", b"\x80" + b"\0" * 10 + b"\1", b"77777777777\0"])
def test_sizes_that_no_tarball_needs_are_rejected(size, tmp_path):
    data = bytearray(
        gzip.decompress(tarball(tmp_path / "a.tgz", [("a.tflite", b"net")]).read_bytes())
    )
    data[124:136] = size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "a.tgz").write_bytes(gzip.compress(data))
    with pytest.raises(DataError, match="is damaged at byte 0 of the tarball"):
        read_package(tmp_path / "a.tgz", wanted)


def test_bombs_are_rejected_before_they_fill_the_memory(tmp_path, monkeypatch):
    zeros = bytes(40 * 2**20)
    bomb = tarball(tmp_path / "a.tgz", [("a.tflite", zeros)])
    with pytest.raises(DataError, match="unpacks to more than"):
        read_package(bomb, wanted)
    monkeypatch.setattr(packages, "MAX_WANTED", 2**20)
    with zipfile.ZipFile(tmp_path / "a.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.tflite", zeros)
    with pytest.raises(DataError, match=r"'a.tflite' has 41943040 bytes; the limit is 1048576"):
        read_package(tmp_path / "a.whl", wanted)


def test_a_wheel_is_read_and_told_from_other_zip_files(tmp_path):
    for name, folder in (("a.whl", "a-1.dist-info"), ("b.pth", "archive")):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("../m/a.tflite", b"net" * 99)
            archive.writestr(f"{folder}/METADATA", b"")
    assert read_package(tmp_path / "a.whl", wanted) == {"../m/a.tflite": b"net" * 99}
    assert (is_wheel(tmp_path / "a.whl"), is_wheel(tmp_path / "b.pth")) == (True, False)


@pytest.mark.parametrize("content", [b"<html>", b"PK\3\4 no", b"\x1f\x8b no", b"7z"])
def test_what_is_no_package_is_one_line(content, tmp_path):
    (tmp_path / "a.whl").write_bytes(content)
    with pytest.raises(DataError, match=r"a.whl: .*(fetch it again)"):
        read_package(tmp_path / "a.whl", wanted)
