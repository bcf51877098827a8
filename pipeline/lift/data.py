"""The data module of the lifting stage: 2D clips with their 3D motion."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.detections.cache import Precision, load_or_detect
from pipeline.detections.exchange import report_detections
from pipeline.detections.request import DetectionRequest
from pipeline.errors import DataError, UsageError
from pipeline.lift.any_video import AnyVideo, view_like_predict
from pipeline.lift.augmentation import RerenderedWindows, rerender
from pipeline.lift.corruption import add_detection_noise
from pipeline.lift.lifter import Lifter
from pipeline.lift.martinez import Statistics
from pipeline.lift.sequences import (
    PreparedSequence,
    exact_joints2d,
    prepare_sequence,
    require_joints3d,
    size_range,
)
from pipeline.lift.windows import TrainingWindows, WholeSequences
from pipeline.skeleton import make_conversion
from pipeline.sources import MotionSource, Sequence, Source, Split
from pipeline.training.loader import BatchSet
from pipeline.training.stage import SPLITS, StageData


def _check_new_motion(
    detections: DetectionRequest, augment_every: int, video: AnyVideo | None
) -> None:
    """Raise UsageError if motion is new in each epoch and its 2D is not made of the motion."""
    if augment_every and not detections.is_projected:
        raise UsageError(
            f"augment_every is {augment_every} and detections are {detections}: only exact or "
            "noisy 2D can be made of re-rendered motion; set augment_every to 0"
        )
    if video is not None and (augment_every or not detections.is_projected):
        raise UsageError(
            f"video is set, augment_every is {augment_every} and detections are {detections}: "
            "videos are new in each epoch, from the motion alone; set augment_every to 0 and "
            "detections to exact or noisy"
        )


class LiftDataModule(StageData):
    """LightningDataModule of the lifting stage: 2D clips with their 3D motion.

    Training batches hold windows (see `TrainingWindows`), evaluation batches one whole sequence
    each (see `WholeSequences`). The lifter of the LightningModule sets their length and joint set.

    Args:
        source: Data source of the motion.
        detections: 2D input of the lifter: `exact` (projected joints), `noisy` (projected joints
            with the open benchmark's detection noise), a checkpoint of a 2D stage (its cached
            detections), or a file or folder of detections made by other tools.
        batch_size: Windows per batch and process.
        step: Frames from one training window to the next; by default a third of T, at least 1, or 1
            for lifters that do not predict every frame.
        flip: Whether half of the training windows are mirrored.
        joint_mask: Share of joints that are hidden in training windows, 0 to 1.
        frame_mask: Share of whole frames that are hidden in training windows, 0 to 1.
        augment_every: Epochs after which the training motion is re-rendered with new bodies,
            cameras and detection noise; 0 for never. For exact and noisy 2D of motion with a floor.
        video: Makes the training split look like people in any video, new in each epoch:
            `pipeline.lift.any_video.AnyVideo`. Validation and test then use the cameras of the
            source and `detections`, seen through the crop camera.
        workers: DataLoader workers while training.
        seed: Seed of shuffling, flips, noise, masks and re-rendering.
        first_frame: Number that the first frame of a video has in the files of other tools, where
            their numbers fit in two ways.
        person: Person in the files of other tools that is used, an id or a number that is printed;
            by default the one that is seen most.
        detector_precision: Precision of the detector whose detections are used, where `detections`
            is a checkpoint; that of `heatlift detect --precision`.

    Attributes:
        prepared: Split -> its prepared sequences, once they are read.
        motion: Sequences that videos are made of, once they are read.
        unseen: Names of the lifter's joints that the detections do not have.

    Raises:
        UsageError: If `augment_every` or `video` is set and the 2D input is neither exact nor
            noisy, or both are set; or if `first_frame` or `person` is set and the 2D input is not
            from a file of another tool.

    Differs from the papers: the published code of MixSTE, PoseFormer and VideoPose3D trains on
    every window and on its mirror image in each epoch; here each epoch draws one of the two, so it
    has half the steps. MixSTE's code pads a clip on both sides so that its windows are centred on
    it; here windows lie inside the clip and the last one ends with it.
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
        video: AnyVideo | None = None,
        workers: int = 0,
        seed: int = 0,
        first_frame: int | None = None,
        person: int | str | None = None,
        detector_precision: Precision = "32-true",
    ) -> None:
        super().__init__(batch_size=batch_size, workers=workers, seed=seed)
        self.source, self.step, self.flip = source, step, flip
        self.detections = DetectionRequest.parse(detections, first_frame=first_frame, person=person)
        if self.detections.kind == "newest":
            raise UsageError(
                "detections are newest, which only the command line resolves; give a checkpoint"
            )
        self.detector_precision = detector_precision
        self.joint_mask, self.frame_mask = joint_mask, frame_mask
        _check_new_motion(self.detections, augment_every, video)
        self.augment_every, self.video = augment_every, video
        self.prepared: dict[Split, list[PreparedSequence]] = {}
        self.motion: list[Sequence] = []
        self.unseen: tuple[str, ...] = ()

    @property
    def lifter(self) -> Lifter:
        """The network that the batches are for."""
        return self.trainer.lightning_module.net  # type: ignore[union-attr,return-value]

    def data_sources(self) -> list[Source]:
        """The source of the motion, and that of more motion for videos."""
        also = self.video.also if self.video else None
        return [self.source, also] if also else [self.source]

    def describe(self) -> str:
        """Data and 2D input, in one line."""
        video = "" if self.video is None else f"; {self.video.describe()}"
        return f"{self.source.describe()}; 2D input {self.detections}{video}"

    def prepare_data(self) -> None:
        """On rank 0: make the detections that the cache does not have.

        Raises:
            UsageError: If too many are missing; the message has the command that makes them.
        """
        if self.detections.is_projected:
            return
        for split in SPLITS[self.trainer.state.fn]:  # type: ignore[union-attr,index]
            load_or_detect(self.source, self.detections, split, precision=self.detector_precision)

    def training_set(self) -> BatchSet:
        """Windows of the training split, re-rendered every `augment_every` epochs."""
        if every := self.augment_every or (1 if self.video else 0):
            return RerenderedWindows(self._training_windows, every)
        return self._training_windows(0)

    def evaluation_set(self, split: Split) -> BatchSet:
        """The sequences of a split, one whole sequence per batch."""
        return WholeSequences(self._prepared_sequences(split))

    def _training_windows(self, rendering: int) -> TrainingWindows:
        """Training windows of one rendering; rendering 0 is the source as it is."""
        sequences = self._prepared_sequences("train")
        if rendering and self.video is not None:
            sequences = self._record(self.video, rendering)
        elif rendering:
            rerendered = rerender([s.sequence for s in sequences], self.seed, rendering)
            # "take" is part of the key of the random numbers: with another word they change.
            sequences = [self._project(s, f"take {rendering} of {s.name}") for s in rerendered]
        third = max(1, self.lifter.frames // 3) if self.lifter.output == "every" else 1
        return TrainingWindows(
            sequences,
            self.lifter,
            step=self.step or third,
            flip=self.flip,
            seed=self.seed,
            joint_mask=self.joint_mask,
            frame_mask=self.frame_mask,
        )

    def statistics(self) -> Statistics:
        """Mean and standard deviation of every coordinate over the valid frames of training.

        Those of 2D are over the frames in which the joint is visible; they are 0 for a joint that
        is never visible.
        """
        sequences = self._prepared_sequences("train")
        joints2d = np.concatenate([s.joints2d[s.valid] for s in sequences])
        visible = np.concatenate([s.visible[s.valid] for s in sequences])[..., None]
        joints3d = np.concatenate([require_joints3d(s)[s.valid] for s in sequences])
        count = np.maximum(visible.sum(0), 1)
        mean = joints2d.sum(0, np.float64, where=visible) / count
        square = joints2d - mean
        np.square(square, out=square)
        deviation = np.sqrt(square.sum(0, where=visible) / count)
        moments = (mean, deviation, joints3d.mean(0, np.float64), joints3d.std(0, np.float64))
        return Statistics(*(torch.from_numpy(moment.astype(np.float32)) for moment in moments))

    def size_range(self) -> tuple[float, float] | None:
        """Range of the sizes of people in training; see `pipeline.lift.sequences.size_range`."""
        return size_range(self._prepared_sequences("train"))

    def frame_rate(self) -> float:
        """Median frame rate of the training sequences, Hz."""
        if self.video is not None:
            return self.video.rate
        return float(np.median([s.sequence.fps for s in self._prepared_sequences("train")]))

    def _prepared_sequences(self, split: Split) -> list[PreparedSequence]:
        """The prepared sequences of a split, read once."""
        if split not in self.prepared:
            self.prepared[split] = self._prepare(split)
        return self.prepared[split]

    def _prepare(self, split: Split) -> list[PreparedSequence]:
        """Read a split and its 2D input.

        Raises:
            DataError: If the split has no sequences, or detections of another tool do not fit it.
        """
        if split == "train" and self.video is not None:
            return self._record(self.video, 0)
        sequences = self.source.sequences(split)
        if not sequences:
            raise DataError(
                f"{self.source.describe()}: no sequences in split {split}; check its splits"
            )
        if self.detections.is_projected:
            return [self._project(s, s.name) for s in sequences]
        skeleton = self.lifter.skeleton
        precision = self.detector_precision
        detections = load_or_detect(self.source, self.detections, split, precision=precision)
        if self.detections.kind != "checkpoint":
            report_detections(detections, sequences, split)
        self.unseen = make_conversion(detections.skeleton, skeleton, allow_missing=True).missing
        return [
            prepare_sequence(s, skeleton, *detections.of(s.name, skeleton, allow_missing=True))
            for s in sequences
        ]

    def _project(self, sequence: Sequence, noise_key: str) -> PreparedSequence:
        """Prepare a sequence with exact or noisy 2D; `noise_key` is the key of the noise."""
        skeleton = self.lifter.skeleton
        exact = make_conversion(sequence.skeleton, skeleton).joints(exact_joints2d(sequence))
        found: tuple[NDArray[np.floating], NDArray[np.floating]] = (exact, np.ones(exact.shape[:2]))
        if self.detections.kind == "noisy":
            found = add_detection_noise(exact, sequence.fps, self.seed, noise_key)
        if self.video is not None:
            return view_like_predict(sequence, skeleton, *found, self.video.rate)
        return prepare_sequence(sequence, skeleton, *found)

    def _record(self, video: AnyVideo, rendering: int) -> list[PreparedSequence]:
        """The training split as videos."""
        if not self.motion:
            self.motion = video.collect_motion(self.source)
        return video.training_sequences(self.motion, self.lifter.skeleton, self.seed, rendering)
