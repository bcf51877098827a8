"""PoseFormer, with group attention if wanted: clips to their centre frame (2021; paper 003)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.lift.lifter import Lifter
from pipeline.lift.transformer import Along, Block, drop_path_rates

Position = Literal["before_attention", "after_attention", "after_mlp"]
"""Where in a block the group module stands (paper 003, Table VII)."""


class GroupModule(nn.Module):
    """Convolution, GELU, group norm, convolution and a skip along one axis, (B, T, J, C) as it was.

    The second convolution starts at zero, so that the module starts as the identity.

    Args:
        dim: C.
        width: Neighbours that a convolution sees, itself included; zero-padded at the ends.
        conv_groups: Groups of the convolutions.
        norm_groups: Groups of the norm.

    Source: paper 003, eq. 3 and 6: Conv(Norm(GELU(Conv(P)))) + P.
    """

    def __init__(self, dim: int, width: int, conv_groups: int, norm_groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(dim, dim, width, padding=width // 2, groups=conv_groups)
        self.norm = nn.GroupNorm(norm_groups, dim)
        self.conv2 = nn.Conv1d(dim, dim, width, padding=width // 2, groups=conv_groups)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor, along: Along) -> Tensor:
        """Mix neighbouring tokens, (B, T, J, C)."""
        B, T, J, C = tokens.shape
        if along == "joints":
            mixed = self._mix(tokens.view(B * T, J, C).mT).mT.view(B, T, J, C)
        else:
            rows = tokens.permute(0, 2, 3, 1).reshape(B * J, C, T)
            mixed = self._mix(rows).view(B, J, C, T).permute(0, 3, 1, 2)
        return tokens + mixed

    def _mix(self, rows: Tensor) -> Tensor:
        return self.conv2(self.norm(F.gelu(self.conv1(rows))))


class GroupBlock(Block):
    """A transformer block with a group module before the attention, after it, or after the MLP.

    Args:
        dim: C.
        heads: Attention heads.
        group: The group module.
        position: Where it stands.
        drop_path: As in `Block`.
        dropout: As in `Block`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        group: GroupModule,
        position: Position,
        *,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, heads, drop_path=drop_path, dropout=dropout)
        self.group = group
        self.position = position

    def forward(self, tokens: Tensor, along: Along) -> Tensor:
        """Mix tokens, (B, T, J, C), along joints or frames."""
        if self.position == "before_attention":
            tokens = self.group(tokens, along)
        tokens = self.add(tokens, self.attn(self.norm1(tokens), along), along)
        if self.position == "after_attention":
            tokens = self.group(tokens, along)
        tokens = self.add(tokens, self.mlp(self.norm2(tokens)), along)
        return self.group(tokens, along) if self.position == "after_mlp" else tokens


class PoseFormer(Lifter):
    """Attention over the joints of each frame, then over frames: clips to their centre frame.

    =====================  ===========================================
    joints2d               (B, T, J, channels)
    linear + embedding     (B, T, J, C)
    depth x spatial        attention over J in each frame, norm
    flattened + embedding  (B, T, J C)
    depth x temporal       attention over T, norm
    weighted mean          (B, J C)
    norm + linear          (B, 1, J, 3) metres
    =====================  ===========================================

    Parameters are named as in published checkpoints.

    Args:
        joints: J.
        frames: T, odd.
        dim: C.
        depth: Spatial blocks, and temporal blocks.
        heads: Attention heads in each block.
        group_attention: Paper 003's group modules: in the spatial blocks (SAM), in the temporal
            blocks (TAM), in both (True) or in none. They start as the identity.
        channels: Numbers per joint that come in: 2 (x, y) or 3 (x, y, score).
        drop_path: Probability that the last block of each kind drops a branch; grows from 0.
        dropout: Share of numbers dropped after embeddings, attention and MLPs (0.1 in paper 003).
        position: Where the group modules stand.
        groups: `joints`: dense convolutions over joints, and over frames two groups for every
            joint; `channels`: one group for every channel (depth-wise), as the text has it.

    Source: Zheng et al., "3D human pose estimation with spatial and temporal transformers", ICCV
    2021; T=81 has 9,602,885 parameters. Group modules: paper 003, sec. III-C: 9,861,957.
    Differs from the paper: paper 003 gives no number of groups; 2 J for TAM (16 channels each) and
    8 for SAM's norm make its 9.86 million. The frame correlations of its eq. 4-5 are the logits of
    the temporal attention. Its kernels are 5 joints and 3 frames. The presets train for 130 epochs,
    where it says nothing and PoseFormer's code has 200; take the rate times 0.95 after every epoch,
    where it says "after 2 epochs"; and learn from a window around every frame, where it says that
    windows do not overlap.
    """

    output: Literal["every", "centre", "valid"] = "centre"

    def __init__(
        self,
        joints: int = 17,
        frames: int = 81,
        dim: int = 32,
        depth: int = 4,
        heads: int = 8,
        group_attention: bool | Literal["spatial", "temporal"] = False,
        *,
        channels: int = 2,
        drop_path: float = 0.1,
        dropout: float = 0.0,
        position: Position = "after_attention",
        groups: Literal["joints", "channels"] = "joints",
    ) -> None:
        super().__init__()
        self.frames = self.receptive_field = frames
        self.joints, self.channels = joints, channels
        wide = joints * dim
        self.Spatial_patch_to_embedding = nn.Linear(channels, dim)
        self.Spatial_pos_embed = nn.Parameter(torch.zeros(1, joints, dim))
        self.Temporal_pos_embed = nn.Parameter(torch.zeros(1, frames, wide))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

        def block(kind: Literal["spatial", "temporal"], rate: float) -> Block:
            size = dim if kind == "spatial" else wide
            if group_attention not in (True, kind):
                return Block(size, heads, drop_path=rate, dropout=dropout)
            if kind == "spatial":
                group = GroupModule(size, 5, 1 if groups == "joints" else size, 8)
            else:
                group = GroupModule(size, 3, 2 * joints if groups == "joints" else size, joints)
            return GroupBlock(size, heads, group, position, drop_path=rate, dropout=dropout)

        rates = drop_path_rates(drop_path, depth)
        self.Spatial_blocks = nn.ModuleList(block("spatial", rate) for rate in rates)
        self.blocks = nn.ModuleList(block("temporal", rate) for rate in rates)
        self.Spatial_norm = nn.LayerNorm(dim, eps=1e-6)
        self.Temporal_norm = nn.LayerNorm(wide, eps=1e-6)
        self.weighted_mean = nn.Conv1d(frames, 1, 1)
        self.head = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, 3 * joints))

    def forward(self, joints2d: Tensor, visible: Tensor | None = None) -> Tensor:
        """Lift clips, (B, T, J, channels) -> (B, 1, J, 3); see `Lifter.forward`.

        Raises:
            ValueError: If T, J or the channels are not those the network was built for.
        """
        B, T, J, C = joints2d.shape
        if (self.frames, self.joints, self.channels) != (T, J, C):
            raise ValueError(
                f"clips (B, {T}, {J}, {C}) do not fit a PoseFormer built for "
                f"(B, {self.frames}, {self.joints}, {self.channels})"
            )
        tokens = self.Spatial_patch_to_embedding(joints2d)
        tokens = self.dropout(tokens + self.Spatial_pos_embed.to(tokens.dtype))
        for block in self.Spatial_blocks:
            tokens = block(tokens, "joints")
        tokens = self.Spatial_norm(tokens).view(B, T, 1, -1)
        tokens = self.dropout(tokens + self.Temporal_pos_embed[:, :, None].to(tokens.dtype))
        for block in self.blocks:
            tokens = block(tokens, "frames")
        frames = self.Temporal_norm(tokens).flatten(2)
        mean = F.linear(frames.mT, self.weighted_mean.weight[:, :, 0], self.weighted_mean.bias)
        return self.head(mean.mT).view(B, 1, J, 3)
