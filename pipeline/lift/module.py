"""The lifting stage: a LightningModule around any lifter, with flip test and stitching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.dashboard import panels
from pipeline.errors import UsageError
from pipeline.lift.clips import (
    frame_subset,
    lift_in_windows,
    lift_overlapping,
    smooth,
    smoothing_reach,
    window_frames,
)
from pipeline.lift.data import LiftDataModule
from pipeline.lift.evaluation import (
    SUBSET_QUANTITIES,
    LiftEvaluation,
    frame_subset_mask,
    select_shown,
)
from pipeline.lift.lifter import Lifter
from pipeline.lift.lifter_stage import LifterStage
from pipeline.lift.losses import MixSTELoss, ZScoredMSE
from pipeline.lift.martinez import ZScored
from pipeline.lift.sequences import (
    PreparedSequence,
    lift_with_mirror,
    prediction_facts,
    require_joints3d,
)
from pipeline.lift.windows import WholeSequences
from pipeline.metrics.joint_subsets import evaluated_joints
from pipeline.metrics.motion_table import QUANTITIES, PoseErrorReport
from pipeline.skeleton import MPI3DHP17
from pipeline.sources import Split
from pipeline.training.protocol import NOT_IN_PROTOCOL
from pipeline.training.schedules import Schedule

_OVERLAPS = {
    "once": "once each",
    "mixste": "frames and padding of all windows",
    "blend": "overlapping windows, blended",
}
"""Value of `overlap` -> its words in the protocol line."""


class LiftModule(LifterStage):
    """LightningModule that trains a lifter: 2D clips to 3D clips.

    Batches: see `LiftDataModule`. Logged:

    - `train/loss`;
    - `val/` and `test/`: `mpjpe_mm`, `p_mpjpe_mm`, `n_mpjpe_mm`, `mpjve_mm`, `acceleration_mm` as
      means over frames, and the same with `_action_mean` before `_mm` as means over actions; on
      MPI-INF-3DHP also `pck3d_150mm` and `auc3d`, over its 14 joints;
    - `test/mpjpe_GROUP_mm` for each group of sequences that has a name;
    - `test/subset_`: the first four errors, and MPJPE per group, on the frame subset alone, where
      every lifter can be compared (`clips.frame_subset`);
    - `test/mean_pose_`: the errors of the mean pose of the training split, and `test/of_mean_pose`,
      the lifter's MPJPE divided by that of the mean pose.

    A checkpoint holds the lifter, the mask token, the mean pose of the training split, and the
    digest and report of pretrained weights; nothing else is needed to use it.

    Args:
        net: Lifter to train.
        optimizer: Optimizer class and its arguments.
        schedule: Learning-rate factor by step; None keeps the rate constant.
        loss: Loss of (predicted, target, valid), see `pipeline.lift.losses`; MixSTELoss by default.
        flip_test: Whether each clip and its mirror image are lifted and averaged.
        pretrained: Checkpoint of `heatlift pretrain` to start from.
        evaluated: Joints that errors are means over: 17 for all of them; 16 without the nose; 14
            without pelvis, spine and nose.
        root_evaluated: Whether the root counts; its error is zero if `reroot` is true.
        reroot: Whether the predicted root is moved to zero before a pose is evaluated. False
            evaluates poses as they are predicted, as the published code of VideoPose3D, PoseFormer
            and MixSTE does. Output of `predict` has its root at zero either way.
        overlap: `once` evaluates every frame once; `mixste` evaluates all frames of all windows, as
            MixSTE's published code does: frames of two windows count twice, so does the padding of
            a sequence shorter than a window, and velocities run from one window to the next;
            `blend` lifts windows that overlap by half and blends them, as `heatlift predict` does,
            for twice the time.
        smooth: Standard deviation, in frames, of a Gaussian over time that smooths predictions in
            evaluation and prediction; 0 for none.
        frames: Frames that are lifted and evaluated: `all`, or `subset` for frames 0 and 1 of every
            16. `subset` is for lifters that predict the centre frame alone, without smoothing.

    Raises:
        UsageError: If these do not fit the lifter or each other.
    """

    stage = "lift"
    data_class = LiftDataModule
    example_config = "lift/mixste_small"
    test_settings = (
        "flip_test", "evaluated", "root_evaluated", "reroot", "smooth", "overlap", "frames"
    )  # fmt: skip
    not_in_protocol = NOT_IN_PROTOCOL | {
        "data.step": "training windows only",
        "data.flip": "training windows only",
        "data.joint_mask": "training windows only",
        "data.frame_mask": "training windows only",
        "data.augment_every": "training windows only",
    }
    mean_pose: Tensor
    evaluation: LiftEvaluation

    def __init__(
        self,
        net: Lifter,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        loss: nn.Module | None = None,
        *,
        flip_test: bool = True,
        pretrained: str | None = None,
        evaluated: Literal[17, 16, 14] = 17,
        root_evaluated: bool = True,
        reroot: bool = True,
        overlap: Literal["once", "mixste", "blend"] = "once",
        smooth: float = 0.0,
        frames: Literal["all", "subset"] = "all",
    ) -> None:
        super().__init__(net, optimizer, schedule, loss or MixSTELoss(), pretrained)
        _check_arguments(net, overlap=overlap, smooth=smooth, frames=frames)
        self.evaluated = list(evaluated_joints(net.skeleton, evaluated, root=root_evaluated))
        self.root_evaluated, self.reroot, self.overlap = root_evaluated, reroot, overlap
        self.flip_test, self.smooth, self.frames = flip_test, smooth, frames
        self.register_buffer("mean_pose", torch.zeros(len(net.skeleton), 3))
        self.report: PoseErrorReport | None = None

    def lift(self, joints2d: Tensor, visible: Tensor) -> Tensor:
        """Lift a clip of any length, every frame once, with flip test and smoothing.

        Args:
            joints2d: Normalised 2D, (N, J, C).
            visible: Visibility of the joints, bool, (N, J).

        Returns:
            Joints in the camera frame, metres, (N, J, 3), with the root at zero.
        """
        lifted, _ = self._lift_frames(joints2d, visible, None)
        return lifted - lifted[:, self.net.skeleton.root, None]

    def lift_unsmoothed(self, joints2d: Tensor, visible: Tensor) -> Tensor:
        """Lift all frames of a clip for an evaluation, without smoothing.

        Args:
            joints2d: Normalised 2D, (N, J, C).
            visible: Visibility of the joints, bool, (N, J).

        Returns:
            Joints in the camera frame, metres, (N, J, 3), with the root at zero if `reroot` is
            true.
        """
        return self._evaluated_root(_lift_with_flips(self, joints2d, visible, None))

    def lift_for_evaluation(self, joints2d: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Lift the frames of a clip that are evaluated, see the argument `frames`.

        Args:
            joints2d: Normalised 2D, (N, J, C).
            visible: Visibility of the joints, bool, (N, J).

        Returns:
            Joints in the camera frame, metres, (N, J, 3), with the root at zero if `reroot` is
            true, and NaN in frames that are not lifted; and which frames are lifted, (N,).
        """
        frames = None if self.frames == "all" else frame_subset(len(joints2d))
        lifted, is_lifted = self._lift_frames(joints2d, visible, frames)
        return self._evaluated_root(lifted), is_lifted

    def on_fit_start(self) -> None:
        """Set the statistics of the training split; a resumed run has them in its checkpoint."""
        if self.trainer.ckpt_path:
            return
        statistics = self.data_module.statistics()
        self.trained_sizes = self.data_module.size_range()
        self.trained_rate = self.data_module.frame_rate()
        self.mean_pose.copy_(statistics.mean3d)
        if isinstance(self.net, ZScored) and "pretrained" not in self.origin:
            self.net.set_statistics(statistics)
        if isinstance(self.loss, ZScoredMSE):
            self.loss.set_statistics(statistics)

    def begin(self, split: Split) -> None:
        """Make empty tables for the sequences of a split."""
        self.evaluation = LiftEvaluation(
            cast(WholeSequences, self.data_module.evaluation_sets[split]),
            self.net.skeleton,
            self.evaluated,
            for_test=split == "test",
            with_pck=self.data_module.source.skeleton is MPI3DHP17,
            device=self.device,
        )

    def score(self, split: Split, batch: Mapping[str, Tensor]) -> None:
        """Evaluate one whole sequence; in a test also the mean pose on it."""
        names = ("joints2d", "visible", "joints3d", "valid")
        joints2d, visible, target, valid = (batch[name][0] for name in names)
        windows = self.overlap == "mixste"
        order = window_frames(len(target), self.net.frames) if windows else slice(None)
        lifted, is_lifted = self.lift_for_evaluation(joints2d[order], visible[order])
        counted = valid[order] & is_lifted
        self.evaluation.update(int(batch["action"]), lifted, target[order], counted)
        if split == "test":
            self.evaluation.update_test(batch, order, lifted, counted, self.mean_pose)

    def conclude(self, split: Split) -> None:
        """Log the errors over all sequences of all processes; print those of a test."""
        quantities = QUANTITIES if self.frames == "all" else SUBSET_QUANTITIES
        report = self.evaluation.log_errors(self, split, quantities)
        if split != "test":
            return
        self.report = report
        mean_pose_known = bool(self.mean_pose.any())  # imported weights come without it
        self.evaluation.log_test_errors(self, quantities, mean_pose_known=mean_pose_known)
        self.print(report.text())
        self.print(
            *self.evaluation.summary_lines(report, mean_pose_known=mean_pose_known), sep="\n"
        )
        panels.log_lift_panels(self.trainer, _shown_clips(self), report, self.net.skeleton)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Lift one sequence, (T, J, 3), see `lift`."""
        return self.lift(batch["joints2d"][0], batch["visible"][0])

    def prediction_facts(self, index: NDArray[np.int64]) -> dict[str, Any]:
        """See `pipeline.lift.sequences.prediction_facts`; a file has one whole sequence."""
        sequences = self.data_module.evaluation_sets["test"].sequences
        return prediction_facts(sequences[index.item()], self.net.skeleton)

    def protocol_parts(self, split: Split) -> dict[str, str]:
        """See `Stage.protocol_parts`."""
        return super().protocol_parts(split) | _evaluation_parts(self)

    def _lift_frames(
        self, joints2d: Tensor, visible: Tensor, frames: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Lift a clip, or the frames with these numbers, (K,), with flip test and smoothing.

        Returns:
            Joints, (N, J, 3), with the root as predicted, NaN in frames that are not lifted; and
            which frames are lifted, (N,).
        """
        lifted = _lift_with_flips(self, joints2d, visible, frames)
        if frames is None:
            lifted = smooth(lifted, self.smooth) if self.smooth else lifted
            return lifted, visible.new_ones(len(visible))
        clip = lifted.new_full((*visible.shape, 3), torch.nan)
        clip[frames] = lifted
        return clip, frame_subset_mask(visible)

    def _evaluated_root(self, lifted: Tensor) -> Tensor:
        """Lifted joints, (N, J, 3), with their root at zero if `reroot` is true."""
        return lifted - lifted[:, self.net.skeleton.root, None] if self.reroot else lifted


def _check_arguments(net: Lifter, *, overlap: str, smooth: float, frames: str) -> None:
    """Raise `UsageError` if arguments of `LiftModule` do not fit the lifter or each other."""
    if overlap != "once" and net.output != "every":
        raise UsageError(
            f"overlap is {overlap}, but {type(net).__name__} has no windows that overlap; set once"
        )
    if overlap == "mixste" and smooth:
        raise UsageError(
            f"overlap is mixste, but smooth is {smooth:g}, which MixSTE's code has not; set it to 0"
        )
    if frames == "subset" and net.output != "centre":
        raise UsageError(
            f"frames is subset, but {type(net).__name__} lifts all frames of a window at once; "
            "set all"
        )
    if frames == "subset" and smooth:
        raise UsageError(
            f"frames is subset, but smooth is {smooth:g}, which needs every frame; set it to 0"
        )


def _lift_with_flips(
    module: LiftModule, joints2d: Tensor, visible: Tensor, frames: Tensor | None
) -> Tensor:
    """Lift a clip, or the frames with these numbers, (K,), with the flip test of the module."""

    def lift(windows: Tensor, visible: Tensor) -> Tensor:
        if module.flip_test:
            return lift_with_mirror(module, windows, visible, module.swap)
        lifted: Tensor = module(windows, visible)
        return lifted

    if module.overlap == "blend":
        return lift_overlapping(lift, module.net, joints2d, visible)
    return lift_in_windows(lift, module.net, joints2d, visible, frames=frames)


def _evaluation_parts(module: LiftModule) -> dict[str, str]:
    """The part of `LiftModule.protocol_parts` that is not about the data set."""
    data = module.data_module
    unseen = f" (without {', '.join(data.unseen)})" if data.unseen else ""
    request = data.detections
    return {
        "data.detections": f"2D {request}{unseen}",
        "data.detector_precision": _in_precision(data),
        "data.first_frame": "" if request.first_frame is None else f"from {request.first_frame}",
        "data.person": "" if request.person is None else f"person {request.person}",
        "data.video": f"crop camera, {data.video.rate:g} Hz" if data.video else "",
        "data.seed": f"noise seed {data.seed}" if request.kind == "noisy" else "",
        "model.evaluated": f"{len(module.evaluated)} joints, root-relative, mm",
        "model.root_evaluated": f"root {'' if module.root_evaluated else 'not '}counted",
        **lifting_parts(module),
        "model.overlap": _OVERLAPS[module.overlap],
    }


def _in_precision(data: LiftDataModule) -> str:
    """Precision of the detector, where detections come from one and it is not float32."""
    is_default = data.detections.kind != "checkpoint" or data.detector_precision == "32-true"
    return "" if is_default else f"detected in {data.detector_precision}"


def lifting_parts(module: LiftModule) -> dict[str, str]:
    """The part of `LiftModule.protocol_parts` that is about `lift_for_evaluation`."""
    subset, reach = module.frames == "subset", smoothing_reach(module.smooth)
    smoothing = f"smoothed (Gaussian of {module.smooth:g} frames, +-{reach})"
    return {
        "model.reroot": "re-rooted" if module.reroot else "predicted root kept",
        "model.flip_test": f"flip test {'on' if module.flip_test else 'off'}",
        "model.smooth": smoothing if module.smooth else "not smoothed",
        "model.frames": "valid frames 0 and 1 of every 16" if subset else "every valid frame",
    }


def _shown_clips(module: LiftModule) -> list[panels.LiftedClip]:
    """Test sequences for the dashboard; empty on all ranks but 0."""
    errors = module.evaluation.gather_errors(module)
    if not module.trainer.is_global_zero:
        return []
    return [
        _lifted_clip(module, module.evaluation.sequences.sequences[index], errors[index].item())
        for index in select_shown(errors)
    ]


def _lifted_clip(
    module: LiftModule, prepared: PreparedSequence, error: float, frames: int = 250
) -> panels.LiftedClip:
    """The first frames of a sequence, lifted, with the error of all its evaluated frames."""
    joints2d, visible = prepared.joints2d[:frames], prepared.visible[:frames]
    lifted, _ = module._lift_frames(
        torch.from_numpy(joints2d).to(module.device),
        torch.from_numpy(visible).to(module.device),
        None,
    )
    predicted = module._evaluated_root(lifted)
    return panels.LiftedClip(
        name=prepared.sequence.name,
        predicted=predicted.cpu().numpy(),
        target=require_joints3d(prepared)[:frames],
        error=error,
        joints2d=joints2d,
        score=visible.astype(np.float32),
        fps=prepared.sequence.fps,
    )
