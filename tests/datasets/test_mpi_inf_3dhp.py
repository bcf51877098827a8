"""MPI-INF-3DHP from tiny archives in P-STMO's and mmpose's formats."""

import pickle
from pathlib import Path

import fabricate
import numpy as np
import pytest
from malformed import changed_objects, check_lines, error_line

from pipeline.__main__ import main
from pipeline.camera import project, world_to_camera
from pipeline.datasets.mpi_inf_3dhp import KEPT, MpiInf3dhp, MpiInf3dhpImages
from pipeline.errors import DataError
from pipeline.files.archive import Npz
from pipeline.files.pickles import read_pickle
from pipeline.skeleton import MPI3DHP17

NAMES_28 = (
    *("spine3", "spine4", "spine2", "spine", "pelvis", "neck", "head", "head_top"),
    *("LClav", "LSho", "LElb", "LWri", "LHand", "RClav", "RSho", "RElb", "RWri", "RHand"),
    *("LHip", "LKnee", "LAnk", "LFoot", "LToe", "RHip", "RKnee", "RAnk", "RFoot", "RToe"),
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))


def test_17_of_28_joints_are_the_named_ones():
    short = [name.replace("left_", "L").replace("right_", "R") for name in MPI3DHP17.joints]
    long = [NAMES_28[index] for index in KEPT]
    assert [name.lower()[:4] for name in short] == [name.lower()[:4] for name in long]


def test_positions_are_those_of_the_camera_and_project_onto_the_pixels(tmp_path):
    source = MpiInf3dhp(str(fabricate.p_stmo(tmp_path)))
    found = {s.name: s for s in source.sequences("train")}
    assert sorted(found) == [f"{s}/{c}" for s in ("S1/Seq1", "S1/Seq2", "S2/Seq1") for c in "08"]
    sequence = found["S1/Seq2/0"]
    assert (sequence.fps, found["S1/Seq1/8"].fps) == (50.0, 25.0)
    joints3d = fabricate.TO_3DHP.joints(fabricate.motion(10, 1))
    seen = world_to_camera(sequence.joints3d, sequence.camera)
    np.testing.assert_allclose(seen, world_to_camera(joints3d, fabricate.PINHOLE), atol=1e-5)
    np.testing.assert_allclose(sequence.camera.focal, [1500, 1490], rtol=1e-4)
    np.testing.assert_allclose(project(seen, sequence.camera), sequence.joints2d, atol=0.05)
    assert sequence.joints3d[..., 2].std() > 0.3  # up is z


def test_test_frames_that_are_not_valid_are_marked_and_ts5_is_wide(tmp_path):
    one, five = MpiInf3dhp(str(fabricate.p_stmo(tmp_path))).sequences("test")
    assert (one.camera.size, five.camera.size) == ((2048, 2048), (1920, 1080))
    assert np.flatnonzero(~one.valid).tolist() == [3]
    assert np.flatnonzero(~five.valid).tolist() == [4]


def test_a_fitted_camera_that_cannot_be_real_is_named_with_its_archive(tmp_path):
    root = fabricate.p_stmo(tmp_path)
    content = Npz(root / "data_test_3dhp.npz").objects("data")
    content["TS5"]["data_2d"] = 2047 - np.asarray(content["TS5"]["data_2d"])  # upside down
    np.savez(root / "data_test_3dhp.npz", data=np.array(content, dtype=object))
    with pytest.raises(
        DataError, match=r"data_test_3dhp\.npz: TS5: focal length -15.*cannot be real"
    ):
        MpiInf3dhp(str(root)).sequences("test")


def test_a_mmpose_camera_that_cannot_be_real_is_named_with_its_file(tmp_path, capsys):
    root = fabricate.mpi_inf_3dhp_mmpose(tmp_path)
    path = root / "annotations" / "cameras_test.pkl"
    content = read_pickle(path)
    content["TS1"]["f"] = np.array([1e-30, 1e-30])
    path.write_bytes(pickle.dumps(content))
    assert main(["data", "validate", str(root)]) == 4
    lines = capsys.readouterr()
    assert "cameras_test.pkl: TS1: focal length 1e-30" in lines.out + lines.err


def test_the_two_targets_are_named(tmp_path):
    assert "univ_annot3" in MpiInf3dhp("x").describe().split(";")[1]
    assert " annot3" in MpiInf3dhpImages("x").describe().split(";")[1]


def test_mmposes_format_gives_world_positions_and_images(tmp_path):
    source = MpiInf3dhpImages(str(fabricate.mpi_inf_3dhp_mmpose(tmp_path)))
    (test,) = source.sequences("test")
    train = source.sequences("train")
    joints3d = fabricate.TO_3DHP.joints(fabricate.motion(5, 0))
    np.testing.assert_allclose(train[0].joints3d, joints3d, atol=1e-5)
    in_camera = world_to_camera(test.joints3d, test.camera)  # the camera has no pose in the file
    np.testing.assert_allclose(in_camera, world_to_camera(joints3d, fabricate.PINHOLE), atol=1e-5)
    assert test.joints3d[..., 2].std() > 0.3  # up is z
    for sequence in (test, *train):
        seen = project(world_to_camera(sequence.joints3d, sequence.camera), sequence.camera)
        np.testing.assert_allclose(seen, sequence.joints2d, atol=0.01)
    assert [s.name for s in train] == ["S1/Seq1/Cam0", "S2/Seq1/Cam8"]
    assert test.images.paths[4].endswith("images/TS1_000005.jpg")


def test_a_video_with_missing_frames_becomes_sequences_without_gaps(tmp_path):
    folder = fabricate.mpi_inf_3dhp_mmpose(tmp_path)
    path = folder / "annotations" / "mpi_inf_3dhp_test_valid.npz"
    with np.load(path) as archive:
        kept = {name: archive[name][[0, 1, 3, 4]] for name in archive.files}  # frame 3 of 5 is gone
    (whole,) = MpiInf3dhpImages(str(folder)).sequences("test")
    np.savez(path, **kept)
    first, second = MpiInf3dhpImages(str(folder)).sequences("test")
    assert [first.name, second.name] == ["TS1/part1", "TS1/part2"]
    np.testing.assert_array_equal(second.joints3d, whole.joints3d[3:])
    assert [Path(name).stem[-1] for name in second.images.paths] == ["4", "5"]


def test_metres_instead_of_millimetres_raise_an_error(tmp_path):
    path = fabricate.p_stmo(tmp_path) / "data_test_3dhp.npz"
    content = Npz(path).objects("data")
    content["TS1"]["data_3d"] = content["TS1"]["data_3d"] / 1000
    np.savez(path, data=fabricate.boxed(content))
    with pytest.raises(DataError, match=r"TS1: people are .* millimetres"):
        MpiInf3dhp(str(tmp_path)).sequences("test")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_malformed_archives_give_one_line(tmp_path, split, count):
    path = fabricate.p_stmo(tmp_path) / f"data_{split}_3dhp.npz"
    content = Npz(path).objects("data")
    lines = []
    for changed in changed_objects(content, count, seed=count):
        np.savez(path, data=fabricate.boxed(changed))
        lines.append(error_line(lambda: MpiInf3dhp(str(tmp_path)).sequences(split)))
    check_lines(lines, path.name, 0.4)  # a missing camera is no fault
