"""What a user brings in with --import: a small network, and people without depth."""

from __future__ import annotations

import dataclasses

import torch

from pipeline.mocap.synthetic import Synthetic
from pipeline.sources import Samples, Split


class Narrow(torch.nn.Module):
    """3D heatmaps; draws numbers in training and keeps running means, as large networks may."""

    joints = 18

    def __init__(self, bins: int = 8) -> None:
        super().__init__()
        self.bins = bins
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 8, 4, 2),
            torch.nn.BatchNorm2d(16),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.1),
            torch.nn.Conv2d(16, 18 * bins, 3, padding=1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images).unflatten(1, (18, self.bins))


class Flat(Synthetic):
    """The embedded people as photographs have people: without joints in 3D."""

    def samples(self, split: Split) -> Samples:
        return dataclasses.replace(super().samples(split), joints3d=None)
