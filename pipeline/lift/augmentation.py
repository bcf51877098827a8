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
from pipeline.mocap.bodies import apply_bone_lengths, sample_bone_lengths
from pipeline.sources import Sequence
from pipeline.training.loader import BatchKey


def rerender(sequences: Many[Sequence], seed: int, rendering: int) -> list[Sequence]:
    """The same motion with other bodies and cameras: a pure function of (seed, rendering).

    Neighbouring sequences that share their joints are one recording. Each recording gets one body,
    with bone lengths drawn from those of adults, and a ring of cameras around it
    (`ring_of_cameras`).

    Args:
        sequences: Sequences with world joints in H36M17, metres, floor at z = 0.
        seed: Seed of the run.
        rendering: Number of the rendering, from 1; 0 stands for the source itself.

    Returns:
        Sequences with the same names, in the same order, without 2D joints.

    Raises:
        DataError: If a sequence has no 3D joints.

    Source: PoseAug (Gong et al. 2021) and EvoSkeleton (Li et al. 2020) vary bodies and cameras
        likewise.
    Differs from the papers: bodies and cameras are drawn from their ranges, not learned or evolved.
    """
    rerendered: list[Sequence] = []
    for _, shared in itertools.groupby(sequences, key=lambda s: id(s.joints3d)):
        recording = list(shared)
        first = recording[0]
        if first.joints3d is None:
            raise DataError(f"{first.name}: has no 3D joints, so it cannot be re-rendered")
        # "take" is part of the keys of the random numbers: with another word they change.
        bones = sample_bone_lengths(seed, f"take {rendering} of {first.name}")
        world = apply_bone_lengths(first.joints3d.astype(np.float64), first.skeleton, bones)
        cameras: list[Camera] = []
        while len(cameras) < len(recording):
            key = (seed, "take", rendering, first.name, len(cameras))
            cameras += ring_of_cameras(*key, joints3d=world, valid=first.valid)
        joints3d = world.astype(np.float32)
        rerendered += [
            replace(s, joints3d=joints3d, joints2d=None, camera=camera)
            for s, camera in zip(recording, cameras, strict=False)
        ]
    return rerendered


class RerenderedWindows:
    """Training windows that are made again from a new rendering every `epochs` epochs.

    Each epoch has as many samples as rendering 0 has windows. In a rendering with more or fewer
    windows (`AnyVideo` changes the length of motion) they are taken at even distances.

    Args:
        make_windows: Function that makes the windows of a rendering from its number.
        epochs: Epochs that use one rendering.
    """

    def __init__(self, make_windows: Callable[[int], TrainingWindows], epochs: int) -> None:
        self.make_windows, self.epochs = make_windows, epochs
        self.rendering, self.windows = 0, make_windows(0)
        self.count = len(self.windows)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """A batch of windows, see `TrainingWindows`."""
        rendering = key[0] // self.epochs
        if rendering != self.rendering:
            self.rendering, self.windows = rendering, self.make_windows(rendering)
        epoch, indices = key
        return self.windows[epoch, indices * len(self.windows) // self.count]
