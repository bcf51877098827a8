"""The heatmap stage: a LightningModule that learns 2D heatmaps and detects joints in crops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from pipeline.errors import UsageError
from pipeline.heatmap import targets
from pipeline.heatmap.data import HeatmapDataModule
from pipeline.heatmap.image_stage import (
    SHARES,
    ImageStage,
    check_outputs,
    make_examples,
    to_image_pixels,
)
from pipeline.sources import Split
from pipeline.training.schedules import Schedule

Decode = Literal["quarter", "argmax", "expectation", "dark"]
"""Ways to read joints from heatmaps."""

DECODERS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "quarter": targets.decode_quarter,
    "argmax": targets.decode_argmax,
    "expectation": targets.decode_expectation,
    "dark": targets.decode_dark,
}
"""Way -> function of heatmaps (B, J, H, W) that returns cells (B, J, 2) and scores (B, J)."""


class HeatmapModule(ImageStage):
    """Learns heatmaps of joints, and detects joints in crops.

    Batches: see `pipeline.heatmap.data.Crops`. Logged: see `ImageStage`.

    Args:
        net: Network, normalised images (B, 3, H, W) -> heatmaps (B, J, H/4, W/4).
        optimizer: Optimizer class and its arguments.
        schedule: Learning-rate factor by step; none keeps the rate constant.
        skeleton: Name of the joint set on axis J.
        input_size: Width and height of the crops in pixels.
        padding: Size of a crop relative to the person's box.
        sigma: Standard deviation of the target Gaussians in cells, above 0.
        rounded: Centre the target Gaussians on whole cells, as published networks were trained.
        published_cells: Pixel x belongs to heatmap cell x/4, as in published networks.
        decode: Way to read joints from heatmaps: `quarter` of a cell from the highest one to its
            higher neighbours, `dark` at the top of a Gaussian, `expectation` or `argmax`.
        flip_test: Detect in each crop and in its mirror image and average the heatmaps.
        channels_last: Store weights and features with channels last, which is faster.
        reduced_decoding: Detect in crops of images that are decoded as in training, see the data.
        pretrained: Checkpoint whose weights a fresh fit starts from: of an earlier run, or imported
            from a published file. One with all of `net` can be tested as it is. This run's
            checkpoints store its digest, not its path.

    Raises:
        UsageError: If the network does not give as many heatmaps as the joint set has joints, or
            `sigma` is not above 0.
    """

    stage = "heatmap"
    data_class = HeatmapDataModule
    monitor, mode = "val/pck_0.1", "max"
    example_config = "heatmap/hrnet_narrow"
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
        final = getattr(net, "final_layer", None)
        check_outputs(self.skeleton, getattr(final, "out_channels", len(self.skeleton)), "heatmaps")
        if sigma <= 0:
            raise UsageError(f"sigma is {sigma}; it is a size in cells, above 0")
        self.sigma, self.decoding, self.rounded = sigma, decode, rounded
        self.encode = targets.encode_heatmaps_rounded if rounded else targets.encode_heatmaps

    def forward(self, images: Tensor) -> Tensor:
        """Crops, RGB, uint8, (B, H, W, 3) -> heatmaps, float32, (B, J, H/4, W/4)."""
        heatmaps: Tensor = self.net(self.normalised(images))
        return heatmaps.float()

    def loss(self, heatmaps: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean squared error of heatmaps over the labelled joints that they can show."""
        size = (heatmaps.shape[-1], heatmaps.shape[-2])
        cells = targets.to_cells(batch["joints2d"].float(), offset=self.offset)
        weight = batch["weight"] * targets.is_in_reach(cells, size, sigma=self.sigma)
        return targets.heatmap_loss(heatmaps, self.encode(cells, size, sigma=self.sigma), weight)

    def find_joints(self, images: Tensor, heatmaps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Joints (B, J, 2) in pixels of the crop, scores (B, J), heatmaps they are read from."""
        if self.flip_test:
            heatmaps = self._average_with_mirrored(images, heatmaps)
        cells, score = DECODERS[self.decoding](heatmaps)
        return targets.to_pixels(cells, offset=self.offset), score, heatmaps

    def _average_with_mirrored(self, images: Tensor, heatmaps: Tensor) -> Tensor:
        mirrored = targets.flip_back(
            self(images.flip(2)), self.skeleton.swap, columns=self.flip_columns
        )
        return mirrored.add_(heatmaps).mul_(0.5)

    def score(self, split: Split, batch: Mapping[str, Tensor]) -> None:
        """Add the joints detected in a batch of crops to the metrics."""
        heatmaps = self(batch["image"])
        loss = self.loss(heatmaps, batch)
        joints2d, score, heatmaps = self.find_joints(batch["image"], heatmaps)
        self.update_metrics(split, batch, loss, joints2d, score)
        if not self.examples:
            self.examples = make_examples(batch, heatmaps, joints2d, score)

    def conclude(self, split: Split) -> None:
        """Log the shares of joints found; print the test's."""
        super().conclude(split)
        if split == "test":
            shares = ", ".join(f"{name} {100 * self.report[name]:.1f} %" for name in SHARES)
            self.print(f"of the longer side of the joints' box: {shares}")

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Joints found in a batch of crops.

        Returns:
            `index` of the samples (B,); `joints2d`, pixels of whole images (B, J, 2); `score` (B,
            J).
        """
        joints2d, score = self.detect(batch["image"])
        return {
            "index": batch["index"],
            "joints2d": to_image_pixels(joints2d, batch["matrix"]).float(),
            "score": score,
        }

    def protocol_parts(self, split: Split) -> dict[str, str]:
        """See `Stage.protocol_parts`."""
        centres = "rounded" if self.rounded else "exact"
        return super().protocol_parts(split) | {
            "model.decode": f"decode {self.decoding}",
            "model.sigma": f"loss with sigma {self.sigma:g}",
            "model.rounded": f"{centres} centres",
        }
