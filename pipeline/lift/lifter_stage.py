"""The base of pretraining and lifting: a lifter, its mask token, its loss, transferred weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from pipeline.dashboard import panels
from pipeline.errors import UsageError
from pipeline.lift.lifter import Lifter, check_lifter
from pipeline.lift.sequences import describe_unusual_sizes
from pipeline.training.precision import network_type
from pipeline.training.schedules import Schedule
from pipeline.training.stage import Stage
from pipeline.training.transfer import WeightsReport


class LifterStage(Stage):
    """Base of the LightningModules that train a lifter.

    Training batches hold `joints2d` (B, T, J, C) normalised, `visible` (B, T, J), `joints3d` (B,
    T', J, 3) metres root-relative in the camera frame, `valid` (B, T'). Logged in training:
    `train/loss`.

    Args:
        net: Lifter to train.
        optimizer: Optimizer class and its arguments.
        schedule: Learning-rate factor by step; None keeps the rate constant.
        loss: Loss of (predicted, target, valid), see `pipeline.lift.losses`.
        pretrained: Checkpoint whose weights a fresh fit starts from. A test without a checkpoint of
            its own stage evaluates these weights; they must then be complete. Checkpoints of this
            run hold the digest of the file and the report of the transfer, not the path.
    """

    weights_from = ("pretrain", "lift", "weights")
    newest_from = "pretrain"
    net: Lifter

    def __init__(
        self,
        net: Lifter,
        optimizer: OptimizerCallable,
        schedule: Schedule | None,
        loss: nn.Module,
        pretrained: str | None,
    ) -> None:
        super().__init__(optimizer, schedule, pretrained)
        if getattr(net, "frames", 1) < 1:
            raise UsageError(f"frames of the network is {net.frames}; give at least 1")
        if not type(net).__module__.startswith("pipeline."):
            check_lifter(net)
        self.net = net
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 2))
        self.swap = list(net.skeleton.swap)
        self.loss = loss
        self.trained_sizes: tuple[float, float] | None = None
        self.trained_rate: float | None = None

    def forward(self, joints2d: Tensor, visible: Tensor) -> Tensor:
        """Lift clips; the lifter gets the mask token in place of joints that are not visible.

        Args:
            joints2d: Normalised 2D, (B, T, J, C).
            visible: Visibility of the joints, bool, (B, T, J).

        Returns:
            Root-relative joints in the camera frame, metres, float32, (B, T', J, 3).
        """
        masked = torch.where(visible[..., None], joints2d[..., :2], self.mask_token)
        if joints2d.shape[-1] > 2:
            masked = torch.cat([masked, joints2d[..., 2:]], dim=-1)
        lifted: Tensor = self.net(masked.to(network_type(self.net)), visible)
        return lifted.float()

    def transferred_prefixes(self, source_stage: str, *, fitting: bool) -> tuple[str, ...]:
        """The lifter and its mask token; the mean pose too where no training follows."""
        return ("net.", "mask_token") if fitting else ("net.", "mask_token", "mean_pose")

    def report_weights(self, report: WeightsReport) -> None:
        """Print and show which weights of `pretrained` were loaded."""
        if self.trainer.is_global_zero:
            super().report_weights(report)
        panels.log_weights_panel(self.trainer, report)

    def on_test_start(self) -> None:
        """Warn if people have other sizes in the image than in training."""
        self._warn_about_sizes()

    def on_predict_start(self) -> None:
        """Warn if people have other sizes in the image than in training."""
        self._warn_about_sizes()

    def _warn_about_sizes(self) -> None:
        sequences = getattr(self.data_module.evaluation_sets["test"], "sequences", None)
        if self.trained_sizes is None or sequences is None:
            return
        if warning := describe_unusual_sizes(sequences, self.trained_sizes):
            self.print(warning)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the sizes of people and the frame rate in training to the dictionary `heatlift`."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["heatlift"]["person_sizes"] = self.trained_sizes
        checkpoint["heatlift"]["frame_rate"] = self.trained_rate

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` adds; checkpoints of earlier versions lack it."""
        super().on_load_checkpoint(checkpoint)
        sizes = checkpoint["heatlift"].get("person_sizes")
        self.trained_sizes = tuple(sizes) if sizes else None
        self.trained_rate = checkpoint["heatlift"].get("frame_rate")

    def on_train_batch_start(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Pass the progress of the training to the lifter."""
        super().on_train_batch_start(batch, batch_idx)
        self.net.set_progress(self.progress.of_network())

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of windows."""
        predicted = self(batch["joints2d"], batch["visible"])
        loss: Tensor = self.loss(predicted, batch["joints3d"], batch["valid"])
        self.log_in_training("train/loss", loss)
        return loss
