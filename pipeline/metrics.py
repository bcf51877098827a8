"""Errors of poses and motion in millimetres, as functions, as metrics, and as tables per action."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric

MILLIMETRES = 1000.0
"""Metres to millimetres: the only place where the two meet."""

Poses = NDArray[np.floating] | Tensor
"""Joints in metres, (..., J, 3)."""

Array = TypeVar("Array", NDArray[np.floating], Tensor)


def mpjpe(
    predicted: Poses, target: Poses, visible: NDArray[np.bool_] | Tensor | None = None
) -> float:
    """Mean distance between predicted and true joints (protocol 1), as given: nothing is re-rooted.

    Convention:
        Mean over all axes, float64. No joints at all: NaN.

    Args:
        predicted: Metres, (..., J, 3).
        target: Metres, (..., J, 3).
        visible: Joints that count, (..., J); none for all.

    Returns:
        Millimetres.

    Raises:
        ValueError: If the shapes differ.

    Source: Ionescu et al. 2014 (Human3.6M).

    >>> target = np.array([[[0.03, 0.0, 0.04], [0.0, 0.0, 0.01]]])
    >>> round(mpjpe(np.zeros((1, 2, 3)), target), 6)
    30.0
    """
    return _visible_errors(predicted, target, visible).mean().item() * MILLIMETRES


def p_mpjpe(predicted: Poses, target: Poses) -> float:
    """Mean distance after each frame is moved, turned and scaled onto the truth (protocol 2).

    Args:
        predicted: Metres, (..., J, 3).
        target: Metres, (..., J, 3).

    Returns:
        Millimetres; see `procrustes`. The fit makes squares least, not distances, so that a frame
        with one joint far off can come out longer than its MPJPE.

    Source: Martinez et al. 2017 and later; never mirrored.
    """
    return _in_blocks(_aligned_errors, *_flat(predicted, target)).mean().item() * MILLIMETRES


def n_mpjpe(predicted: Poses, target: Poses) -> float:
    """Mean distance after each predicted frame is scaled to fit the truth, about the origin.

    Args:
        predicted: Metres, (..., J, 3), usually root-relative.
        target: Metres, (..., J, 3).

    Returns:
        Millimetres.

    Source: Rhodin et al. 2018: scale <target, predicted> / <predicted, predicted> per frame.
    """
    return _in_blocks(_scaled_errors, *_flat(predicted, target)).mean().item() * MILLIMETRES


def mpjve(predicted: Poses, target: Poses) -> float:
    """Mean error of the joints' velocities: of differences between neighbouring frames of one clip.

    Args:
        predicted: Metres, (..., T, J, 3); every leading axis is a clip of its own.
        target: Metres, (..., T, J, 3).

    Returns:
        Millimetres per frame; NaN for clips of one frame.

    Source: Pavllo et al. 2019 (VideoPose3D), section 5.
    """
    return _motion_errors(predicted, target, order=1).mean().item() * MILLIMETRES


def acceleration_error(predicted: Poses, target: Poses) -> float:
    """Mean error of the joints' accelerations, mm per frame squared; otherwise like `mpjve`.

    Source: Kanazawa et al. 2019 (HMMR): norm of the difference of second differences.
    """
    return _motion_errors(predicted, target, order=2).mean().item() * MILLIMETRES


def root_relative(joints: Array, root: int = 0) -> Array:
    """Joints, (..., J, 3), relative to one of them."""
    return joints - joints[..., root : root + 1, :]


def procrustes(predicted: Poses, target: Poses) -> NDArray[np.float64]:
    """Move, turn and scale each predicted frame onto the truth with least squares; never mirror it.

    Args:
        predicted: Metres, (..., J, 3).
        target: Metres, (..., J, 3).

    Returns:
        The predicted joints where they fit best, metres, (..., J, 3). Poses whose joints are all
        in one place or on one line have many best rotations; one of them is taken.

    Source: the fit is Umeyama's (1991). The rotation comes in closed form from Markley's FOAM
    (1993), which gives what the singular value decomposition of each frame gives, many frames at a
    time.
    """
    flat = _in_blocks(
        lambda p, t: _align(_planes(p), _planes(t)).permute(2, 1, 0), *_flat(predicted, target)
    )
    return flat.reshape(predicted.shape).cpu().numpy()


def _tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def _flat(predicted: Poses, target: Poses) -> tuple[Tensor, Tensor]:
    """Both as tensors of frames, (N, J, 3), after a look at their shapes."""
    if predicted.shape != target.shape or predicted.ndim < 2 or predicted.shape[-1] != 3:
        raise ValueError(
            f"predicted {tuple(predicted.shape)} and target {tuple(target.shape)} must be the same "
            "(..., J, 3)"
        )
    a, b = _tensor(predicted), _tensor(target)
    shape = math.prod(a.shape[:-2]), *a.shape[-2:]
    return a.reshape(shape), b.to(a.device).reshape(shape)


def _check(shape: Sequence[int], **given: NDArray[Any] | Tensor | None) -> None:
    """Nothing is broadcast or reshaped to fit: all that is given must have this shape.

    Raises:
        ValueError: If one has another; the message names it.
    """
    for name, values in given.items():
        if values is not None and tuple(values.shape) != tuple(shape):
            raise ValueError(f"{name} is {tuple(values.shape)}, but must be {tuple(shape)} here")


def _block(frames: Tensor) -> int:
    """Frames that are worked on at once: on a CPU as many as its second-level cache holds."""
    return 2048 if frames.device.type == "cpu" else 1 << 17


def _in_blocks(
    function: Callable[[Tensor, Tensor], Tensor], predicted: Tensor, target: Tensor
) -> Tensor:
    """A function of frames, (N, J, 3), float64, block by block."""
    size = _block(predicted)
    blocks = zip(predicted.split(size), target.split(size), strict=True)
    return torch.cat([function(a.double(), b.double()) for a, b in blocks])


def _length(vectors: Tensor) -> Tensor:
    """Lengths of vectors, (..., 3); faster than torch's norm over so short an axis."""
    x, y, z = vectors.unbind(-1)
    return (x * x).addcmul_(y, y).addcmul_(z, z).sqrt_()


def _distances(predicted: Tensor, target: Tensor) -> Tensor:
    return _length(predicted - target)


def _visible_errors(
    predicted: Poses, target: Poses, visible: NDArray[np.bool_] | Tensor | None
) -> Tensor:
    """Distances of the joints that count, metres: (N, J) if all do, else (N,)."""
    errors = _in_blocks(_distances, *_flat(predicted, target))
    if visible is None:
        return errors
    _check(predicted.shape[:-1], visible=visible)
    return errors[_tensor(visible).to(errors.device, torch.bool).reshape(errors.shape)]


def _scaled_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean distance per frame after scaling, (N,)."""
    square = (predicted * predicted).sum((1, 2), keepdim=True)
    scale = (predicted * target).sum((1, 2), keepdim=True) / square.clamp_min(_TINY)
    return _length(scale * predicted - target).mean(1)


def _aligned_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean distance per frame after the similarity fit, (N,)."""
    goal = _planes(target)
    x, y, z = _align(_planes(predicted), goal).sub_(goal)
    return (x * x).addcmul_(y, y).addcmul_(z, z).sqrt_().mean(0)


_TINY = 1e-150
"""Keeps 0 / 0 at 0 where all joints are in one place."""


def _planes(frames: Tensor) -> Tensor:
    """(N, J, 3) -> (3, J, N): every step then runs along many frames."""
    return frames.permute(2, 1, 0).contiguous()


def _align(predicted: Tensor, target: Tensor) -> Tensor:
    """Predicted joints moved, turned and scaled onto the target, (3, J, N)."""
    middle = target.mean(1, keepdim=True)
    target = target - middle
    predicted = predicted - predicted.mean(1, keepdim=True)
    attitude = (target[:, None] * predicted).sum(2)
    strength = (attitude * attitude).sum((0, 1)).sqrt()
    rotation, gain = _rotation(attitude / strength.clamp_min(_TINY))
    turn = rotation * (gain * strength / (predicted * predicted).sum((0, 1)).clamp_min(_TINY))
    x, y, z = predicted
    rows = [(x * row[0]).addcmul_(y, row[1]).addcmul_(z, row[2]) for row in turn]
    return torch.stack(rows).add_(middle)


def _rotation(attitude: Tensor) -> tuple[Tensor, Tensor]:
    """Best rotations A for B = sum of target x predicted, and tr(A B').

    Args:
        attitude: B, (3, 3, N), of Frobenius norm 1 (or 0).

    Returns:
        Rotations, (3, 3, N), and traces, (N,).

    Source: Markley 1993, equations for FOAM: with the largest root q of (q^2 - 1)^2 - 8 q det B -
    4 |cof B|^2 and k = (q^2 - 1) / 2, A = ((k + 1) B + q cof B - B B' B) / (k q - det B).
    """
    cofactors = torch.linalg.cross(attitude[[1, 2, 0]], attitude[[2, 0, 1]], dim=1)
    determinant = (attitude[0] * cofactors[0]).sum(0)
    constant = -4 * (cofactors * cofactors).sum((0, 1))
    minus_one = determinant.new_tensor(-1.0)
    root = torch.full_like(determinant, 3**0.5)  # no root is larger: Newton comes from above
    for _ in range(16):  # 7 leave errors of 1e-7 m on random poses
        part = torch.addcmul(minus_one, root, root)
        value = torch.addcmul(constant, part, part).addcmul_(determinant, root, value=-8)
        slope = (part * root).sub_(determinant, alpha=2).clamp_min_(1e-6)
        root = root.addcdiv_(value, slope, value=-0.25)
    excess = (root * root - 1) / 2
    divisor = excess * root - determinant
    inner = (attitude[:, None] * attitude).sum(2)
    cubed = (inner[:, :, None] * attitude).sum(1)
    rotation = ((excess + 1) * attitude + root * cofactors - cubed) / divisor
    # Joints (almost) on a line, or (almost) mirrored: the rotation hangs on the last digits.
    unsure = (~(divisor > 1e-4) & determinant.isfinite()).nonzero()[:, 0]
    if len(unsure):
        exact, gain = _rotation_by_svd(attitude[:, :, unsure].permute(2, 0, 1))
        rotation[:, :, unsure] = exact.permute(1, 2, 0)
        root[unsure] = gain
    return rotation, root


def _rotation_by_svd(attitude: Tensor) -> tuple[Tensor, Tensor]:
    """The same as `_rotation` for (N, 3, 3), also where there is more than one best rotation."""
    left, values, right = torch.linalg.svd(attitude)
    sign = torch.linalg.det(left @ right).sign()
    keep = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], dim=-1)
    return (left * keep[:, None]) @ right, (values * keep).sum(-1)


def _motion_errors(predicted: Poses, target: Poses, order: int) -> Tensor:
    """Mean length of the error's differences per step in each clip, metres, (clips, T - order)."""
    if predicted.ndim < 3:
        raise ValueError(f"motion needs (..., T, J, 3), not {tuple(predicted.shape)}")
    a, b = _flat(predicted, target)
    T, size = predicted.shape[-3], _block(a)
    steps = [a.new_zeros(0, dtype=torch.float64)]
    for start in range(0, len(a) - order, size):
        cut = slice(start, start + size + order)
        error = a[cut].to(torch.float64, copy=True).sub_(b[cut].double())
        for _ in range(order):
            error = error[1:] - error[:-1]
        steps.append(_length(error).mean(1))
    steps.append(steps[0].new_zeros(min(order, len(a))))
    clips = math.prod(predicted.shape[:-3])
    return torch.cat(steps).reshape(clips, T)[:, : max(T - order, 0)]


class _Exact(Metric):
    """A metric that keeps the types of its sums, whatever the precision of the run."""

    full_state_update = False

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        return super()._apply(lambda state: state.to(fn(state).device), exclude_state)


class _MeanError(_Exact):
    """Sum and count of errors in float64, added up over processes."""

    higher_is_better = False
    is_differentiable = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, errors: Tensor) -> None:
        self.total += errors.sum().to(self.total.device) * MILLIMETRES
        self.count += errors.numel()

    def compute(self) -> Tensor:
        """Millimetres, float64; NaN if nothing came."""
        return self.total / self.count


class MPJPE(_MeanError):
    """`mpjpe` over everything that `update(predicted, target, visible=None)` was given."""

    def update(self, predicted: Poses, target: Poses, visible: Tensor | None = None) -> None:
        """Add joints, metres, (..., J, 3); those that count, (..., J), or all."""
        self._add(_visible_errors(predicted, target, visible))


class PMPJPE(_MeanError):
    """`p_mpjpe` over everything that `update(predicted, target)` was given."""

    def update(self, predicted: Poses, target: Poses) -> None:
        """Add frames, metres, (..., J, 3)."""
        self._add(_in_blocks(_aligned_errors, *_flat(predicted, target)))


class NMPJPE(_MeanError):
    """`n_mpjpe` over everything that `update(predicted, target)` was given."""

    def update(self, predicted: Poses, target: Poses) -> None:
        """Add frames, metres, (..., J, 3)."""
        self._add(_in_blocks(_scaled_errors, *_flat(predicted, target)))


class MPJVE(_MeanError):
    """`mpjve` over everything that `update(predicted, target)` was given."""

    def update(self, predicted: Poses, target: Poses) -> None:
        """Add clips, metres, (..., T, J, 3)."""
        self._add(_motion_errors(predicted, target, order=1))


QUANTITIES = ("mpjpe", "p_mpjpe", "n_mpjpe", "mpjve", "acceleration")
"""The columns of a `MotionReport`: mm, mm, mm, mm per frame, mm per frame squared."""

_OF_MOTION = ("mpjve", "acceleration")
_TITLES = ("MPJPE", "P-MPJPE", "N-MPJPE", "MPJVE", "accel.")

_GRAIN = 2.0**20
"""Sums of a video are rounded to this part of a millimetre. Adding them is then exact in float64 up
to 8,000 km of error in all, hence the same in any order and over any number of processes."""


@dataclass  # not frozen: torchmetrics walks through what compute returns and sets every field
class MotionRow:
    """One action of a `MotionReport`, millimetres."""

    name: str
    frames: int
    mpjpe: float
    p_mpjpe: float
    n_mpjpe: float
    mpjve: float
    acceleration: float


@dataclass
class MotionReport:
    """What a `MotionTable` found, millimetres.

    Args:
        rows: One per action that has frames, in the table's order.
        frame_mean: Quantity -> mean over all frames (over all steps of motion for the last two).
        action_mean: Quantity -> mean over the rows, as Human3.6M's tables average their 15 actions.
        per_joint: Joint -> MPJPE, mean over all frames.
    """

    rows: list[MotionRow]
    frame_mean: dict[str, float]
    action_mean: dict[str, float]
    per_joint: dict[str, float]

    def text(self, protocol: str) -> str:
        """Plain table; the line above it says under which protocol the numbers hold.

        Pictures have no motion: without frames in a row there are no columns for it.
        """
        frames = sum(row.frames for row in self.rows)
        lines: list[tuple[str, int, Sequence[float]]] = [
            (row.name, row.frames, [getattr(row, name) for name in QUANTITIES]) for row in self.rows
        ]
        lines.append(("mean over frames", frames, list(self.frame_mean.values())))
        lines.append(("mean over actions", frames, list(self.action_mean.values())))
        width = max(len(name) for name, _, _ in lines)
        known = [
            column
            for column, name in enumerate(QUANTITIES)
            if name not in _OF_MOTION or any(math.isfinite(getattr(row, name)) for row in self.rows)
        ]
        titles = "".join(f"{_TITLES[column]:>9}" for column in known)
        head = f"{'mm':<{width}} {'frames':>9}{titles}"
        body = [
            f"{name:<{width}} {count:>9,}" + "".join(f"{values[column]:>9.2f}" for column in known)
            for name, count, values in lines
        ]
        rule = "-" * len(head)
        return "\n".join([protocol, head, rule, *body[:-2], rule, *body[-2:]])


class MotionTable(_Exact):
    """Errors per action and per joint over whole videos.

    Give every video once, stitched, to one process: sums and counts add up to the same bits over
    any number of processes.

    Args:
        actions: Names of the rows; `update` takes the index.
        joints: Names of the joints.
    """

    higher_is_better = False
    is_differentiable = False
    sums: Tensor
    counts: Tensor
    joint_sums: Tensor

    def __init__(self, actions: Sequence[str], joints: Sequence[str]) -> None:
        super().__init__()
        self.actions, self.joints = tuple(actions), tuple(joints)
        for name, shape in (
            ("sums", (len(self.actions), len(QUANTITIES))),
            ("counts", (len(self.actions), len(QUANTITIES))),
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
        """Add one whole video.

        Args:
            action: Index of its row.
            predicted: Metres, root-relative, (T, J, 3).
            target: Metres, root-relative, (T, J, 3).
            valid: Frames that count, (T,); none for all. Motion counts where all its frames do.

        Raises:
            ValueError: If shapes or joints do not fit.
        """
        a, b = _flat(predicted, target)
        if predicted.ndim != 3 or len(self.joints) != a.shape[1]:
            raise ValueError(
                f"this table takes (T, {len(self.joints)}, 3), not {tuple(predicted.shape)}"
            )
        _check(predicted.shape[:1], valid=valid)
        use = torch.ones(len(a), dtype=torch.bool, device=a.device)
        if valid is not None:
            use = _tensor(valid).to(a.device, torch.bool)
        pairs = use[1:] & use[:-1]
        triples = pairs[1:] & pairs[:-1]
        steps = [_motion_errors(a, b, order=1)[0][pairs], _motion_errors(a, b, order=2)[0][triples]]
        a, b = a[use], b[use]
        distances = _in_blocks(_distances, a, b) if len(a) else a.new_zeros(a.shape[:2])
        columns = [distances.mean(1)]
        for errors in (_aligned_errors, _scaled_errors):
            columns.append(_in_blocks(errors, a, b) if len(a) else distances[:, 0])
        columns += steps
        found = torch.stack([column.sum() for column in columns]) * MILLIMETRES
        self.sums[action] += self._grain(found)
        self.counts[action] += self.counts.new_tensor([len(column) for column in columns])
        self.joint_sums += self._grain(distances.sum(0) * MILLIMETRES)

    def _grain(self, sums: Tensor) -> Tensor:
        return torch.round(sums.to(self.sums.device, torch.float64) * _GRAIN) / _GRAIN

    def compute(self) -> MotionReport:
        """The table as it stands; quantities without anything to average are NaN."""
        frames = self.counts[:, 0]
        means = (self.sums / self.counts)[frames > 0]
        rows = [
            MotionRow(self.actions[i], int(frames[i]), *means[n].tolist())
            for n, i in enumerate(frames.nonzero()[:, 0].tolist())
        ]
        overall = self.sums.sum(0) / self.counts.sum(0)
        joints = self.joint_sums / frames.sum()
        return MotionReport(
            rows,
            dict(zip(QUANTITIES, overall.tolist(), strict=True)),
            dict(zip(QUANTITIES, means.nanmean(0).tolist(), strict=True)),
            dict(zip(self.joints, joints.tolist(), strict=True)),
        )


class PCK(_Exact):
    """Share of joints that are found within a part of the person's size.

    Args:
        joints: Names of the joints.
        thresholds: Parts of the size; a joint counts as found up to and including it.
    """

    higher_is_better = True
    is_differentiable = False
    found: Tensor
    counted: Tensor

    def __init__(
        self, joints: Sequence[str], thresholds: Sequence[float] = (0.05, 0.1, 0.2)
    ) -> None:
        super().__init__()
        self.joints, self.thresholds = tuple(joints), tuple(thresholds)
        shape = (len(self.thresholds), len(self.joints))
        self.add_state("found", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("counted", torch.zeros(shape[1], dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, predicted: Tensor, target: Tensor, scale: Tensor, counted: Tensor | None = None
    ) -> None:
        """Add pictures.

        Args:
            predicted: Pixels, (B, J, 2); NaN is not found.
            target: Pixels, (B, J, 2).
            scale: The person's size in pixels, (B,).
            counted: Joints that count, (B, J); none for all.

        Raises:
            ValueError: If a shape is not as said.
        """
        B, J = len(predicted), len(self.joints)
        _check((B, J, 2), predicted=predicted, target=target)
        _check((B,), scale=scale)
        _check((B, J), counted=counted)
        distance = torch.linalg.vector_norm(predicted.double() - target.double(), dim=-1)
        use = torch.ones_like(distance, dtype=torch.bool) if counted is None else counted.bool()
        limits = torch.outer(scale.new_tensor(self.thresholds, dtype=torch.float64), scale.double())
        self.found += ((distance <= limits[..., None]) & use).sum(1)
        self.counted += use.sum(0)

    def compute(self) -> dict[str, float]:
        """`pck@0.05` -> share of all joints, `pck@0.05/nose` -> of one; NaN where none counted."""
        report = {}
        shares = self.found.double() / self.counted
        total = self.found.sum(1).double() / self.counted.sum()
        for k, threshold in enumerate(self.thresholds):
            report[f"pck@{threshold:g}"] = total[k].item()
            for j, joint in enumerate(self.joints):
                report[f"pck@{threshold:g}/{joint}"] = shares[k, j].item()
        return report
