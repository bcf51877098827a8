"""MPJPE, P-MPJPE and MPJVE over many frames against the published ways to compute them.

Run as `python benchmarks/metrics.py [frames] [rounds]`. MPJPE is compared with the mean of torch's
norms over float32 arrays, P-MPJPE with NumPy's batched decomposition and MPJVE with NumPy's
differences. Heatlift computes all three in float64. CPU time of one thread, in turns; the ratio is
the median over the rounds, with its quartiles. Exits with 1 if a value differs by more than 1e-3 mm
or a goal is missed. The script restarts itself with fixed settings of glibc's allocator, see
`side_by_side.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from side_by_side import compare, restart_with_allocator

from pipeline import rng
from pipeline.metrics.functional import mpjpe, mpjve, p_mpjpe

CHUNK = 1024
Poses = NDArray[np.float32]


def mpjpe_by_norm(predicted: Poses, target: Poses) -> float:
    """Mean norm of the differences of all joints at once, mm."""
    difference = torch.from_numpy(predicted) - torch.from_numpy(target)
    return 1000 * torch.mean(torch.norm(difference, dim=-1)).item()


def p_mpjpe_by_svd(predicted: Poses, target: Poses) -> float:
    """Umeyama's fit with NumPy's batched decomposition, 1,024 frames at a time, mm."""
    total = 0.0
    for start in range(0, len(target), CHUNK):
        a, b = predicted[start : start + CHUNK], target[start : start + CHUNK]
        middle = b.mean(axis=1, keepdims=True)
        a, b = a - a.mean(axis=1, keepdims=True), b - middle
        left, values, right = np.linalg.svd(b.transpose(0, 2, 1) @ a)
        sign = np.sign(np.linalg.det(left @ right))
        left[:, :, -1] *= sign[:, None]
        values[:, -1] *= sign
        scale = values.sum(axis=1) / (a * a).sum(axis=(1, 2))
        fitted = scale[:, None, None] * (a @ (left @ right).transpose(0, 2, 1))
        total += float(np.linalg.norm(fitted - b, axis=-1).mean(axis=1, dtype=np.float64).sum())
    return 1000 * total / len(target)


def mpjve_by_differences(predicted: Poses, target: Poses) -> float:
    """Norm of the difference of NumPy's differences over the whole video, mm per frame."""
    change = np.diff(predicted, axis=0) - np.diff(target, axis=0)
    return 1000 * float(np.mean(np.linalg.norm(change, axis=-1), dtype=np.float64))


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        ours: Heatlift's function.
        other: The published way.
        goal: Smallest accepted ratio.
    """

    ours: Callable[[Poses, Poses], float]
    other: Callable[[Poses, Poses], float]
    goal: float


CASES = {
    "MPJPE": Case(mpjpe, mpjpe_by_norm, 1.0),
    "P-MPJPE": Case(p_mpjpe, p_mpjpe_by_svd, 2.8),
    "MPJVE": Case(mpjve, mpjve_by_differences, 2.3),
}


def measure(name: str, case: Case, predicted: Poses, target: Poses, rounds: int) -> bool:
    """Compare one metric and print its line; returns whether the goal is reached."""
    difference = abs(case.ours(predicted, target) - case.other(predicted, target))
    assert difference < 1e-3, f"{name} differs by {difference} mm"
    times = compare(
        lambda: case.ours(predicted, target), lambda: case.other(predicted, target), rounds
    )
    reached = times.quartiles[1] >= case.goal
    print(
        f"{name:8s} {len(target):,} frames {times.text()} (goal {case.goal:g}) "
        f"difference {difference:.1e} mm{'' if reached else ' MISSED'}",
        flush=True,
    )
    return reached


def main() -> int:
    """Print one line per metric; return 1 if a goal is missed."""
    frames = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 9
    torch.set_num_threads(1)
    random = rng.make_generator(0, "metrics benchmark")
    target = random.normal(0, 0.3, (frames, 17, 3)).astype(np.float32)
    predicted = target + random.normal(0, 0.05, target.shape).astype(np.float32)
    reached = [measure(name, case, predicted, target, rounds) for name, case in CASES.items()]
    return int(not all(reached))


if __name__ == "__main__":
    restart_with_allocator()
    sys.exit(main())
