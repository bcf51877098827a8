"""Small files of every format that would take much memory or time are rejected by one line."""

import resource
import time

import numpy as np
import pytest
from costly import FILES, line_of, shared

from pipeline.files.pickles import read_pickle


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_takes_more_than_its_size_is_rejected(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FILES[name]())
    memory, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    line = line_of(path)
    assert line is not None
    assert str(path) in line
    assert "\n" not in line
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 700 * 1024  # KiB
    assert time.process_time() - begun < 15


def test_an_array_that_a_few_names_share_is_read(tmp_path):
    (tmp_path / "a.pkl").write_bytes(shared(np.arange(6.0), 5, 3))
    found = read_pickle(tmp_path / "a.pkl")
    np.testing.assert_array_equal(found[2][4], np.arange(6.0))


def test_a_character_that_yaml_does_not_allow_is_one_line(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"a: 1\x01")
    assert "\n" not in line_of(tmp_path / "a.yaml")
