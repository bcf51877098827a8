"""CombinedDeepLearner: a gated and a plain branch (paper 000); Cascade: residual MLPs in turn."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.lift.linear import FloatLinear
from pipeline.lift.martinez import LinearStage, ResidualMLP, ZScored


class CombinedDeepLearner(ZScored):
    """The sum of a gated and a plain residual MLP over the joints of a frame.

    =============  ==============================================================
    joints2d       (B, T, 17, 2), z-scored, flattened to 34
    gated branch   h0 = first layer, h8 = h0 after 8 more: linear(sigmoid(h0 h8))
    plain branch   linear(h8'), layers of its own
    sum, linear    (B, T, 17, 3), un-z-scored to metres
    =============  ==============================================================

    Args:
        width: Width of the hidden layers.
        gate_preact: Whether h8 is taken before its last ReLU. In the paper h0 and h8 are not
            negative, so the sigmoid is at least one half and the gate cannot close.
        dropout: Share of hidden features dropped in training.
        branches: Branches of the network: `both`, or only the `gated` or the `plain` one.

    Source: paper 000, sec. III-B and fig. 2; 17,009,346 parameters.
    Differs from the paper: the paper leaves open how its 8 layers are connected (here: 4 residual
    pairs, as in the deep learner that it builds on) and whether the branches have the same depth
    (here: yes). Its "transformer" contains no attention.
    """

    def __init__(
        self,
        width: int = 1024,
        *,
        gate_preact: bool = False,
        dropout: float = 0.5,
        branches: Literal["both", "gated", "plain"] = "both",
    ) -> None:
        super().__init__()
        J = len(self.skeleton)
        self.gate_preact = gate_preact
        sizes = (2 * J, 3 * J, width, 4, dropout)
        self.gated = ResidualMLP(*sizes) if branches != "plain" else None
        self.plain = ResidualMLP(*sizes) if branches != "gated" else None
        self.out = FloatLinear(3 * J, 3 * J)

    def lift(self, zscored2d: Tensor) -> Tensor:
        """Map z-scored 2D, (N, 17, 2), to z-scored 3D, (N, 17, 3)."""
        vectors = zscored2d.flatten(1)
        parts = [self._gate(self.gated, vectors)] if self.gated is not None else []
        parts += [self.plain(vectors)] if self.plain is not None else []
        return self.out(sum(parts[1:], start=parts[0])).unflatten(-1, (-1, 3))

    def _gate(self, branch: ResidualMLP, vectors: Tensor) -> Tensor:
        """The gated branch, (N, 34) -> (N, 51)."""
        first = deep = branch.stem(vectors)
        *stages, last = branch.linear_stages
        for stage in stages:
            deep = stage(deep)
        deep = deep + self._last_residual(last, deep)
        return branch.w2(torch.sigmoid(first * deep))

    def _last_residual(self, last: nn.Module, deep: Tensor) -> Tensor:
        """What the last stage adds to h8."""
        assert isinstance(last, LinearStage)
        residual = last.before_relu(deep)
        return residual if self.gate_preact else F.relu(residual)


class Cascade(ZScored):
    """A sum of residual MLPs, each trained on the error that the ones before it leave.

    ==================  =====================================================
    joints2d            (B, T, 17, 2), z-scored, flattened to 34
    sum of MLPs         (B T, 51), over the MLPs up to number `stage`
    reshaped            (B, T, 17, 3), un-z-scored to metres
    ==================  =====================================================

    In training only the MLP number `stage` learns. Those before it are frozen: they run as in
    evaluation and get no gradient, so that the loss of the sum is the loss of the last one on the
    residual. `set_progress` increases `stage`, which is a buffer and thus part of a checkpoint.
    Optimizers do not change parameters without gradient.

    Args:
        stages: Number of residual MLPs.
        width: Width of their hidden layers.
        blocks: Number of residual stages in each MLP.
        dropout: Share of hidden features dropped in training.

    Source: EvoSkeleton (Li et al., CVPR 2020), sec. 4.2; its 3 x 3 blocks have 19.2 million
    parameters.
    Differs from the paper: later stages begin by adding nothing (last layer zero), so that the sum
    goes on from what it was when their turn comes.
    """

    has_unused_parameters = True  # for DDP, which otherwise waits for their gradients
    stage: Tensor

    def __init__(
        self, stages: int = 3, width: int = 1024, blocks: int = 3, *, dropout: float = 0.5
    ) -> None:
        super().__init__()
        J = len(self.skeleton)
        mlps = [ResidualMLP(2 * J, 3 * J, width, blocks, dropout) for _ in range(stages)]
        for later in mlps[1:]:
            nn.init.zeros_(later.w2.weight)
            nn.init.zeros_(later.w2.bias)
        self.stages = nn.ModuleList(mlps)
        # Always on the CPU: on the meta device its value could not be read.
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64, device="cpu"))

    def set_progress(self, done: float) -> None:
        """Choose which MLP is trained; each has an equal share of the run.

        Args:
            done: Share of the training that is done, 0 to 1.
        """
        # 1e-9: a third of the run must not be rounded to just below one third
        stage = int(done * len(self.stages) + 1e-9)
        self.stage.fill_(min(stage, len(self.stages) - 1))
        self.train(self.training)

    def train(self, mode: bool = True) -> Cascade:
        """Set training mode, except for the frozen MLPs, which stay in evaluation mode."""
        super().train(mode)
        for frozen in self.stages[: int(self.stage)]:
            frozen.eval()
        return self

    def lift(self, zscored2d: Tensor) -> Tensor:
        """Map z-scored 2D, (N, 17, 2), to z-scored 3D, (N, 17, 3)."""
        vectors = zscored2d.flatten(1)
        *frozen, current = self.stages[: int(self.stage) + 1]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            earlier = [mlp(vectors) for mlp in frozen]
        return sum(earlier, start=current(vectors)).unflatten(-1, (-1, 3))
