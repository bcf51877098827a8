"""People in a file of detections are followed, counted and chosen; they never alternate."""

import json

import numpy as np
import pytest

from pipeline.detections.formats import read_detections
from pipeline.detections.people import FoundPerson, choose_person
from pipeline.errors import DataError

SHAPE = np.array([[0, 0], [8, 20], [-8, 22], [9, 60], [-7, 61], [4, 100]], float)
"""Joints of a person of 100 pixels around its position."""


def at(frame, x, score=0.8, identity=None):
    joints = np.c_[SHAPE + np.array([x, 50.0]), np.full(len(SHAPE), score)]
    return FoundPerson(frame, joints, identity)


def two_people(ids=(None, None), frames=20):
    """A at x = 100 + frame and B at x = 400 - frame; their scores are highest in turn."""
    found = []
    for frame in range(frames):
        a, b = (0.9, 0.5) if frame % 2 else (0.4, 0.8)
        found += [at(frame, 100 + frame, a, ids[0]), at(frame, 400 - frame, b, ids[1])]
    return found


def positions(chosen):
    return {one.frame: one.joints[0, 0] for one in chosen.found}


@pytest.mark.parametrize("ids", [("7", "3"), (None, None), ("1", "1"), ("1", None)])
def test_one_person_is_followed_whatever_the_scores_are(ids):
    found = [one for one in two_people(ids) if not (one.frame == 5 and one.joints[0, 0] > 200)]
    chosen = choose_person(found, None, "a.json")
    how = "ids" if ids == ("7", "3") else "positions"
    name = "7" if ids == ("7", "3") else "2"  # in frame 0, B has the higher score
    assert chosen.people == 2
    assert positions(chosen) == {frame: 100 + frame for frame in range(20)}
    assert chosen.text == (
        f"2 people by their {how}: person {name} in 20 frames (mean score 0.65), "
        f"person {'3' if name == '7' else '1'} in 19 frames (mean score 0.66), used: person {name} "
        "(--data.person selects another)"
    )


@pytest.mark.parametrize(("ids", "person"), [(("7", "3"), "3"), ((None, None), "1")])
def test_the_user_selects_a_person_and_its_missing_frames_stay_missing(ids, person):
    found = [one for one in two_people(ids) if not (one.frame == 5 and one.joints[0, 0] > 200)]
    chosen = positions(choose_person(found, person, "a.json"))
    assert chosen == {frame: 400 - frame for frame in range(20) if frame != 5}
    with pytest.raises(DataError, match=r"a.json: has no person 9; it has person . in 20"):
        choose_person(found, "9", "a.json")


def crossing(ids=(None, None)):
    """Two people who walk through each other: equal poses in frame 10."""
    lines = ((100, 10), (300, -10))
    return [
        at(frame, x + step * frame, identity=identity)
        for frame in range(20)
        for identity, (x, step) in zip(ids, lines, strict=True)
    ]


def test_people_who_cross_are_followed_by_ids_and_are_an_error_without():
    chosen = choose_person(crossing(("4", "5")), None, "a.json")
    assert positions(chosen) == {frame: 100 + 10 * frame for frame in range(20)}
    with pytest.raises(DataError, match=r"come so close in frame \d+ .* with tracking"):
        choose_person(crossing(), None, "a.json")
    assert len(choose_person(crossing(), "1", "a.json").found) >= 10


def test_ids_that_exchange_the_people_from_frame_to_frame_are_not_followed():
    found = [
        at(frame, x, identity=str((number + frame) % 2))
        for frame in range(20)
        for number, x in enumerate((100 + frame, 400))
    ]
    chosen = choose_person(found, None, "a.json")
    assert "2 people by their positions" in chosen.text
    assert len({x > 300 for x in positions(chosen).values()}) == 1


def test_a_person_whose_id_changes_after_an_occlusion_is_one_person():
    found = [at(f, 100 + f, identity="1" if f < 8 else "6") for f in (*range(8), *range(12, 20))]
    chosen = choose_person(found, None, "a.json")
    assert (len(chosen.found), chosen.people, chosen.text) == (16, 1, "1 person")


def test_people_who_follow_each_other_elsewhere_are_two_and_can_be_joined():
    found = [at(f, 100 if f < 8 else 700, identity="1" if f < 8 else "6") for f in range(20)]
    chosen = choose_person(found, None, "a.json")
    assert (len(chosen.found), chosen.people) == (12, 2)
    assert len(choose_person(found, "1,6", "a.json").found) == 20
    with pytest.raises(DataError, match=r"7,3 are in the same frame \(0"):
        choose_person(two_people(("7", "3")), "7,3", "a.json")


def test_a_person_found_twice_and_a_short_false_one_change_nothing():
    found = [at(frame, 100 + frame) for frame in range(20)]
    found += [at(frame, 103 + frame, 0.3) for frame in range(20)] + [at(4, 130, 0.2)]
    chosen = choose_person(found, None, "a.json")
    assert positions(chosen) == {frame: 100 + frame for frame in range(20)}


def test_of_people_with_equal_scores_the_first_one_is_used():
    assert choose_person(two_people(("7", "3"), 60), None, "a.json").text.count("used: person 7 ")


def test_jumps_of_the_only_person_are_reported():
    found = [at(frame, 100 if frame < 5 else 600) for frame in range(10)]
    assert choose_person(found, None, "a.json").text == "1 person, whose position jumps once"


def flat(x, score, joints=17):
    return np.ravel([[x + 3 * j, 5.0 * j, score] for j in range(joints)]).tolist()


def of_tool(tool, folder, frames):
    """The file or folder of a tool; `frames` is a list of lists of (x, score, id)."""
    path = folder / "found.json"
    if tool == "openpose":
        for number, people in enumerate(frames):
            document = {
                "people": [
                    {"person_id": [identity], "pose_keypoints_2d": flat(x, score, 25)}
                    for x, score, identity in people
                ]
            }
            (folder / f"v_{number:012}_keypoints.json").write_text(json.dumps(document))
        return folder
    if tool in ("alphapose", "coco"):
        key, ids = ("idx", "{}.jpg".format) if tool == "alphapose" else ("track_id", int)
        document = [
            {"image_id": ids(number), "keypoints": flat(x, score), "score": 1.0, key: identity}
            for number, people in enumerate(frames)
            for x, score, identity in people
        ]
    else:
        document = []
        for number, people in enumerate(frames):
            instances = []
            for x, score, identity in people:
                joints = np.reshape(flat(x, score), (17, 3))
                instances.append({"keypoints": joints[:, :2].tolist(), "track_id": identity})
                instances[-1]["keypoint_scores"] = joints[:, 2].tolist()
            document.append({"frame_id": number, "instances": instances})
        if tool == "mmpose":
            document = {"meta_info": {}, "instance_info": document}
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("tool", ["alphapose", "openpose", "mmpose", "rtmpose", "coco"])
@pytest.mark.parametrize("ids", [(4, 9), (0, 0), (-1, -1)])
def test_every_format_follows_one_person(tool, ids, tmp_path):
    frames = [
        [(20.0 + f, 0.8 if f % 2 else 0.5, ids[0]), (500.0, 0.5 if f % 2 else 0.8, ids[1])]
        for f in range(7)
    ]
    del frames[3][1]
    found = read_detections(of_tool(tool, tmp_path, frames), frames=7)
    assert found.joints2d[:, 0, 0].tolist() == [20 + f for f in range(7)]
    assert found.reading.people == 2
    person = "9" if ids == (4, 9) else "1"
    other = read_detections(of_tool(tool, tmp_path, frames), frames=7, person=person)
    np.testing.assert_array_equal(other.joints2d[:, 0, 0], [500.0] * 3 + [np.nan] + [500.0] * 3)


def test_ids_are_read_as_the_tools_write_them(tmp_path):
    frames = [[(20.0, 0.5, [2.0]), (500.0, 0.6, "b")]] * 3
    found = read_detections(of_tool("alphapose", tmp_path, frames), frames=3)
    assert "person b in 3 frames (mean score 0.60), person 2 in 3 frames" in found.reading.text
    with pytest.raises(DataError, match=r"\[0\]: idx: a whole number is expected, not 1.5"):
        read_detections(of_tool("alphapose", tmp_path, [[(20.0, 0.5, 1.5)]]))


def test_scores_that_are_all_0_are_an_error(tmp_path):
    with pytest.raises(DataError, match="the scores of all joints are 0"):
        read_detections(of_tool("mmpose", tmp_path, [[(20.0, 0.0, 1)]] * 3), frames=3)
