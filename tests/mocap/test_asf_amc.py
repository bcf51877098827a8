"""Acclaim files: forward kinematics by hand, and damage."""

import numpy as np
import pytest
from fabricate import AMC, ASF
from malformed import damaged, error_line
from scipy.spatial.transform import Rotation

from pipeline.errors import DataError, UsageError
from pipeline.mocap.asf_amc import axis_rotation, read_amc, read_amc_rate, read_asf
from pipeline.mocap.convert import convert_amc


@pytest.fixture
def files(tmp_path):
    (tmp_path / "arm.asf").write_text(ASF)
    (tmp_path / "arm.amc").write_text(AMC)
    return tmp_path / "arm.asf", tmp_path / "arm.amc"


def test_bones_end_where_a_pencil_puts_them(files):
    ends = read_amc(files[1], read_asf(files[0])) * 0.45 / 0.0254
    np.testing.assert_allclose(ends[0], [[1, 2, 3], [3, 2, 3], [4.5, 2, 3], [4.5, 2.5, 3]])
    # the root turned by 90 degrees about z: x becomes y; the elbow by 90 more: the forearm is
    # along -x
    expected = [[0, 0, 0], [0, 2, 0], [-1.5, 2, 0], [-1.5, 1.5, 0]]
    np.testing.assert_allclose(ends[1], expected, atol=1e-12)
    # upper's own x axis is the world's y (its frame is turned about z): x becomes -z
    expected = [[0, 0, 0], [0, 0, -2], [0, 0, -3.5], [0, 0.5, -3.5]]
    np.testing.assert_allclose(ends[2], expected, atol=1e-12)


def test_turns_are_about_x_then_y_then_z():
    angles = np.array([[10.0, -70, 33], [200, 5, -90]])
    expected = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    np.testing.assert_allclose(axis_rotation(angles), expected, atol=1e-12)


def test_radians_are_read_for_the_axes_and_the_angles_alike(files):
    expected = read_amc(files[1], read_asf(files[0]))
    asf = ASF.replace("angle deg", "angle radians").replace("axis 0 0 90", f"axis 0 0 {np.pi / 2}")
    lines = []
    for words in (line.split() for line in AMC.splitlines()):
        if words and words[0] == "root":
            words[4:] = [repr(float(np.radians(float(word)))) for word in words[4:]]
        elif words and words[0] in ("upper", "lower"):
            words[1:] = [repr(float(np.radians(float(word)))) for word in words[1:]]
        lines.append(" ".join(words))
    files[0].write_text(asf)
    files[1].write_text("\n".join(lines).replace(":DEGREES", ":RADIANS") + "\n")
    np.testing.assert_allclose(read_amc(files[1], read_asf(files[0])), expected, atol=1e-9)


def test_the_header_of_the_motion_tells_its_unit_and_its_rate(files, tmp_path):
    expected = read_amc(files[1], read_asf(files[0]))
    assert read_amc_rate(files[1]) is None
    asf = ASF.replace("angle deg", "angle rad").replace("axis 0 0 90", f"axis 0 0 {np.pi / 2}")
    files[0].write_text(asf)
    files[1].write_text(AMC.replace(":DEGREES", ":DEGREES\n:SAMPLES-PER-SECOND 60"))
    np.testing.assert_allclose(read_amc(files[1], read_asf(files[0])), expected, atol=1e-9)
    convert_amc(*files, tmp_path / "out.npz")
    assert np.load(tmp_path / "out.npz")["fps"] == 60
    with pytest.raises(UsageError, match=r"fps is 50, and .* has 60 samples per second"):
        convert_amc(*files, tmp_path / "out.npz", fps=50.0)
    files[1].write_text(AMC)
    with pytest.raises(UsageError, match="fps is 0; give a rate from"):
        convert_amc(*files, tmp_path / "out.npz", fps=0.0)
    files[1].write_text(AMC.replace(":DEGREES", ":SAMPLES-PER-SECOND 0"))
    with pytest.raises(DataError, match=r"line \d+: 0 samples per second"):
        read_amc_rate(files[1])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("angle deg", "angle grad", "angle is 'grad'"),
        ("axis XYZ\n", "axis ZYX\n", "root: its axis is in the order 'ZYX'"),
    ],
)
def test_an_unknown_unit_or_order_is_an_error(files, old, new, words):
    files[0].write_text(ASF.replace(old, new, 1))
    with pytest.raises(DataError, match=words):
        read_asf(files[0])


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("lower 90", "lower 90 4", r"line 11: 1 finite numbers are expected, found 2"),
        ("lower 90\n", "", r"line 11: the frame before has no lower"),
        ("upper 90 0 0", "wing 90 0 0", r"line 14: 'wing' is no bone"),
        ("lower 90", "lower nan", r"line 11: 1 finite"),
    ],
)
def test_a_fault_names_its_line(files, old, new, line):
    files[1].write_text(AMC.replace(old, new, 1))
    with pytest.raises(DataError, match=line):
        read_amc(files[1], read_asf(files[0]))


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_damaged_files_give_one_line_or_are_read(files, count):
    lines = []
    for path, text in zip(files, (ASF, AMC), strict=True):
        for data in damaged(text.encode(), count, seed=count):
            path.write_bytes(data)
            lines.append(error_line(lambda: read_amc(files[1], read_asf(files[0]))))
        path.write_text(text)
    assert sum(line is not None for line in lines) > count
    assert not any("\n" in (line or "") for line in lines)
