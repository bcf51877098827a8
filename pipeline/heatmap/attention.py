"""The attention module (AM) of paper 003, for the inputs of HRNet's stages."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

POSITIONS = tuple((stage, subnet) for stage in (1, 2, 3) for subnet in range(1, stage + 2))
"""(stage, sub-network) of the nine possible places, numbered from 1 as in the paper."""

PAPER003 = ((1, 1), (1, 2), (2, 1), (3, 1))
"""Sub-network 1 and stage 1: the four modules of the paper's final network."""


class Attention(nn.Module):
    """Residual block with a gate from 5x5 convolutions: (B, C, H, W) -> (B, C, H, W).

    ============================== ===================
    1x1 convolution                (B, 128, H, W)
    5x5, GELU, group norm, 5x5     (B, 128, H, W)
    times sigmoid(1x1(GELU(1x1)))  (B, 128, H, W)
    1x1 convolution, plus input    (B, C, H, W)
    ============================== ===================

    The last convolution is initialised with zeros, so that adding the module to a trained HRNet
    does not change its output.

    Args:
        channels: Channels C of input and output.
        inner: Channels inside; 128 gives the paper's cost per module, which hardly depends on C.

    Source: paper 003, equation 3 extended to two dimensions, and the parameter counts of its AM
    table.
    Differs from the paper: it gives no formula for this module; the counts agree within 0.09 M in
    every row.
    """

    def __init__(self, channels: int, inner: int = 128) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.conv1 = nn.Conv2d(inner, inner, 5, padding=2)
        self.norm = nn.GroupNorm(8, inner)
        self.conv2 = nn.Conv2d(inner, inner, 5, padding=2)
        self.gate1 = nn.Conv2d(inner, inner, 1)
        self.gate2 = nn.Conv2d(inner, inner, 1)
        self.expand = nn.Conv2d(inner, channels, 1)
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Features -> features, (B, C, H, W)."""
        y = self.conv2(self.norm(functional.gelu(self.conv1(self.reduce(x)))))
        gate = self.gate2(functional.gelu(self.gate1(y))).sigmoid()
        return x + self.expand(y * gate)
