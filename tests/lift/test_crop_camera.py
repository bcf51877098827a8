import numpy as np
import pytest

from pipeline.lift.crop_camera import CROP_SCALE, follow_person
from pipeline.mocap.bodies import BONES
from pipeline.skeleton import H36M17

FOCAL, PRINCIPAL = 900.0, (640.0, 350.0)


def standing_body():
    """A frontal body in metres about the pelvis, x right, y down, with mean adult bones."""
    joints = np.zeros((17, 3))
    down, up = np.array([0, 1.0, 0]), np.array([0, -1.0, 0])
    left, right = np.array([1.0, 0, 0]), np.array([-1.0, 0, 0])
    directions = {"knee": down, "ankle": down, "spine": up, "thorax": up, "nose": up, "head": up,
                  "elbow": down, "wrist": down}  # fmt: skip
    for child, parent in enumerate(H36M17.parents):
        if parent < 0:
            continue
        side, _, name = H36M17.joints[child].rpartition("_")
        direction = directions.get(name, left if side == "left" else right)
        joints[child] = joints[parent] + np.mean(BONES[name]) * direction
    return joints


def project(positions):
    return positions[..., :2] / positions[..., 2:] * FOCAL + PRINCIPAL


def follow(joints2d, visible=None):
    seen = np.ones(joints2d.shape[:2], bool) if visible is None else visible
    return follow_person(joints2d, seen, H36M17, rate=50.0, focal=FOCAL, principal=PRINCIPAL)


@pytest.mark.parametrize(("x", "y", "depth"), [(0, 0, 5), (2.5, -1, 8), (-1.5, 0.4, 3)])
def test_a_person_anywhere_is_shown_at_the_scale_of_the_crop(x, y, depth):
    joints2d = project(np.repeat((standing_body() + np.array([x, y, depth]))[None], 4, axis=0))
    crop = follow(joints2d).crop_joints(joints2d)
    height = np.ptp(crop[0, :, 1]) / np.ptp(standing_body()[:, 1])
    assert height == pytest.approx(CROP_SCALE, rel=0.08)
    torso = [H36M17.index(n) for n in ("left_hip", "right_hip", "left_shoulder", "right_shoulder")]
    assert np.abs(crop[0, torso].mean(0)).max() < 0.01


def test_rotating_back_undoes_the_turn():
    joints2d = project(np.repeat((standing_body() + np.array([1.7, -0.6, 4]))[None], 3, axis=0))
    camera = follow(joints2d)
    joints3d = np.random.default_rng(1).normal(size=(3, 17, 3))
    turned = np.einsum("tab,tjb->tja", camera.rotation, joints3d)
    assert camera.rotate_back(turned) == pytest.approx(joints3d)
    identity = camera.rotation @ camera.rotation.transpose(0, 2, 1)
    assert identity == pytest.approx(np.repeat(np.eye(3)[None], 3, axis=0))


def test_cropped_joints_are_the_projection_by_the_turned_camera():
    positions = np.repeat((standing_body() + np.array([1.7, -0.6, 4]))[None], 3, axis=0)
    camera = follow(project(positions))
    turned = np.einsum("tab,tjb->tja", camera.rotation, positions)
    expected = turned[..., :2] / turned[..., 2:] * camera.zoom[:, None, None]
    assert camera.crop_joints(project(positions)) == pytest.approx(expected)


def test_a_person_who_bends_down_keeps_the_scale():
    body = standing_body()
    bent = body.copy()
    bent[[7, 8, 9, 10, 11, 12, 13, 14, 15, 16]] *= (1, 0.1, 1)  # the trunk points at the camera
    clip = np.repeat(body[None], 80, axis=0)
    clip[30:50] = bent
    zoom = follow(project(clip + np.array([0, 0, 5]))).zoom
    assert zoom.max() / zoom.min() < 1.05


def test_frames_without_visible_joints_are_bridged():
    joints2d = project(np.repeat((standing_body() + np.array([1, 0, 5]))[None], 9, axis=0))
    visible = np.ones((9, 17), bool)
    visible[3:6] = False
    joints2d[3:6] = np.nan
    camera = follow(joints2d, visible)
    assert np.isfinite(camera.zoom).all()
    assert camera.zoom == pytest.approx(np.full(9, camera.zoom[0]))
