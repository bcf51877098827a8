"""Base of the stages that find joints in images: crops in, joints and their scores out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.camera import PIXEL_FRAME
from pipeline.dashboard import show
from pipeline.errors import UsageError, printable
from pipeline.heatmap import targets
from pipeline.heatmap.benchmark_metrics import BenchmarkMetric, make_benchmark_metrics
from pipeline.heatmap.hrnet import HRNet
from pipeline.heatmap.image_input import (
    NORMALISE,
    ImageInput,
    ImageNormaliser,
    check_stored_input,
    stored_input,
)
from pipeline.heatmap.resnet import ResNet, fold_norms
from pipeline.metrics.exact_metric import WeightedMean
from pipeline.metrics.pck import PCK, PCKPerSource
from pipeline.skeleton import Skeleton, get_skeleton
from pipeline.sources import Split
from pipeline.training.precision import network_type
from pipeline.training.protocol import NOT_IN_PROTOCOL
from pipeline.training.schedules import Schedule
from pipeline.training.stage import Stage

DETECTION_VERSION = 1
"""Raised whenever the same weights and settings would give other joints than before."""

SHARES = ("pck@0.05", "pck@0.1", "pck@0.2")
"""The values of `PCK` that are logged, with `_` for `@`."""

EXAMPLES = 8
"""Crops kept as examples for the dashboard."""


class ImageStage(Stage):
    """Base of the stages with 2D and with 3D heatmaps.

    A subclass writes `forward` (crops -> heatmaps), `loss` and `find_joints`. `normalise` turns
    crops into the input of the network: channel order, mean and deviation are those of the weights
    (RGB and ImageNet's for new networks), and pass with them to every checkpoint and to a stage
    that starts from it.

    Batches: see `pipeline.heatmap.data.Crops`. Logged: `train/loss`; `val/` and `test/` `loss` and
    `pck_0.05`, `pck_0.1`, `pck_0.2`, the share of joints found within that fraction of the person's
    size in the whole image; `oks_ap` for people of COCO and `pckh_0.5` for people of MPII.

    Args:
        net: Network, normalised images (B, 3, H, W) -> heatmaps.
        optimizer: Optimizer class and its arguments.
        schedule: Learning-rate factor by step; none keeps the rate constant.
        skeleton: Name of the joint set on axis J.
        input_size: Width and height of the crops in pixels.
        padding: Size of a crop relative to the person's box.
        published_cells: Pixel x belongs to heatmap cell x/4, as in published networks.
        flip_test: Detect in each crop and in its mirror image and average the results.
        channels_last: Store weights and features with channels last, which is faster.
        reduced_decoding: Detect in crops of images that are decoded as in training, see the data.
        pretrained: Checkpoint whose weights a fresh fit starts from.

    Attributes:
        decoding: How joints are read from heatmaps, for `settings`.
        has_folded_norms: Whether `fold_norms` changed the network.
        report: Values of `PCK` of the last validation or test.
        examples: A few crops of the last validation or test: image, heatmaps, joints2d and truth in
            pixels of the crop, score, name.
    """

    linked_arguments = ("skeleton", "input_size", "padding", "reduced_decoding")
    not_in_protocol = NOT_IN_PROTOCOL | {
        "model.channels_last": "the layout of memory, not the result",
        "data.augmentation": "training crops only",
        "data.evaluation_batch": "the order of work, not its result",
        "data.seed": "training crops only",
    }
    decoding: str

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable,
        schedule: Schedule | None,
        *,
        skeleton: str,
        input_size: tuple[int, int],
        padding: float,
        published_cells: bool,
        flip_test: bool,
        channels_last: bool,
        reduced_decoding: bool,
        pretrained: str | None,
    ) -> None:
        super().__init__(optimizer, schedule, pretrained)
        self.skeleton = get_skeleton(skeleton)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.input_size, self.padding, self.flip_test = input_size, padding, flip_test
        self.offset = targets.PUBLISHED_CELLS if published_cells else targets.EXACT_CELLS
        self.normalise = ImageNormaliser()
        self.has_folded_norms, self.reduced_decoding = False, reduced_decoding
        self.losses = nn.ModuleDict({"val": WeightedMean(), "test": WeightedMean()})
        joints = self.skeleton.joints
        self.hits = nn.ModuleDict({"val": PCK(joints), "test": PCK(joints)})
        self.benchmark_metrics: list[BenchmarkMetric] = []
        self.source_hits: PCKPerSource | None = None
        self.examples: list[dict[str, Any]] = []
        self.report: dict[str, float] = {}

    def prediction_facts(self, index: NDArray[np.int64]) -> dict[str, Any]:
        """Joint set, frame of reference, names of the samples if they have some."""
        samples = self.data_module.evaluation_sets["test"]
        names = {"ids": [samples.ids[i] for i in index]} if samples.ids else {}
        return {**self.skeleton.facts(), "unit": "pixel", "frame": PIXEL_FRAME, **names}

    def protocol_parts(self, split: Split) -> dict[str, str]:
        """See `Stage.protocol_parts`."""
        return _protocol_parts(self, super().protocol_parts(split), split)

    def normalised(self, images: Tensor) -> Tensor:
        """Input of the network from crops: uint8 (B, H, W, 3) -> (B, 3, H, W)."""
        found = self.normalise(images).contiguous(memory_format=self.layout)
        return found.to(network_type(self.net))

    def transferred_prefixes(self, source_stage: str, *, fitting: bool) -> tuple[str, ...]:
        """All of `net`, and the input that it was trained on."""
        return ("net.", NORMALISE)

    check_source = staticmethod(check_stored_input)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the stage of a checkpoint; an old one of a run gets the input that it had: RGB."""
        super().on_load_checkpoint(checkpoint)
        self.check_source(checkpoint, "this checkpoint")
        checkpoint["state_dict"] = stored_input(ImageInput()) | checkpoint["state_dict"]

    def on_fit_start(self) -> None:
        """Print the input of the network."""
        self.print(f"{self.stage}: input of the network: {self.normalise.expected}")

    def loss(self, heatmaps: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Loss of the network's output for a batch of crops, a scalar."""
        raise NotImplementedError

    def find_joints(self, images: Tensor, heatmaps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read the joints from the network's output; with the flip test, also of mirrored crops.

        Args:
            images: The crops, RGB, uint8, (B, H, W, 3).
            heatmaps: The network's output for them.

        Returns:
            Joints (B, J, 2 or 3), of which x and y are in pixels of the crop; scores (B, J); 2D
            heatmaps (B, J, H/4, W/4).
        """
        raise NotImplementedError

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of crops."""
        self.log_in_training("train/loss", loss := self.loss(self(batch["image"]), batch))
        return loss

    def begin(self, split: Split) -> None:
        """Reset the examples and metrics of the last evaluation."""
        self.examples = []
        cast(PCK, self.hits[split]).reset()
        crops = self.data_module.evaluation_sets[split]
        self.benchmark_metrics = make_benchmark_metrics(crops.truths, self.skeleton, self.device)
        self.source_hits = None
        if len(crops.source_names) > 1:
            per_source = PCKPerSource(crops.source_names, self.skeleton.joints)
            self.source_hits = per_source.to(self.device)

    def update_metrics(
        self,
        split: Split,
        batch: Mapping[str, Tensor],
        loss: Tensor,
        joints2d: Tensor,
        score: Tensor,
        weight: Tensor | None = None,
    ) -> None:
        """Add the joints found in a batch of crops to the metrics.

        Args:
            split: val or test.
            batch: Batch of crops, see `pipeline.heatmap.data.Crops`.
            loss: Loss of the batch.
            joints2d: Joints in pixels of the crop, (B, J, 2).
            score: Scores of the joints, (B, J).
            weight: Number of values that the loss is a mean of; the number of people by default.
        """
        mean, hits = cast(WeightedMean, self.losses[split]), cast(PCK, self.hits[split])
        mean.update(loss, weight=len(joints2d) if weight is None else weight)
        self.log(f"{split}/loss", mean)
        found = to_image_pixels(joints2d, batch["matrix"])
        true = to_image_pixels(batch["joints2d"], batch["matrix"])
        hits.update(found, true, batch["scale"], batch["weight"] > 0)
        if self.source_hits is not None:
            origin = self.data_module.evaluation_sets[split].origin_of(batch["index"])
            self.source_hits.update(origin, found, true, batch["scale"], batch["weight"] > 0)
        area = shown_areas(batch["matrix"], self.input_size)
        for benchmark_metric in self.benchmark_metrics:
            benchmark_metric.update(batch["index"], found, score, area)

    def conclude(self, split: Split) -> None:
        """Log the shares of joints found and the benchmark metrics; print the test's."""
        self.report = cast(PCK, self.hits[split]).compute()
        for name in SHARES:
            if math.isfinite(self.report[name]):  # else nothing is labelled, as on detected boxes
                metric = f"{split}/{name.replace('@', '_')}"
                self.log(metric, self.report[name], prog_bar=name == "pck@0.1")
        if self.source_hits is not None:
            _log_sources(self, self.source_hits, split)
        _log_benchmarks(self, split)

    @torch.no_grad()
    def detect(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Joints in crops, as the detection cache stores them.

        Args:
            images: RGB, uint8, (B, H, W, 3), cut with this module's `input_size` and `padding`.

        Returns:
            Joints in pixels of the crop, (B, J, 2), and their scores, (B, J); both float32.
        """
        joints, score, _ = self.find_joints(images, self(images))
        return joints[..., :2].contiguous(), score

    def fold_norms(self) -> None:
        """Fold the batch norms of our networks into the convolutions; take the digest before."""
        self.has_folded_norms = isinstance(self.net, HRNet | ResNet)
        if self.has_folded_norms:
            self.net = fold_norms(self.net).to(memory_format=self.layout)  # type: ignore[call-overload]

    def settings(self) -> dict[str, Any]:
        """All settings besides the weights that affect a detection, as plain types."""
        changed = {"norms": "folded"} if self.has_folded_norms else {}
        changed |= {"decoding": "reduced"} if self.reduced_decoding else {}
        return changed | {
            "version": DETECTION_VERSION,
            "joints": self.skeleton.name,
            "input_size": list(self.input_size),
            "padding": self.padding,
            "cell_offset": self.offset,
            "decode": self.decoding,
            "flip_test": self.flip_test,
        }

    @property
    def flip_columns(self) -> int:
        """Columns that the heatmap of a mirrored crop is shifted by after it is mirrored back.

        Cell c mirrors to W/4-1-c exactly, and to W/4-1/4-c where pixel x is in cell x/4.
        """
        return round((targets.EXACT_CELLS - self.offset) * 2 / targets.STRIDE)


def _protocol_parts(stage: ImageStage, parts: dict[str, str], split: Split) -> dict[str, str]:
    """Parts of the protocol line of all 2D stages, besides those of every stage."""
    width, height = stage.input_size
    published = stage.offset == targets.PUBLISHED_CELLS
    data = stage.data_module
    images = data.evaluation_sets.get(split)  # known after setup
    content = f": {images.describe()}" if images else ""
    return parts | {
        "data.source": f"{parts['data.source']}{content}",
        "data.skeleton": stage.skeleton.name,
        "data.midpoints": "" if data.midpoints else "midpoints unlabelled",
        "data.input_size": f"{width}x{height} {stage.normalise.expected.channels}",
        "data.padding": f"padding {stage.padding:g}",
        "data.reduced_decoding": "reduced decoding" if data.reduced_decoding else "",
        "model.published_cells": f"{'published' if published else 'exact'} cells",
        "model.flip_test": f"flip test {'on' if stage.flip_test else 'off'}",
    }


def check_outputs(skeleton: Skeleton, count: int, what: str) -> None:
    """Check that a network gives one output for each joint of the joint set.

    Args:
        skeleton: Joint set of the stage.
        count: Number of outputs.
        what: Plural noun for an output.

    Raises:
        UsageError: If it does not.
    """
    joints = len(skeleton)
    if count != joints:
        raise UsageError(
            f"the network gives {count} {what} and {skeleton.name} has {joints} "
            f"joints; set --model.net.joints {joints}"
        )


def _log_sources(module: ImageStage, hits: PCKPerSource, split: Split) -> None:
    """Log the shares of joints found per source; print them for the test."""
    rows = hits.compute()
    show.log_table(module.trainer, f"{split}/pck_per_source", hits.columns, rows)
    if split == "test":
        module.print(_source_table(hits.columns, rows))


def _log_benchmarks(module: ImageStage, split: Split) -> None:
    """Log each benchmark metric, the first of each name; print all of them for the test."""
    logged = set()
    for benchmark_metric in module.benchmark_metrics:
        value, numbers = benchmark_metric.compute()
        name = f"{split}/{benchmark_metric.name}"
        if name not in logged:
            logged.add(name)
            if value >= 0:  # else nothing is labelled: NaN, or -1 of COCO's evaluation
                module.log(name, value)
            rows = [(key, _percent(share)) for key, share in numbers.items()]
            show.log_table(module.trainer, name, [benchmark_metric.title, "%"], rows)
        if split == "test":
            line = ", ".join(f"{key} {_percent(share):.1f}" for key, share in numbers.items())
            module.print(f"{benchmark_metric.title}: {line} % ({benchmark_metric.protocol()})")


def _source_table(columns: tuple[str, ...], rows: list[tuple[str | int | float, ...]]) -> str:
    """Rows of `PCKPerSource` as a plain table, shares in per cent."""
    cells = [
        [f"{cell:.1f}" if isinstance(cell, float) else printable(cell) for cell in row]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in [list(columns), *cells]
    )


def _percent(share: float) -> float:
    """Per cent; NaN for the -1 that COCO's evaluation gives where nobody is labelled."""
    return 100 * share if share >= 0 else math.nan


def make_examples(
    batch: Mapping[str, Tensor], heatmaps: Tensor, joints2d: Tensor, score: Tensor
) -> list[dict[str, Any]]:
    """Examples for the dashboard: the first crops of a batch as NumPy arrays.

    Args:
        batch: Batch of crops, see `pipeline.heatmap.data.Crops`.
        heatmaps: 2D heatmaps, (B, J, H/4, W/4).
        joints2d: Joints found, pixels of the crop, (B, J, 2).
        score: Scores of the joints, (B, J).

    Returns:
        A dictionary per crop: image, heatmaps, joints2d, truth (NaN where unlabelled), score, name.
    """
    truth = batch["joints2d"].masked_fill(batch["weight"][..., None] == 0, torch.nan)
    kept = {"image": batch["image"], "heatmaps": heatmaps, "joints2d": joints2d}
    kept |= {"truth": truth, "score": score}
    arrays = {name: tensor[:EXAMPLES].cpu().numpy() for name, tensor in kept.items()}
    return [
        {name: array[i] for name, array in arrays.items()} | {"name": str(int(batch["index"][i]))}
        for i in range(len(arrays["image"]))
    ]


def shown_areas(matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """Areas that crops show, square pixels of the whole images, (B,), float64.

    Args:
        matrix: Affine maps from pixels of the image to pixels of the crop, (B, 2, 3).
        size: Width and height of the crops in pixels.
    """
    return size[0] * size[1] / torch.linalg.det(matrix[:, :, :2].double()).abs()


def to_image_pixels(joints2d: Tensor, matrix: Tensor) -> Tensor:
    """Pixels of crops -> pixels of whole images.

    Args:
        joints2d: Pixels of the crops, (B, J, 2).
        matrix: Affine maps from pixels of the image to pixels of the crop, (B, 2, 3).

    Returns:
        Pixels of the whole images, (B, J, 2), float64.
    """
    matrix = matrix.double()
    moved = joints2d.double() - matrix[:, None, :, 2]
    return torch.linalg.solve(matrix[:, None, :, :2], moved[..., None])[..., 0]
