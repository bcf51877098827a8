"""Recordings: the table of splits, digests, and missing or damaged files of a folder."""

import gzip

import pytest

from pipeline.errors import DataError
from pipeline.mocap.recordings import (
    SHIPPED,
    check_cmu,
    cmu_digests,
    find_recordings,
    get_cmu,
    read_splits,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))


def test_the_shipped_facts_are_those_of_the_shared_data(shared):
    for name in ("splits.csv", "reference_joints.csv"):
        assert (SHIPPED / name).read_bytes() == (shared / "data" / "cmu_mocap" / name).read_bytes()
    lines = (shared / "data" / "cmu_mocap" / "SHA256SUMS").read_text().splitlines()
    sums = {name.split("/")[-1]: digest for digest, name in map(str.split, lines) if "bvh/" in name}
    assert sums.items() <= cmu_digests().items()


def test_the_shipped_table_splits_by_subject():
    rows = read_splits("cmu")
    assert len(rows) == 142
    subjects = {s: {r.subject for r in rows if r.split == s} for s in ("train", "val", "test")}
    assert subjects["test"] == {"08", "10", "11", "14"}
    assert not subjects["test"] & subjects["train"]
    walk = next(r for r in rows if r.name == "02_01")
    assert (walk.kind, walk.group, walk.bad) == ("walk", "seen", ((324, 336),))
    assert walk.floor == pytest.approx(0.0669)


def write(tmp_path, *lines, header="sequence,subject,split,kind_in_train,floor_mm,bad_ranges"):
    path = tmp_path / "splits.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_a_table_needs_only_sequence_subject_and_split(tmp_path):
    (row,) = read_splits(write(tmp_path, "a,Ann,test", header="sequence,subject,split"))
    assert (row.kind, row.group, row.bad, row.floor) == ("a", "", (), None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,Ann,tset,,,", "line 2: split is 'tset', not one of train, val, test, exclude"),
        ("a,,test,,,", "line 2: subject is empty"),
        ("a,Ann,test,,,7-3", "line 2: bad range '7-3'; write first-last"),
        ("a,Ann,test,,,7", "line 2: bad range '7'"),
        ("a,Ann,test,maybe,,", "kind_in_train is 'maybe', not yes or no"),
        ("a,Ann,test,,nan,", "floor_mm is 'nan'"),
        ("a,Ann,test,,,,9", "line 2: has another number of columns"),
        ("a,Ann", "line 2: has another number of columns"),
        ("a,Ann,test,,,\na,Bob,val,,,", "names a twice"),
    ],
)
def test_a_fault_in_a_table_is_told_with_its_line(tmp_path, line, message):
    path = write(tmp_path, line)
    with pytest.raises(DataError) as caught:
        read_splits(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_table_without_a_needed_column_or_line_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no column split"):
        read_splits(write(tmp_path, "a,b", header="sequence,subject"))
    with pytest.raises(DataError, match="names no sequence"):
        read_splits(write(tmp_path))


def test_recordings_are_found_at_any_depth_by_name(tmp_path):
    for name in ("a/b/x.bvh", "y.bvh.gz", "z.npz", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_recordings(tmp_path)
    assert {
        name: [str(p.relative_to(tmp_path)) for p in paths] for name, paths in found.items()
    } == {
        "x": ["a/b/x.bvh"],
        "y": ["y.bvh.gz"],
        "z": ["z.npz"],
    }


def test_the_whole_set_is_recognised(shared):
    check = check_cmu(shared / "data" / "cmu_mocap")
    assert check.complete
    assert len(check.intact) == 142
    assert "every digest right" in get_cmu(shared / "data" / "cmu_mocap")


def test_missing_recordings_and_the_next_step_are_reported_with_credit(tmp_path, shared):
    (tmp_path / "08_01.bvh.gz").symlink_to(shared / "data" / "cmu_mocap/bvh/08/08_01.bvh.gz")
    text = get_cmu(tmp_path)
    assert "1 of 142 recordings; 128 lack: 01_01, 02_01" in text
    assert "mocap.cs.cmu.edu" in text
    assert "EIA-0196217" in text
    assert "Without a network" in text


def test_a_damaged_recording_is_named(tmp_path):
    (tmp_path / "08_01.bvh").write_text("HIERARCHY\n")
    with pytest.raises(
        DataError, match=r"1 of the recordings are not the released ones .*08_01.bvh"
    ):
        get_cmu(tmp_path)


def test_the_unpacked_text_counts_as_well(tmp_path, shared):
    packed = (shared / "data" / "cmu_mocap/bvh/09/09_03.bvh.gz").read_bytes()
    (tmp_path / "09_03.bvh").write_bytes(gzip.decompress(packed))
    assert check_cmu(tmp_path).intact == ("09_03",)
