"""C3D files, read by two programs of other people: ezc3d and c3d."""

import warnings

import numpy as np
import pytest
from random_motions import random_motion

from pipeline.errors import UsageError
from pipeline.export.motion import Motion, PersonMotion
from pipeline.skeleton import H36M17, Skeleton

c3d = pytest.importorskip("c3d")
ezc3d = pytest.importorskip("ezc3d")  # no wheels for Linux on ARM

UP = {None: [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], "y": [[0, 1, 0], [0, 0, 1], [1, 0, 0]]}
"""Rotation from a world frame (x right, y ahead, z up) to the axes of a file, by `up`."""


def read_with_c3d(path):
    """Rate, labels, and x, y, z, residual of each point, (T, J, 4)."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No analog data", UserWarning)
        reader = c3d.Reader(file)
        points = np.stack([points[:, :4] for _, points, _ in reader.read_frames()])
    return reader, points


@pytest.mark.parametrize("up", UP)
def test_two_readers_find_the_positions_of_the_motion(tmp_path, up):
    made = random_motion()
    assert made.save(tmp_path / "m.c3d", up=up) == [tmp_path / "m.c3d"]
    expected = made.people[0].positions @ np.array(UP[up], np.float32).T
    there = np.isfinite(expected).all(-1)
    first = np.moveaxis(ezc3d.c3d(str(tmp_path / "m.c3d"))["data"]["points"], (0, 1, 2), (2, 1, 0))
    np.testing.assert_allclose(first[..., :3], expected, atol=1e-5)  # NaN where missing
    _, second = read_with_c3d(tmp_path / "m.c3d")
    np.testing.assert_allclose(second[there][:, :3], expected[there], atol=1e-5)


def test_row_20_two_readers_find_rate_units_labels_and_scale(tmp_path):
    random_motion().save(tmp_path / "m.c3d")
    file = ezc3d.c3d(str(tmp_path / "m.c3d"))
    point = {name: entry["value"] for name, entry in file["parameters"]["POINT"].items() if
             name != "__METADATA__"}  # fmt: skip
    assert point["LABELS"] == list(H36M17.joints)
    assert (point["UNITS"], point["SCALE"], point["USED"]) == (["m"], [-1], [17])
    assert point["RATE"] == pytest.approx([29.97])
    assert file["header"]["points"]["frame_rate"] == pytest.approx(29.97)
    assert file["header"]["points"]["size"] == 17
    reader, _ = read_with_c3d(tmp_path / "m.c3d")
    assert reader.point_rate == pytest.approx(29.97)
    assert [label.strip() for label in reader.point_labels] == list(H36M17.joints)
    assert reader.get("POINT:UNITS").string_value.strip() == "m"
    assert (reader.point_scale, reader.first_frame, reader.last_frame) == (-1, 1, 6)


def test_row_20_a_missing_point_has_residual_minus_one_and_is_neither_zero_nor_nan(tmp_path):
    made = random_motion()
    made.save(tmp_path / "m.c3d")
    missing = ~np.isfinite(made.people[0].positions).all(-1)
    assert missing.sum() == 2 * 17 + 1
    residuals = ezc3d.c3d(str(tmp_path / "m.c3d"))["data"]["meta_points"]["residuals"][0].T
    np.testing.assert_array_equal(residuals, np.where(missing, -1, 0))
    _, points = read_with_c3d(tmp_path / "m.c3d")
    np.testing.assert_array_equal(points[..., 3], np.where(missing, -1, 0))
    assert np.isfinite(points).all()
    np.testing.assert_array_equal(points[3, :, :3], points[2, :, :3])  # as it was last
    np.testing.assert_array_equal(points[0, 2, :3], points[1, 2, :3])  # as it comes first
    assert np.abs(points[..., :3]).max(-1).min() > 0


def test_there_is_an_analog_group_without_channels(tmp_path):
    random_motion().save(tmp_path / "m.c3d")
    file = ezc3d.c3d(str(tmp_path / "m.c3d"))
    analog = file["parameters"]["ANALOG"]
    assert analog["USED"]["value"] == [0]
    assert analog["LABELS"]["value"] == []
    assert analog["RATE"]["value"] == pytest.approx([29.97])
    assert file["data"]["analogs"].shape[1] == 0
    content = (tmp_path / "m.c3d").read_bytes()
    assert b"ANALOG" in content  # ezc3d would make one up


@pytest.mark.parametrize(("up", "axes"), [(None, ["+X", "+Z"]), ("z", ["+X", "+Z"]),
                                          ("y", ["+X", "+Y"])])  # fmt: skip
def test_the_head_is_up_and_the_file_tells_which_axis_that_is(tmp_path, up, axes):
    still = np.zeros((2, 17, 3), np.float32)
    still[:, H36M17.index("head"), 1] = -0.7  # camera: y down
    parts = (still, still[:, 0] + (0.1, 0.2, 4), still[..., :2], still[..., 0])
    person = PersonMotion("A", *(p.astype(np.float32) for p in parts), np.ones(2, np.uint8), 1.7)
    made = Motion((person,), H36M17, np.arange(2) / 25, 25.0, (8, 8), 9.0, (4, 4))
    made.save(tmp_path / "m.c3d", up=up)
    file = ezc3d.c3d(str(tmp_path / "m.c3d"))
    point = file["parameters"]["POINT"]
    assert [*point["X_SCREEN"]["value"], *point["Y_SCREEN"]["value"]] == axes
    head, pelvis = (file["data"]["points"][:3, H36M17.index(j), 0] for j in ("head", "pelvis"))
    assert head - pelvis == pytest.approx([0, 0.7, 0] if up == "y" else [0, 0, 0.7])
    assert pelvis == pytest.approx([4, -0.2, 0.1] if up == "y" else [4, -0.1, -0.2])


def test_row_21_every_person_gets_a_file_and_uneven_times_become_even(tmp_path):
    made = random_motion(people=2, fps=5 / 0.21, times=np.array([0, 0.04, 0.1, 0.12, 0.16, 0.21]))
    files = made.save(tmp_path / "m.c3d")
    assert [file.name for file in files] == ["m_A.c3d", "m_B.c3d"]
    _, points = read_with_c3d(files[1])
    ends = made.people[1].positions[[0, 1, 2], 5] @ np.array(UP[None], np.float32).T
    assert points[0, 5, :3] == pytest.approx(ends[0])
    share = (0.042 - 0.04) / 0.06  # the new frame 1 lies at 0.042 s
    assert points[1, 5, :3] == pytest.approx(ends[1] * (1 - share) + ends[2] * share, abs=1e-5)


def test_nobody_gives_no_file(tmp_path):
    assert random_motion(people=0).save(tmp_path / "m.c3d") == []
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("frames", [1, 40_000, 70_000])
def test_recordings_of_any_length_are_whole(tmp_path, frames):
    own = Skeleton("own", ("root", "left_a", "right_a"), (-1, 0, 0))
    made = random_motion(frames=frames, skeleton=own, fps=50.0)
    made.save(tmp_path / "m.c3d")
    reader, points = read_with_c3d(tmp_path / "m.c3d")
    assert len(points) == frames
    assert reader.last_frame == frames
    last = made.people[0].positions[-1, 1] @ np.array(UP[None], np.float32).T
    assert points[-1, 1, :3] == pytest.approx(last, abs=1e-5)
    found = ezc3d.c3d(str(tmp_path / "m.c3d"))
    data, parameters = found["data"]["points"], found["parameters"]["POINT"]
    assert data.shape == (4, 3, frames)
    if frames > 65535:
        assert parameters["LONG_FRAMES"]["value"][0] == frames
    assert data[:3, 1, -1] == pytest.approx(last, abs=1e-5)


def test_more_joints_than_the_format_counts_are_an_error(tmp_path):
    names = tuple(f"joint{i}" for i in range(256))
    many = Skeleton("many", names, (-1, *[0] * 255))
    with pytest.raises(UsageError, match=r"m\.c3d: 256 joints"):
        random_motion(skeleton=many).save(tmp_path / "m.c3d")
    assert not any(tmp_path.iterdir())


def test_joints_that_are_never_found_stay_missing(tmp_path):
    made = random_motion()
    made.people[0].joints3d[:, 4] = np.nan
    made.save(tmp_path / "m.c3d")
    _, points = read_with_c3d(tmp_path / "m.c3d")
    assert (points[:, 4, 3] == -1).all()
    assert np.isfinite(points).all()
