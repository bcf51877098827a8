"""Detections are compared with the sequences that they are given to, within stated limits."""

import dataclasses
import re

import fabricate
import numpy as np
import pytest

from pipeline.camera import project, world_to_camera
from pipeline.datasets import MotionBertClips
from pipeline.datasets.detection_checks import (
    check_source_detections,
    compare_detections,
    compare_videos,
)
from pipeline.datasets.validate import validate
from pipeline.skeleton import COCO17, H36M17, make_conversion
from pipeline.sources import Sequence, VideoDetections

T = 122
JOINTS3D = fabricate.motion(T)
EXACT = project(world_to_camera(JOINTS3D, fabricate.PINHOLE), fabricate.PINHOLE)
HEIGHT = np.median(np.ptp(EXACT[..., 1], axis=1))


def sequence(**changes):
    whole = Sequence("a", "S1", "Walking", fabricate.PINHOLE, 50.0, H36M17, JOINTS3D)
    return dataclasses.replace(whole, **changes)


def compared(joints2d=EXACT, score=None, skeleton=H36M17, **changes):
    score = np.full(joints2d.shape[:2], 0.8, np.float32) if score is None else score
    return compare_detections(joints2d, score, skeleton, sequence(**changes))


def seen(first, end):
    return np.repeat(np.where(np.arange(T) - first < end - first, 0.8, 0)[:, None], 17, axis=1)


def test_share_of_frames_mean_score_and_median_distance_are_worked_out_by_hand():
    score = np.full((T, 17), 0.5)
    score[:, 4] = 0.9  # mean (16 * 0.5 + 0.9) / 17 = 0.5235
    score[100:] = 0.0
    found = compared(EXACT + np.array([3.0, 4.0]), score)
    assert found.text() == (
        "covers 81.9 % of the frames (100 of 122), mean score 0.52, "
        "median 5.00 px from the projected 3D"
    )
    assert found.faults() == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"score": seen(0, 40)}, "covers 32.7 % of the frames (40 of 122), mean score 0.8, less"),
        (
            {"score": seen(0, 0)},
            "covers 0 % of the frames (0 of 122), mean score 0, less than 50 %",
        ),
        ({"score": np.full((T, 17), 0.01)}, "mean score 0.01, less than 0.05"),
        ({"joints2d": EXACT / 2048}, "px (median), less than 4 px; give coordinates in pixels"),
        ({"joints2d": EXACT / 2048, "joints3d": None}, "less than 4 px; give coordinates"),
        ({"joints2d": EXACT + 2000}, "0 % of the joints are inside the image, less than 50 %"),
        ({"joints2d": EXACT * 1.5}, "of the size of the person, more than 20 %; are they of this"),
        ({"joints2d": EXACT[:, np.random.default_rng(0).permutation(17)]}, "more than 20 %"),
    ],
)
def test_each_limit_names_its_value(changes, fault):
    joints3d = changes.pop("joints3d", JOINTS3D)
    images = fabricate.motion(T) if joints3d is None else None  # only its length is used
    found = compared(**changes, joints3d=joints3d, images=images)
    assert fault in "; ".join(found.faults())


def test_a_noisy_detector_that_loses_a_third_of_the_frames_is_accepted():
    rng = np.random.default_rng(0)
    noisy = EXACT + rng.normal(0, 0.1 * HEIGHT, EXACT.shape)
    noisy[:, 3] = rng.uniform(0, 2048, (T, 2))  # a joint that is never found well
    score = rng.uniform(0.1, 0.6, (T, 17)) * (rng.random(T) > 0.33)[:, None]
    assert compared(noisy, score).faults() == []


def test_frames_in_which_the_person_is_outside_of_the_image_do_not_count():
    joints3d = JOINTS3D.copy()
    joints3d[40:, :, 0] += 20  # far to the right of the camera's image
    found = compared(score=seen(0, 36), joints3d=joints3d)
    assert (found.frames, found.covered, found.faults()) == (40, 36, [])
    valid = np.arange(T) < 50
    found = compared(score=seen(0, 36), valid=valid)
    assert (found.frames, found.covered) == (50, 36)


def test_joints_that_a_detector_lacks_are_not_compared():
    skeleton = make_conversion(H36M17, COCO17, allow_missing=True)
    joints2d = skeleton.joints(EXACT)
    found = compared(joints2d, np.isfinite(joints2d[..., 0]) * 0.7, COCO17)
    assert found.faults() == []
    assert np.median(found.distances) == pytest.approx(0, abs=1e-3)


def test_detections_without_scores_are_reported_as_such():
    assert "mean score 1 (all the same)" in compared(score=np.ones((T, 17))).text()


def test_every_sequence_must_be_within_the_limits():
    videos = {
        name: VideoDetections(H36M17, EXACT, score)
        for name, score in (("a", seen(0, T)), ("b", seen(0, 12)))
    }
    pooled, faulty = compare_videos(videos, [sequence(), sequence(name="b")])
    assert (pooled.frames, pooled.covered) == (2 * T, T + 12)
    assert len(faulty) == 1
    assert faulty[0].startswith("b: covers 9.8 % of the frames (12 of 122)")


def test_validate_compares_the_detections_of_every_source(tmp_path, monkeypatch):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    folder = fabricate.motionbert(tmp_path / "clips")
    line = r"detections input: 5 videos, H36M17, 2D 0\.\d\d px from projected 3D .*, covers 100 %"
    assert re.search(line, validate(folder).text())
    source = MotionBertClips(str(folder))
    videos = {
        name: dataclasses.replace(video, joints2d=video.joints2d / 1000)
        for name, video in source.detections("input").items()
    }
    monkeypatch.setattr(source, "detections", lambda name: videos)
    (finding,) = check_source_detections(source, "input")
    assert "less than 4 px" in finding.line()
    assert finding.line().endswith("and 4 more videos")
