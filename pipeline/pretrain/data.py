"""The data module of pretraining: clips of motion through random cameras, as masked, noisy 2D."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.camera import random_cameras
from pipeline.errors import DataError, UsageError
from pipeline.lift.clips import PaddedClips, window_starts
from pipeline.lift.corruption import sample_pretraining_masks, sample_pretraining_noise
from pipeline.lift.lifter import Lifter
from pipeline.lift.windows import mirror_samples, sample_mirrored
from pipeline.skeleton import H36M17, Skeleton, make_conversion
from pipeline.sources import MotionSource, Split
from pipeline.training.loader import BatchKey, BatchSet
from pipeline.training.stage import StageData


class ProjectedClips:
    """Batches of clips, each projected by a random camera of its own, then corrupted.

    A batch is a pure function of (epoch, indices).

    Args:
        motions: World joints of each recording, metres, (T, J, 3).
        valid: Frames of each recording that may be used, (T,).
        skeleton: Joint set of the motions.
        frames: T, number of frames of a clip.
        step: Frames from one clip to the next.
        seed: Seed of cameras, flips, noise and masks.
        joint_mask: Share of joints that are hidden, 0 to 1.
        frame_mask: Share of whole frames that are hidden, 0 to 1.
        noise: Factor on the noise; 0 for none.
        flip: Whether half of the clips are mirrored.
        once: Whether each frame of a recording is valid in one clip only: in no later clip, and not
            as padding of a recording that is shorter than a clip.
    """

    def __init__(
        self,
        motions: Many[NDArray[np.float32]],
        valid: Many[NDArray[np.bool_]],
        skeleton: Skeleton,
        *,
        frames: int,
        step: int,
        seed: int,
        joint_mask: float,
        frame_mask: float,
        noise: float,
        flip: bool,
        once: bool = False,
    ) -> None:
        self.frames, self.seed, self.flip = frames, seed, flip
        self.joint_mask, self.frame_mask, self.noise = joint_mask, frame_mask, noise
        self.swap = list(skeleton.swap)
        self.root = skeleton.root
        self.world = PaddedClips(motions, frames)
        starts = [
            window_starts(len(motion), frames, step, usable)
            for motion, usable in zip(motions, valid, strict=True)
        ]
        self.first = self.world.first_rows(starts)
        self.valid = torch.ones(len(self.first), frames, dtype=torch.bool)
        if once:
            lengths = map(len, motions)
            rows = [new_frames(s, n, frames) for s, n in zip(starts, lengths, strict=True)]
            self.valid = torch.from_numpy(np.concatenate(rows))

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """A batch of clips.

        `joints2d` (B, T, J, 2) normalised and corrupted, 0 where hidden; `visible` (B, T, J);
        `joints3d` (B, T, J, 3) metres, root-relative in the camera frame; `exact2d` (B, T, J, 2)
        normalised; `valid` (B, T); `index` (B,).
        """
        epoch, indices = key
        world = self.world.windows(self.first[torch.from_numpy(indices)], self.frames).numpy()
        in_camera, projected = random_cameras(world, self.seed, epoch, indices)
        joints3d = torch.from_numpy(in_camera - in_camera[:, :, self.root, None])
        exact2d = torch.from_numpy(projected)
        if self.flip:
            mirrored = sample_mirrored(self.seed, epoch, indices)
            mirror_samples(exact2d, mirrored, self.swap)
            mirror_samples(joints3d, mirrored, self.swap)
        _, T, J, _ = exact2d.shape
        corrupted = exact2d
        if self.noise:
            noise = sample_pretraining_noise(T, self.seed, epoch, indices)
            corrupted = exact2d + torch.from_numpy(self.noise * noise)
        visible = sample_pretraining_masks(
            T, J, self.seed, epoch, indices, joints=self.joint_mask, frames=self.frame_mask
        )
        joints2d = torch.where(torch.from_numpy(visible)[..., None], corrupted, 0.0)
        return {
            "joints2d": joints2d.float(),
            "visible": torch.from_numpy(visible),
            "joints3d": joints3d,
            "exact2d": exact2d,
            "valid": self.valid[torch.from_numpy(indices)],
            "index": torch.from_numpy(indices),
        }


def new_frames(starts: NDArray[np.int64], length: int, frames: int) -> NDArray[np.bool_]:
    """Which frames of each clip are in the recording and in no clip before, (K, T).

    >>> new_frames(np.array([0, 2]), 5, 3).tolist(), new_frames(np.array([-1]), 2, 4).tolist()
    ([[True, True, True], [False, True, True]], [[False, True, True, False]])

    Args:
        starts: First frames of the clips in the recording, in order, (K,).
        length: Frames of the recording.
        frames: T, frames of a clip.
    """
    number = starts[:, None] + np.arange(frames)
    covered = np.concatenate([[0], starts[:-1] + frames]) if len(starts) else starts
    return np.asarray((number >= covered[:, None]) & (number >= 0) & (number < length))


class PretrainDataModule(StageData):
    """LightningDataModule of pretraining: motion projected by random cameras, then corrupted.

    Batches: see `ProjectedClips`. Sequences with the same 3D joints, of several cameras, are one
    recording and are used once.

    Args:
        source: Data source of the motion.
        batch_size: Clips per batch and process.
        step: Frames from one training clip to the next; by default a third of T, at least 1.
        joint_mask: Share of joints that are hidden, 0 to 1.
        frame_mask: Share of whole frames that are hidden, 0 to 1.
        noise: Factor on the noise of joint positions; 0 for none.
        flip: Whether half of the training clips are mirrored.
        workers: DataLoader workers while training.
        seed: Seed of shuffling, cameras, noise, masks and flips.

    Source: paper 001; masks and noise are MotionBERT's (Zhu et al. 2023).
    Differs from the paper: the paper gives no ratios, noise or cameras. Here they are MotionBERT's,
    but with a frame mask drawn for each clip, a learned token for hidden joints and perspective
    cameras.
    """

    evaluation_batch = 64
    source: MotionSource

    def __init__(
        self,
        source: MotionSource,
        *,
        batch_size: int = 64,
        step: int | None = None,
        joint_mask: float = 0.05,
        frame_mask: float = 0.1,
        noise: float = 1.0,
        flip: bool = True,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, workers=workers, seed=seed)
        self.source, self.step, self.flip = source, step, flip
        self.joint_mask, self.frame_mask, self.noise = joint_mask, frame_mask, noise

    @property
    def lifter(self) -> Lifter:
        """The network that the batches are for."""
        return self.trainer.lightning_module.net  # type: ignore[union-attr,return-value]

    def describe(self) -> str:
        """Data and 2D input, in one line."""
        return f"{self.source.describe()}; 2D input random cameras, masks and noise"

    def training_set(self) -> BatchSet:
        """Overlapping clips of the training split, half of them mirrored."""
        step = self.step or max(1, self.lifter.frames // 3)
        return self._projected_clips("train", step, flip=self.flip)

    def evaluation_set(self, split: Split) -> BatchSet:
        """Clips of a split that follow each other, not mirrored, with each frame valid once.

        The last clip ends with the recording. Clips with frames that may not be used are left out.
        """
        return self._projected_clips(split, self.lifter.frames, flip=False, once=True)

    def _projected_clips(
        self, split: Split, step: int, *, flip: bool, once: bool = False
    ) -> ProjectedClips:
        """Clips of all recordings of a split, `step` frames apart.

        Raises:
            DataError: If a sequence has no 3D joints, or there are no sequences.
            UsageError: If there is noise, and the lifter has other joints than H36M17.
        """
        recordings = {}
        skeleton = self.lifter.skeleton
        if self.noise and skeleton.joints != H36M17.joints:
            raise UsageError(
                f"noise is known for the joints of H36M17, not for {skeleton.name}; give "
                "--data.noise 0"
            )
        for sequence in self.source.sequences(split):
            if sequence.joints3d is None:
                raise DataError(
                    f"{sequence.name}: has no 3D joints, so pretraining cannot project it"
                )
            digest = hashlib.sha256(sequence.joints3d.tobytes()).digest()
            if digest not in recordings:
                world = make_conversion(sequence.skeleton, skeleton).joints(sequence.joints3d)
                recordings[digest] = (world.astype(np.float32), sequence.valid_frames)
        if not recordings:
            raise DataError(
                f"{self.source.describe()}: no sequences in split {split}; check its splits"
            )
        motions, valid_frames = zip(*recordings.values(), strict=True)
        return ProjectedClips(
            motions,
            valid_frames,
            skeleton,
            frames=self.lifter.frames,
            step=step,
            seed=self.seed,
            joint_mask=self.joint_mask,
            frame_mask=self.frame_mask,
            noise=self.noise,
            flip=flip,
            once=once,
        )
