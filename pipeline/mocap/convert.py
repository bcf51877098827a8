"""Motion files of other kinds rewritten as plain positions, which `Mocap` reads."""

from __future__ import annotations

from collections.abc import Sequence as Many
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.files.archive import Npz, flatten_objects
from pipeline.files.writing import write_atomically
from pipeline.mocap.amass import BODY22, read_body_model, read_motion, read_regressor, smpl_joints
from pipeline.mocap.asf_amc import read_amc, read_asf
from pipeline.skeleton import H36M17


def convert_amc(asf: Path, amc: Path, out: Path, *, fps: float = 120.0) -> None:
    """Write where the bones of a recording end, metres, y up.

    Args:
        asf: The skeleton.
        amc: The recording; it does not tell its rate.
        out: The npz file that is written.
        fps: Frames per second, Hz; CMU's recordings have 120.

    Raises:
        DataError: If a file is damaged.
    """
    body = read_asf(asf)
    write_positions(out, read_amc(amc, body), body.bones, fps)


def convert_amass(path: Path, body: Path, out: Path, *, regressor: Path | None = None) -> None:
    """Write the joints of a recording of AMASS, metres, z up.

    Args:
        path: The recording.
        body: The body model, `model.npz` of SMPL-H, which its makers give out.
        out: The npz file that is written.
        regressor: Npz file with one array (17, V), surface -> H36M17; none for the model's own
            22 joints and `head_top`, the highest point of its surface at rest.

    Raises:
        DataError: If a file is damaged or they do not fit.
        UsageError: If the regressor is for another number of joints.
    """
    motion, model = read_motion(path), read_body_model(body)
    if regressor is None:
        names = BODY22[: len(model.parents)]
        top = np.zeros((1, len(model.surface)))
        top[0, model.surface[:, 1].argmax()] = 1.0  # SMPL-H rests with y up
        joints = smpl_joints(motion, model)[:, : len(names)]
        joints = np.concatenate([joints, smpl_joints(motion, model, top)], axis=1)
        write_positions(out, joints, [*names, "head_top"], motion.fps)
        return
    matrix = read_regressor(regressor, len(model.surface))
    if len(matrix) != len(H36M17):
        raise UsageError(f"{regressor}: makes {len(matrix)} joints, H36M17 has {len(H36M17)}")
    write_positions(out, smpl_joints(motion, model, matrix), H36M17.joints, motion.fps)


def convert_npz(archive: Path, out: Path) -> None:
    """Write an archive of objects, as VideoPose3D's and P-STMO's are, without any pickle.

    Dicts and lists become members called `positions_3d/S1/Walking 1` and so on; every reader here
    takes the new file for the old one.

    Args:
        archive: The npz file.
        out: The npz file that is written.

    Raises:
        DataError: If the archive is damaged or holds more than plain dicts, lists and arrays.
        UsageError: If both are the same file.
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
    """Write `positions` (T, J, 3), `joints` and `fps` as `pipeline.mocap.Mocap` reads."""
    plain = np.asarray(positions, np.float32)
    names = np.array(list(joints))
    write_atomically(
        path, lambda file: np.savez_compressed(file, positions=plain, joints=names, fps=float(fps))
    )
