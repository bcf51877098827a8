"""Networks on images against the published way to run them (--rounds N, --case NAME).

Training steps of HRNet-W32 and of the ResNet-50 of Integral, and SimpleBaseline-50 in detection.
The published way, written here from the papers: float32, the memory format that torch has by
default, batch norms as trained, the loss of heatmaps one joint at a time, the expectation of a
volume axis by axis. Heatlift is measured in float32, after outputs and losses were compared, and
with bfloat16 products, and with the fused form of Adam. Weights and crops are the same. Processor
time of one thread, in turns; above 1 Heatlift is faster.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from heatmap import loss_by_joint
from side_by_side import compare, restart_with_allocator
from torch import Tensor, nn

from pipeline.cli.doctor import has_fast_bf16
from pipeline.heatmap import HRNet, SimpleBaseline, targets
from pipeline.heatmap.resnet import fold_norms
from pipeline.integral import SAN
from pipeline.integral.volumes import VolumeGrid, volume_loss

CLOSE = 1e-4
"""Largest accepted difference of outputs and losses, as a share of the largest output."""

CLOSE_BF16 = 0.05
"""The same with bfloat16 products."""

GRID = VolumeGrid(cube=2.0, cell_offset=1.5, bin_offset=0.5)

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One network.

    Args:
        make: Makes it.
        size: Height and width of the crops in pixels.
        crops: Number of crops.
        losses: Makes Heatlift's loss and the published one for outputs of a shape; none for
            detection.
        goals: Smallest accepted ratios, in float32 and with bfloat16 products.
    """

    make: Callable[[], nn.Module]
    size: tuple[int, int]
    crops: int
    losses: Callable[[torch.Size], tuple[Loss, Loss]] | None
    goals: tuple[float, float]


def expectation_by_axis(volumes: Tensor) -> Tensor:
    """Published way: softmax over a volume, then each coordinate from its sums, (B, J, 3)."""
    B, J, D, H, W = volumes.shape
    mass = volumes.reshape(B, J, -1).softmax(2).reshape(B, J, D, H, W)
    along = mass.sum(2).sum(2), mass.sum(2).sum(3), mass.sum(3).sum(3)
    cells = [(part * torch.arange(part.shape[2]).float()).sum(2, keepdim=True) for part in along]
    return torch.cat(cells, 2)


def heatmap_losses(shape: torch.Size) -> tuple[Loss, Loss]:
    """Losses towards joints at random places of heatmaps, (B, J, H, W)."""
    B, J, H, W = shape
    cells, weight = torch.rand(B, J, 2) * torch.tensor([W, H]), torch.ones(B, J)
    target = targets.encode_heatmaps(cells, (W, H))

    def ours(heatmaps: Tensor) -> Tensor:
        return targets.heatmap_loss(heatmaps.float(), target, weight)

    return ours, lambda heatmaps: loss_by_joint(heatmaps.float(), target, weight)


def volume_losses(shape: torch.Size) -> tuple[Loss, Loss]:
    """Losses towards joints at random places of volumes, (B, J, D, H, W)."""
    B, J, D, H, W = shape
    size = torch.tensor([W, H, D])
    cells = (0.1 + 0.8 * torch.rand(B, J, 3)) * size
    pixels = targets.to_pixels(cells[..., :2], offset=GRID.cell_offset)
    depth = ((cells[..., 2] + GRID.bin_offset) / D - 0.5) * GRID.cube
    given = torch.ones(B, J)

    def ours(volumes: Tensor) -> Tensor:
        return volume_loss(volumes, pixels, depth, weight=given, has_depth=given, grid=GRID)

    def theirs(volumes: Tensor) -> Tensor:
        return ((expectation_by_axis(volumes.float()) - cells) / size).abs().mean()

    return ours, theirs


CASES = {
    "hrnet_w32_training": Case(HRNet, (256, 192), 2, heatmap_losses, (1.2, 2.0)),
    "integral_50_training": Case(
        partial(SAN, attention=False), (256, 256), 2, volume_losses, (1.05, 2.0)
    ),
    "simple_baseline_50": Case(SimpleBaseline, (256, 192), 4, None, (1.2, 2.5)),
}


def precision(*, bf16: bool) -> AbstractContextManager[object]:
    """Products in bfloat16, or nothing."""
    return torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()


def make_step(
    net: nn.Module, crops: Tensor, loss: Loss, *, bf16: bool, fused: bool
) -> Callable[[], Tensor]:
    """A function that runs one training step and returns its loss."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-9, fused=fused)

    def step() -> Tensor:
        optimizer.zero_grad()
        with precision(bf16=bf16):
            value = loss(net(crops))
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def make_detection(net: nn.Module, crops: Tensor, *, bf16: bool) -> Callable[[], Tensor]:
    """A function that runs a network in detection and returns its heatmaps."""

    def detect() -> Tensor:
        with torch.inference_mode(), precision(bf16=bf16):
            return net(crops).float()

    return detect


def measure(name: str, rounds: int, *, bf16: bool) -> bool:
    """Compare one network and print its line; returns whether the goal is reached."""
    case = CASES[name]
    torch.manual_seed(3)
    theirs = case.make()
    ours = copy.deepcopy(theirs).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    crops = torch.randn(case.crops, 3, *case.size)
    ours_crops = crops.contiguous(memory_format=torch.channels_last)
    if case.losses:
        ours.train(), theirs.train()
        with torch.no_grad():
            losses = case.losses(theirs(crops).shape)
        ours_run = make_step(ours, ours_crops, losses[0], bf16=bf16, fused=True)
        theirs_run = make_step(theirs, crops, losses[1], bf16=False, fused=False)
    else:
        ours_run = make_detection(fold_norms(ours.eval()), ours_crops, bf16=bf16)
        theirs_run = make_detection(theirs.eval(), crops, bf16=False)
    found, expected = ours_run(), theirs_run()
    difference = float((found - expected).abs().max() / expected.abs().max())
    assert difference < (CLOSE_BF16 if bf16 else CLOSE), f"{name} differs by {difference:.1e}"
    times = compare(ours_run, theirs_run, rounds)
    goal = case.goals[bf16]
    reached = times.quartiles[1] >= goal or (bf16 and not has_fast_bf16())
    print(
        f"{name:21s} {'bf16' if bf16 else 'fp32'} {times.text()} (goal {goal:g}) "
        f"difference {difference:.1e}{'' if reached else ' MISSED'}",
        flush=True,
    )
    return reached


def main() -> int:
    """Print one line per network and precision; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", choices=CASES, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    reached = [
        measure(name, arguments.rounds, bf16=bf16)
        for name in arguments.case or CASES
        for bf16 in (False, True)
    ]
    return int(not all(reached))


if __name__ == "__main__":
    restart_with_allocator()
    sys.exit(main())
