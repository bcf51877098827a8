"""How room 3 learns: a LightningModule around any lifter; hand-over, flip test, stitching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from pipeline import dashboard
from pipeline.checkpoint import HandOver, hand_over
from pipeline.errors import UsageError
from pipeline.lift.clips import smoothed, stitch, subset
from pipeline.lift.data import LiftDataModule, Videos, known_joints3d, mirror
from pipeline.lift.lifter import Lifter
from pipeline.lift.losses import MixSTELoss, ZScoredMSE
from pipeline.lift.martinez import ZScored
from pipeline.metrics import QUANTITIES, MotionReport, MotionTable, mpjpe
from pipeline.protocols import PCK3D, scored_joints
from pipeline.skeleton import MPI3DHP17
from pipeline.stage import Schedule, Stage

_UNSCORED = -1.0
"""Stands for the error of a video that another process scores, or none."""

_OF_SUBSET = QUANTITIES[:4]
"""What can be measured on two frames in a row: all but accelerations."""


class LifterStage(Stage):
    """What pretraining and lifting share: a lifter, its mask token, and where weights come from.

    Args:
        net: The lifter.
        optimizer: Makes the optimiser from the parameters.
        schedule: Learning-rate factor by step.
        pretrained: A checkpoint whose weights a fresh fit starts from, or that is tested as it is,
            all of `net`, where no checkpoint of this stage is given. The checkpoints of this run
            keep the digest and the report of the hand-over, not the path.
    """

    givers: ClassVar[tuple[str, ...]] = ("pretrain", "lift", "weights")

    def __init__(
        self,
        net: Lifter,
        optimizer: OptimizerCallable,
        schedule: Schedule | None,
        pretrained: str | None,
    ) -> None:
        super().__init__(optimizer, schedule)
        self.net = net
        self.pretrained = pretrained
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 2))
        self.swap = list(net.skeleton.swap)

    def forward(self, joints2d: Tensor, visible: Tensor) -> Tensor:
        """Lift clips; where a joint is not visible the lifter is given the mask token.

        Args:
            joints2d: Normalised 2D, (B, T, J, C).
            visible: Which joints were seen, (B, T, J).

        Returns:
            Root-relative joints in the camera frame, metres, float32, (B, T', J, 3).
        """
        xy = torch.where(visible[..., None], joints2d[..., :2], self.mask_token)
        given = torch.cat([xy, joints2d[..., 2:]], dim=-1) if joints2d.shape[-1] > 2 else xy
        lifted: Tensor = self.net(given, visible)
        return lifted.float()

    def setup(self, stage: str) -> None:
        """Take over the weights of an earlier stage; a checkpoint of this one, if any, comes after.

        Raises:
            UsageError: If nothing is to be trained and the file has not all of `net`.
        """
        if self.pretrained:
            fitting = stage == "fit"
            report = hand_over(
                self,
                self.pretrained,
                stages=self.givers,
                passing=("net.", "mask_token") + ("mean_pose",) * (not fitting),
                whole=not fitting,
            )
            self.pretrained = None  # once: what is learned from here on stays
            self.origin = {"pretrained": report.plain()}
            self._report(report)

    def on_train_epoch_start(self) -> None:
        """Tell the lifter how much of the training is done."""
        self.net.set_progress(self.current_epoch / max(1, self.trainer.max_epochs or 1))

    def _report(self, report: HandOver) -> None:
        if self.trainer.is_global_zero:
            self.print(f"{self.stage}: {report.text()}")
        dashboard.handover_panel(self.trainer, report)


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
        scored: Joints that errors are means over: 17, all of them; 16, without the nose; 14,
            without pelvis, spine and nose.
        root_scored: Whether the root counts, whose error is zero.
        overlap: `once` scores every frame once; `mixste` scores the frames that the last window of
            a video shares with the one before twice, as MixSTE's published evaluation does.
        smooth: Standard deviation, in frames, of a Gaussian over time that smooths what comes out
            in evaluation and prediction; 0 for none.
        frames: Those that are lifted and scored in evaluation: `all`, or, for lifters that give out
            the centre frame alone, the `subset` of two in a row of every 16. They cannot be
            smoothed: their neighbours are not lifted.

    Raises:
        UsageError: If these do not fit the lifter or each other.
    """

    stage = "lift"
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
        scored: Literal[17, 16, 14] = 17,
        root_scored: bool = True,
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
        self.scored = list(scored_joints(net.skeleton, scored, root=root_scored))
        self.root_scored, self.overlap, self.smooth = root_scored, overlap, smooth
        self.near: dict[str, PCK3D] = {}
        self.loss = loss or MixSTELoss()
        self.flip_test = flip_test
        self.register_buffer("mean_pose", torch.zeros(len(net.skeleton), 3))
        self.tables: dict[str, MotionTable] = {}
        self.errors = torch.empty(0)
        self.report: MotionReport | None = None

    def lift(self, joints2d: Tensor, visible: Tensor) -> Tensor:
        """Lift a clip of any length, every frame once: (N, J, C), (N, J) -> (N, J, 3), root at 0.

        This is what validation, test, prediction and the front door do, flip test and smoothing
        included.
        """
        lifted = self._lift(joints2d, visible)
        return smoothed(lifted, self.smooth) if self.smooth else lifted

    def lift_scored(self, joints2d: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
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
        frames = subset(len(joints2d))
        found = self._lift(joints2d, visible, frames)
        lifted = found.new_full((*visible.shape, 3), torch.nan)
        lifted[frames] = found
        return lifted, self._in_subset(visible)

    def on_fit_start(self) -> None:
        """Give the training split's statistics to those who need them."""
        if self.trainer.ckpt_path:
            return
        statistics = self._data.statistics()
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

    def on_validation_epoch_start(self) -> None:
        """An empty table."""
        self._open("val")

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Score one video."""
        self._score("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Log the errors over all videos of all processes."""
        self._close("val")

    def on_test_epoch_start(self) -> None:
        """An empty table, one for the mean pose, and one per group of sequences."""
        self.errors = torch.full((len(self._videos("test")),), _UNSCORED, device=self.device)
        self._open("test")
        self._open("mean_pose")
        for name in ("group", "subset"):
            self._open(name, self._videos("test").groups)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Score one video, and the mean training pose on it."""
        kept = self.scored
        lifted, valid = self._score("test", batch)
        predicted, target = lifted[:, kept], batch["joints3d"][0][:, kept]
        if valid.any():
            self.errors[int(batch["index"])] = mpjpe(predicted[valid], target[valid])
        group = int(batch["group"])
        self.tables["group"].update(group, predicted, target, valid)
        self.tables["subset"].update(group, predicted, target, valid & self._in_subset(valid))
        self.tables["mean_pose"].update(
            int(batch["action"]), self.mean_pose[kept].expand_as(target), target, valid
        )

    def on_test_epoch_end(self) -> None:
        """Log the errors, and print them per action beside the mean pose's."""
        report = self._close("test")
        groups = self.tables["group"].compute()
        for row in groups.rows:
            if row.name:
                self.log(f"test/mpjpe_{row.name}_mm", row.mpjpe)
        few = self.tables["subset"].compute()
        for metric in _OF_SUBSET:
            self.log(f"test/subset_{metric}_mm", few.frame_mean[metric])
        for row in few.rows:
            if row.name:
                self.log(f"test/subset_mpjpe_{row.name}_mm", row.mpjpe)
        known = bool(self.mean_pose.any())  # weights of others come without it
        baseline = self.tables["mean_pose"].compute()
        ratio = report.frame_mean["mpjpe"] / baseline.frame_mean["mpjpe"]
        if known:
            for metric in self._quantities:
                self.log(f"test/mean_pose_{metric}_mm", baseline.frame_mean[metric])
            self.log("test/of_mean_pose", ratio)
        self.report = report
        self.print(report.text(self.protocol("test")))
        if any(row.name for row in groups.rows):
            self.print(groups.text("per group of sequences:"))
        numbers = ", ".join(f"{few.frame_mean[metric]:.2f}" for metric in _OF_SUBSET)
        self.print(f"frames 0 and 1 of every 16: MPJPE, P-MPJPE, N-MPJPE, MPJVE {numbers} mm")
        if "test" in self.near:
            shares = self.near["test"].compute()
            self.print(
                f"3DPCK@150mm {100 * shares['pck3d@150mm']:.2f} %, AUC {100 * shares['auc']:.2f} % "
                "(14 joints, errors strictly below 5 to 150 mm, mean over frames)"
            )
        self.print(
            f"mean pose of the training split: {baseline.frame_mean['mpjpe']:.1f} mm; "
            f"this lifter has {ratio:.3f} of it"
            if known
            else "mean pose of the training split: not known to these weights"
        )
        dashboard.lift_panels(self.trainer, self._clips(), report, self.net.skeleton)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Lift one video, (T, J, 3)."""
        return self.lift(batch["joints2d"][0], batch["visible"][0])

    def protocol(self, split: str) -> str:
        """What a number of this run is a number of."""
        data, counted = self._data, self.net.skeleton.root in self.scored
        unseen = f" (without {', '.join(data.unseen)})" if data.unseen else ""
        twice = ", those of overlapping windows twice (as MixSTE's code)"
        frames = "every valid frame" if self.frames == "all" else "valid frames 0 and 1 of every 16"
        return (
            f"{split} split of {data.source.describe()}; 2D {data.detections}{unseen}; "
            f"{len(self.scored)} joints, root-relative, re-rooted, root {'' if counted else 'not '}"
            f"counted; flip test {'on' if self.flip_test else 'off'}; {frames} once"
            f"{twice if self.overlap == 'mixste' else ''}; mm"
        )

    @property
    def _data(self) -> LiftDataModule:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def _videos(self, name: str) -> Videos:
        return self._data.evaluation_sets["val" if name == "val" else "test"]  # type: ignore[return-value]

    @property
    def _quantities(self) -> tuple[str, ...]:
        """What can be measured on the frames that are scored."""
        return QUANTITIES if self.frames == "all" else _OF_SUBSET

    def _in_subset(self, like: Tensor) -> Tensor:
        """Which frames of a clip, (N, ...), are in the subset, (N,)."""
        mask = torch.zeros(len(like), dtype=torch.bool, device=like.device)
        mask[subset(len(like))] = True
        return mask

    def _lift(self, joints2d: Tensor, visible: Tensor, frames: Tensor | None = None) -> Tensor:
        """`lift` before smoothing; of some frames alone if they are given."""
        lifted = stitch(self, self.net, joints2d, visible, frames=frames)
        if self.flip_test:
            swap = self.swap
            mirrored, seen = mirror(joints2d, swap), visible[:, swap]
            other = stitch(self, self.net, mirrored, seen, frames=frames)
            lifted = (lifted + mirror(other, swap)) / 2
        return lifted - lifted[:, self.net.skeleton.root, None]

    def _open(self, name: str, rows: Sequence[str] | None = None) -> None:
        rows = self._videos(name).actions if rows is None else rows
        joints = [self.net.skeleton.joints[j] for j in self.scored]
        self.tables[name] = MotionTable(rows, joints).to(self.device)
        if name in ("val", "test") and self._data.source.skeleton is MPI3DHP17:
            self.near[name] = PCK3D(self.net.skeleton).to(self.device)

    def _score(self, name: str, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Score a video; what was lifted, (T, J, 3), and which frames count, (T,)."""
        names = ("joints2d", "visible", "joints3d", "valid")
        joints2d, visible, target, valid = (batch[part][0] for part in names)
        lifted, among = self.lift_scored(joints2d, visible)
        counted = valid & among
        self._add(name, batch, lifted, target, counted)
        twice = -len(target) % self.net.frames
        if self.overlap == "mixste" and twice and len(target) > self.net.frames:
            last = slice(-self.net.frames, None)
            predicted = self.lift(joints2d[last], visible[last])
            self._add(name, batch, predicted[:twice], target[last][:twice], valid[last][:twice])
        return lifted, counted

    def _add(
        self,
        name: str,
        batch: Mapping[str, Tensor],
        predicted: Tensor,
        target: Tensor,
        valid: Tensor,
    ) -> None:
        kept = self.scored
        self.tables[name].update(int(batch["action"]), predicted[:, kept], target[:, kept], valid)
        if name in self.near:
            self.near[name].update(predicted, target, valid)

    def _close(self, name: str) -> MotionReport:
        report = self.tables[name].compute()
        for metric in self._quantities:
            value = report.frame_mean[metric]
            self.log(f"{name}/{metric}_mm", value, prog_bar=metric == "mpjpe")
            self.log(f"{name}/{metric}_action_mean_mm", report.action_mean[metric])
        if name in self.near:
            shares = self.near[name].compute()
            self.log(f"{name}/pck3d_150mm", shares["pck3d@150mm"])
            self.log(f"{name}/auc3d", shares["auc"])
        return report

    def _clips(self, frames: int = 250) -> list[dashboard.LiftedClip]:
        """Test videos for the dashboard, with the error of all their scored frames; on rank 0.

        The three worst of all processes, the middle one, and the three best: their first frames.
        """
        everyones = cast(Tensor, self.all_gather(self.errors))
        errors = everyones.reshape(self.trainer.world_size, -1).amax(0)  # NaN stays
        if not self.trainer.is_global_zero:
            return []
        order = errors.argsort(descending=True, stable=True)  # NaN first
        ranked = order[errors[order] != _UNSCORED].tolist()
        if len(ranked) > 7:
            ranked = [*ranked[:3], ranked[len(ranked) // 2], *ranked[-3:]]
        tracks = self._videos("test").tracks
        clips = []
        for index in ranked:
            track = tracks[index]
            joints2d, visible = track.joints2d[:frames], track.visible[:frames]
            predicted = self.lift(
                torch.from_numpy(joints2d).to(self.device),
                torch.from_numpy(visible).to(self.device),
            )
            clips.append(
                dashboard.LiftedClip(
                    name=track.sequence.name,
                    predicted=predicted.cpu().numpy(),
                    target=known_joints3d(track)[:frames],
                    error=errors[index].item(),
                    joints2d=joints2d,
                    score=visible.astype(np.float32),
                    fps=track.sequence.fps,
                )
            )
        return clips
