"""The data module of the heatmap stage: crops of people as uint8 images, with their joints."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.datasets.mixed import convert_joint_set
from pipeline.datasets.photos import with_reduced_decoding
from pipeline.errors import DataError, UsageError
from pipeline.heatmap.crop import (
    Augmentation,
    apply_affine,
    augment_images,
    augmented_matrices,
    crop_matrix,
    tight_boxes,
)
from pipeline.skeleton import Skeleton, get_skeleton
from pipeline.sources import ImageSource, Samples, Split
from pipeline.training.loader import BatchKey, BatchSet
from pipeline.training.stage import StageData

HRNET_AUGMENTATION = Augmentation()
"""Augmentation that HRNet was trained with on COCO."""


class Crops:
    """Batches of crops around people, augmented for training or plain.

    A batch has these NumPy arrays:

    ============= ================ =======================================================
    `image`       (B, H, W, 3)     RGB, uint8
    `joints2d`    (B, J, 2)        pixels of the crop, float32; 0 where `weight` is 0
    `weight`      (B, J)           1 for joints that are labelled and inside the image
    `matrix`      (B, 2, 3)        from pixels of the whole image to pixels of the crop
    `scale`       (B,)             longer side of the tight box of those joints, in pixels
                                   of the whole image: PCK is relative to it
    `index`       (B,)             indices of the samples in the source
    ============= ================ =======================================================

    Args:
        samples: People; their joints are converted to `skeleton` by name, and a joint that they
            lack has weight 0. People whose box is not finite (out of the image) are left out.
        skeleton: Joint set of the network.
        size: Width and height of the crops in pixels.
        padding: Size of a crop relative to the person's box.
        augmentation: Random variation of the crops; none for plain crops.
        seed: Seed of the augmentation.
        midpoints: Whether spine and thorax are labelled where they are approximated by a midpoint
            of other joints.

    Raises:
        DataError: If nobody is left, or if they share no joint with `skeleton`.
    """

    def __init__(
        self,
        samples: Samples,
        skeleton: Skeleton,
        size: tuple[int, int],
        *,
        padding: float = 1.25,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        midpoints: bool = True,
    ) -> None:
        self.people = np.flatnonzero(np.isfinite(samples.boxes).all(axis=1))
        if not len(self.people):
            raise DataError("there is no image with a person in this split; check the data source")
        converted = convert_joint_set(samples, skeleton)
        self.skeleton, self.size, self.padding = skeleton, size, padding
        self.augmentation, self.seed = augmentation, seed
        self.images, self.boxes, self.truths = samples.images, samples.boxes, samples.truths
        self.ids = samples.ids
        self.source_names, self.source_index = samples.source_names, samples.source_index
        self.joints2d = converted.joints2d
        self.labelled = converted.labelled & np.isfinite(self.joints2d).all(axis=-1)
        if not midpoints and converted.approximate is not None:
            self.labelled &= ~converted.approximate

    def __len__(self) -> int:
        return len(self.people)

    def origin_of(self, index: Tensor) -> Tensor:
        """Index into `source_names` of samples with these indices, (B,)."""
        assert self.source_index is not None
        return torch.from_numpy(self.source_index)[index.cpu()].to(index.device)

    def describe(self) -> str:
        """Number of images, of each source where there are several."""
        if self.source_index is None:
            return f"{len(self)} images"
        counts = np.bincount(self.source_index[self.people], minlength=len(self.source_names))
        return " + ".join(
            f"{count} images of {name}"
            for name, count in zip(self.source_names, counts.tolist(), strict=True)
        )

    def __getitem__(self, key: BatchKey) -> dict[str, Any]:
        """The batch of these samples in this epoch."""
        epoch, index = key[0], self.people[key[1]]
        boxes, joints2d = self.boxes[index].astype(np.float64), self.joints2d[index]
        sizes = np.array([self.images.size(i) for i in index.tolist()])
        inside = ((joints2d >= -0.5) & (joints2d <= sizes[:, None] - 0.5)).all(axis=-1)
        labelled = self.labelled[index] & inside
        box = tight_boxes(joints2d, labelled)
        scale = np.nan_to_num(box[:, 2:].max(axis=1)).astype(np.float32)
        if self.augmentation is None:
            matrix = crop_matrix(boxes, self.size, padding=self.padding)
            image = self._cut(index, matrix)
            cropped = apply_affine(matrix, joints2d)
        else:
            sample_key = (self.seed, epoch, index)
            matrix, mirrored = augmented_matrices(
                boxes,
                joints2d,
                labelled,
                self.size,
                skeleton=self.skeleton,
                augmentation=self.augmentation,
                padding=self.padding,
                key=sample_key,
            )
            image = augment_images(
                self._cut(index, matrix), augmentation=self.augmentation, key=sample_key
            )
            cropped = apply_affine(matrix, joints2d)
            swap = list(self.skeleton.swap)
            cropped = np.where(mirrored[:, None, None], cropped[:, swap], cropped)
            labelled = np.where(mirrored[:, None], labelled[:, swap], labelled)
        return {
            "image": image,
            "joints2d": np.where(labelled[..., None], cropped, 0.0).astype(np.float32),
            "weight": labelled.astype(np.float32),
            "matrix": matrix,
            "scale": scale,
            "index": index,
        }

    def _cut(self, index: NDArray[np.int64], matrices: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Crops of these samples, RGB, (B, H, W, 3)."""
        crops = np.empty((len(index), self.size[1], self.size[0], 3), np.uint8)
        for i, (sample, matrix) in enumerate(zip(index.tolist(), matrices, strict=True)):
            crops[i] = self.images.crop(sample, matrix, self.size)
        return crops


class HeatmapDataModule(StageData):
    """Crops of a source's people for a heatmap network; see `Crops` for what is in a batch.

    Args:
        source: Data source with images and joints.
        skeleton: Name of the network's joint set.
        input_size: Width and height of the crops in pixels: multiples of 32.
        padding: Size of a crop relative to the person's box.
        augmentation: Random variation of the training crops.
        batch_size: Training samples per batch and process.
        evaluation_batch: Samples per batch in validation and test.
        workers: DataLoader workers of each process.
        seed: Seed of shuffling and augmentation.
        midpoints: Label spine and thorax also where a data set lacks them (MPII, COCO), as
            midpoints of other joints, which are not quite the same places.
        reduced_decoding: Decode a JPEG at 1/2, 1/4 or 1/8 of its size where the crop is that much
            smaller: faster, with other pixels than in published code.

    Raises:
        UsageError: If a size or a name is not valid.
    """

    source: ImageSource

    def __init__(
        self,
        source: ImageSource,
        *,
        skeleton: str = "H36M17",
        input_size: tuple[int, int] = (192, 256),
        padding: float = 1.25,
        augmentation: Augmentation = HRNET_AUGMENTATION,
        batch_size: int = 32,
        evaluation_batch: int = 32,
        workers: int = 0,
        seed: int = 0,
        midpoints: bool = True,
        reduced_decoding: bool = False,
    ) -> None:
        super().__init__(batch_size=batch_size, workers=workers, seed=seed)
        if min(input_size) < 32 or any(side % 32 for side in input_size):
            raise UsageError(f"input_size is {input_size}; width and height are multiples of 32")
        self.source, self.skeleton = source, get_skeleton(skeleton)
        self.input_size, self.padding, self.midpoints = input_size, padding, midpoints
        self.augmentation, self.evaluation_batch = augmentation, evaluation_batch
        self.evaluation_workers, self.reduced_decoding = workers, reduced_decoding

    def training_set(self) -> BatchSet:
        """Augmented crops of the training split."""
        return self._crops("train", self.augmentation)

    def evaluation_set(self, split: Split) -> BatchSet:
        """Plain crops of a split."""
        return self._crops(split, None)

    def decoded(self, samples: Samples) -> Samples:
        """Samples whose images are decoded as `reduced_decoding` tells."""
        if not self.reduced_decoding:
            return samples
        return dataclasses.replace(samples, images=with_reduced_decoding(samples.images))

    def _crops(self, split: Split, augmentation: Augmentation | None) -> Crops:
        return Crops(
            self.decoded(self.source.samples(split)),
            self.skeleton,
            self.input_size,
            padding=self.padding,
            augmentation=augmentation,
            seed=self.seed,
            midpoints=self.midpoints,
        )
