"""BlazePose's landmark networks, against the official runtime and on networks made by hand."""

import json

import cv2
import numpy as np
import pytest
import torch
from tflite_files import Graph, window

from pipeline.errors import DataError
from pipeline.predict.blazepose import BlazePoseJoints, load_blazepose
from pipeline.predict.square_crops import cut_crops


def read_rgb(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def weights(shared, name):
    path = shared / "data" / "blazepose" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def landmark_network(path, *, joints=195):
    """A network whose outputs are a bias plus the red of the first pixel."""
    graph, pooled = Graph(1, 256, 256, 3), []
    rng = np.random.default_rng(0)
    for channels in (joints, 1, 117):
        red = np.zeros((channels, 1, 1, 3))
        red[:, 0, 0, 0] = 1 if channels == joints else 0
        bias = graph.constant(rng.normal(size=channels) if channels != 1 else [3.0])
        inputs = [0, graph.constant(red), bias]
        coarse = graph.add("conv_2d", inputs, (1, 4, 4, channels), window(1, (64, 64)))
        options = {0: ("b", 1), 1: ("i", 4), 2: ("i", 4), 3: ("i", 4), 4: ("i", 4)}
        last = graph.add("max_pool_2d", [coarse], (1, 1, 1, channels), options)
        flat = graph.add("reshape", [last], (1, channels))
        pooled.append(graph.add("logistic", [flat], (1, 1)) if channels == 1 else flat)
    return graph.save(path / "net.tflite", *pooled[::-1])


@pytest.mark.parametrize("size", ["full", "heavy"])
def test_a_network_computes_what_the_official_runtime_computes(size, shared):
    with np.load(shared / "golden" / "blazepose" / f"landmark_{size}.npz") as golden:
        meta, expected = json.loads(bytes(golden["meta"])), dict(golden)
    net = load_blazepose(weights(shared, meta["file"]))
    assert net.digest == meta["sha256"]
    crop = read_rgb(shared / "golden" / "blazepose" / "crop256.png")
    images = torch.tensor(crop).permute(2, 0, 1)[None] / 255
    joints, presence, world = (x[0].numpy() for x in net(images))
    np.testing.assert_allclose(joints, expected["joints"], atol=1e-3)
    np.testing.assert_allclose(presence, expected["presence"], atol=1e-6)
    np.testing.assert_allclose(world, expected["world"], atol=1e-4)


def test_joints_of_a_real_crop_lie_as_a_person_who_stands(shared):
    net = load_blazepose(weights(shared, "pose_landmark_full.tflite"))
    crop = read_rgb(shared / "golden" / "blazepose" / "crop256.png")
    found = net.find_joints(crop[None])
    assert found.joints2d.shape == (1, 33, 2)
    assert found.presence[0] > 0.99
    height = found.joints2d[0, [0, 11, 23, 25, 27], 1]
    assert (np.diff(height) > 10).all()  # nose, shoulder, hip, knee, ankle
    assert 1.2 < np.ptp(found.world[0, :, 1]) < 2.0


def test_pixels_logits_and_metres_are_taken_from_their_places(tmp_path):
    net = load_blazepose(landmark_network(tmp_path))
    crops = np.zeros((2, 256, 256, 3), np.uint8)
    crops[1, 0, 0] = (51, 255, 255)  # red 0.2
    found = net.find_joints(crops)
    rng = np.random.default_rng(0)
    points, world = rng.normal(size=195).reshape(39, 5), rng.normal(size=117).reshape(39, 3)
    for number, red in enumerate((0.0, 0.2)):
        shifted = points + red
        np.testing.assert_allclose(found.joints2d[number], shifted[:33, :2] - 0.5, atol=1e-6)
        np.testing.assert_allclose(found.depth[number], shifted[:33, 2], atol=1e-6)
        np.testing.assert_allclose(found.points[number], shifted[33:35, :2] - 0.5, atol=1e-6)
        score = 1 / (1 + np.exp(-shifted[:33, 3:]))
        np.testing.assert_allclose(found.score[number], score[:, 0] * score[:, 1], atol=1e-6)
        np.testing.assert_allclose(found.world[number], world[:33], atol=1e-6)
    np.testing.assert_allclose(found.presence, 1 / (1 + np.exp(-3)), rtol=1e-6)


def test_joints_go_back_to_the_image_and_give_the_next_crop():
    joints = np.zeros((1, 33, 2))
    joints[0, 5] = (127.5, 27.5)  # 100 pixels above the centre
    world = np.zeros((1, 33, 3))
    world[0, 5] = (0.1, -0.7, 0.2)
    found = BlazePoseJoints(
        joints2d=joints,
        depth=np.full((1, 33), 64.0),
        score=np.ones((1, 33), np.float32),
        presence=np.ones(1, np.float32),
        world=world,
        points=np.array([[[127.5, 127.5], [127.5, 76.3]]]),
    ).in_image([[300.0, 200.0, 512.0, np.pi / 2]], 256)
    np.testing.assert_allclose(found.joints2d[0, 5], [500, 200])
    np.testing.assert_allclose(found.world[0, 5], [0.7, 0.1, 0.2])
    np.testing.assert_allclose(found.depth, 128)
    np.testing.assert_allclose(found.next_crops(), [[300, 200, 256, np.pi / 2]])


def test_a_crop_that_is_turned_gives_the_same_joints_in_the_image(shared):
    net = load_blazepose(weights(shared, "pose_landmark_full.tflite"))
    image = read_rgb(shared / "golden" / "blazepose" / "crop256.png")
    crops = np.array([[127.5, 127.5, 256, 0.0], [127.5, 127.5, 256, 0.15]])
    found = net.find_joints(cut_crops(image, crops, 256)).in_image(crops, 256)
    apart = np.linalg.norm(found.joints2d[0] - found.joints2d[1], axis=1)
    assert np.median(apart) < 4
    turned = np.linalg.norm(found.world[0] - found.world[1], axis=1)
    assert np.median(turned) < 0.05


@pytest.mark.parametrize(
    "crops", [np.zeros((1, 256, 256, 3)), np.zeros((1, 224, 256, 3), np.uint8)]
)
def test_crops_of_another_shape_or_type_raise_an_error(crops, tmp_path):
    net = load_blazepose(landmark_network(tmp_path))
    with pytest.raises(ValueError, match=r"need uint8 \(N, 256, 256, 3\)"):
        net.find_joints(crops)


def test_no_crops_give_no_joints(tmp_path):
    net = load_blazepose(landmark_network(tmp_path))
    found = net.find_joints(np.zeros((0, 256, 256, 3), np.uint8))
    assert found.joints2d.shape == (0, 33, 2)
    assert found.in_image(np.zeros((0, 4)), 256).next_crops().shape == (0, 4)


def test_another_network_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"net\.tflite: is no landmark network .*\(1, 190\)"):
        load_blazepose(landmark_network(tmp_path, joints=190))
