"""Errors of a lifter over whole sequences: per action, per group, on the frame subset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from pipeline.lift.clips import subset_frames
from pipeline.lift.windows import WholeSequences
from pipeline.metrics.functional import mpjpe
from pipeline.metrics.motion_table import QUANTITIES, MotionReport, MotionTable
from pipeline.metrics.pck import PCK3D
from pipeline.skeleton import Skeleton
from pipeline.sources import Split
from pipeline.training.stage import Stage

NOT_EVALUATED = -1.0
"""Stands for the error of a sequence that another process evaluates, or none."""

OF_SUBSET = QUANTITIES[:4]
"""What can be measured on two frames in a row: all but accelerations."""


class LiftEvaluation:
    """The metrics of one validation or test.

    Args:
        sequences: What is evaluated.
        skeleton: The lifter's joint set.
        evaluated: Indices of the joints that errors are means over.
        with_pck: Whether 3DPCK and AUC are measured, too (MPI-INF-3DHP).
        device: Where the sums are kept.
    """

    def __init__(
        self,
        sequences: WholeSequences,
        skeleton: Skeleton,
        evaluated: Sequence[int],
        *,
        with_pck: bool,
        device: torch.device,
    ) -> None:
        self.sequences, self.evaluated = sequences, list(evaluated)
        joints = [skeleton.joints[j] for j in evaluated]
        rows = {"errors": sequences.actions, "mean_pose": sequences.actions}
        rows |= {"group": sequences.groups, "subset": sequences.groups}
        self.tables = {name: MotionTable(given, joints).to(device) for name, given in rows.items()}
        self.pck = PCK3D(skeleton).to(device) if with_pck else None
        self.per_sequence = torch.full((len(sequences),), NOT_EVALUATED, device=device)

    def update(self, action: int, predicted: Tensor, target: Tensor, valid: Tensor) -> None:
        """Add frames of a sequence.

        Args:
            action: Its number among the actions of the split.
            predicted: Root-relative joints, metres, (T, J, 3).
            target: The truth, (T, J, 3).
            valid: Frames that count, (T,).
        """
        kept = self.evaluated
        self.tables["errors"].update(action, predicted[:, kept], target[:, kept], valid)
        if self.pck is not None:
            self.pck.update(predicted, target, valid)

    def update_test(
        self, batch: Mapping[str, Tensor], lifted: Tensor, valid: Tensor, mean_pose: Tensor
    ) -> None:
        """Add a test sequence to the tables of groups, frame subset and mean pose.

        Args:
            batch: The sequence; see `WholeSequences`.
            lifted: What the lifter made of it, (T, J, 3).
            valid: Frames that count, (T,).
            mean_pose: Mean pose of the training split, (J, 3).
        """
        kept = self.evaluated
        predicted, target = lifted[:, kept], batch["joints3d"][0][:, kept]
        if valid.any():
            self.per_sequence[int(batch["index"])] = mpjpe(predicted[valid], target[valid])
        group = int(batch["group"])
        self.tables["group"].update(group, predicted, target, valid)
        self.tables["subset"].update(group, predicted, target, valid & in_subset(valid))
        self.tables["mean_pose"].update(
            int(batch["action"]), mean_pose[kept].expand_as(target), target, valid
        )

    def log_errors(self, module: Stage, split: Split, quantities: Sequence[str]) -> MotionReport:
        """Log the errors as means over frames and over actions."""
        report: MotionReport = self.tables["errors"].compute()
        for metric in quantities:
            value = report.frame_mean[metric]
            module.log(f"{split}/{metric}_mm", value, prog_bar=metric == "mpjpe")
            module.log(f"{split}/{metric}_action_mean_mm", report.action_mean[metric])
        if self.pck is not None:
            shares = self.pck.compute()
            module.log(f"{split}/pck3d_150mm", shares["pck3d@150mm"])
            module.log(f"{split}/auc3d", shares["auc"])
        return report

    def log_test(self, module: Stage, quantities: Sequence[str]) -> None:
        """Log the errors per group, on the frame subset, and against the mean pose."""
        for row in self.tables["group"].compute().rows:
            if row.name:
                module.log(f"test/mpjpe_{row.name}_mm", row.mpjpe)
        few = self.tables["subset"].compute()
        for metric in OF_SUBSET:
            module.log(f"test/subset_{metric}_mm", few.frame_mean[metric])
        for row in few.rows:
            if row.name:
                module.log(f"test/subset_mpjpe_{row.name}_mm", row.mpjpe)
        if bool(cast(Tensor, module.mean_pose).any()):  # weights of others come without it
            baseline = self.tables["mean_pose"].compute().frame_mean
            for metric in quantities:
                module.log(f"test/mean_pose_{metric}_mm", baseline[metric])
            errors = self.tables["errors"].compute().frame_mean
            module.log("test/of_mean_pose", errors["mpjpe"] / baseline["mpjpe"])

    def lines(self, report: MotionReport, *, known_mean_pose: bool) -> Iterator[str]:
        """What a test prints below its table of actions."""
        groups = self.tables["group"].compute()
        if any(row.name for row in groups.rows):
            yield groups.text("per group of sequences:")
        few = self.tables["subset"].compute().frame_mean
        numbers = ", ".join(f"{few[metric]:.2f}" for metric in OF_SUBSET)
        yield f"frames 0 and 1 of every 16: MPJPE, P-MPJPE, N-MPJPE, MPJVE {numbers} mm"
        if self.pck is not None:
            shares = self.pck.compute()
            yield (
                f"3DPCK@150mm {100 * shares['pck3d@150mm']:.2f} %, AUC {100 * shares['auc']:.2f} % "
                "(14 joints, errors strictly below 5 to 150 mm, mean over frames)"
            )
        baseline = self.tables["mean_pose"].compute().frame_mean["mpjpe"]
        if known_mean_pose:
            ratio = report.frame_mean["mpjpe"] / baseline
            yield (
                f"mean pose of the training split: {baseline:.1f} mm; "
                f"this lifter has {ratio:.3f} of it"
            )
        else:
            yield "mean pose of the training split: not known to these weights"

    def gathered_errors(self, module: Stage) -> Tensor:
        """MPJPE of each sequence in millimetres, of all processes, (S,)."""
        everyones = cast(Tensor, module.all_gather(self.per_sequence))
        return everyones.reshape(module.trainer.world_size, -1).amax(0)  # NaN stays


def in_subset(like: Tensor) -> Tensor:
    """Which frames of a clip, (N, ...), are in the frame subset, (N,)."""
    mask = torch.zeros(len(like), dtype=torch.bool, device=like.device)
    mask[subset_frames(len(like))] = True
    return mask


def ranked_indices(errors: Tensor) -> list[int]:
    """The three worst sequences, the middle one and the three best, by error, (S,)."""
    order = errors.argsort(descending=True, stable=True)  # NaN first
    ranked: list[int] = order[errors[order] != NOT_EVALUATED].tolist()
    return [*ranked[:3], ranked[len(ranked) // 2], *ranked[-3:]] if len(ranked) > 7 else ranked
