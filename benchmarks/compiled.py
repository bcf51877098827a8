"""A training step of compiled networks against the same networks as they are (--rounds N).

The compiled form is the one that `pipeline.training.Compile` trains (`torch.compile`, which needs a
C++ compiler). Both have the same weights and data; their losses are compared first. Processor time
of one thread, in turns, median with quartiles; a ratio above 1 means that the compiled form is
faster. The time until the first step of the compiled form is done is printed, too.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from side_by_side import compare, restart_with_allocator
from torch import nn

from pipeline.errors import UsageError
from pipeline.heatmap import HRNet
from pipeline.lift import MixSTE, PoseFormer, VideoPose3D
from pipeline.training import Compile

NARROW = {"width": 16, "stem": 32, "planes": 16, "blocks": 1, "modules": (1, 1, 1)}
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MixSTE, 9 frames, 64 channels": (partial(MixSTE, frames=9, dim=64, depth=4), (8, 9, 17, 2)),
    "MixSTE, 243 frames, 128 channels": (
        partial(MixSTE, frames=243, dim=128, depth=2),
        (1, 243, 17, 2),
    ),
    "VideoPose3D, 27 frames": (partial(VideoPose3D, widths=(3, 3, 3)), (128, 27, 17, 2)),
    "PoseFormer, 27 frames": (partial(PoseFormer, frames=27), (32, 27, 17, 2)),
    "HRNet, narrow": (partial(HRNet, **NARROW), (8, 3, 128, 128)),
}
"""Name -> network, shape of a batch."""

CLOSE = 1e-3
"""Largest accepted difference of the losses, as a share of the loss."""


def measure(name: str, rounds: int) -> None:
    """Compare one network and print its line."""
    make, shape = CASES[name]
    torch.manual_seed(3)
    plain = make().eval()  # eval: dropout draws other numbers when compiled
    compiled = copy.deepcopy(plain)
    compiled.compile()
    batch = torch.rand(shape)

    def step(net: nn.Module) -> float:
        net.zero_grad()
        loss = net(batch).square().mean()
        loss.backward()
        return float(loss.detach())

    start = time.perf_counter()
    found = step(compiled)
    first = time.perf_counter() - start
    expected = step(plain)
    difference = abs(found - expected) / abs(expected)
    assert difference < CLOSE, f"{name}: losses differ by {difference:.1e} of the loss"
    times = compare(partial(step, compiled), partial(step, plain), rounds)
    print(f"{name:34s}{times.text()}, first step after {first:.0f} s", flush=True)


def main() -> int:
    """Print one line per network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    try:
        Compile()
    except UsageError as error:
        print(error)
        return 0
    torch.set_num_threads(1)
    for name in CASES:
        measure(name, arguments.rounds)
    return 0


if __name__ == "__main__":
    restart_with_allocator()
    sys.exit(main())
