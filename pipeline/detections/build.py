"""Joints detected in all images of a split, in pieces that any number of processes share."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from pipeline.camera import project, world_to_camera
from pipeline.datasets.photos import with_reduced_decoding
from pipeline.errors import DataError
from pipeline.files.entries import CacheSpecification
from pipeline.files.store import Shards, Store
from pipeline.heatmap import crop
from pipeline.skeleton import Skeleton
from pipeline.sources import Sequence
from pipeline.training.console import count_progress
from pipeline.training.loader import WORKER_TIMEOUT, ResumableLoader, prepare_worker

PIECE_SIZE = 64
"""Images in a piece, which is stored as one shard. Image i of a split is always number i % 64 of
piece i // 64."""

CPU_BATCH_SIZE = 16
"""Batch size of the network on a CPU, always.

The last bits of a convolution depend on the batch size and on the number of threads: batches of 1,
3 and 8 images differ on one thread (torch 2.13, oneDNN).
"""


class Detector(Protocol):
    """Protocol of a module that finds joints in crops: a trained module of a 2D stage.

    Attributes:
        skeleton: Joint set of the detections.
        input_size: Width and height of the crops in pixels.
        padding: Size of a crop relative to the person's box.
    """

    skeleton: Skeleton
    input_size: tuple[int, int]
    padding: float

    def detect(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Find the joints in crops.

        Args:
            images: RGB crops, uint8, (B, H, W, 3).

        Returns:
            Joints in pixels of the crop, (B, J, 2), and scores, (B, J), float32.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """All settings that affect the result (decoding, flip test, …), as plain types."""
        ...


def person_boxes(sequence: Sequence) -> NDArray[np.float64]:
    """Boxes of a person: tight around the exact joints, rounded to a sixteenth of a pixel.

    Returns:
        x, y, width, height in pixels, (T, 4); NaN where no joint is in front of the camera.

    Raises:
        DataError: If the sequence has no joints.
    """
    if sequence.joints2d is not None:
        joints2d: NDArray[Any] = sequence.joints2d
    elif sequence.joints3d is not None:
        joints2d = project(world_to_camera(sequence.joints3d, sequence.camera), sequence.camera)
    else:
        raise DataError(f"{sequence.name}: has no joints to put a box around")
    boxes = crop.tight_boxes(joints2d, np.isfinite(joints2d).all(-1))
    return np.round(boxes * 16) / 16  # the last bits of a projection must not change the key


def detection_layout(images: int, joints: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shapes and data types of the arrays of detections."""
    return {"joints2d": ((images, joints, 2), "<f4"), "score": ((images, joints), "<f4")}


@dataclass(frozen=True, eq=False)
class DetectionJob:
    """Detection of the images of one split, in pieces.

    Args:
        sequences: Sequences of the split, with images.
        detector: A module that is a `Detector`.
        specification: Specification of the cache entry.
        batch_size: Images per batch on each device; on a CPU always `CPU_BATCH_SIZE`.
        workers: DataLoader workers per device that make crops.
    """

    sequences: Many[Sequence]
    detector: Any
    specification: CacheSpecification
    batch_size: int
    workers: int

    def __len__(self) -> int:
        """Number of pieces."""
        return -(-self.image_count // PIECE_SIZE)

    @property
    def image_count(self) -> int:
        """Number of images of the split."""
        return sum(map(len, self.sequences))

    def piece_rows(self, piece: int) -> range:
        """Indices of the images of a piece."""
        return _piece_rows(piece, self.image_count)

    def read_piece(self, shards: Shards, piece: int) -> dict[str, NDArray[Any]] | None:
        """Arrays of a piece; None if it is missing or damaged."""
        arrays = shards.get(_shard_name(piece))
        expected = detection_layout(len(self.piece_rows(piece)), len(self.detector.skeleton))
        if arrays and {n: (a.shape, a.dtype.str) for n, a in arrays.items()} == expected:
            return arrays
        return None


class _CropDataset:
    """Dataset of the crops of whole pieces; it holds no detector, for DataLoader workers."""

    def __init__(self, job: DetectionJob) -> None:
        self.sequences = job.sequences
        self.size, self.padding = job.detector.input_size, job.detector.padding
        self.images: list[Any] = [sequence.images for sequence in job.sequences]
        if getattr(job.detector, "reduced_decoding", False):
            self.images = [with_reduced_decoding(images) for images in self.images]
        self.ends = np.cumsum([len(sequence) for sequence in job.sequences])
        self.boxes = np.concatenate([person_boxes(sequence) for sequence in job.sequences])

    def __getitem__(self, pieces: list[int]) -> dict[str, Any]:
        rows = np.concatenate([_piece_rows(piece, len(self.boxes)) for piece in pieces])
        size, padding = self.size, self.padding
        has_box = np.isfinite(self.boxes[rows]).all(-1)
        boxes = np.where(has_box[:, None], self.boxes[rows], 0.0)
        matrices = crop.crop_matrix(boxes, size, padding=padding)
        images = np.zeros((len(rows), size[1], size[0], 3), np.uint8)
        for index in np.flatnonzero(has_box):
            number = int(np.searchsorted(self.ends, rows[index], side="right"))
            frame = int(rows[index] - self.ends[number] + len(self.sequences[number]))
            images[index] = self.images[number].crop(frame, matrices[index], size)
        # Tensors go through shared memory; an array in a pipe is cut in two if its process dies.
        shared = {"images": torch.from_numpy(images), "matrices": torch.from_numpy(matrices)}
        return {**shared, "has_box": has_box, "pieces": pieces}


class _DetectionLoader(ResumableLoader):
    """DataLoader whose errors about lost workers name the options of `heatlift detect`."""

    def _worker_lost_message(self, error: str) -> str:
        message = super()._worker_lost_message(error).replace("--data.", "--")
        return f"{message}; finished pieces are kept"


def run_jobs(fabric: Fabric, store: Store, jobs: Many[DetectionJob]) -> None:
    """Run one process: rank 0 decides which pieces are made, the others make their share."""
    if fabric.global_rank == 0:
        run_jobs_on_rank_zero(fabric, store, jobs)
        return
    while (message := fabric.broadcast(None)) is not None:
        number, pieces = message
        _detect_share(fabric, jobs[number], store.shards(jobs[number].specification), pieces)


def run_jobs_on_rank_zero(fabric: Fabric, store: Store, jobs: Many[DetectionJob]) -> None:
    """Make the missing cache entries, and send the other processes the numbers of the pieces."""
    for number, job in enumerate(jobs):

        def build(shards: Shards, number: int = number, job: DetectionJob = job) -> dict[str, Any]:
            pieces = [piece for piece in range(len(job)) if job.read_piece(shards, piece) is None]
            fabric.broadcast((number, pieces))
            _detect_share(fabric, job, shards, pieces)
            return _merge_pieces(job, shards)

        store.fetch(job.specification, build)
    fabric.broadcast(None)


def _detect_share(fabric: Fabric, job: DetectionJob, shards: Shards, pieces: list[int]) -> None:
    """Make this process's share of the pieces, then wait for the other processes."""
    share = pieces[fabric.global_rank :: fabric.world_size]
    if share:
        total = sum(len(job.piece_rows(piece)) for piece in pieces)
        _detect_pieces(fabric, job, shards, share, total)
    fabric.barrier()


def _detect_pieces(
    fabric: Fabric, job: DetectionJob, shards: Shards, pieces: list[int], total: int
) -> None:
    """Make pieces and store each as a shard.

    Args:
        fabric: Fabric of this process.
        job: Job that the pieces belong to.
        shards: Storage of the pieces.
        pieces: Numbers of the pieces.
        total: Number of images of all processes together, for the progress line.
    """
    per_batch = max(1, job.batch_size // PIECE_SIZE)
    batch_size = min(job.batch_size, per_batch * PIECE_SIZE)
    if fabric.device.type == "cpu":
        batch_size = CPU_BATCH_SIZE
    loader = _DetectionLoader(
        _CropDataset(job),  # type: ignore[arg-type]
        batch_size=None,
        sampler=[pieces[i : i + per_batch] for i in range(0, len(pieces), per_batch)],
        num_workers=job.workers,
        timeout=WORKER_TIMEOUT if job.workers else 0,
        collate_fn=_keep_batch,  # type: ignore[arg-type]
        worker_init_fn=prepare_worker,
    )
    detector = fabric.to_device(job.detector).eval()
    with (
        torch.inference_mode(),
        count_progress(
            job.specification.stem, total, "images", shown=fabric.global_rank == 0
        ) as advance,
    ):
        for batch in loader:
            joints, score = _detect_batch(fabric, detector, batch["images"].numpy(), batch_size)
            to_image = crop.invert_affine(batch["matrices"].numpy())
            joints = crop.apply_affine(to_image, joints).astype(np.float32)
            found = batch["has_box"][:, None] & np.isfinite(joints).all(-1) & np.isfinite(score)
            joints[~found], score[~found] = np.nan, 0.0
            start = 0
            for piece in batch["pieces"]:
                rows = slice(start, start + len(job.piece_rows(piece)))
                shards.put(_shard_name(piece), {"joints2d": joints[rows], "score": score[rows]})
                start = rows.stop
            advance(start * fabric.world_size)


def _detect_batch(
    fabric: Fabric, detector: Any, images: NDArray[np.uint8], batch_size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Joints in crop pixels and scores; the last batch is filled with black images."""
    results = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        filled = np.zeros((batch_size, *part.shape[1:]), np.uint8)
        filled[: len(part)] = part
        with fabric.autocast():
            joints, score = detector.detect(fabric.to_device(torch.from_numpy(filled)))
        results.append((joints[: len(part)].float().cpu(), score[: len(part)].float().cpu()))
    joints, score = (torch.cat(parts).numpy() for parts in zip(*results, strict=True))
    return joints, score


def _merge_pieces(job: DetectionJob, shards: Shards) -> dict[str, NDArray[Any]]:
    """Arrays of the whole split from its pieces."""
    layout = detection_layout(job.image_count, len(job.detector.skeleton))
    merged = {name: np.empty(shape, kind) for name, (shape, kind) in layout.items()}
    for piece in range(len(job)):
        arrays = job.read_piece(shards, piece)
        if arrays is None:
            raise DataError(
                f"{shards.folder / _shard_name(piece)}.npz: is damaged; run the same command again"
            )
        rows = job.piece_rows(piece)
        for name, array in arrays.items():
            merged[name][rows.start : rows.stop] = array
    return merged


def _piece_rows(piece: int, images: int) -> range:
    """Indices of the images of a piece, of a split with this number of images."""
    return range(piece * PIECE_SIZE, min((piece + 1) * PIECE_SIZE, images))


def _shard_name(piece: int) -> str:
    return f"{piece:07d}"


def _keep_batch(batch: dict[str, Any]) -> dict[str, Any]:
    """Collate function for a dataset that returns whole batches."""
    return batch
