"""The integral stage: a LightningModule that learns joints with depth from 3D heatmaps of crops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.camera import CAMERA_FRAME
from pipeline.dashboard import panels
from pipeline.errors import UsageError
from pipeline.heatmap import targets
from pipeline.heatmap.image_input import NORMALISE
from pipeline.heatmap.image_stage import (
    ImageStage,
    check_outputs,
    make_examples,
    to_image_pixels,
)
from pipeline.integral.data import CropsWithDepth, IntegralDataModule
from pipeline.integral.relations import ATTENTION_STRIDE, joint_relations
from pipeline.integral.volumes import (
    VolumeGrid,
    back_project_from_root,
    decode_volumes,
    label_positions,
    volume_loss,
)
from pipeline.metrics.functional import mpjpe, root_relative
from pipeline.metrics.motion_table import PoseErrorReport, PoseErrorTable
from pipeline.skeleton import H36M17
from pipeline.sources import Split
from pipeline.training.schedules import Schedule

TRUNK = ("net.conv1.", "net.bn1.", "net.layer", "net.deconv_layers.", NORMALISE)
"""What a 2D stage passes on: trunk, deconvolutions and input; its heatmaps have no depth."""


class IntegralModule(ImageStage):
    """Learns joints in crops with their depth behind the root; also a detector of 2D joints.

    Batches: see `pipeline.integral.data.CropsWithDepth`. Logged: see `ImageStage`; `train/delta`
    (how much the attention adds); and over the evaluated people `mpjpe_mm`, `p_mpjpe_mm`
    (after the best rotation, shift and scale), `rigid_mpjpe_mm` (without scale: the PA-MPJPE of
    Integral, PoseNet and paper 004) and `n_mpjpe_mm` with their `_action_mean`: the joints found,
    with the true depth of the root, are back-projected without distortion and compared
    root-relative, over the joints of H36M17.

    Args:
        net: Network, normalised images (B, 3, H, W) -> 3D heatmaps (B, J, D, H/4, W/4).
        optimizer: Optimizer class and its arguments.
        schedule: Learning-rate factor by step; none keeps the rate constant.
        skeleton: Name of the joint set on axis J.
        input_size: Width and height of the crops in pixels.
        padding: Size of a crop relative to the person's box.
        cube: Length in metres that the D bins of depth span, the root in their middle; above 0.
        published_cells: Pixel x belongs to heatmap cell x/4, and likewise in depth, as in published
            networks.
        flip_test: Detect in each crop and in its mirror image and average the joints.
        channels_last: Store weights and features with channels last, which is faster.
        reduced_decoding: Detect in crops of images that are decoded as in training, see the data.
        pretrained: Checkpoint whose weights a fresh fit starts from: of an earlier run, of a 2D
            stage with the same trunk, or imported from a published file (an ImageNet ResNet). One
            with all of `net` can be tested as it is. This run's checkpoints store its digest, not
            its path.

    Raises:
        UsageError: If the network does not give as many volumes as the joint set has joints, or
            `cube` is not above 0.

    Source: paper 004, sec. 3.4-3.5; the cube is that of Integral (Sun et al. 2018).
    Differs from the paper: L1 in sides of the volume, divided by the number of labelled
    coordinates; the paper gives no unit.
    """

    stage = "integral"
    data_class = IntegralDataModule
    example_config = "integral/san_small"
    test_settings = ("flip_test",)
    weights_from = ("integral", "heatmap")
    decoding = "soft-argmax"
    not_in_protocol = ImageStage.not_in_protocol | {"data.photographs": "training crops only"}

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable = torch.optim.Adam,
        schedule: Schedule | None = None,
        *,
        skeleton: str = "H36M18",
        input_size: tuple[int, int] = (256, 256),
        padding: float = 1.25,
        cube: float = 2.0,
        published_cells: bool = False,
        flip_test: bool = False,
        channels_last: bool = True,
        reduced_decoding: bool = False,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(
            net,
            optimizer,
            schedule,
            skeleton=skeleton,
            input_size=input_size,
            padding=padding,
            published_cells=published_cells,
            flip_test=flip_test,
            channels_last=channels_last,
            reduced_decoding=reduced_decoding,
            pretrained=pretrained,
        )
        check_outputs(self.skeleton, getattr(net, "joints", len(self.skeleton)), "volumes")
        if cube <= 0:
            raise UsageError(f"cube is {cube}; it is a length in metres, above 0")
        self.grid = VolumeGrid(cube, self.offset, 0.0 if published_cells else 0.5)
        names = self.skeleton.joints
        self.evaluated_joints = [j for j, name in enumerate(names) if name in H36M17.joints]
        self.table: PoseErrorTable | None = None
        self.clips: list[panels.LiftedClip] = []

    def forward(self, images: Tensor) -> Tensor:
        """Crops, RGB, uint8, (B, H, W, 3) -> logits of volumes, (B, J, D, H/4, W/4)."""
        volumes: Tensor = self.net(self.normalised(images))
        return volumes

    def transferred_prefixes(self, source_stage: str, *, fitting: bool) -> tuple[str, ...]:
        """All of `net` from this stage; from a 2D stage its trunk and deconvolutions."""
        whole = super().transferred_prefixes(source_stage, fitting=fitting)
        return whole if source_stage == self.stage else TRUNK

    def loss(self, volumes: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean absolute error over the labelled coordinates, in sides of the volume."""
        return volume_loss(
            volumes,
            batch["joints2d"],
            batch["depth"],
            weight=batch["weight"],
            has_depth=batch["has_depth"],
            grid=self.grid,
        )

    def find_joints(self, images: Tensor, volumes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Joints (B, J, 3), pixels of the crop and metres behind the root; scores; 2D heatmaps."""
        joints, score, maps = decode_volumes(volumes, self.grid)
        if not self.flip_test:
            return joints, score, maps
        swap = list(self.skeleton.swap)
        mirrored, score2, maps2 = decode_volumes(self(images.flip(2)), self.grid)
        mirrored = mirrored[:, swap]
        mirrored[..., 0] = images.shape[2] - 1 - mirrored[..., 0]
        maps2 = targets.flip_back(maps2, swap, columns=self.flip_columns)
        return (joints + mirrored) / 2, (score + score2[:, swap]) / 2, (maps + maps2) / 2

    @property
    def _delta(self) -> Tensor | None:
        """Factor of the attention, where the network has one."""
        return getattr(getattr(self.net, "attention", None), "delta", None)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of crops."""
        loss = super().training_step(batch, batch_idx)
        if self._delta is not None:
            self.log_in_training("train/delta", self._delta)
        return loss

    def begin(self, split: Split) -> None:
        """Reset the examples and metrics of the last evaluation."""
        super().begin(split)
        self.clips, self.table = [], None
        crops = cast(CropsWithDepth, self.data_module.evaluation_sets[split])
        if crops.evaluated[crops.people].any():
            names = [self.skeleton.joints[j] for j in self.evaluated_joints]
            self.table = PoseErrorTable(crops.actions, names, rigid=True).to(self.device)

    def score(self, split: Split, batch: Mapping[str, Tensor]) -> None:
        """Add the joints found in a batch of crops to the metrics."""
        volumes = self(batch["image"])
        loss, count = self.loss(volumes, batch), _count_labels(volumes, batch, self.grid)
        joints, score, maps = self.find_joints(batch["image"], volumes)
        self.update_metrics(split, batch, loss, joints[..., :2], score, count)
        predicted = self._evaluated_poses(self._back_project(joints, batch))
        target = self._evaluated_poses(batch["joints3d"].double())
        if self.table is not None:
            _add_poses(self.table, batch["action"], predicted, target, batch["evaluated"])
        if not self.examples:
            heatmaps = maps / maps.amax((2, 3), keepdim=True).clamp(min=1e-9)  # peaks of 1
            self.examples = make_examples(batch, heatmaps, joints[..., :2], score)
            self.clips = _make_clips(batch, predicted, target)
            if self._delta is not None:
                _show_relations(self, split, batch["image"][:8], joints[:8, :, :2], self._delta)

    def conclude(self, split: Split) -> None:
        """Log the errors in 3D and the shares of joints found; print the test's per action."""
        super().conclude(split)
        if self.table is None:
            return
        report: PoseErrorReport = self.table.compute()
        for name in ("mpjpe", "p_mpjpe", "rigid_mpjpe", "n_mpjpe"):
            if name in report.frame_mean:
                value = report.frame_mean[name]
                self.log(f"{split}/{name}_mm", value, prog_bar=name == "mpjpe")
                self.log(f"{split}/{name}_action_mean_mm", report.action_mean[name])
        if split == "test":
            self.print(report.text())
            self.print(
                "P-MPJPE: after the best rotation, shift and scale of each pose; rigid: MPJPE "
                "after the best rotation and shift, the PA-MPJPE of Integral, PoseNet and SAN"
            )
            skeleton = H36M17 if len(self.evaluated_joints) == len(H36M17) else self.skeleton
            panels.log_lift_panels(self.trainer, self.clips, report, skeleton, videos=0)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Joints found in a batch of crops.

        Returns:
            `index` of the samples (B,); `joints2d`, pixels of whole images (B, J, 2); `depth`
            behind the root, metres (B, J); `score` (B, J); `joints3d`, camera frame, metres (B, J,
            3), NaN where `evaluated` is false: it needs the camera and the root's depth.
        """
        joints, score, _ = self.find_joints(batch["image"], self(batch["image"]))
        joints3d = self._back_project(joints, batch)
        unknown = ~batch["evaluated"][:, None, None]
        return {
            "index": batch["index"],
            "joints2d": to_image_pixels(joints[..., :2], batch["matrix"]).float(),
            "depth": joints[..., 2],
            "score": score,
            "joints3d": joints3d.masked_fill(unknown, torch.nan).float(),
        }

    def prediction_facts(self, index: NDArray[np.int64]) -> dict[str, Any]:
        """See `ImageStage.prediction_facts`; also unit and frame of reference of `joints3d`."""
        facts = super().prediction_facts(index)
        return facts | {"unit3d": "m", "frame3d": CAMERA_FRAME}

    def protocol_parts(self, split: Split) -> dict[str, str]:
        """See `Stage.protocol_parts`."""
        joints = len(self.evaluated_joints)
        return super().protocol_parts(split) | {
            "model.cube": f"depth over {self.grid.cube:g} m; {joints} joints, visible or not, "
            "root-relative, re-rooted, true root depth, mm",
        }

    def _back_project(self, joints: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Joints found, with the true depth of the root, in the camera frame, metres (B, J, 3)."""
        return back_project_from_root(
            to_image_pixels(joints[..., :2], batch["matrix"]),
            joints[..., 2],
            batch["joints3d"][:, self.skeleton.root, 2],
            focal=batch["focal"],
            principal=batch["principal"],
        )

    def _evaluated_poses(self, joints3d: Tensor) -> Tensor:
        """The evaluated joints relative to the root, metres."""
        return root_relative(joints3d, self.skeleton.root)[:, self.evaluated_joints]


def _count_labels(volumes: Tensor, batch: Mapping[str, Tensor], grid: VolumeGrid) -> Tensor:
    """Number of coordinates that the loss of a batch is a mean of."""
    _, weights = label_positions(
        batch["joints2d"],
        batch["depth"],
        weight=batch["weight"],
        has_depth=batch["has_depth"],
        grid=grid,
        size=volumes.new_tensor(list(volumes.shape[:1:-1]), dtype=torch.float32),  # W, H, D
    )
    return weights.sum()


def _show_relations(
    module: IntegralModule, split: Split, images: Tensor, joints2d: Tensor, delta: Tensor
) -> None:
    """Show how much joints attend to each other, mean over a few crops (N, H, W, 3)."""
    relations = cast(Any, module.net).relations(module.normalised(images)).float()
    width, height = module.input_size
    grid = (height // ATTENTION_STRIDE, width // ATTENTION_STRIDE)
    mean = np.asarray(joint_relations(relations, joints2d, grid).mean(0).cpu())
    panels.log_relations_panel(module.trainer, mean, module.skeleton, float(delta), split=split)


def _add_poses(
    table: PoseErrorTable, action: Tensor, predicted: Tensor, target: Tensor, evaluated: Tensor
) -> None:
    """Add the evaluated poses of a batch to a table.

    Args:
        table: The table of errors.
        action: Index of each pose's action, (B,).
        predicted: Predicted poses, metres, root-relative, (B, J, 3).
        target: True poses, metres, root-relative, (B, J, 3).
        evaluated: Whether a pose counts, (B,).
    """
    for number in action[evaluated].unique().tolist():
        chosen = evaluated & (action == number)
        # Images are not motion: a frame that does not count lies between any two.
        found = predicted[chosen].repeat_interleave(2, 0)
        true = target[chosen].repeat_interleave(2, 0)
        valid = torch.arange(len(found), device=action.device) % 2 == 0
        table.update(number, found, true, valid)


def _make_clips(
    batch: Mapping[str, Tensor], predicted: Tensor, target: Tensor
) -> list[panels.LiftedClip]:
    """The first eight evaluated crops of a batch, as clips of one frame for the dashboard."""
    clips = []
    for i in batch["evaluated"].nonzero()[:8, 0].tolist():
        poses = [joints[i : i + 1].cpu().numpy() for joints in (predicted, target)]
        clips.append(
            panels.LiftedClip(
                name=f"sample {int(batch['index'][i])}",
                predicted=poses[0],
                target=poses[1],
                error=mpjpe(*poses),
                images=[batch["image"][i].cpu().numpy()],
            )
        )
    return clips
