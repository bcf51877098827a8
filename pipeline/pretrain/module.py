"""How room 2 learns: recover 3D motion from masked, noisy 2D; its weights start room 3."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric

from pipeline.dashboard import panels
from pipeline.lift.lifter import Lifter
from pipeline.lift.lifter_stage import LifterStage
from pipeline.lift.losses import PretrainLoss
from pipeline.metrics.functional import mpjpe
from pipeline.metrics.modules import MPJPE, MPJVE, NMPJPE
from pipeline.pretrain.data import PretrainDataModule
from pipeline.sources import Split
from pipeline.training.schedules import Schedule


class PretrainModule(LifterStage):
    """Learns to recover 3D clips from corrupted projections.

    Batches: see `pipeline.pretrain.data.ProjectedClips`. Logged: `train/loss`; `val/mpjpe_mm`,
        `val/n_mpjpe_mm`,
    `val/mpjve_mm` on corrupted clips of the validation split, the same clips at every validation.

    Args:
        net: The lifter; one that gives out every frame.
        optimizer: Makes the optimiser from the parameters.
        schedule: Learning-rate factor by step.
        loss: Of (predicted, target, valid).
        pretrained: A checkpoint to start from.

    Source: paper 001, Fig. 1; losses as MotionBERT's.
    """

    stage = "pretrain"
    data_class = PretrainDataModule
    example_config = "pretrain/mixste_small"

    def __init__(
        self,
        net: Lifter,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        loss: nn.Module | None = None,
        *,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(net, optimizer, schedule, pretrained)
        self.loss = loss or PretrainLoss()
        self.shown = False
        self.errors: Mapping[str, Metric] = nn.ModuleDict(  # type: ignore[assignment]
            {"mpjpe": MPJPE(), "n_mpjpe": NMPJPE(), "mpjve": MPJVE()}
        )

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of clips."""
        loss: Tensor = self.loss(
            self(batch["joints2d"], batch["visible"]), batch["joints3d"], batch["valid"]
        )
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def begin(self, split: Split) -> None:
        """Show the clips of the first batch again."""
        self.shown = False

    def score(self, split: Split, batch: Mapping[str, Tensor]) -> None:
        """Score corrupted clips."""
        predicted = self(batch["joints2d"], batch["visible"])
        for name, metric in self.errors.items():
            metric.update(predicted, batch["joints3d"])
            self.log(f"{split}/{name}_mm", metric, prog_bar=name == "mpjpe", on_epoch=True)
        if not self.shown and self.trainer.is_global_zero:
            clips = [_clip(batch, predicted, i) for i in range(min(4, len(predicted)))]
            panels.pretrain_panels(self.trainer, clips, self.net.skeleton, split=split)
        self.shown = True

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Recover clips, (B, T, J, 3)."""
        recovered: Tensor = self(batch["joints2d"], batch["visible"])
        return recovered


def _clip(batch: Mapping[str, Tensor], predicted: Tensor, i: int) -> panels.LiftedClip:
    """Clip i of a batch, for the dashboard."""
    arrays = {name: batch[name][i].cpu().numpy() for name in batch}
    return panels.LiftedClip(
        name=f"clip {arrays['index']}",
        predicted=predicted[i].cpu().numpy(),
        target=arrays["joints3d"],
        error=mpjpe(predicted[i], batch["joints3d"][i]),
        joints2d=arrays["joints2d"],
        exact2d=arrays["exact2d"],
        score=arrays["visible"].astype("float32"),
    )
