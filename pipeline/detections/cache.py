"""The door: the cache of 2D joints, how it is keyed, made, checked and read."""

from __future__ import annotations

import hashlib
import inspect
import json
import shlex
import signal
from collections.abc import Sequence as Many
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from lightning.fabric import Fabric

from pipeline.detections.build import (
    DetectionJob,
    Detector,
    person_boxes,
    run_first_rank,
    run_rank,
    say,
)
from pipeline.detections.exchange import (
    Detections,
    SourceWithDetections,
    detections_from_source,
    read_detections_file,
    sequence_spans,
)
from pipeline.detections.request import DetectionRequest
from pipeline.errors import DataError, UsageError
from pipeline.files.entries import CacheSpecification
from pipeline.files.store import Store, default_store
from pipeline.heatmap.module import HeatmapModule
from pipeline.integral.module import IntegralModule
from pipeline.sources import MotionSource, Sequence, Split
from pipeline.training import checkpoints, processes
from pipeline.training.signals import StoppedBySignal

VERSION = 1
"""Of the code here and in `detecting` that shapes a detection; raise it and all are made anew."""

SMALL = 20_000
"""Images up to which a training run makes its own detections."""

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def load_detector(path: str | Path) -> Any:
    """The trained 2D module in a checkpoint: a `Detector` that is a LightningModule.

    Raises:
        DataError: If the file is damaged or of a stage without detector.
    """
    return checkpoints.load_module(path, (HeatmapModule, IntegralModule))


def cache_specification(
    sequences: Many[Sequence],
    detector: Detector,
    digest: str,
    *,
    precision: Precision = "32-true",
    stem: str = "detections",
) -> CacheSpecification:
    """The entry of the detections of a split: everything that shapes them is in its key.

    Batch size, loader processes, devices and folders of runs are not: they change nothing.

    Args:
        sequences: Of the split.
        detector: Finds the joints.
        digest: Of its weights.
        precision: Of its arithmetic.
        stem: Readable beginning of the entry's name.

    Raises:
        DataError: If a sequence has no images or no joints.
    """
    spans = {name: list(rows) for name, rows in sequence_spans(sequences).items()}
    rows, joints = sum(map(len, sequences)), len(detector.skeleton)
    key = {
        "version": VERSION,
        "detector": digest,
        "settings": detector.settings(),
        "joints": list(detector.skeleton.joints),
        "input_size": list(detector.input_size),
        "padding": detector.padding,
        "precision": precision,
        "sequences": [_content(sequence) for sequence in sequences],
    }
    layout = {"joints2d": ((rows, joints, 2), "<f4"), "score": ((rows, joints), "<f4")}
    facts = {"skeleton": detector.skeleton.name, "images": rows, "spans": spans}
    return CacheSpecification(stem, key, layout, facts)


def detect_sequences(
    sequences: Many[Sequence],
    detector: Any,
    digest: str,
    *,
    precision: Precision = "32-true",
    batch_size: int = 64,
    workers: int = 0,
    accelerator: str = "auto",
    stem: str = "detections",
    store: Store | None = None,
) -> Detections:
    """Detections of a split from the cache, made by this process if they are not there.

    Args:
        sequences: Of the split, with images.
        detector: A `Detector` that is a module.
        digest: Of its weights.
        precision: Of its arithmetic.
        batch_size: Images at once; a CPU always takes `CHUNK`.
        workers: Processes that make crops.
        accelerator: As Lightning calls it.
        stem: Readable beginning of the entry's name.
        store: The cache; none for this machine's.

    Raises:
        DataError: If an image cannot be read or a sequence has none.
        StorageError: If the cache cannot be written.
    """
    store = store or default_store()
    want = cache_specification(sequences, detector, digest, precision=precision, stem=stem)
    job = DetectionJob(sequences, detector, want, batch_size, workers)
    run_first_rank(Fabric(accelerator=accelerator, devices=1, precision=precision), store, [job])
    return _open(store, job)


def get_detections(
    source: MotionSource,
    request: DetectionRequest,
    split: Split,
    *,
    limit: int = SMALL,
    precision: Precision = "32-true",
    batch_size: int = 64,
    workers: int = 0,
) -> Detections:
    """Detections of a split for training: from a file or the cache, made now if that is quick.

    Args:
        source: Of the sequences.
        request: Where they come from; none that is projected.
        split: Of the source.
        limit: Images up to which missing detections are made now.
        precision: Of the detector.
        batch_size: Images at once.
        workers: Processes that make crops.

    Raises:
        UsageError: If more images than `limit` are to be looked at first; names the command.
        DataError: If a file is not what it claims to be.
    """
    sequences = source.sequences(split)
    if request.kind == "archive" and isinstance(source, SourceWithDetections):
        return detections_from_source(source, request.text, sequences)
    if request.kind != "checkpoint":
        return read_detections_file(request.path, sequences)
    detector = load_detector(request.path)
    digest = checkpoints.weights_digest(detector)
    want = cache_specification(
        sequences, detector, digest, precision=precision, stem=_stem(source, split)
    )
    store = default_store()
    job = DetectionJob(sequences, detector, want, batch_size, workers)
    if store.find(want) is None:
        rows = sum(map(len, sequences))
        if rows > limit:
            raise UsageError(
                f"{request}: no detections of split {split} yet, and {rows:,} images are more "
                f"than {limit:,} to look at on the way; first run: "
                f"{_command(source, request.text, split, precision)}"
            )
        run_first_rank(Fabric(accelerator="auto", devices=1, precision=precision), store, [job])
    return _open(store, job)


def detect(
    source: MotionSource,
    detector: str,
    split: Split | Literal["all"] = "all",
    *,
    devices: int = 1,
    accelerator: str = "auto",
    strategy: str = "auto",
    precision: Precision = "32-true",
    batch_size: int = 64,
    workers: int = 0,
) -> None:
    """Look at all images of a source once, on all devices, and keep the joints in the cache.

    Every process writes its own shards, the first one merges them; a run that was killed goes on
    where it stopped. The result has the same bytes for any number of processes (CPU, 32-true).

    Args:
        source: Of the sequences.
        detector: A checkpoint of a 2D stage; `newest` is the newest below ./runs on this data.
        split: Of the source.
        devices: How many.
        accelerator: As Lightning calls it.
        strategy: As Lightning calls it.
        precision: Of the detector; part of the key.
        batch_size: Images at once on each device; a CPU always takes `CHUNK`.
        workers: Processes per device that make crops.

    Raises:
        DataError: If a file is not what it claims to be.
        ProcessLostError: If a process died or stopped answering.
        StorageError: If the cache cannot be written.
        Stopped: By SIGTERM or SIGINT.
    """
    splits: tuple[Split, ...] = ("train", "val", "test") if split == "all" else (split,)
    with processes.signal_handlers((signal.SIGTERM, signal.SIGINT), _stop):
        module = load_detector(detector)
        digest = checkpoints.weights_digest(module)
        jobs = []
        for part in splits:
            sequences = source.sequences(part)
            want = cache_specification(
                sequences, module, digest, precision=precision, stem=_stem(source, part)
            )
            jobs.append(DetectionJob(sequences, module, want, batch_size, workers))
        fabric = Fabric(
            accelerator=accelerator, devices=devices, strategy=strategy, precision=precision
        )
        detect_jobs(jobs, fabric, default_store())


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a terminal and the watcher may both send it
    name = signal.Signals(number).name
    raise StoppedBySignal(
        number, f"stopped by {name}; finished pieces are kept; the same command goes on from there"
    )


def detect_jobs(jobs: Many[DetectionJob], fabric: Fabric, store: Store) -> None:
    """Make the entries that are missing, on all processes of a fabric."""
    environment = getattr(fabric.strategy, "cluster_environment", None)
    launched = environment is not None and environment.creates_processes_externally
    # Processes that somebody else started wait for the first one, even if it has nothing to do.
    if launched or not all(store.find(job.specification) for job in jobs):
        fabric.launch(run_rank, store, jobs)  # type: ignore[arg-type]
    if fabric.global_rank == 0:
        for job in jobs:
            say(f"detections: {store.root / job.specification.name} ({job.rows:,} images)")


def _open(store: Store, job: DetectionJob) -> Detections:
    entry = store.find(job.specification)
    if entry is None:
        raise DataError(
            f"{store.root / job.specification.name}: is missing or damaged; run the same command again"
        )
    joints2d, score = entry.arrays["joints2d"], entry.arrays["score"]
    found = {
        name: (joints2d[first:end], score[first:end])
        for name, (first, end) in entry.facts["spans"].items()
    }
    return Detections(job.detector.skeleton, found, str(entry.path))


def _content(sequence: Sequence) -> dict[str, Any]:
    """What a sequence adds to a key."""
    images = sequence.images
    if images is None:
        raise DataError(f"{sequence.name}: has no images to detect joints in")
    if len(images) != len(sequence):
        raise DataError(
            f"{sequence.name}: {len(images)} images and {len(sequence)} frames of joints"
        )
    marks = "\n".join(images.fingerprint(frame) for frame in range(len(images)))
    return {
        "name": sequence.name,
        "frames": len(sequence),
        "images": hashlib.sha256(marks.encode()).hexdigest(),
        "boxes": hashlib.sha256(person_boxes(sequence).astype("<f8").tobytes()).hexdigest(),
    }


def _stem(source: MotionSource, split: str) -> str:
    return f"{type(source).__name__.lower()}-{split}"


def _command(source: MotionSource, detector: str, split: str, precision: str) -> str:
    """The `heatlift detect` line for a source; sources only keep their arguments."""
    cls = type(source)
    words = ["heatlift", "detect", f"--source={cls.__module__}.{cls.__qualname__}"]
    for name, parameter in inspect.signature(cls).parameters.items():
        value = getattr(source, name, parameter.default)
        if value != parameter.default:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            words.append(f"--source.{name}={text}")
    words += [f"--detector={detector}", f"--split={split}"]
    if precision != "32-true":
        words.append(f"--precision={precision}")
    return shlex.join(words)
