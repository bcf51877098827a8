"""CombinedDeepLearner: a gated and a plain branch (paper 000); Cascade: residual MLPs in turn."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.lift.martinez import LinearStage, ResidualMLP, ZScored


class CombinedDeepLearner(ZScored):
    """A gated branch and a plain branch over the joints of a frame, summed.

    =============  ==============================================================
    joints2d       (B, T, 17, 2), z-scored, flattened to 34
    gated branch   h0 = first layer, h8 = h0 after 8 more: linear(sigmoid(h0 h8))
    plain branch   linear(h8'), layers of its own
    sum, linear    (B, T, 17, 3), un-z-scored to metres
    =============  ==============================================================

    Args:
        width: Width of the hidden layers.
        gate_preact: Take h8 before its last ReLU, so that the gate can close: as the paper has it,
            h0 and h8 are not negative and the sigmoid stays above one half.
        dropout: Share of hidden numbers dropped in training.
        branches: Both, or one of them alone.

    Source: paper 000, sec. III-B and fig. 2; 17,009,346 parameters.
    Differs from the paper: it does not say how its 8 layers are joined (here: 4 residual pairs, as
    in the deep learner that it builds on), nor that the branches have the same depth. There is no
    attention in its "transformer".
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
        self.out = nn.Linear(3 * J, 3 * J)

    def lift(self, scored2d: Tensor) -> Tensor:
        """Z-scored 2D, (N, 17, 2), to z-scored 3D, (N, 17, 3)."""
        vectors = scored2d.flatten(1)
        parts = [self._gate(self.gated, vectors)] if self.gated is not None else []
        parts += [self.plain(vectors)] if self.plain is not None else []
        return self.out(sum(parts[1:], start=parts[0])).unflatten(-1, (-1, 3))

    def _gate(self, branch: ResidualMLP, vectors: Tensor) -> Tensor:
        first = deep = branch.stem(vectors)
        *stages, last = branch.linear_stages
        for stage in stages:
            deep = stage(deep)
        deep = deep + self._last_step(last, deep)
        return branch.w2(torch.sigmoid(first * deep))

    def _last_step(self, last: nn.Module, deep: Tensor) -> Tensor:
        assert isinstance(last, LinearStage)
        step = last.before_relu(deep)
        return step if self.gate_preact else F.relu(step)


class Cascade(ZScored):
    """A sum of residual MLPs, each trained on what those before it leave over.

    Only the stages up to `stage` are added up. In training all but the last of these are frozen:
    they run as in evaluation and get no gradient, so that the loss of the sum is the loss of the
    last stage on the residual. `set_progress` moves `stage` on; it is a buffer, and so is part of a
    checkpoint. Optimisers leave parameters without gradient alone; under DDP say
    `find_unused_parameters`.

    Args:
        stages: Residual MLPs.
        width: Width of their hidden layers.
        blocks: Residual stages in each.
        dropout: Share of hidden numbers dropped in training.

    Source: EvoSkeleton (Li et al., CVPR 2020), sec. 4.2; its 3 x 3 blocks have 19.2 million
    parameters.
    Differs from the paper: later stages begin by adding nothing (last layer zero), so that the sum
    goes on from what it was when their turn comes.
    """

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
        # A number, wherever the weights are made: on the meta device it could not be read.
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64, device="cpu"))

    def set_progress(self, done: float) -> None:
        """Train the next stage when its share of the run begins; stages have equal shares.

        Args:
            done: Share of the epochs that are done, 0 to 1.
        """
        # a whisker more, so that one third of the epochs is not a rounding error short of one third
        stage = int(done * len(self.stages) + 1e-9)
        self.stage.fill_(min(stage, len(self.stages) - 1))
        self.train(self.training)

    def train(self, mode: bool = True) -> Cascade:
        """Training mode for the stage that is in turn, evaluation mode for those before it."""
        super().train(mode)
        for frozen in self.stages[: int(self.stage)]:
            frozen.eval()
        return self

    def lift(self, scored2d: Tensor) -> Tensor:
        """Z-scored 2D, (N, 17, 2), to z-scored 3D, (N, 17, 3)."""
        vectors = scored2d.flatten(1)
        *before, current = self.stages[: int(self.stage) + 1]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            known = [frozen(vectors) for frozen in before]
        return sum(known, start=current(vectors)).unflatten(-1, (-1, 3))
