"""A step of Muon on the weights of a MixSTE, against that of `torch.optim.Muon` (--rounds N).

torch's computes one matrix after the other in bfloat16, ours all of one shape at once in float32.
Both get the same gradients. Before they are timed, the directions of their first steps are
compared: bfloat16 changes each by a few per cent. Processor time of one thread, in turns.
"""

from __future__ import annotations

import argparse
import sys

import torch
from side_by_side import compare, restart_with_allocator
from torch import Tensor, nn

from pipeline.lift import MixSTE
from pipeline.training import Muon

SIZES = {
    "9 frames, 64 channels": (9, 64, 4, 1.5),
    "27 frames, 128 channels": (27, 128, 3, 0.85),
}
"""Case -> frames, channels and pairs of blocks of its MixSTE, and the smallest accepted ratio.

The second is for CPUs with AMX, whose bfloat16 is fast for large matrices.
"""

FURTHEST = 0.1
"""Largest accepted difference of two steps, as a share of their length."""


def make_weights(frames: int, channels: int, pairs: int) -> list[Tensor]:
    """Hidden matrices of a MixSTE, with gradients."""
    torch.manual_seed(3)
    net = MixSTE(frames=frames, dim=channels, depth=pairs)
    hidden = Muon(net.parameters()).param_groups[0]["params"]
    matrices: list[Tensor] = [nn.Parameter(matrix.detach().clone()) for matrix in hidden]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    return matrices


def measure(name: str, rounds: int) -> bool:
    """Compare one size and print its line; returns whether the goal is reached."""
    *sizes, goal = SIZES[name]
    ours, theirs, start = (make_weights(*sizes) for _ in range(3))
    our_muon = Muon(ours, lr=2e-3, weight_decay=0.01)
    their_muon = torch.optim.Muon(
        theirs, lr=2e-3, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    our_muon.step()
    their_muon.step()
    with torch.no_grad():
        difference = max(
            float((a - b).norm() / (a - c).norm())
            for a, b, c in zip(ours, theirs, start, strict=True)
        )
    assert difference < FURTHEST, f"{name}: steps differ by {difference:.0%} of their length"
    times = compare(our_muon.step, their_muon.step, rounds, repeats=5)
    reached = times.quartiles[1] >= goal
    print(
        f"{name:24s}{times.text()} (goal {goal:g}) steps differ by {difference:.1%}"
        f"{'' if reached else ' MISSED'}",
        flush=True,
    )
    return reached


def main() -> int:
    """Print one line per size; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    reached = [measure(name, arguments.rounds) for name in SIZES]
    return int(not all(reached))


if __name__ == "__main__":
    restart_with_allocator()
    sys.exit(main())
