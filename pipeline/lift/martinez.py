"""Martinez: a residual MLP from one 2D pose to one 3D pose (2017; paper 002), and z-scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.lift.lifter import Lifter
from pipeline.lift.linear import Linear

SMALLEST_2D = 1e-4
"""Deviations of normalised 2D below this (a twentieth of a pixel at 1000 pixels) count as 1."""
SMALLEST_3D = 1e-3
"""Deviations of 3D below this, metres, count as 1: the root's is zero."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of every coordinate over the frames of a training split.

    Args:
        mean2d: Of normalised 2D, (J, 2).
        deviation2d: Likewise, (J, 2).
        mean3d: Of root-relative joints in the camera frame, metres, (J, 3).
        deviation3d: Likewise, (J, 3).
    """

    mean2d: Tensor
    deviation2d: Tensor
    mean3d: Tensor
    deviation3d: Tensor


class LinearStage(nn.Module):
    """Two times linear, batch norm, ReLU and dropout, added to what came in: (N, width)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.w1 = Linear(width, width)
        self.batch_norm1 = nn.BatchNorm1d(width)
        self.w2 = Linear(width, width)
        self.batch_norm2 = nn.BatchNorm1d(width)
        self.dropout = dropout

    def forward(self, features: Tensor) -> Tensor:
        """Add to the features."""
        return features + F.relu(self.before_relu(features), inplace=True)

    def before_relu(self, features: Tensor) -> Tensor:
        """What is added, before its last ReLU (dropout commutes with it)."""
        hidden = F.relu(self.batch_norm1(self.w1(features)), inplace=True)
        hidden = F.dropout(hidden, self.dropout, self.training)
        return F.dropout(self.batch_norm2(self.w2(hidden)), self.dropout, self.training)


class ResidualMLP(nn.Module):
    """Flat vectors to flat vectors, (N, inputs) -> (N, outputs).

    Linear, batch norm, ReLU and dropout to `width`; then `blocks` residual stages of two such
    layers; then linear.

    Args:
        inputs: Numbers per pose that come in.
        outputs: Numbers per pose that go out.
        width: Width of all hidden layers.
        blocks: Residual stages.
        dropout: Share of hidden numbers dropped in training.

    Source: Martinez et al., "A simple yet effective baseline", ICCV 2017, fig. 2: 32 to 48 has
    4,291,632 parameters. Parameters are named as in weigq's PyTorch port, whose initialisation
    (He's normal) it has too.
    Differs from the paper: weights are not clipped to norm 1 in the forward pass; clip the
    gradient's norm to 1 instead.
    """

    def __init__(
        self, inputs: int, outputs: int, width: int = 1024, blocks: int = 2, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.w1 = Linear(inputs, width)
        self.batch_norm1 = nn.BatchNorm1d(width)
        self.linear_stages = nn.ModuleList(LinearStage(width, dropout) for _ in range(blocks))
        self.w2 = Linear(width, outputs)
        self.dropout = dropout
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map vectors, (N, inputs) -> (N, outputs)."""
        features = self.stem(vectors)
        for stage in self.linear_stages:
            features = stage(features)
        return self.w2(features)

    def stem(self, vectors: Tensor) -> Tensor:
        """First layer, (N, inputs) -> (N, width), not negative."""
        features = F.relu(self.batch_norm1(self.w1(vectors)), inplace=True)
        return F.dropout(features, self.dropout, self.training)


class ZScored(Lifter):
    """Base of the lifters that work frame by frame on z-scored vectors.

    Normalised 2D comes in and metres go out; inside, every coordinate has mean 0 and deviation 1
    over the training split, once the data module has called `set_statistics`. (An affine change of
    the input, pixels or normalised 2D, makes no difference after z-scoring.) The statistics are
    buffers: they travel with the weights.
    """

    output: Literal["every", "centre", "valid"] = "every"
    mean2d: Tensor
    deviation2d: Tensor
    mean3d: Tensor
    deviation3d: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.frames = self.receptive_field = 1
        J = len(self.skeleton)
        self.register_buffer("mean2d", torch.zeros(J, 2))
        self.register_buffer("deviation2d", torch.ones(J, 2))
        self.register_buffer("mean3d", torch.zeros(J, 3))
        self.register_buffer("deviation3d", torch.ones(J, 3))

    def set_statistics(self, statistics: Statistics) -> None:
        """Take the statistics of a training split; deviations next to nothing count as 1."""
        for name, smallest in (("2d", SMALLEST_2D), ("3d", SMALLEST_3D)):
            getattr(self, f"mean{name}").copy_(getattr(statistics, f"mean{name}"))
            deviation = torch.as_tensor(getattr(statistics, f"deviation{name}"))
            getattr(self, f"deviation{name}").copy_(
                torch.where(deviation < smallest, torch.ones_like(deviation), deviation)
            )

    def forward(self, joints2d: Tensor, visible: Tensor | None = None) -> Tensor:
        """Lift frames, (B, T, J, C) -> (B, T, J, 3), each on its own; see `Lifter.forward`."""
        B, T, J, _ = joints2d.shape
        scored = (joints2d[..., :2] - self.mean2d) / self.deviation2d
        poses = self.lift(scored.reshape(B * T, J, 2)).float()
        return (poses * self.deviation3d + self.mean3d).view(B, T, J, 3)

    def lift(self, scored2d: Tensor) -> Tensor:
        """Z-scored 2D, (N, J, 2), to z-scored 3D, (N, J, 3)."""
        raise NotImplementedError


class Martinez(ZScored):
    """Residual MLP from the 2D joints of a frame to its 3D joints without the root, which is zero.

    ==================  ==========================================
    joints2d            (B, T, 17, 2), z-scored, flattened to 34
    residual MLP        (B T, 48)
    root added          (B, T, 17, 3) metres
    ==================  ==========================================

    Args:
        width: Width of the hidden layers.
        blocks: Residual stages.
        dropout: Share of hidden numbers dropped in training.
        unseen: Names of joints that are left out of the input: `["nose"]` for weights published for
            16 joints.

    Source: Martinez et al. 2017 as used by Ahmed & Marti (paper 002): 34 to 48, 4,293,680
    parameters.
    """

    def __init__(
        self,
        width: int = 1024,
        blocks: int = 2,
        *,
        dropout: float = 0.5,
        unseen: Sequence[str] = (),
    ) -> None:
        super().__init__()
        left_out = {self.skeleton.index(name) for name in unseen}
        self.seen = [j for j in range(len(self.skeleton)) if j not in left_out]
        outputs = 3 * (len(self.skeleton) - 1)
        self.mlp = ResidualMLP(2 * len(self.seen), outputs, width, blocks, dropout)

    def lift(self, scored2d: Tensor) -> Tensor:
        """Z-scored 2D, (N, 17, 2), to z-scored 3D, (N, 17, 3), with the root at zero."""
        poses = self.mlp(scored2d[:, self.seen].flatten(1)).unflatten(-1, (-1, 3))
        return F.pad(poses, (0, 0, 1, 0))
