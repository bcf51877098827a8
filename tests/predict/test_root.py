import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.mocap.synthetic import Synthetic
from pipeline.predict.root import (
    FOOT_HEIGHT,
    estimate_up,
    floor_height,
    locate_root,
    measure_height,
    pitch_up,
    smooth_root,
    upright_rotation,
)
from pipeline.skeleton import H36M17, Skeleton

FOCAL, PRINCIPAL = 1100.0, (620.0, 390.0)


@pytest.fixture(scope="module")
def walk():
    """A synthetic person in the world, metres, z up, (T, 17, 3)."""
    sequences = Synthetic().sequences("test")
    return next(s for s in sequences if "walk" in s.action.lower()).joints3d.astype(float)


def random_body(seed, frames=7):
    generator = np.random.default_rng(seed)
    joints3d = generator.normal(size=(frames, 17, 3)) * (0.3, 0.5, 0.2)
    joints3d -= joints3d[:, :1]
    root = generator.uniform((-1, -0.5, 3), (1, 0.5, 7), size=(frames, 3))
    positions = joints3d + root[:, None]
    joints2d = positions[..., :2] / positions[..., 2:] * FOCAL + PRINCIPAL
    return joints3d, root, joints2d


def locate(joints3d, joints2d, score):
    return locate_root(joints3d, joints2d, score, focal=FOCAL, principal=PRINCIPAL)


def test_the_root_of_exact_2d_is_exact():
    joints3d, root, joints2d = random_body(1)
    assert locate(joints3d, joints2d, np.ones((7, 17))) == pytest.approx(root, abs=1e-6)


def test_missing_joints_do_not_move_the_root():
    joints3d, root, joints2d = random_body(2)
    score = np.ones((7, 17))
    score[:, [3, 6, 13, 16]], joints2d[:, [3, 6]] = 0, np.nan
    assert locate(joints3d, joints2d, score) == pytest.approx(root, abs=1e-6)


def test_one_wrong_joint_moves_the_root_by_little():
    joints3d, root, joints2d = random_body(3)
    joints2d[:, 16] += (160, -90)
    error = np.linalg.norm(locate(joints3d, joints2d, np.ones((7, 17))) - root, axis=1)
    assert error.max() < 0.15


def test_three_joints_are_too_few():
    joints3d, _, joints2d = random_body(4)
    score = np.zeros((7, 17))
    score[:, :3] = 1
    assert np.isnan(locate(joints3d, joints2d, score)).all()


def test_a_person_behind_the_camera_is_not_located():
    joints3d, _, joints2d = random_body(5)
    mirrored = 2 * np.asarray(PRINCIPAL) - joints2d  # what a point behind the camera would give
    assert np.isnan(locate(joints3d, mirrored, np.ones((7, 17)))).all()


def test_a_hidden_root_behind_the_camera_is_not_located():
    """A selfie: the joints that are seen are in front of the camera, and the pelvis is not."""
    joints3d, root, _ = random_body(6)
    joints3d[:, 1:] += (0, 0, 0.9)
    root[:] = 0.0, 0.5, -0.4
    positions = joints3d + root[:, None]
    score = np.ones((7, 17))
    score[:, 0] = 0
    positions[..., 2] = np.maximum(positions[..., 2], 0.15)
    joints3d = positions - root[:, None]
    joints2d = positions[..., :2] / positions[..., 2:] * FOCAL + PRINCIPAL
    assert np.isnan(locate(joints3d, joints2d, score)).all()


def test_smoothing_bridges_missing_frames_and_keeps_a_straight_path():
    path = np.linspace((-1, 0.2, 4), (1, 0.3, 4.2), 90)
    holes = path.copy()
    holes[40:50] = np.nan
    smoothed = smooth_root(holes, 30.0)
    assert np.abs(smoothed - path)[20:-20].max() < 0.01


def test_smoothing_takes_noise_off_the_distance():
    noise = np.random.default_rng(0).normal(size=200)
    path = np.tile([0.5, -0.1, 5.0], (200, 1)) * (1 + 0.03 * noise[:, None])
    assert np.std(smooth_root(path, 30.0)[:, 2]) < 0.35 * np.std(path[:, 2])


def test_the_height_of_an_embedded_person_is_that_of_an_adult(walk):
    standing = np.ptp(walk[:, :, 2], axis=1).max()
    assert measure_height(walk, H36M17) == pytest.approx(standing + FOOT_HEIGHT, abs=0.08)
    assert measure_height(1.1 * walk, H36M17) - FOOT_HEIGHT == pytest.approx(
        1.1 * (measure_height(walk, H36M17) - FOOT_HEIGHT)
    )


@pytest.mark.parametrize("pitch", [-25.0, 0.0, 12.0])
def test_up_is_found_from_a_walking_person(walk, pitch):
    rotation = upright_rotation(pitch_up(pitch))
    in_camera = walk @ rotation.T
    up, spread = estimate_up(in_camera, H36M17)
    assert np.degrees(np.arccos(up @ pitch_up(pitch))) < 3
    assert spread < 10


def test_nobody_who_stands_gives_no_up(walk):
    sitting = walk.copy()
    sitting[:, [2, 5]] = sitting[:, [1, 4]] + (0, 0.4, 0)
    assert estimate_up(sitting, H36M17) is None


def test_a_rotation_to_upright_is_a_rotation_and_maps_up_to_z():
    up = np.array([0.2, -0.9, 0.3])
    rotation = upright_rotation(up)
    assert rotation @ rotation.T == pytest.approx(np.eye(3))
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert rotation @ (0, 0, 1) == pytest.approx(up / np.linalg.norm(up))
    assert (rotation.T @ (0, 0, 1))[0] == pytest.approx(0)  # the camera looks ahead, along y


def test_the_floor_is_under_the_lower_ankles(walk):
    ankles = walk[:, [3, 6], 2]
    assert floor_height(ankles + 0.5) == pytest.approx(0.5, abs=0.05)


def test_a_joint_set_without_the_trunk_is_named():
    limbs = Skeleton("LIMBS", H36M17.joints[:7], H36M17.parents[:7])
    with pytest.raises(UsageError, match=r"LIMBS: lacks spine, thorax, head, which give the heigh"):
        measure_height(np.zeros((2, 7, 3)), limbs)
