"""The base of pretraining and lifting: a lifter, its mask token, transferred weights."""

from __future__ import annotations

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from pipeline.dashboard import panels
from pipeline.lift.lifter import Lifter
from pipeline.training.schedules import Schedule
from pipeline.training.stage import Stage
from pipeline.training.transfer import WeightsReport


class LifterStage(Stage):
    """What pretraining and lifting share: a lifter, its mask token, and where weights come from.

    Args:
        net: The lifter.
        optimizer: Makes the optimiser from the parameters.
        schedule: Learning-rate factor by step.
        pretrained: A checkpoint whose weights a fresh fit starts from, or that is tested as it is,
            all of `net`, where no checkpoint of this stage is given. The checkpoints of this run
            keep the digest and the report of the hand-over, not the path.
    """

    weights_from = ("pretrain", "lift", "weights")
    net: Lifter

    def __init__(
        self,
        net: Lifter,
        optimizer: OptimizerCallable,
        schedule: Schedule | None,
        pretrained: str | None,
    ) -> None:
        super().__init__(optimizer, schedule, pretrained)
        self.net = net
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 2))
        self.swap = list(net.skeleton.swap)

    def forward(self, joints2d: Tensor, visible: Tensor) -> Tensor:
        """Lift clips; where a joint is not visible the lifter is given the mask token.

        Args:
            joints2d: Normalised 2D, (B, T, J, C).
            visible: Which joints were seen, (B, T, J).

        Returns:
            Root-relative joints in the camera frame, metres, float32, (B, T', J, 3).
        """
        xy = torch.where(visible[..., None], joints2d[..., :2], self.mask_token)
        given = torch.cat([xy, joints2d[..., 2:]], dim=-1) if joints2d.shape[-1] > 2 else xy
        lifted: Tensor = self.net(given, visible)
        return lifted.float()

    def transferred_prefixes(self, source_stage: str, *, fitting: bool) -> tuple[str, ...]:
        """The lifter and its mask token; the mean pose too where no training follows."""
        return ("net.", "mask_token") if fitting else ("net.", "mask_token", "mean_pose")

    def report_weights(self, report: WeightsReport) -> None:
        """Print and show what became of the weights of `pretrained`."""
        if self.trainer.is_global_zero:
            super().report_weights(report)
        panels.weights_panel(self.trainer, report)

    def on_train_epoch_start(self) -> None:
        """Tell the lifter how much of the training is done."""
        self.net.set_progress(self.current_epoch / max(1, self.trainer.max_epochs or 1))
