"""Images, videos and tables sent to the run folder and to W&B."""

from __future__ import annotations

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
from pipeline.dashboard.wandb_logger import ResilientWandbLogger, artifact_name
from pipeline.errors import printable
from pipeline.files import writing

_log = logging.getLogger(__name__)


def finish_wandb(trainer: pl.Trainer) -> None:
    """End the W&B runs of a trainer that has finished logging; else they end with the process."""
    for logger in wandb_loggers(trainer):
        logger.finish()


def wandb_loggers(trainer: pl.Trainer) -> list[ResilientWandbLogger]:
    """The W&B loggers of a trainer."""
    return [logger for logger in trainer.loggers if isinstance(logger, ResilientWandbLogger)]


_MAX_VERSIONS = 10
"""Number of steps whose image or video is kept, per name."""


MAX_VIDEO_FRAMES = 75
"""Most frames of a video: encoding takes about 25 ms per frame."""


def warn_on_failure(show_one: Callable[..., None]) -> Callable[..., None]:
    """Decorator: run on rank zero only, not during the sanity check; log exceptions as warnings."""

    @functools.wraps(show_one)
    def guarded(trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        try:
            show_one(trainer, *args, **kwargs)
        except Exception as error:  # a failing panel must not stop a run
            name = show_one.__name__
            _log.warning("%s: %s: %s; the run goes on", name, type(error).__name__, error)

    return guarded


@warn_on_failure
def log_image(trainer: pl.Trainer, name: str, image: canvas.Image, caption: str = "") -> None:
    """Write an image to `images/<name>-<step>.png`, slashes as dashes, and log it to W&B.

    Args:
        trainer: Trainer; its `default_root_dir` is the run folder.
        name: Name as in `PANELS`.
        image: RGB image, (H, W, 3).
        caption: Caption, one line.
    """
    path = _media_path(trainer, name, ".png")
    media.write_png(path, image)
    _remove_old_versions(path, name)
    _save_caption(path, caption)
    _send_to_wandb(
        trainer, name, lambda wandb: wandb.Image(str(path), caption=printable(caption) or None)
    )


@warn_on_failure
def log_video(
    trainer: pl.Trainer, name: str, frames: Iterable[canvas.Image], fps: float, caption: str = ""
) -> None:
    """Write a video to `images/<name>-<step>.webm`, slashes as dashes, and log it to W&B.

    Args:
        trainer: Trainer; its `default_root_dir` is the run folder.
        name: Name as in `PANELS`.
        frames: RGB images, all of one size.
        fps: Frames per second, Hz.
        caption: Caption, one line.
    """
    path = _media_path(trainer, name, ".webm")
    media.write_video(path, frames, fps)
    _remove_old_versions(path, name)
    _save_caption(path, caption)
    _send_to_wandb(
        trainer,
        name,
        lambda wandb: wandb.Video(str(path), caption=printable(caption), format="webm"),
    )


@warn_on_failure
def log_table(
    trainer: pl.Trainer, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Write a table to `tables/<name>.csv`, replacing an older one, and log it to W&B."""
    columns = [printable(column) for column in columns]
    cells = [[_plain_cell(cell) for cell in row] for row in rows]
    path = Path(trainer.default_root_dir) / "tables" / f"{_file_name(name)}.csv"
    writing.write_csv(path, [columns, *cells])
    _send_to_wandb(trainer, f"{name}_table", lambda wandb: wandb.Table(columns=columns, data=cells))


@warn_on_failure
def log_bars(
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
    """Draw one bar per name and show the chart; see `log_image` and `charts.draw_bars`."""
    log_image(
        trainer, name, charts.draw_bars(names, values, unit, title, mean=mean), caption or title
    )


@warn_on_failure
def log_artifact(trainer: pl.Trainer, path: Path, kind: str) -> None:
    """Log a checkpoint or a cache entry, a file or a folder, to W&B as an artifact."""
    name = artifact_name(Path(trainer.default_root_dir).name, kind)

    def add(run: Any) -> None:
        import wandb

        artifact = wandb.Artifact(name, type=kind)
        if path.is_dir():
            artifact.add_dir(str(path), policy="immutable")
        else:
            artifact.add_file(str(path), policy="immutable")  # no second copy on disk
        run.log_artifact(artifact)

    for logger in wandb_loggers(trainer):
        logger.attempt(add)


def _send_to_wandb(trainer: pl.Trainer, name: str, make: Callable[[Any], Any]) -> None:
    step = trainer.global_step

    def log(run: Any) -> None:
        import wandb

        run.log({printable(name): make(wandb), "trainer/global_step": step})

    for logger in wandb_loggers(trainer):
        logger.attempt(log)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "unnamed"


def _media_path(trainer: pl.Trainer, name: str, suffix: str) -> Path:
    stem = f"{_file_name(name)}-{trainer.global_step:06d}"
    return Path(trainer.default_root_dir) / "images" / f"{stem}{suffix}"


def _remove_old_versions(path: Path, name: str) -> None:
    """Delete all but the first and the newest steps of an image, to save disk space."""
    steps = re.compile(re.escape(_file_name(name)) + r"-\d{6,}")
    versions = sorted(
        (other for other in path.parent.glob(f"*{path.suffix}") if steps.fullmatch(other.stem)),
        key=lambda other: int(other.stem.rpartition("-")[2]),
    )
    for old in versions[1 : 1 - _MAX_VERSIONS]:
        old.unlink(missing_ok=True)


def _save_caption(path: Path, caption: str) -> None:
    """Store a caption in `captions.json` beside the images; index.html reads it."""
    captions = page.read_json_or_empty(path.parent / "captions.json")
    if caption and captions.get(path.name) != caption:
        captions[path.name] = caption
        with writing.atomic_path(path.parent / "captions.json") as temporary:
            temporary.write_text(json.dumps(captions, indent=1, ensure_ascii=False))


def _plain_cell(value: Any) -> Any:
    """A table cell as None, bool, int, str, or float with four decimals; None if not finite."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int)) else printable(value)
