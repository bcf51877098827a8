"""BlazePose's person detector, against the official runtime and on a network made by hand."""

import cv2
import numpy as np
import pytest
import torch
from tflite_files import Graph, window

from pipeline.errors import DataError
from pipeline.predict.person_detector import (
    detect_people,
    load_person_detector,
    make_anchors,
    merge_overlapping,
)
from pipeline.predict.square_crops import overlapping_squares

OFFSETS = (3.0, -2.0, 40.0, 60.0, 1.0, 10.0, 1.0, -20.0, 0.0, 0.0, 0.0, 0.0)
"""Box dx, dy, w, h and four points, relative to the anchor."""


def detector(path, outputs=2):
    """A detector that finds a person where the first of a cell's 8 x 8 pixels is pure red."""
    graph, boxes, logits = Graph(1, 224, 224, 3), [], []
    for cells, repeats in ((28, 2), (14, 2), (7, 6)):
        stride = (224 // cells, 224 // cells)
        for found, bias in ((boxes, OFFSETS * repeats), (logits, (-10.0,) * repeats)):
            weight = np.zeros((len(bias), 1, 1, 3))
            if found is logits and cells == 28:
                weight[0] = (6, -6, -6)
            inputs = [0, graph.constant(weight), graph.constant(bias)]
            last = graph.add("conv_2d", inputs, (1, cells, cells, len(bias)), window(1, stride))
            shape = (1, cells * cells * repeats, len(bias) // repeats)
            found.append(graph.add("reshape", [last], shape))
    joined = [
        graph.add("concatenation", parts, (1, 2254, width), {0: ("i", 1)})
        for parts, width in ((boxes, 12), (logits, 1))
    ]
    return graph.save(path / "detector.tflite", *joined[::-1][:outputs])


def test_the_detector_computes_what_the_official_runtime_computes(shared):
    net = load_person_detector(shared / "data" / "blazepose" / "pose_detection.tflite")
    image = cv2.imread(str(shared / "golden" / "blazepose" / "square224.png"))
    image = torch.tensor(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)[None]
    boxes, scores = (x[0].numpy() for x in net(image / 127.5 - 1))
    with np.load(shared / "golden" / "blazepose" / "detector.npz") as golden:
        np.testing.assert_allclose(boxes[::4], golden["boxes"], atol=1e-3)
        np.testing.assert_allclose(scores[:, 0], golden["scores"], atol=1e-3)


def test_both_people_of_a_real_frame_are_found_on_overlapping_squares(shared):
    video = cv2.VideoCapture(str(shared / "data" / "video" / "walk.mp4"))
    video.set(cv2.CAP_PROP_POS_FRAMES, 50)
    image = cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2RGB)
    net = load_person_detector(shared / "data" / "blazepose" / "pose_detection.tflite")
    found = detect_people(net, image, overlapping_squares(1768, 994))
    assert (found.score > 0.8).all()
    np.testing.assert_allclose(found.crops[:, :2], [[644, 249], [1504, 733]], atol=20)
    assert (np.abs(found.crops[:, 3]) < 0.3).all()
    assert len(detect_people(net, image).score) < 2


def test_a_person_lies_about_the_centre_of_the_cell(tmp_path):
    net = load_person_detector(detector(tmp_path))
    image = np.zeros((224, 224, 3), np.uint8)
    image[80, 40] = (255, 0, 0)  # column 5, row 10: centre (44, 84) from the corner
    ((boxes, points, score),) = net.find_people(image[None])
    np.testing.assert_allclose(boxes, [[26.5, 51.5, 66.5, 111.5]], atol=1e-4)
    np.testing.assert_allclose(points[0, :2], [[44.5, 93.5], [44.5, 63.5]], atol=1e-4)
    np.testing.assert_allclose(score, 1 / (1 + np.exp(-8)), atol=1e-3)


def test_people_come_out_in_pixels_of_the_image_whatever_the_square(tmp_path):
    net = load_person_detector(detector(tmp_path))
    image = np.zeros((448, 600, 3), np.uint8)
    image[156:168, 284:296] = (255, 0, 0)
    squares = [[223.5, 223.5, 448, 0.0], [223.5, 223.5, 448, np.pi / 2]]
    upright = detect_people(net, image, squares[:1])
    np.testing.assert_allclose(upright.points[0, 1] - upright.points[0, 0], [0, -60], atol=1e-6)
    np.testing.assert_allclose(upright.boxes[0, 2:], [80, 120], atol=1e-3)
    np.testing.assert_allclose(upright.crops[0, 2:], [150, 0], atol=1e-3)
    turned = detect_people(net, image, squares[1:])
    np.testing.assert_allclose(turned.points[0, 1] - turned.points[0, 0], [60, 0], atol=1e-3)
    np.testing.assert_allclose(turned.boxes[0, 2:], [120, 80], atol=1e-3)
    np.testing.assert_allclose(turned.crops[0, 2:], [150, np.pi / 2], atol=1e-3)
    assert len(detect_people(net, image, np.zeros((0, 4))).score) == 0


def test_an_image_with_nobody_has_no_people(tmp_path):
    found = detect_people(load_person_detector(detector(tmp_path)), np.zeros((9, 7, 3), np.uint8))
    assert found.crops.shape == (0, 4)
    assert found.points.shape == (0, 4, 2)


def test_overlapping_detections_become_their_weighted_mean():
    boxes = np.array([[0, 0, 10, 10], [100, 0, 110, 10], [2, 0, 12, 10], [8, 0, 18, 10]], float)
    points = boxes.reshape(4, 2, 2) * 2
    merged, moved, score = merge_overlapping(boxes, points, np.array([0.9, 0.5, 0.3, 0.6]))
    assert score.tolist() == [0.9, 0.6, 0.5]
    np.testing.assert_allclose(merged, [[0.5, 0, 10.5, 10], boxes[3], boxes[1]])
    np.testing.assert_allclose(moved, merged.reshape(3, 2, 2) * 2)


def test_anchors_go_row_by_row_and_grid_by_grid():
    anchors = make_anchors(224)
    assert anchors.shape == (2254, 2)
    assert anchors[[55, 56, 1567, 1568, 1960, 1966]].tolist() == [
        [220, 4], [4, 12], [220, 220], [8, 8], [16, 16], [48, 16],
    ]  # fmt: skip


def test_another_network_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"detector\.tflite: is no person detector of BlazePose"):
        load_person_detector(detector(tmp_path, outputs=1))
