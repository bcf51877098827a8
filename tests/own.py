"""What a user brings in with --import: a network, people without depth, people of any size."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path

import torch

from pipeline.mocap.synthetic import Synthetic
from pipeline.sources import Samples, Sequence, Split


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


class Stored(Synthetic):
    """The embedded people, as large as a file says; a process may have a folder of its own."""

    def __init__(self, root: str) -> None:
        super().__init__(2, 1, 1, actions=("walk", "wave"), seconds=2.0)
        of_rank = Path(f"{root}-{os.environ.get('LOCAL_RANK')}")
        self.root = of_rank if of_rank.is_dir() else Path(root)

    def input_files(self, splits: Collection[Split], detections: str = "") -> list[Path]:
        return [self.root / "scale.txt"]

    def sequences(self, split: Split) -> list[Sequence]:
        scale = float((self.root / "scale.txt").read_text())
        return [
            dataclasses.replace(sequence, joints3d=sequence.joints3d * scale, images=None)
            for sequence in super().sequences(split)
        ]


class OneFrame(Synthetic):
    """The embedded people in recordings of one frame each."""

    def sequences(self, split: Split) -> list[Sequence]:
        return [
            dataclasses.replace(sequence, joints3d=sequence.joints3d[:1], images=None)
            for sequence in super().sequences(split)
        ]
