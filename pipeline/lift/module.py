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
from pipeline.lift.clips import lift_in_windows, smooth, subset_frames
from pipeline.lift.data import LiftDataModule
from pipeline.lift.evaluation import OF_SUBSET, LiftEvaluation, in_subset, ranked_indices
from pipeline.lift.lifter import Lifter
from pipeline.lift.lifter_stage import LifterStage
from pipeline.lift.losses import MixSTELoss, ZScoredMSE
from pipeline.lift.martinez import ZScored
from pipeline.lift.sequences import PreparedSequence, flip_joints, require_joints3d
from pipeline.lift.windows import WholeSequences
from pipeline.metrics.motion_table import QUANTITIES, MotionReport
from pipeline.metrics.pck import evaluated_joints
from pipeline.skeleton import MPI3DHP17
from pipeline.sources import Split
from pipeline.training.schedules import Schedule


class LiftModule(LifterStage):
    """Learns to lift 2D clips to 3D clips.

    Batches: see `LiftDataModule`. Logged: `train/loss`; `val/` and `test/` `mpjpe_mm`,
    `p_mpjpe_mm`, `n_mpjpe_mm`, `mpjve_mm`, each as a mean over frames and, with `_action_mean`,
    over actions; `test/subset_` those of frames 0 and 1 of every 16 alone (see `clips.subset`),
    where every lifter can be compared. Predictions are re-rooted before they are scored. On
    MPI-INF-3DHP also `pck3d_150mm` and `auc3d`, over its 14 joints. A checkpoint holds the lifter,
    the mask token, the mean pose of the training split, and the digest and report of pretrained
    weights; it needs no other file.

    Args:
        net: The lifter.
        optimizer: Makes the optimiser from the parameters.
        schedule: Learning-rate factor by step.
        loss: Of (predicted, target, valid), see `pipeline.lift.losses`.
        flip_test: Lift each clip and its mirror image and average.
        pretrained: A checkpoint of `heatlift pretrain` to start from.
        evaluated: Joints that errors are means over: 17, all of them; 16, without the nose; 14,
            without pelvis, spine and nose.
        root_evaluated: Whether the root counts, whose error is zero.
        overlap: `once` scores every frame once; `mixste` scores the frames that the last window of
            a video shares with the one before twice, as MixSTE's published evaluation does.
        smooth: Standard deviation, in frames, of a Gaussian over time that smooths what comes out
            in evaluation and prediction; 0 for none.
        frames: Those that are lifted and scored in evaluation: `all`, or, for lifters that give out
            the centre frame alone, the `subset_frames` of two in a row of every 16. They cannot be
            smoothed: their neighbours are not lifted.

    Raises:
        UsageError: If these do not fit the lifter or each other.
    """

    stage = "lift"
    data_class = LiftDataModule
    example_config = "lift/mixste_small"
    test_settings = ("flip_test", "evaluated", "root_evaluated", "overlap")
    mean_pose: Tensor

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
        super().__init__(net, optimizer, schedule, pretrained)
        if overlap == "mixste" and net.output != "every":
            raise UsageError(
                f"overlap is mixste, but {type(net).__name__} has no windows that overlap; set once"
            )
        if frames == "subset" and (net.output != "centre" or smooth):
            reason = (
                f"smooth is {smooth:g}, which needs every frame; set it to 0"
                if net.output == "centre"
                else f"{type(net).__name__} lifts all frames of a window at once; set all"
            )
            raise UsageError(f"frames is subset, but {reason}")
        self.frames = frames
        joints = evaluated_joints(net.skeleton, evaluated, root=root_evaluated)
        self.evaluated = list(joints)
        self.root_evaluated, self.overlap, self.smooth = root_evaluated, overlap, smooth
        self.loss = loss or MixSTELoss()
        self.flip_test = flip_test
        self.register_buffer("mean_pose", torch.zeros(len(net.skeleton), 3))
        self.evaluation: LiftEvaluation
        self.report: MotionReport | None = None

    def lift(self, joints2d: Tensor, visible: Tensor) -> Tensor:
        """Lift a clip of any length, every frame once: (N, J, C), (N, J) -> (N, J, 3), root at 0.

        This is what validation, test, prediction and the front door do, flip test and smoothing
        included.
        """
        lifted = self._lift(joints2d, visible)
        return smooth(lifted, self.smooth) if self.smooth else lifted

    def lift_evaluated(self, joints2d: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Lift the frames of a clip that are scored, see `frames`.

        Args:
            joints2d: Normalised 2D, (N, J, C).
            visible: Which joints were seen, (N, J).

        Returns:
            Joints as `lift` gives them, (N, J, 3), NaN in frames that are not lifted; and which
            frames are, (N,).
        """
        if self.frames == "all":
            return self.lift(joints2d, visible), visible.new_ones(len(visible))
        frames = subset_frames(len(joints2d))
        found = self._lift(joints2d, visible, frames)
        lifted = found.new_full((*visible.shape, 3), torch.nan)
        lifted[frames] = found
        return lifted, in_subset(visible)

    def on_fit_start(self) -> None:
        """Give the training split's statistics to those who need them."""
        if self.trainer.ckpt_path:
            return
        statistics = self.data_module.statistics()
        self.mean_pose.copy_(statistics.mean3d)
        if isinstance(self.net, ZScored) and "pretrained" not in self.origin:
            self.net.set_statistics(statistics)
        if isinstance(self.loss, ZScoredMSE):
            self.loss.set_statistics(statistics)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of windows."""
        predicted = self(batch["joints2d"], batch["visible"])
        loss: Tensor = self.loss(predicted, batch["joints3d"], batch["valid"])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def begin(self, split: Split) -> None:
        """Empty tables for the sequences of a split."""
        sequences = cast(WholeSequences, self.data_module.evaluation_sets[split])
        self.evaluation = LiftEvaluation(
            sequences,
            self.net.skeleton,
            self.evaluated,
            with_pck=self.data_module.source.skeleton is MPI3DHP17,
            device=self.device,
        )

    def score(self, split: Split, batch: Mapping[str, Tensor]) -> None:
        """Score one whole sequence; in a test the mean training pose on it, too."""
        names = ("joints2d", "visible", "joints3d", "valid")
        joints2d, visible, target, valid = (batch[part][0] for part in names)
        lifted, among = self.lift_evaluated(joints2d, visible)
        counted = valid & among
        action = int(batch["action"])
        self.evaluation.update(action, lifted, target, counted)
        twice = -len(target) % self.net.frames
        if self.overlap == "mixste" and twice and len(target) > self.net.frames:
            last = slice(-self.net.frames, None)
            again = self.lift(joints2d[last], visible[last])
            self.evaluation.update(action, again[:twice], target[last][:twice], valid[last][:twice])
        if split == "test":
            self.evaluation.update_test(batch, lifted, counted, self.mean_pose)

    def conclude(self, split: Split) -> None:
        """Log the errors over all sequences of all processes; print the test's per action."""
        report = self.evaluation.log_errors(self, split, self._quantities)
        if split != "test":
            return
        self.report = report
        self.evaluation.log_test(self, self._quantities)
        self.print(report.text(self.protocol("test")))
        for line in self.evaluation.lines(report, known_mean_pose=bool(self.mean_pose.any())):
            self.print(line)
        panels.lift_panels(self.trainer, self._clips(), report, self.net.skeleton)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Lift one video, (T, J, 3)."""
        return self.lift(batch["joints2d"][0], batch["visible"][0])

    def protocol(self, split: str) -> str:
        """What a number of this run is a number of."""
        data, counted = self.data_module, self.net.skeleton.root in self.evaluated
        unseen = f" (without {', '.join(data.unseen)})" if data.unseen else ""
        twice = ", those of overlapping windows twice (as MixSTE's code)"
        frames = "every valid frame" if self.frames == "all" else "valid frames 0 and 1 of every 16"
        return (
            f"{split} split of {data.source.describe()}; 2D {data.detections}{unseen}; "
            f"{len(self.evaluated)} joints, root-relative, re-rooted, root {'' if counted else 'not '}"
            f"counted; flip test {'on' if self.flip_test else 'off'}; {frames} once"
            f"{twice if self.overlap == 'mixste' else ''}; mm"
        )

    @property
    def _quantities(self) -> tuple[str, ...]:
        """What can be measured on the frames that are scored."""
        return QUANTITIES if self.frames == "all" else OF_SUBSET

    def _lift(self, joints2d: Tensor, visible: Tensor, frames: Tensor | None = None) -> Tensor:
        """`lift` before smoothing; of some frames alone if they are given."""
        lifted = lift_in_windows(self, self.net, joints2d, visible, frames=frames)
        if self.flip_test:
            swap = self.swap
            mirrored, seen = flip_joints(joints2d, swap), visible[:, swap]
            other = lift_in_windows(self, self.net, mirrored, seen, frames=frames)
            lifted = (lifted + flip_joints(other, swap)) / 2
        return lifted - lifted[:, self.net.skeleton.root, None]

    def _clips(self) -> list[panels.LiftedClip]:
        """Test sequences for the dashboard; on rank 0."""
        errors = self.evaluation.gathered_errors(self)
        if not self.trainer.is_global_zero:
            return []
        return [
            _lifted_clip(self, self.evaluation.sequences.sequences[index], errors[index].item())
            for index in ranked_indices(errors)
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
