"""Human3.6M from tiny archives in VideoPose3D's format."""

import json
import pickle
from importlib.resources import files
from pathlib import Path

import fabricate
import numpy as np
import pytest
from malformed import changed_objects, check_lines, error_line
from scipy.spatial.transform import Rotation

from pipeline.camera import project, world_to_camera
from pipeline.datasets.body_checks import check_sequence
from pipeline.datasets.human36m import ACTIONS, Human36M, action_name
from pipeline.datasets.motionbert import MotionBertClips, read_motionbert_clip
from pipeline.errors import DataError, UsageError
from pipeline.files.archive import Npz
from pipeline.files.pickles import read_pickle
from pipeline.skeleton import H36M17
from pipeline.sources import MotionSource


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    return fabricate.human36m(tmp_path / "h36m")


def test_17_of_32_points_come_with_four_cameras(root):
    source = Human36M(str(root))
    assert isinstance(source, MotionSource)
    found = {s.name: s for s in source.sequences("test")}
    assert len(found) == 2 * 4 * 4
    sequence = found["S9/Walking 1/58860488"]
    np.testing.assert_array_equal(sequence.joints3d, fabricate.motion(14, seed=22))
    assert (sequence.subject, sequence.action, sequence.fps) == ("S9", "Walking", 50.0)
    assert sequence.camera.lens == "human36m"
    np.testing.assert_allclose(sequence.camera.centre, [-1.67099, 5.211986, 1.528388], atol=1e-5)
    assert sequence.camera.size == (1000, 1000)
    assert found["S9/Walking 1/54138969"].camera.size == (1000, 1002)


@pytest.mark.parametrize(
    ("protocol", "train", "test"),
    [(1, {"S1", "S5"}, {"S9", "S11"}), (2, {"S1", "S5", "S9"}, {"S11"})],
)
def test_each_protocol_splits_by_subject(root, protocol, train, test):
    source = Human36M(str(root), protocol=protocol)
    assert {s.subject for s in source.sequences("train")} == train
    assert {s.subject for s in source.sequences("val")} == test
    assert f"protocol {protocol}" in source.describe()
    with pytest.raises(UsageError):
        Human36M(str(root), protocol=3).sequences("test")


def test_an_action_is_the_first_word_of_a_recording():
    assert action_name("Sitting 2") == "Sitting"
    assert action_name("SittingDown") == "SittingDown"
    assert action_name("WalkingDog 1") == "WalkDog"
    assert len(ACTIONS) == 15


def test_detections_have_the_names_and_lengths_of_the_motion(root):
    source = Human36M(str(root))
    found = source.detections("cpn_ft_h36m_dbb")
    for sequence in source.sequences("test"):
        video = found[sequence.name]
        assert video.skeleton is H36M17
        exact = project(world_to_camera(sequence.joints3d, sequence.camera), sequence.camera)
        np.testing.assert_allclose(video.joints2d, exact + np.array([1, 0]), atol=1e-3)
        assert (video.score == 1).all()


def test_the_second_reading_maps_the_cache_and_opens_no_archive(root, monkeypatch):
    before = Human36M(str(root)).sequences("test")
    monkeypatch.setattr(Npz, "__init__", lambda *a: pytest.fail("the archive was opened again"))
    after = Human36M(str(root)).sequences("test")
    np.testing.assert_array_equal(before[5].joints3d, after[5].joints3d)
    array = after[5].joints3d
    while array.base is not None and not isinstance(array, np.memmap):
        array = array.base
    assert isinstance(array, np.memmap)


def test_a_2d_archive_of_unknown_joints_raises_an_error_with_both_lists(root):
    path = root / "data_2d_h36m_cpn_ft_h36m_dbb.npz"
    with_sides = {"num_joints": 17, "keypoints_symmetry": [[1, 2, 3], [4, 5, 6]]}
    np.savez(path, positions_2d=fabricate.boxed({}), metadata=fabricate.boxed(with_sides))
    with pytest.raises(DataError, match=r"left \[1, 2, 3\].*not a known set: H36M17 has 17 joints"):
        Human36M(str(root)).detections("cpn_ft_h36m_dbb")


def test_positions_in_millimetres_raise_an_error(root):
    path = root / "data_3d_h36m.npz"
    points = Npz(path).objects("positions_3d")["S9"]["Walking 1"] * 1000
    np.savez(path, positions_3d=fabricate.boxed({"S9": {"Walking 1": points}}))
    with pytest.raises(DataError, match="metres"):
        Human36M(str(root)).sequences("test")


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_malformed_motion_gives_one_line(root, count):
    path = root / "data_3d_h36m.npz"
    content = Npz(path).objects("positions_3d")
    lines = []
    for changed in changed_objects(content, count, seed=count):
        np.savez(path, positions_3d=fabricate.boxed(changed))
        lines.append(error_line(lambda: Human36M(str(root)).sequences("test")))
    check_lines(lines, path.name, 0.5)


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_malformed_detections_give_one_line(root, count):
    path = root / "data_2d_h36m_cpn_ft_h36m_dbb.npz"
    archive = Npz(path)
    content = {name: archive.objects(name) for name in archive.names}
    lines = []
    for changed in changed_objects(content, count, seed=count):
        if isinstance(changed.get("positions_2d"), dict):
            changed["positions_2d"].pop("S2", None)
        np.savez(path, **{name: fabricate.boxed(value) for name, value in changed.items()})
        lines.append(error_line(lambda: Human36M(str(root)).detections("cpn_ft_h36m_dbb")))
    check_lines(lines, path.name, 0.3)  # missing joints are no fault in detections


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_malformed_clips_of_motionbert_give_one_line(tmp_path, count):
    source = MotionBertClips(str(fabricate.motionbert(tmp_path / "clips")))
    path = tmp_path / "clips" / "test" / "00000001.pkl"
    clip = {name: np.array(x) for name, x in read_pickle(path).items()}
    lines = []
    for changed in changed_objects(clip, count, seed=count):
        path.write_bytes(pickle.dumps(changed))
        lines.append(error_line(lambda: source.sequences("test")))
    check_lines(lines, path.name, 0.8)


def test_a_clip_of_motionbert_is_read_without_running_it(tmp_path):
    clip = {"data_input": np.ones((243, 17, 3)), "data_label": np.zeros((243, 17, 3), np.float32)}
    (tmp_path / "00000001.pkl").write_bytes(pickle.dumps(clip))
    found = read_motionbert_clip(tmp_path / "00000001.pkl")
    assert found.joints2d.shape == found.joints3d.shape == (243, 17, 3)
    (tmp_path / "00000001.pkl").write_bytes(pickle.dumps({"data_input": Path("x")}))
    with pytest.raises(DataError, match="pathlib"):
        read_motionbert_clip(tmp_path / "00000001.pkl")


def test_clips_of_motionbert_have_one_size_and_a_parallel_projection(tmp_path):
    source = MotionBertClips(str(fabricate.motionbert(tmp_path / "clips")))
    first = source.sequences("train")[0]
    clip = read_motionbert_clip(tmp_path / "clips" / "train" / "00000000.pkl")
    seen = project(world_to_camera(first.joints3d, first.camera), first.camera)
    np.testing.assert_allclose(seen, 500 * (clip.joints2d[..., :2] + 1), atol=3)
    own = source.detections("input")["train/00000000"]
    np.testing.assert_allclose(own.joints2d, 500 * (clip.joints2d[..., :2] + 1), atol=1e-3)
    assert check_sequence(first).faults == ()
    with pytest.raises(DataError, match="only input"):
        source.detections("gt")
    with pytest.raises(DataError, match="has no"):
        MotionBertClips(str(tmp_path)).sequences("train")


def reference_projection(joints3d, subject, index):
    """Human3.6M's projection, written again from the stored numbers and with scipy's rotations."""
    facts = json.loads(files("pipeline").joinpath("human36m_cameras.json").read_text("utf-8"))
    lens = list(facts["intrinsics"].values())[index]
    (w, x, y, z), millimetres = facts["extrinsics"][subject][index]
    turn = Rotation.from_quat([x, y, z, w])
    seen = turn.inv().apply(joints3d.reshape(-1, 3) - np.array(millimetres) / 1000)
    ray = np.clip(seen[:, :2] / seen[:, 2:], -1, 1)
    square = (ray**2).sum(1, keepdims=True)
    k1, k2, k3 = lens["radial"]
    pair = np.array(lens["tangential"])
    radial = 1 + k1 * square + k2 * square**2 + k3 * square**3 + (ray @ pair)[:, None]
    pixels = (ray * radial + pair * square) * lens["focal"] + lens["principal"]
    return pixels.reshape(*joints3d.shape[:-1], 2)


@pytest.mark.parametrize("index", range(4))
def test_detections_match_a_reference_implementation_of_the_projection(root, index):
    source = Human36M(str(root))
    found = source.detections("cpn_ft_h36m_dbb")
    for sequence in source.sequences("test")[index::4]:
        exact = reference_projection(sequence.joints3d.astype(np.float64), sequence.subject, index)
        np.testing.assert_allclose(found[sequence.name].joints2d - [1, 0], exact, atol=0.01)
