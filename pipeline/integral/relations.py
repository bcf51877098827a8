"""Relations of joints: how much each joint attends to each other (paper 004, fig. 3)."""

from __future__ import annotations

import torch
from torch import Tensor

ATTENTION_STRIDE = 32
"""Pixels of the crop per cell of the feature map that the attention works on."""


def joint_relations(relations: Tensor, joints2d: Tensor, grid: tuple[int, int]) -> Tensor:
    """How much each joint attends to each other, from an attention over positions.

    The attention at a joint is interpolated bilinearly between the four cells around it.

    Convention:
        1 is the value of every pair of joints if the attention is uniform.

        >>> even = torch.full((1, 4, 4), 0.25)
        >>> joint_relations(even, torch.tensor([[[10.0, 40.0], [50.0, 3.0]]]), (2, 2))
        tensor([[[1., 1.],
                 [1., 1.]]])

    Args:
        relations: Attention weights of positions, (B, N, N); every row sums to 1.
        joints2d: Joints in pixels of the crop, (B, J, 2).
        grid: Rows and columns of the feature map; N is their product.

    Returns:
        (B, J, J): row i is how much joint i attends to each joint.

    Source: paper 004, fig. 3. Differs from the paper: it does not describe how its map is made.
    """
    rows, columns = grid
    cells = (joints2d - (ATTENTION_STRIDE - 1) / 2) / ATTENTION_STRIDE
    in_rows = _linear_weights(cells[..., 1], rows)
    in_columns = _linear_weights(cells[..., 0], columns)
    weights = (in_rows[..., :, None] * in_columns[..., None, :]).flatten(2)
    with torch.autocast(relations.device.type, enabled=False):
        return weights.float() @ relations.float() @ weights.float().mT * (rows * columns)


def _linear_weights(positions: Tensor, count: int) -> Tensor:
    """Weights of linear interpolation between cells, (...,) -> (..., count), summing to 1."""
    positions = positions.clamp(0, count - 1)
    cells = torch.arange(count, device=positions.device, dtype=positions.dtype)
    return (1 - (positions[..., None] - cells).abs()).clamp(min=0)
