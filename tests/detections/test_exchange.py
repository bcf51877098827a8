"""Detections written to files and read back, also from files of other tools."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import fabricate
import numpy as np
import pytest

from pipeline.camera import Camera, project, world_to_camera
from pipeline.detections.exchange import (
    Detections,
    detections_from_source,
    export_detections,
    read_detections_file,
    report_detections,
)
from pipeline.errors import DataError
from pipeline.skeleton import COCO17, H36M17, MPII16, make_conversion
from pipeline.sources import Sequence, VideoDetections

CAMERA = Camera(
    np.eye(3), np.zeros(3), np.full(2, 200.0), np.full(2, 60.0), (120, 120), np.zeros(5)
)


def sequence(name: str, count: int) -> Sequence:
    joints2d = np.zeros((count, 17, 2), np.float32)
    return Sequence(name, "s", "a", CAMERA, 50.0, H36M17, joints2d=joints2d)


def test_exported_detections_are_read_back(tmp_path):
    numbers = np.random.default_rng(3)
    found = {}
    for name, count in (("a walk", 4), ("run", 5)):
        joints2d = numbers.uniform(0, 100, (count, 17, 2)).astype(np.float32)
        score = numbers.uniform(0.1, 1, (count, 17)).astype(np.float32)
        joints2d[1, 3], score[1, 3] = np.nan, 0
        found[name] = (joints2d, score)
    export_detections(Detections(H36M17, found, "here"), tmp_path / "file.npz")
    back = read_detections_file(tmp_path / "file.npz", [sequence("run", 5), sequence("a walk", 4)])
    assert back.skeleton == H36M17
    for name, arrays in found.items():
        np.testing.assert_array_equal(back.of(name)[0], arrays[0])
        np.testing.assert_array_equal(back.of(name)[1], arrays[1])


def exported(path: Path, **changes) -> Path:
    arrays = {
        "joints2d": np.ones((5, 16, 2), np.float32),
        "score": np.ones((5, 16), np.float32),
        "joints": np.array(MPII16.joints),
        "names": np.array(["a", "b"]),
        "lengths": np.array([2, 3]),
    }
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": None}, "has no array 'score'"),
        ({"joints2d": np.ones((5, 17, 2))}, "do not match each other"),
        ({"joints2d": np.ones((5, 16, 2), int)}, "have a wrong data type"),
        ({"joints": np.array(["nose"] * 16)}, "not a known joint set"),
        ({"names": np.array(["a"])}, "do not match each other"),
        ({"lengths": np.array([2, 2])}, "add up to 4, not to 5"),
        ({"lengths": np.array([6, -1])}, "below zero or add up to 5"),
        ({"names": np.array([{}, {}])}, "names"),
        ({"names": np.array(["a", "a"])}, "has the sequence a twice"),
    ],
)
def test_files_without_detections_raise_an_error(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read_detections_file(exported(tmp_path / "file.npz", **changes), [])


def test_sequences_missing_in_a_file_are_named(tmp_path):
    file = exported(tmp_path / "file.npz")
    with pytest.raises(DataError, match="sequence walk 1 is missing; the file holds a, b"):
        read_detections_file(file, [sequence("walk 1", 2)])
    with pytest.raises(DataError, match="sequence a has 2 frames, not 3"):
        read_detections_file(file, [sequence("a", 3)])
    assert len(read_detections_file(file, [sequence("b", 2)]).of("b")[0]) == 2


def test_damaged_files_raise_an_error(tmp_path):
    file = exported(tmp_path / "file.npz")
    whole = bytearray(file.read_bytes())
    whole[300] ^= 1
    file.write_bytes(whole)
    with pytest.raises(DataError, match="is damaged"):
        read_detections_file(file, [])
    file.write_bytes(whole[:200])
    with pytest.raises(DataError, match=r"file\.npz: is "):
        read_detections_file(file, [])
    with pytest.raises(DataError, match="not found"):
        read_detections_file(tmp_path / "missing.npz", [])


def alphapose(path: Path, frames: int) -> None:
    flat = np.arange(51.0).reshape(17, 3)
    flat[:, 2] = 0.5
    people = [
        {"image_id": f"{frame}.jpg", "keypoints": np.add(flat, (frame, 0, 0)).ravel().tolist()}
        | {"category_id": 1, "score": 2.0}
        for frame in range(frames)
    ]
    path.write_text(json.dumps(people))


def test_a_file_of_another_tool_is_read_for_the_one_sequence(tmp_path):
    alphapose(tmp_path / "found.json", 2)
    found = read_detections_file(tmp_path / "found.json", [sequence("walk", 3)])
    joints2d, score = found.of("walk")
    assert found.skeleton == COCO17
    assert joints2d[1, 1].tolist() == [4, 4]
    assert score[:, 0].tolist() == [0.5, 0.5, 0]
    assert np.isnan(joints2d[2]).all()


def test_several_sequences_have_a_file_each(tmp_path):
    alphapose(tmp_path / "walk.json", 2)
    alphapose(tmp_path / "run.json", 3)
    found = read_detections_file(tmp_path, [sequence("walk", 2), sequence("run", 3)])
    assert [len(found.of(name)[0]) for name in ("walk", "run")] == [2, 3]
    with pytest.raises(
        DataError, match=r"neither jump\.json nor a folder of that name; 2 sequences"
    ):
        read_detections_file(tmp_path, [sequence("walk", 2), sequence("jump", 3)])
    with pytest.raises(DataError, match="nor a folder"):
        read_detections_file(tmp_path / "x", [sequence("../walk", 2), sequence("../run", 3)])


def walking(joints3d):
    return Sequence("walk", "s", "a", fabricate.PINHOLE, 50.0, H36M17, joints3d)


def found_by_a_tool(path, joints2d, *, first=1, without=()):
    """AlphaPose's file for a sequence, with a second person 500 px to the right in every frame."""
    coco = make_conversion(H36M17, COCO17, allow_missing=True).joints(joints2d)
    score = 0.75 * np.isfinite(coco[..., :1])
    records = []
    for frame in set(range(len(joints2d))) - set(without):
        for identity, shift in ((1, 0), (2, 500)):
            flat = (
                np.c_[np.nan_to_num(coco[frame]) + np.array([shift, 0]), score[frame]]
                .ravel()
                .tolist()
            )
            record = {"image_id": f"out{frame + first:07}.png", "keypoints": flat, "score": 2.5}
            records.append({**record, "idx": identity})
    path.write_text(json.dumps(records))
    return path


def exact_walk(count=20):
    joints3d = fabricate.motion(count)
    return joints3d, project(world_to_camera(joints3d, fabricate.PINHOLE), fabricate.PINHOLE)


def test_how_a_file_was_read_and_how_well_it_fits_is_printed(tmp_path, capsys):
    joints3d, joints2d = exact_walk()
    file = found_by_a_tool(tmp_path / "a.json", joints2d, without=(4, 5))
    walk = walking(joints3d)
    detections = read_detections_file(file, [walk])
    report_detections(detections, [walk], "test")
    assert capsys.readouterr().out.splitlines() == [
        f"  detections {file}: frames 1..20 of 20, numbered from 1; 2 have nobody; 2 people by "
        "their ids: person 1 in 18 frames (mean score 0.75), person 2 in 18 frames (mean score "
        "0.75), used: person 1 (--data.person selects another)",
        f"  detections {file}: test split: covers 90 % of the frames (18 of 20), mean score 0.75, "
        "median 0.00 px from the projected 3D",
    ]


def test_frames_after_the_end_of_a_sequence_are_counted(tmp_path, capsys):
    joints3d, joints2d = exact_walk(20)
    walk = walking(joints3d[:17])
    found = {walk.name: (joints2d.astype(np.float32), np.ones((20, 17), np.float32))}
    export_detections(Detections(H36M17, found, "here"), tmp_path / "a.npz")
    detections = read_detections_file(tmp_path / "a.npz", [walk])
    assert len(detections.of(walk.name)[0]) == 17
    report_detections(detections, [walk], "test")
    assert (
        f"a.npz: 1 of 1 sequences end before their detections: 3 frames after the end left out "
        f"(first {walk.name}: 3)" in capsys.readouterr().out
    )
    longer = walking(np.concatenate([joints3d, joints3d[:1]]))
    with pytest.raises(DataError, match=f"sequence {walk.name} has 20 frames, not 21"):
        read_detections_file(tmp_path / "a.npz", [longer])


def test_the_wrong_person_is_an_error_after_the_lines(tmp_path, capsys):
    joints3d, joints2d = exact_walk()
    file = found_by_a_tool(tmp_path / "a.json", joints2d)
    detections = read_detections_file(file, [walking(joints3d)], person="2", first_frame=1)
    message = r"a\.json: sequence walk: median 500\.00 px from .* more than 20 %"
    with pytest.raises(DataError, match=message):
        report_detections(detections, [walking(joints3d)], "test")
    assert "used: person 2" in capsys.readouterr().out


def test_many_files_are_reported_in_one_line(tmp_path, capsys):
    joints3d, joints2d = exact_walk()
    walks = [dataclasses.replace(walking(joints3d), name=f"walk {n}") for n in range(5)]
    for number, walk in enumerate(walks):
        found_by_a_tool(tmp_path / f"{walk.name}.json", joints2d, first=number % 2, without=(7,))
    report_detections(read_detections_file(tmp_path, walks), walks, "train")
    first, second = capsys.readouterr().out.splitlines()
    assert "5 files, numbered: 3 from 0, 2 from 1; 5 frames have nobody; several people" in first
    assert "train split: covers 95 % of the frames (95 of 100)" in second


def test_links_to_detections_are_followed_and_a_broken_one_is_named(tmp_path):
    folder, elsewhere = tmp_path / "found", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    for name in ("walk", "run"):
        alphapose(elsewhere / f"{name}.json", 2)
        (folder / f"{name}.json").symlink_to(elsewhere / f"{name}.json")
    videos = [sequence("walk", 2), sequence("run", 2)]
    assert set(read_detections_file(folder, videos).by_sequence) == {"walk", "run"}
    (elsewhere / "run.json").unlink()
    with pytest.raises(DataError, match=r"found/run\.json: is a link to .*, which is missing"):
        read_detections_file(folder, videos)


class Archive:
    """A source with two sets of detections."""

    def detections(self, name):
        joints2d = np.ones((2, 17, 2), np.float32) * len(name)
        return {
            "a": VideoDetections(COCO17 if name == "cpn" else H36M17, joints2d, joints2d[..., 0])
        }


def test_detections_of_a_source_are_selected_by_name():
    found = detections_from_source(Archive(), "cpn", [sequence("a", 2)])
    assert found.skeleton == COCO17
    assert found.of("a")[0][1, 2].tolist() == [3, 3]
    with pytest.raises(DataError, match="gt: sequence b is missing"):
        detections_from_source(Archive(), "gt", [sequence("a", 2), sequence("b", 2)])
