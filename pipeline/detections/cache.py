"""The cache of 2D detections: its keys, and how entries are made, checked and read."""

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
    detection_layout,
    person_boxes,
    run_jobs,
    run_jobs_on_rank_zero,
)
from pipeline.detections.exchange import (
    Detections,
    detections_from_source,
    read_detections_file,
    sequence_spans,
)
from pipeline.detections.request import DetectionRequest
from pipeline.errors import DataError, UsageError
from pipeline.files.digests import file_digest
from pipeline.files.entries import CacheSpecification
from pipeline.files.store import Store, default_store
from pipeline.files.torch_files import read_checkpoint
from pipeline.heatmap.module import HeatmapModule
from pipeline.integral.module import IntegralModule
from pipeline.sources import MotionSource, Sequence, SourceWithDetections, Split
from pipeline.training import checkpoints, processes
from pipeline.training.console import print_status
from pipeline.training.processes import StoppedBySignal

VERSION = 1
"""Version of the code in `cache.py` and `build.py` that affects detections.

It is part of every key: raise it, and all detections are made again.
"""

MAX_IMAGES_IN_TRAINING = 20_000
"""A training run makes missing detections itself if the split has at most this many images."""

IMAGES_PER_BATCH = 64
"""Images per batch where none is given; a CPU always takes `CPU_BATCH_SIZE`."""

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def load_detector(path: str | Path) -> Any:
    """Load the trained 2D module of a checkpoint: a LightningModule that is a `Detector`.

    Raises:
        DataError: If the file is damaged or belongs to a stage that detects no 2D joints.
    """
    module = checkpoints.load_module(path, (HeatmapModule, IntegralModule))
    network = type(module.net)
    if not network.__module__.startswith("pipeline."):  # its weights alone do not tell it
        net = read_checkpoint(path)["hyper_parameters"]["net"]
        source = inspect.getsourcefile(network)
        digest = file_digest(Path(source)) if source else ""
        module.own_network = {"net": net, "code": digest}
    return module


def _load_folded(path: str | Path) -> tuple[Any, str]:
    """The detector of a checkpoint with its norms folded, and the digest of its weights."""
    module = load_detector(path)
    digest = checkpoints.weights_digest(module)
    module.fold_norms()
    return module, digest


def cache_specification(
    sequences: Many[Sequence],
    detector: Detector,
    digest: str,
    *,
    precision: Precision = "32-true",
    stem: str = "detections",
) -> CacheSpecification:
    """Cache specification of the detections of a split; its key has everything that affects them.

    Batch size, DataLoader workers, devices and run folders do not affect them.

    Args:
        sequences: Sequences of the split.
        detector: Detector that finds the joints.
        digest: Digest of the detector's weights.
        precision: Precision of the detector.
        stem: Readable beginning of the entry's name.

    Raises:
        DataError: If a sequence has no images or no joints.
    """
    spans = {name: list(rows) for name, rows in sequence_spans(sequences).items()}
    images = sum(map(len, sequences))
    key = {
        "version": VERSION,
        "detector": digest,
        "settings": detector.settings(),
        "joints": list(detector.skeleton.joints),
        "input_size": list(detector.input_size),
        "padding": detector.padding,
        "precision": precision,
        "sequences": [_sequence_key(sequence) for sequence in sequences],
    }
    if own := getattr(detector, "own_network", None):
        key["network"] = own
    layout = detection_layout(images, len(detector.skeleton))
    facts = {"skeleton": detector.skeleton.name, "images": images, "spans": spans}
    return CacheSpecification(stem, key, layout, facts)


def detect_sequences(
    sequences: Many[Sequence],
    detector: Any,
    digest: str,
    *,
    precision: Precision = "32-true",
    batch_size: int = IMAGES_PER_BATCH,
    workers: int = 0,
    accelerator: str = "auto",
    stem: str = "detections",
    store: Store | None = None,
) -> Detections:
    """Detections of a split from the cache; this process makes them if they are missing.

    Args:
        sequences: Sequences of the split, with images.
        detector: A module that is a `Detector`.
        digest: Digest of the detector's weights.
        precision: Precision of the detector.
        batch_size: Images per batch; on a CPU always `CPU_BATCH_SIZE`.
        workers: DataLoader workers that make crops.
        accelerator: Lightning's name of the device type.
        stem: Readable beginning of the entry's name.
        store: The cache; without it the default cache of this machine.

    Raises:
        DataError: If an image cannot be read or a sequence has none.
        StorageError: If the cache cannot be written.
    """
    store = store or default_store()
    specification = cache_specification(sequences, detector, digest, precision=precision, stem=stem)
    job = DetectionJob(sequences, detector, specification, batch_size, workers)
    run_jobs_on_rank_zero(
        Fabric(accelerator=accelerator, devices=1, precision=precision), store, [job]
    )
    return _open_detections(store, job)


def load_or_detect(
    source: MotionSource,
    request: DetectionRequest,
    split: Split,
    *,
    limit: int = MAX_IMAGES_IN_TRAINING,
    precision: Precision = "32-true",
) -> Detections:
    """Detections of a split for training: from a file or the cache, made now if that is quick.

    Args:
        source: Data source of the sequences.
        request: Where the detections come from; not `exact` or `noisy`.
        split: Split of the source.
        limit: Maximum number of images for which missing detections are made now.
        precision: Precision of the detector.

    Raises:
        UsageError: If detections are missing for more images than `limit`; the message has the
            command that makes them.
        DataError: If a file is damaged or of another kind.
    """
    if request.kind == "archive":
        _check_archive_name(source, request)
    sequences = source.sequences(split)
    if request.kind == "archive" and isinstance(source, SourceWithDetections):
        return detections_from_source(source, request.text, sequences)
    if request.kind != "checkpoint":
        return read_detections_file(
            request.path, sequences, first_frame=request.first_frame, person=request.person
        )
    detector, digest = _load_folded(request.path)
    specification = cache_specification(
        sequences, detector, digest, precision=precision, stem=_entry_stem(source, split)
    )
    store = default_store()
    job = DetectionJob(sequences, detector, specification, IMAGES_PER_BATCH, workers=0)
    if store.find(specification) is None:
        if job.image_count > limit:
            raise UsageError(
                f"{request}: no detections of split {split} yet, and {job.image_count:,} images "
                f"are more than {limit:,}, the most that training detects itself; first run: "
                f"{_detect_command(source, request.text, split, precision)}"
            )
        run_jobs_on_rank_zero(
            Fabric(accelerator="auto", devices=1, precision=precision), store, [job]
        )
    return _open_detections(store, job)


def detect(
    source: MotionSource,
    detector: str,
    split: Split | Literal["all"] = "all",
    *,
    devices: int = 1,
    accelerator: str = "auto",
    strategy: str = "auto",
    precision: Precision = "32-true",
    batch_size: int = IMAGES_PER_BATCH,
    workers: int = 0,
) -> None:
    """Run a 2D detector on all images of a data source and store the joints in the cache.

    Every process writes its own shards, and the first process merges them. A run that was killed
    continues where it stopped. The result has the same bytes for any number of processes (CPU,
    32-true).

    Args:
        source: Data source with images, usually given by a config: `-c data/synthetic`.
        detector: Checkpoint of a 2D stage; `newest` is the newest one in ./runs on this data.
        split: Split of the source; `all` is train, val and test.
        devices: Number of devices, each with its own process.
        accelerator: Lightning's name of the device type, such as `cpu` or `gpu`.
        strategy: Lightning's name of the strategy for several processes, such as `ddp`.
        precision: Precision of the detector; part of the cache key. A training that uses these
            detections is given the same as `--data.detector_precision`.
        batch_size: Images per batch on each device; a CPU always takes 16.
        workers: DataLoader workers per device that make crops.

    Raises:
        DataError: If a file is damaged or of another kind.
        ProcessLostError: If a process died or stopped answering.
        StorageError: If the cache cannot be written.
        StoppedBySignal: If a stop signal such as SIGTERM arrives.
    """
    splits: tuple[Split, ...] = ("train", "val", "test") if split == "all" else (split,)
    with processes.signal_handlers(processes.STOP_SIGNALS, _raise_stopped):
        module, digest = _load_folded(detector)
        jobs = []
        for part in splits:
            sequences = source.sequences(part)
            specification = cache_specification(
                sequences, module, digest, precision=precision, stem=_entry_stem(source, part)
            )
            jobs.append(DetectionJob(sequences, module, specification, batch_size, workers))
        fabric = Fabric(
            accelerator=accelerator, devices=devices, strategy=strategy, precision=precision
        )
        detect_jobs(jobs, fabric, default_store())


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    """Signal handler: stop the command."""
    signal.signal(number, signal.SIG_IGN)  # a terminal and the parent process may both send it
    name = signal.Signals(number).name
    raise StoppedBySignal(
        number, f"stopped by {name}; finished pieces are kept; the same command goes on from there"
    )


def detect_jobs(jobs: Many[DetectionJob], fabric: Fabric, store: Store) -> None:
    """Make the missing cache entries on all processes of a `Fabric`."""
    environment = getattr(fabric.strategy, "cluster_environment", None)
    launched = environment is not None and environment.creates_processes_externally
    # Processes that another program started wait for the first one, even if no entry is missing.
    if launched or not all(store.find(job.specification) for job in jobs):
        fabric.launch(run_jobs, store, jobs)  # type: ignore[arg-type]
    if fabric.global_rank == 0:
        for job in jobs:
            print_status(
                f"detections: {store.root / job.specification.name} ({job.image_count:,} images)"
            )


def _open_detections(store: Store, job: DetectionJob) -> Detections:
    """Detections of a job's cache entry, memory-mapped."""
    entry = store.find(job.specification)
    if entry is None:
        place = store.root / job.specification.name
        raise DataError(f"{place}: is missing or damaged; run the same command again")
    joints2d, score = entry.arrays["joints2d"], entry.arrays["score"]
    by_sequence = {
        name: (joints2d[first:end], score[first:end])
        for name, (first, end) in entry.facts["spans"].items()
    }
    return Detections(job.detector.skeleton, by_sequence, str(entry.path))


def _sequence_key(sequence: Sequence) -> dict[str, Any]:
    """The part of a cache key that describes one sequence."""
    images = sequence.images
    if images is None:
        raise DataError(f"{sequence.name}: has no images to detect joints in")
    if len(images) != len(sequence):
        raise DataError(
            f"{sequence.name}: {len(images)} images and {len(sequence)} frames of joints"
        )
    fingerprints = "\n".join(images.fingerprint(frame) for frame in range(len(images)))
    return {
        "name": sequence.name,
        "frames": len(sequence),
        "images": hashlib.sha256(fingerprints.encode()).hexdigest(),
        "boxes": hashlib.sha256(person_boxes(sequence).astype("<f8").tobytes()).hexdigest(),
    }


def check_request(source: MotionSource, request: DetectionRequest) -> None:
    """Check that detections exist, as far as that can be known without reading the motion.

    Args:
        source: Data source of the sequences.
        request: Where the detections come from.

    Raises:
        DataError: If a checkpoint is missing, damaged or no detector, or there is no such file.
    """
    if request.kind == "archive":
        _check_archive_name(source, request)
    if request.kind == "checkpoint":
        load_detector(request.path)


def _check_archive_name(source: MotionSource, request: DetectionRequest) -> None:
    """Raise DataError if a value that is no existing path cannot be the name of an archive."""
    if request.path.is_symlink():
        raise DataError(f"{request}: is a link to {request.path.readlink()}, which is missing")
    is_path = len(request.path.parts) > 1 or request.path.suffix in (".json", ".npz", ".pkl")
    has_archives = isinstance(source, SourceWithDetections)
    if is_path or not has_archives:
        archive = ", or the name of an archive of the data" if has_archives else ""
        raise DataError(
            f"--data.detections {request}: no such file or folder; give exact, noisy, newest, a "
            f"checkpoint, or a file or folder of detections{archive}"
        )


def _entry_stem(source: MotionSource, split: str) -> str:
    """Beginning of the name of a split's cache entry."""
    return f"{type(source).__name__.lower()}-{split}"


def _detect_command(source: MotionSource, detector: str, split: str, precision: str) -> str:
    """Command line that makes the detections of a source, from the arguments that it keeps."""
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
