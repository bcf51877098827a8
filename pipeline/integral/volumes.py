"""Joints with depth from 3D heatmaps (soft-argmax), the loss on them, and back-projection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.heatmap import targets

SCORE_RADIUS = 2
"""The score of a joint is the share of its mass within so many cells, along x and along y."""


@dataclass(frozen=True)
class VolumeGrid:
    """Where the cells of a volume are in the crop and in depth.

    Args:
        cube: Length in metres that the D bins of depth span, the root in their middle.
        cell_offset: Pixel of the crop at the centre of cell 0, see `pipeline.heatmap.targets`.
        bin_offset: Centre of bin 0 in bins: 0.5, or 0 for published networks.
    """

    cube: float
    cell_offset: float
    bin_offset: float


def normalise_volumes(heatmaps: Tensor) -> Tensor:
    """Logits (B, J, D, H, W) -> probability of each cell, float32; each volume sums to 1."""
    return heatmaps.float().flatten(2).softmax(-1).view(heatmaps.shape)


def centre_of_mass(mass: Tensor) -> Tensor:
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
    return centre_of_mass(normalise_volumes(heatmaps))


def decode_volumes(volumes: Tensor, grid: VolumeGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Joints with depth, their scores and 2D heatmaps from 3D heatmaps.

    Args:
        volumes: Logits, (B, J, D, H, W).
        grid: Where the cells of the volumes are.

    Returns:
        Joints (B, J, 3): x, y in pixels of the crop and depth behind the root in metres; scores
        (B, J), from 0 to 1; 2D heatmaps (B, J, H, W), the mass summed over depth. All float32.
    """
    mass = normalise_volumes(volumes)
    cells, maps = centre_of_mass(mass), mass.sum(2)
    columns = _is_near(cells[..., 0], maps.shape[3])
    rows = _is_near(cells[..., 1], maps.shape[2])
    score = (maps * rows[..., :, None] * columns[..., None, :]).sum((2, 3))
    pixels = targets.to_pixels(cells[..., :2], offset=grid.cell_offset)
    depth = ((cells[..., 2:] + grid.bin_offset) / mass.shape[2] - 0.5) * grid.cube
    return torch.cat([pixels, depth], dim=-1), score, maps


def _is_near(position: Tensor, count: int) -> Tensor:
    """Whether each of `count` cells is within `SCORE_RADIUS` of a position, (B, J, count)."""
    cells = torch.arange(count, device=position.device)
    return (cells - position[..., None]).abs() <= SCORE_RADIUS


def volume_loss(
    volumes: Tensor,
    joints2d: Tensor,
    depth: Tensor,
    *,
    weight: Tensor,
    has_depth: Tensor,
    grid: VolumeGrid,
) -> Tensor:
    """Mean absolute error of soft-argmax positions over the labelled coordinates.

    Args:
        volumes: Logits, (B, J, D, H, W).
        joints2d: True joints in pixels of the crop, (B, J, 2).
        depth: True depth behind the root, metres, (B, J).
        weight: 1 where x and y are labelled, else 0, (B, J).
        has_depth: 1 where the depth is labelled, else 0, (B, J).
        grid: Where the cells of the volumes are.

    Returns:
        Scalar, in sides of the volume: 1 is an error of the whole width, height or depth.
    """
    D, H, W = volumes.shape[2:]
    size = volumes.new_tensor([W, H, D], dtype=torch.float32)
    cells = targets.to_cells(joints2d.float(), offset=grid.cell_offset)
    depth = depth.float().masked_fill(has_depth == 0, 0.0)
    bins = (depth / grid.cube + 0.5) * D - grid.bin_offset
    true = torch.cat([cells, bins[..., None]], dim=-1)
    # A mean under a softmax cannot leave the volume: joints outside of it count as not labelled.
    inside = ((true >= -0.5) & (true < size - 0.5)).all(-1)
    weight, has_depth = weight * inside, has_depth * inside
    weights = torch.stack([weight, weight, has_depth], dim=-1)
    true = true.masked_fill(weights == 0, 0.0)  # where nothing is labelled there may be NaN
    error = (expectation(volumes) - true).abs() / size
    return (error * weights).sum() / weights.sum().clamp(min=1)


def back_project_from_root(
    pixels: Tensor, depth: Tensor, root_depth: Tensor, focal: Tensor, principal: Tensor
) -> Tensor:
    """Joints in the camera frame from pixels and depth behind the root, without lens distortion.

    Args:
        pixels: Pixels of the whole image, (B, J, 2).
        depth: Depth behind the root, metres, (B, J).
        root_depth: z of the root in the camera frame, metres, (B,).
        focal: Focal lengths in pixels, (B, 2).
        principal: Principal points in pixels, (B, 2).

    Returns:
        Camera frame, metres, (B, J, 3), float64.
    """
    z = (depth.double() + root_depth.double()[:, None])[..., None]
    rays = (pixels - principal[:, None]) / focal[:, None]
    return torch.cat([rays * z, z], dim=-1)
