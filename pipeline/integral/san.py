"""SAN: a ResNet with self-attention over positions and 3D heatmaps (paper 004)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.heatmap.resnet import ResNet, deconvolution_head, init_small


class PositionAttention(nn.Module):
    """Self-attention over the positions of a feature map: (B, C, H, W) -> (B, C, H, W).

    out = delta * sum over positions m of softmax_m(q . k_m) v_m + x; delta starts at zero, so that
    the block starts as the identity.

    Args:
        channels: Channels C; queries and keys have C/8.
        grid: H and W of the learned positional factors of the queries; none for no factors.

    Source: paper 004, eq. 1-4; 5,245,441 parameters at 2048 channels. As in the paper, logits are
    not divided by sqrt(C/8).
    Differs from the paper: it describes attention between feature maps, which its own sizes exclude
    (queries have C/8 channels, values C); here positions attend. It gives no formula for its
    positional term P; `grid` is one reading.
    """

    def __init__(self, channels: int, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.delta = nn.Parameter(torch.zeros(()))
        self.positions = nn.Parameter(torch.ones(channels // 8, *grid)) if grid else None

    def relations(self, x: Tensor) -> Tensor:
        """Attention weights of each position, (B, H W, H W); every row sums to 1."""
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
    """3D heatmaps from a ResNet with self-attention.

    ====================== ============================
    normalised images      (B, 3, H, W)
    ResNet                 (B, 2048, H/32, W/32)
    position attention     the same
    deconvolutions         (B, 256, H/4, W/4)
    1x1 convolution        (B, J, D, H/4, W/4)
    ====================== ============================

    Args:
        layers: Layers of the ResNet: 50, 101 or 152.
        joints: Number of joints J.
        depth_bins: Number of depth bins D; 1 for a 2D detector.
        attention: Use self-attention; without it this is the network of Integral.
        grid: H/32 and W/32, for learned positional factors in the attention; none for no factors.

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
        """Normalised images -> attention weights of positions, (B, H/32 W/32, H/32 W/32).

        Raises:
            ValueError: If the network has no attention.
        """
        if self.attention is None:
            raise ValueError("this SAN was built with attention=False; it has no relations")
        return self.attention.relations(self.features(images))
