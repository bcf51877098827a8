"""The frame of a detection follows from one rule for all names of a file, or it is an error."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.detections.formats import read_detections
from pipeline.detections.numbering import number_frames
from pipeline.errors import DataError


def numbered(names, length, **options):
    return number_frames(list(names), length, place="a.json", **options)


def frames(names, length, **options):
    return list(numbered(names, length, **options).frames.values())


def out(*numbers):
    return [f"out{number:07}.png" for number in numbers]


def test_names_from_1_to_the_length_are_numbered_from_1():
    found = numbered(out(*range(1, 1235)), 1234)
    assert list(found.frames.values()) == list(range(1234))
    assert found.text == "frames 1..1234 of 1234, numbered from 1"


def test_a_file_that_may_start_at_0_or_at_1_is_an_error_until_the_user_decides():
    with pytest.raises(DataError, match=r"1\.\.1234 fit a video of 1235 frames in two ways.*0 or"):
        numbered(out(*range(1, 1235)), 1235)
    assert frames(out(1, 2, 4), 5, first_frame=0) == [1, 2, 4]
    assert frames(out(1, 2, 4), 5, first_frame=1) == [0, 1, 3]


def test_a_hole_shifts_no_other_frame():
    numbers = [*range(11), *range(12, 90)]
    assert frames([f"video_{n:012}" for n in numbers], 90) == numbers


def test_numbers_without_padding_are_numbers():
    names = sorted(f"{n}.jpg" for n in range(90))  # "10.jpg" stands before "2.jpg"
    assert frames(names, 90) == [int(name[:-4]) for name in names]


def test_the_number_that_varies_is_the_number_of_the_frame():
    assert frames([f"{n:06}_cam2.jpg" for n in range(122)], 122) == list(range(122))
    assert frames([f"S1/cam2/{n}_{n}.jpg" for n in (0, 7)], 8) == [0, 7]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["cam1_03.jpg", "cam2_04.jpg"], "several numbers"),
        (["a.jpg"], "no number"),
        (["a.jpg", "b.jpg"], "differ in more than numbers"),
        (["a_1.jpg", "b_1.jpg"], "differ in more than numbers"),
        (["1.jpg", "01.jpg"], "have the same number"),
        (["1.jpg", 2], "some images have names"),
        ([f"{10**20}.jpg", "2.jpg"], "over 18 digits"),
        ([-1, 0], "before the first"),
        ([0, 122], "a span of 123"),
    ],
)
def test_names_without_a_rule_are_an_error(names, problem):
    with pytest.raises(DataError, match=f"a.json: .*{problem}"):
        numbered(names, 122)


def test_a_piece_of_a_longer_video_starts_at_its_own_number():
    found = numbered(out(*range(350, 470)), 120)
    assert (list(found.frames.values())[::119], found.rule) == ([0, 119], "from 350")
    with pytest.raises(DataError, match="from 347 or from 348; set first_frame"):
        numbered(out(*range(350, 467)), 120)
    assert frames(out(350, 466), 120, first_frame=348) == [2, 118]


def test_a_step_is_used_only_if_the_numbers_go_beyond_the_video():
    assert numbered(range(0, 600, 5), 120).rule == "from 0 in steps of 5"
    assert frames(range(1, 601, 5), 120) == list(range(120))
    assert frames(range(0, 120, 2), 120) == list(range(0, 120, 2))
    with pytest.raises(DataError, match="do not fit"):
        numbered([0, 10, 500], 100)  # a common step by chance


def test_the_first_frame_of_the_user_must_fit():
    with pytest.raises(DataError, match="number 0, and first_frame is 1; set first_frame to 0"):
        numbered(range(3), 5, first_frame=1)
    with pytest.raises(DataError, match="do not fit a video of 3 frames when numbered from 0"):
        numbered([1, 2, 3], 3, first_frame=0)


@given(
    st.integers(0, 1),
    st.sets(st.integers(0, 59), min_size=1),
    st.sampled_from(["{}.jpg", "{:06}_cam2.jpg", "out{:012}.png"]),
)
def test_a_rule_that_is_found_is_never_wrong(first, seen, pattern):
    names = {pattern.format(frame + first): frame for frame in seen}
    try:
        found = numbered(names, 60).frames
    except DataError as error:
        assert "two ways" in str(error) or len(seen) == 1  # noqa: PT017
    else:
        assert found == names


def test_a_video_of_unknown_length_starts_at_0_or_is_an_error():
    assert frames([0, 5], None) == [0, 5]
    assert frames([1, 2], None, lists_all=True) == [0, 1]
    with pytest.raises(DataError, match="start at 1, and the length of the video is unknown"):
        numbered([1, 2], None)


def openpose(folder, numbers):
    for number in numbers:
        flat = np.ravel([[10.0 * j + number, j, 0.5] for j in range(25)]).tolist()
        people = [] if number == 2 else [{"person_id": [-1], "pose_keypoints_2d": flat}]
        name = f"video_{number:012}_keypoints.json"
        (folder / name).write_text(json.dumps({"people": people}))


def test_a_missing_json_of_openpose_is_a_missing_frame(tmp_path):
    openpose(tmp_path, [*range(5), *range(6, 9)])
    found = read_detections(tmp_path, frames=9)
    np.testing.assert_array_equal(found.joints2d[[0, 4, 6, 8], 1, 0], [10, 14, 16, 18])
    assert np.isnan(found.joints2d[[2, 5]]).all()
    assert found.reading.text == "frames 0..8 of 9, numbered from 0; 2 have nobody; 1 person"


def test_records_without_numbers_must_be_one_for_each_frame(tmp_path):
    person = {"keypoints": [[1.0, 2.0]] * 17, "keypoint_scores": [0.5] * 17}
    (tmp_path / "m.json").write_text(json.dumps([{"instances": [person]}] * 3))
    assert np.isfinite(read_detections(tmp_path / "m.json", frames=3).joints2d).all()
    with pytest.raises(DataError, match="3 records without frame numbers, and the video has 4"):
        read_detections(tmp_path / "m.json", frames=4)
