"""`heatlift weights ls|get|import|verify`, with small files in the place of the published ones."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import subprocess
import tarfile
import venv
import zipfile

import pytest
import torch
from tflite_files import Graph

from pipeline.__main__ import main
from pipeline.lift import MixSTE
from pipeline.predict.load_estimator import BLAZEPOSE, DETECTOR
from pipeline.weights import catalogue, fetching
from pipeline.weights.catalogue import BUNDLES, CATALOGUE, NPM, WHEEL, find_weights

CONTENTS = {name: name.encode() * 50 for name in CATALOGUE}
FULL, DETECTION = "pose_landmark_full.tflite", "pose_detection.tflite"
METADATA = "Metadata-Version: 2.1\nName: mediapipe\nVersion: 0.10.21\n"
ONNX = b"\x08\x07\x12\x04test" * 9


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder of weights, and a catalogue of small files."""
    monkeypatch.setenv("HEATLIFT_WEIGHTS", str(tmp_path / "weights"))
    for name, entry in CATALOGUE.items():
        digests = (hashlib.sha256(CONTENTS[name]).hexdigest(),)
        small = dataclasses.replace(entry, digests=digests, size=len(CONTENTS[name]))
        monkeypatch.setitem(CATALOGUE, name, small)
    return tmp_path / "weights"


@pytest.fixture
def heatlift(folder, capsys, monkeypatch, tmp_path):
    """Run `heatlift weights ARGUMENTS`; return exit code, output, and the error line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main(["weights", *map(str, arguments)])
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("heatlift: error")]
        assert len(lines) == (code != 0), captured.err
        return code, captured.out, "".join(lines).removeprefix("heatlift: error: ")

    return run


def wheel(path, contents, licence="Their licence\n"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mediapipe/__init__.py", "raise SystemExit")
        for name, content in contents.items():
            archive.writestr(CATALOGUE[name].members[0], content)
        archive.writestr("mediapipe-0.10.21.dist-info/METADATA", METADATA)
        if licence:
            archive.writestr("mediapipe-0.10.21.dist-info/LICENSE", licence)
    return path


def tgz(path, contents):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(CATALOGUE[name].members[-1])
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def pick(*names):
    return {name: CONTENTS[name] for name in names}


def names_in(folder):
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


def states(out):
    table = out.partition("-+-")[2].splitlines()[1:]
    rows = [[cell.strip() for cell in line.split("|")] for line in table]
    return {row[0]: row[2] for row in rows if row[0] != "mixste-box"}  # it is in the package


def test_a_wheel_gives_its_networks_with_its_licence_and_nothing_else(heatlift, folder, tmp_path):
    path = wheel(tmp_path / "any.whl", pick(*BUNDLES["blazepose"]))
    assert heatlift("import", path)[0] == 0
    assert (folder / FULL).read_bytes() == CONTENTS["blazepose-full"]
    assert find_weights("blazepose-detector").read_bytes() == CONTENTS["blazepose-detector"]
    assert names_in(folder) == sorted([FULL, f"{FULL}.LICENSE", DETECTION, f"{DETECTION}.LICENSE"])
    text = (folder / f"{FULL}.LICENSE").read_text()
    assert text == f"{FULL}: Apache-2.0, from any.whl\n\nTheir licence\n"


def test_a_package_without_a_licence_text_gets_its_name_and_address(heatlift, folder, tmp_path):
    assert heatlift("import", tgz(tmp_path / "pose.tgz", CONTENTS))[0] == 0
    assert set(states(heatlift("ls")[1]).values()) == {"there"}
    text = (folder / "pose_landmark_lite.tflite.LICENSE").read_text()
    assert "Apache License, Version 2.0\nhttps://www.apache.org/licenses/LICENSE-2.0" in text


def test_a_wheel_without_networks_is_told_with_the_version_that_has_them(heatlift, tmp_path):
    path = wheel(tmp_path / "new.whl", {})
    assert heatlift("import", path) == (
        4,
        "",
        f"{path}: holds no BlazePose model (mediapipe 0.10.31 and later carry none); use 0.10.21",
    )
    code, _, line = heatlift("import", tgz(tmp_path / "pose.tgz", {}))
    assert code == 4
    assert line.endswith("holds no BlazePose model (@mediapipe/pose has them); use 0.5.1675469404")


def test_a_package_with_one_other_network_stores_none(heatlift, folder, tmp_path):
    contents = {**pick("blazepose-full"), "blazepose-detector": b"another"}
    code, _, line = heatlift("import", wheel(tmp_path / "a.whl", contents))
    assert (code, names_in(folder)) == (4, [])
    assert "a.whl: its pose_detection.tflite is not the published file (SHA-256 " in line


def test_a_network_is_recognised_by_its_digest_whatever_its_name(heatlift, folder, tmp_path):
    monkey = b"\0\0\0\0TFL3" + CONTENTS["blazepose-heavy"]
    entry = CATALOGUE["blazepose-heavy"]
    digests = (hashlib.sha256(monkey).hexdigest(),)
    CATALOGUE["blazepose-heavy"] = dataclasses.replace(entry, digests=digests)
    (tmp_path / "download (1)").write_bytes(monkey)
    assert heatlift("import", tmp_path / "download (1)")[0] == 0
    assert (folder / "pose_landmark_heavy.tflite").read_bytes() == monkey


def test_another_tflite_file_is_stored_only_if_it_can_be_read(heatlift, folder, tmp_path):
    graph = Graph(1, 8, 8, 3)
    last = graph.add("logistic", [0], (1, 8, 8, 3))
    graph.save(tmp_path / "own.tflite", last)
    assert heatlift("import", tmp_path / "own.tflite")[0] == 0
    (tmp_path / "own.tflite").rename(tmp_path / FULL)
    code, _, line = heatlift("import", tmp_path / FULL)
    assert (code, line.partition(" (")[0]) == (4, f"{tmp_path / FULL}: is not the published file")
    (tmp_path / "cut.tflite").write_bytes((tmp_path / FULL).read_bytes()[:90])
    assert heatlift("import", tmp_path / "cut.tflite")[0] == 4
    assert names_in(folder) == ["own.tflite", "own.tflite.sha256"]


def test_an_onnx_file_keeps_its_name_and_gets_a_digest(heatlift, folder, tmp_path):
    (tmp_path / "rtmpose-m.onnx").write_bytes(ONNX)
    code, out, _ = heatlift("import", "rtmpose-m.onnx")
    assert code == 0
    assert "its licence is not known" in out
    assert states(heatlift("ls")[1])["rtmpose-m.onnx"] == "there"
    done = subprocess.run(["sha256sum", "-c", "rtmpose-m.onnx.sha256"], cwd=folder, check=False)
    assert done.returncode == 0
    (tmp_path / "rtmpose-m.onnx").write_bytes(ONNX + b"more")
    code, _, line = heatlift("import", "rtmpose-m.onnx")
    assert (code, (folder / "rtmpose-m.onnx").read_bytes()) == (2, ONNX)
    assert "is there with another content; rename the new file" in line


def test_a_file_put_into_the_folder_by_hand_is_not_checked_until_imported(heatlift, folder):
    folder.mkdir()
    (folder / "own.onnx").write_bytes(ONNX)
    code, out, _ = heatlift("verify")
    assert (code, states(out)) == (0, {"own.onnx": "not checked"})
    assert heatlift("import", folder / "own.onnx")[0] == 0
    assert states(heatlift("verify")[1]) == {"own.onnx": "there"}


def test_verify_names_each_damaged_file(heatlift, folder, tmp_path):
    (tmp_path / "net.onnx").write_bytes(ONNX)
    heatlift("import", tmp_path / "net.onnx")
    heatlift("import", wheel(tmp_path / "a.whl", pick(*BUNDLES["blazepose"])))
    assert heatlift("verify")[0] == 0
    for name in (FULL, "net.onnx"):
        content = bytearray((folder / name).read_bytes())
        content[17] ^= 4
        (folder / name).write_bytes(content)
    code, out, line = heatlift("verify")
    assert code == 4
    assert line.startswith(f"{folder}: damaged: blazepose-full, net.onnx; run heatlift weights get")
    assert states(out) == {
        "blazepose-full": "damaged",
        "blazepose-detector": "there",
        "net.onnx": "damaged",
    }


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"<html><title>Sign in</title>", "is no wheel, npm package, TensorFlow Lite file, ONNX"),
        (b"", "is empty"),
        (b"PK\3\4cut", "is damaged"),
        (b"\x1f\x8bcut", "gzip data"),
    ],
)
@pytest.mark.parametrize("ending", ["onnx", "whl", "tgz", "tflite"])
def test_a_file_that_is_something_else_is_one_line(ending, content, text, heatlift, tmp_path):
    (tmp_path / f"a.{ending}").write_bytes(content)
    code, _, line = heatlift("import", tmp_path / f"a.{ending}")
    assert code == 4
    assert text in line


def test_weights_of_a_network_are_named_and_need_a_checkpoint(heatlift, tmp_path):
    net = MixSTE(frames=3, dim=16, depth=2)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    code, _, line = heatlift("import", "a.pth")
    assert code == 2
    assert "add --as NETWORK -o OUTPUT.ckpt (looks like mixste)" in line
    assert "add -o OUTPUT.ckpt" in heatlift("import", "a.pth", "--as", "mixste")[2]
    assert "--output is for networks" in heatlift("import", "a.pth", "-o", "b.ckpt")[2]
    assert "--part is for networks" in heatlift("import", "a.pth", "--part", "base")[2]
    assert heatlift("import", "--as", "mixste", "-o", "b.ckpt", "a.pth")[0] == 0
    assert (tmp_path / "b.ckpt").exists()


def test_weights_that_do_not_exist_are_told_with_a_similar_name(heatlift):
    code, _, line = heatlift("get", "blazepos")
    assert (code, line) == (2, "blazepos: no weights of this name; did you mean blazepose?")


def test_get_lets_pip_download_with_its_own_settings(heatlift, folder, tmp_path, monkeypatch):
    """Here the settings name a folder in place of the index."""
    (tmp_path / "index").mkdir()
    (tmp_path / "pip.py").write_text("raise SystemExit('pip of the current folder')")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    name = "mediapipe-0.10.21-cp312-cp312-manylinux_2_28_x86_64.whl"
    path = wheel(tmp_path / "index" / name, pick(*BUNDLES["blazepose"]))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("mediapipe-0.10.21.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    assert heatlift("get", "blazepose")[0] == 0
    assert names_in(folder) == sorted([FULL, f"{FULL}.LICENSE", DETECTION, f"{DETECTION}.LICENSE"])
    path.unlink()
    assert heatlift("get", "blazepose")[0] == 0  # nothing is missing, so nothing is downloaded
    (folder / FULL).write_bytes(b"damaged")
    code, _, line = heatlift("get", "blazepose")
    assert code == 4
    assert f"on a machine with a network run {WHEEL.command}, then here" in line
    assert "heatlift weights import FILE.whl" in line


def test_get_without_pip_tells_what_to_do(heatlift, folder, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr("sys.executable", str(tmp_path / "bare" / "bin" / "python"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    code, _, line = heatlift("get", "blazepose")
    assert code == 4
    assert line.startswith("mediapipe==0.10.21: this Python has no pip; run python -m ensurepip")
    assert not folder.exists()


def test_get_takes_npms_package_from_its_address_and_removes_it(
    heatlift, folder, tmp_path, monkeypatch
):
    path = tgz(tmp_path / "pose.tgz", CONTENTS)
    content = path.read_bytes()

    def deliver(url, target, **known):
        assert known == {"size": NPM.size, "digest": NPM.digest}
        target.parent.mkdir(parents=True)
        target.write_bytes(content)

    monkeypatch.setattr(fetching, "download", deliver)
    assert heatlift("get", "blazepose-lite")[0] == 0
    assert names_in(folder) == sorted(
        name + ending
        for name in ("pose_landmark_lite.tflite", DETECTION)
        for ending in ("", ".LICENSE")
    )


def test_every_estimator_with_a_name_can_be_got():
    assert BLAZEPOSE.keys() <= BUNDLES.keys()
    assert {name for names in BUNDLES.values() for name in names} == CATALOGUE.keys()
    assert all(BUNDLES[name] == (entry, DETECTOR) for name, entry in BLAZEPOSE.items())


def test_the_published_files_have_the_digests_of_the_catalogue(shared, monkeypatch):
    if not (shared / "data" / "blazepose").is_dir():
        pytest.skip("no published files")
    monkeypatch.setenv("HEATLIFT_WEIGHTS", str(shared / "data" / "blazepose"))
    for name in BUNDLES["blazepose"]:
        assert find_weights(name).stat().st_size == catalogue.CATALOGUE[name].size
