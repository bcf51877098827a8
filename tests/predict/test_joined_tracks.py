"""Tracks of one person put together after a crossing."""

import numpy as np
import pytest

from pipeline.predict.joined_tracks import join_tracks
from pipeline.predict.tracks import Track

POSE = np.array([[0.0, 0], [20, 0], [5, 40], [15, 100]], np.float32)
TIMES = np.arange(100) / 25


def track(name, frames, *, x=0.0, speed=2.0, size=1.0):
    """A person who walks to the right, with `speed` pixels per frame; the box is 100 high."""
    frames = np.array(frames)
    places = np.stack([x + speed * frames, np.full(len(frames), 50.0)], -1)
    joints2d = (size * POSE + places[:, None]).astype(np.float32)
    return Track(name, frames, joints2d, np.full((len(frames), 4), 0.9, np.float32))


def ids(tracks):
    return {t.id: t.frames.tolist() for t in tracks}


A = track("A", [*range(40), *range(56, 90)])
OTHER = track("B", range(90), x=180, speed=-2.0)


def test_the_missing_frames_of_a_person_are_filled_by_the_track_between():
    joined = join_tracks([A, OTHER, track("C", range(41, 55))], TIMES)
    assert ids(joined) == {"A": [*range(40), *range(41, 55), *range(56, 90)], "B": [*range(90)]}
    whole = track("A", joined[0].frames)
    np.testing.assert_array_equal(joined[0].joints2d, whole.joints2d)


def test_later_people_move_up_in_the_alphabet():
    later = track("D", range(60, 95), x=500)
    joined = join_tracks([A, OTHER, track("C", range(41, 55)), later], TIMES)
    assert ids(joined)["C"] == [*range(60, 95)]


def test_nothing_changes_where_nothing_fits():
    tracks = (A, OTHER)
    assert join_tracks(tracks, TIMES) == tracks


def test_two_ids_that_follow_one_body_in_turns_are_the_same_person():
    old = track("A", [*range(40), 56, 58, *range(60, 90)])
    (whole,) = join_tracks([old, track("C", [*range(41, 58), 59])], TIMES)
    assert whole.frames.tolist() == [*range(40), *range(41, 90)]


def test_a_new_id_that_follows_the_same_body_for_some_frames_more_is_the_same_person():
    (whole,) = join_tracks([A, track("C", range(41, 60), x=3.0)], TIMES)
    assert whole.frames.tolist() == [*range(40), *range(41, 90)]
    np.testing.assert_array_equal(whole.joints2d[whole.frames == 56][0], A.joints2d[40])
    assert whole.joints2d[whole.frames == 55][0, 0, 0] == 3.0 + 2 * 55


STRANGERS = {
    "far away": {"x": 160.0},
    "twice as large": {"size": 2.0},
    "at the same time": {"frames": range(38, 50)},
    "after the end": {"frames": range(91, 99)},
    "follows another body from there": {"frames": range(41, 66), "speed": 12.0, "x": -560.0},
    "beyond the person's last frame": {"frames": range(41, 95)},
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_in_the_gap_stays_a_stranger(name):
    changes = {"frames": range(41, 55), **STRANGERS[name]}
    frames = changes.pop("frames")
    stranger = track("C", frames, **changes)
    assert ids(join_tracks([A, OTHER, stranger], TIMES)).keys() == {"A", "B", "C"}


def test_a_gap_that_is_too_long_is_not_filled():
    far = track("C", range(41, 55))
    slow = np.arange(100) / 2.5  # a frame takes 0.4 s
    gap = track("A", [*range(38), *range(59, 90)])
    assert len(join_tracks([gap, OTHER, far], TIMES)) == 2
    assert len(join_tracks([gap, OTHER, far], slow)) == 3


FRONT = track("B", range(100), x=176, speed=-2.0)
"""A person who passes in front of somebody who walks as `track` does, in frame 44."""

AFTER = {
    "where the velocity leads to": ({}, True),
    "on the same body for two frames": ({"frames": range(39, 80)}, True),
    "turned round behind the other one": ({"x": 88 - 20, "speed": 0.0}, True),
    "with nobody near": ({"alone": True}, False),
    "too late": ({"frames": range(79, 100)}, False),
    "elsewhere": ({"x": 90.0}, False),
    "twice as large": ({"size": 2.0}, False),
    "beside the person in one frame": ({"frames": range(40, 80), "x": 30.0}, False),
    "long before the end": ({"frames": range(30, 80)}, False),
}


@pytest.mark.parametrize("name", AFTER)
def test_who_comes_out_from_behind_somebody_is_the_person_who_went_there(name):
    changes, same = AFTER[name]
    changes = {"frames": range(55, 80), **changes}
    others = [] if changes.pop("alone", False) else [FRONT]
    old, new = track("A", range(41)), track("C", changes.pop("frames"), **changes)
    joined = join_tracks([old, *others, new], TIMES)
    assert len(joined) == len(others) + (1 if same else 2)
    if same:
        assert joined[0].frames.tolist() == sorted({*range(41), *new.frames.tolist()})


def test_of_two_that_fit_the_nearer_one_is_taken():
    near, less_near = track("C", range(42, 54), x=5.0), track("D", range(42, 54), x=30.0)
    joined = join_tracks([A, OTHER, less_near, near], TIMES)
    assert len(joined) == 3
    assert joined[0].joints2d[40, 0, 0] == near.joints2d[0, 0, 0]


def test_a_person_with_two_gaps_is_joined_twice():
    broken = track("A", [*range(20), *range(30, 40), *range(50, 80)])
    parts = [track("C", range(21, 29)), track("D", range(41, 49))]
    assert len(join_tracks([broken, *parts], TIMES)) == 1
