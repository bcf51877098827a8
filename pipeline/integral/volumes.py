"""Joints with depth from 3D heatmaps (soft-argmax), the loss on them, and back-projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

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
    position: Tensor = _Expectation.apply(heatmaps)
    return position


class _Expectation(torch.autograd.Function):
    """`expectation` with its gradient, in the order (B, H, W, J, D), which networks have on CPUs.

    With the mass p of a cell at position c and the mean m, the derivative of m by the logit of the
    cell is p (c - m).
    """

    @staticmethod
    def forward(ctx: FunctionCtx, heatmaps: Tensor) -> Tensor:
        logits = heatmaps.permute(0, 3, 4, 1, 2).float()
        mass = (logits - logits.amax((1, 2, 4), keepdim=True)).exp_()
        image, depth = mass.sum(4), mass.flatten(1, 2).sum(1)  # (B, H, W, J), (B, J, D)
        total = depth.sum(2)
        marginals = (image.sum(1).mT, image.sum(2).mT, depth)  # along x, y and z
        # Products and sums, because autocast would make matrix products inexact.
        position = torch.stack([(part * _cells(part)).sum(2) / total for part in marginals], 2)
        ctx.save_for_backward(mass, total, position)
        ctx.dtype = heatmaps.dtype  # type: ignore[attr-defined]
        return position

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        mass, total, position = ctx.saved_tensors
        H, W, D = mass.shape[1], mass.shape[2], mass.shape[4]
        factor = gradient / total[..., None]
        x, y, z = (
            factor[..., k, None] * (_cells(mass.new_empty(size)) - position[..., k, None])
            for k, size in enumerate((W, H, D))
        )  # (B, J, W), (B, J, H), (B, J, D)
        image = x.mT[:, None] + y.mT[:, :, None]
        grown = image[..., None] + z[:, None, None]
        return grown.mul_(mass).permute(0, 3, 4, 1, 2).to(ctx.dtype)


def _cells(marginal: Tensor) -> Tensor:
    """Numbers of the cells along the last axis."""
    return torch.arange(marginal.shape[-1], device=marginal.device, dtype=marginal.dtype)


def decode_volumes(volumes: Tensor, grid: VolumeGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Joints with depth, their scores and 2D heatmaps from 3D heatmaps.

    Args:
        volumes: Logits, (B, J, D, H, W).
        grid: Where the cells of the volumes are.

    Returns:
        Joints (B, J, 3): x, y in pixels of the crop and depth behind the root in metres; scores
        (B, J), from 0 to 1; 2D heatmaps (B, J, H, W), the mass summed over depth. All float32.
    """
    mass = volumes.float().flatten(2).softmax(-1).view(volumes.shape)
    cells, maps = expectation(volumes), mass.sum(2)
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
    size = volumes.new_tensor(list(volumes.shape[:1:-1]), dtype=torch.float32)  # W, H, D
    true, weights = label_positions(
        joints2d, depth, weight=weight, has_depth=has_depth, grid=grid, size=size
    )
    error = (expectation(volumes) - true).abs() / size
    return (error * weights).sum() / weights.sum().clamp(min=1)


def label_positions(
    joints2d: Tensor,
    depth: Tensor,
    *,
    weight: Tensor,
    has_depth: Tensor,
    grid: VolumeGrid,
    size: Tensor,
) -> tuple[Tensor, Tensor]:
    """True joints in cells of the volume, and which of their coordinates count in the loss.

    Args:
        joints2d: As in `volume_loss`.
        depth: As in `volume_loss`.
        weight: As in `volume_loss`.
        has_depth: As in `volume_loss`.
        grid: Where the cells of the volumes are.
        size: W, H and D.

    Returns:
        x, y, z in cells, 0 where a coordinate does not count, and 1 where it does, (B, J, 3) each.
    """
    cells = targets.to_cells(joints2d.float(), offset=grid.cell_offset)
    depth = depth.float().masked_fill(has_depth == 0, 0.0)
    bins = (depth / grid.cube + 0.5) * size[2] - grid.bin_offset
    true = torch.cat([cells, bins[..., None]], dim=-1)
    # A mean under a softmax cannot leave the volume: joints outside of it count as not labelled.
    inside = ((true >= -0.5) & (true < size - 0.5)).all(-1)
    weight, has_depth = weight * inside, has_depth * inside
    weights = torch.stack([weight, weight, has_depth], dim=-1)
    return true.masked_fill(weights == 0, 0.0), weights  # where nothing is labelled may be NaN


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
