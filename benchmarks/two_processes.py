"""What the exchange of gradients adds to a training step in two processes (--blocks N, --steps N).

Both processes train the same network on their own batch, one thread each, on the CPU (gloo). Blocks
of steps with Heatlift's exchange of gradients, with that of DistributedDataParallel as torch makes
it, and without any, alternate; the processes begin each block together. Efficiency is the time of
a step without exchange divided by the time with it: 1 would be two processes that are twice as fast
as one. Processor time counts all threads of a process, those of gloo too, but not its waiting for
the other process; wall time counts both and is only meaningful if two cores are free. Gradients of
both exchanges are equal, which is checked before they are timed.
"""

from __future__ import annotations

import argparse
import copy
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from side_by_side import ALLOCATOR
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.cli.trainer_options import EXCHANGE
from pipeline.heatmap import HRNet
from pipeline.lift.mixste import MixSTE

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], float]] = {
    "mixste_small": (partial(MixSTE, frames=27, dim=64, depth=4, heads=4), (8, 27, 17, 2), 0.93),
    "hrnet_narrow": (
        partial(HRNet, width=16, stem=32, planes=16, blocks=1, modules=(1, 1, 1)),
        (16, 3, 128, 128),
        0.96,
    ),
}
"""Name -> network, shape of a batch, wanted efficiency in wall time on two free cores."""


def make_step(net: nn.Module, batch: Tensor) -> Callable[[], None]:
    """A function that runs one training step towards zeros."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        net(batch).square().mean().backward()
        optimizer.step()

    return step


def check_gradients(ours: nn.Module, plain: nn.Module, batch: Tensor) -> None:
    """Check that both exchanges give the same gradients; random parts are off for this."""
    gradients = []
    for net in (ours, plain):
        net.eval()(batch).square().mean().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
        net.train()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def run_rank(blocks: int, steps: int) -> None:
    """Measure all cases in one of two processes; rank 0 prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name, (make, shape, goal) in CASES.items():
        torch.manual_seed(0)
        net = make()
        torch.manual_seed(dist.get_rank())
        batch = torch.rand(shape)
        forms = {
            "alone": net,
            "ours": DistributedDataParallel(copy.deepcopy(net), **EXCHANGE),
            "torch": DistributedDataParallel(copy.deepcopy(net)),
        }
        check_gradients(forms["ours"], forms["torch"], batch)
        stepping = {form: make_step(module, batch) for form, module in forms.items()}
        wall: dict[str, list[float]] = {form: [] for form in forms}
        processor: dict[str, list[float]] = {form: [] for form in forms}
        for number in range(-1, blocks):
            for form in forms if number % 2 else reversed(forms):
                dist.barrier()
                start = time.perf_counter(), time.process_time()
                for _ in range(steps):
                    stepping[form]()
                if number >= 0:
                    wall[form].append(time.perf_counter() - start[0])
                    processor[form].append(time.process_time() - start[1])
        if dist.get_rank() == 0:
            print(f"{name}: {1e3 * statistics.median(wall['alone']) / steps:.1f} ms per step alone")
            for form in ("ours", "torch"):
                print(
                    f"  {form:6s} efficiency in processor time {quartiles(processor, form)}, "
                    f"in wall time {quartiles(wall, form)} (goal {goal:g})",
                    flush=True,
                )
    dist.destroy_process_group()


def quartiles(times: dict[str, list[float]], form: str) -> str:
    """Median and quartiles of the ratio of a block without exchange to the same with it."""
    ratios = [alone / with_it for alone, with_it in zip(times["alone"], times[form], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> int:
    """Start two processes and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=11)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(options.blocks, options.steps)
        return 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = ALLOCATOR | {
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    ranks = [
        subprocess.Popen([sys.executable, *sys.argv], env=os.environ | together | {"RANK": rank})
        for rank in "01"
    ]
    return max(rank.wait() for rank in ranks)


if __name__ == "__main__":
    sys.exit(main())
