"""VideoPose3D's format: what is written reads back, and Human3.6M's calibration fits it."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.files.archive import Npz
from pipeline.files.writing import remove_leftovers
from pipeline.mocap.motion_capture import Mocap
from pipeline.mocap.videopose3d_export import LAYOUT, export_videopose3d, valid_segments
from pipeline.skeleton import H36M17

KEPT = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]  # as VideoPose3D's readers do


@pytest.fixture
def source(tmp_path, shared, monkeypatch):
    """Two real recordings, one with a bad stretch."""
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    table = tmp_path / "few.csv"
    table.write_text(
        "sequence,subject,split,kind,bad_ranges\n09_12,09,train,navigate,500-517\n10_03,10,test,soccer,\n"
    )
    root = shared / "data" / "cmu_mocap" / "bvh"
    return Mocap(root, splits=str(table), cameras="human36m")


def test_a_reader_of_the_format_finds_subjects_actions_and_seventeen_joints(source, tmp_path):
    three, two = export_videopose3d(source, tmp_path / "out")
    assert (three.name, two.name) == ("data_3d_h36m.npz", "data_2d_h36m_gt.npz")
    positions = Npz(three).objects("positions_3d")
    pixels = Npz(two).objects("positions_2d")
    assert {s: list(a) for s, a in positions.items()} == {
        "S1": ["navigate 09_12", "navigate 09_12 2"],
        "S9": ["soccer 10_03"],
    }
    joints = positions["S9"]["soccer 10_03"]
    assert joints.dtype == np.float32
    assert joints.shape == (147, 32, 3)
    np.testing.assert_array_equal(joints[:, KEPT], source.sequences("test")[0].joints3d)
    assert [a.shape for a in pixels["S9"]["soccer 10_03"]] == [(147, 17, 2)] * 4
    assert Npz(two).objects("metadata") == {
        "layout_name": "h36m",
        "num_joints": 17,
        "keypoints_symmetry": [[4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]],
    }


def test_bad_frames_are_cut_out_and_good_ones_kept(source, tmp_path):
    positions = Npz(export_videopose3d(source, tmp_path)[0]).objects("positions_3d")["S1"]
    whole = source.sequences("train")[0]
    pieces = np.concatenate(list(positions.values()))
    np.testing.assert_array_equal(pieces[:, KEPT], whole.joints3d[whole.valid])


def test_the_shipped_calibration_puts_world_positions_on_the_exported_pixels(
    source, tmp_path, shared
):
    three, two = export_videopose3d(source, tmp_path)
    facts = json.loads((shared / "design" / "h36m-cameras.json").read_text())
    names = {"S1": "navigate 09_12", "S9": "soccer 10_03"}
    for subject, action in names.items():
        world = Npz(three).objects("positions_3d")[subject][action][:, KEPT].astype(float)
        views = Npz(two).objects("positions_2d")[subject][action]
        for k, lens in enumerate(facts["intrinsics"]):
            stand = facts["extrinsics"][subject][k]
            expected = _seen(world, stand, lens)
            assert np.abs(expected - views[k]).max() < 0.5


def _seen(world, stand, lens):
    """Human3.6M's own projection, from the fact sheet: no code of ours."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_quat(np.roll(stand["orientation"], -1, -1)).as_matrix()
    seen = (world - np.array(stand["translation"]) / 1000) @ turn
    ray = np.clip(seen[..., :2] / seen[..., 2:], -1, 1)
    square = (ray**2).sum(-1, keepdims=True)
    radial = 1 + sum(k * square ** (i + 1) for i, k in enumerate(lens["radial_distortion"]))
    tangent = np.array(lens["tangential_distortion"])
    bent = ray * (radial + (ray * tangent).sum(-1, keepdims=True)) + tangent * square
    return bent * lens["focal_length"] + lens["center"]


def test_the_seventeen_kept_of_thirty_two_joints_are_ours_in_order():
    assert len(LAYOUT) == 32
    assert [LAYOUT[i] for i in KEPT] == list(range(len(H36M17)))


def test_stretches_shorter_than_ten_frames_are_left_out():
    valid = np.array([1] * 9 + [0] + [1] * 10, bool)
    assert valid_segments(valid) == [slice(10, 20)]
    assert valid_segments(np.zeros(3, bool)) == []


KILLED = """
import os, pathlib, sys
from pipeline.mocap.videopose3d_export import _write_archive

os.fsync = lambda descriptor: os.kill(os.getpid(), 9)
_write_archive(pathlib.Path(sys.argv[1]), positions_3d={})
"""


def test_what_a_killed_process_was_exporting_is_swept_away(tmp_path):
    words = [sys.executable, "-c", KILLED, str(tmp_path / "a.npz")]
    assert subprocess.run(words, check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_kind_of_source_is_refused(tmp_path):
    with pytest.raises(UsageError, match="export a source with cameras: human36m"):
        export_videopose3d(Mocap(tmp_path), tmp_path)


@pytest.mark.slow
def test_the_whole_benchmark_is_exported_under_human36m_subjects(tmp_path, shared, monkeypatch):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    root = shared / "data" / "cmu_mocap"
    source = Mocap(root, bodies="random_adults", cameras="human36m")
    positions = Npz(export_videopose3d(source, tmp_path)[0]).objects("positions_3d")
    assert list(positions) == ["S1", "S5", "S6", "S7", "S8", "S9", "S11"]
    test = sum(len(a) for s in ("S9", "S11") for a in positions[s].values())
    assert 19_600 < test <= 19_768 - 75
