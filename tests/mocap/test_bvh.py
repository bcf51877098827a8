"""BVH files: real spellings are read, kinematics agrees with scipy, damage gets one line."""

import gzip
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from stick_figures import ORDERS, SMALL, hostile, motion, tree

from pipeline.errors import DataError
from pipeline.mocap.bvh import read_bvh


def read(tmp_path, text, name="a.bvh"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_bvh(path)


def test_a_small_file_gives_its_joints_channels_and_rate(tmp_path):
    found = read(tmp_path, SMALL)
    assert found.joints == ("Hips", "Leg")
    assert found.parents == (-1, 0)
    assert found.offsets.tolist() == [[0, 0, 0], [1.5, -4, 0.5]]
    assert found.channels[1] == (("rotation", 2), ("rotation", 0), ("rotation", 1))
    assert found.fps == 30.0
    assert found.values[2].tolist() == [1.5, 2.5, -3, 0, 0, 90, 0, 90, 0]


def test_a_quarter_turn_of_the_root_about_each_axis_moves_the_leg_as_worked_out_by_hand(tmp_path):
    positions, _ = read(tmp_path, SMALL).pose(["Leg"])
    about_z, about_y, about_x = [1 + 4, 2 + 1.5, 3.5], [1 + 0.5, 2 - 4, 3 - 1.5], [3, 2, -7]
    np.testing.assert_allclose(positions[:, 0], [about_z, about_y, about_x], atol=1e-12)


def test_a_position_channel_replaces_the_offset_of_its_axis_alone(tmp_path):
    text = tree(["a", "b"], [-1, 0], np.array([[9.0, 9, 9], [1, 2, 3]]), ["xyz", "y"])
    found = read(tmp_path, text + motion(np.array([[10.0, 20, 30, -5]]), 0.02))
    assert found.pose(["b"])[0].tolist() == [[[11, 15, 33]]]


def test_the_pose_of_some_frames_is_that_of_the_whole_recording_there(tmp_path):
    values = np.random.default_rng(0).uniform(-90, 90, (2500, 9))
    text = tree(["a", "b"], [-1, 0], np.ones((2, 3)), ["xyzZXY", "YXZ"])
    found = read(tmp_path, text + motion(values, 0.01))
    for whole, part in zip(found.pose(["b"]), found.pose(["b"], slice(1000, 2100)), strict=True):
        np.testing.assert_array_equal(whole[1000:2100], part)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_kinematics_of_any_tree_agrees_with_scipy(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    count, frames = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    parents = [-1, *(int(rng.integers(0, i)) for i in range(1, count))]
    offsets = rng.normal(size=(count, 3))
    orders = [str(rng.choice(ORDERS)) for _ in range(count)]
    moving = [i == 0 or rng.random() < 0.3 for i in range(count)]
    channels = [("xyz" if m else "") + order for m, order in zip(moving, orders, strict=True)]
    names = [f"joint {i}" for i in range(count)]
    order = _depth_first(parents)
    values = [rng.uniform(-180, 180, (frames, len(c))) for c in channels]
    text = tree(names, parents, offsets, channels)
    path = tmp_path_factory.mktemp("bvh") / "a.bvh"
    path.write_text(text + motion(np.concatenate([values[i] for i in order], axis=1), 0.01))
    positions, rotations = read_bvh(path).pose(names)
    for frame in range(frames):
        placed, turned = {}, {}
        for i in order:
            local = values[i][frame, :3] if moving[i] else offsets[i]
            own = Rotation.from_euler(orders[i], values[i][frame, -3:], degrees=True)
            if i:
                placed[i] = placed[parents[i]] + turned[parents[i]].apply(local)
                own = turned[parents[i]] * own
            else:
                placed[i] = local
            turned[i] = own
        np.testing.assert_allclose(positions[frame], [placed[i] for i in range(count)], atol=1e-9)
        whole = [turned[i].as_matrix() for i in range(count)]
        np.testing.assert_allclose(rotations[frame], whole, atol=1e-9)


def _depth_first(parents):
    def below(joint):
        yield joint
        for child, parent in enumerate(parents):
            if parent == joint:
                yield from below(child)

    return list(below(0))


@pytest.mark.parametrize(
    "text",
    [
        SMALL.replace("\n", "\r\n"),
        SMALL.replace("{\n", "{\r\n"),
        SMALL.replace("\n", "\r"),
        "\ufeff" + SMALL,
        SMALL.replace("HIERARCHY", "Hierarchy").replace("MOTION", "motion"),
        SMALL.replace("Frames:", "FRAMES :").replace("Frame Time:", "frametime"),
        SMALL.replace("Xposition", "XPOSITION").replace("Yrotation", "yRotation"),
        SMALL.replace("JOINT Leg\n  {\n", "JOINT Leg {"),
        SMALL.replace("    End Site\n    {\n      OFFSET 0 -3 0\n    }\n", ""),
        SMALL.replace("End Site", "End Site of the leg"),
        SMALL.replace("90 0 0\n", "90\t0 0 \n\n", 1) + "\n \n",
    ],
    ids=str,
)
def test_spellings_of_real_files_make_no_difference(tmp_path, text):
    plain, other = read(tmp_path, SMALL), read(tmp_path, text)
    assert (plain.joints, plain.channels, plain.fps) == (other.joints, other.channels, other.fps)
    np.testing.assert_array_equal(plain.values, other.values)


def test_a_packed_file_is_known_by_its_first_bytes(tmp_path):
    packed = read(tmp_path, gzip.compress(SMALL.encode()), "packed.bvh")
    np.testing.assert_array_equal(packed.values, read(tmp_path, SMALL).values)


def test_names_may_hold_spaces_and_latin_letters(tmp_path):
    found = read(tmp_path, SMALL.replace("JOINT Leg", "JOINT Left leg").encode())
    assert found.joints[1] == "Left leg"
    assert len(read(tmp_path, SMALL.replace("Leg", "Fuß").encode("latin-1")).joints) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("OFFSET 1.5", "OFFSET one", "line 8: expected a number after OFFSET, found 'one'"),
        ("Frames: 3", "Frames: 4", "line 21: Frames: is 4, but 3 frames follow"),
        ("Frames: 3", "Frames: 2", "line 21: Frames: is 2, but 3 frames follow"),
        (
            "0 0 90 0 90 0",
            "0 0 90 0 90",
            "line 21: expected 9 numbers, one for each of the CHANNELS, found 8",
        ),
        ("10 20 30", "10 nan 30", "line 20: expected a number, found 'nan'"),
        ("10 20 30", "10 1e400 30", "line 20: expected a number up to 1e+08, found '1e400'"),
        ("ROOT Hips", "ROOT Leg", "line 6: a second joint called 'Leg'"),
        ("0.0333333", "0", "line 18: expected a frame time from 0.0001 to 1 seconds, found '0'"),
        ("3 Zrotation", "2 Zrotation", "JOINT, End Site or }, found 'Yrotation'"),
        ("3 Zrotation", "4 Zrotation", "line 10: expected 4 channel names of joint 'Leg'"),
        ("MOTION", "ROOT More", "line 16: a second ROOT"),
        (SMALL[140:], "", "found the end of the file"),
    ],
)
def test_a_fault_is_told_with_its_line(tmp_path, old, new, message):
    with pytest.raises(DataError) as caught:
        read(tmp_path, SMALL.replace(old, new))
    assert message in str(caught.value)


def test_a_file_that_unpacks_to_more_than_the_limit_is_refused(tmp_path):
    path = tmp_path / "bomb.bvh.gz"
    path.write_bytes(gzip.compress(bytes(2_000_000)))
    with pytest.raises(DataError, match="unpacks to more than 1000000 bytes"):
        read_bvh(path, limit=1_000_000)


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.bvh"):
        with pytest.raises(DataError, match=str(path)):
            read_bvh(path)


def error_line(path):
    try:
        read_bvh(path)
    except DataError as error:
        return str(error)
    return "read"


def check_errors(tmp_path, count, seed):
    for what, data in hostile(count, seed):
        path = tmp_path / "hostile.bvh"
        path.write_bytes(data)
        began = time.perf_counter()
        line = error_line(path)
        assert time.perf_counter() - began < 5, what
        assert line.startswith(f"{path}: "), what
        assert line.isprintable(), what
        assert len(line) < 400 + len(str(path)), what


def test_fifty_hostile_files_are_refused_in_one_line_each(tmp_path):
    check_errors(tmp_path, 50, seed=1)


@pytest.mark.slow
def test_two_hundred_more_hostile_files_are_refused_in_one_line_each(tmp_path):
    check_errors(tmp_path, 200, seed=2)


def test_a_file_cut_before_any_of_its_tokens_is_refused(tmp_path):
    path = tmp_path / "cut.bvh"
    starts = [i for i in range(1, len(SMALL)) if SMALL[i - 1].isspace() and not SMALL[i].isspace()]
    for at in starts:
        path.write_text(SMALL[:at])
        with pytest.raises(DataError, match=r"line \d+: "):
            read_bvh(path)
