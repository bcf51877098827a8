"""MixSTE: attention over joints and over frames, in turn (Zhang et al. 2022; paper 001)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.lift.lifter import Lifter
from pipeline.lift.linear import FloatLinear
from pipeline.lift.transformer import Block, drop_path_rates

SPREAD_GAIN = 8.0
"""Factor on the first layer's weights if `spread` is not 0. Tokens then have a size of about 1, for
normalised 2D with a standard deviation of about 0.2."""


class MixSTE(Lifter):
    """MixSTE, a mixed spatio-temporal encoder that predicts every frame of a clip.

    ====================  ======================================
    joints2d              (B, T, J, channels)
    linear + embeddings   (B, T, J, C)
    depth x [spatial]     attention over J in each frame
    depth x [temporal]    attention over T for each joint
    norm + linear         (B, T, J, 3) metres
    ====================  ======================================

    Parameters have the names of published checkpoints. The learned embeddings fix J and T.

    Args:
        joints: J, number of joints.
        frames: T, number of frames in a clip.
        dim: C, size of a token.
        depth: Number of pairs of a spatial and a temporal block.
        heads: Number of attention heads in each block.
        channels: Input channels per joint: 2 (x, y) or 3 (x, y, score).
        drop_path: Probability that the last pair of blocks drops a branch; it rises evenly from 0
            in the first pair.
        spread: Standard deviation of the initial position embeddings. If it is not 0, the first
            layer's initial weights are multiplied by 8, so that tokens of different joints, frames
            and poses differ from the first step on. 0 is the published initialisation.

    Source: Zhang et al., "MixSTE", CVPR 2022, eq. 3-7 and sec. 4.2; T=243, C=512, depth 8 gives
    33,783,811 parameters.
    Differs from the paper: as in the published code, all pairs share the norms after spatial and
    temporal blocks, and the position embeddings are added once.
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
        self.head = nn.Sequential(nn.LayerNorm(dim), FloatLinear(dim, 3))
        if spread:
            nn.init.normal_(self.Spatial_pos_embed, std=spread)
            nn.init.normal_(self.Temporal_pos_embed, std=spread)
            with torch.no_grad():
                self.Spatial_patch_to_embedding.weight.mul_(SPREAD_GAIN)

    def forward(self, joints2d: Tensor, visible: Tensor | None = None) -> Tensor:
        """Lift clips, (B, T, J, channels) -> (B, T, J, 3); see `Lifter.forward`.

        Raises:
            ValueError: If T, J or the channels are not those the network was built for.
        """
        self.check_clips(joints2d, self.joints, self.channels)
        tokens = self.Spatial_patch_to_embedding(joints2d)
        # in the type of the tokens: adding float32 would make all later sums float32 under autocast
        tokens = tokens + self.Spatial_pos_embed.to(tokens.dtype)
        for i, (spatial, temporal) in enumerate(zip(self.STEblocks, self.TTEblocks, strict=True)):
            tokens = self.Spatial_norm(spatial(tokens, "joints"))
            if i == 0:
                tokens = tokens + self.Temporal_pos_embed[:, :, None].to(tokens.dtype)
            tokens = self.Temporal_norm(temporal(tokens, "frames"))
        return self.head(tokens)
