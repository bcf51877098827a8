"""The inputs of a run: every file that its data come from counts, and their place does not."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import fabricate
import numpy as np
import pytest

from pipeline.cli import run_inputs
from pipeline.cli.run_inputs import content_settings
from pipeline.cli.stages import load_stage
from pipeline.errors import DataError
from pipeline.files import digests, store

SOURCES = {
    "Human36M": ("lift", fabricate.human36m),
    "MotionBertClips": ("lift", fabricate.motionbert),
    "MpiInf3dhp": ("lift", fabricate.p_stmo),
    "MpiInf3dhpImages": ("lift", fabricate.mpi_inf_3dhp_mmpose),
    "Coco": ("heatmap", fabricate.coco),
    "Mpii": ("heatmap", fabricate.mpii),
    "Human36MImages": ("heatmap", fabricate.human36m_mmpose),
    "Human36MImages of PoseNet": ("heatmap", fabricate.human36m_posenet),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))


def inputs_of(stage, source, subcommand="fit", **data):
    config = SimpleNamespace(data={"source": source, **data})
    return run_inputs.run_inputs(load_stage(stage), config, subcommand)


def source_at(name, root, **arguments):
    place = f"pipeline.datasets.{name.split()[0]}"
    return {"class_path": place, "init_args": {"root": str(root), **arguments}}


def change(path):
    """Other content of the same size, and another time."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, (1.0, 1.0))


@pytest.mark.parametrize("name", SOURCES)
def test_every_file_of_a_data_set_counts(name, tmp_path):
    stage, make = SOURCES[name]
    make(tmp_path / "data")
    source = source_at(
        name, "data", **({"boxes": "person_detections.json"} if name == "Coco" else {})
    )
    before = inputs_of(stage, source)
    files = [path for path in sorted((tmp_path / "data").rglob("*")) if path.is_file()]
    is_image = {path: path.suffix in (".jpg", ".png") for path in files}
    kinds = {(p.parent, is_image[p] or p.stem.rpartition("_")[2]): p for p in files}
    unused = []
    for path in kinds.values():
        content, state = path.read_bytes(), path.stat()
        change(path)
        if inputs_of(stage, source) == before:
            unused.append(path.name)
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert [name for name in unused if not name.startswith("data_2d_h36m")] == []
    assert inputs_of(stage, source) == before


@pytest.mark.parametrize("name", SOURCES)
def test_a_moved_or_copied_data_folder_is_the_same_data(name, tmp_path):
    stage, make = SOURCES[name]
    make(tmp_path / "one")
    found = []
    for place in ("one", "two"):
        source = source_at(name, place)
        settings = {"data": {"source": source}, "inputs": inputs_of(stage, source)}
        found.append(content_settings(settings))
        if place == "one":
            shutil.copytree("one", "two")
            shutil.rmtree("one")
    assert found[0] == found[1]
    assert "root" not in found[0]["data"]["source"]["init_args"]


def test_a_known_file_is_not_hashed_again(tmp_path, monkeypatch):
    fabricate.human36m(tmp_path / "data")
    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr(store, "time", SimpleNamespace(time_ns=lambda: later))
    before = inputs_of("lift", source_at("Human36M", "data"))
    assert list(before) == ["data_3d_h36m.npz"]
    monkeypatch.setattr(
        store, "file_digest_and_version", lambda path: pytest.fail(f"{path} is read again")
    )
    assert inputs_of("lift", source_at("Human36M", "data")) == before


def test_the_detections_of_the_data_set_that_are_used_count(tmp_path):
    fabricate.human36m(tmp_path / "data")
    (archive,) = (tmp_path / "data").glob("data_2d_h36m_*.npz")
    name = archive.stem.removeprefix("data_2d_h36m_")
    found = inputs_of("lift", source_at("Human36M", "data"), detections=name)
    assert found[archive.name] == digests.file_digest(archive)


def test_a_test_has_the_inputs_of_the_test_split_alone(tmp_path):
    fabricate.p_stmo(tmp_path / "data")
    found = inputs_of("lift", source_at("MpiInf3dhp", "data"), "test")
    assert list(found) == ["data_test_3dhp.npz"]


def test_a_missing_file_is_an_error_before_a_run_is_opened(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"data_3d_h36m\.npz: not found"):
        inputs_of("lift", source_at("Human36M", "data"))


def recordings(folder, count):
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number:02d}.npz"
        np.savez(path, joints3d=fabricate.motion(30, number), fps=50.0)
        os.utime(path, (9.0, 9.0))
    rows = [f"{n:02d},s{n},{('train', 'val', 'test')[n % 3]}" for n in range(count)]
    (folder / "splits.csv").write_text("\n".join(["sequence,subject,split", *rows]))


@pytest.mark.parametrize("count", [3, 18])
def test_recordings_and_their_table_count(count, tmp_path):
    recordings(tmp_path / "mine", count)
    arguments = {"root": "mine", "mapping": "H36M17", "splits": "mine/splits.csv"}
    source = {"class_path": "pipeline.mocap.Mocap", "init_args": arguments}
    before = inputs_of("pretrain", source)
    names = ["00.npz", "01.npz", "02.npz"] if count == 3 else ["*.npz"]
    assert list(before) == [*names, "splits.csv"]
    change(tmp_path / "mine" / "02.npz")
    after = inputs_of("pretrain", source)
    assert {name for name in before if before[name] != after[name]} == {names[-1]}
    settings = content_settings({"data": {"source": source}, "inputs": after})
    assert settings["data"]["source"]["init_args"]["splits"] == "splits.csv"


OWN = """
from pipeline.mocap import Synthetic


class Own(Synthetic):
    def __init__(self, root: str = ".", table: str = "", **options) -> None:
        super().__init__()
        self.root, self.table = root, table
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({"root": "mine"}, ["folder"]), ({"table": "mine/a.txt"}, ["mine/a.txt"]), ({}, [])],
    ids=["folder", "file", "current folder"],
)
def test_a_source_of_the_user_counts_by_the_paths_that_it_is_given(
    arguments, expected, tmp_path, monkeypatch
):
    from pipeline.training import checkpoints

    (tmp_path / "own_source.py").write_text(OWN)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("a")
    monkeypatch.syspath_prepend(tmp_path)
    checkpoints.allow_import("own_source")
    source = {"class_path": "own_source.Own", "init_args": arguments}
    before = inputs_of("lift", source)
    assert list(before) == expected
    change(Path("mine/a.txt"))
    assert (inputs_of("lift", source) == before) == (not expected)


def test_sources_inside_a_mixed_source_count(tmp_path):
    fabricate.coco(tmp_path / "data" / "coco")
    fabricate.mpii(tmp_path / "data" / "mpii")
    parts = [source_at("Coco", "coco"), source_at("Mpii", "mpii")]
    source = source_at("MixedSource", "data", sources=parts)
    before = inputs_of("heatmap", source)
    change(next((tmp_path / "data" / "mpii").rglob("train.json")))
    after = inputs_of("heatmap", source)
    assert [name for name in before if before[name] != after[name]] == ["annot/train.json"]
