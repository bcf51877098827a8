"""The pretraining stage: a LightningModule that recovers 3D motion from masked, noisy 2D."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric

from pipeline.camera import CAMERA_FRAME
from pipeline.dashboard import panels
from pipeline.errors import UsageError
from pipeline.lift.lifter import Lifter
from pipeline.lift.lifter_stage import LifterStage
from pipeline.lift.losses import PretrainLoss
from pipeline.metrics.functional import mpjpe
from pipeline.metrics.pose_metrics import MPJPE, MPJVE, NMPJPE
from pipeline.pretrain.data import PretrainDataModule
from pipeline.sources import Split
from pipeline.training.protocol import NOT_IN_PROTOCOL
from pipeline.training.schedules import Schedule


class PretrainModule(LifterStage):
    """LightningModule that pretrains a lifter to recover 3D clips from corrupted projections.

    Batches: see `pipeline.pretrain.data.ProjectedClips`. Logged: `train/loss`; `val/` and `test/`
    `mpjpe_mm`, `n_mpjpe_mm`, `mpjve_mm` on corrupted clips, which are the same in every validation.
    A checkpoint holds the lifter and the mask token, which start the lifting stage.

    Args:
        net: Lifter to train; one that predicts every frame.
        optimizer: Optimizer class and its arguments.
        schedule: Learning-rate factor by step; None keeps the rate constant.
        loss: Loss of (predicted, target, valid), see `pipeline.lift.losses`; PretrainLoss by
            default.
        pretrained: Checkpoint to start from.

    Raises:
        UsageError: If `net` does not predict every frame.

    Source: paper 001, Fig. 1; losses as MotionBERT's.
    """

    stage = "pretrain"
    data_class = PretrainDataModule
    example_config = "pretrain/mixste_small"
    not_in_protocol = NOT_IN_PROTOCOL | {
        "data.step": "training clips only",
        "data.flip": "training clips only",
    }

    def __init__(
        self,
        net: Lifter,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        loss: nn.Module | None = None,
        *,
        pretrained: str | None = None,
    ) -> None:
        if net.output != "every":
            raise UsageError(
                f"{type(net).__name__} predicts single frames; pretraining needs a lifter "
                "that predicts every frame, such as MixSTE"
            )
        super().__init__(net, optimizer, schedule, loss or PretrainLoss(), pretrained)
        errors: dict[str, nn.Module] = {"mpjpe": MPJPE(), "n_mpjpe": NMPJPE()}
        if net.frames > 1:  # a single frame has no motion
            errors["mpjve"] = MPJVE()
        self.errors: Mapping[str, Metric] = nn.ModuleDict(errors)  # type: ignore[assignment]
        self.clips_shown, self.has_motion = False, True

    def begin(self, split: Split) -> None:
        """Let the clips of the first batch be shown again; single frames have no motion."""
        self.clips_shown = False
        valid = self.data_module.evaluation_sets[split].valid
        self.has_motion = bool((valid[:, :-1] & valid[:, 1:]).any())

    def score(self, split: Split, batch: Mapping[str, Tensor]) -> None:
        """Evaluate the valid frames of a batch of corrupted clips; show clips of the first one."""
        predicted = self(batch["joints2d"], batch["visible"])
        target, valid = batch["joints3d"], batch["valid"]
        pairs = valid[:, :-1] & valid[:, 1:]
        for name, metric in self.errors.items():
            if name == "mpjve" and not self.has_motion:
                continue
            if name == "mpjve":
                steps = (torch.stack([c[:, :-1], c[:, 1:]], 2)[pairs] for c in (predicted, target))
                metric.update(*steps)
            else:
                metric.update(predicted[valid], target[valid])
            self.log(f"{split}/{name}_mm", metric, prog_bar=name == "mpjpe", on_epoch=True)
        if not self.clips_shown and self.trainer.is_global_zero:
            clips = [_recovered_clip(batch, predicted, i) for i in range(min(4, len(predicted)))]
            panels.log_pretrain_panels(self.trainer, clips, self.net.skeleton, split=split)
        self.clips_shown = True

    def protocol_parts(self, split: Split) -> dict[str, str]:
        """See `Stage.protocol_parts`."""
        data = self.data_module
        return super().protocol_parts(split) | {
            "data.joint_mask": f"2D of random cameras, joints hidden {data.joint_mask:g}",
            "data.frame_mask": f"frames hidden {data.frame_mask:g}",
            "data.noise": f"noise {data.noise:g}",
            "data.seed": f"seed {data.seed}; clips of {self.net.frames} frames, "
            f"{len(self.net.skeleton)} joints, root-relative, predicted root kept, no flip test, "
            "mm",
        }

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Recover clips.

        Returns:
            `joints3d`, (B, T, J, 3), and its input: `normalised2d`, (B, T, J, 2), 0 where hidden,
            and `visible`, (B, T, J).
        """
        recovered = self(batch["joints2d"], batch["visible"])
        given = {"normalised2d": batch["joints2d"], "visible": batch["visible"]}
        return {"joints3d": recovered, **given}

    def prediction_facts(self, index: NDArray[np.int64]) -> dict[str, Any]:
        """Joint set, unit and frame of reference."""
        skeleton = self.net.skeleton
        frame = f"{CAMERA_FRAME}; relative to {skeleton.joints[skeleton.root]}"
        return {**skeleton.facts(), "unit": "m", "frame": frame}


def _recovered_clip(
    batch: Mapping[str, Tensor], predicted: Tensor, sample: int
) -> panels.LiftedClip:
    """One sample of a batch, for the dashboard."""
    arrays = {name: batch[name][sample].cpu().numpy() for name in batch}
    return panels.LiftedClip(
        name=f"clip {arrays['index']}",
        predicted=predicted[sample].cpu().numpy(),
        target=arrays["joints3d"],
        error=mpjpe(predicted[sample], batch["joints3d"][sample]),
        joints2d=arrays["joints2d"],
        exact2d=arrays["exact2d"],
        score=arrays["visible"].astype("float32"),
    )
