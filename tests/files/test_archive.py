"""Archives are read whole, or raise one line; no code in them runs."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from gadgets import JOINTS, gadgets, npy, poses, save_objects, zipped
from malformed import damaged, error_line

from pipeline.errors import DataError
from pipeline.files.archive import Npz, check_array, read_npy
from pipeline.files.pickles import read_pickle


def test_dicts_of_arrays_come_back_as_they_were(tmp_path):
    found = Npz(save_objects(tmp_path / "a.npz", poses())).objects("positions_3d")
    np.testing.assert_array_equal(found["S1"]["Walking 1"], JOINTS)
    np.testing.assert_array_equal(found["S1"]["Eating"][1], JOINTS[1:])
    assert found["S1"]["Walking 1"].dtype == np.float32
    assert found["S11"] == {}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["<f4", ">f8", "<i8", "|u1", "|b1", "<U5", "|S3"])
def test_every_protocol_and_byte_order_reads_alike(tmp_path, protocol, kind):
    array = np.asfortranarray(np.array([[1, 0, 3], [0, 5, 6]]).astype(kind))
    value = {"cameras": {("S1", 2): array}, "n": np.float64(2.5), "names": ("a", 3, None, True)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    found = read_pickle(tmp_path / "a.pkl")
    np.testing.assert_array_equal(found["cameras"][("S1", 2)], array)
    assert found["cameras"][("S1", 2)].dtype == array.dtype.newbyteorder("=")
    assert (found["n"], found["names"]) == (2.5, ["a", 3, None, True])


def test_old_and_new_spellings_of_numpy_are_read(tmp_path):
    new = pickle.dumps(JOINTS, protocol=2)
    old = new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != new
    for data in (old, new):
        (tmp_path / "a.pkl").write_bytes(data)
        np.testing.assert_array_equal(read_pickle(tmp_path / "a.pkl"), JOINTS)


def test_an_array_written_by_python_2_is_read(tmp_path):
    raw = b"".join(bytes([b]) for b in np.array([1.5, -2.0], "<f4").tobytes())
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08" + raw + b"tb."
    )
    (tmp_path / "a.pkl").write_bytes(data)
    np.testing.assert_array_equal(read_pickle(tmp_path / "a.pkl"), [1.5, -2.0])


NAMES = sorted(gadgets("x"))


def test_there_are_more_than_twenty_gadgets():
    assert len(NAMES) > 20


@pytest.mark.parametrize("name", NAMES)
def test_no_gadget_runs(tmp_path, name):
    canary = tmp_path / "canary"
    payload = gadgets(canary)[name]
    (tmp_path / "a.pkl").write_bytes(payload)
    zipped(tmp_path / "a.npz", positions_3d=npy(payload))
    for read in (
        lambda: read_pickle(tmp_path / "a.pkl"),
        lambda: Npz(tmp_path / "a.npz").objects("positions_3d"),
    ):
        line = error_line(read)
        assert line is not None
        assert "\n" not in line
    assert not canary.exists()


def test_an_array_of_objects_is_rejected_where_numbers_are_expected(tmp_path):
    archive = Npz(save_objects(tmp_path / "a.npz", poses()))
    with pytest.raises(DataError, match="not one of objects"):
        archive.array("positions_3d")


def test_the_error_names_the_function_in_the_file(tmp_path):
    (tmp_path / "a.pkl").write_bytes(gadgets(tmp_path / "canary")["system"])
    with pytest.raises(
        DataError, match=r"a\.pkl: holds posix\.system, .* rejected, because it may run"
    ):
        read_pickle(tmp_path / "a.pkl")


def test_a_header_that_claims_more_than_there_is_is_rejected():
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    lie = stream.getvalue().replace(b"(3,), }            ", b"(1000000000000,), }", 1)
    with pytest.raises(DataError, match=r"but has 24 bytes|damaged header"):
        read_npy(lie, "a.npz: x")


def test_a_bomb_a_member_twice_and_a_member_outside_are_rejected(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(80 * 2**20))
    with zipfile.ZipFile(tmp_path / "outside.npz", "w") as archive:
        archive.writestr("../x.npy", b"")
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive:
        archive.writestr("x.npy", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", b"2")
    for name, reason in [("bomb", "unpacks to"), ("outside", "no array"), ("twice", "twice")]:
        with pytest.raises(DataError, match=reason):
            Npz(tmp_path / f"{name}.npz")


def test_a_missing_array_lists_those_there_are(tmp_path):
    np.savez(tmp_path / "a.npz", x=JOINTS, y=JOINTS)
    with pytest.raises(DataError, match=r"no array 'z' \(it has x, y\)"):
        Npz(tmp_path / "a.npz").array("z")


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_damaged_archives_give_one_line_or_the_truth(tmp_path, count):
    whole = save_objects(tmp_path / "a.npz", poses()).read_bytes()
    pickled = pickle.dumps(poses())
    lines = []
    for data in damaged(whole, count, seed=count):
        (tmp_path / "b.npz").write_bytes(data)
        lines.append(error_line(lambda: Npz(tmp_path / "b.npz").objects("positions_3d")))
    for data in damaged(pickled, count, seed=count + 1):
        (tmp_path / "b.pkl").write_bytes(data)
        lines.append(error_line(lambda: read_pickle(tmp_path / "b.pkl")))
    assert sum(line is not None for line in lines) > count
    assert not any("\n" in (line or "") for line in lines)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (JOINTS[..., :2], r"has the shape \(2, 4, 2\), not \(n, 4, 3\)"),
        (JOINTS[:0], "has the shape"),
        (JOINTS.astype(str), "array of numbers"),
        ([1, 2], "not list"),
        (
            np.where(JOINTS == 17, np.nan, JOINTS),
            r"1 values are not finite, the first at \(1, 1, 2\)",
        ),
        (np.full((1, 4, 3), 1e300), "12 values are not finite"),
    ],
)
def test_a_wrong_array_is_described(array, reason):
    with pytest.raises(DataError, match=reason):
        check_array(array, (None, 4, 3), "a.npz: S1")
