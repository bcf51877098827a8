"""Code that was hidden in the archives of a reader does not run."""

import os
import pickle

import fabricate
import numpy as np
import pytest
from malformed import error_line

from pipeline.datasets.human36m import Human36M
from pipeline.datasets.human36m_images import Human36MImages
from pipeline.datasets.motionbert import MotionBertClips
from pipeline.datasets.mpi_inf_3dhp import MpiInf3dhp, MpiInf3dhpImages
from pipeline.datasets.videopose3d import read_videopose3d
from pipeline.files.archive import Npz
from pipeline.files.pickles import read_pickle
from pipeline.mocap.convert import convert_npz

FOUND = "data_2d_h36m_cpn_ft_h36m_dbb.npz"
READERS = {
    "motion": (
        fabricate.human36m,
        "data_3d_h36m.npz:positions_3d",
        lambda root: Human36M(root).sequences("train"),
    ),
    "detections": (
        fabricate.human36m,
        f"{FOUND}:positions_2d",
        lambda root: Human36M(root).detections("cpn_ft_h36m_dbb"),
    ),
    "joints of detections": (
        fabricate.human36m,
        f"{FOUND}:metadata",
        lambda root: Human36M(root).detections("cpn_ft_h36m_dbb"),
    ),
    "detections elsewhere": (
        fabricate.human36m,
        f"{FOUND}:positions_2d",
        lambda root: read_videopose3d(root / FOUND),
    ),
    "archive to be converted": (
        fabricate.human36m,
        "data_3d_h36m.npz:positions_3d",
        lambda root: convert_npz(root / "data_3d_h36m.npz", root / "new.npz"),
    ),
    "P-STMO, train": (
        fabricate.p_stmo,
        "data_train_3dhp.npz:data",
        lambda root: MpiInf3dhp(root).sequences("train"),
    ),
    "P-STMO, test": (
        fabricate.p_stmo,
        "data_test_3dhp.npz:data",
        lambda root: MpiInf3dhp(root).sequences("test"),
    ),
    "cameras of Human3.6M": (
        fabricate.human36m_mmpose,
        "annotation_body3d/cameras.pkl",
        lambda root: Human36MImages(root).sequences("test"),
    ),
    "names of images": (
        fabricate.human36m_mmpose,
        "annotation_body3d/fps50/h36m_test.npz:imgname",
        lambda root: Human36MImages(root).sequences("test"),
    ),
    "cameras of MPI-INF-3DHP": (
        fabricate.mpi_inf_3dhp_mmpose,
        "annotations/cameras_test.pkl",
        lambda root: MpiInf3dhpImages(root).sequences("test"),
    ),
    "clips": (
        fabricate.motionbert,
        "test/00000000.pkl",
        lambda root: MotionBertClips(root).sequences("test"),
    ),
}
"""Function that makes an archive, its file and member with objects, function that reads it."""


class Gadget:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def with_gadget(value, gadget):
    """Nested dicts and lists with a gadget in the place of their first array."""
    if isinstance(value, dict):
        return {
            key: with_gadget(x, gadget) if i == 0 else x for i, (key, x) in enumerate(value.items())
        }
    if isinstance(value, list):
        return [with_gadget(value[0], gadget), *value[1:]]
    return gadget


def insert_gadget(path, member, gadget):
    """Write a gadget into a file, and leave the rest as it was."""
    if not member:
        path.write_bytes(pickle.dumps(with_gadget(read_pickle(path), gadget)))
        return
    archive = Npz(path)
    content = {name: archive.objects(name) for name in archive.names}
    content[member] = with_gadget(content[member], gadget)
    np.savez(path, **{name: fabricate.boxed(value) for name, value in content.items()})


@pytest.mark.parametrize("reader", READERS)
def test_code_in_an_archive_does_not_run(tmp_path, monkeypatch, reader):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    make, place, read = READERS[reader]
    root, (file, _, member) = make(tmp_path / "set"), place.partition(":")
    read(root)
    whole, canary = (root / file).read_bytes(), tmp_path / "canary"
    for call, *arguments in (
        (os.system, f"touch {canary}"),
        (os.mkdir, str(canary)),
        (open, str(canary), "w"),
        (np.memmap, str(canary), "f4", "w+", 0, (3,)),
        (eval, f"open({str(canary)!r}, 'w')"),
    ):
        (root / file).write_bytes(whole)
        insert_gadget(root / file, member, Gadget(call, *arguments))
        line = error_line(lambda: read(root))
        assert line is not None
        assert file in line
        assert "\n" not in line
        assert not canary.exists()
