"""Which joints attend to which: the relation map of paper 004's fig. 3."""

from __future__ import annotations

import torch
from torch import Tensor

STRIDE = 32
"""Pixels of the crop per cell of the features that attend."""


def joint_relations(relations: Tensor, joints2d: Tensor, grid: tuple[int, int]) -> Tensor:
    """How much each joint attends to each other, where attention is over positions.

    Between the four cells around a joint weights are bilinear.

    Convention:
        1 is what every joint would pay to every other if attention were spread evenly.

        >>> even = torch.full((1, 4, 4), 0.25)
        >>> joint_relations(even, torch.tensor([[[10.0, 40.0], [50.0, 3.0]]]), (2, 2))
        tensor([[[1., 1.],
                 [1., 1.]]])

    Args:
        relations: How much positions look at each other, rows summing to 1, (B, N, N).
        joints2d: Pixels of the crop, (B, J, 2).
        grid: Rows and columns of the positions; N is their product.

    Returns:
        (B, J, J): row i is what joint i looks at.

    Source: paper 004, fig. 3. Differs from the paper: it does not say how its map is made.
    """
    rows, columns = grid
    cells = (joints2d - (STRIDE - 1) / 2) / STRIDE
    near = [_hats(cells[..., 1], rows), _hats(cells[..., 0], columns)]
    at = (near[0][..., :, None] * near[1][..., None, :]).flatten(2)
    with torch.autocast(relations.device.type, enabled=False):
        return at.float() @ relations.float() @ at.float().mT * (rows * columns)


def _hats(places: Tensor, count: int) -> Tensor:
    """Linear weights of the cells around a place, (...,) -> (..., count), summing to 1."""
    places = places.clamp(0, count - 1)
    cells = torch.arange(count, device=places.device, dtype=places.dtype)
    return (1 - (places[..., None] - cells).abs()).clamp(min=0)
