"""Motion re-rendered with new bodies and cameras."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.camera import Camera, ring_of_cameras
from pipeline.errors import DataError
from pipeline.lift.windows import TrainingWindows
from pipeline.mocap.preparation import apply_bone_lengths, draw_bone_lengths
from pipeline.sources import Sequence
from pipeline.training.loader import BatchKey


def rerender(sequences: Many[Sequence], seed: int, take: int) -> list[Sequence]:
    """The same motion by other bodies before other cameras: a pure function of (seed, take).

    Sequences that stand next to each other and share their joints are one recording: they get one
    body, with bone lengths drawn from those of adults, and a ring of cameras around it
    (`ring_of_cameras`).

    Args:
        sequences: With world joints, floor at z = 0, in H36M17.
        seed: Of the run.
        take: Which take.

    Source: PoseAug (Gong et al. 2021) and EvoSkeleton (Li et al. 2020) vary bodies and cameras
        likewise.
    Differs from the papers: bodies and cameras are drawn from their ranges, not learned or evolved.
    """
    found: list[Sequence] = []
    for _, shared in itertools.groupby(sequences, key=lambda s: id(s.joints3d)):
        recording = list(shared)
        first = recording[0]
        if first.joints3d is None:
            raise DataError(f"{first.name}: has no 3D joints, so it cannot be filmed anew")
        bones = draw_bone_lengths(seed, f"take {take} of {first.name}")
        world = apply_bone_lengths(first.joints3d.astype(np.float64), first.skeleton, bones)
        cameras: list[Camera] = []
        while len(cameras) < len(recording):
            key = (seed, "take", take, first.name, len(cameras))
            cameras += ring_of_cameras(*key, joints3d=world, valid=first.valid)
        joints3d = world.astype(np.float32)
        found += [
            replace(s, joints3d=joints3d, joints2d=None, camera=camera)
            for s, camera in zip(recording, cameras, strict=False)
        ]
    return found


class RerenderedWindows:
    """Training batches of motion that is filmed anew every so many epochs.

    Args:
        windows: Makes the windows of a take.
        epochs: How long a take lasts.
    """

    def __init__(self, windows: Callable[[int], TrainingWindows], epochs: int) -> None:
        self.make, self.epochs = windows, epochs
        self.take, self.windows = 0, windows(0)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """See `TrainingWindows`."""
        take = key[0] // self.epochs
        if take != self.take:
            self.take, self.windows = take, self.make(take)
        return self.windows[key]
