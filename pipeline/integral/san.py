"""SAN: a ResNet with self-attention over positions, and soft-argmax of its volumes (paper 004)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.heatmap.resnet import ResNet, deconvolution_head, init_small


class PositionAttention(nn.Module):
    """Every position of a feature map looks at every other: (B, C, H, W) -> (B, C, H, W).

    out = delta * sum over positions m of softmax_m(q . k_m) v_m + x; delta starts at zero, so that
    the block starts as the identity.

    Args:
        channels: C; queries and keys have an eighth of them.
        grid: H and W, to multiply the queries with a learned number for each position; none to do
            without.

    Source: paper 004, eq. 1-4; 5,245,441 parameters at 2048 channels.
    Differs from the paper: it speaks of attention between feature maps, which its own sizes rule
    out (queries have C/8 channels, values C); positions attend. It gives no formula for its
    positional term P: `grid` is one reading. There is no attention across the images of a batch.
    As in the paper, logits are not divided by sqrt(C/8).
    """

    def __init__(self, channels: int, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.delta = nn.Parameter(torch.zeros(()))
        self.positions = nn.Parameter(torch.ones(channels // 8, *grid)) if grid else None

    def relations(self, x: Tensor) -> Tensor:
        """How much each position looks at each other, (B, H W, H W); every row sums to 1."""
        queries = self.query(x)
        if self.positions is not None:
            queries = queries * self.positions
        logits = queries.flatten(2).mT @ self.key(x).flatten(2)
        return logits.softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """Features -> features, (B, C, H, W)."""
        mixed = self.value(x).flatten(2) @ self.relations(x).mT
        return torch.addcmul(x, self.delta, mixed.view_as(x))


class SAN(ResNet):
    """Heatmaps in three dimensions from a ResNet with self-attention.

    ====================== ============================
    normalised images    (B, 3, H, W)
    ResNet                 (B, 2048, H/32, W/32)
    position attention     the same
    deconvolutions         (B, 256, H/4, W/4)
    1x1 convolution        (B, J, D, H/4, W/4)
    ====================== ============================

    Args:
        layers: 50, 101 or 152.
        joints: J.
        depth_bins: D; 1 for a 2D detector.
        attention: Whether there is self-attention; without it this is Integral's network.
        grid: H/32 and W/32, for the learned positional term of the attention; none to do without.

    Source: paper 004, fig. 2 and sec. 3; 50 layers, 18 joints and 64 bins have 39,536,833
    parameters. Depth as in Sun et al., "Integral human pose regression", ECCV 2018.
    """

    def __init__(
        self,
        layers: int = 50,
        joints: int = 18,
        depth_bins: int = 64,
        *,
        attention: bool = True,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(layers)
        self.joints, self.depth_bins = joints, depth_bins
        self.attention = PositionAttention(self.channels, grid) if attention else None
        self.deconv_layers = deconvolution_head()
        self.final_layer = nn.Conv2d(256, joints * depth_bins, 1)
        init_small(self.final_layer)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> heatmaps (B, J, D, H/4, W/4)."""
        features = self.features(images)
        if self.attention is not None:
            features = self.attention(features)
        maps = self.final_layer(self.deconv_layers(features))
        return maps.unflatten(1, (self.joints, self.depth_bins))

    def relations(self, images: Tensor) -> Tensor:
        """Normalised images -> how much positions look at each other, (B, H/32 W/32, H/32 W/32).

        Raises:
            ValueError: If the network has no attention.
        """
        if self.attention is None:
            raise ValueError("this SAN was built with attention=False; it has no relations")
        return self.attention.relations(self.features(images))


def likelihood(heatmaps: Tensor) -> Tensor:
    """Logits (B, J, D, H, W) -> how likely a joint is in each cell, float32; a volume sums to 1."""
    return heatmaps.float().flatten(2).softmax(-1).view(heatmaps.shape)


def centre(mass: Tensor) -> Tensor:
    """Mean position of each volume's mass, (B, J, D, H, W) -> x, y, z in cells, (B, J, 3)."""
    over_columns = mass.sum(-1)
    marginals = (mass.sum((2, 3)), over_columns.sum(2), over_columns.sum(3))
    cells = (torch.arange(m.shape[-1], device=m.device, dtype=m.dtype) for m in marginals)
    # Products and sums, because autocast would make matrix products inexact.
    return torch.stack(
        [(m * cell).sum(-1) for m, cell in zip(marginals, cells, strict=True)], dim=-1
    )


def expectation(heatmaps: Tensor) -> Tensor:
    """Mean position under the softmax of each volume (soft-argmax), in float32.

    Convention:
        A volume with all its mass at bin d, row h and column w gives (w, h, d): integer coordinates
        are bin centres.

        >>> volume = torch.zeros(1, 1, 4, 8, 8)
        >>> volume[0, 0, 3, 2, 5] = 1000.0
        >>> expectation(volume)
        tensor([[[5., 2., 3.]]])

    Args:
        heatmaps: Logits, (B, J, D, H, W).

    Returns:
        x, y, z in cells of the volume, (B, J, 3).

    Source: paper 004, eq. 5-6 (with the index that its sums leave out); Sun et al. 2018, eq. 2-3.
    """
    return centre(likelihood(heatmaps))
