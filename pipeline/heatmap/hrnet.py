"""HRNet: heatmaps from parallel branches of up to four resolutions, at any width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from pipeline.errors import UsageError
from pipeline.heatmap.attention import POSITIONS, Attention
from pipeline.heatmap.resnet import (
    BasicBlock,
    Bottleneck,
    bottlenecks,
    conv3x3,
    init_he,
    init_small,
)


def _conv_norm_relu(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(conv3x3(channels, out, stride), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def _fusion(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """Layers from the size and width of branch `source` to those of branch `target`."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(
            nn.Conv2d(widths[source], widths[target], 1, bias=False),
            nn.BatchNorm2d(widths[target]),
            nn.Upsample(scale_factor=2 ** (source - target), mode="nearest"),
        )
    steps = [_conv_norm_relu(widths[source], widths[source], 2) for _ in range(source + 1, target)]
    last = nn.Sequential(conv3x3(widths[source], widths[target], 2), nn.BatchNorm2d(widths[target]))
    return nn.Sequential(*steps, last)


class Exchange(nn.Module):
    """Parallel branches of residual blocks, then fusion: each output is the sum of all branches.

    Args:
        widths: Channels of each branch, the finest first; each next branch has half the size.
        blocks: Residual blocks per branch.
        outputs: Number of output branches, the finest first.

    Source: Sun et al. 2019, figure 3.
    """

    def __init__(self, widths: Sequence[int], blocks: int, outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width) for _ in range(blocks))) for width in widths
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fusion(widths, source, target) for source in range(len(widths)))
            for target in range(outputs)
        )

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        """Features of each branch, (B, C_i, H/2^i, W/2^i) -> the same, `outputs` of them."""
        branches = [branch(x) for branch, x in zip(self.branches, branches, strict=True)]
        fused = []
        for row in self.fuse_layers:
            parts = [
                layer(branches[source]) for source, layer in enumerate(cast(nn.ModuleList, row))
            ]
            total = parts[0] + parts[1]
            for part in parts[2:]:
                total.add_(part)
            fused.append(total.relu_())
        return fused


class HRNet(nn.Module):
    """HRNet, the high-resolution network: heatmaps at a quarter of the image's size.

    ================== ======================================================================
    normalised image   (B, 3, H, W)
    stem               (B, stem, H/4, W/4)
    layer1             (B, 4 planes, H/4, W/4)
    stage2             (B, C, H/4, W/4), (B, 2C, H/8, W/8)
    stage3             those, (B, 4C, H/16, W/16)
    stage4             those, (B, 8C, H/32, W/32), of which the finest comes out
    1x1 convolution    (B, J, H/4, W/4)
    ================== ======================================================================

    Args:
        width: Channels C of the finest branch; 32 and 48 are published.
        joints: Number of joints J.
        attention: Places of attention modules, as (stage, sub-network) in paper 003's numbering
            from 1: stage s is HRNet's stage s+1 with s+1 sub-networks, and a module is at the input
            of its sub-network. The paper's own set is `attention.PAPER003`. The modules add weights
            under `attention.` and leave all other names as published.
        stem: Channels of the two convolutions that reduce the image to a quarter of its size.
        planes: Inner channels of the bottlenecks of layer1. At width 8 stem and bottlenecks are 73
            % of the computation: reduce them together with `width`.
        blocks: Residual blocks per branch and bottlenecks in layer1.
        modules: Exchange units in stages 2, 3 and 4.

    Raises:
        UsageError: If an attention position does not exist.

    Source: Sun et al. 2019, section 3; published key names (1754 tensors), 28,536,113 parameters at
    width 32 with 17 joints. Differs from the published code: convolutions are initialised as in
    ResNets (He et al. 2015), not from N(0, 0.001); without ImageNet weights a narrow network then
    fits eight samples in half the steps.
    """

    def __init__(
        self,
        width: int = 32,
        joints: int = 17,
        attention: Sequence[tuple[int, int]] = (),
        *,
        stem: int = 64,
        planes: int = 64,
        blocks: int = 4,
        modules: tuple[int, int, int] = (1, 4, 3),
    ) -> None:
        super().__init__()
        if min(width, joints, stem, planes, blocks, *modules) < 1:
            raise UsageError(f"width is {width}, and all sizes of HRNet must be at least 1")
        places = sorted({(stage, subnet) for stage, subnet in attention})
        if not set(places) <= set(POSITIONS):
            raise UsageError(
                f"attention at {places} is not possible; (stage, sub-network) are {POSITIONS}"
            )
        widths = [width, 2 * width, 4 * width, 8 * width]
        inputs = planes * Bottleneck.expansion
        self.conv1 = conv3x3(3, stem, 2)
        self.bn1 = nn.BatchNorm2d(stem)
        self.conv2 = conv3x3(stem, stem, 2)
        self.bn2 = nn.BatchNorm2d(stem)
        self.layer1 = bottlenecks(stem, planes, blocks)
        self.transition1 = nn.ModuleList(
            [
                _conv_norm_relu(inputs, widths[0], 1),
                nn.Sequential(_conv_norm_relu(inputs, widths[1], 2)),
            ]
        )
        self.stage2 = _stage(widths[:2], blocks, modules[0])
        self.transition2 = _transition(widths[:3])
        self.stage3 = _stage(widths[:3], blocks, modules[1])
        self.transition3 = _transition(widths)
        self.stage4 = _stage(widths, blocks, modules[2], outputs=1)
        self.final_layer = nn.Conv2d(width, joints, 1)
        init_he(self)
        init_small(self.final_layer)
        self.attention = nn.ModuleDict(
            {f"{stage}_{subnet}": Attention(widths[subnet - 1]) for stage, subnet in places}
        )

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> heatmaps (B, J, H/4, W/4); 32 divides H and W."""
        x = self.bn1(self.conv1(images)).relu_()
        x = self.layer1(self.bn2(self.conv2(x)).relu_())
        branches = [transition(x) for transition in self.transition1]
        branches = self.stage2(self._attend(1, branches))
        branches = [*branches, self.transition2[-1](branches[-1])]
        branches = self.stage3(self._attend(2, branches))
        branches = [*branches, self.transition3[-1](branches[-1])]
        (finest,) = self.stage4(self._attend(3, branches))
        return self.final_layer(finest)

    def _attend(self, stage: int, branches: list[Tensor]) -> list[Tensor]:
        keys = [f"{stage}_{subnet}" for subnet in range(1, len(branches) + 1)]
        return [
            self.attention[key](x) if key in self.attention else x
            for key, x in zip(keys, branches, strict=True)
        ]


def _transition(widths: Sequence[int]) -> nn.ModuleList:
    """Identities of all branches, and a new branch, last in `widths`, from the coarsest."""
    new = nn.Sequential(_conv_norm_relu(widths[-2], widths[-1], 2))
    return nn.ModuleList([*(nn.Identity() for _ in widths[:-1]), new])


def _stage(
    widths: Sequence[int], blocks: int, modules: int, outputs: int | None = None
) -> nn.Sequential:
    """Exchange units in sequence; only the last one has `outputs` branches, if given."""
    counts = [len(widths)] * (modules - 1) + [outputs or len(widths)]
    return nn.Sequential(*(Exchange(widths, blocks, count) for count in counts))
