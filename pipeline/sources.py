"""Files on disk, and embedded people, as plain sequences and samples: no batches, no network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.camera import Camera
from pipeline.skeleton import Skeleton

Split = Literal["train", "val", "test"]


@runtime_checkable
class Images(Protocol):
    """Images that can be looked at through a crop: a video, a folder, or a renderer.

    A rendered image is drawn straight through the crop's camera, a stored one is warped: both
    give what a person would see who cut that piece out of the whole image.
    """

    def __len__(self) -> int:
        """Number of images."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of a whole image in pixels."""
        ...

    def crop(
        self, index: int, matrix: NDArray[np.float64], size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """A piece of an image.

        Args:
            index: Which image.
            matrix: Affine map from pixels of the whole image to pixels of the crop, (2, 3): a
                similarity, possibly mirrored.
            size: Width and height of the crop.

        Returns:
            RGB, (H, W, 3).

        Raises:
            DataError: If the image cannot be read whole.
        """
        ...

    def fingerprint(self, index: int) -> str:
        """Hexadecimal digest of everything that decides what the image looks like.

        The bytes of a file; renderer version, seed and settings of a rendering.
        """
        ...


@dataclass(frozen=True, eq=False)
class Sequence:
    """One person filmed by one camera.

    Args:
        name: Unique within its source.
        subject: Who.
        action: What, as tables group it.
        camera: Where from.
        fps: Frames per second, Hz.
        skeleton: The joint set of the arrays.
        joints3d: World metres, (T, J, 3), float32; none where only images exist.
        joints2d: Exact pixels, (T, J, 2), float32; none to project `joints3d` instead.
        images: One per frame; none where nothing can be seen.
        valid: Frames that may be trained on and scored, (T,); none where all are.
        group: A second grouping for tables (whether the action occurs in training, say), or "".
    """

    name: str
    subject: str
    action: str
    camera: Camera
    fps: float
    skeleton: Skeleton
    joints3d: NDArray[np.float32] | None = None
    joints2d: NDArray[np.float32] | None = None
    images: Images | None = None
    valid: NDArray[np.bool_] | None = None
    group: str = ""

    def __len__(self) -> int:
        arrays = (self.joints3d, self.joints2d, self.images)
        return next(len(array) for array in arrays if array is not None)


@dataclass(frozen=True, eq=False)
class CocoGroundTruth:
    """Which samples COCO's OKS-AP is computed of, and what it needs to know of them.

    Args:
        rows: The samples, ascending, (M,).
        annotations: COCO's annotation file; people in it who are no samples count as missed.
        image_ids: Of each sample's photograph, (M,).
        scores: Of each sample's box, (M,); 1 where boxes are exact.
        areas: Of each sample's box in square pixels, (M,).
        about: What boxes these are, for the line that says what the numbers are numbers of.
    """

    rows: NDArray[np.int64]
    annotations: str
    image_ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    areas: NDArray[np.float64]
    about: str


@dataclass(frozen=True, eq=False)
class MpiiGroundTruth:
    """Which samples MPII's PCKh is computed of, and what it compares them with.

    Args:
        rows: The samples, ascending, (M,).
        joints2d: Pixels of the photograph, MPII16, (M, 16, 2).
        labelled: Joints that count, (M, 16).
        head: Diagonal of the head's box in pixels, (M,).
        about: What head sizes these are.
    """

    rows: NDArray[np.int64]
    joints2d: NDArray[np.float64]
    labelled: NDArray[np.bool_]
    head: NDArray[np.float64]
    about: str


GroundTruth = CocoGroundTruth | MpiiGroundTruth


@dataclass(frozen=True, eq=False)
class Samples:
    """Single images of people with joints; sample i is on image i of `images`.

    Args:
        skeleton: The joint set of the arrays.
        images: One image per sample.
        joints2d: Pixels in the whole image, (N, J, 2), float32; NaN where unlabelled.
        labelled: Joints that may be trained on and scored, (N, J).
        boxes: x, y, width, height of the person in pixels, (N, 4), float32: the tight box of the
            joints where the data set has no box of its own.
        joints3d: Camera frame, metres, (N, J, 3), float32; none where only 2D is known.
        focal: Focal lengths of the image's camera in pixels, (N, 2); none where unknown.
        principal: Principal points in pixels, (N, 2); none where unknown.
        ids: How each sample is called in messages (a file, a frame of a sequence).
        actions: What the person of each sample does, as tables group it; none where unknown.
        truths: What published benchmarks need to know of the samples.
    """

    skeleton: Skeleton
    images: Images
    joints2d: NDArray[np.float32]
    labelled: NDArray[np.bool_]
    boxes: NDArray[np.float32]
    joints3d: NDArray[np.float32] | None = None
    focal: NDArray[np.float64] | None = None
    principal: NDArray[np.float64] | None = None
    ids: tuple[str, ...] | None = None
    actions: tuple[str, ...] | None = None
    truths: tuple[GroundTruth, ...] = ()

    def __len__(self) -> int:
        return len(self.joints2d)


class Source(Protocol):
    """Where data comes from; a class in `pipeline.datasets` that a config names by class_path.

    A source with motion has `sequences`, one with images to train a 2D stage on has `samples`;
    the embedded people have both. Constructors only keep their arguments; files are read when asked
    for.
    """

    @property
    def skeleton(self) -> Skeleton:
        """The joint set of its sequences and samples."""
        ...

    def describe(self) -> str:
        """One line for the first lines of a run: what this is, and from where."""
        ...


@runtime_checkable
class MotionSource(Source, Protocol):
    """A source of sequences."""

    def sequences(self, split: Split) -> list[Sequence]:
        """All sequences of a split, in a fixed order.

        Raises:
            DataError: If files are missing, damaged or not what they claim to be.
        """
        ...


@runtime_checkable
class ImageSource(Source, Protocol):
    """A source of single images with joints."""

    def samples(self, split: Split) -> Samples:
        """All samples of a split, in a fixed order.

        Raises:
            DataError: If files are missing, damaged or not what they claim to be.
        """
        ...


@dataclass(frozen=True, eq=False)
class VideoDetections:
    """2D joints of one person in a video.

    Args:
        skeleton: The joint set of the arrays.
        joints2d: Pixels, (T, J, 2), float32; NaN where missing.
        score: From 0, missing, on, (T, J), float32.
    """

    skeleton: Skeleton
    joints2d: NDArray[np.float32]
    score: NDArray[np.float32]
