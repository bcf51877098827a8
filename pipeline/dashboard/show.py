"""Images, videos and tables sent to the run folder and to W&B."""

from __future__ import annotations

import csv
import functools
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from pipeline.dashboard import canvas, charts, media, page
from pipeline.dashboard.wandb_logger import ResilientWandbLogger
from pipeline.files import writing

_log = logging.getLogger(__name__)


def finish_wandb(trainer: pl.Trainer) -> None:
    """End the W&B run of a trainer that logs no more; else the end of the process does."""
    for logger in wandb_loggers(trainer):
        logger.finish()


def wandb_loggers(trainer: pl.Trainer) -> list[ResilientWandbLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, ResilientWandbLogger)]


_VERSIONS = 10
"""Steps of an image that are kept."""


MAX_VIDEO_FRAMES = 75
"""A video has no more frames than this: encoding them takes about 25 ms each."""


def best_effort(show_one: Callable[..., None]) -> Callable[..., None]:
    """Only on rank zero, not while sanity checking; a failure costs an image, not the run."""

    @functools.wraps(show_one)
    def guarded(trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        try:
            show_one(trainer, *args, **kwargs)
        except Exception as error:  # an image is never worth a run
            name = show_one.__name__
            _log.warning("%s: %s: %s; the run goes on", name, type(error).__name__, error)

    return guarded


@best_effort
def show_image(trainer: pl.Trainer, name: str, image: canvas.Image, caption: str = "") -> None:
    """Show an image: `images/<name>-<step>.png` in the run folder, slashes as dashes, and W&B.

    Args:
        trainer: Its `default_root_dir` is the run folder.
        name: As in `PANELS`.
        image: RGB, (H, W, 3).
        caption: One line for people.
    """
    path = _image(trainer, name, ".png")
    media.write_png(path, image)
    _thin_out(path, name)
    _keep_caption(path, caption)
    _send(trainer, name, lambda wandb: wandb.Image(str(path), caption=caption or None))


@best_effort
def show_video(
    trainer: pl.Trainer, name: str, frames: Iterable[canvas.Image], fps: float, caption: str = ""
) -> None:
    """Show a video: `images/<name>-<step>.webm` in the run folder, and W&B.

    Args:
        trainer: Its `default_root_dir` is the run folder.
        name: As in `PANELS`.
        frames: RGB, all of one size.
        fps: Frames per second, Hz.
        caption: One line for people.
    """
    path = _image(trainer, name, ".webm")
    media.write_video(path, frames, fps)
    _thin_out(path, name)
    _keep_caption(path, caption)
    _send(trainer, name, lambda wandb: wandb.Video(str(path), caption=caption, format="webm"))


@best_effort
def show_table(
    trainer: pl.Trainer, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Show a table: `tables/<name>.csv` in the run folder, the newest only, and W&B."""
    cells = [[_cell(cell) for cell in row] for row in rows]
    path = Path(trainer.default_root_dir) / "tables" / f"{_file_name(name)}.csv"
    with writing.atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([list(columns), *cells])
    _send(trainer, f"{name}_table", lambda wandb: wandb.Table(columns=list(columns), data=cells))


@best_effort
def show_bars(
    trainer: pl.Trainer,
    name: str,
    names: Sequence[str],
    values: Sequence[float],
    *,
    unit: str,
    title: str,
    caption: str = "",
    mean: float | None = None,
) -> None:
    """Show one bar per name; see `show_image` and, for the mean, `draw.bars`."""
    show_image(
        trainer, name, charts.draw_bars(names, values, unit, title, mean=mean), caption or title
    )


@best_effort
def log_artifact(trainer: pl.Trainer, path: Path, kind: str) -> None:
    """Give W&B a checkpoint or a cache entry, a file or a folder; without W&B nothing happens."""
    run_name = _file_name(str(Path(trainer.default_root_dir).name))

    def add(run: Any) -> None:
        import wandb

        artifact = wandb.Artifact(f"{run_name}-{kind}", type=kind)
        if path.is_dir():
            artifact.add_dir(str(path), policy="immutable")
        else:
            artifact.add_file(str(path), policy="immutable")  # no second copy on disk
        run.log_artifact(artifact)

    for logger in wandb_loggers(trainer):
        logger.attempt(add)


def _send(trainer: pl.Trainer, name: str, make: Callable[[Any], Any]) -> None:
    step = trainer.global_step

    def log(run: Any) -> None:
        import wandb

        run.log({name: make(wandb), "trainer/global_step": step})

    for logger in wandb_loggers(trainer):
        logger.attempt(log)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "unnamed"


def _image(trainer: pl.Trainer, name: str, suffix: str) -> Path:
    stem = f"{_file_name(name)}-{trainer.global_step:06d}"
    return Path(trainer.default_root_dir) / "images" / f"{stem}{suffix}"


def _thin_out(path: Path, name: str) -> None:
    """Keep the first and the newest of an image's steps: a long run must not fill the disk."""
    steps = re.compile(re.escape(_file_name(name)) + r"-\d{6,}")
    versions = sorted(
        (other for other in path.parent.glob(f"*{path.suffix}") if steps.fullmatch(other.stem)),
        key=lambda other: int(other.stem.rpartition("-")[2]),
    )
    for old in versions[1 : 1 - _VERSIONS]:
        old.unlink(missing_ok=True)


def _keep_caption(path: Path, caption: str) -> None:
    """Captions lie beside the images for index.html to find."""
    captions = page.read_json_or_empty(path.parent / "captions.json")
    if caption and captions.get(path.name) != caption:
        captions[path.name] = caption
        with writing.atomic_path(path.parent / "captions.json") as temporary:
            temporary.write_text(json.dumps(captions, indent=1, ensure_ascii=False))


def _cell(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int)) else str(value)
