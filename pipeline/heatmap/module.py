"""How room 1 learns: heatmaps from crops, scored as 2D joints; and how a detector is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from pipeline.errors import UsageError
from pipeline.heatmap import targets
from pipeline.heatmap.data import HeatmapDataModule
from pipeline.heatmap.image_stage import SHARES, ImageStage, make_examples, to_image_pixels
from pipeline.sources import Split
from pipeline.training.schedules import Schedule

Decode = Literal["quarter", "argmax", "expectation"]

DECODERS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "quarter": targets.decode_quarter,
    "argmax": targets.decode_argmax,
    "expectation": targets.decode_expectation,
}


class HeatmapModule(ImageStage):
    """Learns heatmaps of joints, and detects joints in crops.

    Batches: see `pipeline.heatmap.data.Crops`. Logged: `train/loss`; `val/` and `test/` `loss`,
    `pck_0.05`, `pck_0.1` and `pck_0.2`, the share of joints within that part of the person's size
    in the whole image; of COCO's people `oks_ap` and of MPII's `pckh_0.5`, as these benchmarks
    count. After a validation `report` has the shares per joint too, and `examples` a
    few crops: image, heatmaps, joints2d and truth in pixels of the crop, score, name.

    Args:
        net: (B, 3, H, W) -> (B, J, H/4, W/4).
        optimizer: Makes the optimiser from the parameters.
        schedule: Learning-rate factor by step.
        skeleton: Name of the joint set on axis J.
        input_size: Width and height of crops.
        padding: Factor on the boxes that crops are cut around.
        sigma: Deviation of the targets' Gaussians in cells.
        rounded: Centre targets on whole cells, as published networks were trained.
        published_cells: Take x/4 for the cell of pixel x, as published networks do.
        decode: How joints are read from heatmaps.
        flip_test: Detect in each crop and its mirror image and average the heatmaps.
        channels_last: Keep weights and features with channels last, which convolutions like better.
        pretrained: A checkpoint whose weights a fresh fit starts from, or that is tested as it is,
            all of `net`, where no checkpoint of this stage is given: of an earlier run, or imported
            from a published file. This run's checkpoints keep its digest, not its path.

    Raises:
        UsageError: If the network does not give as many heatmaps as the joint set has joints.
    """

    stage = "heatmap"
    data_class = HeatmapDataModule
    monitor, mode = "val/pck_0.1", "max"
    example_config = "heatmap/hrnet_w32_coco"
    test_settings = ("flip_test", "decode")
    weights_from = ("heatmap",)

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable = torch.optim.Adam,
        schedule: Schedule | None = None,
        *,
        skeleton: str = "H36M17",
        input_size: tuple[int, int] = (192, 256),
        padding: float = 1.25,
        sigma: float = 2.0,
        rounded: bool = False,
        published_cells: bool = False,
        decode: Decode = "quarter",
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
        final = getattr(net, "final_layer", None)
        self.require_outputs(getattr(final, "out_channels", len(self.skeleton)), "heatmaps")
        if sigma <= 0:
            raise UsageError(f"sigma is {sigma}; it is a size in cells, above 0")
        self.sigma, self.decoding = sigma, decode
        self.encode = targets.encode_heatmaps_rounded if rounded else targets.encode_heatmaps

    def forward(self, images: Tensor) -> Tensor:
        """Crops -> heatmaps.

        Args:
            images: RGB, uint8, (B, H, W, 3).

        Returns:
            float32, (B, J, H/4, W/4).
        """
        heatmaps: Tensor = self.net(self.normalised(images))
        return heatmaps.float()

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of crops."""
        loss = self._loss(self(batch["image"]), batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def score(self, split: Split, batch: Mapping[str, Tensor]) -> None:
        """Score the joints detected in a batch of crops."""
        heatmaps = self(batch["image"])
        loss = self._loss(heatmaps, batch)
        heatmaps = self._averaged(batch["image"], heatmaps)
        joints2d, score = self._read(heatmaps)
        self.score_joints(split, batch, loss, joints2d, score)
        if not self.examples:
            self.examples = make_examples(batch, heatmaps, joints2d, score)

    def conclude(self, split: Split) -> None:
        """Log the share of joints that were found; print the test's with its protocol."""
        super().conclude(split)
        if split == "test":
            self.print(self.protocol("test"))
            shares = ", ".join(f"{name} {100 * self.report[name]:.1f} %" for name in SHARES)
            self.print(f"of the longer side of the joints' box: {shares}")

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Joints in pixels of whole images (B, J, 2), their scores, and the samples' indices."""
        joints2d, score = self.detect(batch["image"])
        return {
            "index": batch["index"],
            "joints2d": to_image_pixels(joints2d, batch["matrix"]).float(),
            "score": score,
        }

    @torch.no_grad()
    def detect(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Joints in crops: what the door caches and the front door shows.

        Args:
            images: RGB, uint8, (B, H, W, 3), cut with this module's `input_size` and `padding`.

        Returns:
            Joints in pixels of the crop, (B, J, 2), and their scores, (B, J); both float32.
        """
        return self._read(self._averaged(images, self(images)))

    def _averaged(self, images: Tensor, heatmaps: Tensor) -> Tensor:
        if not self.flip_test:
            return heatmaps
        mirrored = targets.flip_back(
            self(images.flip(2)), self.skeleton.swap, columns=self.flip_columns
        )
        return mirrored.add_(heatmaps).mul_(0.5)

    def _read(self, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
        cells, score = DECODERS[self.decoding](heatmaps)
        return targets.to_pixels(cells, offset=self.offset), score

    def _loss(self, heatmaps: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        size = (heatmaps.shape[-1], heatmaps.shape[-2])
        cells = targets.to_cells(batch["joints2d"].float(), offset=self.offset)
        weight = batch["weight"] * targets.is_in_reach(cells, size, sigma=self.sigma)
        return targets.heatmap_loss(heatmaps, self.encode(cells, size, sigma=self.sigma), weight)

    def protocol(self, split: str) -> str:
        """What a number of this run is a number of."""
        width, height = self.input_size
        flip = "on" if self.flip_test else "off"
        source = self.data_module.source
        return (
            f"{split} split of {source.describe()}; {self.skeleton.name}, {width}x{height}, "
            f"decode {self.decoding}, flip test {flip}"
        )
