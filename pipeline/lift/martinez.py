"""Martinez: a residual MLP from one 2D pose to one 3D pose (2017; paper 002), and z-scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.lift.lifter import Lifter
from pipeline.lift.linear import FloatLinear, Linear

SMALLEST_2D = 1e-4
"""Deviations of normalised 2D below this (a twentieth of a pixel at 1000 pixels) count as 1."""
SMALLEST_3D = 1e-3
"""Deviations of 3D below this, metres, count as 1: the root's is zero."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of every coordinate over the frames of a training split.

    Args:
        mean2d: Mean of normalised 2D, (J, 2).
        deviation2d: Standard deviation of normalised 2D, (J, 2).
        mean3d: Mean of root-relative joints in the camera frame, metres, (J, 3).
        deviation3d: Standard deviation of root-relative joints, metres, (J, 3).
    """

    mean2d: Tensor
    deviation2d: Tensor
    mean3d: Tensor
    deviation3d: Tensor


class LinearStage(nn.Module):
    """Residual stage: twice linear, batch norm, ReLU and dropout, plus its input, (N, width).

    Args:
        width: Width of both layers.
        dropout: Share of features dropped in training after each layer.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.w1 = Linear(width, width)
        self.batch_norm1 = nn.BatchNorm1d(width)
        self.w2 = Linear(width, width)
        self.batch_norm2 = nn.BatchNorm1d(width)
        self.dropout = dropout

    def forward(self, features: Tensor) -> Tensor:
        """Map features, (N, width) -> (N, width)."""
        return features + F.relu(self.before_relu(features), inplace=True)

    def before_relu(self, features: Tensor) -> Tensor:
        """The residual before its last ReLU, (N, width); dropout commutes with the ReLU."""
        hidden = F.relu(self.batch_norm1(self.w1(features)), inplace=True)
        hidden = F.dropout(hidden, self.dropout, self.training)
        return F.dropout(self.batch_norm2(self.w2(hidden)), self.dropout, self.training)


class ResidualMLP(nn.Module):
    """Residual MLP from flat vectors to flat vectors.

    =================  =================================================
    vectors            (N, inputs)
    first layer        (N, width): linear, batch norm, ReLU, dropout
    blocks x stage     (N, width): two such layers and a skip connection
    last layer         (N, outputs): linear
    =================  =================================================

    Args:
        inputs: Size of the input vectors.
        outputs: Size of the output vectors.
        width: Width of all hidden layers.
        blocks: Number of residual stages.
        dropout: Share of hidden features dropped in training.

    Source: Martinez et al., "A simple yet effective baseline", ICCV 2017, fig. 2: 32 to 48 has
    4,291,632 parameters. Names of parameters and initialisation (He's normal) are those of weigq's
    PyTorch port.
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
        self.w2 = FloatLinear(width, outputs)
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
        """First layer, (N, inputs) -> (N, width); its features are not negative."""
        features = F.relu(self.batch_norm1(self.w1(vectors)), inplace=True)
        return F.dropout(features, self.dropout, self.training)


class ZScored(Lifter):
    """Base of the lifters that map z-scored poses frame by frame.

    Input is normalised 2D and output is in metres. Between the two, every coordinate has mean 0 and
    standard deviation 1 over the training split; `LiftModule.on_fit_start` calls `set_statistics`.
    After z-scoring it makes no difference whether the input was in pixels or normalised. The
    statistics are buffers, so a checkpoint holds them; they are float32 in every precision.
    """

    output: Literal["every", "centre", "valid"] = "every"
    float32_buffers = ("mean2d", "deviation2d", "mean3d", "deviation3d")
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
        """Set the statistics of a training split; deviations close to 0 count as 1."""
        for name, smallest in (("2d", SMALLEST_2D), ("3d", SMALLEST_3D)):
            getattr(self, f"mean{name}").copy_(getattr(statistics, f"mean{name}"))
            deviation = torch.as_tensor(getattr(statistics, f"deviation{name}"))
            getattr(self, f"deviation{name}").copy_(
                torch.where(deviation < smallest, torch.ones_like(deviation), deviation)
            )

    def forward(self, joints2d: Tensor, visible: Tensor | None = None) -> Tensor:
        """Lift frames, (B, T, J, C) -> (B, T, J, 3), each on its own; see `Lifter.forward`."""
        B, T, J, _ = joints2d.shape
        zscored = (joints2d[..., :2] - self.mean2d) / self.deviation2d
        weight = next(self.parameters())
        poses = self.lift(zscored.reshape(B * T, J, 2).to(weight.dtype)).to(self.mean3d.dtype)
        return (poses * self.deviation3d + self.mean3d).view(B, T, J, 3)

    def lift(self, zscored2d: Tensor) -> Tensor:
        """Map z-scored 2D, (N, J, 2), to z-scored 3D, (N, J, 3)."""
        raise NotImplementedError


class Martinez(ZScored):
    """Residual MLP from the 2D joints of a frame to its 3D joints; the root is not predicted.

    ==================  ==========================================
    joints2d            (B, T, 17, 2), z-scored, flattened to 34
    residual MLP        (B T, 48)
    zero root added     (B, T, 17, 3), un-z-scored to metres
    ==================  ==========================================

    Args:
        width: Width of the hidden layers.
        blocks: Number of residual stages.
        dropout: Share of hidden features dropped in training.
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

    def lift(self, zscored2d: Tensor) -> Tensor:
        """Map z-scored 2D, (N, 17, 2), to z-scored 3D, (N, 17, 3), with the root at zero."""
        poses = self.mlp(zscored2d[:, self.seen].flatten(1)).unflatten(-1, (-1, 3))
        return F.pad(poses, (0, 0, 1, 0))
