"""Data sources: what a data set gives to the stages, as sequences (motion) and samples (images)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.camera import Camera
from pipeline.skeleton import Skeleton

Split = Literal["train", "val", "test"]


def true_runs(mask: NDArray[np.bool_]) -> list[slice]:
    """Uninterrupted runs of true values, such as frames.

    >>> true_runs(np.array([True, True, False, True]))
    [slice(0, 2, None), slice(3, 4, None)]
    """
    edges = np.flatnonzero(np.diff(np.r_[False, mask, False].astype(np.int8)))
    return [slice(start, stop) for start, stop in edges.reshape(-1, 2).tolist()]


@runtime_checkable
class Images(Protocol):
    """Images that give crops: of a video, of a folder of files, or of a renderer.

    A stored image is warped to the crop. A rendered image is drawn directly in the crop's pixels,
    with the same result.
    """

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of a whole image in pixels."""
        ...

    def crop(
        self, index: int, matrix: NDArray[np.float64], size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Cut a crop out of an image.

        Args:
            index: Index of the image.
            matrix: Affine map from pixels of the whole image to pixels of the crop, (2, 3): a
                similarity, possibly mirrored.
            size: Width and height of the crop.

        Returns:
            RGB crop, (H, W, 3).

        Raises:
            DataError: If the image cannot be read completely.
        """
        ...

    def fingerprint(self, index: int) -> str:
        """Hexadecimal digest of everything that determines the pixels of an image.

        For a file these are its bytes; for a renderer its version, seed and settings.
        """
        ...


@dataclass(frozen=True, eq=False)
class Sequence:
    """Motion of one person seen by one camera.

    Args:
        name: Name, unique within the source.
        subject: Identifier of the person.
        action: Name of the action, by which tables group sequences.
        camera: The camera.
        fps: Frame rate in Hz.
        skeleton: Joint set of the arrays.
        joints3d: Joints in the world, metres, (T, J, 3), float32; None if only images exist.
        joints2d: Exact joints in pixels, (T, J, 2), float32; None to project `joints3d` instead.
        images: One image per frame; None if there are no images.
        valid: Frames used in training and evaluation, (T,); None if all are.
        group: A second grouping for tables, for example whether the action occurs in training, or
            "".
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

    @property
    def valid_frames(self) -> NDArray[np.bool_]:
        """Whether each frame is used in training and evaluation, (T,)."""
        return np.ones(len(self), bool) if self.valid is None else self.valid


@dataclass(frozen=True)
class Reading:
    """How a file of another tool was read, for the output of a run.

    Args:
        numbering: First number and step of the frames, such as `from 1`.
        empty: Number of frames without a person.
        people: Number of people in the file.
        text: Description of all of this in one line.
    """

    numbering: str
    empty: int
    people: int
    text: str


@dataclass(frozen=True, eq=False)
class VideoDetections:
    """2D joints of one person in a video, as a detector found them.

    Args:
        skeleton: Joint set of the arrays.
        joints2d: Pixels, (T, J, 2), float32; NaN where a joint is missing.
        score: Confidence, (T, J), float32; 0 where a joint is missing, above 0 elsewhere.
        reading: How the frames and the person were found, where the file does not define both.
        cut: Number of frames after the end of the motion that were left out.
    """

    skeleton: Skeleton
    joints2d: NDArray[np.float32]
    score: NDArray[np.float32]
    reading: Reading | None = None
    cut: int = 0


@dataclass(frozen=True, eq=False)
class CocoGroundTruth:
    """Ground truth of COCO's OKS-AP.

    Args:
        rows: Indices of the samples that count, ascending, (M,).
        annotations: COCO's annotation file as a document with all keys that its evaluation needs;
            its people without a sample count as missed.
        image_ids: COCO's image id of each sample, (M,).
        scores: Score of each sample's box, (M,); 1 for exact boxes.
        about: Description of the boxes, printed with the evaluation protocol.
    """

    rows: NDArray[np.int64]
    annotations: dict[str, Any]
    image_ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    about: str


@dataclass(frozen=True, eq=False)
class MpiiGroundTruth:
    """Ground truth of MPII's PCKh.

    Args:
        rows: Indices of the samples that count, ascending, (M,).
        joints2d: Joints in pixels of the whole image, MPII16, (M, 16, 2).
        labelled: Joints that count, (M, 16).
        head: Head size: diagonal of the head's box in pixels, (M,).
        about: Description of the head sizes, printed with the evaluation protocol.
    """

    rows: NDArray[np.int64]
    joints2d: NDArray[np.float64]
    labelled: NDArray[np.bool_]
    head: NDArray[np.float64]
    about: str


GroundTruth = CocoGroundTruth | MpiiGroundTruth


@dataclass(frozen=True)
class Remarks:
    """What a reader did about an incomplete or doubtful file, for runs and for `validate` to print.

    Args:
        computed: What the file lacks and how it was computed.
        doubts: What looks wrong in the file, and how it was read.
        skipped: Messages about damaged files and bad annotations that were left out.
    """

    computed: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __add__(self, other: Remarks) -> Remarks:
        return Remarks(
            self.computed + other.computed,
            self.doubts + other.doubts,
            self.skipped + other.skipped,
        )


@dataclass(frozen=True, eq=False)
class Samples:
    """Single images of people with labelled joints; sample i is a person on image i of `images`.

    Args:
        skeleton: Joint set of the arrays.
        images: One image per sample.
        joints2d: Joints in pixels of the whole image, (N, J, 2), float32; NaN where not labelled.
        labelled: Joints used in training and evaluation, (N, J).
        boxes: x, y, width and height of the person in pixels, (N, 4), float32; the tight box of the
            joints where the data set has no boxes.
        joints3d: Joints in the camera frame, metres, (N, J, 3), float32; None if only 2D is known.
        focal: Focal lengths of the image's camera in pixels, (N, 2); None if unknown.
        principal: Principal points in pixels, (N, 2); None if unknown.
        ids: Name of each sample in messages (a file, a frame of a sequence).
        actions: Action in each sample, by which tables group samples; None if unknown.
        truths: Ground truth of published benchmarks.
        remarks: What the reader computed, doubted and left out.
        source_names: Names of the data sources that the samples come from; empty if it is one.
        source_index: Index into `source_names` of each sample, (N,); None if it is one.
        approximate: Labelled joints that are only approximated by a midpoint of other joints, see
            `pipeline.skeleton.APPROXIMATED`, (N, J); None if there are none.
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
    remarks: Remarks = Remarks()
    source_names: tuple[str, ...] = ()
    source_index: NDArray[np.int64] | None = None
    approximate: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.joints2d)


class Source(Protocol):
    """A data set; configs name its class by `class_path`.

    A source of motion has `sequences`; a source of images for the 2D stages has `samples`. A class
    may have both. Constructors only store their arguments; files are read on demand. A source whose
    validation split is its test split has an attribute `val_is_test` that is true, so that the
    protocol line of a run can tell which weights were chosen by the test split.
    """

    @property
    def skeleton(self) -> Skeleton:
        """Joint set of the sequences and samples."""
        ...

    def describe(self) -> str:
        """One line for the start of a run: name and origin of the data."""
        ...


@runtime_checkable
class SourceWithFiles(Protocol):
    """A data source that lists the files it reads, so that a run notices when they change."""

    def input_files(self, splits: Collection[Split], detections: str = "") -> list[Path]:
        """Files and folders that it reads.

        A file counts by its content. A folder is one of images, and counts by the names, sizes and
        times of its files.

        Args:
            splits: Splits that are read.
            detections: Name of the source's own detections that are read; "" for none.

        Raises:
            DataError: If a file is missing.
        """
        ...


@runtime_checkable
class MotionSource(Source, Protocol):
    """A source of motion."""

    def sequences(self, split: Split) -> list[Sequence]:
        """Read all sequences of a split, in a fixed order.

        Raises:
            DataError: If files are missing, damaged or of another format.
        """
        ...


@runtime_checkable
class SourceWithDetections(Protocol):
    """A data source that brings its own detections, as Human3.6M's archives do."""

    def detections(self, name: str) -> Mapping[str, VideoDetections]:
        """Detections of this name: name of a sequence -> its detections."""
        ...


@runtime_checkable
class SourceListingDetections(MotionSource, SourceWithDetections, Protocol):
    """A source of motion that also lists which detections it has, for `heatlift data validate`."""

    def detection_names(self) -> list[str]:
        """Names of its detections."""
        ...


@runtime_checkable
class ImageSource(Source, Protocol):
    """A source of single images with labelled joints."""

    def samples(self, split: Split) -> Samples:
        """Read all samples of a split, in a fixed order.

        Raises:
            DataError: If files are missing, damaged or of another format.
        """
        ...
