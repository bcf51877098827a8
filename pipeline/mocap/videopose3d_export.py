"""Export of motion capture to the two npz files that VideoPose3D and its descendants read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.camera import project, world_to_camera
from pipeline.errors import UsageError
from pipeline.files.writing import write_atomically
from pipeline.mocap.motion_capture import Mocap
from pipeline.skeleton import H36M17
from pipeline.sources import Split, true_runs

LAYOUT = (
    *(0, 1, 2, 3, 3, 3, 4, 5, 6, 6, 6, 0, 7, 8, 9, 10),
    *(8, 11, 12, 13, 13, 13, 13, 13, 8, 14, 15, 16, 16, 16, 16, 16),
)
"""Index of the H36M17 joint for each of Human3.6M's 32; readers keep 17 and drop the copies."""
SHORTEST = 10
"""Runs of fewer good frames are left out."""


def export_videopose3d(source: Mocap, folder: Path) -> list[Path]:
    """Write `data_3d_h36m.npz` and `data_2d_h36m_gt.npz`.

    Subjects of train become S1 S5 S6 S7 S8 and those of test S9 S11, see
    `Mocap.human36m_subjects`; val is left out, because the format has no validation split. An
    action is called `<kind> <recording>`, so that readers that group by the text before the first
    space group by kind; where bad frames divide a recording, the number of the run follows from the
    second run on. World positions are metres, (T, 32, 3), float32; 2D is projected from them
    through the lens with distortion, pixels, (T, 17, 2), float32, in the order of the cameras.

    Args:
        source: Motion capture with `cameras="human36m"`, H36M17 and 50 Hz.
        folder: Output folder, created if missing; its files of the same names are replaced.

    Returns:
        Paths of the two files.

    Raises:
        UsageError: If the source has other cameras, joints or another frame rate.
        StorageError: If a file cannot be written.

    Source: VideoPose3D (Pavllo et al. 2019), its data format.
    """
    if source.cameras != "human36m" or source.skeleton is not H36M17 or source.fps != 50:
        raise UsageError(
            f"{folder}: readers of this format expect Human3.6M's cameras, 17 joints and 50 Hz; "
            "export a source with cameras: human36m, an H36M17 mapping and fps: 50"
        )
    positions: dict[str, dict[str, NDArray[np.float32]]] = {}
    pixels: dict[str, dict[str, list[NDArray[np.float32]]]] = {}
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        subjects, sequences = source.human36m_subjects(split), source.sequences(split)
        for i, recording in enumerate(source.recordings(split)):
            views = sequences[4 * i : 4 * i + 4]
            subject, joints3d = subjects[recording.subject], views[0].joints3d
            if joints3d is None:
                raise AssertionError("motion capture without joints")
            action = f"{recording.kind.replace(' ', '_')} {recording.name}"
            for n, run in enumerate(valid_segments(views[0].valid_frames)):
                name = action if n == 0 else f"{action} {n + 1}"
                clip = joints3d[run]
                positions.setdefault(subject, {})[name] = clip[:, LAYOUT]
                pixels.setdefault(subject, {})[name] = [
                    project(world_to_camera(clip, view.camera), view.camera).astype(np.float32)
                    for view in views
                ]
    metadata = {
        "layout_name": "h36m",
        "num_joints": len(H36M17),
        "keypoints_symmetry": [list(H36M17.left), list(H36M17.right)],
    }
    order = sorted(positions, key=lambda subject: int(subject[1:]))
    positions = {subject: positions[subject] for subject in order}
    pixels = {subject: pixels[subject] for subject in order}
    return [
        _write_archive(folder / "data_3d_h36m.npz", positions_3d=positions),
        _write_archive(folder / "data_2d_h36m_gt.npz", positions_2d=pixels, metadata=metadata),
    ]


def valid_segments(valid: NDArray[np.bool_]) -> list[slice]:
    """Ranges of at least `SHORTEST` consecutive good frames.

    >>> valid_segments(np.array([1] * 12 + [0] + [1] * 3 + [0] * 2 + [1] * 10, bool))
    [slice(0, 12, None), slice(18, 28, None)]
    """
    return [run for run in true_runs(valid) if run.stop - run.start >= SHORTEST]


def _write_archive(file: Path, **members: Any) -> Path:
    """Write an npz archive atomically; readers of the format expect dicts as object arrays."""
    content = io.BytesIO()
    arrays = {name: np.array(member, dtype=object) for name, member in members.items()}
    np.savez_compressed(content, allow_pickle=True, **arrays)
    write_atomically(file, lambda part: part.write(content.getbuffer()))
    return file
