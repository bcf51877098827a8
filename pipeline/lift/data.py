"""What room 3 sees: 2D clips, exact, noisy or detected, beside the 3D motion they show."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import chance
from pipeline.camera import normalise, project, world_to_camera
from pipeline.corrupt import detection_noise
from pipeline.datasets import MotionSource, Sequence, Split
from pipeline.errors import DataError
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
        joints3d: Root-relative joints in the camera frame, metres, (T, J, 3), float32; none where unknown.
        valid: Frames that may be trained on and scored, (T,).
    """

    sequence: Sequence
    joints2d: NDArray[np.float32]
    visible: NDArray[np.bool_]
    joints3d: NDArray[np.float32] | None
    valid: NDArray[np.bool_]


def exact_joints2d(sequence: Sequence) -> NDArray[np.float64]:
    """Where the joints of a sequence really are in its pictures, pixels, (T, J, 2), in the sequence's joint set.

    Raises:
        DataError: If it has neither 2D nor 3D joints.
    """
    if sequence.joints2d is not None:
        return sequence.joints2d.astype(np.float64)
    if sequence.joints3d is None:
        raise DataError(
            f"{sequence.name}: has neither 2D nor 3D joints; give `detections` a checkpoint or a file"
        )
    return project(world_to_camera(sequence.joints3d, sequence.camera), sequence.camera)


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
            f"{sequence.name}: frame {frame} has a 3D joint that is not finite ({int((~good).sum())} such frames); "
            "repair it or mark those frames as not valid"
        )


class Windows:
    """Training batches: windows of all videos, gathered with one copy, a part of them mirrored."""

    def __init__(
        self, tracks: Many[Track], lifter: Lifter, *, step: int, flip: bool, seed: int
    ) -> None:
        T = lifter.frames
        self.frames, self.flip, self.seed = T, flip, seed
        self.swap = list(lifter.skeleton.swap)
        self.output, self.receptive_field = lifter.output, lifter.receptive_field
        self.causal = getattr(lifter, "causal", False)
        pad = T
        self.joints2d = Padded([t.joints2d for t in tracks], pad)
        self.visible = Padded([t.visible for t in tracks], pad)
        self.joints3d = Padded([_joints3d(t) for t in tracks], pad)
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
        around = self.receptive_field - 1
        before = around if self.causal else around // 2
        return np.flatnonzero(track.valid)[::step] - before

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """Windows (B, T, J, ...) and targets of the frames that the lifter gives out."""
        epoch, indices = key
        first = self.first[torch.from_numpy(indices)]
        target_first, target_frames = first, self.frames
        if self.output != "every":
            around = self.receptive_field - 1
            target_first = first + (around if self.causal else around // 2)
            target_frames = self.frames - around
        joints2d = self.joints2d.windows(first, self.frames)
        visible = self.visible.windows(first, self.frames)
        joints3d = self.joints3d.windows(target_first, target_frames)
        valid = self.valid.windows(target_first, target_frames)
        if self.flip:
            mirrored = torch.from_numpy(
                chance.uniform(self.seed, "flip", epoch, indices, lanes=1)[:, 0] < 0.5
            )
            joints2d[mirrored] = mirror(joints2d[mirrored], self.swap)
            visible[mirrored] = visible[mirrored][..., self.swap]
            joints3d[mirrored] = mirror(joints3d[mirrored], self.swap)
        return {
            "joints2d": joints2d,
            "visible": visible,
            "joints3d": joints3d,
            "valid": valid,
            "index": torch.from_numpy(indices),
        }


def _joints3d(track: Track) -> NDArray[np.float32]:
    if track.joints3d is None:
        raise DataError(
            f"{track.sequence.name}: has no 3D joints, so it cannot be trained on or scored"
        )
    return track.joints3d


def mirror(joints: torch.Tensor, swap: Many[int]) -> torch.Tensor:
    """Joints of a mirrored picture, (..., J, C): x negated, left and right exchanged; a copy, exact both ways."""
    mirrored = joints[..., swap, :]
    mirrored[..., 0].neg_()
    return mirrored


class Videos:
    """Evaluation batches: one whole video each, whatever its length."""

    def __init__(self, tracks: Many[Track]) -> None:
        self.tracks = list(tracks)
        self.actions = sorted({track.sequence.action for track in tracks})

    def __len__(self) -> int:
        return len(self.tracks)

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """The video with its batch axis of one: joints2d (1, T, J, 2) and so on, and its action's number."""
        _, (index,) = key
        track = self.tracks[index]
        batch = {
            "joints2d": track.joints2d[None],
            "visible": track.visible[None],
            "valid": track.valid[None],
            "action": self.actions.index(track.sequence.action),
            "index": np.array([index]),
        }
        return batch if track.joints3d is None else {**batch, "joints3d": track.joints3d[None]}


class LiftDataModule(StageData):
    """Clips of 2D joints with the 3D motion they show.

    Batches while training: `joints2d` (B, T, J, 2) normalised, `visible` (B, T, J), `joints3d` (B, T', J, 3) metres
    root-relative in the camera frame, `valid` (B, T'), `index` (B,). In evaluation: one whole video each.
    T, T' and the joint set are asked of the lifter.

    Args:
        source: Where the motion comes from.
        detections: Which 2D the lifter gets: `exact` (projected joints), `noisy` (the open benchmark's detection noise
            on them), a checkpoint of a 2D stage (its cached detections), or a file of detections made elsewhere.
        batch_size: Windows per batch and process.
        step: Frames from one training window to the next; by default a third of T, at least 1.
        flip: Mirror half of the training windows.
        workers: Loader processes while training.
        seed: Of order, flips and noise.
    """

    def __init__(
        self,
        source: MotionSource,
        detections: str = "exact",
        *,
        batch_size: int = 64,
        step: int | None = None,
        flip: bool = True,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, workers=workers, seed=seed)
        self.source, self.detections, self.step, self.flip = source, detections, step, flip
        self.tracks: dict[Split, list[Track]] = {}

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
            T = self.lifter.frames
            step = self.step or (max(1, T // 3) if self.lifter.output == "every" else 1)
            self.train_set = Windows(
                self.tracks["train"], self.lifter, step=step, flip=self.flip, seed=self.seed
            )
        self.evaluation_sets = {
            split: Videos(tracks) for split, tracks in self.tracks.items() if split != "train"
        }

    def statistics(self) -> Statistics:
        """Mean and deviation of every coordinate over the valid frames of the training split."""
        flat = np.concatenate([t.joints2d[t.valid] for t in self.tracks["train"]])
        deep = np.concatenate([_joints3d(t)[t.valid] for t in self.tracks["train"]])
        return Statistics(
            *(
                torch.from_numpy(number.astype(np.float32))
                for number in (
                    flat.mean(0, np.float64),
                    flat.std(0, np.float64),
                    deep.mean(0, np.float64),
                    deep.std(0, np.float64),
                )
            )
        )

    def _splits(self) -> tuple[Split, ...]:
        fn = self.trainer.state.fn  # type: ignore[union-attr]
        return {"fit": ("train", "val"), "validate": ("val",)}.get(fn.value, ("test",))  # type: ignore[return-value]

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
            return [track(s, skeleton, *found.of(s.name, skeleton)) for s in sequences]
        tracks = []
        for s in sequences:
            joints2d = conversion(s.skeleton, skeleton).joints(exact_joints2d(s))
            score = np.ones(joints2d.shape[:2])
            if self.detections == "noisy":
                joints2d, score = detection_noise(joints2d, s.fps, self.seed, s.name)
            tracks.append(track(s, skeleton, joints2d, score))
        return tracks
