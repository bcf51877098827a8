"""The data module of the integral stage: crops whose joints have depth, and crops without depth."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline import rng
from pipeline.datasets.mixed import MixedSource
from pipeline.errors import DataError, UsageError
from pipeline.heatmap.crop import Augmentation, crop_matrix
from pipeline.heatmap.data import Crops, HeatmapDataModule
from pipeline.skeleton import Skeleton, make_conversion
from pipeline.sources import ImageSource, Samples, Source, Split
from pipeline.training.loader import BatchKey, BatchSet, ResumableLoader, make_loader

PAPER004_AUGMENTATION = Augmentation(
    rotation=15.0, rotation_chance=1.0, scale=0.3, shift=0.02, half_body=0.0
)
"""Flips, rotations up to 30 degrees, scales up to 30 %, shifts up to 2 % (paper 004, sec. 3.5)."""


class CropsWithDepth(Crops):
    """Batches of crops whose joints may have depth.

    A batch has these NumPy arrays besides those of `pipeline.heatmap.data.Crops`:

    ============= ================ =======================================================
    `depth`       (B, J)           behind the root, metres in the size in which the crop
                                   shows the person, float32; 0 where unknown
    `has_depth`   (B, J)           1 where `weight` is 1 and the depth is known
    `joints3d`    (B, J, 3)        camera frame of the whole image, metres, float32; not
                                   augmented; 0 where `evaluated` is false
    `focal`       (B, 2)           pixels of the whole image; 1 where `evaluated` is false
    `principal`   (B, 2)           pixels of the whole image; 0 where `evaluated` is false
    `evaluated`   (B,)             whether all joints and the camera are known in 3D, so
                                   that the errors in 3D are computed
    `action`      (B,)             index of the action in `actions`
    ============= ================ =======================================================

    Flips, rotations and shifts of a crop do not change the depth. An augmented crop that shows the
    person half as large as the plain crop has half the depth: the volume keeps the proportions of
    the body, as in Integral's code, which divides depth by the scale. A plain crop has the depth in
    metres, so that nothing needs to be undone in a test.

    Args:
        samples: People; those without joints in 3D have no depth.
        skeleton: Joint set of the network.
        args: Further arguments of `Crops`.
        kwargs: Further arguments of `Crops`.
    """

    def __init__(self, samples: Samples, skeleton: Skeleton, *args: Any, **kwargs: Any) -> None:
        super().__init__(samples, skeleton, *args, **kwargs)
        N = len(samples)
        self.joints3d = np.full((N, len(skeleton), 3), np.nan, np.float32)
        if samples.joints3d is not None:
            convert = make_conversion(samples.skeleton, skeleton, allow_missing=True)
            self.joints3d = convert.joints(samples.joints3d).astype(np.float32)
        unknown = np.full((N, 2), np.nan)
        self.focal = unknown if samples.focal is None else samples.focal
        self.principal = unknown if samples.principal is None else samples.principal
        self.depth = self.joints3d[..., 2] - self.joints3d[:, skeleton.root, None, 2]
        camera = np.concatenate([self.focal, self.principal], axis=1)
        has_camera = np.isfinite(camera).all(axis=1)
        has_joints = np.isfinite(self.joints3d).all(axis=(1, 2))
        self.evaluated: NDArray[np.bool_] = np.asarray(has_joints & has_camera)
        names = samples.actions or ("all",) * N
        self.actions = sorted(set(names))
        self.action = np.searchsorted(self.actions, names)

    def has_depth(self) -> NDArray[np.bool_]:
        """Whether each person has joints with depth, (N,)."""
        return np.isfinite(self.depth[self.people]).any(axis=1)

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """The batch of these samples in this epoch."""
        batch = super().__getitem__(key)
        index = batch["index"]
        depth = self.depth[index]
        mirrored = np.linalg.det(batch["matrix"][:, :, :2]) < 0
        depth = np.where(mirrored[:, None], depth[:, list(self.skeleton.swap)], depth)
        if self.augmentation is not None:
            plain = crop_matrix(self.boxes[index], self.size, padding=self.padding)
            depth = depth * _zoom(batch["matrix"], plain)[:, None]
        known = np.isfinite(depth) & (batch["weight"] > 0)
        evaluated = self.evaluated[index]
        return batch | {
            "depth": np.where(known, depth, 0.0).astype(np.float32),
            "has_depth": known.astype(np.float32),
            "joints3d": np.where(evaluated[:, None, None], self.joints3d[index], 0.0),
            "focal": np.where(evaluated[:, None], self.focal[index], 1.0),
            "principal": np.where(evaluated[:, None], self.principal[index], 0.0),
            "evaluated": evaluated,
            "action": self.action[index],
        }


def _zoom(matrices: NDArray[np.float64], plain: NDArray[np.float64]) -> NDArray[np.float64]:
    """Size of people in crops relative to their size in plain crops, (B, 2, 3) -> (B,)."""
    areas = [np.abs(np.linalg.det(each[:, :, :2])) for each in (matrices, plain)]
    return np.asarray(np.sqrt(areas[0] / areas[1]))


class HalfWithDepthBatches:
    """Batches of which one half has joints with depth and the other half has none.

    An item of the set is a pair of people, one of each kind. The larger kind comes once per epoch;
    the smaller kind is repeated to match it, with new augmentation each time.

    Args:
        crops: People of both kinds.
        seed: Seed of the pairing.

    Source: paper 004, sec. 3.4. Differs from the paper: it does not describe how the two are mixed.
    """

    def __init__(self, crops: CropsWithDepth, *, seed: int) -> None:
        has_depth = crops.has_depth()
        self.crops, self.seed = crops, seed
        # The names are part of the keys of the random numbers.
        self.halves = {"deep": np.flatnonzero(has_depth), "flat": np.flatnonzero(~has_depth)}

    def __len__(self) -> int:
        return max(map(len, self.halves.values()))

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """The batch of these pairs in this epoch: those with depth first."""
        epoch, pairs = key
        people, rounds = [], []
        for name, half in self.halves.items():
            shift = int(rng.random_bits(self.seed, name, epoch, lanes=1)[0] % np.uint64(len(half)))
            repeat, place = np.divmod(pairs + shift, len(half))
            people.append(half[place])
            rounds.append(epoch * (len(self) // len(half) + 2) + repeat)
        # Augmentation is keyed by the round, not the epoch: repeated people get other crops.
        epochs = cast(int, np.concatenate(rounds))
        return self.crops[(epochs, np.concatenate(people))]


class IntegralDataModule(HeatmapDataModule):
    """Crops for a network with 3D heatmaps: people with depth, and photographed people without.

    Where the training split has people of both kinds, half of every batch is of each; see
    `HalfWithDepthBatches`. Validation and test are on `source` alone. `CropsWithDepth` lists the
    arrays of a batch.

    Args:
        source: Data source with images and joints; some of its people have joints in 3D.
        photographs: Data source of further training images with joints in 2D; none to use none.
        skeleton: Name of the network's joint set.
        input_size: Width and height of the crops in pixels: multiples of 32.
        padding: Size of a crop relative to the person's box.
        augmentation: Random variation of the training crops.
        batch_size: Training samples per batch and process; even if some people have no depth.
        evaluation_batch: Samples per batch in validation and test.
        workers: DataLoader workers of each process.
        seed: Seed of shuffling, pairing and augmentation.
        midpoints: Label spine and thorax also where a data set lacks them (MPII, COCO), as
            midpoints of other joints, which are not quite the same places; PoseNet does not.
        reduced_decoding: Decode a JPEG at 1/2, 1/4 or 1/8 of its size where the crop is that much
            smaller: faster, with other pixels than in published code.

    Raises:
        UsageError: If a size or a name is not valid.
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
        midpoints: bool = True,
        reduced_decoding: bool = False,
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
            midpoints=midpoints,
            reduced_decoding=reduced_decoding,
        )
        self.photographs = photographs

    def describe(self) -> str:
        """Where the data come from, in one line."""
        if self.photographs is None:
            return self.source.describe()
        return f"{self.source.describe()}; 2D alone from {self.photographs.describe()}"

    def data_sources(self) -> list[Source]:
        """All data sources that are read."""
        return [source for source in (self.source, self.photographs) if source is not None]

    def setup(self, stage: str) -> None:
        """Read the splits that Lightning's stage needs.

        Raises:
            DataError: If files are missing or damaged, a split is empty, or nobody in the training
                or the validation split has depth.
            UsageError: If half of a batch has no depth and `batch_size` is odd.
        """
        super().setup(stage)
        if stage == "fit":
            val = cast(CropsWithDepth, self.evaluation_sets["val"])
            if not val.evaluated[val.people].any():
                raise self._no_depth()

    def training_set(self) -> BatchSet:
        """Augmented training crops; `HalfWithDepthBatches` where some have no depth."""
        crops = self._crops("train", self.augmentation)
        has_depth = crops.has_depth()
        if not has_depth.any():
            raise self._no_depth()
        if has_depth.all():
            return crops
        if self.batch_size % 2:
            raise UsageError(
                f"batch_size is {self.batch_size}; half of a batch has depth: give an even one"
            )
        return HalfWithDepthBatches(crops, seed=self.seed)

    def _no_depth(self) -> DataError:
        return DataError(
            f"{self.source.describe()}: has no joints in 3D with a known camera in its "
            "training or validation split; depth cannot be learned from it"
        )

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches of the training split."""
        items = self.batch_size
        if isinstance(self.train_set, HalfWithDepthBatches):
            items //= 2  # each is a pair of people
        return make_loader(
            self.train_set, items, shuffle=True, seed=self.seed, workers=self.workers
        )

    def _crops(self, split: Split, augmentation: Augmentation | None) -> CropsWithDepth:
        source = self.source
        if split == "train" and self.photographs is not None:
            source = MixedSource([source, self.photographs], skeleton=self.skeleton.name)
        return CropsWithDepth(
            self.decoded(source.samples(split)),
            self.skeleton,
            self.input_size,
            padding=self.padding,
            augmentation=augmentation,
            seed=self.seed,
            midpoints=self.midpoints,
        )
