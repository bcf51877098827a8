"""Heatmaps from joints and joints from heatmaps, the loss on them, and flipping them back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

STRIDE = 4
"""Pixels of the crop per cell of a heatmap."""

EXACT_CELLS = (STRIDE - 1) / 2
"""Pixel of the crop at the centre of cell 0: cell c covers pixels 4c … 4c+3, with centre 4c+1.5."""

PUBLISHED_CELLS = 0.0
"""Pixel of the crop at cell 0 of published networks: for them pixel x is at cell x/4."""


def to_cells(pixels: Tensor, *, offset: float = EXACT_CELLS) -> Tensor:
    """Pixels of the crop -> cells of the heatmap, any shape.

    >>> to_cells(torch.tensor([1.5, 5.5])).tolist()
    [0.0, 1.0]
    """
    return (pixels - offset) / STRIDE


def to_pixels(cells: Tensor, *, offset: float = EXACT_CELLS) -> Tensor:
    """Cells of the heatmap -> pixels of the crop, any shape; the inverse of `to_cells`."""
    return cells * STRIDE + offset


def encode_heatmaps(cells: Tensor, size: tuple[int, int], *, sigma: float = 2.0) -> Tensor:
    """Heatmaps with a Gaussian of peak 1 at the exact place of each joint.

    Convention:
        x counts columns, y rows; a joint at (1, 0) has its peak in row 0, column 1.

        >>> encode_heatmaps(torch.tensor([[[1.0, 0.0]]]), (3, 2), sigma=1.0)
        tensor([[[[0.6065, 1.0000, 0.6065],
                  [0.3679, 0.6065, 0.3679]]]])

    Args:
        cells: Joints in cells, (B, J, 2). A joint far outside gives values near 0, NaN gives NaN.
        size: Width and height of the heatmaps in cells.
        sigma: Standard deviation of the Gaussian in cells.

    Returns:
        Heatmaps, (B, J, H, W).
    """
    x, y = _axis_gaussians(cells, size, sigma)
    return y[..., :, None] * x[..., None, :]


def encode_heatmaps_rounded(cells: Tensor, size: tuple[int, int], *, sigma: float = 2.0) -> Tensor:
    """Heatmaps as published networks are trained: Gaussians centred on a cell, 6 sigma + 1 wide.

    Args:
        cells: Joints in cells, (B, J, 2).
        size: Width and height of the heatmaps in cells.
        sigma: Standard deviation of the Gaussian in cells.

    Returns:
        Heatmaps, (B, J, H, W).

    Source: Sun et al. 2019's code; the centre is the cell with the nearest centre.
    """
    x, y = _axis_gaussians((cells + 0.5).floor(), size, sigma)
    edge = _gaussian(torch.tensor(3.0 * sigma), sigma) * (1 - 1e-4)
    return (y * (y >= edge))[..., :, None] * (x * (x >= edge))[..., None, :]


def _gaussian(distance: Tensor, sigma: float) -> Tensor:
    # At least e^-20: numbers that are subnormal in float32 would make this four times as slow.
    return (distance * distance).mul_(-0.5 / sigma**2).clamp_(min=-20.0).exp_()


def _axis_gaussians(cells: Tensor, size: tuple[int, int], sigma: float) -> tuple[Tensor, Tensor]:
    """Factors of the 2D Gaussian along x, (B, J, W), and along y, (B, J, H)."""
    columns = torch.arange(size[0], device=cells.device, dtype=cells.dtype)
    rows = torch.arange(size[1], device=cells.device, dtype=cells.dtype)
    return _gaussian(columns - cells[..., :1], sigma), _gaussian(rows - cells[..., 1:], sigma)


def is_in_reach(cells: Tensor, size: tuple[int, int], *, sigma: float = 2.0) -> Tensor:
    """Whether a joint's Gaussian, cut at 3 sigma, overlaps its heatmap: others have no target.

    Args:
        cells: Joints in cells, (B, J, 2); NaN is out of reach.
        size: Width and height of the heatmaps in cells.
        sigma: Standard deviation of the Gaussian in cells.

    Returns:
        Booleans, (B, J).
    """
    limit = torch.tensor(size, device=cells.device, dtype=cells.dtype) - 1 + 3 * sigma
    return ((cells >= -3 * sigma) & (cells <= limit)).all(dim=-1)


def decode_quarter(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Joints at the peaks of heatmaps, moved by a quarter cell towards the higher neighbour.

    Args:
        heatmaps: Heatmaps, (B, J, H, W).

    Returns:
        Joints in cells, (B, J, 2), float32, and their scores, the values of the peaks, (B, J),
        float32.

    Source: Newell et al. 2016. Differs from HRNet's code: peaks one cell from the border are moved,
    too, and a joint without any positive value stays at its peak (its score is not positive).
    """
    height, width = heatmaps.shape[-2:]
    flat = heatmaps.float().flatten(-2)
    best = _find_peaks(flat)
    cells = torch.stack([best % width, best // width], dim=-1)
    # the peak, its right and left neighbour, the one below and the one above
    steps = torch.tensor([0, 1, -1, width, -width], device=flat.device)
    values = flat.gather(-1, (best[..., None] + steps).clamp_(0, height * width - 1))
    last = torch.tensor([width - 1, height - 1], device=flat.device)
    inside = (cells > 0) & (cells < last)
    moves = torch.sign(values[..., 1::2] - values[..., 2::2]) * inside
    return cells + 0.25 * moves, values[..., 0]


def decode_argmax(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Joints at the peaks of heatmaps, as in paper 002; otherwise as `decode_quarter`."""
    width = heatmaps.shape[-1]
    flat = heatmaps.float().flatten(-2)
    best = _find_peaks(flat)
    cells = torch.stack([best % width, best // width], dim=-1).float()
    return cells, flat.gather(-1, best[..., None])[..., 0]


def decode_expectation(heatmaps: Tensor, *, sharpness: float = 20.0) -> tuple[Tensor, Tensor]:
    """Joints as the mean cell under a softmax over each heatmap; otherwise as `decode_quarter`.

    Args:
        heatmaps: Heatmaps with peaks of any height above 0, (B, J, H, W).
        sharpness: Height of the peaks before the softmax. At 20 and sigma 2 the weights are a
            Gaussian of half a cell: wide enough for places between cells, and high above the
            background.

    Source: Sun et al. 2018, equation 1. Differs from the paper: networks trained on Gaussians need
    high peaks.
    """
    heatmaps = heatmaps.float()
    height, width = heatmaps.shape[-2:]
    peak = heatmaps.flatten(-2).amax(dim=-1)
    sharp = sharpness / peak.clamp(min=1e-6)[..., None, None] * heatmaps
    weights = sharp.flatten(-2).softmax(dim=-1).unflatten(-1, (height, width))
    columns = torch.arange(width, device=heatmaps.device, dtype=torch.float32)
    rows = torch.arange(height, device=heatmaps.device, dtype=torch.float32)
    # Products and sums, because autocast would make matrix products inexact.
    x = (weights.sum(dim=-2) * columns).sum(dim=-1)
    y = (weights.sum(dim=-1) * rows).sum(dim=-1)
    return torch.stack([x, y], dim=-1), peak


def decode_dark(heatmaps: Tensor, *, sigma: float = 1.5) -> tuple[Tensor, Tensor]:
    """Joints at the centres of the Gaussians that heatmaps are near their peaks.

    The heatmaps are smoothed with a Gaussian. The logarithm of a Gaussian is a parabola, so its
    first and second differences at the highest cell give its top.

    Args:
        heatmaps: Heatmaps, (B, J, H, W).
        sigma: Standard deviation of the smoothing in cells.

    Returns:
        As `decode_quarter`.

    Source: Zhang et al. 2020, "Distribution-aware coordinate representation for human pose
    estimation", equations 3 to 9. Differs from the paper: the smoothing does not depend on the
    Gaussians of the training, on which the errors hardly depend. Peaks on the border, and peaks
    whose parabola has its top more than a cell away, stay in their cell.
    """
    heatmaps = heatmaps.float()
    height, width = heatmaps.shape[-2:]
    smooth = _smooth(heatmaps, sigma).flatten(-2)
    best = _find_peaks(smooth)
    cells = torch.stack([best % width, best // width], dim=-1)
    # the 3 x 3 cells around the peak: rows one after the other
    steps = torch.tensor([x + y * width for y in (-1, 0, 1) for x in (-1, 0, 1)])
    around = (best[..., None] + steps.to(best.device)).clamp_(0, height * width - 1)
    log = smooth.gather(-1, around).clamp(min=1e-10).log().unflatten(-1, (3, 3))
    dx, dy = (log[..., 1, 2] - log[..., 1, 0]) / 2, (log[..., 2, 1] - log[..., 0, 1]) / 2
    dxx = log[..., 1, 2] + log[..., 1, 0] - 2 * log[..., 1, 1]
    dyy = log[..., 2, 1] + log[..., 0, 1] - 2 * log[..., 1, 1]
    dxy = (log[..., 2, 2] - log[..., 2, 0] - log[..., 0, 2] + log[..., 0, 0]) / 4
    # minus the inverse of the matrix of second differences, times the first differences
    determinant = dxx * dyy - dxy * dxy
    move = torch.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], dim=-1) / determinant[..., None]
    last = torch.tensor([width - 1, height - 1], device=cells.device)
    is_top = ((cells > 0) & (cells < last) & (move.abs() <= 1)).all(dim=-1) & (determinant > 0)
    moved = torch.where(is_top[..., None], cells + move, cells.float())
    return moved, heatmaps.flatten(-2).amax(dim=-1)


def _smooth(heatmaps: Tensor, sigma: float) -> Tensor:
    """Heatmaps, (B, J, H, W), smoothed with a Gaussian that ends at three standard deviations."""
    reach = math.ceil(3 * sigma)
    total = _gaussian(torch.arange(-reach, reach + 1.0), sigma).sum().item()
    rows, columns = (torch.arange(side, device=heatmaps.device) for side in heatmaps.shape[-2:])

    def weights(places: Tensor) -> Tensor:
        steps = (places[:, None] - places).float()
        return _gaussian(steps, sigma) * (steps.abs() <= reach) / total

    # products of small matrices: faster on CPUs than a convolution with one channel
    with torch.autocast(heatmaps.device.type, enabled=False):
        return weights(rows) @ heatmaps @ weights(columns)


def _find_peaks(flat: Tensor) -> Tensor:
    """Number of the highest cell of each heatmap, (..., H W) -> (...)."""
    if flat.device.type == "cpu":  # NumPy's argmax is ten times as fast there
        return torch.from_numpy(flat.detach().numpy().argmax(axis=-1))
    return flat.argmax(dim=-1)


def flip_back(heatmaps: Tensor, swap: Sequence[int], *, columns: int = 0) -> Tensor:
    """Heatmaps of a mirrored crop -> heatmaps of the crop.

    Args:
        heatmaps: Heatmaps of the mirrored crop, (B, J, H, W).
        swap: Permutation of the joints that swaps left and right.
        columns: Cells to shift to the right: 0, or 1 for published networks, where mirroring is off
            by three quarters of a cell; column 0 keeps its values.

    Returns:
        Heatmaps, (B, J, H, W).
    """
    back = heatmaps[:, list(swap)].flip(-1)
    if columns:
        back[..., columns:] = back[..., :-columns].clone()
    return back


class _HeatmapLoss(torch.autograd.Function):
    """Half the mean square; saves one tensor for the backward pass where autograd saves three."""

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        weight = weight[..., None, None]
        difference = predicted.float().sub(target).mul_(weight)
        difference.masked_fill_(weight == 0, 0.0)  # the target of an unknown joint may be NaN
        ctx.save_for_backward(difference, weight)
        ctx.dtype = predicted.dtype
        return 0.5 * difference.square().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        difference, weight = ctx.saved_tensors
        gradient = difference * (weight * (gradients[0] / difference.numel()))
        return gradient.to(ctx.dtype), None, None


def heatmap_loss(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Half the mean squared difference of heatmaps, which are first multiplied by a joint's weight.

    loss = mean of (weight predicted - weight target)^2 / 2 over B, J, H and W.

    Args:
        predicted: Predicted heatmaps, (B, J, H, W), any precision; computed in float32.
        target: Target heatmaps, (B, J, H, W); gets no gradient.
        weight: Weight of each joint, (B, J); 0 for joints that do not count, whose target may be
            NaN.

    Returns:
        Scalar; the mean is over all joints and cells, those of weight 0 included.

    Source: Sun et al. 2019's code. Papers 000 and 003 sum over cells: a constant factor of 2 H W.
    Paper 002 takes the mean without the half: a factor of 2, which its config puts into the
    learning rate.
    """
    return _HeatmapLoss.apply(predicted, target, weight)
