"""Options of a run, and the options of Lightning's Trainer that the help of a stage lists."""

from __future__ import annotations

import os
from typing import Any, Literal, NamedTuple

DEFAULT_EPOCHS, DEFAULT_STEPS = 50, 5000
"""Length of a training whose command line and configs give none: what comes first."""


class Option(NamedTuple):
    """One option of the command line.

    Args:
        name: Name without the dashes.
        type: Type of its value; None for a switch, which has no value.
        default: Value without the option.
        help: Help text.
    """

    name: str
    type: Any
    default: Any
    help: str


RUN_OPTIONS = (
    Option(
        "name",
        str | None,
        None,
        "Name of the run; by default that of the network, unless a config names it, and the "
        "names of the configs, joined by -.",
    ),
    Option("runs", str, "runs", "Folder of all runs; the run is in RUNS/STAGE/NAME."),
    Option(
        "wandb",
        str,
        os.environ.get("WANDB", "auto"),
        "W&B mode: auto (online if there is an API key), online, offline or off.",
    ),
    Option("group", str | None, None, "W&B group, shared by the stages of one chain."),
    Option("save_every", int, 200, "Optimizer steps between two checkpoints to resume from."),
    Option(
        "weights",
        Literal["best", "last"],
        "best",
        "Weights of a fit that are tested and passed on: the best of its validations, or the "
        "last, as published code has it where the test split is the only one to validate on.",
    ),
    Option(
        "patience",
        float,
        1800.0,
        "Seconds that a process waits for the others before the run ends with an error.",
    ),
)
"""Options of every command of a stage."""

FIT_OPTIONS = (
    Option(
        "resume_with_changed_code",
        None,
        False,
        "Resume a run also if the code of Heatlift or of the --import files has changed.",
    ),
)
"""Options that fit has besides."""

EVALUATION_OPTIONS = (
    Option("untrained", None, False, "Evaluate random weights, where no checkpoint is given."),
)
"""Options that validate, test and predict have besides."""

CHECKPOINT_HELP = (
    "Checkpoint to evaluate, or newest: that of the newest finished run of this stage."
)
"""Help of `--ckpt_path`, which is an option of evaluations."""

SEED_HELP = "Seed of weights, shuffling, augmentation and noise."
"""Help of `--seed_everything`."""

TRAINER_HELP = {
    "max_epochs": "Epochs of the training; if no length is given at all, it takes "
    f"{DEFAULT_EPOCHS} epochs or {DEFAULT_STEPS} steps, whichever is first.",
    "max_steps": "Optimizer steps of the training; -1 for no limit in steps.",
    "max_time": "Time after which a training ends, as DD:HH:MM:SS.",
    "devices": "Number of processes, each with a GPU or a share of the CPU; torchrun sets it.",
    "num_nodes": "Number of machines, started by torchrun or SLURM.",
    "accelerator": "auto, cpu or cuda.",
    "precision": "32-true, or bf16-mixed or 16-mixed for the network alone.",
    "accumulate_grad_batches": "Batches whose gradients are summed before an optimizer step.",
    "gradient_clip_val": "Largest norm of the gradient of a step.",
    "check_val_every_n_epoch": "Epochs from one validation to the next.",
    "limit_train_batches": "Number of batches of an epoch, or a share below 1.",
    "limit_val_batches": "Number of batches of a validation, or a share below 1.",
    "limit_test_batches": "Number of batches of a test, or a share below 1.",
    "fast_dev_run": "Run this number of batches of all loops and write no run, to try a config.",
}
"""Options of the Trainer that the help of a stage lists; `--help_all` lists all of them."""
