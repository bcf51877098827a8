"""The door: the cache of 2D joints, how it is keyed, made, checked and read."""

from __future__ import annotations

import hashlib
import inspect
import shlex
import zipfile
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.fabric import Fabric
from numpy.typing import NDArray

from pipeline import checkpoint
from pipeline.datasets import MotionSource, Sequence, Split
from pipeline.detecting import Detector, Job, lead, person_boxes, run_rank, say
from pipeline.errors import DataError, UsageError
from pipeline.skeleton import SKELETONS, Skeleton, conversion
from pipeline.store import Store, Wanted, place

VERSION = 1
"""Of the code here and in `detecting` that shapes a detection; raise it and all are made anew."""

SMALL = 20_000
"""Pictures up to which a training run makes its own detections."""

MAX_UNPACKED = 4 * 2**30
"""Bytes that a file of detections may unpack to."""

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True, eq=False)
class Detections:
    """2D joints of the sequences of a split.

    Args:
        skeleton: The joint set of the arrays.
        joints2d: Pixels of the whole picture, one sequence after the other, (N, J, 2), float32;
            NaN where missing.
        score: (N, J), float32; 0 where missing.
        spans: Name of a sequence -> its first row and the row behind its last.
        origin: Where they come from, in a few words.
    """

    skeleton: Skeleton
    joints2d: NDArray[np.float32]
    score: NDArray[np.float32]
    spans: Mapping[str, tuple[int, int]]
    origin: str

    def of(
        self, name: str, skeleton: Skeleton | None = None, *, allow_missing: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Joints and scores of a sequence, (T, J, 2) and (T, J); see `joints2d` and `score`.

        Args:
            name: Of the sequence.
            skeleton: The joint set wanted; none for the detector's own.
            allow_missing: Accept joints that the detector does not find.

        Raises:
            DataError: If there are none for the sequence, or the joint sets do not fit.
        """
        if name not in self.spans:
            raise DataError(f"{self.origin}: no detections for sequence {name}")
        first, end = self.spans[name]
        joints2d, score = self.joints2d[first:end], self.score[first:end]
        if skeleton is None or skeleton == self.skeleton:
            return joints2d, score
        way = conversion(self.skeleton, skeleton, allow_missing=allow_missing)
        return way.joints(joints2d), way.score(score)


def load_detector(path: str | Path) -> Any:
    """The trained 2D module in a checkpoint: a `Detector` that is a LightningModule.

    Raises:
        DataError: If the file is damaged or of a stage without detector.
    """
    return checkpoint.rebuild(path, stages=("heatmap", "integral"))


def wanted(
    sequences: Many[Sequence],
    detector: Detector,
    digest: str,
    *,
    precision: Precision = "32-true",
    stem: str = "detections",
) -> Wanted:
    """The entry of the detections of a split: everything that shapes them is in its key.

    Batch size, loader processes, devices and folders of runs are not: they change nothing.

    Args:
        sequences: Of the split.
        detector: Finds the joints.
        digest: Of its weights.
        precision: Of its arithmetic.
        stem: Readable beginning of the entry's name.

    Raises:
        DataError: If a sequence has no pictures or no joints.
    """
    spans = _spans(sequences)
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
    facts = {"skeleton": detector.skeleton.name, "pictures": rows, "spans": spans}
    return Wanted(stem, key, layout, facts)


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
        sequences: Of the split, with pictures.
        detector: A `Detector` that is a module.
        digest: Of its weights.
        precision: Of its arithmetic.
        batch_size: Pictures at once; a CPU always takes `CHUNK`.
        workers: Processes that make crops.
        accelerator: As Lightning calls it.
        stem: Readable beginning of the entry's name.
        store: The cache; none for this machine's.

    Raises:
        DataError: If a picture cannot be read or a sequence has none.
        StorageError: If the cache cannot be written.
    """
    store = store or place()
    want = wanted(sequences, detector, digest, precision=precision, stem=stem)
    job = Job(sequences, detector, want, batch_size, workers)
    lead(Fabric(accelerator=accelerator, devices=1, precision=precision), store, [job])
    return _open(store, job)


def ensure(
    source: MotionSource,
    detections: str,
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
        detections: A checkpoint of a 2D stage, or a file of detections made elsewhere.
        split: Of the source.
        limit: Pictures up to which missing detections are made now.
        precision: Of the detector.
        batch_size: Pictures at once.
        workers: Processes that make crops.

    Raises:
        UsageError: If more pictures than `limit` are to be looked at first; names the command.
        DataError: If a file is not what it claims to be.
    """
    sequences = source.sequences(split)
    if Path(detections).suffix != ".ckpt":
        return from_file(detections, sequences)
    detector = load_detector(detections)
    digest = checkpoint.weights_digest(detector)
    want = wanted(sequences, detector, digest, precision=precision, stem=_stem(source, split))
    store = place()
    job = Job(sequences, detector, want, batch_size, workers)
    if store.find(want) is None:
        rows = sum(map(len, sequences))
        if rows > limit:
            raise UsageError(
                f"{detections}: no detections of split {split} yet, and {rows:,} pictures are more "
                f"than {limit:,} to look at on the way; first run: "
                f"{_command(source, detections, split, precision)}"
            )
        lead(Fabric(accelerator="auto", devices=1, precision=precision), store, [job])
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
    """Look at all pictures of a source once, on all devices, and keep the joints in the cache.

    Every process writes its own shards, the first one merges them; a run that was killed goes on
    where it stopped. The result has the same bytes for any number of processes (CPU, 32-true).

    Args:
        source: Of the sequences.
        detector: A checkpoint of a 2D stage.
        split: Of the source.
        devices: How many.
        accelerator: As Lightning calls it.
        strategy: As Lightning calls it.
        precision: Of the detector; part of the key.
        batch_size: Pictures at once on each device; a CPU always takes `CHUNK`.
        workers: Processes per device that make crops.

    Raises:
        DataError: If a file is not what it claims to be.
        StorageError: If the cache cannot be written.
    """
    module = load_detector(detector)
    digest = checkpoint.weights_digest(module)
    splits: tuple[Split, ...] = ("train", "val", "test") if split == "all" else (split,)
    jobs = []
    for part in splits:
        sequences = source.sequences(part)
        want = wanted(sequences, module, digest, precision=precision, stem=_stem(source, part))
        jobs.append(Job(sequences, module, want, batch_size, workers))
    detect_jobs(
        jobs,
        Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=precision),
        place(),
    )


def detect_jobs(jobs: Many[Job], fabric: Fabric, store: Store) -> None:
    """Make the entries that are missing, on all processes of a fabric."""
    environment = getattr(fabric.strategy, "cluster_environment", None)
    launched = environment is not None and environment.creates_processes_externally
    # Processes that somebody else started wait for the first one, even if it has nothing to do.
    if launched or not all(store.find(job.wanted) for job in jobs):
        fabric.launch(run_rank, store, jobs)  # type: ignore[arg-type]
    if fabric.global_rank == 0:
        for job in jobs:
            rows = job.wanted.facts["pictures"]
            say(f"detections: {store.root / job.wanted.name} ({rows:,} pictures)")


def _open(store: Store, job: Job) -> Detections:
    entry = store.find(job.wanted)
    if entry is None:
        raise DataError(
            f"{store.root / job.wanted.name}: is missing or damaged; run the same command again"
        )
    return Detections(
        job.detector.skeleton,
        entry.arrays["joints2d"],
        entry.arrays["score"],
        {name: (first, end) for name, (first, end) in entry.facts["spans"].items()},
        str(entry.path),
    )


def _spans(sequences: Many[Sequence]) -> dict[str, list[int]]:
    """Rows of each sequence; checks that each has a name of its own."""
    ends = np.cumsum([0, *map(len, sequences)]).tolist()
    spans = {s.name: [a, b] for s, a, b in zip(sequences, ends[:-1], ends[1:], strict=True)}
    if len(spans) != len(sequences):
        raise DataError("two sequences of this split have the same name; rename one")
    return spans


def _content(sequence: Sequence) -> dict[str, Any]:
    """What a sequence adds to a key."""
    pictures = sequence.pictures
    if pictures is None:
        raise DataError(f"{sequence.name}: has no pictures to detect joints in")
    if len(pictures) != len(sequence):
        raise DataError(
            f"{sequence.name}: {len(pictures)} pictures and {len(sequence)} frames of joints"
        )
    marks = "\n".join(pictures.fingerprint(frame) for frame in range(len(pictures)))
    return {
        "name": sequence.name,
        "frames": len(sequence),
        "pictures": hashlib.sha256(marks.encode()).hexdigest(),
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
            words.append(f"--source.{name}={value}")
    words += [f"--detector={detector}", f"--split={split}"]
    if precision != "32-true":
        words.append(f"--precision={precision}")
    return shlex.join(words)


def from_file(path: str | Path, sequences: Many[Sequence]) -> Detections:
    """Detections that were made elsewhere.

    Args:
        path: An `.npz` file of `export`.
        sequences: The sequences that must be in it; further frames at their ends are left out.

    Raises:
        DataError: If the file is not what it claims to be, or a sequence is missing or too short.
    """
    arrays = _plain_arrays(Path(path))
    joints2d, score, lengths = arrays["joints2d"], arrays["score"], arrays["lengths"]
    names, joints = arrays["names"].tolist(), tuple(arrays["joints"].tolist())
    if joints2d.shape != (*score.shape, 2) or lengths.shape != (len(names),):
        raise DataError(
            f"{path}: joints2d {joints2d.shape}, score {score.shape}, names ({len(names)},) and "
            f"lengths {lengths.shape} do not fit each other; export it again"
        )
    skeleton = next((known for known in SKELETONS.values() if known.joints == joints), None)
    if skeleton is None or joints2d.shape[1] != len(joints):
        raise DataError(
            f"{path}: its joints ({', '.join(joints)}) are no known joint set; "
            f"known are {', '.join(SKELETONS)}"
        )
    if (lengths < 0).any() or lengths.sum() != len(joints2d):
        raise DataError(
            f"{path}: lengths are below zero or add up to {lengths.sum()}, not to {len(joints2d)} frames"
        )
    starts = dict(zip(names, np.cumsum(lengths) - lengths, strict=True))
    frames = dict(zip(names, lengths, strict=True))
    spans = {}
    for sequence in sequences:
        have = frames.get(sequence.name)
        if have is None or have < len(sequence):
            raise DataError(
                f"{path}: sequence {sequence.name} "
                f"{'is missing' if have is None else f'has {have} frames, not {len(sequence)}'}; "
                f"the file holds {', '.join(names[:5])}{' …' * (len(names) > 5)}"
            )
        first = int(starts[sequence.name])
        spans[sequence.name] = (first, first + len(sequence))
    missing = ~np.isfinite(joints2d).all(-1) | ~(score > 0)
    joints2d, score = joints2d.astype(np.float32), score.astype(np.float32)
    joints2d[missing], score[missing] = np.nan, 0.0
    return Detections(skeleton, joints2d, score, spans, str(path))


def export(detections: Detections, path: str | Path) -> None:
    """Write detections to an `.npz` file of plain arrays.

    It holds `joints2d` (N, J, 2) in pixels, `score` (N, J), `joints` (J,) names of the joints,
    `names` (S,) and `lengths` (S,) of the sequences, in the order of their rows.

    Raises:
        StorageError: If the disk refuses.
    """
    order = sorted(detections.spans, key=lambda name: detections.spans[name])
    rows = [slice(*detections.spans[name]) for name in order]
    arrays = {
        "joints2d": np.concatenate([detections.joints2d[row] for row in rows]),
        "score": np.concatenate([detections.score[row] for row in rows]),
        "joints": np.array(detections.skeleton.joints),
        "names": np.array(order),
        "lengths": np.array([row.stop - row.start for row in rows]),
    }
    checkpoint.write_whole(
        Path(path),
        lambda file: np.savez(file, allow_pickle=False, **arrays),
    )


def _plain_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an exported file, whole, of plain types and of bounded size."""
    kinds = {"joints2d": "f", "score": "f", "joints": "U", "names": "U", "lengths": "i"}
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > MAX_UNPACKED:
                raise DataError(f"{path}: unpacks to {unpacked:,} bytes; refused")
            if damaged := archive.testzip():
                raise DataError(f"{path}: damaged: {damaged} fails its CRC; fetch it again")
        with np.load(path, allow_pickle=False) as members:
            if absent := sorted(set(kinds) - set(members)):
                raise DataError(
                    f"{path}: missing array {', '.join(absent)} (has: {', '.join(members)})"
                )
            arrays = {name: members[name] for name in kinds}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{path}: is no file of detections ({error})") from error
    for name, kind in kinds.items():
        if arrays[name].dtype.kind != kind:
            raise DataError(f"{path}: {name} holds {arrays[name].dtype}, not what it should")
    return arrays
