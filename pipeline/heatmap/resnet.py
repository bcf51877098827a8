"""ResNet trunk, residual blocks, deconvolution head, and batch norms folded for inference."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline.errors import UsageError

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Residual blocks per layer of each ResNet (He et al. 2016, table 1)."""


def conv3x3(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution without bias that keeps the size, or halves it with stride 2."""
    return nn.Conv2d(channels, out, 3, stride, 1, bias=False)


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions: (B, C, H, W) -> (B, C, H, W).

    Args:
        channels: Channels C of input and output.

    Source: He et al. 2016, figure 5 left.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Features -> features, (B, C, H, W)."""
        y = self.bn1(self.conv1(x)).relu_()
        return self.bn2(self.conv2(y)).add_(x).relu_()


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 convolutions, from C to four times `planes` channels.

    Args:
        channels: Channels C of the input.
        planes: Channels of the inner convolutions; the output has four times as many.
        stride: Stride of the 3x3 convolution, as in torchvision's weights.

    Source: He et al. 2016, figure 5 right.
    """

    expansion = 4

    def __init__(self, channels: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        out = planes * self.expansion
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Features -> features, (B, C, H, W) -> (B, 4 planes, H/stride, W/stride)."""
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(y)).relu_()
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.bn3(self.conv3(y)).add_(shortcut).relu_()


def bottlenecks(channels: int, planes: int, count: int, stride: int = 1) -> nn.Sequential:
    """Bottlenecks in sequence, of which the first changes width and size."""
    first = Bottleneck(channels, planes, stride)
    rest = (Bottleneck(planes * Bottleneck.expansion, planes) for _ in range(count - 1))
    return nn.Sequential(first, *rest)


class ResNet(nn.Module):
    """ResNet without its classifier, with torchvision's names of weights.

    (B, 3, H, W) -> (B, 2048, H/32, W/32)

    Args:
        layers: Number of layers: 50, 101 or 152.

    Raises:
        UsageError: If there is no ResNet of that depth.

    Source: He et al. 2016, table 1; the stride of a bottleneck is that of its 3x3 convolution.
    """

    channels = 2048

    def __init__(self, layers: int = 50) -> None:
        super().__init__()
        if layers not in BLOCKS:
            raise UsageError(
                f"ResNet-{layers} is not known; take one of {', '.join(map(str, BLOCKS))}"
            )
        blocks = BLOCKS[layers]
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = bottlenecks(64, 64, blocks[0])
        self.layer2 = bottlenecks(256, 128, blocks[1], 2)
        self.layer3 = bottlenecks(512, 256, blocks[2], 2)
        self.layer4 = bottlenecks(1024, 512, blocks[3], 2)
        init_he(self)

    def features(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> features (B, 2048, H/32, W/32)."""
        x = self.maxpool(self.bn1(self.conv1(images)).relu_())
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> features (B, 2048, H/32, W/32)."""
        return self.features(images)


def deconvolution_head(channels: int = ResNet.channels, width: int = 256) -> nn.Sequential:
    """Three transposed convolutions, each with norm and ReLU: (B, C, H, W) -> (B, width, 8 H, 8 W).

    Source: Xiao et al. 2018, section 2; weights N(0, 0.001).
    """
    layers: list[nn.Module] = []
    for inputs in (channels, width, width):
        layers += [
            nn.ConvTranspose2d(inputs, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
    head = nn.Sequential(*layers)
    init_small(head)
    return head


def init_he(module: nn.Module) -> None:
    """Initialise all convolutions of a module as He et al. (2015) for ReLUs, by fan-out."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def init_small(module: nn.Module) -> None:
    """Initialise all convolutions of a module from N(0, 0.001), with zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(part.weight, std=0.001)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def fold_norms(net: nn.Module) -> nn.Module:
    """Copy a network for inference, with each batch norm folded into the convolution before it.

    Each norm must be registered directly after the convolution whose output it gets, as in the
    networks of this package. The copy is in eval mode and has no trainable parameters.

    Args:
        net: Network, (B, 3, H, W) -> anything; not changed.
    """
    folded = copy.deepcopy(net).eval().requires_grad_(False)
    for parent in list(folded.modules()):
        previous: nn.Module | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and isinstance(
                previous, nn.Conv2d | nn.ConvTranspose2d
            ):
                _fold_norm(previous, child)
                setattr(parent, name, nn.Identity())
            previous = child
    return folded


@torch.no_grad()
def _fold_norm(conv: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        cast(Tensor, norm.running_mean),
        cast(Tensor, norm.running_var),
        norm.eps,
        norm.weight,
        norm.bias,
        transpose=isinstance(conv, nn.ConvTranspose2d),
    )
