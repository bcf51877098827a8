"""What room 3 sees: 2D clips, exact, noisy or detected, beside the 3D motion they show."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray

from pipeline import chance
from pipeline.camera import Camera, normalise, project, ring_of_cameras, world_to_camera
from pipeline.corrupt import detection_noise, pretraining_masks
from pipeline.datasets import MotionSource, Sequence, Split
from pipeline.datasets.mocap import bones_of, with_bones
from pipeline.errors import DataError, UsageError
from pipeline.lift.clips import Padded, window_starts
from pipeline.lift.lifter import Lifter
from pipeline.lift.martinez import Statistics
from pipeline.skeleton import Skeleton, conversion
from pipeline.stage import BatchKey, StageData


@dataclass(frozen=True, eq=False)
class Track:
    """One video as lifters see it.

    Args:
        sequence: Where it comes from.
        joints2d: Normalised 2D, (T, J, 2), float32; zero where not visible.
        visible: Which joints have a 2D position, (T, J).
        joints3d: Root-relative joints in the camera frame, metres, (T, J, 3), float32; none where
            unknown.
        valid: Frames that may be trained on and scored, (T,).
    """

    sequence: Sequence
    joints2d: NDArray[np.float32]
    visible: NDArray[np.bool_]
    joints3d: NDArray[np.float32] | None
    valid: NDArray[np.bool_]


def exact_joints2d(sequence: Sequence) -> NDArray[np.float64]:
    """Where the joints of a sequence are in its pictures, pixels, (T, J, 2), in its joint set.

    Raises:
        DataError: If it has neither 2D nor 3D joints.
    """
    if sequence.joints2d is not None:
        return sequence.joints2d.astype(np.float64)
    if sequence.joints3d is None:
        raise DataError(
            f"{sequence.name}: has neither 2D nor 3D joints; "
            "give `detections` a checkpoint or a file"
        )
    seen = world_to_camera(sequence.joints3d, sequence.camera)
    return np.asarray(project(seen, sequence.camera), np.float64)


def track(
    sequence: Sequence,
    skeleton: Skeleton,
    joints2d: NDArray[np.floating],
    score: NDArray[np.floating],
) -> Track:
    """A video for a lifter, from pixels.

    Args:
        sequence: Gives camera, 3D and which frames are valid.
        skeleton: The lifter's joint set.
        joints2d: Pixels, (T, J, 2), in the lifter's joint set; NaN where missing.
        score: (T, J); 0 where missing.
    """
    visible = np.isfinite(joints2d).all(-1) & (score > 0)
    flat = normalise(np.where(visible[..., None], joints2d, 0.0), sequence.camera.size)
    joints3d = None
    if sequence.joints3d is not None:
        world = conversion(sequence.skeleton, skeleton).joints(sequence.joints3d)
        seen = world_to_camera(world, sequence.camera)
        joints3d = (seen - seen[:, skeleton.root, None]).astype(np.float32)
        _refuse_non_finite(sequence, joints3d)
    valid = np.ones(len(sequence), bool) if sequence.valid is None else sequence.valid
    return Track(
        sequence,
        np.where(visible[..., None], flat, 0.0).astype(np.float32),
        visible,
        joints3d,
        valid,
    )


def _refuse_non_finite(sequence: Sequence, joints3d: NDArray[np.float32]) -> None:
    good = np.isfinite(joints3d).all((1, 2))
    if sequence.valid is not None:
        good |= ~sequence.valid
    if not good.all():
        frame = int(np.argmin(good))
        raise DataError(
            f"{sequence.name}: frame {frame} has a 3D joint that is not finite "
            f"({int((~good).sum())} such frames); repair it or mark those frames as not valid"
        )


def filmed_anew(sequences: Many[Sequence], seed: int, take: int) -> list[Sequence]:
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
        bones = bones_of(seed, f"take {take} of {first.name}")
        world = with_bones(first.joints3d.astype(np.float64), first.skeleton, bones)
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


class Takes:
    """Training batches of motion that is filmed anew every so many epochs.

    Args:
        windows: Makes the windows of a take.
        epochs: How long a take lasts.
    """

    def __init__(self, windows: Callable[[int], Windows], epochs: int) -> None:
        self.make, self.epochs = windows, epochs
        self.take, self.windows = 0, windows(0)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """See `Windows`."""
        take = key[0] // self.epochs
        if take != self.take:
            self.take, self.windows = take, self.make(take)
        return self.windows[key]


class Windows:
    """Training batches: windows of all videos, gathered with one copy, a part of them mirrored.

    Args:
        tracks: The videos.
        lifter: Says how long windows are and which frames it gives out.
        step: Frames from one window to the next.
        flip: Mirror half of the windows.
        seed: Of flips and masks.
        joint_mask: Share of joints that are hidden.
        frame_mask: Share of whole frames that are hidden.
    """

    def __init__(
        self,
        tracks: Many[Track],
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
        self.joints2d = Padded([t.joints2d for t in tracks], pad)
        self.visible = Padded([t.visible for t in tracks], pad)
        self.joints3d = Padded([known_joints3d(t) for t in tracks], pad)
        self.valid = Padded([t.valid for t in tracks], pad)
        self.first = torch.from_numpy(
            np.concatenate(
                [
                    start + self._starts(t, step)
                    for start, t in zip(self.joints2d.starts, tracks, strict=True)
                ]
            )
        )

    def _starts(self, track: Track, step: int) -> NDArray[np.int64]:
        if self.output == "every":
            return window_starts(len(track.joints2d), self.frames, step, track.valid)
        return np.flatnonzero(track.valid)[::step] - self.first_frame

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
            draw = chance.uniform(self.seed, "flip", epoch, indices, lanes=1)[:, 0]
            mirrored = torch.from_numpy(np.flatnonzero(draw < 0.5))
            for joints in (joints2d, joints3d):
                joints.index_copy_(0, mirrored, mirror(joints.index_select(0, mirrored), self.swap))
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


def known_joints3d(track: Track) -> NDArray[np.float32]:
    """3D joints of a track.

    Raises:
        DataError: If it has none.
    """
    if track.joints3d is None:
        raise DataError(
            f"{track.sequence.name}: has no 3D joints, so it cannot be trained on or scored"
        )
    return track.joints3d


def mirror(joints: torch.Tensor, swap: Many[int]) -> torch.Tensor:
    """Joints of a mirrored picture, (..., J, C): x negated, left and right exchanged; a copy."""
    order = torch.as_tensor(swap, device=joints.device)
    mirrored = joints.index_select(-2, order)
    mirrored[..., 0].neg_()
    return mirrored


class Videos:
    """Evaluation batches: one whole video each, whatever its length."""

    def __init__(self, tracks: Many[Track]) -> None:
        self.tracks = list(tracks)
        self.actions = sorted({track.sequence.action for track in tracks})
        self.groups = sorted({track.sequence.group for track in tracks})

    def __len__(self) -> int:
        return len(self.tracks)

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """The video with a batch axis of one: joints2d (1, T, J, 2) and so on, and its action."""
        _, (index,) = key
        track = self.tracks[index]
        batch = {
            "joints2d": track.joints2d[None],
            "visible": track.visible[None],
            "valid": track.valid[None],
            "action": self.actions.index(track.sequence.action),
            "group": self.groups.index(track.sequence.group),
            "index": np.array([index]),
        }
        return batch if track.joints3d is None else {**batch, "joints3d": track.joints3d[None]}


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
        refilm: Epochs after which the training motion is filmed anew, see `filmed_anew`: other
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
        refilm: int = 0,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, workers=workers, seed=seed)
        self.source, self.detections, self.step, self.flip = source, detections, step, flip
        self.joint_mask, self.frame_mask, self.refilm = joint_mask, frame_mask, refilm
        if refilm and self._from_pictures():
            raise UsageError(
                f"refilm is {refilm} and detections are {detections}: only exact or noisy 2D can "
                "be made of motion filmed anew; set refilm to 0"
            )
        self.tracks: dict[Split, list[Track]] = {}
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
        if not self._from_pictures():
            return
        from pipeline.detections import ensure

        for split in self._splits():
            ensure(self.source, self.detections, split)

    def setup(self, stage: str) -> None:
        """Read the splits that the stage needs."""
        for split in self._splits():
            if split not in self.tracks:
                self.tracks[split] = self._tracks(split)
        if stage == "fit":
            self.train_set = Takes(self._take, self.refilm) if self.refilm else self._take(0)
        self.evaluation_sets = {
            split: Videos(tracks) for split, tracks in self.tracks.items() if split != "train"
        }

    def _take(self, take: int) -> Windows:
        """Training windows of one take; the first shows the source as it is."""
        tracks = self.tracks["train"]
        if take:
            sequences = filmed_anew([t.sequence for t in tracks], self.seed, take)
            tracks = [self._made(s, f"take {take} of {s.name}") for s in sequences]
        T = self.lifter.frames
        step = self.step or (max(1, T // 3) if self.lifter.output == "every" else 1)
        return Windows(
            tracks,
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
        flat = np.concatenate([t.joints2d[t.valid] for t in self.tracks["train"]])
        seen = np.concatenate([t.visible[t.valid] for t in self.tracks["train"]])[..., None]
        deep = np.concatenate([known_joints3d(t)[t.valid] for t in self.tracks["train"]])
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

    def _splits(self) -> tuple[Split, ...]:
        fn = self.trainer.state.fn  # type: ignore[union-attr]
        if fn == TrainerFn.FITTING:
            return ("train", "val")
        return ("val",) if fn == TrainerFn.VALIDATING else ("test",)

    def _from_pictures(self) -> bool:
        return self.detections not in ("exact", "noisy")

    def _tracks(self, split: Split) -> list[Track]:
        sequences = self.source.sequences(split)
        if not sequences:
            raise DataError(f"{self.source.describe()}: no sequences in split {split}")
        skeleton = self.lifter.skeleton
        if self._from_pictures():
            from pipeline.detections import ensure

            found = ensure(self.source, self.detections, split)
            self.unseen = conversion(found.skeleton, skeleton, allow_missing=True).missing
            return [
                track(s, skeleton, *found.of(s.name, skeleton, allow_missing=True))
                for s in sequences
            ]
        return [self._made(s, s.name) for s in sequences]

    def _made(self, sequence: Sequence, noise: str) -> Track:
        """A video with exact or noisy 2D; `noise` names the draw."""
        skeleton = self.lifter.skeleton
        exact = conversion(sequence.skeleton, skeleton).joints(exact_joints2d(sequence))
        if self.detections == "exact":
            return track(sequence, skeleton, exact, np.ones(exact.shape[:2]))
        noisy, score = detection_noise(exact, sequence.fps, self.seed, noise)
        return track(sequence, skeleton, noisy, score)
