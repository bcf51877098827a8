import json

import cv2
import numpy as np
import pytest
import torch

from pipeline.errors import DataError, StorageError
from pipeline.files.onnx_files import read_onnx
from pipeline.files.store import Store
from pipeline.predict.load_estimator import load_estimator
from pipeline.predict.media import Frame, open_media
from pipeline.predict.onnx_estimators import OwnPeopleFinder, keep_people, load_onnx
from pipeline.predict.tracker import Tracker
from pipeline.predict.tracking import track_media

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `onnx`)")
pytest.importorskip("onnx", reason="onnx, which makes the files, is not installed")

import onnx_files
from onnx import TensorProto, helper

RTM_SCORES = (
    (255 - 123.675) / 58.395 / 4,
    (255 - 116.28) / 57.12 / 4,
    (255 - 103.53) / 57.375 / 4,
)
"""Scores of `onnx_files.simcc` where the red, green or blue channel has 255."""


def identity_crop(width, height):
    """The crop that shows an image of the size of the network's input as it is."""
    return np.array([[(width - 1) / 2, (height - 1) / 2, max(width, height), 0.0]])


def lit(width, height, *places):
    """A black image with a red, a green and a blue pixel (block of 4 x 4 if a side is given)."""
    image = np.zeros((height, width, 3), np.uint8)
    for channel, (x, y, *side) in enumerate(places):
        side = side[0] if side else 1
        image[y : y + side, x : x + side, channel] = 255
    return image


PLACES = ((30, 200), (100, 40), (150, 121))


def test_rtmpose_bins_are_half_pixels_and_the_input_is_normalised_rgb(tmp_path):
    estimator = load_onnx(onnx_files.simcc(tmp_path / "rtm.onnx"), "cpu")
    found = estimator.estimate(lit(192, 256, *PLACES), identity_crop(192, 256))
    np.testing.assert_allclose(found.joints2d[0, :3], PLACES, atol=1e-4)
    np.testing.assert_allclose(found.joints2d[0, 15], PLACES[0], atol=1e-4)
    np.testing.assert_allclose(found.score[0, :3], RTM_SCORES, rtol=1e-5)
    assert estimator.skeleton.name == "COCO17"
    assert estimator.settings()["input_size"] == [192, 256]


def test_crops_of_boxes_are_a_quarter_larger_and_joints_come_back_to_the_image(tmp_path):
    estimator = load_onnx(onnx_files.simcc(tmp_path / "rtm.onnx"), "cpu")
    crops = estimator.crops_of_boxes(np.array([[100.0, 50.0, 60.0, 160.0]]))
    np.testing.assert_allclose(crops, [[130, 130, 200, 0]])  # 1.25 x 160 high, 3/4 as wide
    image = np.zeros((300, 400, 3), np.uint8)
    image[100:103, 140:143, 0] = image[180:183, 110:113, 1] = 255
    joints = estimator.estimate(image, crops).joints2d[0]
    np.testing.assert_allclose(joints[:2], [[141, 101], [111, 181]], atol=1.2)


@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_any_batch_size_gives_the_same_joints(tmp_path, batch):
    estimator = load_onnx(onnx_files.simcc(tmp_path / "rtm.onnx", batch=batch), "cpu")
    crops = np.repeat(identity_crop(192, 256), 20, axis=0)
    crops[:, 0] += np.arange(20)
    found = estimator.estimate(lit(192, 256, *PLACES), crops)
    for shift, joints in enumerate(found.joints2d):
        np.testing.assert_allclose(joints[:3], PLACES, atol=1e-4, err_msg=f"crop {shift}")


def test_no_crops_give_no_joints(tmp_path):
    estimator = load_onnx(onnx_files.simcc(tmp_path / "rtm.onnx"), "cpu")
    assert estimator.estimate(lit(20, 20), np.zeros((0, 4))).joints2d.shape == (0, 17, 2)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("", [[8, 20], [32, 4]]),
        ("cells: exact", [[9.5, 21.5], [33.5, 5.5]]),
        ("cells: udp", [[2 * 47 / 11, 5 * 63 / 15], [8 * 47 / 11, 63 / 15]]),
    ],
)
def test_heatmap_cells_are_where_the_yaml_file_says(tmp_path, told, expected):
    path = onnx_files.heatmaps(tmp_path / "vit.onnx")
    if told:
        (tmp_path / "vit.yaml").write_text(told)
    estimator = load_onnx(path, "cpu")
    image = lit(48, 64, (8, 20, 4), (32, 4, 4))
    found = estimator.estimate(image, identity_crop(48, 64))
    np.testing.assert_allclose(found.joints2d[0, :2], expected, atol=1e-4)
    assert (not told) == any("cell c is at pixel 4c" in note for note in estimator.notes)


def test_yaml_tells_mean_std_channels_and_the_size_of_an_open_input(tmp_path):
    path = onnx_files.heatmaps(tmp_path / "vit.onnx", sides=("h", "w"))
    with pytest.raises(DataError, match=r"does not tell the size of its images; give input_size"):
        load_onnx(path, "cpu")
    (tmp_path / "vit.yaml").write_text(
        "input_size: [48, 64]\nmean: [5, 15, 35]\nstd: [500, 1000, 2000]\nchannels: BGR\n"
        "joints: H36M17\npadding: 1.5\nlicence: MIT\n"
    )
    estimator = load_onnx(path, "cpu")
    image = lit(48, 64, (8, 20, 4), (32, 4, 4), (4, 40, 4))
    found = estimator.estimate(image, identity_crop(48, 64))
    np.testing.assert_allclose(found.joints2d[0, :3], [[4, 40], [32, 4], [8, 20]], atol=1e-4)
    np.testing.assert_allclose(found.score[0, :3], [0.5, 0.24, 0.11], rtol=1e-5)
    assert (estimator.skeleton.name, estimator.licence) == ("H36M17", "MIT")
    np.testing.assert_allclose(estimator.crops_of_boxes(np.array([[0, 0, 1, 100.0]]))[0, 2], 150)


def test_metadata_of_our_own_exports_says_everything(tmp_path):
    own = {"kind": "heatmaps", "joints": "H36M17", "cells": "exact", "mean": [0, 0, 0]}
    path = onnx_files.heatmaps(tmp_path / "own.onnx", metadata={"heatlift": json.dumps(own)})
    estimator = load_onnx(path, "cpu")
    assert estimator.skeleton.name == "H36M17"
    assert not estimator.notes
    assert estimator.settings()["mean"] == [0, 0, 0]


PEOPLE = np.array(  # left, top, right, bottom, score in pixels of 640 x 640
    [[100, 50, 160, 250, 0.6], [300, 40, 380, 300, 0.9], [102, 52, 162, 252, 0.5]]
)


def joints_in(boxes):
    """Joint j of each person is at 1/20 + j/20 of the box's width, and at its square below."""
    share = (1 + np.arange(17)) / 20
    x = boxes[:, :1] + share * (boxes[:, 2:3] - boxes[:, :1])
    y = boxes[:, 1:2] + share**2 * (boxes[:, 3:4] - boxes[:, 1:2])
    return np.stack([x, y, np.broadcast_to(0.5 + share / 4, x.shape)], axis=-1)


def rtmo(path, check=None):
    outputs = {"dets": PEOPLE[None], "keypoints": joints_in(PEOPLE)[None]}
    return onnx_files.constants_of(path, outputs, check=check)


POSE = {
    "task": "pose",
    "kpt_shape": "[17, 3]",
    "imgsz": "[640, 640]",
    "author": "Ultralytics",
    "license": "AGPL-3.0 License (https://ultralytics.com/license)",
}


def yolo(path, check=None, metadata=POSE):
    """Boxes as centre, width, height; two columns are the same person."""
    boxes = PEOPLE[:, :4]
    middle, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    joints = joints_in(PEOPLE).reshape(3, -1)
    rows = np.concatenate([middle, extent, PEOPLE[:, 4:], joints], axis=1)
    outputs = {"output0": rows.T[None]}
    return onnx_files.constants_of(path, outputs, metadata=metadata, check=check)


WIDE = np.empty((720, 1280, 3), np.uint8)
WIDE[:] = (10, 20, 30)


@pytest.mark.parametrize(
    ("make", "offset"), [(rtmo, (0, 0)), (yolo, (0, 139.75))], ids=["rtmo", "yolo"]
)
def test_networks_of_whole_images_find_each_person_once_in_pixels_of_the_image(
    tmp_path, make, offset
):
    estimator = load_onnx(make(tmp_path / "net.onnx"), "cpu")
    people = estimator.find_people(WIDE)
    expected = 2 * (joints_in(PEOPLE)[[1, 0], :, :2] - offset)
    if make is yolo:
        expected = expected + np.array(
            [0.5, 0]
        )  # the middle of the image is the middle of the input
    np.testing.assert_allclose(people.joints2d, expected, atol=1e-3)
    np.testing.assert_allclose(people.presence, [0.9, 0.6], rtol=1e-5)
    np.testing.assert_allclose(people.score[0], joints_in(PEOPLE)[0, :, 2], rtol=1e-5)
    np.testing.assert_allclose(people.next_crops[:, 2], [520, 400])


@pytest.mark.parametrize(
    ("make", "place", "factor", "value"),
    [
        (rtmo, (0, 100, 100), 0.001, 0.030),  # blue comes first
        (rtmo, (2, 359, 639), 0.001, 0.010),  # the image is at the top left
        (rtmo, (2, 361, 100), 0.001, 0.114),
        (yolo, (0, 320, 100), 1, 10 / 255),  # red comes first
        (yolo, (2, 320, 100), 1, 30 / 255),
        (yolo, (0, 138, 100), 1, 114 / 255),  # grey above and below
        (yolo, (0, 501, 100), 1, 114 / 255),
        (yolo, (0, 498, 100), 1, 10 / 255),
    ],
)
def test_whole_images_are_scaled_padded_and_normalised(tmp_path, make, place, factor, value):
    boxes = PEOPLE[[2]]
    path = tmp_path / "net.onnx"
    joints = joints_in(boxes)
    joints[0, 16, 2] = 0
    if make is rtmo:
        outputs = {"dets": boxes[None], "keypoints": joints[None]}
    else:
        row = np.r_[131, 152, 60, 200, 0.5, joints.ravel()]
        outputs = {"output0": row[None, :, None]}
    metadata = None if make is rtmo else POSE
    onnx_files.constants_of(path, outputs, metadata=metadata, check=(*place, factor))
    found = load_onnx(path, "cpu").find_people(WIDE)
    np.testing.assert_allclose(found.score[0, 16], value, rtol=1e-3)


def test_each_crop_gets_the_person_who_overlaps_it_most_and_nobody_twice(tmp_path):
    estimator = load_onnx(rtmo(tmp_path / "net.onnx"), "cpu")
    first, second = estimator.find_people(WIDE).next_crops
    far = second + np.array([0, 380, 0, 0])
    near = first + np.array([30, 0, 10, 0])
    found = estimator.estimate(WIDE, np.array([second, far, near, first]))
    np.testing.assert_allclose(found.presence, [0.6, 0, 0, 0.9], rtol=1e-5)
    np.testing.assert_allclose(found.next_crops, [second, far, near, first])
    assert np.isfinite(found.joints2d).all()


def test_the_network_runs_once_per_image_for_finder_and_estimator(tmp_path):
    estimator = load_onnx(rtmo(tmp_path / "net.onnx"), "cpu")
    runs = []
    run = estimator.network.run
    estimator.network.run = lambda *given: runs.append(0) or run(*given)
    finder = OwnPeopleFinder(estimator, 0.5)
    tracker = Tracker(estimator, finder)
    image = WIDE.copy()
    for index in range(5):
        image[0, 0] = index  # the same array with other pixels is another image
        assert [number for number, *_ in tracker.follow(Frame(index, index / 25, image))] == [0, 1]
    assert len(runs) == 5
    assert len(OwnPeopleFinder(estimator, 0.7).find(image, 0, estimator)) == 1


def test_an_estimator_of_whole_images_is_its_own_finder(tmp_path):
    estimator, make_finder = load_estimator(str(yolo(tmp_path / "net.onnx")), "cpu")
    finder = make_finder(0.5)
    assert len(finder.find(WIDE, 0, estimator)) == 2
    assert finder.settings() != make_finder(0.6).settings()


def test_the_licence_of_ultralytics_is_told(tmp_path):
    estimator = load_onnx(yolo(tmp_path / "net.onnx"), "cpu")
    assert estimator.licence.startswith("AGPL-3.0")
    assert any("AGPL-3.0" in note for note in estimator.notes)


def test_of_two_boxes_that_overlap_the_surer_one_is_kept():
    boxes = np.array(
        [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 6], [0, 0, 0, 9], [0, 0, 9, np.nan]]
    )
    assert keep_people(boxes.astype(float), np.array([0.8, 0.9, 0.4, 1, 1])).tolist() == [1]
    assert keep_people(boxes[[0, 2]], np.array([0.4, 0.8])).tolist() == [1, 0]
    assert keep_people(boxes[:1].astype(float), np.array([0.2])).tolist() == []


@pytest.mark.parametrize(
    ("joints", "given", "name"),
    [(26, None, "HALPE26"), (33, None, "BLAZEPOSE33"), (16, "MPII16", "MPII16"),
     (17, "H36M17", "H36M17"), (133, None, "COCO17")],
)  # fmt: skip
def test_the_joint_set_is_given_or_told_by_the_number_of_joints(tmp_path, joints, given, name):
    path = onnx_files.simcc(tmp_path / "rtm.onnx", joints=joints)
    estimator = load_onnx(path, "cpu", given)
    assert estimator.skeleton.name == name
    found = estimator.estimate(lit(192, 256, *PLACES), identity_crop(192, 256))
    assert found.joints2d.shape == (1, len(estimator.skeleton), 2)
    assert len(estimator.notes) == (given is None)


def test_joint_sets_that_do_not_fit_are_named(tmp_path):
    path = onnx_files.simcc(tmp_path / "rtm.onnx", joints=16)
    with pytest.raises(DataError, match=r"finds 16 joints; give their set with --joints: MPII16;"):
        load_onnx(path, "cpu")
    with pytest.raises(
        DataError, match=r"finds 16 joints, and COCO17 has 17; give --joints with M"
    ):
        load_onnx(path, "cpu", "COCO17")
    with pytest.raises(DataError, match=r"joints is 'COCO18'; give one of H36M17"):
        load_onnx(path, "cpu", "COCO18")


def test_unknown_outputs_are_refused_with_what_was_found(tmp_path):
    path = onnx_files.constants_of(
        tmp_path / "odd.onnx", {"logits": np.zeros((1, 1000))}, size=(32, 48), metadata={"a": "b"}
    )
    with pytest.raises(DataError, match=r"is not recognised.*odd\.yaml.*images \(1, 3, 48, 32\).*"
                       r"logits \(1, 1000\); metadata a=b"):  # fmt: skip
        load_onnx(path, "cpu")


def test_yolo_without_metadata_needs_its_kind_and_joints(tmp_path):
    path = yolo(tmp_path / "net.onnx", metadata=None)
    with pytest.raises(DataError, match=r"is not recognised; give its kind"):
        load_onnx(path, "cpu")
    (tmp_path / "net.yaml").write_text("kind: yolo\njoints: COCO17\n")
    assert len(load_onnx(path, "cpu").find_people(WIDE).presence) == 2


def test_a_task_other_than_pose_is_refused(tmp_path):
    path = yolo(tmp_path / "net.onnx", metadata={**POSE, "task": "detect"})
    with pytest.raises(DataError, match=r"is not recognised"):
        load_onnx(path, "cpu")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kind: pose", "kind is 'pose'; give one of simcc, heatmaps, rtmo, yolo"),
        ("kinds: simcc", "unknown key 'kinds'"),
        ("- simcc", "is no mapping"),
        ("std: [1, 0, 1]", "std: give 3 numbers above 0"),
        ("mean: [1, .nan, 1]", "mean: give 3 numbers"),
        ("input_size: [192.5, 256]", "give whole pixels"),
        ("input_size: [256, 192]", "takes images 192x256, not 256x192"),
        ("input_size: 1e9", "input_size: give 2 numbers"),
        ("padding: true", "padding: give 1 numbers"),
        ("outputs: [a, b]", "has no output 'a'"),
        ("outputs: [simcc_x]", "needs 2 outputs for simcc"),
        ("kind: rtmo", "has outputs of other shapes than rtmo"),
        ("joints: [1]", "joints is '\\[1\\]'"),
        ("licence: 3", "licence: give a text"),
        ("a: &a [*a]", "line 1: an alias"),
        ("{{{", "line 1"),
    ],
)
def test_a_yaml_file_that_makes_no_sense_is_one_line(tmp_path, text, problem):
    path = onnx_files.simcc(tmp_path / "rtm.onnx")
    (tmp_path / "rtm.yaml").write_text(text)
    with pytest.raises(DataError, match=problem) as raised:
        load_onnx(path, "cpu")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["[17", "[17, 3, 1]", "[-1, 3]", '"x"', "[" * 100_000, "[1e999, 3]"]
)
def test_metadata_that_makes_no_sense_is_one_line(tmp_path, text):
    path = yolo(tmp_path / "net.onnx", metadata={**POSE, "kpt_shape": text})
    with pytest.raises(DataError, match="kpt_shape in its metadata"):
        load_onnx(path, "cpu")


def test_outputs_that_differ_from_what_the_file_says_are_refused(tmp_path):
    (tmp_path / "net.yaml").write_text("kind: yolo\njoints: COCO17\n")
    path = onnx_files.constants_of(tmp_path / "net.onnx", {"out": np.ones((1, 60, 4))})
    with pytest.raises(DataError, match=r"gives \(1, 60, 4\), which is not yolo of 17 joints"):
        load_onnx(path, "cpu").find_people(WIDE)


def test_numbers_that_are_not_finite_have_no_score(tmp_path):
    boxes, joints = PEOPLE.copy(), joints_in(PEOPLE)
    boxes[0, 2] = np.inf
    joints[1, 4, 2] = np.nan
    outputs = {"dets": boxes[None], "keypoints": joints[None]}
    found = load_onnx(onnx_files.constants_of(tmp_path / "net.onnx", outputs), "cpu").find_people(
        WIDE
    )
    assert len(found.presence) == 2
    assert found.score[0, 4] == 0
    assert np.isfinite(found.score).all()
    np.testing.assert_allclose(found.joints2d[0, 4], [680, 340])  # middle of the box


def test_settings_tell_everything_that_affects_the_joints(tmp_path):
    path = onnx_files.simcc(tmp_path / "rtm.onnx")
    plain = load_onnx(path, "cpu")
    seen = [plain.settings()]
    for told in ("padding: 1.3", "mean: [1, 2, 3]", "std: [1, 2, 3]", "channels: BGR",
                 "joints: H36M17", "outputs: [simcc_y, simcc_x]"):  # fmt: skip
        (tmp_path / "rtm.yaml").write_text(told)
        seen.append(load_onnx(path, "cpu").settings())
    assert len({json.dumps(settings, sort_keys=True) for settings in seen}) == 7
    assert len(plain.digest) == 64


def test_cuda_that_is_not_there_is_noted(tmp_path):
    estimator = load_onnx(onnx_files.simcc(tmp_path / "rtm.onnx"), "cuda")
    on_cpu = estimator.network.provider == "CPUExecutionProvider"
    assert on_cpu == any("has no CUDA" in note for note in estimator.notes)


def test_a_network_that_wants_too_much_memory_is_one_line(tmp_path):
    nodes = [  # the size depends on the images, so that it is not computed when the file is loaded
        helper.make_node("ReduceMin", ["images"], ["low"], keepdims=0),
        helper.make_node("Cast", ["low"], ["more"], to=TensorProto.INT64),
        helper.make_node("Add", ["huge", "more"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceMax", ["zeros"], ["most"], keepdims=0),
        helper.make_node("Add", ["images", "most"], ["maps0"]),
        helper.make_node("AveragePool", ["maps0"], ["maps"], kernel_shape=[4, 4], strides=[4, 4]),
    ]
    path = onnx_files.write(
        tmp_path / "bomb.onnx", nodes, {"images": [1, 3, 64, 64]}, {"maps": [1, 3, 16, 16]},
        {"huge": np.array([100_000, 100_000])},
    )  # fmt: skip
    (tmp_path / "bomb.yaml").write_text("kind: heatmaps\njoints: COCO17\n")
    with pytest.raises(DataError, match="finds 3 joints"):
        load_onnx(path, "cpu")
    estimator = load_onnx(onnx_files.simcc(tmp_path / "rtm.onnx"), "cpu")
    network = type(estimator.network)(read_onnx(path), "cpu")
    with pytest.raises(StorageError, match=r"needs more than 4 GiB of memory for images"):
        network.run(np.zeros((1, 3, 64, 64), np.float32), ["maps"])


def test_threads_follow_torch(tmp_path):
    network = load_onnx(onnx_files.simcc(tmp_path / "rtm.onnx"), "cpu").network
    assert network._session.get_session_options().intra_op_num_threads == torch.get_num_threads()


def test_a_second_run_over_a_clip_makes_no_call_of_the_network(tmp_path):
    (tmp_path / "clip").mkdir()
    for index in range(6):
        cv2.imwrite(str(tmp_path / "clip" / f"{index}.png"), WIDE + np.uint8(index))
    estimator, make_finder = load_estimator(str(yolo(tmp_path / "net.onnx")), "cpu")
    store = Store(tmp_path / "cache")

    def track():
        media = open_media(str(tmp_path / "clip"), fps=25.0)
        return track_media(media, estimator, make_finder(0.5), store=store)

    first = track()
    estimator.network.run = None
    again = track()
    assert [len(track.frames) for track in first.tracks] == [6, 6]
    np.testing.assert_array_equal(first.tracks[1].joints2d, again.tracks[1].joints2d)
    assert {"17 joints are taken for COCO17 (--joints)"} < {*again.notes}


def test_the_score_of_rtmpose_is_the_lower_of_its_two_peaks(tmp_path):
    x, y = np.zeros((1, 17, 64)), np.zeros((1, 17, 96))
    x[0, :, 11], y[0, :, 20] = 0.7, 0.4
    y[0, 3, 20], y[0, 3, 5] = 0.8, 0.9
    outputs = {"simcc_x": x, "simcc_y": y}
    path = onnx_files.constants_of(tmp_path / "net.onnx", outputs, size=(32, 48))
    found = load_onnx(path, "cpu").estimate(lit(32, 48), identity_crop(32, 48))
    np.testing.assert_allclose(found.score[0, :4], [0.4, 0.4, 0.4, 0.7], rtol=1e-6)
    np.testing.assert_allclose(found.joints2d[0, 2:4], [[5.5, 10], [5.5, 2.5]], atol=1e-4)


def test_a_crop_without_anybody_gets_nobody(tmp_path):
    estimator = load_onnx(rtmo(tmp_path / "net.onnx"), "cpu")
    first = estimator.find_people(WIDE).next_crops[:1]
    aside = first + np.array([0.6 * first[0, 2], 0, 0, 0])  # overlaps by a quarter
    assert estimator.estimate(WIDE, aside).presence.tolist() == [0]


def test_an_open_input_of_yolo_has_the_height_and_width_of_its_metadata(tmp_path):
    outputs = {"output0": np.zeros((1, 56, 3))}
    metadata = {**POSE, "imgsz": "[480, 640]"}
    path = onnx_files.constants_of(
        tmp_path / "net.onnx", outputs, size=("w", "h"), metadata=metadata
    )
    estimator = load_onnx(path, "cpu")
    assert estimator.settings()["input_size"] == [640, 480]
    assert len(estimator.find_people(WIDE).presence) == 0
