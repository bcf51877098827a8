"""How room 1 learns: heatmaps from crops, scored as 2D joints; and how a detector is asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from pipeline import dashboard
from pipeline.checkpoint import hand_over
from pipeline.errors import UsageError
from pipeline.heatmap import targets
from pipeline.heatmap.data import skeleton_named
from pipeline.heatmap.judges import Judge, judges_of
from pipeline.heatmap.resnet import Normalise
from pipeline.metrics import PCK
from pipeline.stage import Schedule, Stage

DETECTION_VERSION = 1
"""Raised whenever the same weights and settings would give other joints than before."""

SHARES = ("pck@0.05", "pck@0.1", "pck@0.2")

Decode = Literal["quarter", "argmax", "expectation"]

DECODERS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "quarter": targets.decode,
    "argmax": targets.decode_argmax,
    "expectation": targets.decode_expectation,
}

EXAMPLES = 8
"""Validation pictures kept for the dashboard."""


class HeatmapModule(Stage):
    """Learns heatmaps of joints, and detects joints in crops.

    Batches: see `pipeline.heatmap.data.Crops`. Logged: `train/loss`; `val/` and `test/` `loss`,
    `pck_0.05`, `pck_0.1` and `pck_0.2`, the share of joints within that part of the person's size
    in the whole picture; of COCO's people `oks_ap` and of MPII's `pckh_0.5`, as these benchmarks
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
        super().__init__(optimizer, schedule)
        self.skeleton = skeleton_named(skeleton)
        heatmaps = getattr(getattr(net, "final_layer", None), "out_channels", len(self.skeleton))
        if heatmaps != len(self.skeleton):
            raise UsageError(
                f"the network gives {heatmaps} heatmaps and {skeleton} has {len(self.skeleton)} "
                f"joints; set --model.net.joints {len(self.skeleton)}"
            )
        if sigma <= 0:
            raise UsageError(f"sigma is {sigma}; it is a size in cells, above 0")
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.input_size, self.padding, self.sigma = input_size, padding, sigma
        self.encode = targets.encode_rounded if rounded else targets.encode
        self.offset = targets.PUBLISHED if published_cells else targets.EXACT
        self.decode, self.flip_test = decode, flip_test
        self.normalise = Normalise()
        self.losses = nn.ModuleDict({"val": MeanMetric(), "test": MeanMetric()})
        self.hits = nn.ModuleDict(
            {"val": PCK(self.skeleton.joints), "test": PCK(self.skeleton.joints)}
        )
        self.pretrained = pretrained
        self.examples: list[dict[str, Any]] = []
        self.report: dict[str, float] = {}
        self.judges: dict[str, list[Judge]] = {"val": [], "test": []}

    def forward(self, images: Tensor) -> Tensor:
        """Crops -> heatmaps.

        Args:
            images: RGB, uint8, (B, H, W, 3).

        Returns:
            float32, (B, J, H/4, W/4).
        """
        pictures = self.normalise(images).contiguous(memory_format=self.layout)
        heatmaps: Tensor = self.net(pictures)
        return heatmaps.float()

    def setup(self, stage: str) -> None:
        """Take over the weights of an earlier run; a checkpoint of this one, if given, comes after.

        Raises:
            UsageError: If nothing is to be trained and the file has not all of `net`.
        """
        if self.pretrained:
            report = hand_over(
                self,
                self.pretrained,
                stages=("heatmap",),
                passing=("net.",),
                whole=stage != "fit",
            )
            self.pretrained = None  # once: what is learned from here on stays
            self.origin = {"pretrained": report.plain()}
            self.print(f"heatmap: {report.text()}")

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of crops."""
        loss = self._loss(self(batch["image"]), batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the pictures and counts of the last validation."""
        self._open("val")

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Score the joints detected in a batch of crops."""
        self._score("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Log the share of joints that were found."""
        self._close("val")

    def on_test_epoch_start(self) -> None:
        """Forget the pictures and counts of the last test."""
        self._open("test")

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Score the joints detected in a batch of crops."""
        self._score("test", batch)

    def on_test_epoch_end(self) -> None:
        """Log the share of joints that were found, and print what they are shares of."""
        self._close("test")
        self.print(self.protocol("test"))
        shares = ", ".join(f"{name} {100 * self.report[name]:.1f} %" for name in SHARES)
        self.print(f"of the longer side of the joints' box: {shares}")

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Joints in pixels of whole pictures (B, J, 2), their scores, and the samples' indices."""
        joints2d, score = self.detect(batch["image"])
        return {
            "index": batch["index"],
            "joints2d": in_picture(joints2d, batch["matrix"]).float(),
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

    def settings(self) -> dict[str, Any]:
        """Everything besides the weights that decides what is detected, as plain values."""
        return {
            "version": DETECTION_VERSION,
            "joints": self.skeleton.name,
            "input_size": list(self.input_size),
            "padding": self.padding,
            "cell_offset": self.offset,
            "decode": self.decode,
            "flip_test": self.flip_test,
        }

    def _averaged(self, images: Tensor, heatmaps: Tensor) -> Tensor:
        if not self.flip_test:
            return heatmaps
        # Cell c mirrors to W/4-1-c exactly, and to W/4-1/4-c where pixel x is in cell x/4.
        columns = round((targets.EXACT - self.offset) * 2 / targets.STRIDE)
        mirrored = targets.flip_back(self(images.flip(2)), self.skeleton.swap, columns=columns)
        return mirrored.add_(heatmaps).mul_(0.5)

    def _read(self, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
        cells, score = DECODERS[self.decode](heatmaps)
        return targets.to_pixels(cells, offset=self.offset), score

    def _loss(self, heatmaps: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        size = (heatmaps.shape[-1], heatmaps.shape[-2])
        cells = targets.to_cells(batch["joints2d"].float(), offset=self.offset)
        weight = batch["weight"] * targets.in_reach(cells, size, sigma=self.sigma)
        return targets.heatmap_loss(heatmaps, self.encode(cells, size, sigma=self.sigma), weight)

    def protocol(self, split: str) -> str:
        """What a number of this run is a number of."""
        width, height = self.input_size
        flip = "on" if self.flip_test else "off"
        source = self.trainer.datamodule.source  # type: ignore[attr-defined]
        return (
            f"{split} split of {source.describe()}; {self.skeleton.name}, {width}x{height}, "
            f"decode {self.decode}, flip test {flip}"
        )

    def _open(self, split: str) -> None:
        self.examples = []
        cast(PCK, self.hits[split]).reset()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        truths = data.evaluation_sets[split].truths
        self.judges[split] = judges_of(truths, self.skeleton, self.device)

    def _close(self, split: str) -> None:
        self.report = cast(PCK, self.hits[split]).compute()
        log_found(self, split, self.report, self.judges[split])

    def _score(self, split: str, batch: Mapping[str, Tensor]) -> None:
        heatmaps = self(batch["image"])
        loss, hits = cast(MeanMetric, self.losses[split]), cast(PCK, self.hits[split])
        loss.update(self._loss(heatmaps, batch), weight=len(heatmaps))
        heatmaps = self._averaged(batch["image"], heatmaps)
        joints2d, score = self._read(heatmaps)
        hits.update(
            in_picture(joints2d, batch["matrix"]),
            in_picture(batch["joints2d"], batch["matrix"]),
            batch["scale"],
            batch["weight"] > 0,
        )
        for judge in self.judges[split]:
            judge.update(batch["index"], in_picture(joints2d, batch["matrix"]), score)
        self.log(f"{split}/loss", loss)
        if not self.examples:
            self.examples = examples_of(batch, heatmaps, joints2d, score)


def log_found(
    module: Stage, split: str, report: Mapping[str, float], judges: Sequence[Judge]
) -> None:
    """Log the share of joints found, and what the benchmarks of the split make of them.

    Args:
        module: Of which room.
        split: val or test; for test the benchmarks' numbers are printed too.
        report: Of `PCK`.
        judges: One per benchmark; where two have the same number, the first is logged.
    """
    for name in SHARES:
        if split == "val" or math.isfinite(report[name]):  # a detector's boxes have no labels
            known = f"{split}/{name.replace('@', '_')}"
            module.log(known, report[name], prog_bar=name == "pck@0.1")
    for number, judge in enumerate(judges):
        value, numbers = judge.compute()
        name = f"{split}/{judge.name}"
        if judge.name not in [other.name for other in judges[:number]]:
            module.log(name, value)
            rows = [(key, _percent(share)) for key, share in numbers.items()]
            dashboard.show_table(module.trainer, name, [judge.title, "%"], rows)
        if split == "test":
            line = ", ".join(f"{key} {_percent(share):.1f}" for key, share in numbers.items())
            module.print(f"{judge.title}: {line} % ({judge.protocol()})")


def _percent(share: float) -> float:
    """COCO's evaluation answers -1 where there is nobody to find."""
    return 100 * share if share >= 0 else math.nan


def examples_of(
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


def in_picture(joints2d: Tensor, matrix: Tensor) -> Tensor:
    """Pixels of crops -> pixels of whole pictures.

    Args:
        joints2d: (B, J, 2).
        matrix: From the picture to the crop, (B, 2, 3).

    Returns:
        (B, J, 2), float64.
    """
    matrix = matrix.double()
    moved = joints2d.double() - matrix[:, None, :, 2]
    return torch.linalg.solve(matrix[:, None, :, :2], moved[..., None])[..., 0]
