"""Images through a detector, piece by piece, on any number of processes, with the same result."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from pipeline.camera import project, world_to_camera
from pipeline.errors import DataError, ProcessLostError
from pipeline.files.entries import CacheSpecification
from pipeline.files.store import Shards, Store
from pipeline.heatmap import crop
from pipeline.skeleton import Skeleton
from pipeline.sources import Sequence
from pipeline.training import processes
from pipeline.training.loader import WORKER_TIMEOUT, ResumableLoader, ignore_interrupts

PIECE = 64
"""Images in a shard. Image i of a split is always number i % 64 of shard i // 64."""

CHUNK = 16
"""Images that a CPU puts through the network at once, always.

The last bits of a convolution depend on how many images it is given: 1, 3 and 8 at once differ
from each other on one thread, and with the number of threads (torch 2.13, oneDNN).
"""


class Detector(Protocol):
    """What finds joints in crops: a trained module of a 2D stage.

    Attributes:
        skeleton: The joint set it finds.
        input_size: Width and height of the crops.
        padding: Factor on the box that a crop shows.
    """

    skeleton: Skeleton
    input_size: tuple[int, int]
    padding: float

    def detect(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Find joints.

        Args:
            images: RGB crops, uint8, (B, H, W, 3).

        Returns:
            Pixels of the crop, (B, J, 2), and scores, (B, J), float32.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """Decode, flip test and whatever else decides the result; plain types."""
        ...


def person_boxes(sequence: Sequence) -> NDArray[np.float64]:
    """Boxes around a person: tight around the exact joints, to a sixteenth of a pixel.

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
    return np.round(boxes * 16) / 16  # the last bits of a projection must not make another key


@dataclass(frozen=True, eq=False)
class DetectionJob:
    """The detections of one split, in pieces.

    Args:
        sequences: Of the split, with images.
        detector: A `Detector` that is a module.
        specification: The entry that they become.
        batch_size: Images at once on each device; a CPU always takes `CHUNK`.
        workers: Processes per device that make crops.
    """

    sequences: Many[Sequence]
    detector: Any
    specification: CacheSpecification
    batch_size: int
    workers: int

    def __len__(self) -> int:
        return -(-self.rows // PIECE)

    @property
    def rows(self) -> int:
        """Images."""
        return sum(map(len, self.sequences))

    @property
    def layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shapes and types of the arrays."""
        rows, joints = self.rows, len(self.detector.skeleton)
        return {"joints2d": ((rows, joints, 2), "<f4"), "score": ((rows, joints), "<f4")}

    def range(self, piece: int) -> range:
        """The images of a piece."""
        return _range(piece, self.rows)

    def whole(self, shards: Shards, piece: int) -> dict[str, NDArray[Any]] | None:
        """A finished piece, or none."""
        arrays = shards.get(_shard(piece))
        rows = len(self.range(piece))
        shapes = {name: ((rows, *shape[1:]), kind) for name, (shape, kind) in self.layout.items()}
        if arrays and {n: (a.shape, a.dtype.str) for n, a in arrays.items()} == shapes:
            return arrays
        return None


class _Crops:
    """Crops of whole pieces, for a loader, whose processes need no detector."""

    def __init__(self, job: DetectionJob) -> None:
        self.sequences = job.sequences
        self.size, self.padding = job.detector.input_size, job.detector.padding
        self.ends = np.cumsum([len(sequence) for sequence in job.sequences])
        self.boxes = np.concatenate([person_boxes(sequence) for sequence in job.sequences])

    def __getitem__(self, pieces: list[int]) -> dict[str, Any]:
        rows = np.concatenate([_range(piece, len(self.boxes)) for piece in pieces])
        size, padding = self.size, self.padding
        seen = np.isfinite(self.boxes[rows]).all(-1)
        boxes = np.where(seen[:, None], self.boxes[rows], 0.0)
        matrices = crop.crop_matrix(boxes, size, padding=padding)
        images = np.zeros((len(rows), size[1], size[0], 3), np.uint8)
        for at in np.flatnonzero(seen):
            of = int(np.searchsorted(self.ends, rows[at], side="right"))
            sequence = self.sequences[of]
            frame = int(rows[at] - self.ends[of] + len(sequence))
            images[at] = sequence.images.crop(frame, matrices[at], size)  # type: ignore[union-attr]
        # Tensors go through shared memory; an array in a pipe is cut in two if its process dies.
        shared = {"images": torch.from_numpy(images), "matrices": torch.from_numpy(matrices)}
        return {**shared, "seen": seen, "pieces": pieces}


class _Loader(ResumableLoader):
    """Names the options of `heatlift detect` when a process is lost, whenever that is noticed."""

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Torch tells of a death wherever this process is at that moment, not only in the loader.

        Raises:
            ProcessLostError: If a loader process dies meanwhile.
        """
        try:
            yield
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ProcessLostError(self._lost(str(error))) from error

    def _lost(self, what: str) -> str:
        return f"{super()._lost(what)}; finished pieces are kept".replace("--data.", "--")


def _attend(worker: int) -> None:
    """Let a loader process leave Ctrl-C to its owner and end with it, even amid a crop."""
    ignore_interrupts(worker)
    os.environ[processes.PARENT] = str(os.getppid())
    processes.exit_with_parent()


def run_rank(fabric: Fabric, store: Store, jobs: Many[DetectionJob]) -> None:
    """What one process does: the first one leads, the others make the pieces they are told to."""
    if fabric.global_rank == 0:
        run_first_rank(fabric, store, jobs)
        return
    while (order := fabric.broadcast(None)) is not None:
        number, pieces = order
        _make(fabric, jobs[number], store.shards(jobs[number].specification), pieces)


def run_first_rank(fabric: Fabric, store: Store, jobs: Many[DetectionJob]) -> None:
    """Make the entries that are missing and tell the other processes which pieces are wanted."""
    for number, job in enumerate(jobs):

        def build(shards: Shards, number: int = number, job: DetectionJob = job) -> dict[str, Any]:
            pieces = [piece for piece in range(len(job)) if job.whole(shards, piece) is None]
            fabric.broadcast((number, pieces))
            _make(fabric, job, shards, pieces)
            return _merge(job, shards)

        store.fetch(job.specification, build)
    fabric.broadcast(None)


def _make(fabric: Fabric, job: DetectionJob, shards: Shards, pieces: list[int]) -> None:
    """Make this process's share of the pieces, then wait for the others."""
    mine = pieces[fabric.global_rank :: fabric.world_size]
    if mine:
        _look(fabric, job, shards, mine, sum(len(job.range(piece)) for piece in pieces))
    fabric.barrier()


def _look(fabric: Fabric, job: DetectionJob, shards: Shards, mine: list[int], count: int) -> None:
    """Make pieces and keep them as shards; `count` images are to be seen by all processes."""
    together = max(1, job.batch_size // PIECE)
    step = CHUNK if fabric.device.type == "cpu" else min(job.batch_size, together * PIECE)
    loader = _Loader(
        _Crops(job),  # type: ignore[arg-type]
        batch_size=None,
        sampler=[mine[at : at + together] for at in range(0, len(mine), together)],
        num_workers=job.workers,
        timeout=WORKER_TIMEOUT if job.workers else 0,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        worker_init_fn=_attend,
    )
    detector = fabric.to_device(job.detector).eval()
    with (
        torch.inference_mode(),
        loader.watched(),
        _progress(job.specification.stem, count, fabric) as advance,
    ):
        for batch in loader:
            joints, score = _found(fabric, detector, batch["images"].numpy(), step)
            joints = crop.apply_affine(
                crop.invert_affine(batch["matrices"].numpy()), joints
            ).astype(np.float32)
            seen = batch["seen"][:, None] & np.isfinite(joints).all(-1) & np.isfinite(score)
            joints[~seen], score[~seen] = np.nan, 0.0
            at = 0
            for piece in batch["pieces"]:
                rows = slice(at, at + len(job.range(piece)))
                shards.put(_shard(piece), {"joints2d": joints[rows], "score": score[rows]})
                at = rows.stop
            advance(at * fabric.world_size)


def _found(
    fabric: Fabric, detector: Any, images: NDArray[np.uint8], step: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Joints in crop pixels and scores; the network always sees `step` images, some black."""
    found = []
    for start in range(0, len(images), step):
        part = images[start : start + step]
        filled = np.zeros((step, *part.shape[1:]), np.uint8)
        filled[: len(part)] = part
        with fabric.autocast():
            joints, score = detector.detect(fabric.to_device(torch.from_numpy(filled)))
        found.append((joints[: len(part)].float().cpu(), score[: len(part)].float().cpu()))
    joints, score = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return joints, score


def _merge(job: DetectionJob, shards: Shards) -> dict[str, NDArray[Any]]:
    merged = {name: np.empty(shape, kind) for name, (shape, kind) in job.layout.items()}
    for piece in range(len(job)):
        arrays = job.whole(shards, piece)
        if arrays is None:
            raise DataError(
                f"{shards.folder / _shard(piece)}.npz: is damaged; run the same command again"
            )
        rows = job.range(piece)
        for name, array in arrays.items():
            merged[name][rows.start : rows.stop] = array
    return merged


def _range(piece: int, rows: int) -> range:
    return range(piece * PIECE, min((piece + 1) * PIECE, rows))


def _shard(piece: int) -> str:
    return f"{piece:07d}"


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def say(line: str) -> None:
    """A line for people, beside what a command prints."""
    sys.stderr.write(f"{line}\n")


@contextlib.contextmanager
def _progress(name: str, count: int, fabric: Fabric) -> Iterator[Callable[[int], None]]:
    """Count images on the first process: a bar on a terminal, else a line about every 10 s."""
    if fabric.global_rank or not count:
        yield lambda done: None
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(name, total=count)
            yield lambda done: bar.advance(task, done)
        return
    began = told = time.monotonic()
    total = 0

    def advance(done: int) -> None:
        nonlocal told, total
        first, total, now = not total, min(total + done, count), time.monotonic()
        left = (count - total) * (now - began) / total
        # The first batch tells how long it will take, if that is long.
        if now - told > 10 or (first and left > 10):
            told = now
            say(f"{name}: {total:,} of {count:,} images seen, about {_duration(left)} left")

    yield advance


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
