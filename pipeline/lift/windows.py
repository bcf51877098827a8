"""Training windows and whole evaluation sequences as batches."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import rng
from pipeline.lift.clips import PaddedClips, window_starts
from pipeline.lift.corruption import pretraining_masks
from pipeline.lift.lifter import Lifter
from pipeline.lift.sequences import PreparedSequence, flip_joints, require_joints3d
from pipeline.training.loader import BatchKey


class TrainingWindows:
    """Training batches: windows of all videos, gathered with one copy, a part of them mirrored.

    Args:
        sequences: The videos.
        lifter: Says how long windows are and which frames it gives out.
        step: Frames from one window to the next.
        flip: Mirror half of the windows.
        seed: Of flips and masks.
        joint_mask: Share of joints that are hidden.
        frame_mask: Share of whole frames that are hidden.
    """

    def __init__(
        self,
        sequences: Many[PreparedSequence],
        lifter: Lifter,
        *,
        step: int,
        flip: bool,
        seed: int,
        joint_mask: float = 0.0,
        frame_mask: float = 0.0,
    ) -> None:
        T = lifter.frames
        self.frames, self.flip, self.seed = T, flip, seed
        self.joint_mask, self.frame_mask = joint_mask, frame_mask
        self.swap = list(lifter.skeleton.swap)
        self.output, self.receptive_field = lifter.output, lifter.receptive_field
        self.first_frame = lifter.first_frame
        pad = T
        self.joints2d = PaddedClips([t.joints2d for t in sequences], pad)
        self.visible = PaddedClips([t.visible for t in sequences], pad)
        self.joints3d = PaddedClips([require_joints3d(t) for t in sequences], pad)
        self.valid = PaddedClips([t.valid for t in sequences], pad)
        self.first = torch.from_numpy(
            np.concatenate(
                [
                    start + self._starts(t, step)
                    for start, t in zip(self.joints2d.starts, sequences, strict=True)
                ]
            )
        )

    def _starts(self, prepared: PreparedSequence, step: int) -> NDArray[np.int64]:
        if self.output == "every":
            return window_starts(len(prepared.joints2d), self.frames, step, prepared.valid)
        return np.flatnonzero(prepared.valid)[::step] - self.first_frame

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """Windows (B, T, J, ...) and targets of the frames that the lifter gives out."""
        epoch, indices = key
        first = self.first[torch.from_numpy(indices)]
        target_first, target_frames = first + self.first_frame, self.frames
        if self.output != "every":
            target_frames -= self.receptive_field - 1
        joints2d = self.joints2d.windows(first, self.frames)
        visible = self.visible.windows(first, self.frames)
        joints3d = self.joints3d.windows(target_first, target_frames)
        valid = self.valid.windows(target_first, target_frames)
        if self.flip:
            draw = rng.uniform(self.seed, "flip", epoch, indices, lanes=1)[:, 0]
            mirrored = torch.from_numpy(np.flatnonzero(draw < 0.5))
            for joints in (joints2d, joints3d):
                joints.index_copy_(
                    0, mirrored, flip_joints(joints.index_select(0, mirrored), self.swap)
                )
            seen = visible.index_select(0, mirrored)
            visible.index_copy_(0, mirrored, seen[..., self.swap])
        if self.joint_mask or self.frame_mask:
            _, T, J = visible.shape
            shares = {"joints": self.joint_mask, "frames": self.frame_mask}
            visible &= torch.from_numpy(
                pretraining_masks(T, J, self.seed, epoch, indices, **shares)
            )
            joints2d.masked_fill_(~visible[..., None], 0.0)
        return {
            "joints2d": joints2d,
            "visible": visible,
            "joints3d": joints3d,
            "valid": valid,
            "index": torch.from_numpy(indices),
        }


class WholeSequences:
    """Evaluation batches: one whole video each, whatever its length."""

    def __init__(self, sequences: Many[PreparedSequence]) -> None:
        self.sequences = list(sequences)
        self.actions = sorted({prepared.sequence.action for prepared in sequences})
        self.groups = sorted({prepared.sequence.group for prepared in sequences})

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """The video with a batch axis of one: joints2d (1, T, J, 2) and so on, and its action."""
        _, (index,) = key
        prepared = self.sequences[index]
        batch = {
            "joints2d": prepared.joints2d[None],
            "visible": prepared.visible[None],
            "valid": prepared.valid[None],
            "action": self.actions.index(prepared.sequence.action),
            "group": self.groups.index(prepared.sequence.group),
            "index": np.array([index]),
        }
        return (
            batch if prepared.joints3d is None else {**batch, "joints3d": prepared.joints3d[None]}
        )
