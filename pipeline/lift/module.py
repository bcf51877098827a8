"""The lifting stage: a LightningModule around any lifter, with flip test and stitching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from pipeline.dashboard import panels
from pipeline.errors import UsageError
from pipeline.lift.clips import frame_subset, lift_in_windows, smooth, smoothing_reach
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
from pipeline.lift.sequences import PreparedSequence, flip_joints, require_joints3d
from pipeline.lift.windows import WholeSequences
from pipeline.metrics.joint_subsets import evaluated_joints
from pipeline.metrics.motion_table import QUANTITIES, PoseErrorReport
from pipeline.skeleton import MPI3DHP17
from pipeline.sources import Split
from pipeline.training.schedules import Schedule


class LiftModule(LifterStage):
    """LightningModule that trains a lifter: 2D clips to 3D clips.

    Batches: see `LiftDataModule`. Predictions are re-rooted before they are evaluated. Logged:

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
        root_evaluated: Whether the root counts, whose error is zero.
        overlap: `once` evaluates every frame once; `mixste` evaluates the frames that the last
            window of a sequence shares with the one before twice, as MixSTE's published code does.
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
    test_settings = ("flip_test", "evaluated", "root_evaluated", "overlap")
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
        overlap: Literal["once", "mixste"] = "once",
        smooth: float = 0.0,
        frames: Literal["all", "subset"] = "all",
    ) -> None:
        super().__init__(net, optimizer, schedule, loss or MixSTELoss(), pretrained)
        if overlap == "mixste" and net.output != "every":
            raise UsageError(
                f"overlap is mixste, but {type(net).__name__} has no windows that overlap; set once"
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
        self.evaluated = list(evaluated_joints(net.skeleton, evaluated, root=root_evaluated))
        self.root_evaluated, self.overlap = root_evaluated, overlap
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
        lifted = self.lift_unsmoothed(joints2d, visible)
        return smooth(lifted, self.smooth) if self.smooth else lifted

    def lift_unsmoothed(
        self, joints2d: Tensor, visible: Tensor, frames: Tensor | None = None
    ) -> Tensor:
        """Lift a clip, every frame once, with flip test and without smoothing.

        Args:
            joints2d: Normalised 2D, (N, J, C).
            visible: Visibility of the joints, bool, (N, J).
            frames: Numbers of the frames to lift, (K,); None for all.

        Returns:
            Joints as from `lift`, (N, J, 3), or (K, J, 3).
        """
        lifted = lift_in_windows(self, self.net, joints2d, visible, frames=frames)
        if self.flip_test:
            flipped2d, flipped_visible = flip_joints(joints2d, self.swap), visible[:, self.swap]
            flipped = lift_in_windows(self, self.net, flipped2d, flipped_visible, frames=frames)
            lifted = (lifted + flip_joints(flipped, self.swap)) / 2
        return lifted - lifted[:, self.net.skeleton.root, None]

    def lift_for_evaluation(self, joints2d: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Lift the frames of a clip that are evaluated, see the argument `frames`.

        Args:
            joints2d: Normalised 2D, (N, J, C).
            visible: Visibility of the joints, bool, (N, J).

        Returns:
            Joints as from `lift`, (N, J, 3), NaN in frames that are not lifted; and which frames
            are lifted, (N,).
        """
        if self.frames == "all":
            return self.lift(joints2d, visible), visible.new_ones(len(visible))
        frames = frame_subset(len(joints2d))
        subset = self.lift_unsmoothed(joints2d, visible, frames)
        lifted = subset.new_full((*visible.shape, 3), torch.nan)
        lifted[frames] = subset
        return lifted, frame_subset_mask(visible)

    def on_fit_start(self) -> None:
        """Set the statistics of the training split; a resumed run has them in its checkpoint."""
        if self.trainer.ckpt_path:
            return
        statistics = self.data_module.statistics()
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
        lifted, is_lifted = self.lift_for_evaluation(joints2d, visible)
        counted = valid & is_lifted
        action = int(batch["action"])
        self.evaluation.update(action, lifted, target, counted)
        T = self.net.frames
        shared = -len(target) % T  # frames that the last window shares with the one before
        if self.overlap == "mixste" and shared and len(target) > T:
            again = self.lift(joints2d[-T:], visible[-T:])[:shared]
            self.evaluation.update(action, again, target[-T:][:shared], valid[-T:][:shared])
        if split == "test":
            self.evaluation.update_test(batch, lifted, counted, self.mean_pose)

    def conclude(self, split: Split) -> None:
        """Log the errors over all sequences of all processes; print those of a test."""
        quantities = QUANTITIES if self.frames == "all" else SUBSET_QUANTITIES
        report = self.evaluation.log_errors(self, split, quantities)
        if split != "test":
            return
        self.report = report
        mean_pose_known = bool(self.mean_pose.any())  # imported weights come without it
        self.evaluation.log_test_errors(self, quantities, mean_pose_known=mean_pose_known)
        self.print(report.text(self.protocol("test")))
        for line in self.evaluation.summary_lines(report, mean_pose_known=mean_pose_known):
            self.print(line)
        panels.log_lift_panels(self.trainer, self._shown_clips(), report, self.net.skeleton)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Lift one sequence, (T, J, 3), see `lift`."""
        return self.lift(batch["joints2d"][0], batch["visible"][0])

    def protocol(self, split: str) -> str:
        """Evaluation protocol in one line: data, 2D, joints, root, flip test, smoothing, frames."""
        data = self.data_module
        unseen = f" (without {', '.join(data.unseen)})" if data.unseen else ""
        root = "counted" if self.net.skeleton.root in self.evaluated else "not counted"
        flip = "on" if self.flip_test else "off"
        frames = "every valid frame" if self.frames == "all" else "valid frames 0 and 1 of every 16"
        reach = smoothing_reach(self.smooth)
        smoothing = f"smoothed (Gaussian, +-{reach} frames)" if self.smooth else "not smoothed"
        overlap = ""
        if self.overlap == "mixste":
            overlap = ", those of overlapping windows twice (as MixSTE's code)"
        return (
            f"{split} split of {data.source.describe()}; 2D {data.detections}{unseen}; "
            f"{len(self.evaluated)} joints, root-relative, re-rooted, root {root}; "
            f"flip test {flip}; {smoothing}; {frames} once{overlap}; mm"
        )

    def _shown_clips(self) -> list[panels.LiftedClip]:
        """Test sequences for the dashboard; empty on all ranks but 0."""
        errors = self.evaluation.gather_errors(self)
        if not self.trainer.is_global_zero:
            return []
        return [
            _lifted_clip(self, self.evaluation.sequences.sequences[index], errors[index].item())
            for index in select_shown(errors)
        ]


def _lifted_clip(
    module: LiftModule, prepared: PreparedSequence, error: float, frames: int = 250
) -> panels.LiftedClip:
    """The first frames of a sequence, lifted, with the error of all its evaluated frames."""
    joints2d, visible = prepared.joints2d[:frames], prepared.visible[:frames]
    predicted = module.lift(
        torch.from_numpy(joints2d).to(module.device), torch.from_numpy(visible).to(module.device)
    )
    return panels.LiftedClip(
        name=prepared.sequence.name,
        predicted=predicted.cpu().numpy(),
        target=require_joints3d(prepared)[:frames],
        error=error,
        joints2d=joints2d,
        score=visible.astype(np.float32),
        fps=prepared.sequence.fps,
    )
