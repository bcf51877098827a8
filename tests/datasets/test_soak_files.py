"""Thousands of hostile and damaged data files, for `make soak`."""

from __future__ import annotations

import copy
import gzip
import pickle
import resource
import zipfile

import fabricate
import numpy as np
import pytest
import scipy.io
from gadgets import gadgets, npy, poses, save_objects, zipped
from malformed import _versions, damaged
from soak import SEED
from stick_figures import _DAMAGE

from pipeline.datasets.coco_format import read_people
from pipeline.datasets.photos import Photographs
from pipeline.errors import DataError
from pipeline.files.archive import Npz, read_npy
from pipeline.files.images import read_image
from pipeline.files.matlab import read_matlab
from pipeline.files.pickles import read_pickle
from pipeline.mocap.bvh import read_bvh

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def read_or_line(read):
    """Result of a reader, or its line of error, or the exception that it must not raise."""
    try:
        return read(), None, None
    except DataError as error:
        line = str(error)
        return None, line, line if "\n" in line else None
    except Exception as error:
        return None, None, repr(error)


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("reader", ["pickle", "npz"])
def test_gadgets(reader, tmp_path, soak):
    names = sorted(gadgets("x"))
    row = soak("pickle")
    for number in row.times(2 * len(names)):
        canary = tmp_path / f"canary{number}"
        name = names[number % len(names)]
        payload = gadgets(canary)[name]
        (tmp_path / "a.pkl").write_bytes(payload)
        zipped(tmp_path / "a.npz", positions_3d=npy(payload))
        before = memory()
        _, line, bad = read_or_line(
            {
                "pickle": lambda: read_pickle(tmp_path / "a.pkl"),
                "npz": lambda: Npz(tmp_path / "a.npz").objects("positions_3d"),
            }[reader]
        )
        more = memory() - before > 2**20
        row.look(name, canaries=canary.exists(), other=bad or not line or more)


def test_bombs(tmp_path, soak):
    row = soak("bomb")
    for number in row.times(40):
        before = memory()
        if number % 2:
            with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("x.npy", bytes((10 + 5 * number) * 2**20))
            _, line, bad = read_or_line(lambda: Npz(tmp_path / "a.npz").array("x"))
        else:
            whole = npy(b"", f"({10 ** (6 + number % 12)}, 3)").replace(b"'|O'", b"'<f8'")
            _, line, bad = read_or_line(lambda data=whole: read_npy(data, "a.npz: x"))
        row.look(number, other=bad or not line or memory() - before > 2**20)


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other)


@pytest.mark.parametrize("part", range(4))
def test_damaged_archives(part, tmp_path, soak):
    path = save_objects(tmp_path / "a.npz", poses())
    whole = path.read_bytes()
    expected = Npz(path).objects("positions_3d")
    row = soak("npz")
    versions = damaged(whole, 2500, seed=SEED + part)
    for _, data in zip(row.times(2500), versions, strict=False):
        path.write_bytes(data)
        got, line, bad = read_or_line(lambda: Npz(path).objects("positions_3d"))
        row.look(wrong=not line and not bad and not same(got, expected), other=bad)


@pytest.mark.parametrize("part", range(4))
def test_damaged_pickles(part, tmp_path, soak):
    path = tmp_path / "a.pkl"
    row = soak("npz")
    versions = damaged(pickle.dumps(poses()), 2500, seed=SEED + part)
    for _, data in zip(row.times(2500), versions, strict=False):
        path.write_bytes(data)
        before = memory()
        _, _, bad = read_or_line(lambda: read_pickle(path))
        row.look(other=bad or memory() - before > 2**20)


@pytest.mark.parametrize("part", range(4))
def test_malformed_json(part, tmp_path, soak):
    path = tmp_path / "x.json"
    document = fabricate.coco_document(2)
    row = soak("json")
    versions = _versions(copy.deepcopy(document), np.random.default_rng(SEED + part), 5000)
    for _, text in zip(row.times(5000), versions, strict=False):
        path.write_bytes(text)
        _, _, bad = read_or_line(lambda: read_people(path))
        row.look(other=bad and (bad, text[:100]))


CHEAP = [kind for kind in _DAMAGE if kind not in ("bomb", "width", "depth", "long line")]
"""Kinds that take milliseconds; the others are tried a few times each."""


@pytest.mark.parametrize("kind", _DAMAGE)
def test_malformed_bvh(kind, tmp_path, soak):
    path = tmp_path / "a.bvh"
    rng = np.random.default_rng([SEED, list(_DAMAGE).index(kind)])
    row = soak("bvh")
    for number in row.times(1800 if kind in CHEAP else 50):
        text = _DAMAGE[kind](rng)
        data = text if isinstance(text, bytes) else text.encode("latin-1")
        path.write_bytes(gzip.compress(data) if number % 7 == 3 and kind in CHEAP else data)
        before = memory()
        _, line, bad = read_or_line(lambda: read_bvh(path))
        row.look(kind, wrong=not line and not bad, other=bad or memory() - before > 2**20)


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_matlab(packed, tmp_path, soak):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"a": np.eye(4), "b": np.ones(3)}, do_compression=packed)
    versions = damaged(path.read_bytes(), 2500, seed=SEED)
    row = soak("mat")
    for _, data in zip(row.times(2500), versions, strict=False):
        path.write_bytes(data)
        before = memory()
        _, _, bad = read_or_line(lambda: read_matlab(path))
        row.look(other=bad or memory() - before > 2**20)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_damaged_images(suffix, tmp_path, soak):
    path = fabricate.photograph(tmp_path / f"a.{suffix}")
    whole = path.read_bytes()
    pixels = read_image(path)
    row = soak("image")
    for number, data in zip(row.times(2500), damaged(whole, 2500, seed=SEED), strict=False):
        place = tmp_path / f"{number}.{suffix}"
        place.write_bytes(data)
        found, _, bad = read_or_line(lambda place=place: read_image(place))
        other = found is not None and not np.array_equal(found, pixels)
        cut = number % 2 == 1  # a file with flipped bits has another digest in its key
        digest = (
            Photographs([place]).fingerprint(0) == Photographs([path]).fingerprint(0)
            if other and not cut
            else False
        )
        row.look(number, wrong=other and (cut or digest), other=bad)
        place.unlink()
