import dataclasses

import numpy as np
import pytest

from pipeline.export.measures import (
    add_foot_slide,
    find_contacts,
    foot_slide,
    horizontal_speed,
    is_usable,
    joint_angles,
    measure_bones,
    true_spans,
    unsure_frames,
)
from pipeline.export.motion import FILLED, MISSING, SEEN, Motion, PersonMotion
from pipeline.skeleton import COCO17, H36M17, Skeleton

STANDING = {
    "pelvis": (0, 0, 0.93), "spine": (0, 0, 1.18), "thorax": (0, 0, 1.43), "nose": (0, 0.1, 1.5),
    "head": (0, 0, 1.62),
    "left_hip": (-0.13, 0, 0.93), "left_knee": (-0.13, 0, 0.5), "left_ankle": (-0.13, 0, 0.08),
    "right_hip": (0.13, 0, 0.93), "right_knee": (0.13, 0, 0.5), "right_ankle": (0.13, 0, 0.08),
    "left_shoulder": (-0.2, 0, 1.4), "left_elbow": (-0.2, 0, 1.1), "left_wrist": (-0.2, 0, 0.86),
    "right_shoulder": (0.2, 0, 1.4), "right_elbow": (0.2, 0, 1.1), "right_wrist": (0.2, 0, 0.86),
}  # fmt: skip
"""A person who stands and looks along y; z is up, metres. Arms: 0.3 and 0.24 m."""


def pose(**moved):
    """The standing person, with some joints elsewhere, (17, 3)."""
    return np.array([{**STANDING, **moved}[name] for name in H36M17.joints], float)


def make_motion(positions, fps=50.0, status=None, times=None, frame="world"):
    """A motion of one person from positions in the frame of reference, (T, 17, 3)."""
    positions = np.asarray(positions, float)
    T = len(positions)
    status = np.full(T, SEEN, np.uint8) if status is None else np.array(status, np.uint8)
    positions = np.where((status == MISSING)[:, None, None], np.nan, positions)
    person = PersonMotion(
        "A",
        (positions - positions[:, :1]).astype(np.float32),
        positions[:, 0].astype(np.float32),
        positions[..., :2].astype(np.float32),
        np.where(status[:, None] == MISSING, 0, 0.9 * np.ones((T, 17))).astype(np.float32),
        status,
        1.7,
    )
    times = np.arange(T) / fps if times is None else np.asarray(times, float)
    return Motion((person,), H36M17, times, fps, (640, 480), 500.0, (319.5, 239.5), frame)


def angles(**moved):
    found = joint_angles(pose(**moved)[None], H36M17)
    return {name: float(values[0]) for name, values in found.items()}


def test_a_person_who_stands_is_straight():
    found = angles()
    assert len(found) == 8
    assert found == pytest.approx(dict.fromkeys(found, 0), abs=1e-4)


def test_a_knee_at_a_right_angle_is_bent_by_90_degrees_and_the_other_one_is_not():
    found = angles(left_ankle=(-0.13, -0.42, 0.5))
    assert found["left knee"] == pytest.approx(90)
    assert found["right knee"] == pytest.approx(0, abs=1e-4)
    assert found["left hip"] == pytest.approx(0, abs=1e-4)


def test_a_person_who_sits_has_hips_and_knees_at_right_angles():
    found = angles(right_knee=(0.13, 0.43, 0.93), right_ankle=(0.13, 0.43, 0.51))
    assert found["right hip"] == pytest.approx(90)
    assert found["right knee"] == pytest.approx(90)


@pytest.mark.parametrize(
    ("elbow", "degrees"),
    [((-0.5, 0, 1.4), 90), ((-0.2, 0.3, 1.4), 90), ((-0.2, 0, 1.7), 180), ((-0.35, 0, 1.14), 30)],
)
def test_an_arm_that_is_raised_to_the_side_ahead_and_up(elbow, degrees):
    assert angles(left_elbow=elbow)["left shoulder"] == pytest.approx(degrees, abs=0.1)


def test_a_forearm_bent_by_60_degrees():
    wrist = (0.2, 0.24 * np.sin(np.radians(60)), 1.1 - 0.24 * np.cos(np.radians(60)))
    assert angles(right_elbow=(0.2, 0, 1.1), right_wrist=wrist)["right elbow"] == pytest.approx(60)


def test_angles_do_not_depend_on_the_frame_of_reference_and_missing_frames_stay_missing():
    positions = np.stack([pose(left_ankle=(-0.13, -0.3, 0.6)), np.full((17, 3), np.nan)])
    turned = positions @ np.array([[0.6, 0, 0.8], [0, 1, 0], [-0.8, 0, 0.6]]) + (3, 4, 5)
    one, two = joint_angles(positions, H36M17), joint_angles(turned, H36M17)
    for name, values in one.items():
        assert two[name][0] == pytest.approx(values[0], abs=1e-4)
        assert np.isnan(values[1])


def test_a_joint_set_without_trunk_has_knees_and_elbows_alone():
    found = joint_angles(np.random.default_rng(0).normal(size=(2, 17, 3)), COCO17)
    assert set(found) == {f"{s} {j}" for s in ("left", "right") for j in ("knee", "elbow")}
    own = Skeleton("own", ("root", "left_a", "right_a"), (-1, 0, 0))
    assert joint_angles(np.zeros((2, 3, 3)), own) == {}


def walk(speed, fps=50.0, seconds=2.0, direction=(0.6, 0.8, 0.0)):
    times = np.arange(round(fps * seconds)) / fps
    return pose() + times[:, None, None] * speed * np.array(direction)


def speed_of(motion):
    person = motion.people[0]
    return horizontal_speed(person.positions[:, 0], motion.times, person)


@pytest.mark.parametrize("fps", [4.0, 30.0, 240.0])
def test_who_walks_at_a_metre_and_a_half_per_second_has_that_speed_at_any_frame_rate(fps):
    assert speed_of(make_motion(walk(1.5, fps), fps)) == pytest.approx(1.5, abs=1e-3)


def test_speed_uses_the_times_of_frames_and_not_their_number():
    times = np.sort(np.random.default_rng(1).uniform(0, 3, 80))
    positions = pose() + times[:, None, None] * np.array([0.9, -1.2, 0])
    assert speed_of(make_motion(positions, times=times)) == pytest.approx(1.5, abs=1e-3)


def test_going_up_is_no_speed_along_the_floor():
    assert speed_of(make_motion(walk(2.0, direction=(0, 0, 1)))) == pytest.approx(0, abs=1e-4)


def test_speed_is_not_measured_across_a_gap():
    positions = walk(1.0)
    positions[50:] += (9, 0, 0)  # somewhere else after the gap
    status = np.full(100, SEEN)
    status[40:50], status[60] = MISSING, MISSING
    status[98] = MISSING  # frame 99 stands alone
    speed = speed_of(make_motion(positions, status=status))
    assert np.isnan(speed[[*range(40, 50), 60, 98, 99]]).all()
    assert np.nanmax(np.abs(speed - 1)) < 1e-3


def slide_left(metres, frames=50):
    """A person whose left ankle moves along the floor by this, in the middle half of the time."""
    positions = np.repeat(pose()[None], frames, axis=0)
    share = np.clip((np.arange(frames) / (frames - 1) - 0.25) * 2, 0, 1)
    positions[:, H36M17.index("left_ankle"), 1] += metres * share
    return positions


def test_a_foot_that_slides_3_cm():
    motion = make_motion(slide_left(0.03))
    left, right = find_contacts(motion.people[0], motion)
    assert (left.side, left.first, left.last) == ("left", 0, 49)
    assert left.slide == pytest.approx(0.03, abs=0.002)
    assert right.slide == pytest.approx(0, abs=1e-6)
    assert foot_slide(motion.people[0], motion) == pytest.approx(0.015, abs=0.002)


def test_the_camera_frame_is_taken_for_that_of_a_level_camera():
    motion = make_motion(
        slide_left(0.03) @ np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]), frame="camera"
    )
    left, _ = find_contacts(motion.people[0], motion)
    assert left.slide == pytest.approx(0.03, abs=0.002)


def test_a_foot_that_is_lifted_is_in_contact_before_and_after():
    positions = np.repeat(pose()[None], 60, axis=0)
    ankle = H36M17.index("right_ankle")
    positions[20:35, ankle] += (0, 0.2, 0.15)
    positions[35:, ankle] += (0, 0.4, 0)
    motion = make_motion(positions)
    contacts = [c for c in find_contacts(motion.people[0], motion) if c.side == "right"]
    assert len(contacts) == 2
    assert contacts[0].last < 20
    assert contacts[1].first >= 35
    assert [c.slide for c in contacts] == pytest.approx([0, 0], abs=1e-5)


def test_a_foot_that_swings_low_and_fast_does_not_stand():
    positions = np.repeat(pose()[None], 60, axis=0)
    positions[:, H36M17.index("right_ankle"), 1] += np.linspace(0, 3, 60)  # 2.5 m/s, body still
    motion = make_motion(positions)
    assert {c.side for c in find_contacts(motion.people[0], motion)} == {"left"}


def test_who_is_never_there_long_enough_has_no_slide():
    motion = make_motion(slide_left(0.1, 4))
    assert foot_slide(motion.people[0], motion) is None
    facts = add_foot_slide(motion, motion)
    assert facts["quality"]["A"]["foot_slide"] is None


def test_the_slide_is_added_to_the_facts_and_nothing_else_changes():
    motion = make_motion(slide_left(0.03))
    motion = dataclasses.replace(motion, facts={"quality": {"A": {"jitter": 4.0}}, "command": "x"})
    facts = add_foot_slide(motion, motion)
    assert facts["quality"]["A"] == {"jitter": 4.0, "foot_slide": pytest.approx(0.015, abs=0.002)}
    assert facts["command"] == "x"
    assert motion.facts["quality"] == {"A": {"jitter": 4.0}}


def test_bones_have_plain_names_and_their_length_and_change():
    positions = np.repeat(pose()[None], 20, axis=0)
    positions[::2, H36M17.index("left_wrist"), 2] -= 0.06  # the forearm: 0.24 and 0.3 m
    found = {bone.name: bone for bone in measure_bones(positions, H36M17)}
    assert len(found) == 11
    assert found["right thigh"].length == pytest.approx(0.43)
    assert found["right thigh"].change == pytest.approx(0, abs=1e-9)
    assert found["trunk"].length == pytest.approx(0.5)
    assert found["shoulders"].length == pytest.approx(0.4)
    assert found["left forearm"].length == pytest.approx(0.27)
    assert found["left forearm"].change == pytest.approx(1 / 9)


def test_unsure_frames_are_those_that_were_seen_with_a_low_median_score():
    motion = make_motion(np.repeat(pose()[None], 5, axis=0), status=[1, 1, 2, 0, 1])
    person = motion.people[0]
    person.score[0, :8] = 0.1  # 8 of 17 are low, the median is not
    person.score[1, :9] = 0.1
    person.score[2] = 0.1
    assert person.status.tolist() == [SEEN, SEEN, FILLED, MISSING, SEEN]
    assert unsure_frames(person).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize(
    ("quality", "usable"),
    [
        ({"median_score": 0.4, "bone_variation_before": 0.2}, True),
        ({"median_score": 0.39, "bone_variation_before": 0.1}, False),
        ({"median_score": 0.9, "bone_variation_before": 0.21}, False),
        ({}, True),
    ],
)
def test_what_is_usable(quality, usable):
    assert is_usable(quality) is usable


def test_spans_of_true_values():
    assert true_spans(np.array([], bool)) == []
    assert true_spans(np.array([False, True, True, False, True])) == [(1, 2), (4, 4)]
