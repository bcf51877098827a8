"""MixSTE: attention over joints and over frames, in turn (Zhang et al. 2022; paper 001)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.lift.lifter import Lifter
from pipeline.lift.transformer import Block, drop_path_rates

GAIN = 8.0
"""Factor on the first layer's weights where embeddings are spread: tokens then have about the size
of 1, for normalised 2D of a deviation of about 0.2."""


class MixSTE(Lifter):
    """Mixed spatio-temporal encoder: 2D clips to 3D clips, every frame at once.

    ====================  ======================================
    joints2d              (B, T, J, channels)
    linear + embeddings   (B, T, J, C)
    depth x [spatial]     attention over J in each frame
    depth x [temporal]    attention over T for each joint
    norm + linear         (B, T, J, 3) metres
    ====================  ======================================

    Parameters are named as in published checkpoints. J and T are fixed by the learned embeddings.

    Args:
        joints: J.
        frames: T.
        dim: C.
        depth: Pairs of a spatial and a temporal block.
        heads: Attention heads in each block.
        channels: Numbers per joint that come in: 2 (x, y) or 3 (x, y, score).
        drop_path: Probability that the last pair of blocks drops a branch; grows evenly from 0 in
            the first.
        spread: Deviation that position embeddings are drawn with at the start; where it is not 0,
            the first layer's weights are larger too (`GAIN`), so that joints, frames and poses
            differ from the first step on. 0 starts as published.

    Source: Zhang et al., "MixSTE", CVPR 2022, eq. 3-7 and sec. 4.2; T=243, C=512, depth 8 gives
    33,783,811 parameters.
    Differs from the paper: as the published code, the norms after spatial and temporal blocks are
    shared by all pairs and the position embeddings are added once.
    """

    output: Literal["every", "centre", "valid"] = "every"

    def __init__(
        self,
        joints: int = 17,
        frames: int = 243,
        dim: int = 512,
        depth: int = 8,
        heads: int = 8,
        *,
        channels: int = 2,
        drop_path: float = 0.1,
        spread: float = 0.0,
    ) -> None:
        super().__init__()
        self.frames = self.receptive_field = frames
        self.joints, self.channels = joints, channels
        self.Spatial_patch_to_embedding = nn.Linear(channels, dim)
        self.Spatial_pos_embed = nn.Parameter(torch.zeros(1, joints, dim))
        self.Temporal_pos_embed = nn.Parameter(torch.zeros(1, frames, dim))
        rates = drop_path_rates(drop_path, depth)
        self.STEblocks = nn.ModuleList(Block(dim, heads, drop_path=rate) for rate in rates)
        self.TTEblocks = nn.ModuleList(Block(dim, heads, drop_path=rate) for rate in rates)
        self.Spatial_norm = nn.LayerNorm(dim, eps=1e-6)
        self.Temporal_norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 3))
        if spread:
            nn.init.normal_(self.Spatial_pos_embed, std=spread)
            nn.init.normal_(self.Temporal_pos_embed, std=spread)
            with torch.no_grad():
                self.Spatial_patch_to_embedding.weight.mul_(GAIN)

    def forward(self, joints2d: Tensor, visible: Tensor | None = None) -> Tensor:
        """Lift clips, (B, T, J, channels) -> (B, T, J, 3); see `Lifter.forward`.

        Raises:
            ValueError: If T, J or the channels are not those the network was built for.
        """
        _, T, J, C = joints2d.shape
        if (self.frames, self.joints, self.channels) != (T, J, C):
            raise ValueError(
                f"clips (B, {T}, {J}, {C}) do not fit a MixSTE built for "
                f"(B, {self.frames}, {self.joints}, {self.channels})"
            )
        tokens = self.Spatial_patch_to_embedding(joints2d)
        # in the tokens' own type: an addend in float32 would make every later sum float32 under
        # autocast
        tokens = tokens + self.Spatial_pos_embed.to(tokens.dtype)
        for i, (spatial, temporal) in enumerate(zip(self.STEblocks, self.TTEblocks, strict=True)):
            tokens = self.Spatial_norm(spatial(tokens, "joints"))
            if i == 0:
                tokens = tokens + self.Temporal_pos_embed[:, :, None].to(tokens.dtype)
            tokens = self.Temporal_norm(temporal(tokens, "frames"))
        return self.head(tokens)
