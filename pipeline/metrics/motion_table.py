"""Pose and motion errors per action and per joint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import printable
from pipeline.metrics.exact_metric import ExactSumMetric
from pipeline.metrics.functional import (
    MILLIMETRES,
    Poses,
    aligned_errors,
    as_tensor,
    check_shapes,
    derivative_errors,
    joint_distances,
    map_blocks,
    paired_frames,
    rigid_errors,
    scaled_errors,
)

QUANTITIES = ("mpjpe", "p_mpjpe", "n_mpjpe", "mpjve", "acceleration")
"""The columns of a `PoseErrorReport`: mm, mm, mm, mm per frame, mm per frame squared."""

RIGID_QUANTITIES = (*QUANTITIES[:2], "rigid_mpjpe", *QUANTITIES[2:])
"""The same and, after P-MPJPE, the MPJPE after rigid alignment; see `PoseErrorTable`."""

TITLES = {
    "mpjpe": "MPJPE",
    "p_mpjpe": "P-MPJPE",
    "rigid_mpjpe": "rigid",
    "n_mpjpe": "N-MPJPE",
    "mpjve": "MPJVE",
    "acceleration": "accel.",
}
"""Quantity -> its name in tables."""

_STEPS_PER_MM = 2.0**20
"""Sums of a sequence are rounded to 1 / 2^20 mm. Adding them is then exact in float64, up to 8,000
km of error in all, hence the same in any order and over any number of processes."""


@dataclass  # not frozen: torchmetrics walks through what compute returns and sets every field
class PoseErrorRow:
    """Frames and errors of one action, millimetres; see `QUANTITIES`.

    `mpjve` is None without two successive frames, `acceleration` without three.
    """

    name: str
    frames: int
    mpjpe: float
    p_mpjpe: float
    n_mpjpe: float
    mpjve: float | None
    acceleration: float | None
    rigid_mpjpe: float | None = None


@dataclass
class PoseErrorReport:
    """Errors that a `PoseErrorTable` computed, millimetres; see `QUANTITIES`, `RIGID_QUANTITIES`.

    Args:
        rows: Errors of each action that has frames, in the table's order.
        frame_mean: Quantity -> mean over all frames (over all pairs or triples of successive frames
            for the last two).
            A quantity that is not defined is left out: motion of single images, everything without
            a frame. A NaN is an error that is not finite.
        action_mean: Quantity -> mean over the rows, as Human3.6M's tables average their 15 actions;
            the same quantities, each over the rows where it is defined.
        per_joint: Joint -> MPJPE, mean over all frames.
    """

    rows: list[PoseErrorRow]
    frame_mean: dict[str, float]
    action_mean: dict[str, float]
    per_joint: dict[str, float]

    @property
    def quantities(self) -> tuple[str, ...]:
        """The columns: `QUANTITIES` or `RIGID_QUANTITIES`."""
        return tuple(self.frame_mean)

    def text(self) -> str:
        """The report as a plain table.

        A quantity that is not defined, such as the motion of single images, has no column.
        """
        frames = sum(row.frames for row in self.rows)
        lines: list[tuple[str, int, Sequence[float | None]]] = [
            (printable(row.name), row.frames, [getattr(row, name) for name in self.quantities])
            for row in self.rows
        ]
        lines.append(("mean over frames", frames, list(self.frame_mean.values())))
        lines.append(("mean over actions", frames, list(self.action_mean.values())))
        width = max(len(name) for name, _, _ in lines)
        titles = "".join(f"{TITLES[name]:>9}" for name in self.quantities)
        head = f"{'mm':<{width}} {'frames':>9}{titles}"
        body = [
            f"{name:<{width}} {count:>9,}"
            + "".join(f"{'' if value is None else f'{value:.2f}':>9}" for value in values)
            for name, count, values in lines
        ]
        rule = "-" * len(head)
        return "\n".join([head, rule, *body[:-2], rule, *body[-2:]])


class PoseErrorTable(ExactSumMetric):
    """Errors per action and per joint over whole sequences, with exact sums under DDP.

    Call `update` once per sequence, with all its frames, in one process: the result is then the
    same, bit for bit, for any number of processes.

    Args:
        actions: Names of the actions, one per row; `update` takes the index.
        joints: Names of the joints.
        rigid: Whether the error after rigid alignment is computed, too.
    """

    higher_is_better = False
    is_differentiable = False
    sums: Tensor
    counts: Tensor
    joint_sums: Tensor

    def __init__(
        self, actions: Sequence[str], joints: Sequence[str], *, rigid: bool = False
    ) -> None:
        super().__init__()
        self.actions, self.joints = tuple(actions), tuple(joints)
        self.quantities = RIGID_QUANTITIES if rigid else QUANTITIES
        for name, shape in (
            ("sums", (len(self.actions), len(self.quantities))),
            ("counts", (len(self.actions), len(self.quantities))),
            ("joint_sums", (len(self.joints),)),
        ):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        action: int,
        predicted: Poses,
        target: Poses,
        valid: NDArray[np.bool_] | Tensor | None = None,
    ) -> None:
        """Add one whole sequence.

        Args:
            action: Index of its action.
            predicted: Predicted joints, metres, root-relative, (T, J, 3).
            target: True joints, metres, root-relative, (T, J, 3).
            valid: Whether a frame counts, (T,); none for all. A velocity or acceleration counts
                where all of its frames do.

        Raises:
            ValueError: If shapes or the number of joints do not fit.
        """
        a, b = paired_frames(predicted, target)
        if predicted.ndim != 3 or len(self.joints) != a.shape[1]:
            raise ValueError(
                f"this table takes (T, {len(self.joints)}, 3), not {tuple(predicted.shape)}"
            )
        check_shapes(predicted.shape[:1], valid=valid)
        use = torch.ones(len(a), dtype=torch.bool, device=a.device)
        if valid is not None:
            use = as_tensor(valid).to(a.device, torch.bool)
        pairs = use[1:] & use[:-1]
        triples = pairs[1:] & pairs[:-1]
        velocities = derivative_errors(a, b, order=1)[0][pairs]
        accelerations = derivative_errors(a, b, order=2)[0][triples]
        a, b = a[use], b[use]
        distances = map_blocks(joint_distances, a, b) if len(a) else a.new_zeros(a.shape[:2])
        columns = [distances.mean(1)]
        rigid = [rigid_errors] if "rigid_mpjpe" in self.quantities else []
        for errors in (aligned_errors, *rigid, scaled_errors):
            columns.append(map_blocks(errors, a, b) if len(a) else distances[:, 0])
        columns += [velocities, accelerations]
        sums = torch.stack([column.sum() for column in columns]) * MILLIMETRES
        self.sums[action] += self._rounded(sums)
        self.counts[action] += self.counts.new_tensor([len(column) for column in columns])
        self.joint_sums += self._rounded(distances.sum(0) * MILLIMETRES)

    def _rounded(self, sums: Tensor) -> Tensor:
        sums = sums.to(self.sums.device, torch.float64)
        return torch.round(sums * _STEPS_PER_MM) / _STEPS_PER_MM

    def compute(self) -> PoseErrorReport:
        """Errors of all sequences so far."""
        frames = self.counts[:, 0]
        means = self.sums / self.counts
        rows = []
        for i in frames.nonzero()[:, 0].tolist():
            columns = zip(self.quantities, means[i].tolist(), self.counts[i].tolist(), strict=True)
            errors = {name: mean if count else None for name, mean, count in columns}
            rows.append(PoseErrorRow(self.actions[i], int(frames[i]), **errors))  # type: ignore[arg-type]
        frame_mean, action_mean = {}, {}
        for column, name in enumerate(self.quantities):
            defined = self.counts[:, column] > 0
            if defined.any():
                counts = self.counts[:, column].sum()
                frame_mean[name] = float(self.sums[:, column].sum() / counts)
                action_mean[name] = float(means[defined, column].mean())
        joints = self.joint_sums / frames.sum()
        per_joint = dict(zip(self.joints, joints.tolist(), strict=True))
        return PoseErrorReport(rows, frame_mean, action_mean, per_joint)
