"""Training windows and whole evaluation sequences as batches."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import rng
from pipeline.lift.clips import PaddedClips, window_starts
from pipeline.lift.corruption import sample_pretraining_masks
from pipeline.lift.lifter import Lifter
from pipeline.lift.sequences import PreparedSequence, flip_joints, require_joints3d
from pipeline.training.loader import BatchKey


class TrainingWindows:
    """Batches of training windows of all sequences, half of them mirrored.

    A batch is a pure function of (epoch, indices).

    Args:
        sequences: Training sequences, each with 3D joints.
        lifter: Lifter that the windows are for; it sets their length and the frames of the targets.
        step: Frames from one window to the next.
        flip: Whether half of the windows are mirrored.
        seed: Seed of flips and masks.
        joint_mask: Share of joints that are hidden, 0 to 1.
        frame_mask: Share of whole frames that are hidden, 0 to 1.
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
        self.frames, self.flip, self.seed = lifter.frames, flip, seed
        self.joint_mask, self.frame_mask = joint_mask, frame_mask
        self.swap = list(lifter.skeleton.swap)
        self.output, self.receptive_field = lifter.output, lifter.receptive_field
        self.first_frame = lifter.first_frame
        pad = lifter.frames
        joints2d = [s.joints2d for s in sequences]
        visible = [s.visible for s in sequences]
        joints3d = [require_joints3d(s) for s in sequences]
        if flip:  # a mirrored copy behind the clips: a batch is gathered, never flipped
            joints2d += [_mirrored(clip, self.swap) for clip in joints2d]
            visible += [clip[:, self.swap] for clip in visible]
            joints3d += [_mirrored(clip, self.swap) for clip in joints3d]
        self.joints2d = PaddedClips(joints2d, pad)
        self.visible = PaddedClips(visible, pad)
        self.joints3d = PaddedClips(joints3d, pad)
        self.valid = PaddedClips([s.valid for s in sequences], pad)
        self.first = self.valid.first_rows([self._starts(s, step) for s in sequences])

    def _starts(self, prepared: PreparedSequence, step: int) -> NDArray[np.int64]:
        """First frames of the windows of a sequence, relative to its own first frame."""
        if self.output == "every":
            return window_starts(len(prepared.joints2d), self.frames, step, prepared.valid)
        return np.flatnonzero(prepared.valid)[::step] - self.first_frame

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """A batch of windows.

        `joints2d` (B, T, J, 2) normalised, 0 where hidden; `visible` (B, T, J); `joints3d` (B, T',
        J, 3) metres, root-relative in the camera frame; `valid` (B, T'); `index` (B,). T' are the
        frames that the lifter predicts.
        """
        epoch, indices = key
        first = self.first[torch.from_numpy(indices)]
        valid_first, target_frames = first + self.first_frame, self.frames
        if self.flip:
            # The mirrored copy begins behind the rows of all clips.
            mirrored = sample_mirrored(self.seed, epoch, indices)
            first[mirrored] += len(self.valid.rows)
        if self.output != "every":
            target_frames -= self.receptive_field - 1
        joints2d = self.joints2d.windows(first, self.frames)
        visible = self.visible.windows(first, self.frames)
        joints3d = self.joints3d.windows(first + self.first_frame, target_frames)
        valid = self.valid.windows(valid_first, target_frames)
        if self.joint_mask or self.frame_mask:
            _, T, J = visible.shape
            shares = {"joints": self.joint_mask, "frames": self.frame_mask}
            visible &= torch.from_numpy(
                sample_pretraining_masks(T, J, self.seed, epoch, indices, **shares)
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
    """Evaluation batches: one whole sequence each, whatever its length.

    Args:
        sequences: Sequences of a split.

    Attributes:
        actions: Names of the actions, sorted; a batch holds the index of its own.
        groups: Names of the groups of sequences, sorted; likewise.
    """

    def __init__(self, sequences: Many[PreparedSequence]) -> None:
        self.sequences = list(sequences)
        self.actions = sorted({prepared.sequence.action for prepared in sequences})
        self.groups = sorted({prepared.sequence.group for prepared in sequences})

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """One sequence with a batch axis of 1.

        `joints2d` (1, T, J, 2), `visible` (1, T, J), `valid` (1, T), `index` (1,); `action` and
        `group`, their numbers; `joints3d` (1, T, J, 3) if the sequence has 3D.
        """
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
        if prepared.joints3d is not None:
            batch["joints3d"] = prepared.joints3d[None]
        return batch


def _mirrored(clip: NDArray[np.float32], swap: Many[int]) -> NDArray[np.float32]:
    """A mirrored copy of a clip (T, J, C)."""
    return flip_joints(torch.from_numpy(clip), swap).numpy()


def sample_mirrored(seed: int, epoch: int, indices: NDArray[np.integer]) -> Tensor:
    """Draw which samples of a batch are mirrored, each with probability 1/2: their rows, (N,)."""
    draw = rng.uniform(seed, "flip", epoch, indices, lanes=1)[:, 0]
    return torch.from_numpy(np.flatnonzero(draw < 0.5))


def mirror_samples(joints: Tensor, rows: Tensor, swap: Many[int]) -> None:
    """Mirror some samples of a batch (B, T, J, C) in place.

    Args:
        joints: Joints, x first.
        rows: Rows of the samples, (N,).
        swap: For each joint, the joint of the other side.
    """
    joints.index_copy_(0, rows, flip_joints(joints.index_select(0, rows), swap))
