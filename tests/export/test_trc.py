"""TRC files, read by pandas."""

import numpy as np
import pandas
import pytest
from random_motions import random_motion

from pipeline.skeleton import H36M17

TO_OPENSIM = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], np.float32)
"""Rotation from a world frame (x right, y ahead, z up) to x ahead, y up, z right."""


def read_trc(path):
    """Header, names of the markers, and the table of a file."""
    header = pandas.read_csv(path, sep="\t", skiprows=1, nrows=1)
    labels = pandas.read_csv(path, sep="\t", skiprows=3, nrows=1, header=None).iloc[0]
    table = pandas.read_csv(path, sep="\t", skiprows=5, header=None, skip_blank_lines=True)
    return header.iloc[0], labels.dropna().tolist()[2:], table


def test_pandas_reads_back_units_rate_markers_times_and_positions(tmp_path):
    motion = random_motion(fps=25.5)
    motion.save(tmp_path / "m.trc")
    header, markers, table = read_trc(tmp_path / "m.trc")
    assert (header["Units"], header["NumMarkers"], header["NumFrames"]) == ("m", 17, 6)
    assert header["DataRate"] == header["CameraRate"] == 25.5
    assert markers == list(H36M17.joints)
    assert table.shape == (6, 2 + 3 * 17)
    assert table[0].tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(table[1], motion.times, atol=1e-6)
    read = table.iloc[:, 2:].to_numpy(float).reshape(6, 17, 3)
    np.testing.assert_allclose(read, motion.people[0].positions @ TO_OPENSIM.T, atol=1e-5)
    assert np.isnan(read[3:5]).all()


@pytest.mark.parametrize("joint", [0, 16])
def test_row_20_missing_markers_are_blanks_and_never_the_text_nan(tmp_path, joint):
    motion = random_motion(people=2)
    for person in motion.people:
        person.joints3d[5, joint] = np.nan
    for file in motion.save(tmp_path / "m.trc"):
        text = file.read_text()
        assert "nan" not in text.lower()
        last = text.split("\n")[11].split("\t")
        assert last[2 + 3 * joint : 5 + 3 * joint] == [""] * 3
        assert len(last) == 2 + 3 * 17
        assert sum(cell == "" for cell in last) == 3
