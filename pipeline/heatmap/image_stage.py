"""The base of the stages that find joints in images: crops in, joints and their scores out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from pipeline.dashboard import show
from pipeline.errors import UsageError
from pipeline.heatmap import targets
from pipeline.heatmap.benchmark_metrics import BenchmarkMetric, make_benchmark_metrics
from pipeline.heatmap.data import get_skeleton
from pipeline.heatmap.resnet import Normalise
from pipeline.metrics.pck import PCK
from pipeline.sources import Split
from pipeline.training.schedules import Schedule
from pipeline.training.stage import Stage

DETECTION_VERSION = 1
"""Raised whenever the same weights and settings would give other joints than before."""

SHARES = ("pck@0.05", "pck@0.1", "pck@0.2")

EXAMPLES = 8
"""Validation images kept for the dashboard."""


class ImageStage(Stage):
    """What the stages with 2D and with 3D heatmaps share.

    Args:
        net: The network.
        optimizer: Makes the optimizer from the parameters.
        schedule: Learning-rate factor by step.
        skeleton: Name of the joint set on axis J.
        input_size: Width and height of crops.
        padding: Factor on the boxes that crops are cut around.
        published_cells: Take x/4 for the cell of pixel x, as published networks do.
        flip_test: Look at each crop and its mirror image and average.
        channels_last: Keep weights and features with channels last, which convolutions like better.
        pretrained: Checkpoint whose weights a fresh fit starts from.
    """

    linked_arguments = ("skeleton", "input_size", "padding")
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
        pretrained: str | None,
    ) -> None:
        super().__init__(optimizer, schedule, pretrained)
        self.skeleton = get_skeleton(skeleton)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.input_size, self.padding, self.flip_test = input_size, padding, flip_test
        self.offset = targets.PUBLISHED_CELLS if published_cells else targets.EXACT_CELLS
        self.normalise = Normalise()
        self.losses = nn.ModuleDict({"val": MeanMetric(), "test": MeanMetric()})
        self.hits = nn.ModuleDict(
            {"val": PCK(self.skeleton.joints), "test": PCK(self.skeleton.joints)}
        )
        self.benchmark_metrics: list[BenchmarkMetric] = []
        self.examples: list[dict[str, Any]] = []
        self.report: dict[str, float] = {}

    def require_outputs(self, count: int, what: str) -> None:
        """Check that the network gives one output for each joint of the joint set.

        Args:
            count: Number of outputs.
            what: Plural noun for an output.

        Raises:
            UsageError: If it does not.
        """
        joints = len(self.skeleton)
        if count != joints:
            raise UsageError(
                f"the network gives {count} {what} and {self.skeleton.name} has {joints} "
                f"joints; set --model.net.joints {joints}"
            )

    def normalised(self, images: Tensor) -> Tensor:
        """Crops as the network takes them: uint8 (B, H, W, 3) -> float32 (B, 3, H, W)."""
        return self.normalise(images).contiguous(memory_format=self.layout)

    def settings(self) -> dict[str, Any]:
        """Everything besides the weights that decides what is detected, as plain values."""
        return {
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
        """Columns that a mirrored heatmap is shifted by.

        Cell c mirrors to W/4-1-c exactly, and to W/4-1/4-c where pixel x is in cell x/4.
        """
        return round((targets.EXACT_CELLS - self.offset) * 2 / targets.STRIDE)

    def begin(self, split: Split) -> None:
        """Forget the images and counts of the last evaluation."""
        self.examples = []
        cast(PCK, self.hits[split]).reset()
        truths = self.data_module.evaluation_sets[split].truths
        self.benchmark_metrics = make_benchmark_metrics(truths, self.skeleton, self.device)

    def score_joints(
        self,
        split: Split,
        batch: Mapping[str, Tensor],
        loss: Tensor,
        joints2d: Tensor,
        score: Tensor,
    ) -> None:
        """Add the joints found in a batch of crops to the metrics.

        Args:
            split: val or test.
            batch: Crops; see `pipeline.heatmap.data.Crops`.
            loss: Loss of the batch.
            joints2d: Joints in pixels of the crop, (B, J, 2).
            score: Their scores, (B, J).
        """
        mean, hits = cast(MeanMetric, self.losses[split]), cast(PCK, self.hits[split])
        mean.update(loss, weight=len(joints2d))
        self.log(f"{split}/loss", mean)
        in_image = to_image_pixels(joints2d, batch["matrix"])
        exact = to_image_pixels(batch["joints2d"], batch["matrix"])
        hits.update(in_image, exact, batch["scale"], batch["weight"] > 0)
        for benchmark_metric in self.benchmark_metrics:
            benchmark_metric.update(batch["index"], in_image, score)

    def conclude(self, split: Split) -> None:
        """Log the share of joints that were found, and what the split's benchmarks report."""
        self.report = cast(PCK, self.hits[split]).compute()
        log_detections(self, split, self.report, self.benchmark_metrics)


def log_detections(
    module: Stage,
    split: str,
    report: Mapping[str, float],
    benchmark_metrics: Sequence[BenchmarkMetric],
) -> None:
    """Log the share of joints found, and what the benchmarks of the split make of them.

    Args:
        module: The stage that logs.
        split: val or test; for test the benchmarks' numbers are printed too.
        report: Of `PCK`.
        benchmark_metrics: One per benchmark; where two have the same number, the first is logged.
    """
    for name in SHARES:
        if split == "val" or math.isfinite(report[name]):  # a detector's boxes have no labels
            known = f"{split}/{name.replace('@', '_')}"
            module.log(known, report[name], prog_bar=name == "pck@0.1")
    for number, benchmark_metric in enumerate(benchmark_metrics):
        value, numbers = benchmark_metric.compute()
        name = f"{split}/{benchmark_metric.name}"
        if benchmark_metric.name not in [other.name for other in benchmark_metrics[:number]]:
            module.log(name, value)
            rows = [(key, _percent(share)) for key, share in numbers.items()]
            show.show_table(module.trainer, name, [benchmark_metric.title, "%"], rows)
        if split == "test":
            line = ", ".join(f"{key} {_percent(share):.1f}" for key, share in numbers.items())
            module.print(f"{benchmark_metric.title}: {line} % ({benchmark_metric.protocol()})")


def _percent(share: float) -> float:
    """COCO's evaluation answers -1 where there is nobody to find."""
    return 100 * share if share >= 0 else math.nan


def make_examples(
    batch: Mapping[str, Tensor], heatmaps: Tensor, joints2d: Tensor, score: Tensor
) -> list[dict[str, Any]]:
    """The first crops of a batch, with what was found and where joints are (NaN: unknown)."""
    truth = batch["joints2d"].masked_fill(batch["weight"][..., None] == 0, torch.nan)
    kept = {"image": batch["image"], "heatmaps": heatmaps, "joints2d": joints2d}
    kept |= {"truth": truth, "score": score}
    arrays = {name: tensor[:EXAMPLES].cpu().numpy() for name, tensor in kept.items()}
    return [
        {name: array[i] for name, array in arrays.items()} | {"name": str(int(batch["index"][i]))}
        for i in range(len(arrays["image"]))
    ]


def to_image_pixels(joints2d: Tensor, matrix: Tensor) -> Tensor:
    """Pixels of crops -> pixels of whole images.

    Args:
        joints2d: (B, J, 2).
        matrix: From the image to the crop, (B, 2, 3).

    Returns:
        (B, J, 2), float64.
    """
    matrix = matrix.double()
    moved = joints2d.double() - matrix[:, None, :, 2]
    return torch.linalg.solve(matrix[:, None, :, :2], moved[..., None])[..., 0]
