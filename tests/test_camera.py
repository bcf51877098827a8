"""Projection and its inverse, lenses, Human3.6M's cameras, random cameras."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pipeline import camera as cameras
from pipeline.camera import Camera
from pipeline.errors import DataError
from pipeline.skeleton import H36M17

SIMPLE = Camera(
    rotation=np.eye(3),
    centre=np.zeros(3),
    focal=np.array([1000.0, 900.0]),
    principal=np.array([510.0, 390.0]),
    size=(1000, 800),
    distortion=np.zeros(5),
)


@st.composite
def any_camera(draw, lenses=("opencv", "human36m")):
    """A camera anywhere, with about as much distortion as Human3.6M's."""
    number = st.floats(-1, 1)
    turn = draw(st.lists(number, min_size=3, max_size=3))
    distortion = np.array(draw(st.lists(number, min_size=5, max_size=5)))
    return Camera(
        rotation=Rotation.from_rotvec(np.array(turn) * 3).as_matrix(),
        centre=np.array(draw(st.lists(st.floats(-8, 8), min_size=3, max_size=3))),
        focal=np.array([draw(st.floats(400, 2000)), draw(st.floats(400, 2000))]),
        principal=np.array([draw(st.floats(300, 700)), draw(st.floats(300, 700))]),
        size=(1000, 1000),
        distortion=distortion * [0.25, 0.25, 0.003, 0.003, 0.01],
        lens=draw(st.sampled_from(lenses)),
    )


def points_in_view(seed, count=40):
    """Points with |x/z| and |y/z| up to 0.45, as in Human3.6M's images."""
    random = np.random.default_rng(seed)
    depth = random.uniform(0.5, 20, (count, 1))
    return np.concatenate([random.uniform(-0.45, 0.45, (count, 2)) * depth, depth], axis=1)


def test_projection_of_a_point_on_the_axis_is_the_principal_point():
    bent = dataclasses.replace(SIMPLE, distortion=np.array([0.1, -0.2, 0.01, 0.02, 0.3]))
    for lens in ("opencv", "human36m"):
        pixel = cameras.project(np.array([0, 0, 2.5]), dataclasses.replace(bent, lens=lens))
        assert pixel.tolist() == [510, 390]


def test_x_goes_right_and_y_goes_down():
    assert cameras.project(np.array([0.2, 0.1, 2.0]), SIMPLE).tolist() == [610, 435]


@settings(max_examples=50, deadline=None)
@given(camera=any_camera(lenses=("opencv",)), seed=st.integers(0, 99))
def test_projection_agrees_with_opencv(camera, seed):
    points = points_in_view(seed)
    matrix = np.diag([*camera.focal, 1.0])
    matrix[:2, 2] = camera.principal
    theirs, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix, camera.distortion)
    np.testing.assert_allclose(cameras.project(points, camera), theirs[:, 0], atol=1e-6)


def test_human36m_lens_by_hand():
    """u (1 + k1 r2 + t u) + t r2 with the stored pair t = (p2, p1), and rays clamped to 1."""
    lens = dataclasses.replace(
        SIMPLE, distortion=np.array([0.1, 0, 0.02, 0.03, 0]), lens="human36m"
    )
    square, slant = 0.25 + 0.04, 0.03 * 0.5 + 0.02 * 0.2
    ray = np.array([0.5, 0.2]) * (1 + 0.1 * square + slant) + np.array([0.03, 0.02]) * square
    seen = cameras.project(np.array([2.0, 0.8, 4.0]), lens)
    np.testing.assert_allclose(seen, ray * [1000, 900] + [510, 390])
    edge = cameras.project(np.array([[9.0, 0, 1], [1.0, 0, 1]]), lens)
    assert np.array_equal(edge[0], edge[1])


@settings(max_examples=50, deadline=None)
@given(camera=any_camera(), seed=st.integers(0, 99))
def test_back_projection_with_the_true_depth_returns_the_point(camera, seed):
    points = points_in_view(seed)
    found = cameras.back_project(cameras.project(points, camera), points[:, 2], camera)
    np.testing.assert_allclose(found, points, rtol=1e-6, atol=1e-9)
    coarse = cameras.project(torch.tensor(points, dtype=torch.float32), camera).numpy()
    found = cameras.back_project(coarse, points[:, 2], camera)
    np.testing.assert_allclose(found, points, rtol=1e-4, atol=1e-5)


def test_a_pixel_that_the_lens_folds_has_no_ray():
    """With k1 -0.3 and a focal length of 500 pixels half of a wide image has none."""
    lens = Camera(
        np.eye(3), np.zeros(3), np.full(2, 500.0), np.array([500.0, 400]), (1000, 800),
        np.array([-0.3, 0, 0, 0, 0]),
    )  # fmt: skip
    pixels = np.stack(np.meshgrid(np.arange(0, 1000, 37.0), np.arange(0, 800, 31.0)), -1)
    points = cameras.back_project(pixels, np.ones(pixels.shape[:-1]), lens)
    found = np.isfinite(points).all(-1)
    assert 0.3 < found.mean() < 0.9
    np.testing.assert_allclose(cameras.project(points[found], lens), pixels[found], atol=1e-2)


def test_float32_tensors_project_like_float64_arrays_and_carry_gradients():
    points = points_in_view(3)
    lens = cameras.human36m_cameras()["S9"][1]
    tensor = torch.tensor(points, dtype=torch.float32, requires_grad=True)
    seen = cameras.project(
        cameras.world_to_camera(
            tensor, dataclasses.replace(lens, rotation=np.eye(3), centre=np.zeros(3))
        ),
        lens,
    )
    assert seen.dtype == torch.float32
    np.testing.assert_allclose(seen.detach(), cameras.project(points, lens), atol=2e-3)
    seen.sum().backward()
    assert tensor.grad.abs().sum() > 0


@settings(max_examples=50, deadline=None)
@given(camera=any_camera(), depth=st.floats(-50, 0), x=st.floats(-3, 3), y=st.floats(-3, 3))
def test_points_behind_the_camera_are_flagged_and_become_nan(camera, depth, x, y):
    points = np.array([[x, y, depth], [0.1, 0.1, 1.0]])
    assert cameras.is_in_front(points).tolist() == [False, True]
    tensor = cameras.project(torch.tensor(points), camera)
    for seen in (cameras.project(points, camera), tensor.numpy()):
        assert np.isnan(seen[0]).all()
        assert np.isfinite(seen[1]).all()


@settings(max_examples=50, deadline=None)
@given(camera=any_camera(), seed=st.integers(0, 99))
def test_world_to_camera_to_world_returns_the_point(camera, seed):
    points = np.random.default_rng(seed).normal(0, 5, (2, 9, 3))
    moved = cameras.world_to_camera(points, camera)
    np.testing.assert_allclose(cameras.camera_to_world(moved, camera), points, rtol=1e-9, atol=1e-9)
    origin = cameras.world_to_camera(camera.centre, camera)
    np.testing.assert_allclose(origin, 0, atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(camera=any_camera())
def test_integer_tensors_give_the_same_as_integer_arrays(camera):
    points = np.array([[3, -2, 9], [0, 1, -4]])
    whole = torch.tensor(points)
    for move in (cameras.world_to_camera, cameras.camera_to_world, cameras.project):
        expected, found = move(points, camera), move(whole, camera)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)
    size = (1000, 800)
    assert cameras.denormalise(whole[:, :2], size)[1].tolist() == [500, 900]


@settings(max_examples=50, deadline=None)
@given(width=st.integers(1, 10**4), height=st.integers(1, 10**4), seed=st.integers(0, 99))
def test_denormalise_is_the_inverse_of_normalise(width, height, seed):
    pixels = np.random.default_rng(seed).uniform(-100, 10**4, (5, 2))
    normalised = cameras.normalise(pixels, (width, height))
    np.testing.assert_allclose(cameras.denormalise(normalised, (width, height)), pixels, atol=1e-6)


def test_normalisation_keeps_the_aspect_and_flipping_negates_x():
    corners = np.array([[0, 0], [1000, 800], [250, 400]])
    scaled = cameras.normalise(corners, (1000, 800))
    np.testing.assert_allclose(scaled, [[-1, -0.8], [1, 0.8], [-0.5, 0]], atol=1e-12)
    mirrored = cameras.normalise(corners * [-1, 1] + [1000, 0], (1000, 800))
    np.testing.assert_allclose(mirrored, scaled * [-1, 1], atol=1e-12)
    assert cameras.normalise(torch.ones(4, 2), (7, 3)).dtype == torch.float32


@settings(max_examples=50, deadline=None)
@given(camera=any_camera(), seed=st.integers(0, 99))
def test_a_mirrored_camera_sees_the_mirrored_body_in_the_flipped_image(camera, seed):
    k1, k2, p1, p2, k3 = camera.distortion
    last = camera.size[0] - 1
    mirrored = dataclasses.replace(
        camera,
        principal=np.array([last - camera.principal[0], camera.principal[1]]),
        distortion=np.array([k1, k2, p1, -p2, k3]),
    )
    points = points_in_view(seed)
    flipped = cameras.project(points, camera) * [-1, 1] + [last, 0]
    seen = cameras.project(points * [-1, 1, 1], mirrored)
    np.testing.assert_allclose(seen, flipped, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1))
def test_rotations_from_quaternions_agree_with_scipy(quaternion):
    w, x, y, z = quaternion
    matrix = cameras.rotation_from_quaternion(quaternion)
    np.testing.assert_allclose(matrix, Rotation.from_quat([x, y, z, w]).as_matrix(), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1)


def test_looking_at_a_point_puts_it_on_the_axis_with_up_as_up():
    centre, target = np.array([3.0, -2.0, 1.5]), np.array([0.4, 0.3, 0.9])
    camera = dataclasses.replace(
        SIMPLE, rotation=cameras.look_at_rotation(centre, target), centre=centre
    )
    seen = cameras.world_to_camera(np.array([target, target + np.array([0, 0, 0.5])]), camera)
    np.testing.assert_allclose(seen[0], [0, 0, np.linalg.norm(target - centre)], atol=1e-12)
    assert seen[1, 0] == pytest.approx(0, abs=1e-12)
    assert seen[1, 1] < -0.4
    assert np.linalg.det(camera.rotation) == pytest.approx(1)


def test_a_camera_that_rolls_clockwise_turns_the_image_counter_clockwise():
    rotation = cameras.look_at_rotation(np.zeros(3), [0, 1, 0], roll=90)
    np.testing.assert_allclose(rotation @ [0, 0, 1], [-1, 0, 0], atol=1e-12)


def test_looking_straight_down_raises_an_error():
    with pytest.raises(ValueError, match="straight up or down"):
        cameras.look_at_rotation([0, 0, 3], [0, 0, 1])


def test_human36m_cameras_surround_the_origin_and_look_at_it():
    found = cameras.human36m_cameras()
    assert list(found) == ["S1", "S5", "S6", "S7", "S8", "S9", "S11"]
    for camera in (camera for four in found.values() for camera in four):
        middle = cameras.world_to_camera(np.array([0.0, 0.0, 1.0]), camera)
        pixel = cameras.project(middle, camera)
        assert 3.5 < middle[2] < 6
        assert (abs(pixel - 500) < 200).all()
        np.testing.assert_allclose(camera.rotation @ camera.rotation.T, np.eye(3), atol=1e-9)
        assert np.degrees(np.arcsin(-camera.rotation[2, 2])) == pytest.approx(13, abs=4)
    first = found["S1"][0]
    assert first.size == (1000, 1002)
    np.testing.assert_allclose(first.centre, [1.84110706, 4.95528467, 1.56344543])
    np.testing.assert_allclose(
        first.distortion,
        [-0.207098916, 0.247775182, -0.00142447161, -0.000975698873, -0.00307515031],
    )


def test_the_four_cameras_of_a_subject_give_back_the_same_point():
    point = np.array([0.3, -0.4, 1.1])
    for camera in cameras.human36m_cameras()["S11"]:
        seen = cameras.world_to_camera(point, camera)
        again = cameras.back_project(cameras.project(seen, camera), seen[2], camera)
        np.testing.assert_allclose(cameras.camera_to_world(again, camera), point, atol=1e-9)


def walk(frames=30, length=1.0):
    """Motion of 17 joints that move `length` metres along x."""
    body = np.random.default_rng(1).normal(0, 0.25, (17, 3)) + np.array([0, 0, 0.9])
    path = np.linspace(-length / 2, length / 2, frames)
    return body + path[:, None, None] * np.array([1.0, 0, 0])


def test_random_cameras_keep_every_joint_in_the_image_and_return_its_projection():
    clips = np.stack([walk(length=length) for length in np.linspace(0, 12, 24)]).astype(np.float32)
    seen, joints2d = cameras.random_cameras(clips, 3, 1, np.arange(24))
    assert seen.dtype == joints2d.dtype == np.float32
    assert seen[..., 2].min() >= 0.999
    assert abs(joints2d).max() <= 1.0001
    focal = joints2d * seen[..., 2:] / seen[..., :2]
    np.testing.assert_allclose(focal, focal[:, :1, :1, :1] + 0 * focal, rtol=1e-3)
    assert 2.19 < focal.min() < 2.25 < 2.35 < focal.max() < 2.41
    bones = np.linalg.norm(np.diff(clips, axis=2), axis=-1)
    np.testing.assert_allclose(np.linalg.norm(np.diff(seen, axis=2), axis=-1), bones, atol=1e-5)


def test_random_cameras_look_from_all_sides_with_up_as_up():
    clips = np.zeros((400, 1, 3, 3)) + np.array([[0, 0, 0], [0, 0, 1.0], [1.0, 0, 0]])
    seen, _ = cameras.random_cameras(clips, 0, 0, np.arange(400))
    up, ahead = seen[:, 0, 1] - seen[:, 0, 0], seen[:, 0, 2] - seen[:, 0, 0]
    assert (up[:, 1] < -0.9).all()
    assert abs(np.degrees(np.arcsin(up[:, 2]))).max() < 15.001
    sides, _ = np.histogram(np.arctan2(ahead[:, 0], ahead[:, 2]), bins=8, range=(-np.pi, np.pi))
    assert sides.min() > 25
    distance = seen[..., 2].mean(axis=(1, 2))
    assert 2.99 < distance.min() < 3.3 < 6.7 < distance.max() < 7.01


def test_a_clip_gets_the_same_random_camera_in_any_batch():
    clips = np.stack([walk(), walk() * 0.9, walk() * 1.1])
    whole = cameras.random_cameras(clips, 7, 2, np.array([4, 9, 5]))
    alone = cameras.random_cameras(clips[1:2], 7, 2, np.array([9]))
    later = cameras.random_cameras(clips[1:2], 7, 3, np.array([9]))
    assert all(np.array_equal(a[1:2], b) for a, b in zip(whole, alone, strict=True))
    assert abs(later[0] - alone[0]).max() > 0.1


def test_a_ring_of_cameras_has_the_ranges_of_human36m():
    body = walk()
    ring = cameras.ring_of_cameras(1, "walk", joints3d=body)
    azimuth = np.degrees([np.arctan2(*camera.centre[1::-1]) for camera in ring])
    turns = (azimuth - azimuth[0]) % 360
    np.testing.assert_allclose(turns, [0, 42, 180, 225], atol=10.01)
    for camera in ring:
        assert 1.45 <= camera.centre[2] <= 1.65
        assert 4.2 <= np.hypot(*camera.centre[:2]) <= 6.5
        pixels = cameras.project(cameras.world_to_camera(body, camera), camera)
        assert pixels.min() >= 10
        assert pixels.max() <= 990
    again = cameras.ring_of_cameras(1, "walk", joints3d=body)
    assert all(np.array_equal(a.centre, b.centre) for a, b in zip(ring, again, strict=True))
    other = cameras.ring_of_cameras(1, "run", joints3d=body)
    assert abs(other[0].centre - ring[0].centre).max() > 0.01


def test_a_ring_moves_back_for_a_long_walk_but_not_for_frames_that_are_not_valid():
    body = walk(frames=200, length=8)
    far = cameras.ring_of_cameras(2, joints3d=body)
    near = cameras.ring_of_cameras(2, joints3d=body, valid=abs(np.linspace(-4, 4, 200)) < 0.2)
    distances = [max(np.hypot(*camera.centre[:2]) for camera in ring) for ring in (near, far)]
    assert distances[0] < 5.7 < 6 < distances[1]
    assert H36M17.index("head") == 10


def real_camera(**changes):
    """A camera like Human3.6M's, with changes."""
    base = dataclasses.replace(
        SIMPLE,
        distortion=np.array([-0.2, 0.24, -0.001, -0.0014, -0.003]),
        centre=np.array([1, 2, 3.0]),
    )
    return dataclasses.replace(base, **changes)


REAL = {
    "telephoto of 5 degrees": {"focal": np.full(2, 500 / np.tan(np.radians(2.5)))},
    "fisheye of 160 degrees": {
        "focal": np.full(2, 500 / np.tan(np.radians(80))),
        "distortion": np.array([-0.03, 0.0006, 0, 0, 0]),
    },
    "action camera": {"focal": np.full(2, 450.0), "distortion": np.array([-0.25, 0.07, 0, 0, 0])},
    "drone at 500 m": {"centre": np.array([120.0, -80.0, 500.0])},
    "telephoto lens with large k3": {
        "focal": np.full(2, 11000.0),
        "distortion": np.array([-0.4, 15.0, 0, 0, -900.0]),
    },
    "cropped image": {"principal": np.array([-700.0, 1400.0])},
    "anamorphic": {"focal": np.array([2000.0, 1000.0])},
    "portrait phone": {"size": (2160, 3840), "principal": np.array([1080.0, 1920.0])},
}


@pytest.mark.parametrize("changes", REAL.values(), ids=REAL)
def test_extreme_but_real_cameras_pass(changes):
    camera = real_camera(**changes)
    assert cameras.check_camera(camera, "a.pkl: 1") is camera


def test_human36m_s_own_cameras_pass():
    for subject in cameras.human36m_cameras().values():
        for camera in subject:
            cameras.check_camera(camera, "table")


MIRROR = np.diag([1.0, 1.0, -1.0])
IMPOSSIBLE = {
    "no focal length": ({"focal": np.array([0.0, 900.0])}, "focal length 0, 900"),
    "negative": ({"focal": np.array([1000.0, -900.0])}, "focal length 1000, -900"),
    "tiny": ({"focal": np.full(2, 1e-30)}, "focal length 1e-30"),
    "huge": ({"focal": np.full(2, 1e30)}, "focal length 1e"),
    "not finite": ({"focal": np.array([np.nan, 900.0])}, "focal length nan"),
    "millimetres for one": ({"focal": np.array([35.0, 900.0])}, "focal length 35, 900"),
    "principal point far away": ({"principal": np.array([510.0, 39000.0])}, "principal point"),
    "principal point nan": ({"principal": np.array([np.nan, 3.0])}, "principal point"),
    "mirrored": ({"rotation": MIRROR}, "rotation"),
    "scaled rotation": ({"rotation": 1.01 * np.eye(3)}, "rotation"),
    "sheared": ({"rotation": np.array([[1, 0.01, 0], [0, 1, 0], [0, 0, 1.0]])}, "rotation"),
    "rotation inf": ({"rotation": np.full((3, 3), np.inf)}, "rotation"),
    "position": ({"centre": np.array([0, 0, 1.2e6])}, "position .*1200000"),
    "position inf": ({"centre": np.array([0, np.inf, 0])}, "position"),
    "distortion": ({"distortion": np.array([1e6, 0, 0, 0, 0.0])}, "distortion"),
    "folding distortion": ({"distortion": np.array([-30.0, 0, 0, 0, 0.0])}, "distortion"),
    "distortion nan": ({"distortion": np.array([0, 0, np.nan, 0, 0.0])}, "distortion"),
    "no image": ({"size": (0, 800)}, "image size"),
}


@pytest.mark.parametrize(("changes", "reason"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_cameras_that_cannot_be_real_are_named_with_their_file(changes, reason):
    with pytest.raises(
        DataError, match=rf"^cameras\.pkl: S1/54138969: {reason}.* of a camera of (1000|0)x800"
    ) as error:
        cameras.check_camera(real_camera(**changes), "cameras.pkl: S1/54138969")
    assert error.value.exit_code == 4
    assert "\n" not in str(error.value)
