"""Rows of the open benchmark: lifters, configs, budgets, and what is equal in all of them."""

from __future__ import annotations

from dataclasses import dataclass

MASKS = {"joint_mask": 0.05, "frame_mask": 0.0}
"""Shares of joints and of whole frames that are hidden in every training of the benchmark.

They are equal for all rows and for the pretraining, because errors on 2D with hidden joints depend
on how many hidden joints a network was trained with. The configs of the rows hold the same values.
No whole frames are hidden: a lifter of single frames would learn nothing from them.
"""

SMOOTH = {"noisy": 3.0, "exact": 1.0}
"""2D input -> standard deviation of the Gaussian over time, frames at 50 Hz; see `LiftModule`."""


@dataclass(frozen=True)
class RowRun:
    """A training of the benchmark.

    Args:
        stage: Its stage.
        name: First part of the name of its run.
        config: Config of its lifter.
        share: Its budget, as a multiple of the budget of a row.
        arguments: Arguments besides the config, the data and the weights to start from.
        pretraining: Config of the pretraining that it starts from; None without one.
    """

    stage: str
    name: str
    config: str
    share: float = 1.0
    arguments: tuple[str, ...] = ()
    pretraining: str | None = None


@dataclass(frozen=True)
class Row:
    """One trained lifter of the table.

    Args:
        name: First part of the name of its run.
        title: Name in the table.
        size: Size in the table.
        config: Config of the lifter.
        detections: 2D input: exact or noisy.
        share: Its budget for lifting, as a multiple of the budget of a row.
        pretraining: Config of its pretraining, which has a separate budget; None without one.
        frames: Frames that choose the best weights in validation, all or subset; see `LiftModule`.
            The errors of the table are on all frames.
        repeated: Whether it is trained with several seeds, because its difference to other rows is
            discussed.
    """

    name: str
    title: str
    size: str
    config: str
    detections: str
    share: float = 1.0
    pretraining: str | None = None
    frames: str = "all"
    repeated: bool = False

    @property
    def total(self) -> float:
        """Budget of lifting and pretraining together, as a multiple of the budget of a row."""
        return self.share + bool(self.pretraining)

    @property
    def label(self) -> str:
        """Title that is different for rows on one 2D input."""
        return f"{self.title} x {self.share:g}" if self.share > 1 else self.title

    def lifting_run(self, seed: int = 0) -> RowRun:
        """Training of the lifter. Without smoothing, so that it does not choose the weights."""
        name, arguments = _with_seed(
            self.name,
            seed,
            *("--data.detections", self.detections, "--model.flip_test", "false"),
            *("--model.smooth=0.0", f"--model.frames={self.frames}"),
        )
        return RowRun("lift", name, self.config, self.share, arguments, self.pretraining)

    def pretraining_run(self, seed: int = 0) -> RowRun | None:
        """Training that the lifter starts from; rows with the same pretraining share it."""
        if self.pretraining is None:
            return None
        name, arguments = _with_seed("pretraining", seed)
        return RowRun("pretrain", name, self.pretraining, arguments=arguments)


def _with_seed(name: str, seed: int, *arguments: str) -> tuple[str, tuple[str, ...]]:
    """Name and arguments of a run with this seed; those of seed 0 do not name it."""
    if not seed:
        return name, arguments
    return f"{name}-seed{seed}", (*arguments, f"--seed_everything={seed}")


def _main_rows(detections: str) -> tuple[Row, ...]:
    """Three lifters at equal budgets, and one of them with and without pretraining."""
    mixste, pretraining = "lift/mixste_mocap", "pretrain/mixste_mocap"
    mixste_size = "13 groups of 5 frames, 64 channels, 4 pairs of blocks"
    rows = (
        (
            "videopose3d",
            "VideoPose3D",
            "27 frames, 512 channels",
            "lift/videopose3d_mocap",
            1,
            None,
        ),
        ("martinez", "Martinez", "1024 channels", "lift/martinez_mocap", 1, None),
        ("mixste", "MixSTE from scratch", mixste_size, mixste, 1, None),
        ("mixste-pretrained", "MixSTE pretrained", mixste_size, mixste, 1, pretraining),
        ("mixste-total", "MixSTE from scratch", mixste_size, mixste, 2, None),
    )
    return tuple(
        Row(
            *(f"{name}-{detections}", title, size, config, detections, share, start),
            repeated=name.startswith("mixste") and detections == "noisy",
        )
        for name, title, size, config, share, start in rows
    )


def _other_rows() -> tuple[Row, ...]:
    """On noisy 2D: MixSTE without groups, and the other lifters of the papers at two budgets."""
    size = "27 frames, 64 channels, 4 pairs of blocks"
    title = "MixSTE, consecutive frames"
    consecutive = Row("mixste_27-noisy", title, size, "lift/mixste_27_mocap", "noisy")
    centre = "27 frames, 16 channels per joint, 2 + 2 blocks"
    rows = (
        ("combined", "Combined Deep Learner", "512 channels", "all"),
        ("cascade", "Cascade", "3 stages of 3 blocks, 512 channels", "all"),
        ("poseformer", "PoseFormer", centre, "subset"),
        ("poseformer_group", "PoseFormer with group attention", centre, "subset"),
    )
    others = (
        Row(f"{name}-noisy", title, size, f"lift/{name}_mocap", "noisy", 2.0, frames=frames)
        for name, title, size, frames in rows
    )
    return (consecutive, *others)


ROWS = (*_main_rows("noisy"), *_other_rows(), *_main_rows("exact"))
"""Rows of the benchmark, in the order in which they are trained."""
