"""Noise of a measured detector: its axes, its statistics, and that draws are independent."""

import numpy as np
import pytest

from pipeline import rng
from pipeline.lift.detector_noise import (
    WITH_EARS,
    DetectorNoise,
    add_ears,
    fitted_noise,
    joint_axes,
)
from pipeline.mocap.synthetic import make_motion
from pipeline.skeleton import COCO17, H36M17, make_conversion

SILENT = {"constant": 0.0, "drift": 0.0, "flicker": 0.0, "outlier": 0.0, "missing": 0.0}
NAMES = tuple(dict.fromkeys(name.split("_")[-1] for name in WITH_EARS.joints))


def table(rows=None, **changes):
    """A table of a detector without errors, with some rows replaced."""
    joints = {name: {"bias": [0.0, 0.0, 0.0], **SILENT} for name in NAMES}
    for name, row in (rows or {}).items():
        joints[name] = joints[name] | row
    swap = {"legs": 0.0, "arms": 0.0, "seconds": 0.2}
    values = {"memory": 0.1, "burst_seconds": 0.2, "swap": swap, "joints": joints}
    return values | {"least": dict.fromkeys(NAMES, SILENT)} | changes


def body(frames):
    """A standing person in the camera frame, 4 m away, with ears."""
    world = make_motion(0, "train01", "walk", 60)[:frames].astype(np.float64)
    to_camera = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [-1.0, 0.0, 0.0]])
    return add_ears(world @ to_camera.T + np.array([0.0, 1.0, 4.0]))


def sample(values, frames=4000, key=0, rate=25.0, **options):
    noise = DetectorNoise.from_table(values)
    joints3d = np.repeat(body(1), frames, axis=0)
    return noise.sample(rng.make_generator(3, "test", key), joints3d, rate, **options)


def test_ears_are_beside_the_head_at_the_height_of_the_face():
    joints = body(1)[0]
    left, right, nose, head = (
        joints[WITH_EARS.index(n)] for n in ("left_ear", "right_ear", "nose", "head")
    )
    assert np.linalg.norm(left - right) == pytest.approx(0.15)
    to_left = joints[WITH_EARS.index("left_shoulder")] - joints[WITH_EARS.index("right_shoulder")]
    assert (left - right) @ to_left > 0.95 * 0.15 * np.linalg.norm(to_left)
    assert head[1] < (left[1] + right[1]) / 2 < nose[1] + 0.1  # y points down


def test_the_head_that_converters_make_up_from_the_ears_is_near_the_top_of_the_head():
    joints3d = body(40)
    ears = make_conversion(WITH_EARS, COCO17, allow_missing=True).joints(joints3d)
    made = make_conversion(COCO17, H36M17, allow_missing=True, extrapolate=True).joints(ears)
    head = H36M17.index("head")
    assert np.linalg.norm(made[:, head] - joints3d[:, head], axis=-1).max() < 0.06


def test_axes_are_orthonormal_and_mirror_with_the_body():
    joints3d = body(20)
    axes = joint_axes(joints3d)
    gram = axes @ axes.transpose(0, 1, 3, 2)
    assert gram == pytest.approx(np.broadcast_to(np.eye(3), gram.shape), abs=1e-9)
    mirrored = joints3d[:, list(WITH_EARS.swap)] * np.array([-1.0, 1.0, 1.0])
    expected = axes[:, list(WITH_EARS.swap)] * np.array([-1.0, 1.0, 1.0])
    found = joint_axes(mirrored)
    paired = [*WITH_EARS.left, *WITH_EARS.right]
    assert found[:, paired] == pytest.approx(expected[:, paired], abs=1e-9)
    single = [WITH_EARS.index(name) for name in ("pelvis", "spine", "thorax", "nose", "head")]
    assert found[:, single, 0] == pytest.approx(expected[:, single, 0], abs=1e-9)


def test_a_bias_along_the_bone_moves_the_joint_along_it():
    values = table({"wrist": {"bias": [0.03, 0.0, 0.0]}})
    error, missing = sample(values, frames=5)
    joints = body(1)[0]
    wrist, elbow = (joints[WITH_EARS.index(f"left_{n}")] for n in ("wrist", "elbow"))
    along = (wrist - elbow) / np.linalg.norm(wrist - elbow)
    assert error[2, WITH_EARS.index("left_wrist")] == pytest.approx(0.03 * along[:2])
    others = [j for j, name in enumerate(WITH_EARS.joints) if not name.endswith("wrist")]
    assert not error[:, others].any()
    assert not missing.any()


def test_spreads_and_correlation_are_those_of_the_table():
    values = table({"knee": {"drift": 0.02, "flicker": 0.006}}, memory=0.2)
    error, _ = sample(values, frames=40_000)
    knee = error[:, WITH_EARS.index("right_knee"), 0]
    assert knee.var() == pytest.approx(0.02**2 + 0.006**2, rel=0.05)
    lagged = (knee[5:] * knee[:-5]).mean()  # 5 frames at 25 Hz are 0.2 s
    assert lagged == pytest.approx(0.02**2 * np.exp(-1), rel=0.1)
    assert not error[:, WITH_EARS.index("left_hip")].any()


def test_the_correlation_is_in_seconds_whatever_the_frame_rate():
    values = table({"knee": {"drift": 0.02}}, memory=0.2)
    error, _ = sample(values, frames=40_000, rate=50.0)
    knee = error[:, WITH_EARS.index("right_knee"), 0]
    assert (knee[10:] * knee[:-10]).mean() == pytest.approx(0.02**2 * np.exp(-1), rel=0.12)


def test_the_constant_part_is_constant_in_a_clip_and_differs_between_clips():
    values = table({"ankle": {"constant": 0.01}})
    ankle = WITH_EARS.index("left_ankle")
    clips = np.array([sample(values, frames=3, key=key)[0][:, ankle] for key in range(400)])
    assert np.ptp(clips, axis=1).max() == 0
    assert clips[:, 0].std() == pytest.approx(0.01, rel=0.1)


def test_missing_and_swapped_frames_have_their_share():
    swap = {"legs": 0.06, "arms": 0.0, "seconds": 0.2}
    values = table({"elbow": {"missing": 0.25}}, swap=swap)
    error, missing = sample(values, frames=40_000)
    left, right = WITH_EARS.index("left_ankle"), WITH_EARS.index("right_ankle")
    assert missing[:, WITH_EARS.index("left_elbow")].mean() == pytest.approx(0.25, abs=0.03)
    assert not missing[:, left].any()
    joints = body(1)[0, :, :2]
    swapped = np.abs(error[:, left] - (joints[right] - joints[left])).max(axis=1) < 1e-9
    assert swapped.mean() == pytest.approx(0.06, abs=0.015)
    assert np.abs(error[swapped, right] - (joints[left] - joints[right])).max() < 1e-9
    halved = sample(values, frames=40_000, missing=0.5)[1]
    assert halved[:, WITH_EARS.index("left_elbow")].mean() == pytest.approx(0.125, abs=0.03)


def test_joints_and_clips_are_independent():
    values = table({"knee": {"drift": 0.02}, "ankle": {"drift": 0.02}})
    first, second = (sample(values, frames=20_000, key=key)[0] for key in (1, 2))
    knee, ankle = WITH_EARS.index("left_knee"), WITH_EARS.index("left_ankle")
    pairs = [
        (first[:, knee, 0], first[:, ankle, 0]),
        (first[:, knee, 0], first[:, knee, 1]),
        (first[:, knee, 0], second[:, knee, 0]),
    ]
    for one, two in pairs:
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.05


def test_no_spread_of_the_shipped_table_is_below_its_floor():
    noise = fitted_noise()
    wrist, nose = WITH_EARS.index("left_wrist"), WITH_EARS.index("nose")
    assert (noise.drift > 0.005).all()
    assert (noise.missing >= 0.01).all()
    assert noise.drift[wrist] > 0.01
    assert 0.01 < noise.bias[nose, 2] < 0.08  # a detector's nose is in front of Human3.6M's
    assert (
        noise.bias[[WITH_EARS.index("left_hip")]] == noise.bias[[WITH_EARS.index("right_hip")]]
    ).all()
