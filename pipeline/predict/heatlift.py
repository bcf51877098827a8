"""Heatlift: the Python API of `heatlift predict`; a source in, the 3D motion of its people out."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from pipeline.errors import DataError, UsageError
from pipeline.export.motion import Motion
from pipeline.files.torch_files import suggest_checkpoint
from pipeline.lift.module import LiftModule
from pipeline.predict.boxes_file import read_boxes
from pipeline.predict.estimators import Estimator, PersonFinder, estimator_facts
from pipeline.predict.lifting import lifter_facts
from pipeline.predict.live import LiveLifter, describe_latency, finish_live
from pipeline.predict.load_estimator import load_estimator
from pipeline.predict.media import Frame, Media, is_media, open_media, require_source
from pipeline.predict.motion_maker import make_motion
from pipeline.predict.onnx_own import OnnxLifter, load_onnx_lifter
from pipeline.predict.options import (
    LiftOptions,
    Runtime,
    SourceOptions,
    check_choice,
    check_live,
)
from pipeline.predict.people_files import read_tracks
from pipeline.predict.tracking import Stop, StoppedEarlyError, track_media
from pipeline.predict.tracks import TrackedPeople, cut_clip
from pipeline.training.checkpoints import load_module, weights_digest
from pipeline.training.run_folder import newest_finished_run
from pipeline.weights.box_lifter import find_box, licence_of
from pipeline.weights.onnx_export import exported_checkpoint

_SOURCE_FIELDS = {field.name for field in dataclasses.fields(SourceOptions)}
_LIFT_FIELDS = {field.name for field in dataclasses.fields(LiftOptions)}


class Heatlift:
    """A lifter and, for images, an estimator of 2D joints, ready to use on any number of sources.

    >>> Heatlift.load(lifter="none.ckpt")
    Traceback (most recent call last):
    pipeline.errors.DataError: none.ckpt: no such file; give the checkpoint of a lifter

    Args:
        lifter: Trained lifter.
        name: Name of its run or its checkpoint.
        estimator: Name or file of the estimator; None for the default one. It is loaded when the
            first video or image is predicted.
        device: Device of torch.
        runtime: What computes the network of an estimator's checkpoint.
        licence: Licence of the lifter, if it is known.
    """

    def __init__(
        self,
        lifter: LiftModule,
        name: str,
        estimator: str | None,
        device: torch.device,
        runtime: Runtime = "torch",
        licence: str = "",
    ) -> None:
        self.lifter, self.device, self.runtime = lifter.to(device), device, runtime
        self._estimator_name = estimator
        self._estimator: tuple[Estimator, Any] | None = None
        net = lifter.net
        digest = net.digest if isinstance(net, OnnxLifter) else weights_digest(lifter)
        self._lifter_facts = lifter_facts(lifter, name, digest, licence)
        self._notes = net.network.notes if isinstance(net, OnnxLifter) else []

    @classmethod
    def load(
        cls,
        lifter: str | Path | None = None,
        estimator: str | None = None,
        *,
        device: str = "auto",
        runtime: Runtime = "torch",
    ) -> Heatlift:
        """Load the networks.

        Args:
            lifter: Checkpoint of a lifter, or its ONNX file; `newest` for the newest finished one
                in ./runs. By default the lifter in the box.
            estimator: Name (`blazepose`, `blazepose-lite`, …) or file (our checkpoint, .onnx,
                .tflite) of the estimator of 2D joints; `blazepose` by default.
            device: Device of torch; `auto` takes a GPU if there is one.
            runtime: `onnx` computes the networks of checkpoints by onnxruntime; each is exported
                once. An ONNX file is always computed by onnxruntime.

        Raises:
            DataError: If there is no lifter, or a file is damaged.
            UsageError: If what `runtime` needs is not installed, or there is no such device.
        """
        check_choice("runtime", runtime, Runtime)
        device = find_device(str(device))
        path = find_lifter() if lifter is None else Path(lifter)
        if lifter == "newest":
            path = newest_lifter()
        if not path.is_file():
            advice = suggest_checkpoint(path, "give the checkpoint of a lifter")
            raise DataError(f"{path}: no such file; {advice}")
        module = load_lifter(path, device, runtime)
        run = path.parent.parent.name if path.parent.name == "checkpoints" else ""
        name, licence = run or path.name, licence_of(path)
        return cls(module, name, estimator, torch.device(device), runtime, licence)

    def predict(
        self, source: str | Path | int, *, stop: Stop = lambda: False, **flags: Any
    ) -> Motion:
        """3D motion of all people in a source.

        Args:
            source: Video, image, folder of images, number of a webcam, or file of 2D joints.
            stop: Asked after each frame whether to stop; what was found so far is returned then.
            flags: Options of the command, see `SourceOptions` and `LiftOptions`.

        Raises:
            DataError: If the source cannot be read.
            UsageError: If an option makes no sense.
        """
        source_options, lift_options = split_flags(flags)
        people, stopped = self.track(source, source_options, lift_options, stop)
        facts = {
            "weights": {"lifter": self._lifter_facts, "estimator": dict(people.estimator)},
            "versions": versions(),
            "warnings": [
                *(f"lifter: {note}" for note in self._notes),
                *["stopped by the user; the rest of the source is missing"] * stopped,
            ],
        }
        return make_motion(people, self.lifter, lift_options, facts)

    def track(
        self,
        source: str | Path | int,
        source_options: SourceOptions,
        lift_options: LiftOptions,
        stop: Stop,
    ) -> tuple[TrackedPeople, bool]:
        """2D joints of the people of a source, and whether the user stopped early."""
        require_source(str(source))
        path = Path(str(source))
        _require_fitting(source_options, path)
        if _is_file_of_joints(path):
            return _read_file(path, source_options, lift_options.person), False
        media = self.open(source, source_options)
        estimator, finder = self.networks(source_options)
        try:
            # the cache must not depend on how many people are kept at last
            return track_media(media, estimator, finder, stop=stop), False
        except StoppedEarlyError as stopped:
            return stopped.people, True

    def open(self, source: str | Path | int, options: SourceOptions) -> Media:
        """The frames of a source."""
        return open_media(str(source), time=options.time, every=options.every, fps=options.fps)

    def networks(self, options: SourceOptions) -> tuple[Estimator, PersonFinder]:
        """The estimator of 2D joints and what finds people, loaded once."""
        if self._estimator is None:
            self._estimator = load_estimator(
                self._estimator_name, str(self.device), options.joints, self.runtime
            )
        estimator, make_finder = self._estimator
        if options.boxes is not None:
            return estimator, read_boxes(Path(options.boxes))
        return estimator, make_finder(options.det_thr)

    def stream(self, source: str | Path | int, **flags: Any) -> Iterator[Motion]:
        """Motion of a source while it runs: one `Motion` of one frame after each frame.

        Nothing looks ahead: tracks are followed, lifted from the frames so far, and smoothed by
        One-Euro, so it fits a webcam.

        Args:
            source: Video, folder of images or number of a webcam.
            flags: Options of the command, see `SourceOptions` and `LiftOptions`.

        Yields:
            The people of each frame, with the facts of `predict` that are known by then.
        """
        media, live = self._open_live(source, flags)
        for frame in media:
            yield live.lift(frame)

    def predict_live(
        self,
        source: str | Path | int,
        *,
        stop: Stop = lambda: False,
        each: Callable[[Frame, Motion], None] = lambda frame, piece: None,
        **flags: Any,
    ) -> Motion:
        """Motion of a source frame by frame, as `stream`, joined to one motion at the end.

        Args:
            source: Video, folder of images or number of a webcam.
            stop: Asked after each frame whether to stop.
            each: Called after each frame with the frame and the people in it.
            flags: Options of the command, see `SourceOptions` and `LiftOptions`.

        Returns:
            The motion of all frames; its facts have `latency_ms`, the time from a frame to its
            motion, the 2D network included.

        Raises:
            DataError: If the source cannot be read, or has no frame.
            UsageError: If an option needs the whole clip.
        """
        media, live = self._open_live(source, flags)
        pieces, latency, stopped = list[Motion](), list[float](), False
        with contextlib.closing(iter(media)) as frames:  # type: ignore[type-var]
            for frame in frames:
                start = time.perf_counter()
                pieces.append(live.lift(frame))
                latency.append(1000 * (time.perf_counter() - start))
                each(frame, pieces[-1])
                if stop():
                    stopped = media.kind != "webcam"
                    break
        if not pieces:
            raise DataError(f"{source}: has no frame")
        warnings = ["stopped by the user; the rest of the source is missing"] * stopped
        facts = {
            "source": media.facts(),
            "assumptions": [*live.assumptions(), *media.notes],
            "warnings": [*warnings, *live.warn_about_person()],
            "latency_ms": describe_latency(latency),
        }
        return finish_live(pieces, facts)

    def _open_live(
        self, source: str | Path | int, flags: dict[str, Any]
    ) -> tuple[Media, LiveLifter]:
        """The frames of a source, and what lifts them one by one."""
        source_options, lift_options = split_flags(flags)
        check_live(lift_options)
        require_source(str(source))
        _require_fitting(source_options, Path(str(source)))
        media = self.open(source, source_options)
        estimator, finder = self.networks(source_options)
        facts = {
            "source": {"name": media.name, "kind": media.kind},
            "weights": {
                "lifter": {**self._lifter_facts, "flip_test": False},
                "estimator": estimator_facts(estimator),
            },
            "versions": versions(),
            "warnings": [],
        }
        return media, LiveLifter(self.lifter, estimator, finder, lift_options, facts)


def _read_file(path: Path, options: SourceOptions, person: str | None) -> TrackedPeople:
    """The people of a 2D file, in the frames that are used."""
    people = read_tracks(
        path,
        joints=options.joints,
        size=options.image_size,
        fps=options.fps,
        frames=options.frames,
        first_frame=options.first_frame,
        person=person,
    )
    return cut_clip(people, options.time, options.every)


def _is_file_of_joints(source: Path) -> bool:
    """Whether a source is a file or folder of 2D joints, and not of images."""
    return source.exists() and not is_media(source)


def _useless_options(source: Path) -> tuple[str, ...]:
    """Names of the options that have no use for a source."""
    return ("boxes", "det_thr") if _is_file_of_joints(source) else ("size", "frames", "first_frame")


def fitting_options(flags: dict[str, Any], source: str) -> dict[str, Any]:
    """Options for one of several sources: those that have no use for it at their defaults."""
    unused = {name: getattr(SourceOptions, name) for name in _useless_options(Path(source))}
    return {**flags, **unused}


def _require_fitting(options: SourceOptions, source: Path) -> None:
    """Check that no option is set that has no use for a source.

    Raises:
        UsageError: If one is.
    """
    kind = "2D joints" if _is_file_of_joints(source) else "images"
    for name in _useless_options(source):
        if getattr(options, name) != getattr(SourceOptions, name):
            raise UsageError(f"{source}: has {kind}, for which --{name} has no use; leave it out")


def split_flags(flags: dict[str, Any]) -> tuple[SourceOptions, LiftOptions]:
    """Options of the command as the two groups of options.

    Raises:
        UsageError: If there is no option of such a name.
    """
    unknown = flags.keys() - _SOURCE_FIELDS - _LIFT_FIELDS
    if unknown:
        known = ", ".join(sorted(_SOURCE_FIELDS | _LIFT_FIELDS))
        raise UsageError(f"no option {sorted(unknown)[0]!r}; there are {known}")
    if isinstance(flags.get("height"), (int, float)):
        flags = {**flags, "height": (float(flags["height"]),)}
    source = {name: value for name, value in flags.items() if name in _SOURCE_FIELDS}
    lift = {name: value for name, value in flags.items() if name in _LIFT_FIELDS}
    return SourceOptions(**source), LiftOptions(**lift)


def find_device(device: str) -> str:
    """The name of a device that torch has: that of `auto` is cuda if there is a GPU, else cpu.

    Raises:
        UsageError: If there is no such device.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if gpus else "cpu"
    known = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))]
    if device not in known:
        raise UsageError(f"device is {device}; here it is one of auto, {', '.join(known)}")
    return device


def find_lifter() -> Path:
    """The lifter that is used where none is named: the one in the box.

    Raises:
        DataError: If it is damaged; or if this package has none, and no lifter was trained either.
    """
    return find_box() or newest_lifter()


def newest_lifter() -> Path:
    """The newest finished lifter in ./runs.

    Raises:
        DataError: If there is none.
    """
    found = newest_finished_run(Path("runs"), "lift", lambda settings: True)
    if found is None:
        raise DataError(
            "runs/lift: no trained lifter in this folder yet; give its checkpoint with --lifter, "
            "or train one: heatlift chain (in a checkout: make lift)"
        )
    return Path(found)


def load_lifter(path: Path, device: str, runtime: Runtime) -> LiftModule:
    """Load a lifter from a checkpoint or from an ONNX file that Heatlift exported.

    Raises:
        DataError: If the file is damaged, or no lifter.
        UsageError: If what `runtime` needs is not installed.
    """
    if path.suffix != ".onnx" and runtime == "torch":
        module: LiftModule = load_module(path, (LiftModule,))
        return module
    exported = path if path.suffix == ".onnx" else exported_checkpoint(path)
    return load_onnx_lifter(exported, device)


def versions() -> dict[str, str]:
    """Versions of what the numbers of a motion depend on."""
    try:
        own = importlib.metadata.version("heatlift")
    except importlib.metadata.PackageNotFoundError:
        own = "unknown"
    return {
        "heatlift": own,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
