"""Which pictures, tables and names the loggers get."""

from __future__ import annotations

import csv
import functools
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from pipeline import draw, page
from pipeline.checkpoint import HandOver
from pipeline.metrics import QUANTITIES, MotionReport
from pipeline.page import Metric
from pipeline.skeleton import H36M17, Skeleton
from pipeline.wandb_run import GuardedWandb, loggers

__all__ = [
    "METRICS",
    "PANELS",
    "Dashboard",
    "LiftedClip",
    "chain_index",
    "finish",
    "handover_panel",
    "heatmap_panels",
    "lift_panels",
    "log_artifact",
    "loggers",
    "pretrain_panels",
    "relations_panel",
    "show",
    "show_bars",
    "show_clip",
    "show_table",
    "write_index",
]

_log = logging.getLogger(__name__)

# ---- what is logged under which name ------------------------------------------------------------

_POSE = (
    ("mpjpe", "distance of joints to their exact places, both root-relative"),
    ("p_mpjpe", "the same after the best rotation, scale and shift of each pose"),
    ("n_mpjpe", "the same after the best scale of each pose"),
    ("mpjve", "error of the joints' movement from frame to frame"),
    ("acceleration", "error of the change of that movement"),
)

_EVALUATED = (
    Metric("loss", "-", "what training minimises, on data it has not seen", "min"),
    Metric("pck_0.05", "share", "joints within 0.05 of the longer side of the joints' box", "max"),
    Metric("pck_0.1", "share", "joints within 0.1 of the longer side of the joints' box", "max"),
    Metric("pck_0.2", "share", "joints within 0.2 of the longer side of the joints' box", "max"),
    Metric("pckh_0.5", "share", "joints within half a head size (MPII)", "max"),
    Metric("oks_ap", "share", "average precision over object joint similarity (COCO)", "max"),
    *(Metric(f"{name}_mm", "mm", f"{what}; mean over frames", "min") for name, what in _POSE),
    *(
        Metric(f"{name}_action_mean_mm", "mm", f"{what}; mean over actions", "min")
        for name, what in _POSE
    ),
    *(
        Metric(f"mean_pose_{name}_mm", "mm", f"{what}; of the mean pose in every frame")
        for name, what in _POSE
    ),
    Metric("of_mean_pose", "share", "MPJPE as a share of the mean pose's", "min"),
    Metric("pck3d_150mm", "share", "joints within 150 mm of their exact places", "max"),
    Metric("auc3d", "share", "area under 3D PCK from 0 to 150 mm", "max"),
)

METRICS: tuple[Metric, ...] = (
    Metric("train/loss", "-", "what training minimises", "min"),
    Metric("train/loss_position", "m", "part of the loss: positions", "min"),
    Metric("train/loss_scale", "m", "part of the loss: positions after the best scale", "min"),
    Metric("train/loss_velocity", "m", "part of the loss: velocities", "min"),
    Metric("train/loss_smoothness", "m", "part of the loss: jerkiness over time", "min"),
    Metric("train/delta", "-", "how much the attention of a SAN adds to what it was given"),
    Metric("train/lr", "-", "learning rate of the first group of weights"),
    Metric("train/grad_norm", "-", "length of the gradient before clipping"),
    Metric("train/samples_per_s", "1/s", "samples trained on per second, all processes together"),
    *(
        Metric(f"{split}/{metric.name}", metric.unit, metric.meaning, metric.goal)
        for split in ("val", "test")
        for metric in _EVALUATED
    ),
    *(
        Metric(f"test/subset_{name}_mm", "mm", f"{what}; of frames 0 and 1 of every 16", "min")
        for name, what in _POSE[:4]
    ),
)
"""Every number with a fixed name; docs/dashboards.md lists the same."""


@dataclass(frozen=True)
class Panel:
    """A picture, film or table that the loggers get.

    Args:
        name: As logged; `<split>` stands for val or test.
        kind: Picture, film or table.
        stage: Which stage shows it.
        meaning: One line for people.
    """

    name: str
    kind: Literal["picture", "film", "table"]
    stage: str
    meaning: str


PANELS: tuple[Panel, ...] = (
    Panel(
        "<split>/heatmaps", "picture", "heatmap", "exact joints, heatmaps, detection with errors"
    ),
    Panel(
        "<split>/heatmap_sheet", "picture", "heatmap", "every heatmap of one picture, with its peak"
    ),
    Panel("<split>/pck_per_joint", "picture", "heatmap", "PCK@0.1 of each joint as bars"),
    Panel("<split>/oks_ap", "table", "heatmap", "COCO's ten numbers"),
    Panel("<split>/pckh_0.5", "table", "heatmap", "PCKh@0.5 of each part of the body (MPII)"),
    Panel("<split>/relations", "picture", "integral", "how much each joint attends to each other"),
    Panel(
        "<split>/corruption", "picture", "pretrain", "exact 2D beside what the network was given"
    ),
    Panel(
        "<split>/recovered", "picture", "pretrain", "3D recovered from corrupted 2D, truth in grey"
    ),
    Panel(
        "<split>/poses",
        "picture",
        "lift",
        "a pose of the worst, middle and best clip, front and side, truth in grey",
    ),
    Panel(
        "<split>/motion",
        "picture",
        "lift",
        "frames of the worst clip, front and side, truth in grey",
    ),
    Panel("<split>/per_action", "picture", "lift", "MPJPE of each action as bars"),
    Panel("<split>/per_joint", "picture", "lift", "MPJPE of each joint as bars"),
    Panel("<split>/per_action", "table", "lift", "all errors of each action, and both means"),
    Panel("<split>/per_joint", "table", "lift", "MPJPE of each joint"),
    Panel("<split>/worst_clip_<n>", "film", "lift", "the clips with the largest errors"),
    Panel("handover", "table", "lift", "weights loaded from pretraining, new, left over"),
)
"""Every panel with a fixed name; docs/dashboards.md lists the same."""


def finish(trainer: pl.Trainer) -> None:
    """End the W&B run of a trainer that logs no more; else the end of the process does."""
    for logger in _wandb(trainer):
        logger.finish()


def _wandb(trainer: pl.Trainer) -> list[GuardedWandb]:
    return [logger for logger in trainer.loggers if isinstance(logger, GuardedWandb)]


# ---- pictures, films, tables: into the run folder, and to W&B -----------------------------------

_VERSIONS = 10
"""Steps of a picture that are kept."""

_FILM_FRAMES = 75
"""A film has no more frames than this: encoding them takes about 25 ms each."""


def _guarded(show_one: Callable[..., None]) -> Callable[..., None]:
    """Only on rank zero, not while sanity checking; a failure costs a picture, not the run."""

    @functools.wraps(show_one)
    def guarded(trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        try:
            show_one(trainer, *args, **kwargs)
        except Exception as error:  # a picture is never worth a run
            name = show_one.__name__
            _log.warning("%s: %s: %s; the run goes on", name, type(error).__name__, error)

    return guarded


@_guarded
def show(trainer: pl.Trainer, name: str, image: draw.Image, caption: str = "") -> None:
    """Show a picture: `pictures/<name>-<step>.png` in the run folder, slashes as dashes, and W&B.

    Args:
        trainer: Its `default_root_dir` is the run folder.
        name: As in `PANELS`.
        image: RGB, (H, W, 3).
        caption: One line for people.
    """
    path = _picture(trainer, name, ".png")
    draw.write_png(path, image)
    _thin_out(path, name)
    _keep_caption(path, caption)
    _send(trainer, name, lambda wandb: wandb.Image(str(path), caption=caption or None))


@_guarded
def show_clip(
    trainer: pl.Trainer, name: str, frames: Iterable[draw.Image], fps: float, caption: str = ""
) -> None:
    """Show a film: `pictures/<name>-<step>.webm` in the run folder, and W&B.

    Args:
        trainer: Its `default_root_dir` is the run folder.
        name: As in `PANELS`.
        frames: RGB, all of one size.
        fps: Frames per second, Hz.
        caption: One line for people.
    """
    path = _picture(trainer, name, ".webm")
    draw.write_clip(path, frames, fps)
    _thin_out(path, name)
    _keep_caption(path, caption)
    _send(trainer, name, lambda wandb: wandb.Video(str(path), caption=caption, format="webm"))


@_guarded
def show_table(
    trainer: pl.Trainer, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Show a table: `tables/<name>.csv` in the run folder, the newest only, and W&B."""
    cells = [[_cell(cell) for cell in row] for row in rows]
    path = Path(trainer.default_root_dir) / "tables" / f"{_file_name(name)}.csv"
    with draw.whole(path) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([list(columns), *cells])
    _send(trainer, f"{name}_table", lambda wandb: wandb.Table(columns=list(columns), data=cells))


@_guarded
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
    """Show one bar per name; see `show` and, for the mean, `draw.bars`."""
    show(trainer, name, draw.bars(names, values, unit, title, mean=mean), caption or title)


@_guarded
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

    for logger in _wandb(trainer):
        logger.attempt(add)


def _send(trainer: pl.Trainer, name: str, make: Callable[[Any], Any]) -> None:
    step = trainer.global_step

    def log(run: Any) -> None:
        import wandb

        run.log({name: make(wandb), "trainer/global_step": step})

    for logger in _wandb(trainer):
        logger.attempt(log)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "unnamed"


def _picture(trainer: pl.Trainer, name: str, suffix: str) -> Path:
    stem = f"{_file_name(name)}-{trainer.global_step:06d}"
    return Path(trainer.default_root_dir) / "pictures" / f"{stem}{suffix}"


def _thin_out(path: Path, name: str) -> None:
    """Keep the first and the newest of a picture's steps: a long run must not fill the disk."""
    steps = re.compile(re.escape(_file_name(name)) + r"-\d{6,}")
    versions = sorted(
        (other for other in path.parent.glob(f"*{path.suffix}") if steps.fullmatch(other.stem)),
        key=lambda other: int(other.stem.rpartition("-")[2]),
    )
    for old in versions[1 : 1 - _VERSIONS]:
        old.unlink(missing_ok=True)


def _keep_caption(path: Path, caption: str) -> None:
    """Captions lie beside the pictures for index.html to find."""
    captions = page.read_json(path.parent / "captions.json")
    if caption and captions.get(path.name) != caption:
        captions[path.name] = caption
        with draw.whole(path.parent / "captions.json") as temporary:
            temporary.write_text(json.dumps(captions, indent=1, ensure_ascii=False))


def _cell(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int)) else str(value)


# ---- panels -------------------------------------------------------------------------------------


@_guarded
def heatmap_panels(
    trainer: pl.Trainer,
    examples: Sequence[Mapping[str, Any]],
    skeleton: Skeleton,
    *,
    split: str = "val",
) -> None:
    """Show what the 2D stage sees: `<split>/heatmaps`, and `<split>/heatmap_sheet` of one example.

    Args:
        trainer: Its `default_root_dir` is the run folder.
        examples: Crops, as `HeatmapModule.examples` keeps them: `image` (H, W, 3) RGB, `heatmaps`
            (J, H/4, W/4), detected `joints2d` and exact `truth` (J, 2) in pixels of the crop (NaN
            where unlabelled), `score` (J,), and the `name` of the sample.
        skeleton: The joint set.
        split: val or test.
    """
    if not examples:
        return
    panels = [
        draw.truth_beside_prediction(
            example["image"],
            example["heatmaps"],
            example["joints2d"],
            example["truth"],
            skeleton,
            score=example["score"],
            size=256,
        )
        for example in examples
    ]
    what = "Exact joints, heatmaps, detection; orange left, blue right, red the error."
    show(trainer, f"{split}/heatmaps", draw.contact_sheet(panels, 2), what)
    first = examples[0]
    sheet = draw.heatmap_sheet(first["image"], first["heatmaps"], skeleton)
    what = f"Every heatmap of sample {first['name']}, with its peak."
    show(trainer, f"{split}/heatmap_sheet", sheet, what)


@_guarded
def _pck_panel(
    trainer: pl.Trainer, report: Mapping[str, float], skeleton: Skeleton, split: str
) -> None:
    shares = [100 * report[f"pck@0.1/{joint}"] for joint in skeleton.joints]
    show_bars(
        trainer,
        f"{split}/pck_per_joint",
        skeleton.joints,
        shares,
        unit="%",
        title="PCK@0.1",
        mean=100 * report["pck@0.1"],
    )


@_guarded
def relations_panel(
    trainer: pl.Trainer,
    relations: NDArray[Any],
    skeleton: Skeleton,
    delta: float,
    *,
    split: str = "val",
) -> None:
    """Show how much each joint (row) attends to each other, (J, J): `<split>/relations`.

    Args:
        trainer: Its `default_root_dir` is the run folder.
        relations: 1 where attention is as if spread evenly.
        skeleton: The joint set.
        delta: How much the attention adds.
        split: val or test.
    """
    image = draw.matrix(skeleton.joints, relations, f"attention, delta {delta:.3g}")
    what = "Each row is what a joint looks at; 1: as if all places were looked at alike."
    show(trainer, f"{split}/relations", image, what)


@dataclass(frozen=True, eq=False)
class LiftedClip:
    """One clip that went through a lifter.

    Args:
        name: Of the sequence.
        predicted: Root-relative joints in the camera frame, metres, (T, J, 3).
        target: The truth, (T, J, 3).
        error: MPJPE of the clip in millimetres.
        joints2d: What the lifter was given, in any unit, (T, J, C), or none.
        exact2d: The exact 2D where `joints2d` was corrupted, (T, J, C), or none.
        score: Trust in each joint given, (T, J), 0 where it was hidden; or none.
        pictures: What the camera saw, one RGB picture per frame, or none.
        fps: Frames per second, Hz.
    """

    name: str
    predicted: NDArray[Any]
    target: NDArray[Any]
    error: float
    joints2d: NDArray[Any] | None = None
    exact2d: NDArray[Any] | None = None
    score: NDArray[Any] | None = None
    pictures: Sequence[draw.Image] | None = None
    fps: float = 25.0

    @property
    def title(self) -> str:
        """Name and error."""
        return f"{self.name}  {self.error:.1f} mm"

    @property
    def given2d(self) -> NDArray[np.float64] | None:
        """`joints2d` as (T, J, 2) with hidden joints left out."""
        if self.joints2d is None:
            return None
        given = np.array(self.joints2d[..., :2], np.float64)
        if self.score is not None:
            given[self.score <= 0] = np.nan
        return given


@_guarded
def lift_panels(
    trainer: pl.Trainer,
    clips: Sequence[LiftedClip],
    report: MotionReport,
    skeleton: Skeleton = H36M17,
    *,
    split: str = "test",
    films: int = 3,
) -> None:
    """Show how well a lifter does: errors per action and joint, poses, motion, the worst clips.

    Args:
        trainer: Its `default_root_dir` is the run folder.
        clips: Some clips, the worst, the middle and the best among them.
        report: Errors over the whole split.
        skeleton: The joint set.
        split: val or test.
        films: How many of the worst clips become films.
    """
    _report_panels(trainer, report, split)
    # A clip whose error is NaN is the worst of all.
    ranked = sorted(clips, key=lambda clip: -np.nan_to_num(clip.error, nan=np.inf))
    if not ranked:
        return
    poses = []
    for word, clip in (
        ("worst", ranked[0]),
        ("middle", ranked[len(ranked) // 2]),
        ("best", ranked[-1]),
    ):
        t = len(clip.predicted) // 2
        views = draw.views3d(clip.predicted[t], clip.target[t], skeleton, size=256)
        poses.append(draw.titled(views, f"{word}: {clip.title}"))
    what = "Of the clips shown; prediction in colour, truth in grey."
    show(trainer, f"{split}/poses", draw.beside(*poses), what)
    worst = ranked[0]
    strip = draw.motion_strip(worst.predicted, worst.target, skeleton, pictures=worst.pictures)
    show(
        trainer,
        f"{split}/motion",
        draw.titled(strip, worst.title),
        f"{worst.title}; truth in grey.",
    )
    for rank, clip in enumerate(ranked[:films], start=1):
        every = math.ceil(len(clip.predicted) / _FILM_FRAMES)
        frames = draw.clip_frames(
            clip.predicted,
            clip.target,
            skeleton,
            pictures=clip.pictures,
            joints2d=clip.given2d,
            title=clip.title,
            every=every,
        )
        caption = f"{clip.title}; prediction in colour, truth in grey."
        show_clip(trainer, f"{split}/worst_clip_{rank}", frames, clip.fps / every, caption)


def _report_panels(trainer: pl.Trainer, report: MotionReport, split: str) -> None:
    rows = [(row.name, row.frames, *(getattr(row, q) for q in QUANTITIES)) for row in report.rows]
    frames = sum(row.frames for row in report.rows)
    rows.append(("mean over frames", frames, *(report.frame_mean[q] for q in QUANTITIES)))
    rows.append(("mean over actions", frames, *(report.action_mean[q] for q in QUANTITIES)))
    columns = ["action", "frames", *(f"{q}_mm" for q in QUANTITIES)]
    show_table(trainer, f"{split}/per_action", columns, rows)
    actions = [row.name for row in report.rows]
    errors = [row.mpjpe for row in report.rows]
    title = "MPJPE per action"
    show_bars(trainer, f"{split}/per_action", actions, errors, unit="mm", title=title)
    joints = report.per_joint
    show_table(trainer, f"{split}/per_joint", ["joint", "mpjpe_mm"], list(joints.items()))
    title = "MPJPE per joint"
    show_bars(
        trainer, f"{split}/per_joint", list(joints), list(joints.values()), unit="mm", title=title
    )


@_guarded
def pretrain_panels(
    trainer: pl.Trainer,
    clips: Sequence[LiftedClip],
    skeleton: Skeleton = H36M17,
    *,
    split: str = "val",
) -> None:
    """Show what pretraining does to the middle frame of each clip.

    `<split>/corruption`: exact 2D beside what was given. `<split>/recovered`: 3D beside the truth.
    """
    recovered, given = [], []
    for clip in clips:
        t = len(clip.predicted) // 2
        views = draw.views3d(clip.predicted[t], clip.target[t], skeleton, size=230)
        recovered.append(draw.titled(views, clip.title))
        if clip.given2d is None or clip.exact2d is None:
            continue
        exact = clip.exact2d[t, :, :2]
        bounds = draw.bounds2d(exact)
        pair = [
            draw.joints_alone(exact, skeleton, bounds=bounds, size=230),
            draw.joints_alone(clip.given2d[t], skeleton, truth=exact, bounds=bounds, size=230),
        ]
        sheet = draw.contact_sheet(pair, 2, ["exact 2D", "given, exact in grey"])
        given.append(draw.titled(sheet, clip.name))
    if given:
        what = "What the network is given beside the exact 2D: joints moved, hidden ones missing."
        show(trainer, f"{split}/corruption", draw.contact_sheet(given, 2), what)
    if recovered:
        what = "3D recovered from corrupted 2D in colour, truth in grey."
        show(trainer, f"{split}/recovered", draw.contact_sheet(recovered, 2), what)


@_guarded
def handover_panel(trainer: pl.Trainer, report: HandOver) -> None:
    """Show which weights were loaded, which are new, which were left over: the table `handover`."""
    fates = (("loaded", report.loaded), ("new", report.new), ("left over", report.left_over))
    rows = [(name, fate) for fate, names in fates for name in names]
    show_table(trainer, "handover", ["weight", "what became of it"], rows)


# ---- the callback -------------------------------------------------------------------------------


class Dashboard(Callback):
    """Declares the numbers, logs speed and learning rate, keeps index.html up to date.

    It never raises: what goes wrong here is one warning.
    """

    def __init__(self) -> None:
        self._samples = 0
        self._since = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Tell W&B what the numbers are."""
        for logger in _wandb(trainer):
            logger.declare(METRICS)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; evaluation is not counted."""
        self._samples, self._since = 0, time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log `train/lr` and `train/samples_per_s` as often as the trainer logs."""
        self._samples += _batch_size(batch) * trainer.world_size
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or trainer.global_step % every or not trainer.global_step:
            return
        now = time.perf_counter()
        numbers = {"train/samples_per_s": self._samples / max(now - self._since, 1e-9)}
        if trainer.optimizers:
            numbers["train/lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        self._samples, self._since = 0, now
        for logger in trainer.loggers:  # Lightning counts the steps of `self.log` from 0
            logger.log_metrics(numbers, step=trainer.global_step - 1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what the module kept, and bring index.html up to date while training goes on."""
        self._samples, self._since = 0, time.perf_counter()
        if trainer.sanity_checking:
            return
        self._show_examples(trainer, pl_module, "val")
        bring_up_to_date(trainer)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what the module kept."""
        self._show_examples(trainer, pl_module, "test")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Bring index.html up to date."""
        bring_up_to_date(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Bring index.html up to date, whatever happened."""
        bring_up_to_date(trainer)

    @staticmethod
    def _show_examples(trainer: pl.Trainer, module: pl.LightningModule, split: str) -> None:
        examples, skeleton = getattr(module, "examples", None), getattr(module, "skeleton", None)
        if examples and isinstance(skeleton, Skeleton):
            heatmap_panels(trainer, examples, skeleton, split=split)
            _pck_panel(trainer, module.report, skeleton, split)


def bring_up_to_date(trainer: pl.Trainer) -> None:
    """Write the run folder's `index.html` anew; a failure is a line, not the end of the run."""
    if not trainer.is_global_zero:
        return
    try:
        for logger in trainer.loggers:
            logger.save()
        write_index(Path(trainer.default_root_dir))
    except Exception as error:  # a page is never worth a run
        _log.warning("index.html: %s: %s; the run goes on", type(error).__name__, error)


def write_index(folder: Path) -> Path:
    """Write the run folder's `index.html`; see `page.write_index`."""
    return page.write_index(folder, METRICS)


def chain_index(folders: Sequence[Path], out: Path) -> Path:
    """Write one page that leads to the runs of a chain; see `page.chain_index`."""
    return page.chain_index(folders, out, METRICS)


def _batch_size(batch: Any) -> int:
    """Samples in a batch: the first axis of its first array."""
    values = batch.values() if isinstance(batch, Mapping) else batch
    for value in values if isinstance(values, Iterable) else ():
        if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim:
            return len(value)
    return 0
