"""Predictions in index.html: a table of their files, and drawings of the first ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

from pipeline.dashboard import canvas, skeletons
from pipeline.dashboard.show import (
    MAX_VIDEO_FRAMES,
    log_image,
    log_table,
    log_video,
    warn_on_failure,
)
from pipeline.files.archive import Npz
from pipeline.skeleton import Skeleton
from pipeline.training.callbacks import written_predictions

_SHOWN = 3
"""Number of files that are drawn."""


@warn_on_failure
def log_prediction_panels(trainer: pl.Trainer, folder: Path) -> None:
    """Show predictions: the table `predictions`, `predict/poses_<n>` and `predict/clip_1`.

    Args:
        trainer: Trainer; its `default_root_dir` is the folder of the prediction.
        folder: Folder of the npz files; see `pipeline.training.callbacks.PredictionWriter`.
    """
    rows = []
    for number, path in enumerate(written_predictions(folder), start=1):
        file = Npz(path)
        arrays = {name: file.array(name) for name in file.names}
        score = float(np.mean(arrays["score"])) if "score" in arrays else None
        count = len(arrays["time" if "time" in arrays else "index"])
        rows.append((path.name, str(arrays.get("name", "")), count, score))
        if number <= _SHOWN and "joints" in arrays:
            _draw_file(trainer, arrays, path.stem, number)
    log_table(trainer, "predictions", ["file", "name", "frames or samples", "mean score"], rows)


def _draw_file(trainer: pl.Trainer, arrays: Mapping[str, NDArray], stem: str, number: int) -> None:
    """Draw the poses of a file: a sequence, a batch of clips, or a batch of samples."""
    parents = tuple(arrays["parents"].tolist())
    skeleton = Skeleton(str(arrays["skeleton"]), tuple(arrays["joints"].tolist()), parents)
    title = str(arrays.get("name", f"samples from {stem}"))
    name, caption = f"predict/poses_{number}", f"{title}; orange left, blue right."
    if "fps" not in arrays and "joints2d" in arrays:  # single images
        tiles = [
            skeletons.draw_joints2d_alone(pose, skeleton, score=score, size=200)
            for pose, score in zip(arrays["joints2d"][:8], arrays["score"][:8], strict=True)
        ]
        log_image(trainer, name, canvas.contact_sheet(tiles, 4), caption)
        return
    poses = arrays["joints3d"]
    clip = poses[0] if poses.ndim == 4 else poses
    strip = skeletons.draw_motion_strip(clip, None, skeleton)
    log_image(trainer, name, canvas.add_title(strip, title), caption)
    if number == 1 and "fps" in arrays:
        every = -(-len(clip) // MAX_VIDEO_FRAMES)
        joints2d = arrays["joints2d"]
        frames = skeletons.draw_clip(
            clip, None, skeleton, joints2d=joints2d, title=title, every=every
        )
        log_video(trainer, "predict/clip_1", frames, float(arrays["fps"]) / every, caption)
