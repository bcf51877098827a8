"""What room 1b sees: crops whose joints have depth, beside crops whose joints have none."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline import rng
from pipeline.datasets.mixed import Mixed
from pipeline.errors import DataError, UsageError
from pipeline.heatmap.crop import Augmentation
from pipeline.heatmap.data import Crops, HeatmapDataModule
from pipeline.skeleton import Skeleton, conversion
from pipeline.sources import ImageSource, Samples, Split
from pipeline.training.loader import BatchKey, BatchSet, ResumableLoader, make_loader

PAPER004_AUGMENTATION = Augmentation(
    rotation=15.0, rotation_chance=1.0, scale=0.3, shift=0.02, half_body=0.0
)
"""Flips, turns up to 30 degrees, zooms up to 30 % and shifts up to 2 % (paper 004, sec. 3.5)."""


class CropsWithDepth(Crops):
    """Crops with the depth of joints; see `pipeline.heatmap.data.Crops` for the rest.

    A batch has besides:

    ============= ================ =======================================================
    `depth`       (B, J)           behind the root, metres, float32; 0 where unknown
    `has_depth`   (B, J)           1 where `weight` is 1 and the depth is known
    `joints3d`    (B, J, 3)        camera frame of the whole image, metres, float32; not
                                   mirrored or turned; 0 where `scored` is 0
    `focal`       (B, 2)           pixels of the whole image; 1 where `scored` is 0
    `principal`   (B, 2)           pixels of the whole image; 0 where `scored` is 0
    `scored`      (B,)             1 where all joints and the camera are known
    `action`      (B,)             number of the action in `actions`
    ============= ================ =======================================================

    Flips, turns and zooms of a crop leave depth as it is.
    """

    def __init__(self, samples: Samples, skeleton: Skeleton, *args: Any, **kwargs: Any) -> None:
        super().__init__(samples, skeleton, *args, **kwargs)
        N = len(samples)
        self.joints3d = np.full((N, len(skeleton), 3), np.nan, np.float32)
        if samples.joints3d is not None:
            how = conversion(samples.skeleton, skeleton, allow_missing=True)
            self.joints3d = how.joints(samples.joints3d).astype(np.float32)
        unknown = np.full((N, 2), np.nan)
        self.focal = unknown if samples.focal is None else samples.focal
        self.principal = unknown if samples.principal is None else samples.principal
        self.depth = self.joints3d[..., 2] - self.joints3d[:, skeleton.root, None, 2]
        lens = np.isfinite(np.concatenate([self.focal, self.principal], axis=1)).all(axis=1)
        posed = np.isfinite(self.joints3d).all(axis=(1, 2))
        self.scored: NDArray[np.bool_] = np.asarray(posed & lens)
        names = samples.actions or ("all",) * N
        self.actions = sorted(set(names))
        self.action = np.searchsorted(self.actions, names)

    def has_depth(self) -> NDArray[np.bool_]:
        """Which of its people have joints with depth, (N,)."""
        return np.isfinite(self.depth[self.people]).any(axis=1)

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """The batch of these samples in this epoch."""
        batch = super().__getitem__(key)
        index = batch["index"]
        depth = self.depth[index]
        mirrored = np.linalg.det(batch["matrix"][:, :, :2]) < 0
        depth = np.where(mirrored[:, None], depth[:, list(self.skeleton.swap)], depth)
        known = np.isfinite(depth) & (batch["weight"] > 0)
        scored = self.scored[index]
        return batch | {
            "depth": np.where(known, depth, 0.0).astype(np.float32),
            "has_depth": known.astype(np.float32),
            "joints3d": np.where(scored[:, None, None], self.joints3d[index], 0.0),
            "focal": np.where(scored[:, None], self.focal[index], 1.0),
            "principal": np.where(scored[:, None], self.principal[index], 0.0),
            "scored": scored,
            "action": self.action[index],
        }


class HalfDepthBatches:
    """Batches of which one half has joints with depth and the other half has none.

    A sample of the set is a pair of people, one of each kind. The larger kind comes once per epoch,
    the smaller one as often as it takes, varied anew each time.

    Args:
        crops: Of both kinds.
        seed: Of who meets whom.

    Source: paper 004, sec. 3.4. Differs from the paper: it does not say how the two are mixed.
    """

    def __init__(self, crops: CropsWithDepth, *, seed: int) -> None:
        deep = crops.has_depth()
        self.crops, self.seed = crops, seed
        self.halves = {"deep": np.flatnonzero(deep), "flat": np.flatnonzero(~deep)}

    def __len__(self) -> int:
        return max(map(len, self.halves.values()))

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """The batch of these pairs in this epoch: those with depth first."""
        epoch, pairs = key
        people, rounds = [], []
        for name, half in self.halves.items():
            shift = int(rng.bits(self.seed, name, epoch, lanes=1)[0] % np.uint64(len(half)))
            lap, place = np.divmod(pairs + shift, len(half))
            people.append(half[place])
            rounds.append(epoch * (len(self) // len(half) + 2) + lap)
        # Who comes twice in an epoch must not look the same twice: a lap counts as an epoch.
        laps = cast(int, np.concatenate(rounds))
        return self.crops[(laps, np.concatenate(people))]


class IntegralDataModule(HeatmapDataModule):
    """Crops for a network with 3D heatmaps: people with depth, and people on photographs without.

    Where the training split has people of both kinds, half of every batch is of each; see `HalfDepthBatches`.
    Validation and test are on `source` alone. See `CropsWithDepth` for what is in a batch.

    Args:
        source: Where images and joints come from; some of its people have joints in 3D.
        photographs: Images for training besides, with joints in 2D.
        skeleton: Name of the network's joint set.
        input_size: Width and height of what the network sees: multiples of 32.
        padding: Factor on the boxes.
        augmentation: How training varies the crops.
        batch_size: Training samples per batch and process.
        evaluation_batch: Samples per batch in validation and test.
        workers: Loader processes while training.
        seed: Of order and augmentation.

    Raises:
        UsageError: If a size or a name cannot be.
    """

    def __init__(
        self,
        source: ImageSource,
        photographs: ImageSource | None = None,
        *,
        skeleton: str = "H36M18",
        input_size: tuple[int, int] = (256, 256),
        padding: float = 1.25,
        augmentation: Augmentation = PAPER004_AUGMENTATION,
        batch_size: int = 32,
        evaluation_batch: int = 32,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            source,
            skeleton=skeleton,
            input_size=input_size,
            padding=padding,
            augmentation=augmentation,
            batch_size=batch_size,
            evaluation_batch=evaluation_batch,
            workers=workers,
            seed=seed,
        )
        self.photographs = photographs

    def describe(self) -> str:
        """Where the data come from, in a line."""
        if self.photographs is None:
            return self.source.describe()
        return f"{self.source.describe()}; 2D alone from {self.photographs.describe()}"

    def setup(self, stage: str) -> None:
        """Read the splits that Lightning's stage needs.

        Raises:
            DataError: If files are missing or damaged, a split is empty, or nothing to train on or
                to validate with has depth.
            UsageError: If a batch cannot be halved.
        """
        super().setup(stage)
        if stage == "fit":
            val = cast(CropsWithDepth, self.evaluation_sets["val"])
            if not val.scored[val.people].any():
                raise self._no_depth()

    def training_set(self) -> BatchSet:
        """Augmented crops of the training split; halves of a batch where some have no depth."""
        crops = self._crops("train", self.augmentation)
        deep = crops.has_depth()
        if not deep.any():
            raise self._no_depth()
        if deep.all():
            return crops
        if self.batch_size % 2:
            raise UsageError(
                f"batch_size is {self.batch_size}; half of a batch has depth: give an even one"
            )
        return HalfDepthBatches(crops, seed=self.seed)

    def _no_depth(self) -> DataError:
        return DataError(
            f"{self.source.describe()}: has no joints in 3D with a known camera in its "
            "training or validation split; depth cannot be learned from it"
        )

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches of the training split."""
        size = (
            self.batch_size // 2
            if isinstance(self.train_set, HalfDepthBatches)
            else self.batch_size
        )
        return make_loader(self.train_set, size, shuffle=True, seed=self.seed, workers=self.workers)

    def _crops(self, split: Split, augmentation: Augmentation | None) -> CropsWithDepth:
        source = self.source
        if split == "train" and self.photographs is not None:
            source = Mixed([source, self.photographs], skeleton=self.skeleton.name)
        return CropsWithDepth(
            source.samples(split),
            self.skeleton,
            self.input_size,
            padding=self.padding,
            augmentation=augmentation,
            seed=self.seed,
        )
