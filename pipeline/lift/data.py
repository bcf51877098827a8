"""The data module of the lifting stage: 2D clips and the 3D motion they show."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.detections.cache import get_detections
from pipeline.detections.request import DetectionRequest
from pipeline.errors import DataError, UsageError
from pipeline.lift.augmentation import RerenderedWindows, rerender
from pipeline.lift.corruption import detection_noise
from pipeline.lift.lifter import Lifter
from pipeline.lift.martinez import Statistics
from pipeline.lift.sequences import (
    PreparedSequence,
    exact_joints2d,
    prepare_sequence,
    require_joints3d,
)
from pipeline.lift.windows import TrainingWindows, WholeSequences
from pipeline.skeleton import conversion
from pipeline.sources import MotionSource, Sequence, Split
from pipeline.training.loader import BatchSet
from pipeline.training.stage import SPLITS, StageData


class LiftDataModule(StageData):
    """Clips of 2D joints with the 3D motion they show.

    Batches while training: `joints2d` (B, T, J, 2) normalised, `visible` (B, T, J), `joints3d` (B,
    T', J, 3) metres root-relative in the camera frame, `valid` (B, T'), `index` (B,). In
    evaluation: one whole video each. T, T' and the joint set are asked of the lifter.

    Args:
        source: Where the motion comes from.
        detections: Which 2D the lifter gets: `exact` (projected joints), `noisy` (the open
            benchmark's detection noise on them), a checkpoint of a 2D stage (its cached
            detections), or a file of detections made elsewhere.
        batch_size: Windows per batch and process.
        step: Frames from one training window to the next; by default a third of T, at least 1.
        flip: Mirror half of the training windows.
        joint_mask: Share of joints that are hidden from the lifter in training windows.
        frame_mask: Share of whole frames that are hidden from it there.
        augment_every: Epochs after which the training motion is filmed anew, see `rerender`: other
            bodies, cameras and detection noise; 0 for never. For exact and noisy 2D of motion with
            a floor.
        workers: Loader processes while training.
        seed: Of order, flips, noise, masks and takes.

    Differs from the papers: the published code of MixSTE, PoseFormer and VideoPose3D trains on
    every window and on its mirror image in each epoch, this on one of the two, drawn anew in each
    epoch: half the steps. MixSTE's cuts a clip into windows that are centred on it and padded with
    its first and last frame; here windows lie inside the clip and the last one ends with it.
    """

    source: MotionSource

    def __init__(
        self,
        source: MotionSource,
        detections: str = "exact",
        *,
        batch_size: int = 64,
        step: int | None = None,
        flip: bool = True,
        joint_mask: float = 0.0,
        frame_mask: float = 0.0,
        augment_every: int = 0,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, workers=workers, seed=seed)
        self.source, self.step, self.flip = source, step, flip
        self.detections = DetectionRequest.parse(detections)
        self.joint_mask, self.frame_mask = joint_mask, frame_mask
        self.augment_every = augment_every
        if augment_every and not self.detections.is_projected:
            raise UsageError(
                f"augment_every is {augment_every} and detections are {detections}: only exact or "
                "noisy 2D can be made of re-rendered motion; set augment_every to 0"
            )
        self.prepared: dict[Split, list[PreparedSequence]] = {}
        self.unseen: tuple[str, ...] = ()

    @property
    def lifter(self) -> Lifter:
        """The network that the batches are for."""
        return self.trainer.lightning_module.net  # type: ignore[union-attr,return-value]

    def describe(self) -> str:
        """Data and 2D input, in a line."""
        return f"{self.source.describe()}; 2D input {self.detections}"

    def prepare_data(self) -> None:
        """On rank 0: make the cached detections that are missing, or say how to."""
        if self.detections.is_projected:
            return
        for split in SPLITS[self.trainer.state.fn]:  # type: ignore[union-attr,index]
            get_detections(self.source, self.detections, split)

    def training_set(self) -> BatchSet:
        """Windows of the training split, re-rendered every `augment_every` epochs."""
        if self.augment_every:
            return RerenderedWindows(self._windows, self.augment_every)
        return self._windows(0)

    def evaluation_set(self, split: Split) -> BatchSet:
        """The sequences of a split, one whole sequence a batch."""
        return WholeSequences(self._sequences(split))

    def _windows(self, take: int) -> TrainingWindows:
        """Training windows of one rendering; the first, 0, shows the source as it is."""
        sequences = self._sequences("train")
        if take:
            rendered = rerender([s.sequence for s in sequences], self.seed, take)
            # The name is a key of the random numbers: other words would be other noise.
            sequences = [self._project(s, f"take {take} of {s.name}") for s in rendered]
        T = self.lifter.frames
        step = self.step or (max(1, T // 3) if self.lifter.output == "every" else 1)
        return TrainingWindows(
            sequences,
            self.lifter,
            step=step,
            flip=self.flip,
            seed=self.seed,
            joint_mask=self.joint_mask,
            frame_mask=self.frame_mask,
        )

    def statistics(self) -> Statistics:
        """Mean and deviation of every coordinate over the valid frames of the training split.

        In 2D, where a joint is seen: its place is zero where it is not. A joint that never is has
        mean and deviation 0.
        """
        flat = np.concatenate([t.joints2d[t.valid] for t in self._sequences("train")])
        seen = np.concatenate([t.visible[t.valid] for t in self._sequences("train")])[..., None]
        deep = np.concatenate([require_joints3d(t)[t.valid] for t in self._sequences("train")])
        count = np.maximum(seen.sum(0), 1)
        mean = flat.sum(0, np.float64, where=seen) / count
        square = flat - mean
        np.square(square, out=square)
        deviation = np.sqrt(square.sum(0, where=seen) / count)
        return Statistics(
            *(
                torch.from_numpy(number.astype(np.float32))
                for number in (mean, deviation, deep.mean(0, np.float64), deep.std(0, np.float64))
            )
        )

    def _sequences(self, split: Split) -> list[PreparedSequence]:
        """The prepared sequences of a split, read once."""
        if split not in self.prepared:
            self.prepared[split] = self._prepare(split)
        return self.prepared[split]

    def _prepare(self, split: Split) -> list[PreparedSequence]:
        sequences = self.source.sequences(split)
        if not sequences:
            raise DataError(f"{self.source.describe()}: no sequences in split {split}")
        if self.detections.is_projected:
            return [self._project(s, s.name) for s in sequences]
        skeleton = self.lifter.skeleton
        found = get_detections(self.source, self.detections, split)
        self.unseen = conversion(found.skeleton, skeleton, allow_missing=True).missing
        return [
            prepare_sequence(s, skeleton, *found.of(s.name, skeleton, allow_missing=True))
            for s in sequences
        ]

    def _project(self, sequence: Sequence, noise: str) -> PreparedSequence:
        """A sequence with exact or noisy 2D; `noise` is the key of its noise."""
        skeleton = self.lifter.skeleton
        exact = conversion(sequence.skeleton, skeleton).joints(exact_joints2d(sequence))
        if self.detections.kind == "exact":
            return prepare_sequence(sequence, skeleton, exact, np.ones(exact.shape[:2]))
        noisy, score = detection_noise(exact, sequence.fps, self.seed, noise)
        return prepare_sequence(sequence, skeleton, noisy, score)
