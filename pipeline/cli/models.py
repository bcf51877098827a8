"""`heatlift models`: all networks of the papers, with input, parameters and multiply-adds."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.cli.tables import print_table
from pipeline.lift.lifter import Lifter
from pipeline.training.console import print_line


@dataclass(frozen=True)
class System:
    """A network with the settings of a paper.

    Args:
        name: Name in the table.
        source: Authors and year of the paper that proposes it.
        class_path: Class path of the network.
        arguments: Arguments of the network.
        image: Width and height of the input of a 2D network, pixels; None for lifters.
    """

    name: str
    source: str
    class_path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    image: tuple[int, int] | None = None

    def build(self) -> nn.Module:
        """Make the network in evaluation mode on the meta device (shapes without values)."""
        module, _, name = self.class_path.rpartition(".")
        with torch.device("meta"):
            net: nn.Module = getattr(importlib.import_module(module), name)(**self.arguments)
        if isinstance(net, Lifter):
            net.set_progress(1.0)
        return net.eval()

    def example(self, net: nn.Module) -> Tensor:
        """Make an input of one sample: (1, 3, H, W), or (1, T, J, 2) for lifters."""
        if isinstance(net, Lifter):
            return torch.empty(1, net.frames, len(net.skeleton), 2, device="meta")
        assert self.image is not None
        return torch.empty(1, 3, *reversed(self.image), device="meta")


def _detectors() -> list[System]:
    hrnet, baseline = "pipeline.heatmap.HRNet", "pipeline.heatmap.SimpleBaseline"
    san = "pipeline.integral.SAN"
    modules = ((1, 1), (1, 2), (2, 1), (3, 1))
    return [
        System("HRNet-W32", "Sun et al. 2019", hrnet, {"width": 32}, (192, 256)),
        System("HRNet-W32", "Sun et al. 2019", hrnet, {"width": 32}, (256, 256)),
        System("HRNet-W48", "Sun et al. 2019", hrnet, {"width": 48}, (192, 256)),
        System("HRNet-W32 + AM", "Tran et al.", hrnet, {"attention": modules}, (192, 256)),
        System("SimpleBaseline-50", "Xiao et al. 2018", baseline, {"layers": 50}, (256, 256)),
        System("SimpleBaseline-101", "Xiao et al. 2018", baseline, {"layers": 101}, (256, 256)),
        System("SimpleBaseline-152", "Xiao et al. 2018", baseline, {"layers": 152}, (256, 256)),
        System("ResNet-50, 3D", "Sun et al. 2018", san, {"attention": False}, (256, 256)),
        System("ResNet-50 + SAN", "SAN 2021", san, {}, (256, 256)),
        System("ResNet-152 + SAN", "SAN 2021", san, {"layers": 152, "depth_bins": 72}, (288, 384)),
    ]


def _lifters() -> list[System]:
    package = "pipeline.lift"
    systems = [
        System("combined deep learner", "Tran et al.", f"{package}.CombinedDeepLearner"),
        System("cascade", "Tran et al.", f"{package}.Cascade"),
        System("residual MLP", "Martinez et al. 2017", f"{package}.Martinez"),
    ]
    for levels in (3, 4, 5):
        widths = {"widths": (3,) * levels}
        name = f"VideoPose3D, {3**levels}"
        systems.append(System(name, "Pavllo et al. 2019", f"{package}.VideoPose3D", widths))
    for suffix, attention in (("", {}), (" + SAM + TAM", {"group_attention": True})):
        for frames in (9, 27, 81, 243):
            arguments = {**attention, "frames": frames}
            name = f"PoseFormer{suffix}, {frames}"
            source = "Tran et al." if attention else "Zheng et al. 2021"
            systems.append(System(name, source, f"{package}.PoseFormer", arguments))
    for frames in (81, 243):
        systems.append(
            System(
                f"MixSTE, {frames}", "Zhang et al. 2022", f"{package}.MixSTE", {"frames": frames}
            )
        )
    return systems


SYSTEMS = (*_detectors(), *_lifters())
"""Rows of `heatlift models`. Source: sections and tables of the papers, as in docs/papers.md."""


COLUMNS = ("system", "source", "input", "frames", "parameters", "MACs", "as SAN counts")
"""Columns of the table; frames are those that a lifter takes and returns."""


def count_parameters(net: nn.Module) -> int:
    """Count the parameters of a network, without buffers."""
    return sum(parameter.numel() for parameter in net.parameters())


@torch.inference_mode()
def count_multiply_adds(net: nn.Module, example: Tensor) -> int:
    """Count the multiply-adds of one forward pass: half of the operations of torch's counter.

    Convolutions and matrix products are counted, also those of attention; norms, activations and
    sums are not. A transposed convolution is counted by the size of its input.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net(example)
    return counter.get_total_flops() // 2


@torch.inference_mode()
def count_as_paper004(net: nn.Module, example: Tensor) -> int:
    """Count the multiply-adds of a 2D network as table 2 of paper 004 must have counted them.

    All convolutions, also transposed ones, by the size of their output; two per value for each
    norm; none for the two matrix products of attention.

    Source: no other way of counting gives its 14.10 G and 14.43 G.
    """
    count = 0

    def count_module(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal count
        if isinstance(module, nn.BatchNorm2d):
            count += 2 * output.numel()
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            taps = math.prod(module.kernel_size) * module.in_channels // module.groups
            count += output.numel() * taps

    hooks = [module.register_forward_hook(count_module) for module in net.modules()]
    net(example)
    for hook in hooks:
        hook.remove()
    return count


def table_row(system: System) -> tuple[str, ...]:
    """Cells of the row of a system; see `COLUMNS`."""
    net = system.build()
    example = system.example(net)
    size, frames, paper004_cost = "x".join(map(str, system.image or ())), "-", ""
    if isinstance(net, Lifter):
        size = f"{net.frames}x{len(net.skeleton)}x2"
        frames = f"{net.frames} -> {net(example).shape[1]}"
    if "SAN" in system.class_path:
        paper004_cost = _format_count(count_as_paper004(net, example))
    cost = _format_count(count_multiply_adds(net, example))
    parameters = f"{count_parameters(net):,}"
    return system.name, system.source, size, frames, parameters, cost, paper004_cost


def models() -> None:
    """Print a table of all networks of the papers: input, frames, parameters and multiply-adds."""
    print_table(COLUMNS, [table_row(system) for system in SYSTEMS], right=COLUMNS[4:])
    print_line("")
    print_line(
        "Input: width x height of images; frames x joints x 2 of clips. MACs: multiply-adds of"
    )
    print_line(
        "one sample, by torch's counter; as SAN counts: as in table 2 of the paper on SAN, where"
    )
    print_line("transposed convolutions are counted by their output, and norms are counted.")


def _format_count(count: int) -> str:
    return f"{count / 1e9:.3f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"
