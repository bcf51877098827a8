from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.mocap.figure import (
    JOINT_FRAMES,
    MATERIALS,
    joint_frames,
    make_mesh,
    pose_mesh,
    sample_appearance,
)
from pipeline.mocap.render import PinholeCameras, RenderedImages, RenderedSequence
from pipeline.mocap.synthetic import Synthetic
from pipeline.sources import Images

SIZE = (128, 128)


@pytest.fixture(scope="module")
def samples():
    return Synthetic(train=1, val=1, test=1, images=600).samples("train")


@pytest.fixture(scope="module")
def sequence():
    return Synthetic(val=1, actions=("talk",)).sequences("val")[0]


def around(box, size=128, margin=1.25):
    scale = size / (margin * box[2:].max())
    shift = (size - 1) / 2 - scale * (box[:2] + box[2:] / 2)
    return np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], np.float64)


def apart(one, other):
    return np.abs(one.astype(int) - other).mean()


def turntable(joints, azimuths, **settings):
    """The same body seen from 3 m away; azimuth 0 is what it faces."""
    _, axes, _ = joint_frames(joints)
    facing = axes[JOINT_FRAMES.index("chest"), 0]
    yaw = np.arctan2(facing[1], facing[0]) + np.deg2rad(azimuths)
    count = len(azimuths)
    place = joints[0] + 3 * np.stack([np.cos(yaw), np.sin(yaw), 0 * yaw], axis=-1)
    place[:, 2] = 1.4
    cameras = PinholeCameras.look_at(
        place, np.tile(joints[0], (count, 1)), np.zeros(count),
        np.full((count, 2), 1000.0), np.full((count, 2), 500.0), (1000, 1000),
    )  # fmt: skip
    return RenderedImages(np.tile(joints, (count, 1, 1)), cameras, **settings)


def test_rendered_images_are_images(samples, sequence):
    assert isinstance(samples.images, Images)
    assert isinstance(sequence.images, Images)
    assert len(sequence.images) == len(sequence)
    assert sequence.images.size(0) == sequence.camera.size
    crop = samples.images.crop(0, around(samples.boxes[0]), (96, 128))
    assert crop.shape == (128, 96, 3)
    assert crop.dtype == np.uint8


def test_a_crop_is_always_the_same(samples):
    matrix = around(samples.boxes[5])
    first = samples.images.crop(5, matrix, SIZE)
    samples.images.crop(6, around(samples.boxes[6]), SIZE)
    np.testing.assert_array_equal(samples.images.crop(5, matrix, SIZE), first)


def test_a_crop_is_what_one_would_cut_out_of_a_larger_rendering(samples):
    for i in range(12):
        turn = np.deg2rad(25.0 * (i % 3 - 1))
        spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        matrix = around(samples.boxes[i])
        large = samples.images.crop(i, around(samples.boxes[i], 384, 1.9), (384, 384))
        middle = np.array([63.5, 63.5])
        wanted = np.column_stack([spin @ matrix[:, :2], spin @ (matrix[:, 2] - middle) + middle])
        to_large = np.vstack([around(samples.boxes[i], 384, 1.9), [0, 0, 1]])
        between = (np.vstack([wanted, [0, 0, 1]]) @ np.linalg.inv(to_large))[:2]
        cut = cv2.warpAffine(large, between, SIZE, flags=cv2.INTER_LINEAR)
        crop = samples.images.crop(i, wanted, SIZE)
        inside = cv2.warpAffine(np.ones((384, 384), np.uint8), between, SIZE) > 0
        assert np.abs(crop.astype(int) - cut)[inside].mean() < 6


def test_a_mirrored_crop_is_the_mirror_of_the_crop(samples):
    mirror = np.array([[-1.0, 0, 127], [0, 1, 0]])
    for i in range(8):
        matrix = around(samples.boxes[i])
        flipped = mirror[:, :2] @ matrix
        flipped[:, 2] += mirror[:, 2]
        crop = samples.images.crop(i, matrix, SIZE)
        assert apart(samples.images.crop(i, flipped, SIZE)[:, ::-1], crop) < 2


def test_the_person_stands_where_the_joints_are(sequence):
    """Skin, clothes and hair change with the appearance seed; the background does not."""
    cameras = PinholeCameras.from_camera(sequence.camera)
    joints = sequence.joints3d[40].astype(np.float64)
    two = [
        RenderedSequence(sequence.joints3d, sequence.camera, appearance_seed=k, background_seed=9)
        for k in (1, 2)
    ]
    whole = np.array([[0.5, 0, 0], [0, 0.5, 0]])
    one, other = (p.crop(40, whole, (500, 500)).astype(int) for p in two)
    rows, columns = np.nonzero(np.abs(one - other).sum(axis=-1) > 12)
    pixels = cameras.project(cameras.to_camera(joints[None]))[0] / 2
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    assert abs(columns.min() - low[0]) < 26  # a hand is 0.19 m long
    assert abs(columns.max() - high[0]) < 26
    assert abs(rows.min() - low[1]) < 6
    assert abs(rows.max() - high[1]) < 16


def test_faces_look_forward_and_hair_backward(sequence):
    joints = sequence.joints3d[30].astype(np.float64)
    people = turntable(
        joints, [0, 180], appearance_seeds=np.full(2, 4), background_seeds=np.full(2, 4)
    )
    colours, _ = sample_appearance(4)
    skin = colours[make_mesh().material == MATERIALS.index("skin")][0]
    front, back = (_head(people, joints, i) for i in (0, 1))
    assert _near(front, skin) > 2 * _near(back, skin)
    assert apart(front, back) > 8


def _head(people, joints, index):
    camera = people.cameras.select(index)
    pixel = camera.project(camera.to_camera(joints[None, [9]]))[0, 0]
    matrix = np.array([[0.5, 0, 12 - 0.5 * pixel[0]], [0, 0.5, 12 - 0.5 * pixel[1]]])
    return people.crop(index, matrix, (24, 24))


def _near(image, colour):
    """Part of an image that has a colour's hue, whatever the light."""
    hue = image / np.maximum(np.linalg.norm(image, axis=-1, keepdims=True), 1)
    return (hue @ (colour / np.linalg.norm(colour)) > 0.995).mean()


def test_nothing_worn_tells_left_from_right():
    body = make_mesh()
    names = np.array(JOINT_FRAMES)[body.frame]
    sided = {side: np.char.startswith(names, side) for side in ("left", "right")}
    for key in range(20):
        colours, _ = sample_appearance(key)
        left, right = (colours[sided[side][body.faces].all(axis=1)] for side in ("left", "right"))
        np.testing.assert_allclose(left, right[_partner(left, right)], atol=1e-9)
        assert len(left) == len(right) > 100


def _partner(left, right):
    return np.lexsort(right.T)[np.argsort(np.lexsort(left.T))]


def test_a_mirrored_body_has_the_mirrored_mesh(sequence):
    joints = sequence.joints3d[30].astype(np.float64)
    swap = [0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 11, 12, 13]
    flipped = (joints * [1, -1, 1])[swap]
    one, other = pose_mesh(joints, 1.0), pose_mesh(flipped, 1.0) * [1, -1, 1]
    gaps = np.linalg.norm(one[:, None] - other[None], axis=-1).min(axis=1)
    assert gaps.max() < 1e-9


def test_faces_point_outwards():
    """The mesh encloses a positive volume; otherwise the far side of the body would be drawn."""
    joints = Synthetic(val=1, actions=("walk",)).sequences("val")[0].joints3d[10]
    body = make_mesh()
    a, b, c, d = pose_mesh(joints.astype(np.float64), 1.0)[body.faces].transpose(1, 0, 2)
    volume = (np.cross(a, b) * c + np.cross(a, c) * d).sum(-1)[body.depth_bias == 0].sum() / 6
    assert 0.05 < volume < 0.13  # cubic metres; a person has about 0.07


def test_toes_point_where_the_walker_goes():
    walk = Synthetic(val=1, actions=("walk",)).sequences("val")[0].joints3d.astype(np.float64)
    feet = [JOINT_FRAMES.index("left_foot"), JOINT_FRAMES.index("right_foot")]
    toes = np.stack([joint_frames(joints)[1][feet, 2] for joints in walk[:150:5]])
    way = walk[25:175:5, 0] - walk[:150:5, 0]
    assert ((toes.mean(axis=1) * way).sum(-1) > 0).mean() > 0.9


def test_about_two_samples_in_five_have_something_in_front(samples):
    bare = RenderedImages(
        samples.images.joints3d,
        samples.images.cameras,
        appearance_seeds=samples.images.appearance_seeds,
        background_seeds=samples.images.background_seeds,
        second_person_rate=0.125,
    )
    differ = [
        apart(
            samples.images.crop(i, around(samples.boxes[i], 48), (48, 48)),
            bare.crop(i, around(samples.boxes[i], 48), (48, 48)),
        )
        > 0
        for i in range(150)
    ]
    assert 0.28 < np.mean(differ) < 0.52


def test_the_second_person_is_further_from_the_middle(samples):
    others = [(i, samples.images._second_person(i)) for i in range(600)]
    found = [(i, other[0]) for i, other in others if other is not None]
    assert 0.08 < len(found) / 600 < 0.18
    for i, joints in found:
        away = np.linalg.norm((joints - samples.images.joints3d[i])[0, :2])
        assert away > 0.7


def test_the_fingerprint_changes_with_anything_that_changes_the_image(sequence):
    def digest(joints=sequence.joints3d, camera=sequence.camera, look=1, scene=2, occlusion=0.0):
        images = RenderedSequence(
            joints, camera, appearance_seed=look, background_seed=scene, occlusion_rate=occlusion
        )
        return images.fingerprint(3)

    moved = sequence.joints3d.copy()
    moved[3, 16, 1] += 1e-4
    nearer = dataclasses.replace(sequence.camera, centre=sequence.camera.centre * 0.99)
    wide = dataclasses.replace(sequence.camera, focal=sequence.camera.focal + 1)
    digests = [digest(), digest(moved), digest(camera=nearer), digest(camera=wide)]
    digests += [digest(look=2**62 + 1), digest(look=2**62), digest(scene=3), digest(occlusion=0.5)]
    assert len(set(digests)) == len(digests)
    assert digest() == digests[0]
    assert len(digest()) == 64


def test_bent_lenses_and_missing_joints_are_refused(sequence):
    bent = dataclasses.replace(sequence.camera, distortion=np.array([0.1, 0, 0, 0, 0]))
    with pytest.raises(UsageError, match="lens distortion"):
        RenderedSequence(sequence.joints3d, bent, appearance_seed=1, background_seed=1)
    holed = sequence.joints3d.copy()
    holed[0, 3] = np.nan
    images = RenderedSequence(holed, sequence.camera, appearance_seed=1, background_seed=1)
    with pytest.raises(ValueError, match="NaN"):
        images.crop(0, np.eye(2, 3), SIZE)
