"""Errors of a lifter on people in any video: by camera, joint set, frame rate and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.camera import world_to_camera
from pipeline.experiments.rendered_people import find_on_renders
from pipeline.lift.any_video import AnyVideo, VideoPart, resample_motion
from pipeline.lift.corruption import add_detection_noise
from pipeline.lift.module import LiftModule
from pipeline.lift.sequences import exact_joints2d
from pipeline.metrics.functional import MILLIMETRES, aligned_errors, scaled_errors
from pipeline.predict.blazepose import BlazePose
from pipeline.predict.lifting import lift_track
from pipeline.predict.options import LiftOptions
from pipeline.predict.tracks import Track
from pipeline.skeleton import BLAZEPOSE33, H36M17, make_conversion
from pipeline.sources import Sequence as MotionSequence
from pipeline.sources import true_runs
from pipeline.training.console import print_line

PLAIN: dict[str, Any] = {
    "clean": 1.0,
    "hidden": 0.0,
    "fov_known": 1.0,
    "bodies": False,
    "tempo": (1.0, 1.0),
}
"""Arguments of `AnyVideo` for exact 2D of the source's own bodies by cameras that are known."""

PITCHES = ((-30, -15), (-15, 0), (0, 15), (15, 30))
FOVS = ((35, 55), (55, 75), (75, 90))
HEIGHTS = ((0.15, 0.3), (0.3, 0.6), (0.6, 1.2))
RATES = (24.0, 25.0, 30.0, 50.0, 60.0)
JOINT_SETS = ("H36M17", "COCO17", "BLAZEPOSE33", "BODY25", "HALPE26")

RENDERED, RENDERED_SECONDS = 12, 2.0
"""Number and length of the parts that are rendered for BlazePose."""


@dataclass(frozen=True, eq=False)
class PartErrors:
    """Errors in the frames of one part that were lifted, millimetres.

    Args:
        part: The part.
        joints: Error of each joint after root alignment, (N, 17).
        scaled: Mean error of each frame after the best scale, too, (N,).
        aligned: Mean error of each frame after Procrustes alignment, (N,).
        lifted: Share of the part's frames that were lifted.
    """

    part: VideoPart
    joints: NDArray[np.float64]
    scaled: NDArray[np.float64]
    aligned: NDArray[np.float64]
    lifted: float


@dataclass(frozen=True)
class BoxRow:
    """One row of the report.

    Args:
        table: Table that the row belongs to.
        name: Name of the row.
        frames: Number of evaluated frames.
        mpjpe: MPJPE, millimetres.
        n_mpjpe: N-MPJPE, millimetres.
        p_mpjpe: P-MPJPE, millimetres.
        lifted: Share of the frames that were lifted; the others show too little of the person.
    """

    table: str
    name: str
    frames: int
    mpjpe: float
    n_mpjpe: float
    p_mpjpe: float
    lifted: float


def make_row(table: str, name: str, errors: Sequence[PartErrors]) -> BoxRow:
    """The row of some parts: means over their frames."""
    joints = np.concatenate([np.zeros((0, len(H36M17))), *(e.joints for e in errors)])
    total = sum(len(e.part.joints3d) for e in errors)

    def mean(values: Iterable[NDArray[np.float64]]) -> float:
        joined = np.concatenate([np.zeros(0), *values])
        return float(joined.mean()) if len(joined) else float("nan")

    return BoxRow(
        table,
        name,
        len(joints),
        mean([joints.mean(axis=1)] if len(joints) else []),
        mean(e.scaled for e in errors),
        mean(e.aligned for e in errors),
        len(joints) / max(total, 1),
    )


def compare(part: VideoPart, predicted: NDArray[np.float64]) -> PartErrors:
    """Errors of predicted joints, (T, 17, 3), camera frame, metres, NaN where not predicted."""
    known = np.isfinite(predicted).all(axis=(1, 2))
    truth = torch.from_numpy((part.joints3d - part.joints3d[:, :1])[known])
    joints = torch.from_numpy((predicted - predicted[:, :1])[known])
    distance = MILLIMETRES * torch.linalg.vector_norm(joints - truth, dim=-1)
    scaled = MILLIMETRES * scaled_errors(joints, truth)
    aligned = MILLIMETRES * aligned_errors(joints, truth)
    share = float(known.mean())
    return PartErrors(part, distance.numpy(), scaled.numpy(), aligned.numpy(), share)


def lift_part(
    module: LiftModule, part: VideoPart, score: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """Lift a part as `heatlift predict` does, without smoothing: (T, 17, 3), camera frame."""
    found: NDArray[np.bool_] = np.asarray(np.isfinite(part.joints2d).all(axis=-1))
    known = np.where(found, 1.0 if score is None else score, 0.0).astype(np.float32)
    track = Track("A", np.arange(len(found)), part.joints2d.astype(np.float32), known)
    lifted = lift_track(
        track,
        part.skeleton,
        module,
        np.arange(len(found)) / part.rate,
        focal=LiftOptions(fov=part.fov).focal_length(part.camera.size),
        principal=(float(part.camera.principal[0]), float(part.camera.principal[1])),
        joint_threshold=LiftOptions().joint_thr,
        fill_gaps=LiftOptions().fill_gaps,
    )
    return lifted.joints3d


def own_cameras(
    sequences: Sequence[MotionSequence], rate: float, *, noisy: bool = False
) -> list[VideoPart]:
    """Sequences as their own cameras see them: one camera of each recording, in turn."""
    parts = []
    recordings = {id(s.joints3d): [t for t in sequences if t.joints3d is s.joints3d]
                  for s in sequences}  # fmt: skip
    for number, shared in enumerate(recordings.values()):
        sequence = shared[number % len(shared)]
        assert sequence.joints3d is not None
        joints2d = exact_joints2d(sequence)
        if noisy:
            found = add_detection_noise(joints2d, sequence.fps, 0, sequence.name)[0]
            joints2d = found.astype(np.float64)
        in_camera = world_to_camera(sequence.joints3d, sequence.camera)
        fov = np.degrees(2 * np.arctan(max(sequence.camera.size) / 2 / sequence.camera.focal[0]))
        for run in true_runs(sequence.valid_frames):
            new = sequence.fps if noisy else rate
            parts.append(
                VideoPart(
                    sequence.name,
                    sequence.action,
                    new,
                    H36M17,
                    resample_motion(joints2d[run], sequence.fps, new),
                    resample_motion(in_camera[run], sequence.fps, new),
                    sequence.camera,
                    float(fov),
                )
            )
    return [part for part in parts if len(part.joints3d) >= 0.3 * part.rate]


class BoxReport:
    """Measures the rows of the report.

    Args:
        module: The lifter.
        sequences: Test sequences with world joints.
        seed: Seed of cameras and noise.
    """

    def __init__(
        self, module: LiftModule, sequences: Sequence[MotionSequence], seed: int = 0
    ) -> None:
        self.module, self.sequences, self.seed = module, list(sequences), seed
        self.rows: list[BoxRow] = []
        self.exact: list[PartErrors] = []

    def record(self, **arguments: Any) -> list[VideoPart]:
        """Parts of all recordings; the cameras depend only on the arguments about cameras."""
        video = AnyVideo(**{**PLAIN, "joint_sets": ("H36M17",), **arguments})
        recordings = {id(s.joints3d): s for s in reversed(self.sequences)}
        return [part for s in recordings.values() for part in video.record(s, self.seed, 0)]

    def lift(self, parts: Sequence[VideoPart]) -> list[PartErrors]:
        """Errors of the lifter on some parts."""
        return [compare(part, lift_part(self.module, part)) for part in parts]

    def add(self, table: str, name: str, errors: Sequence[PartErrors]) -> None:
        """Add a row, and print it."""
        row = make_row(table, name, errors)
        self.rows.append(row)
        print_line(f"  {table}: {name}: {row.mpjpe:.1f} mm, {row.frames} frames")

    def add_bins(
        self, table: str, bins: Sequence[tuple[float, float]], of: Callable[[VideoPart], float]
    ) -> None:
        """Add a row for each range of a property of the parts of `exact`."""
        for low, high in bins:
            chosen = [e for e in self.exact if low <= of(e.part) < high]
            self.add(table, f"{low:g} to {high:g}", chosen)

    def measure(self, network: BlazePose | None = None) -> None:
        """Measure all rows.

        Args:
            network: BlazePose, for the rows on rendered people.
        """
        own, rate = "the benchmark's own cameras", self.module.trained_rate or 50.0
        self.add(own, "exact", self.lift(own_cameras(self.sequences, rate)))
        noisy = self.lift(own_cameras(self.sequences, rate, noisy=True))
        self.add(own, "with the benchmark's noise, 50 Hz", noisy)
        self.exact = self.lift(self.record(rate=rate))
        self.add("any camera", "exact", self.exact)
        self.add("any camera", "field of view not known", self.lift(self.record(fov_known=0.0)))
        self.add_bins("pitch of the camera, degrees", PITCHES, pitch_of)
        self.add_bins("field of view, degrees", FOVS, field_of_view)
        self.add_bins("height of a standing person, share of the image", HEIGHTS, height_of)
        for other in RATES:
            self.add("frame rate, Hz", f"{other:g}", self.lift(self.record(rate=other)))
        for name in JOINT_SETS:
            self.add("joint set of the detector", name, self.lift(self.record(joint_sets=(name,))))
        self.add("joint set of the detector", "COCO17, one limb or both legs hidden",
                 self.lift(self.record(joint_sets=("COCO17",), hidden=1.0)))  # fmt: skip
        for level in (0.5, 1.0, 1.5):
            parts = self.record(joint_sets=("COCO17",), clean=0.0, noise=(level, level))
            self.add("noise of real detectors, COCO17", f"x {level:g}", self.lift(parts))
        mean = self.module.mean_pose.double().cpu().numpy()
        still = [compare(e.part, np.repeat(mean[None], len(e.part.joints3d), 0))
                 for e in self.exact]  # fmt: skip
        self.add("yardsticks", "mean pose of training, any camera", still)
        if network is not None:
            self._compare_with_blazepose(network)

    def _compare_with_blazepose(self, network: BlazePose) -> None:
        """Rows on rendered people: BlazePose's own 3D, and the lifter on the same 2D."""
        parts = self.record(height=(0.35, 0.9), aim=0.3, seconds=RENDERED_SECONDS)
        chosen = parts[:: max(1, len(parts) // RENDERED)][:RENDERED]
        to_h36m = make_conversion(BLAZEPOSE33, H36M17)
        own, lifted = [], []
        for number, part in enumerate(chosen):
            found = find_on_renders(part, network, number)
            detected = VideoPart(part.name, part.action, part.rate, BLAZEPOSE33, found.joints2d,
                                 part.joints3d, part.camera, part.fov)  # fmt: skip
            own.append(compare(part, to_h36m.joints(found.joints3d).astype(np.float64)))
            lifted.append(compare(part, lift_part(self.module, detected, found.score)))
        self.add("rendered people, found by BlazePose", "BlazePose's own 3D", own)
        self.add("rendered people, found by BlazePose", "this lifter, same 2D", lifted)


def pitch_of(part: VideoPart) -> float:
    """Angle at which the camera looks up (positive) or down, degrees."""
    return float(np.degrees(np.arcsin(part.camera.rotation[2, 2])))


def field_of_view(part: VideoPart) -> float:
    """Field of view along the longer side, degrees."""
    return float(np.degrees(2 * np.arctan(max(part.camera.size) / 2 / part.camera.focal[0])))


def height_of(part: VideoPart) -> float:
    """Height of a standing person of 1.7 m in the image, as a share of the image's height."""
    depth = float(np.median(part.joints3d[:, 0, 2]))
    return 1.7 * float(part.camera.focal[1]) / depth / part.camera.size[1]
