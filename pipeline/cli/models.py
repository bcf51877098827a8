"""`heatlift models`: every system of the papers with its size, what it takes and what it costs."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.lift.lifter import Lifter


@dataclass(frozen=True)
class System:
    """A network as a paper has it.

    Args:
        name: For people.
        paper: Whose it is, or who quotes it.
        class_path: Of the network.
        arguments: It is made with.
        image: Width and height of what a 2D network sees; none for lifters.
    """

    name: str
    paper: str
    class_path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    image: tuple[int, int] | None = None

    def build(self) -> nn.Module:
        """The network in evaluation mode on the meta device: shapes without numbers."""
        module, _, name = self.class_path.rpartition(".")
        with torch.device("meta"):
            net: nn.Module = getattr(importlib.import_module(module), name)(**self.arguments)
        if isinstance(net, Lifter):
            net.set_progress(1.0)
        return net.eval()

    def example(self, net: nn.Module) -> Tensor:
        """One sample of what the network takes: (1, 3, H, W), or (1, T, J, 2) for lifters."""
        if isinstance(net, Lifter):
            return torch.empty(1, net.frames, len(net.skeleton), 2, device="meta")
        assert self.image is not None
        return torch.empty(1, 3, *reversed(self.image), device="meta")


def _systems() -> tuple[System, ...]:
    hrnet, lift = "pipeline.heatmap.HRNet", "pipeline.lift"
    modules = ((1, 1), (1, 2), (2, 1), (3, 1))
    found = [
        System("HRNet-W32", "000, 003", hrnet, {"width": 32}, (192, 256)),
        System("HRNet-W32", "002", hrnet, {"width": 32}, (256, 256)),
        System("HRNet-W48", "000", hrnet, {"width": 48}, (192, 256)),
        System("HRNet-W32 + AM", "003", hrnet, {"attention": modules}, (192, 256)),
    ]
    found += [
        System(f"SimpleBaseline-{layers}", who, "pipeline.heatmap.SimpleBaseline", how, (256, 256))
        for layers, who in ((50, "002, 004"), (101, "-"), (152, "004"))
        for how in ({"layers": layers},)
    ]
    found += [
        System(name, "004", "pipeline.integral.SAN", how, size)
        for name, how, size in (
            ("ResNet-50, 3D", {"attention": False}, (256, 256)),
            ("ResNet-50 + SAN", {}, (256, 256)),
            ("ResNet-152 + SAN", {"layers": 152, "depth_bins": 72}, (288, 384)),
        )
    ]
    found += [
        System("combined deep learner", "000", f"{lift}.CombinedDeepLearner"),
        System("cascade", "000", f"{lift}.Cascade"),
        System("residual MLP", "002, 000", f"{lift}.Martinez"),
    ]
    found += [
        System(f"VideoPose3D, {3**levels}", "001, 003", f"{lift}.VideoPose3D", {"widths": widths})
        for levels in (3, 4, 5)
        for widths in ((3,) * levels,)
    ]
    found += [
        System(f"PoseFormer{word}, {frames}", "003", f"{lift}.PoseFormer", how | {"frames": frames})
        for word, how in (("", {}), (" + SAM + TAM", {"group_attention": True}))
        for frames in (9, 27, 81, 243)
    ]
    found += [
        System(f"MixSTE, {frames}", "001", f"{lift}.MixSTE", {"frames": frames})
        for frames in (81, 243)
    ]
    return tuple(found)


SYSTEMS = _systems()
"""What `heatlift models` lists. Source: the papers' sections and tables, as in docs/papers.md."""


def count_parameters(net: nn.Module) -> int:
    """Number of learned numbers, buffers left out."""
    return sum(parameter.numel() for parameter in net.parameters())


@torch.inference_mode()
def count_multiply_adds(net: nn.Module, example: Tensor) -> int:
    """Multiply-adds of one forward pass: half of what torch's counter calls operations.

    Convolutions and matrix products count, attention's among them; norms, activations and sums do
    not. A transposed convolution counts by its input.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net(example)
    return counter.get_total_flops() // 2


@torch.inference_mode()
def count_as_paper004(net: nn.Module, example: Tensor) -> int:
    """Multiply-adds of a 2D network the way paper 004's table 2 must have counted.

    Every convolution by its output, the transposed ones too; two per number for each norm; nothing
    for attention's two matrix products.

    Source: the only way of counting that gives its 14.10 G and 14.43 G.
    """
    count = 0

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal count
        if isinstance(module, nn.BatchNorm2d):
            count += 2 * output.numel()
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            taps = math.prod(module.kernel_size) * module.in_channels // module.groups
            count += output.numel() * taps

    hooks = [module.register_forward_hook(look) for module in net.modules()]
    net(example)
    for hook in hooks:
        hook.remove()
    return count


def table_row(system: System) -> tuple[str, ...]:
    """Name, paper, input, frames in and out, parameters, multiply-adds, and as paper 004 counts."""
    net = system.build()
    example = system.example(net)
    size, frames, other = "x".join(map(str, system.image or ())), "-", ""
    if isinstance(net, Lifter):
        size = f"{net.frames}x{len(net.skeleton)}x2"
        frames = f"{net.frames} -> {net(example).shape[1]}"
    if "SAN" in system.class_path:
        other = _scaled(count_as_paper004(net, example))
    cost = _scaled(count_multiply_adds(net, example))
    return system.name, system.paper, size, frames, f"{count_parameters(net):,}", cost, other


def models() -> None:
    """Print every system of the papers: input, frames, parameters and multiply-adds."""
    head = ("system", "paper", "input", "frames", "parameters", "MACs", "as 004 counts")
    rows = [head, *(table_row(system) for system in SYSTEMS)]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(head))]
    lines = []
    for cells in rows:
        left, right = cells[:4], cells[4:]
        words = [cell.ljust(width) for cell, width in zip(left, widths[:4], strict=True)]
        words += [cell.rjust(width) for cell, width in zip(right, widths[4:], strict=True)]
        lines.append("  ".join(words).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    lines += [
        "",
        "Input: width x height of images; frames x joints x 2 of clips. MACs: of one sample, by",
        "torch's counter; as 004 counts: transposed convolutions by their output, norms too.",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _scaled(count: int) -> str:
    return f"{count / 1e9:.3f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"
