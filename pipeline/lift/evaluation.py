"""Errors of a lifter over whole sequences: per action, per group, on the frame subset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.lift.clips import frame_subset
from pipeline.lift.windows import WholeSequences
from pipeline.metrics.functional import mpjpe
from pipeline.metrics.motion_table import QUANTITIES, PoseErrorReport, PoseErrorTable
from pipeline.metrics.pck import PCK3D
from pipeline.skeleton import Skeleton
from pipeline.sources import Split
from pipeline.training.stage import Stage

NOT_EVALUATED = -1.0
"""Error of a sequence that another process evaluates or that has no valid frame."""

SUBSET_QUANTITIES = QUANTITIES[:4]
"""Quantities that two successive frames suffice for: all but accelerations."""


class LiftEvaluation:
    """Metrics of one validation or test.

    Args:
        sequences: Sequences that are evaluated.
        skeleton: Joint set of the lifter.
        evaluated: Indices of the evaluated joints, over which errors are means.
        for_test: Whether the tables of `update_test` are needed.
        with_pck: Whether 3DPCK and AUC are measured, too (MPI-INF-3DHP).
        device: Device of the sums.
    """

    def __init__(
        self,
        sequences: WholeSequences,
        skeleton: Skeleton,
        evaluated: Sequence[int],
        *,
        for_test: bool,
        with_pck: bool,
        device: torch.device,
    ) -> None:
        self.sequences, self.evaluated = sequences, list(evaluated)
        joints = [skeleton.joints[j] for j in evaluated]
        rows = {"errors": sequences.actions}
        if for_test:
            rows |= {"mean_pose": sequences.actions}
            rows |= {"group": sequences.groups, "subset": sequences.groups}
        self.tables = {
            name: PoseErrorTable(names, joints).to(device) for name, names in rows.items()
        }
        self.pck = PCK3D(skeleton).to(device) if with_pck else None
        self.per_sequence = torch.full(
            (len(sequences),), NOT_EVALUATED, dtype=torch.float64, device=device
        )

    def update(self, action: int, predicted: Tensor, target: Tensor, valid: Tensor) -> None:
        """Add frames of a sequence to the errors per action, and to 3DPCK.

        Args:
            action: Index of its action, see `WholeSequences.actions`.
            predicted: Predicted joints, metres, (T, J, 3).
            target: True root-relative joints, metres, (T, J, 3).
            valid: Frames that count, (T,).
        """
        joints = self.evaluated
        self.tables["errors"].update(action, predicted[:, joints], target[:, joints], valid)
        if self.pck is not None:
            self.pck.update(predicted, target, valid)

    def update_test(
        self,
        batch: Mapping[str, Tensor],
        order: Tensor | slice,
        predicted: Tensor,
        valid: Tensor,
        mean_pose: Tensor,
    ) -> None:
        """Add a test sequence to the tables of groups, frame subset and mean pose.

        Args:
            batch: The sequence, see `WholeSequences`.
            order: Frame numbers of the evaluated frames, (N,), every frame at least once; or a
                slice that takes all frames.
            predicted: Predicted joints of these frames, metres, (N, J, 3).
            valid: Which of these frames count, (N,).
            mean_pose: Mean pose of the training split, metres, (J, 3).
        """
        joints = self.evaluated
        predicted = predicted[:, joints]
        target = batch["joints3d"][0][order][:, joints]
        group = int(batch["group"])
        self.tables["group"].update(group, predicted, target, valid)
        mean = mean_pose[joints].expand_as(target)
        self.tables["mean_pose"].update(int(batch["action"]), mean, target, valid)
        if isinstance(order, Tensor):  # the frame subset has every frame once
            first = torch.from_numpy(np.unique(order.numpy(), return_index=True)[1])
            predicted, target, valid = predicted[first], target[first], valid[first]
        if valid.any():
            self.per_sequence[int(batch["index"])] = mpjpe(predicted[valid], target[valid])
        self.tables["subset"].update(group, predicted, target, valid & frame_subset_mask(valid))

    def log_errors(self, module: Stage, split: Split, quantities: Sequence[str]) -> PoseErrorReport:
        """Log the errors as means over frames and over actions, as far as they are defined.

        Raises:
            DataError: If there is no frame to evaluate.
        """
        report: PoseErrorReport = self.tables["errors"].compute()
        if not report.rows and not module.trainer.sanity_checking:
            source = module.data_module.source.describe()
            raise DataError(
                f"{source}: no frame of its {split} split can be evaluated; check which are valid"
            )
        for quantity in _known(quantities, report):
            value = report.frame_mean[quantity]
            module.log(f"{split}/{quantity}_mm", value, prog_bar=quantity == "mpjpe")
            module.log(f"{split}/{quantity}_action_mean_mm", report.action_mean[quantity])
        if self.pck is not None:
            shares = self.pck.compute()
            module.log(f"{split}/pck3d_150mm", shares["pck3d@150mm"])
            module.log(f"{split}/auc3d", shares["auc"])
        return report

    def log_test_errors(
        self, module: Stage, quantities: Sequence[str], *, mean_pose_known: bool
    ) -> None:
        """Log the errors per group, on the frame subset, and of the mean pose if it is known."""
        for row in self.tables["group"].compute().rows:
            if row.name:
                module.log(f"test/mpjpe_{row.name}_mm", row.mpjpe)
        subset = self.tables["subset"].compute()
        for quantity in _known(SUBSET_QUANTITIES, subset):
            module.log(f"test/subset_{quantity}_mm", subset.frame_mean[quantity])
        for row in subset.rows:
            if row.name:
                module.log(f"test/subset_mpjpe_{row.name}_mm", row.mpjpe)
        if mean_pose_known:
            baseline: PoseErrorReport = self.tables["mean_pose"].compute()
            for quantity in _known(quantities, baseline):
                module.log(f"test/mean_pose_{quantity}_mm", baseline.frame_mean[quantity])
            errors = self.tables["errors"].compute().frame_mean
            module.log("test/of_mean_pose", errors["mpjpe"] / baseline.frame_mean["mpjpe"])

    def summary_lines(self, report: PoseErrorReport, *, mean_pose_known: bool) -> Iterator[str]:
        """Lines that a test prints below its table of actions.

        Args:
            report: Errors per action, as `log_errors` returns them.
            mean_pose_known: Whether the mean pose is known; imported weights come without it.
        """
        groups = self.tables["group"].compute()
        if any(row.name for row in groups.rows):
            yield "per group of sequences:"
            yield groups.text()
        if self.pck is not None:
            shares = self.pck.compute()
            yield (
                f"3DPCK@150mm {100 * shares['pck3d@150mm']:.2f} %, AUC {100 * shares['auc']:.2f} % "
                "(14 joints, errors strictly below 5 to 150 mm, mean over frames)"
            )
        if mean_pose_known:
            baseline = self.tables["mean_pose"].compute().frame_mean["mpjpe"]
            error = report.frame_mean["mpjpe"]
            yield (
                f"always guessing the mean pose: {baseline:.1f} mm; "
                f"this lifter: {error:.1f} mm ({100 * error / baseline:.0f} %)"
            )
        else:
            yield "always guessing the mean pose: not known, as these weights come without it"

    def gather_errors(self, module: Stage) -> Tensor:
        """MPJPE of each sequence in millimetres, from all processes, (S,)."""
        gathered = cast(Tensor, module.all_gather(self.per_sequence))
        return gathered.reshape(module.trainer.world_size, -1).amax(0)  # NaN stays


def _known(quantities: Sequence[str], report: PoseErrorReport) -> list[str]:
    """The quantities that are defined in a report, in order."""
    return [quantity for quantity in quantities if quantity in report.frame_mean]


def frame_subset_mask(frames: Tensor) -> Tensor:
    """Which frames of a clip, (N, ...), are in its frame subset, (N,)."""
    mask = torch.zeros(len(frames), dtype=torch.bool, device=frames.device)
    mask[frame_subset(len(frames))] = True
    return mask


def select_shown(errors: Tensor) -> list[int]:
    """Indices of the sequences to show, worst first: the three worst, the middle one, three best.

    Args:
        errors: Error of each sequence, (S,); `NOT_EVALUATED` is left out.
    """
    order = errors.argsort(descending=True, stable=True)  # NaN first
    ranked: list[int] = order[errors[order] != NOT_EVALUATED].tolist()
    return [*ranked[:3], ranked[len(ranked) // 2], *ranked[-3:]] if len(ranked) > 7 else ranked
