"""The pre-norm transformer block of MixSTE and PoseFormer, along joints or along frames."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.lift.linear import Linear, is_dispatch_observed, linear

Along = Literal["joints", "frames"]
"""Axis of (B, T, J, C) over which tokens attend to each other; the other one is batch."""

MAX_PLAIN_TOKENS = 32
"""Number of tokens up to which plain products are faster than the fused kernel on a CPU."""


class Attention(nn.Module):
    """Multi-head self-attention along one axis of tokens, (B, T, J, C) -> (B, T, J, C).

    Along frames, queries, keys and values are projected one by one. Joints and heads then form one
    axis of `scaled_dot_product_attention`, and no tensor is permuted and copied.

    Args:
        dim: C, size of a token.
        heads: Number of attention heads, each of size C/heads.
        dropout: Share of features dropped after the output projection.

    Raises:
        ValueError: If `dim` is not a multiple of `heads`.

    Source: MixSTE (Zhang et al. 2022, eq. 1-2) and PoseFormer (Zheng et al. 2021, eq. 3-4), which
    take it from ViT.
    """

    def __init__(self, dim: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of {heads} heads")
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, tokens: Tensor, along: Along) -> Tensor:
        """Attend along joints or along frames, (B, T, J, C) -> (B, T, J, C)."""
        B, T, J, C = tokens.shape
        D = C // self.heads
        if along == "joints":
            q, k, v = self.qkv(tokens).view(B * T, J, 3, self.heads, D).permute(2, 0, 3, 1, 4)
        else:
            parts = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
            q, k, v = (
                linear(tokens, weight, bias).view(B, T, J * self.heads, D).transpose(1, 2)
                for weight, bias in parts
            )
        mixed = attend(q, k, v)
        return self.dropout(self.proj(mixed.transpose(1, 2).reshape(B, T, J, C)))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention softmax(q k^T / sqrt(D)) v, (N, H, L, D), by the faster of two forms.

    On a CPU plain products are faster for few tokens, and always in bfloat16: 12.3 against
    16.7 ms backward over 17 joints at C=512, but 23.7 against 18.8 ms over 243 frames at C=128.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    plain = q.shape[-2] <= MAX_PLAIN_TOKENS or q.dtype == torch.bfloat16 or is_dispatch_observed()
    if not plain:
        return F.scaled_dot_product_attention(q, k, v)
    return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1) @ v


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them, (..., C) -> (..., C).

    Args:
        dim: C, size of a token.
        hidden: Size of the hidden layer.
        dropout: Share of features dropped after each layer.
    """

    def __init__(self, dim: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """Map each token on its own, (..., C) -> (..., C)."""
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(tokens)))))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + MLP(norm(x)), (B, T, J, C).

    Args:
        dim: C, size of a token.
        heads: Number of attention heads.
        drop_path: Probability in training that a branch is dropped, for all joints of a frame
            (along joints) or for all frames of a joint (along frames).
        dropout: Share of features dropped inside the branches.

    Source: as `Attention`; layer norms with eps 1e-6, MLP twice as wide as the tokens.
    """

    def __init__(
        self, dim: int, heads: int, *, drop_path: float = 0.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, 2 * dim, dropout=dropout)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor, along: Along) -> Tensor:
        """Attend along joints or along frames, (B, T, J, C) -> (B, T, J, C)."""
        tokens = self.add(tokens, self.attn(self.norm1(tokens), along), along)
        return self.add(tokens, self.mlp(self.norm2(tokens)), along)

    def add(self, tokens: Tensor, branch: Tensor, along: Along) -> Tensor:
        """Add a branch to the tokens; in training it is dropped at random (stochastic depth)."""
        if not (self.training and self.drop_path):
            return tokens + branch
        B, T, J, _ = branch.shape
        shape = (B, T, 1, 1) if along == "joints" else (B, 1, J, 1)
        keep = 1.0 - self.drop_path
        return torch.addcmul(tokens, branch, branch.new_empty(shape).bernoulli_(keep).div_(keep))


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Drop-path probability of each of `depth` blocks, rising evenly from 0 to `last`.

    >>> drop_path_rates(0.1, 3)
    [0.0, 0.05, 0.1]
    """
    return [last * i / max(depth - 1, 1) for i in range(depth)]
