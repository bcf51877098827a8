"""Conversion of other motion files to npz files with positions, which `Mocap` reads."""

from __future__ import annotations

from collections.abc import Sequence as Many
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.files.archive import Npz, flatten_objects
from pipeline.files.writing import write_atomically
from pipeline.mocap.amass import (
    BODY22,
    read_body_model,
    read_motion,
    read_regressor,
    require_same_model,
    smpl_joints,
)
from pipeline.mocap.asf_amc import read_amc, read_amc_rate, read_asf
from pipeline.mocap.body_faults import require_human_speed
from pipeline.mocap.bvh import FASTEST
from pipeline.mocap.mapping import SLOWEST_MOTION
from pipeline.skeleton import H36M17

CMU_RATE = 120.0
"""Frame rate of CMU's recordings, whose AMC files do not have it, Hz."""


def convert_amc(asf: Path, amc: Path, out: Path, *, fps: float | None = None) -> None:
    """Convert an Acclaim recording to the positions of its bones' ends, metres, y up.

    Args:
        asf: The ASF file, which holds the skeleton.
        amc: The AMC file, which holds the motion.
        out: Output npz file.
        fps: Frame rate of the recording, Hz; by default that of the AMC file, or `CMU_RATE`.

    Raises:
        DataError: If a file is damaged, or the joints are faster than those of people.
        UsageError: If the frame rate is too low or too high, or not that of the file.
    """
    body = read_asf(asf)
    rate = read_amc_rate(amc)
    if fps is not None and rate is not None and fps != rate:
        raise UsageError(f"fps is {fps:g}, and {amc} has {rate:g} samples per second; leave it out")
    if fps is None:
        fps = CMU_RATE if rate is None else rate
    if not SLOWEST_MOTION <= fps <= FASTEST:
        raise UsageError(f"fps is {fps:g}; give a rate from {SLOWEST_MOTION:g} to {FASTEST:g} Hz")
    joints = read_amc(amc, body)
    require_human_speed(joints, fps, str(amc))
    write_positions(out, joints, body.bones, fps)


def convert_amass(
    path: Path,
    body: Path,
    out: Path,
    *,
    regressor: Path | None = None,
    fps: float | None = None,
) -> None:
    """Convert an AMASS recording to the positions of its joints, metres, z up.

    Args:
        path: The npz file of the recording.
        body: The body model file, `model.npz` of SMPL-H as published.
        out: Output npz file.
        regressor: Npz file with one array (17, V), a matrix from surface points to H36M17. By
            default the joints are the 22 of SMPL-H without hands and `head_top`, the highest point
            of the surface at rest.
        fps: Frame rate, Hz, for a file that has none, or two that differ.

    Raises:
        DataError: If a file is damaged, the files do not belong together, or the joints are faster
            than those of people.
        UsageError: If the regressor has another number of joints than H36M17.
    """
    motion, model = read_motion(path, fps), read_body_model(body)
    require_same_model(motion, model, path)
    if regressor is None:
        names = BODY22[: len(model.parents)]
        top = np.zeros((1, len(model.surface)))
        top[0, model.surface[:, 1].argmax()] = 1.0  # the model at rest has y up
        joints = smpl_joints(motion, model)[:, : len(names)]
        joints = np.concatenate([joints, smpl_joints(motion, model, top)], axis=1)
        require_human_speed(joints, motion.fps, str(path))
        write_positions(out, joints, [*names, "head_top"], motion.fps)
        return
    matrix = read_regressor(regressor, len(model.surface))
    if len(matrix) != len(H36M17):
        raise UsageError(f"{regressor}: makes {len(matrix)} joints, H36M17 has {len(H36M17)}")
    joints = smpl_joints(motion, model, matrix)
    require_human_speed(joints, motion.fps, str(path))
    write_positions(out, joints, H36M17.joints, motion.fps)


def convert_npz(archive: Path, out: Path) -> None:
    """Rewrite an npz file of pickled objects, as of VideoPose3D and P-STMO, without any pickle.

    Dicts and lists become members with names like `positions_3d/S1/Walking 1`. All readers of
    Heatlift accept the new file in place of the old one.

    Args:
        archive: The npz file to convert.
        out: Output npz file.

    Raises:
        DataError: If the archive is damaged or has other objects than dicts, lists and arrays.
        UsageError: If both paths are the same file.
    """
    if out.resolve() == archive.resolve():
        raise UsageError(f"{out}: is the archive itself; inputs are never changed, name another")
    content = Npz(archive)
    plain: dict[str, NDArray] = {}
    for name in content.names:
        plain |= flatten_objects(content.objects(name), name, str(archive))
    write_atomically(out, lambda file: np.savez_compressed(file, allow_pickle=False, **plain))


def write_positions(
    path: Path, positions: NDArray[np.floating], joints: Many[str], fps: float
) -> None:
    """Write the npz file with `positions` (T, J, 3), `joints` and `fps` that `Mocap` reads."""
    plain = np.asarray(positions, np.float32)
    names = np.array(list(joints))
    write_atomically(
        path, lambda file: np.savez_compressed(file, positions=plain, joints=names, fps=float(fps))
    )
