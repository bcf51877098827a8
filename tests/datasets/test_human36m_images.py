"""Human3.6M's images in mmpose's and PoseNet's layout."""

import json
import pickle
import re

import fabricate
import numpy as np
import pytest
from malformed import changed_objects, check_json_reader, check_lines, error_line

from pipeline.camera import human36m_cameras, project, world_to_camera
from pipeline.datasets.human36m_images import Human36MImages
from pipeline.datasets.mmpose import read_annotations, read_cameras
from pipeline.errors import DataError
from pipeline.files.archive import Npz
from pipeline.files.pickles import read_pickle
from pipeline.heatmap.crop import apply_affine, crop_matrix


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))


def test_mmposes_cameras_are_those_that_come_with_heatlift(tmp_path):
    root = fabricate.human36m_mmpose(tmp_path)
    found = read_cameras(root / "annotation_body3d" / "cameras.pkl", to_world=True)
    ours = human36m_cameras()["S9"][3]
    theirs = found["S9", "60457274"]
    for name in ("rotation", "centre", "focal", "principal", "distortion"):
        np.testing.assert_allclose(getattr(theirs, name), getattr(ours, name), atol=1e-6)
    assert theirs.size == ours.size == (1000, 1002)


def test_mmposes_rows_become_videos_with_images(tmp_path):
    source = Human36MImages(str(fabricate.human36m_mmpose(tmp_path)))
    found = {s.name: s for s in source.sequences("train")}
    assert len(found) == 4
    sequence = found["S5/Directions 1/60457274"]
    assert (sequence.subject, sequence.action, sequence.fps) == ("S5", "Directions", 50.0)
    np.testing.assert_allclose(sequence.joints3d, fabricate.motion(6, 1), atol=1e-5)
    seen = project(world_to_camera(sequence.joints3d, sequence.camera), sequence.camera)
    np.testing.assert_allclose(seen, sequence.joints2d, atol=0.01)
    assert sequence.images.size(5) == sequence.camera.size


def test_mmposes_samples_are_every_nth_frame_in_the_camera_frame(tmp_path):
    source = Human36MImages(str(fabricate.human36m_mmpose(tmp_path)), train_every=4, test_every=6)
    samples = source.samples("train")
    assert [name[-10:-4] for name in samples.ids] == ["000001", "000005"] * 4
    slope = samples.joints3d[..., :2] / samples.joints3d[..., 2:]
    pixels = slope * samples.focal[:, None] + samples.principal[:, None]
    assert np.abs(pixels - samples.joints2d).max() < 30  # without the lens' distortion
    inside = samples.joints2d - samples.boxes[:, None, :2]
    assert (inside > 0).all()
    assert (inside < samples.boxes[:, None, 2:]).all()
    assert len(source.samples("test")) == 2


def test_mmposes_rows_without_a_known_camera_raise_an_error(tmp_path):
    root = fabricate.human36m_mmpose(tmp_path)
    path = root / "annotation_body3d" / "fps50" / "h36m_test.npz"
    content = {name: Npz(path).array(name) for name in Npz(path).names}
    content["imgname"] = np.array([name.replace("S9", "S4") for name in content["imgname"]])
    np.savez(path, **content)
    with pytest.raises(DataError, match="S4_Directions"):
        Human36MImages(str(root)).sequences("test")


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_malformed_rows_give_one_line(tmp_path, count):
    path = fabricate.human36m_mmpose(tmp_path) / "annotation_body3d" / "fps50" / "h36m_test.npz"
    content = {name: Npz(path).array(name) for name in Npz(path).names}
    lines = []
    for changed in changed_objects(content, count, seed=count):
        np.savez(path, **{name: np.asarray(value, dtype=None) for name, value in changed.items()})
        lines.append(error_line(lambda: read_annotations(path, 17)))
    check_lines(lines, path.name, 0.5)


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_malformed_cameras_give_one_line(tmp_path, count):
    path = fabricate.human36m_mmpose(tmp_path) / "annotation_body3d" / "cameras.pkl"
    content, lines = read_pickle(path), []
    for changed in changed_objects(content, count, seed=count):
        path.write_bytes(pickle.dumps(changed))
        lines.append(error_line(lambda: read_cameras(path, to_world=True)))
    check_lines(lines, path.name, 0.4)  # without a lens or a camera is no fault of the file


@pytest.mark.parametrize(
    "changes", [{"f": [1e-30, 1e-30]}, {"f": [-1145.0, 1144.0]}, {"R": np.diag([1.0, 1.0, -1.0])}]
)
def test_cameras_that_cannot_be_real_are_named_with_their_file(tmp_path, changes):
    path = fabricate.human36m_mmpose(tmp_path) / "annotation_body3d" / "cameras.pkl"
    content = read_pickle(path)
    key = next(iter(content))
    content[key] |= {name: np.array(value) for name, value in changes.items()}
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=rf"cameras\.pkl: {re.escape(str(key))}: .*cannot be real"):
        read_cameras(path, to_world=True)


@pytest.mark.parametrize("changes", [{"f": [0.0, 1144.0]}, {"c": [512.0, 51500.0]}])
def test_posenets_cameras_that_cannot_be_real_are_named_with_their_file(tmp_path, changes):
    root = fabricate.human36m_posenet(tmp_path)
    path = root / "annotations" / "Human36M_subject5_camera.json"
    content = json.loads(path.read_text())
    content["3"] |= changes
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"subject5_camera\.json: 3: .*cannot be real"):
        Human36MImages(str(root)).samples("train")


@pytest.mark.parametrize("shifted", [False, True])
def test_posenets_cameras_are_understood_in_both_conventions(tmp_path, shifted):
    source = Human36MImages(str(fabricate.human36m_posenet(tmp_path, shifted=shifted)))
    samples = source.samples("train")
    assert len(samples) == 5 * 4 * 3  # subjects, cameras, frames 0, 5, 10
    camera = human36m_cameras()["S1"][0]
    joints3d = world_to_camera(fabricate.motion(11, seed=1), camera)
    np.testing.assert_allclose(samples.joints3d[1], joints3d[5], atol=1e-4)
    pixels = joints3d[5, :, :2] / joints3d[5, :, 2:] * camera.focal + camera.principal
    np.testing.assert_allclose(samples.joints2d[1], pixels, atol=0.05)
    assert samples.ids[1] == "s_01_act_02_subact_01_ca_01/s_01_act_02_subact_01_ca_01_000006.jpg"


def test_posenets_boxes_are_taken_as_they_are_and_a_crop_shows_a_quarter_more(tmp_path):
    root = fabricate.human36m_posenet(tmp_path)
    path = root / "annotations" / "Human36M_subject11_data.json"
    document = json.loads(path.read_text())
    x, y, w, h = document["annotations"][5]["bbox"]
    box = [x - 7.25, y - 30.0, w + 60.0, h + 41.5]  # left, top, width, height; of frame 5
    document["annotations"][5]["bbox"] = box
    path.write_text(json.dumps(document))
    samples = Human36MImages(str(root), protocol=2, test_every=5).samples("test")
    np.testing.assert_allclose(samples.boxes[1], box, rtol=1e-6)
    np.testing.assert_allclose(samples.boxes[0], document["annotations"][0]["bbox"], rtol=1e-6)
    assert h + 41.5 > w + 60.0  # upright: 256 pixels of the crop show 1.25 heights
    corners = [[box[0], box[1]], [box[0] + box[2] / 2, box[1] + box[3] / 2]]
    corner, middle = apply_affine(crop_matrix(samples.boxes[1], (256, 256)), corners)
    np.testing.assert_allclose(middle, 127.5, atol=1e-3)
    np.testing.assert_allclose(middle - corner, [102.4 * box[2] / box[3], 102.4], atol=1e-3)


def test_posenets_protocol_2_tests_on_s11(tmp_path):
    source = Human36MImages(str(fabricate.human36m_posenet(tmp_path)), protocol=2)
    assert len(source.samples("test")) == 4
    assert source.samples("test").ids[0].startswith("s_11")


def test_posenets_cameras_that_miss_the_box_raise_an_error(tmp_path):
    root = fabricate.human36m_posenet(tmp_path)
    path = root / "annotations" / "Human36M_subject9_camera.json"
    cameras = json.loads(path.read_text())
    cameras["1"]["t"][0] += 5000
    cameras["2"]["t"][0] += 5000
    path.write_text(json.dumps(cameras))
    with pytest.raises(DataError, match=r"subject9_camera\.json: the pelvis is"):
        Human36MImages(str(root)).samples("test")


@pytest.mark.parametrize("part", ["data", "camera", "joint_3d"])
@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_malformed_posenet_files_give_one_line(tmp_path, part, count):
    root = fabricate.human36m_posenet(tmp_path)
    path = root / "annotations" / f"Human36M_subject11_{part}.json"
    document = json.loads(path.read_text())
    if part == "data":
        document = {name: rows[::10] for name, rows in document.items()}
    source = Human36MImages(str(root), protocol=2, test_every=1)
    check_json_reader(
        document, path, lambda _: source.samples("test"), count=count, named="subject11"
    )
