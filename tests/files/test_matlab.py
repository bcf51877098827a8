"""MATLAB 5 files: the same numbers as SciPy reads, and damage that does not crash."""

import numpy as np
import pytest
import scipy.io
from malformed import damaged, error_line

from pipeline.files.matlab import read_matlab


@pytest.mark.parametrize("packed", [False, True])
def test_numbers_are_those_of_scipy(tmp_path, packed):
    rng = np.random.default_rng(0)
    content = {
        "a": rng.normal(size=(3, 2, 5)),
        "long_name_of_an_array": rng.integers(0, 200, (4, 3)).astype(np.uint8),
        "f": np.float32([[1.5, -2]]),
        "flags": np.array([[True, False]]),
        "text": "left out",
        "cell": np.array(["x", "yy"], object),
    }
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, content, do_compression=packed)
    found = read_matlab(path)
    assert sorted(found) == ["a", "f", "flags", "long_name_of_an_array"]
    for name, array in found.items():
        np.testing.assert_array_equal(array, scipy.io.loadmat(path)[name])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_damaged_files_give_one_line_or_are_read(tmp_path, packed, count):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"a": np.eye(4), "b": np.ones(3)}, do_compression=packed)
    lines = []
    for data in damaged(path.read_bytes(), count, seed=count):
        path.write_bytes(data)
        lines.append(error_line(lambda: read_matlab(path)))
    assert sum(line is not None for line in lines) > 0.4 * count
    assert all("a.mat" in line and "\n" not in line for line in lines if line)
