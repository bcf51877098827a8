"""How room 1b learns: joints in 3D from volumes of crops; and how it is asked as a 2D detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from pipeline.dashboard import panels
from pipeline.errors import UsageError
from pipeline.heatmap import targets
from pipeline.heatmap.image_stage import ImageStage, make_examples, to_image_pixels
from pipeline.integral.data import CropsWithDepth, IntegralDataModule
from pipeline.integral.relations import joint_relations
from pipeline.integral.san import centre, expectation, likelihood
from pipeline.metrics.functional import mpjpe, root_relative
from pipeline.metrics.motion_table import MotionReport, MotionTable
from pipeline.skeleton import H36M17
from pipeline.sources import Split
from pipeline.training.schedules import Schedule

TRUNK = ("net.conv1.", "net.bn1.", "net.layer", "net.deconv_layers.")
"""What a 2D stage hands over: its trunk and deconvolutions; its heatmaps have no depth."""

NEAR = 2
"""A joint's score is the share of its mass within so many cells, along x and along y."""


class IntegralModule(ImageStage):
    """Learns joints in images with their depth behind the root, and detects joints in crops.

    Batches: see `pipeline.integral.data.CropsWithDepth`. Logged: `train/loss`, `train/delta` (how much
    the attention adds); `val/` and `test/` `loss`, `pck_0.05`, `pck_0.1`, `pck_0.2`, `oks_ap` of
    COCO's people, `pckh_0.5` of MPII's, and over the people whose joints are all known in 3D,
    visible or not, `mpjpe_mm`, `p_mpjpe_mm` and `n_mpjpe_mm` with their `_action_mean`: found
    pixels at the found depth behind the true root's, back-projected without distortion,
    root-relative, the joints of H36M17.

    Args:
        net: (B, 3, H, W) -> (B, J, D, H/4, W/4).
        optimizer: Makes the optimiser from the parameters.
        schedule: Learning-rate factor by step.
        skeleton: Name of the joint set on axis J.
        input_size: Width and height of crops.
        padding: Factor on the boxes that crops are cut around.
        cube: Metres that the D bins span, the root in their middle.
        published_cells: Take pixel x for cell x/4, and likewise in depth, as published networks do.
        flip_test: Look at each crop and its mirror image and average the joints.
        channels_last: Keep weights and features with channels last, which convolutions like better.
        pretrained: A checkpoint whose weights a fresh fit starts from: of an earlier run, of a 2D
            stage with the same trunk, or imported from a published file (an ImageNet ResNet). One
            with all of `net` can be tested as it is. This run's checkpoints keep its digest, not
            its path.

    Raises:
        UsageError: If the network does not give as many volumes as the joint set has joints.

    Source: paper 004, sec. 3.4-3.5; the cube is that of Integral (Sun et al. 2018).
    Differs from the paper: L1 in units of the volume's sides, divided by the number of terms that
    count; the paper gives no unit.
    """

    stage = "integral"
    data_class = IntegralDataModule
    example_config = "integral/san_small"
    test_settings = ("flip_test",)
    weights_from = ("integral", "heatmap")
    decoding = "soft-argmax"

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
            pretrained=pretrained,
        )
        self.require_outputs(getattr(net, "joints", len(self.skeleton)), "volumes")
        if cube <= 0:
            raise UsageError(f"cube is {cube}; it is a length in metres, above 0")
        self.cube = cube
        self.bin_offset = 0.0 if published_cells else 0.5
        self.body = [j for j, name in enumerate(self.skeleton.joints) if name in H36M17.joints]
        self.table: MotionTable | None = None
        self.clips: list[panels.LiftedClip] = []

    def forward(self, images: Tensor) -> Tensor:
        """Crops -> volumes.

        Args:
            images: RGB, uint8, (B, H, W, 3).

        Returns:
            Logits, (B, J, D, H/4, W/4).
        """
        volumes: Tensor = self.net(self.normalised(images))
        return volumes

    def transferred_prefixes(self, source_stage: str, *, fitting: bool) -> tuple[str, ...]:
        """All of `net` from this stage; from a 2D stage its trunk and deconvolutions."""
        return ("net.",) if source_stage == self.stage else TRUNK

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of crops."""
        loss = self._loss(self(batch["image"]), batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        if self._delta is not None:
            self.log("train/delta", self._delta)
        return loss

    def begin(self, split: Split) -> None:
        """Forget the images and counts of the last evaluation."""
        super().begin(split)
        self.clips, self.table = [], None
        crops = cast(CropsWithDepth, self.data_module.evaluation_sets[split])
        if crops.scored[crops.people].any():
            names = [self.skeleton.joints[j] for j in self.body]
            self.table = MotionTable(crops.actions, names).to(self.device)

    def score(self, split: Split, batch: Mapping[str, Tensor]) -> None:
        """Score the joints found in a batch of crops."""
        volumes = self(batch["image"])
        loss = self._loss(volumes, batch)
        found, score, maps = self._find(batch["image"], volumes)
        self.score_joints(split, batch, loss, found[..., :2], score)
        predicted = root_relative(self._joints3d(found, batch), self.skeleton.root)[:, self.body]
        target = root_relative(batch["joints3d"].double(), self.skeleton.root)[:, self.body]
        self._tabulate(batch["action"], predicted, target, batch["scored"])
        if not self.examples:
            peaks = maps / maps.amax((2, 3), keepdim=True).clamp(min=1e-9)
            self.examples = make_examples(batch, peaks, found[..., :2], score)
            self.clips = _lifted_clips(batch, predicted, target)
            if self._delta is not None:
                self._show_relations(split, batch["image"][:8], found[:8, :, :2], self._delta)

    def conclude(self, split: Split) -> None:
        """Log the errors in 3D and the share of joints found; print the test's per action."""
        super().conclude(split)
        if self.table is None:
            return
        report: MotionReport = self.table.compute()
        for name in ("mpjpe", "p_mpjpe", "n_mpjpe"):
            value = report.frame_mean[name]
            self.log(f"{split}/{name}_mm", value, prog_bar=name == "mpjpe")
            self.log(f"{split}/{name}_action_mean_mm", report.action_mean[name])
        if split == "test":
            self.print(report.text(self.protocol("test")))
            skeleton = H36M17 if len(self.body) == len(H36M17) else self.skeleton
            panels.lift_panels(self.trainer, self.clips, report, skeleton, videos=0)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """What was found in a batch of crops.

        Returns:
            `index` of the samples (B,); `joints2d`, pixels of whole images (B, J, 2); `depth`
            behind the root, metres (B, J); `score` (B, J); `joints3d`, camera frame, metres (B, J,
            3), NaN where `scored` is not true: it needs the camera and the root's depth.
        """
        found, score, _ = self._find(batch["image"], self(batch["image"]))
        joints3d = self._joints3d(found, batch)
        return {
            "index": batch["index"],
            "joints2d": to_image_pixels(found[..., :2], batch["matrix"]).float(),
            "depth": found[..., 2],
            "score": score,
            "joints3d": joints3d.masked_fill(~batch["scored"][:, None, None], torch.nan).float(),
        }

    @torch.no_grad()
    def detect(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Joints in crops: what the door caches and the front door shows.

        Args:
            images: RGB, uint8, (B, H, W, 3), cut with this module's `input_size` and `padding`.

        Returns:
            Joints in pixels of the crop, (B, J, 2), and their scores, (B, J); both float32.
        """
        found, score, _ = self._find(images, self(images))
        return found[..., :2].contiguous(), score

    def protocol(self, split: str) -> str:
        """What a number of this run is a number of."""
        source = self.data_module.source.describe()
        return (
            f"{split} split of {source}; images; {len(self.body)} joints, visible or not, "
            f"root-relative, true root depth; flip test {'on' if self.flip_test else 'off'}; mm"
        )

    @property
    def _delta(self) -> Tensor | None:
        return getattr(getattr(self.net, "attention", None), "delta", None)

    def _find(self, images: Tensor, volumes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Joints (B, J, 3), pixels of the crop and metres behind the root; scores; their maps."""
        found, score, maps = self._read(volumes)
        if not self.flip_test:
            return found, score, maps
        swap = list(self.skeleton.swap)
        again, score2, maps2 = self._read(self(images.flip(2)))
        again = again[:, swap]
        again[..., 0] = images.shape[2] - 1 - again[..., 0]
        mirrored = targets.flip_back(maps2, swap, columns=self.flip_columns)
        return (found + again) / 2, (score + score2[:, swap]) / 2, (maps + mirrored) / 2

    def _read(self, volumes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mass = likelihood(volumes)
        cells, maps = centre(mass), mass.sum(2)
        rows, columns = (
            (torch.arange(size, device=maps.device) - cells[..., axis, None]).abs() <= NEAR
            for axis, size in ((1, maps.shape[2]), (0, maps.shape[3]))
        )
        score = (maps * rows[..., :, None] * columns[..., None, :]).sum((2, 3))
        pixels = targets.to_pixels(cells[..., :2], offset=self.offset)
        depth = ((cells[..., 2:] + self.bin_offset) / mass.shape[2] - 0.5) * self.cube
        return torch.cat([pixels, depth], dim=-1), score, maps

    def _loss(self, volumes: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean of |found - true| over the coordinates that count, in sides of the volume."""
        D, H, W = volumes.shape[2:]
        size = volumes.new_tensor([W, H, D], dtype=torch.float32)
        cells = targets.to_cells(batch["joints2d"].float(), offset=self.offset)
        depth = batch["depth"].float().masked_fill(batch["has_depth"] == 0, 0.0)
        bins = (depth / self.cube + 0.5) * D - self.bin_offset
        true = torch.cat([cells, bins[..., None]], dim=-1)
        # The mean under a softmax reaches no cell outside; there a joint counts as not labelled.
        inside = ((true >= -0.5) & (true < size - 0.5)).all(-1)
        seen, deep = batch["weight"] * inside, batch["has_depth"] * inside
        weight = torch.stack([seen, seen, deep], dim=-1)
        error = (expectation(volumes) - true).abs() / size
        return (error * weight).sum() / weight.sum().clamp(min=1)

    def _joints3d(self, found: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Found joints behind the true root in the camera frame, metres, (B, J, 3), float64."""
        pixels = to_image_pixels(found[..., :2], batch["matrix"])
        root = batch["joints3d"][:, self.skeleton.root, 2].double()
        depth = (found[..., 2].double() + root[:, None])[..., None]
        rays = (pixels - batch["principal"][:, None]) / batch["focal"][:, None]
        return torch.cat([rays * depth, depth], dim=-1)

    def _tabulate(self, action: Tensor, predicted: Tensor, target: Tensor, scored: Tensor) -> None:
        for number in action[scored].unique().tolist():
            chosen = scored & (action == number)
            # Images are not motion: a frame that does not count lies between any two.
            found = predicted[chosen].repeat_interleave(2, 0)
            true = target[chosen].repeat_interleave(2, 0)
            valid = torch.arange(len(found), device=action.device) % 2 == 0
            cast(MotionTable, self.table).update(number, found, true, valid)

    def _show_relations(
        self, split: Split, images: Tensor, joints2d: Tensor, delta: Tensor
    ) -> None:
        """Show which joints attend to which: the mean over a few crops (N, H, W, 3)."""
        relations = cast(Any, self.net).relations(self.normalised(images)).float()
        grid = tuple(side // 32 for side in reversed(self.input_size))
        joints = joint_relations(relations, joints2d, cast(tuple[int, int], grid))
        panels.relations_panel(
            self.trainer,
            np.asarray(joints.mean(0).cpu()),
            self.skeleton,
            float(delta),
            split=split,
        )


def _lifted_clips(
    batch: Mapping[str, Tensor], predicted: Tensor, target: Tensor
) -> list[panels.LiftedClip]:
    """The first eight crops of a batch with known 3D joints, as clips of one frame."""
    clips = []
    for i in batch["scored"].nonzero()[:8, 0].tolist():
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
