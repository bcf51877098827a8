from __future__ import annotations

import numpy as np
import pytest

from pipeline.camera import project, world_to_camera
from pipeline.errors import UsageError
from pipeline.mocap.bodies import BONES
from pipeline.mocap.choreography import ACTIONS, make_pose, mirror_poses
from pipeline.mocap.synthetic import ANKLE_HEIGHT, Synthetic, forward_kinematics, make_body
from pipeline.skeleton import H36M17
from pipeline.sources import ImageSource, MotionSource

J = {name: i for i, name in enumerate(H36M17.joints)}
SMALL = {"train": 2, "val": 1, "test": 1, "images": 900}


@pytest.fixture(scope="module")
def motions():
    return [s for s in Synthetic(**SMALL).sequences("train") if s.name.endswith("camera1")]


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def lengths(joints3d):
    parents, children = np.array(H36M17.bones).T
    return np.linalg.norm(joints3d[:, children] - joints3d[:, parents], axis=-1)


def test_it_is_a_source_of_motion_and_of_images():
    assert isinstance(Synthetic(), MotionSource)
    assert isinstance(Synthetic(), ImageSource)


def test_bones_keep_their_length_and_are_equal_left_and_right(motions):
    for sequence in motions:
        bones = lengths(sequence.joints3d)
        assert np.ptp(bones, axis=0).max() < 1e-5
        children = [child for _, child in H36M17.bones]
        left = [children.index(j) for j in H36M17.left]
        right = [children.index(j) for j in H36M17.right]
        np.testing.assert_allclose(bones[:, left], bones[:, right], atol=1e-5)


def test_bodies_differ_between_subjects_and_are_adult():
    first, second = make_body(0, "train01"), make_body(0, "train02")
    assert first != second
    assert all(low <= first[bone] <= high for bone, (low, high) in BONES.items())


def test_left_is_left_of_right_seen_from_where_the_body_faces(motions):
    joints = np.concatenate([s.joints3d for s in motions])
    up = joints[:, J["thorax"]] - joints[:, J["pelvis"]]
    for pair in ("hip", "shoulder"):
        left = joints[:, J[f"left_{pair}"]] - joints[:, J[f"right_{pair}"]]
        forward = np.cross(left, up)
        nose = joints[:, J["nose"]] - (joints[:, J["thorax"]] + joints[:, J["head"]]) / 2
        assert ((forward * nose).sum(-1) > 0).mean() >= 0.95


def test_walkers_walk_forwards(motions):
    for sequence in motions:
        if sequence.action in ("walk", "run"):
            joints = sequence.joints3d
            left = joints[:, J["left_hip"]] - joints[:, J["right_hip"]]
            forward = unit(np.cross(left, [0, 0, 1]))
            speed = (np.diff(joints[:, 0], axis=0) * forward[1:]).sum(-1) * sequence.fps
            assert 0.6 < np.median(speed) < 5


def test_knees_bend_backwards_and_elbows_forwards(motions):
    joints = np.concatenate([s.joints3d for s in motions])
    for side in ("left", "right"):
        hips = unit(joints[:, J["left_hip"]] - joints[:, J["right_hip"]])
        hip, knee, ankle = (joints[:, J[f"{side}_{n}"]] for n in ("hip", "knee", "ankle"))
        thigh, shank = unit(knee - hip), unit(ankle - knee)
        bend = (np.cross(thigh, shank) * hips).sum(-1)
        assert (bend > 0).mean() > 0.99
        assert np.degrees(np.arccos((thigh * shank).sum(-1).clip(-1, 1))).max() < 146


def test_the_lowest_ankle_stands_on_the_floor_unless_the_body_hops(motions):
    for sequence in motions:
        lowest = sequence.joints3d[:, [J["left_ankle"], J["right_ankle"]], 2].min(axis=1)
        hops = sequence.action in ("run", "jumping jack")
        assert abs(np.percentile(lowest, 5) - ANKLE_HEIGHT) < 0.02
        assert lowest.min() > ANKLE_HEIGHT - 0.03
        assert hops or lowest.max() < ANKLE_HEIGHT + 0.02


def test_a_foot_that_carries_the_body_does_not_slide(motions):
    walk = next(s for s in motions if s.action == "walk").joints3d
    feet = walk[:, [J["left_ankle"], J["right_ankle"]]]
    moved = np.linalg.norm(np.diff(feet[..., :2], axis=0), axis=-1)
    planted = np.take_along_axis(moved, feet[1:, :, 2].argmin(axis=1)[:, None], axis=1)
    assert np.median(planted) < 0.3 * np.median(moved.max(axis=1))


def test_motion_is_smooth(motions):
    for sequence in motions:
        steps = np.linalg.norm(np.diff(sequence.joints3d, n=2, axis=0), axis=-1)
        assert np.percentile(steps, 99.5) < 0.05  # metres per frame squared at 50 Hz


def test_poses_vary_so_much_that_the_mean_pose_is_far_off(motions):
    joints = np.concatenate([s.joints3d for s in motions])
    cosine = unit((joints[:, J["left_hip"]] - joints[:, J["right_hip"]])[:, :2])
    turned = np.zeros_like(joints)
    relative = joints - joints[:, :1]
    turned[..., 0] = (relative[..., :2] * cosine[:, None]).sum(-1)
    across = np.stack([-cosine[:, 1], cosine[:, 0]], axis=-1)
    turned[..., 1] = (relative[..., :2] * across[:, None]).sum(-1)
    turned[..., 2] = relative[..., 2]
    error = np.linalg.norm(turned - turned.mean(axis=0), axis=-1).mean()
    assert error > 0.08  # even when everybody faces the same way


def test_mirroring_a_pose_mirrors_the_body():
    bones = {bone: low for bone, (low, _) in BONES.items()}
    lopsided = make_pose(hip=(40, 5), arm=(90, 10), twist=20, side=10, look=30, roll=5)
    one = forward_kinematics(lopsided[None], bones)[0]
    other = forward_kinematics(mirror_poses(lopsided)[None], bones)[0]
    np.testing.assert_allclose(other[list(H36M17.swap)] * [1, -1, 1], one, atol=1e-12)


def test_splits_have_different_people():
    source = Synthetic()
    names = [set(source.subjects(split)) for split in ("train", "val", "test")]
    assert not names[0] & names[1]
    assert not (names[0] | names[1]) & names[2]
    assert make_body(0, "val01") != make_body(0, "train01")


def test_detector_and_lifter_share_the_training_people_and_nobody_twice():
    everyone = Synthetic(train=5).subjects("train")
    detector = Synthetic(train=5, share="detector").subjects("train")
    lifter = Synthetic(train=5, share="lifter").subjects("train")
    assert detector + lifter == everyone
    assert Synthetic(train=5, share="lifter").subjects("test") == Synthetic().subjects("test")


def test_the_same_seed_gives_the_same_arrays_whatever_else_is_asked():
    one = Synthetic(**SMALL, seed=3).sequences("val")[6]
    alone = Synthetic(**SMALL, seed=3, actions=(one.action,)).sequences("val")
    same = next(s for s in alone if s.name == one.name)
    np.testing.assert_array_equal(one.joints3d, same.joints3d)
    np.testing.assert_array_equal(one.camera.centre, same.camera.centre)
    other = Synthetic(**SMALL, seed=4).sequences("val")[6]
    assert np.abs(one.joints3d - other.joints3d).max() > 0.05


def test_every_motion_is_seen_by_four_cameras_in_full():
    sequences = Synthetic(**SMALL).sequences("test")
    assert len(sequences) == 4 * len(ACTIONS)
    assert len({s.name for s in sequences}) == len(sequences)
    inside = []
    for s in sequences:
        pixels = project(world_to_camera(s.joints3d, s.camera), s.camera)
        inside.append(((pixels > 0) & (pixels < np.array(s.camera.size) - 1)).all(axis=(1, 2)))
    assert np.concatenate(inside).mean() > 0.99


def test_samples_label_hidden_joints_and_not_those_outside():
    samples = Synthetic(**SMALL).samples("train")
    assert len(samples) == 900
    pixels = samples.images.cameras.project(samples.joints3d.astype(np.float64))
    inside = ((pixels >= 0) & (pixels <= 999)).all(axis=-1)
    assert (inside == samples.labelled).mean() > 0.9999
    np.testing.assert_array_equal(np.isnan(samples.joints2d).any(axis=-1), ~samples.labelled)
    whole = samples.labelled.all(axis=1).mean()
    assert 0.9 < whole < 0.995
    assert samples.labelled.sum(axis=1).min() > 0


def test_sample_boxes_are_tight_and_projection_agrees_with_focal_and_principal():
    samples = Synthetic(**SMALL).samples("val")
    x, y, _, height = samples.boxes.T
    np.testing.assert_allclose(np.nanmin(samples.joints2d[..., 0], axis=1), x)
    np.testing.assert_allclose(np.nanmax(samples.joints2d[..., 1], axis=1), y + height, rtol=1e-5)
    ray = samples.joints3d[..., :2] / samples.joints3d[..., 2:]
    pixels = ray * samples.focal[:, None] + samples.principal[:, None]
    seen = samples.labelled
    np.testing.assert_allclose(pixels[seen], samples.joints2d[seen], atol=0.01)


def test_a_sample_does_not_depend_on_how_many_are_asked_for():
    few, many = (Synthetic(**{**SMALL, "images": n}).samples("train") for n in (40, 90))
    np.testing.assert_array_equal(few.joints2d, many.joints2d[:40])


def test_the_shortest_motion_has_two_frames():
    assert len(Synthetic(**SMALL, seconds=0.01).sequences("val")[0]) == 2


def test_unknown_actions_and_splits_are_refused():
    with pytest.raises(UsageError, match="no action 'fly'"):
        Synthetic(actions=("fly",)).sequences("val")
    with pytest.raises(UsageError, match="no split 'dev'"):
        Synthetic().samples("dev")
    with pytest.raises(UsageError, match="no subjects in train"):
        Synthetic(train=1, share="lifter").sequences("train")
