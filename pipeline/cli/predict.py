"""`heatlift predict`: videos, images, webcams and 2D files in; motion, videos and a summary out."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import shlex
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import jsonargparse

from pipeline.cli.arguments import parse_arguments
from pipeline.cli.configs import read_yaml
from pipeline.cli.explain import explain_usage_error
from pipeline.cli.predict_live import check_show, predict_live
from pipeline.cli.predict_summary import summary
from pipeline.errors import HeatliftError, StorageError, UsageError, print_error
from pipeline.export.measures import add_foot_slide
from pipeline.export.options import FORMATS, PER_PERSON, ExportOptions, check_formats
from pipeline.predict.options import (
    LiftOptions,
    OutputOptions,
    SourceOptions,
    check_live,
    is_webcam,
)
from pipeline.training.console import print_line
from pipeline.training.processes import StoppedBySignal, signal_handlers

if TYPE_CHECKING:
    from pipeline.export.motion import Motion
    from pipeline.predict.heatlift import Heatlift


def run(arguments: Sequence[str]) -> None:
    """Run `heatlift predict`.

    Args:
        arguments: Arguments after the name of the command.

    Raises:
        HeatliftError: If an input failed; the others are done all the same.
        StoppedBySignal: If the user stopped it; what was done so far is written.
    """
    inputs, source, lift, output, writing = parse(arguments)
    formats = check_formats(output.export)
    is_live = output.live or any(map(is_webcam, inputs))
    if is_live:
        check_live(lift)
    if output.show:
        check_show(is_live)
    folders = _choose_folders(inputs, output)
    from pipeline.predict.heatlift import Heatlift, fitting_options
    from pipeline.predict.media import check_name, require_source

    if len(inputs) == 1:
        require_source(inputs[0])  # before the networks are loaded
    for folder in folders:
        check_name(folder)
        _check_writable(folder)
    heatlift = Heatlift.load(
        output.lifter, output.estimator, device=output.device, runtime=output.runtime
    )
    stops: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if stops:
            raise StoppedBySignal(number, f"stopped by {signal.Signals(number).name}")
        stops.append(number)
        print_line("stopping: what was found is written; once more ends at once")

    command = shlex.join(["heatlift", "predict", *arguments])
    flags = {**dataclasses.asdict(source), **dataclasses.asdict(lift)}
    failed: list[HeatliftError] = []
    with signal_handlers((signal.SIGTERM, signal.SIGINT), stop):
        for text, folder in zip(inputs, folders, strict=True):
            try:
                own = flags if len(inputs) == 1 else fitting_options(flags, text)
                _predict_one(heatlift, text, folder, own, formats, output, writing, command, stops)
            except HeatliftError as error:
                if len(inputs) == 1:
                    raise
                failed.append(error)
                print_error(str(error), error.exit_code)
            if stops:
                name = signal.Signals(stops[0]).name
                raise StoppedBySignal(
                    stops[0], f"stopped by {name}; what was done so far is in {folder}"
                )
    if failed:
        kind = type(failed[0])
        raise kind(f"{len(failed)} of {len(inputs)} inputs failed, see above; the others are done")


def parse(
    arguments: Sequence[str],
) -> tuple[list[str], SourceOptions, LiftOptions, OutputOptions, ExportOptions]:
    """Parse the arguments of the command.

    Raises:
        UsageError: If they are wrong.
    """
    parser = make_parser()
    expanded, inputs = _with_configs(arguments)
    try:
        config = parser.parse_args(_plain_values(expanded))
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        classes = (OutputOptions, SourceOptions, LiftOptions, ExportOptions)
        known = [field.name for options in classes for field in dataclasses.fields(options)]
        reason = " ".join(explain_usage_error(str(error), known).split())
        raise UsageError(f"predict: {reason[:300]}; see `heatlift predict --help`") from None
    found = config.as_dict()
    found.pop("config", None)
    for name in ("time", "height"):
        if isinstance(found.get(name), list):
            found[name] = tuple(found[name])

    def select(options: type[Any]) -> dict[str, Any]:
        return {field.name: found[field.name] for field in dataclasses.fields(options)}

    source, lift = SourceOptions(**select(SourceOptions)), LiftOptions(**select(LiftOptions))
    output, writing = OutputOptions(**select(OutputOptions)), ExportOptions(**select(ExportOptions))
    inputs = [str(text) for text in found["inputs"]] or inputs
    if not inputs:
        raise UsageError("predict: no input; give a video, a folder of images or a 2D file")
    return inputs, source, lift, output, writing


def make_parser() -> jsonargparse.ArgumentParser:
    """The parser of the command; its help lines are the `Args` of the options' classes."""
    parser = jsonargparse.ArgumentParser(
        prog="heatlift predict",
        description="Predict the 3D motion of the people in videos, images or 2D files.",
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        help="Videos, images, folders of images, the number of a webcam, or files of 2D joints.",
    )
    parser.add_argument("--config", action="config", help="YAML file with these options.")
    for options, title in (
        (OutputOptions, "results"),
        (SourceOptions, "input"),
        (LiftOptions, "motion"),
        (ExportOptions, "files"),
    ):
        parser.add_class_arguments(options, None, as_group=True, help=title)
    return parser


def _with_configs(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments with the content of `--config` files, which have the names of the flags.

    Returns:
        The arguments, and the inputs that the files name, for a command line without inputs.

    Raises:
        UsageError: If a file is missing or no config.
    """
    found, inputs = list[str](), list[str]()
    for argument in parse_arguments(arguments):
        if argument.option not in ("-c", "--config") or argument.value is None:
            found += argument.words()
            continue
        path = Path(argument.value)
        if not path.is_file():
            raise UsageError(f"{path}: no such file; give a YAML file with options of predict")
        content = read_yaml(path)
        for switch in _SWITCHES:
            if f"no_{switch}" in content:
                content[switch] = not content.pop(f"no_{switch}")
        if isinstance(height := content.get("height"), int | float):
            content["height"] = [height]
        own = content.pop("inputs", None) or []
        inputs = [str(text) for text in (own if isinstance(own, list) else [own])]
        found.append(f"--config={json.dumps(content, default=str)}")
    return found, inputs


_SHORT = {"-o": "--out", "-c": "--config"}
_SWITCHES = ("video", "report", "live", "show", "overwrite")
_SEVERAL = {"--time": 2, "--height": None}
"""Options with several values: number of values, None for all numbers that follow."""

_EXAMPLES = {
    "--time": "needs start and end in seconds, as in --time 2 5.5",
    "--height": "needs metres, one number for each person, as in --height 1.75",
}
"""Option with several values -> what to write instead of something else."""


def _plain_values(arguments: Sequence[str]) -> list[str]:
    """Arguments as jsonargparse takes them: switches with a value, several values as a list.

    >>> _plain_values(["a.mp4", "-o", "x", "--no_video", "--time", "1", "2.5", "--height", "1.8"])
    ['a.mp4', '--out', 'x', '--video=false', '--time=[1,2.5]', '--height=[1.8]']
    """
    rest, found = list(arguments), list[str]()
    while rest:
        if rest[0] == "--":  # names of files follow
            return found + rest
        name, equals, value = rest.pop(0).partition("=")
        name = _SHORT.get(name, name)
        if name.startswith("--"):
            name = f"--{name[2:].replace('-', '_')}"
        switch = name.removeprefix("--").removeprefix("no_")
        if not equals and switch in _SWITCHES and name.startswith("--"):
            found.append(f"--{switch}={'false' if name.startswith('--no_') else 'true'}")
        elif name in _SEVERAL:
            values = value.split(",") if equals else []
            while rest and _is_number(rest[0]) and len(values) < (_SEVERAL[name] or 99):
                values.append(rest.pop(0))
            if not values or len(values) != (_SEVERAL[name] or len(values)):
                given = f" {rest[0]}" if rest and not values else ""
                raise UsageError(f"{name}{given}: {_EXAMPLES[name]}")
            found.append(f"{name}=[{','.join(values)}]")
        else:
            found.append(name + equals + value)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _choose_folders(inputs: Sequence[str], output: OutputOptions) -> list[Path]:
    """The folder of the results of each input.

    Raises:
        StorageError: If it has results already.
        UsageError: If two inputs would have one folder.
    """
    stems = [f"webcam{text}" if is_webcam(text) else Path(text).stem for text in inputs]
    if output.out is None:
        folders = [
            Path(text).parent / f"{stem}_heatlift" for text, stem in zip(inputs, stems, strict=True)
        ]
    elif len(inputs) == 1:
        folders = [Path(output.out)]
    else:
        folders = [Path(output.out) / stem for stem in stems]
    for number, folder in enumerate(folders):
        if folder in folders[:number]:
            raise UsageError(f"{inputs[number]}: {folder} is that of another input; rename one")
        kinds = {"video": output.video, "report": output.report}
        old = old_results(folder, check_formats(output.export), **kinds)
        if old and not output.overwrite:
            raise StorageError(
                f"{folder}: has the results of an earlier prediction ({old[0]}); choose another "
                "--out or give --overwrite"
            )
    return folders


def _still_free(folder: Path, formats: Sequence[str], output: OutputOptions) -> Path:
    """The folder, or one with a number if another prediction has written into it meanwhile."""
    kinds = {"video": output.video, "report": output.report}
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    for free in itertools.chain([folder], numbered):
        if output.overwrite or not old_results(free, formats, **kinds):
            break
    if free != folder:
        print_line(f"{folder}: another prediction has written results there; these are in {free}")
    return free


def _check_writable(folder: Path) -> None:
    """Check, before anything is predicted, that files can be written into a folder.

    Raises:
        StorageError: If not.
    """
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be written ({error.strerror}); choose another --out"
        ) from error
    finally:
        for made in missing:
            with contextlib.suppress(OSError):
                made.rmdir()


def old_results(folder: Path, formats: Sequence[str], *, video: bool, report: bool) -> list[str]:
    """Names of the files in a folder that results of these kinds would replace."""
    names = [f"motion.{name}" for name in formats]
    names += [f"motion_*.{name}" for name in formats if name in PER_PERSON]
    names += ["overlay.webm", "side_by_side.webm"] if video else []
    names += ["motion.csv.json"] if "csv" in formats else []
    names += ["motion*.bvh.json"] if "bvh" in formats else []
    names += ["report.html"] if report else []
    return sorted(file.name for name in names for file in folder.glob(name) if file.is_file())


def _predict_one(
    heatlift: Heatlift,
    text: str,
    folder: Path,
    flags: dict[str, Any],
    formats: list[str],
    output: OutputOptions,
    writing: ExportOptions,
    command: str,
    stops: list[int],
) -> None:
    """Predict one input, write its files and print its summary."""
    began = time.monotonic()
    if output.live or is_webcam(text):
        motion = predict_live(heatlift, text, flags, stops, show=output.show)
    else:
        motion = heatlift.predict(text, stop=lambda: bool(stops), **flags)
    motion = dataclasses.replace(motion, facts={**motion.facts, "command": command})
    upright = _upright(motion, flags)
    motion = dataclasses.replace(motion, facts=add_foot_slide(motion, upright))
    folder = _still_free(folder, formats, output)
    before, files = old_results(folder, FORMATS, video=True, report=True), list[str]()
    try:
        for name in write_results(
            motion, folder, formats, heatlift, text, flags, writing, video=output.video
        ):
            files.append(name)
        if output.report:
            files.append(_write_report(upright, folder, files))
    finally:  # also if it fails or is stopped
        if left := sorted(set(before) - set(files)):
            print_line(f"{folder}: not of this prediction: {', '.join(left)}")
    files = [str(folder / name) if not place else name for place, name in enumerate(files)]
    for line in summary(text, motion, files, time.monotonic() - began):
        print_line(line)


def write_results(
    motion: Motion,
    folder: Path,
    formats: Sequence[str],
    heatlift: Heatlift,
    text: str,
    flags: dict[str, Any],
    writing: ExportOptions,
    *,
    video: bool,
) -> Iterator[str]:
    """Write the files of a motion into a folder; give the name of each when it is written."""
    from pipeline.export.bvh import bvh_errors
    from pipeline.export.overlay import write_overlay, write_side_by_side
    from pipeline.predict.heatlift import split_flags
    from pipeline.predict.media import is_media

    for name in formats:
        saved = motion.save(folder / f"motion.{name}", **dataclasses.asdict(writing))
        yield from (file.name for file in saved)
        for line in bvh_errors(saved):
            print_line(line)
        if not saved:
            print_line(f"{folder / f'motion.{name}'}: not written, there is nobody in {text}")
    if not video or is_webcam(text) or not len(motion):
        return
    if not is_media(Path(text)):
        write_side_by_side(motion, None, folder / "side_by_side.webm")
        yield "side_by_side.webm"
        return
    source, _ = split_flags(flags)
    for name, write in (("overlay", write_overlay), ("side_by_side", write_side_by_side)):
        images = (frame.image for frame in heatlift.open(text, source))
        limited = itertools.islice(images, len(motion))  # fewer if the user stopped early
        write(motion, limited, folder / f"{name}.webm")
        yield f"{name}.webm"


def _upright(motion: Motion, flags: Mapping[str, Any]) -> Motion:
    """The motion in a world with z up; itself if it is in one already."""
    from pipeline.predict.heatlift import split_flags
    from pipeline.predict.motion_maker import to_world

    return motion if motion.frame == "world" else to_world(motion, split_flags(dict(flags))[1])


def _write_report(upright: Motion, folder: Path, files: Sequence[str]) -> str:
    """Write the page about a motion beside its files; returns its name."""
    from pipeline.export.report import write_report
    from pipeline.export.small_video import shrink_video

    video = None
    if "overlay.webm" in files:
        video = shrink_video(folder / "overlay.webm", upright.fps, len(upright))
    write_report(upright, folder / "report.html", video=video, files=files)
    return "report.html"
