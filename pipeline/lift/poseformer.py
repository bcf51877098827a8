"""PoseFormer: clips to their centre frame, with optional group attention (2021; paper 003)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.lift.lifter import Lifter
from pipeline.lift.linear import FloatLinear
from pipeline.lift.transformer import Along, Block, drop_path_rates

Position = Literal["before_attention", "after_attention", "after_mlp"]
"""Position of the group module in a block (paper 003, Table VII)."""


class GroupAttention(nn.Module):
    """Group module: two convolutions along joints or frames and a skip connection, (B, T, J, C).

    The second convolution is initialised with zeros, so that the module starts as the identity.

    Args:
        dim: C, size of a token.
        width: Kernel size of the convolutions, odd; they are zero-padded at the ends.
        conv_groups: Number of groups of the convolutions.
        norm_groups: Number of groups of the norm.

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
        """Convolve along joints or along frames, (B, T, J, C) -> (B, T, J, C)."""
        B, T, J, C = tokens.shape
        if along == "joints":
            residual = self._convolve(tokens.view(B * T, J, C).mT).mT.view(B, T, J, C)
        else:
            rows = tokens.permute(0, 2, 3, 1).reshape(B * J, C, T)
            residual = self._convolve(rows).view(B, J, C, T).permute(0, 3, 1, 2)
        return tokens + residual

    def _convolve(self, rows: Tensor) -> Tensor:
        return self.conv2(self.norm(F.gelu(self.conv1(rows))))


class GroupAttentionBlock(Block):
    """A transformer block with a group module before the attention, after it, or after the MLP.

    Args:
        dim: C, size of a token.
        heads: Number of attention heads.
        group: Group module.
        position: Position of the group module.
        drop_path: Probability in training that a branch is dropped, see `Block`.
        dropout: Share of features dropped inside the branches.

    Source: paper 003, sec. III-C and Table VII.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        group: GroupAttention,
        position: Position,
        *,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, heads, drop_path=drop_path, dropout=dropout)
        self.group = group
        self.position = position

    def forward(self, tokens: Tensor, along: Along) -> Tensor:
        """Attend along joints or along frames, (B, T, J, C) -> (B, T, J, C)."""
        if self.position == "before_attention":
            tokens = self.group(tokens, along)
        tokens = self.add(tokens, self.attn(self.norm1(tokens), along), along)
        if self.position == "after_attention":
            tokens = self.group(tokens, along)
        tokens = self.add(tokens, self.mlp(self.norm2(tokens)), along)
        if self.position == "after_mlp":
            tokens = self.group(tokens, along)
        return tokens


class PoseFormer(Lifter):
    """PoseFormer: attention over joints, then over frames, predicts the centre frame of a clip.

    =====================  ===========================================
    joints2d               (B, T, J, channels)
    linear + embedding     (B, T, J, C)
    depth x spatial        attention over J in each frame, norm
    flattened + embedding  (B, T, J C)
    depth x temporal       attention over T, norm
    weighted mean          (B, J C)
    norm + linear          (B, 1, J, 3) metres
    =====================  ===========================================

    Parameters have the names of published checkpoints.

    Args:
        joints: J, number of joints.
        frames: T, number of frames in a clip, odd.
        dim: C, size of a token of one joint.
        depth: Number of spatial blocks and number of temporal blocks.
        heads: Number of attention heads in each block.
        group_attention: Blocks with paper 003's group modules: `spatial` (SAM), `temporal` (TAM),
            True for both or False for none. The modules start as the identity.
        channels: Input channels per joint: 2 (x, y) or 3 (x, y, score).
        drop_path: Probability that the last block of each kind drops a branch; it rises evenly from
            0 in the first.
        dropout: Share of features dropped after embeddings, attention and MLPs (0.1 in paper 003).
        position: Position of the group modules in a block.
        groups: Groups of the convolutions: `joints` for one group over joints and two per joint
            over frames; `channels` for one per channel (depth-wise), as paper 003's text has it.

    Source: Zheng et al., "3D human pose estimation with spatial and temporal transformers", ICCV
    2021; T=81 has 9,602,885 parameters. Group modules: paper 003, sec. III-C: 9,861,957.
    Differs from the paper: paper 003's text has depth-wise convolutions, 9,626,437 parameters, and
    its table 9.86 million. No number of groups is given; dense convolutions in SAM, 2 J groups in
    TAM (16 channels each) and 8 for SAM's norm give the number of the table and are the default;
    `groups: channels` is the text. The frame correlations of its eq. 4-5 are the
    logits of the temporal attention. Its kernels are 5 joints and 3 frames. The presets train for
    130 epochs (paper 003 gives no number, PoseFormer's code has 200), multiply the learning rate by
    0.95 after every epoch (the paper: "after 2 epochs"), and train on a window around every frame
    (the paper: windows do not overlap).
    """

    output: Literal["every", "centre", "valid"] = "centre"
    slides = True

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
        frame_dim = joints * dim
        self.Spatial_patch_to_embedding = nn.Linear(channels, dim)
        self.Spatial_pos_embed = nn.Parameter(torch.zeros(1, joints, dim))
        self.Temporal_pos_embed = nn.Parameter(torch.zeros(1, frames, frame_dim))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

        def make_block(kind: Literal["spatial", "temporal"], rate: float) -> Block:
            size = dim if kind == "spatial" else frame_dim
            if group_attention not in (True, kind):
                return Block(size, heads, drop_path=rate, dropout=dropout)
            if kind == "spatial":
                group = GroupAttention(size, 5, 1 if groups == "joints" else size, 8)
            else:
                group = GroupAttention(size, 3, 2 * joints if groups == "joints" else size, joints)
            return GroupAttentionBlock(
                size, heads, group, position, drop_path=rate, dropout=dropout
            )

        rates = drop_path_rates(drop_path, depth)
        self.Spatial_blocks = nn.ModuleList(make_block("spatial", rate) for rate in rates)
        self.blocks = nn.ModuleList(make_block("temporal", rate) for rate in rates)
        self.Spatial_norm = nn.LayerNorm(dim, eps=1e-6)
        self.Temporal_norm = nn.LayerNorm(frame_dim, eps=1e-6)
        self.weighted_mean = nn.Conv1d(frames, 1, 1)
        self.head = nn.Sequential(nn.LayerNorm(frame_dim), FloatLinear(frame_dim, 3 * joints))

    def forward(self, joints2d: Tensor, visible: Tensor | None = None) -> Tensor:
        """Lift clips, (B, T, J, channels) -> (B, 1, J, 3); see `Lifter.forward`.

        A longer clip, (B, N, J, channels), gives the centres of all its windows, (B, N - T + 1, J,
        3). Attention over joints is then computed once per frame, not once per window.

        Raises:
            ValueError: If J or the channels are not those the network was built for, or the clip is
                shorter than T.
        """
        B, N, J, _ = joints2d.shape
        T = self.frames
        self.check_clips(joints2d if N < T else joints2d[:, :T], self.joints, self.channels)
        tokens = self.Spatial_patch_to_embedding(joints2d)
        tokens = self.dropout(tokens + self.Spatial_pos_embed.to(tokens.dtype))
        for block in self.Spatial_blocks:
            tokens = block(tokens, "joints")
        tokens = self.Spatial_norm(tokens).flatten(2)
        if N > T:
            tokens = tokens.unfold(1, T, 1).mT.flatten(0, 1)
        tokens = tokens[:, :, None]
        tokens = self.dropout(tokens + self.Temporal_pos_embed[:, :, None].to(tokens.dtype))
        for block in self.blocks:
            tokens = block(tokens, "frames")
        features = self.Temporal_norm(tokens).flatten(2)
        mean = F.linear(features.mT, self.weighted_mean.weight[:, :, 0], self.weighted_mean.bias)
        return self.head(mean.mT).view(B, N - T + 1, J, 3)
