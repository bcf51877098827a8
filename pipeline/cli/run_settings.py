"""The settings of a run: everything that shapes its result, and where it puts its files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.cli.configs import plain_values
from pipeline.errors import UsageError
from pipeline.files.digests import file_digest, folder_digest
from pipeline.files.torch_files import read_checkpoint
from pipeline.training.checkpoints import weights_digest
from pipeline.training.run_folder import make_folder, remove_partial_files, settings_digest

WITHOUT_EFFECT = (
    "config",
    "name",
    "runs",
    "wandb",
    "group",
    "save_every",
    "patience",
    "seed_everything",
    "ckpt_path",
    "import",
)
"""Options that do not change what a run computes (the seed is kept under a name of its own)."""

PLACE_OPTIONS = (
    "default_root_dir",
    "logger",
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "enable_progress_bar",
)
"""Options of the Trainer that say where a run computes, not what."""


def run_settings(config: Any, arguments: Sequence[str]) -> dict[str, Any]:
    """Everything that shapes the result of a run, as plain types; files stand as digests.

    Args:
        config: The parsed config of a subcommand.
        arguments: The command line, for the files given with --import.
    """
    values = plain_values(config)
    settings = {key: value for key, value in values.items() if key not in WITHOUT_EFFECT}
    for key in PLACE_OPTIONS:
        settings["trainer"].pop(key, None)
    if not settings["trainer"].get("callbacks"):
        settings["trainer"].pop("callbacks", None)
    settings["data"].pop("workers", None)
    settings["seed"] = config.seed_everything
    own = [Path(after) for argument, after in pairwise(arguments) if argument == "--import"]
    if own:
        settings["import"] = {path.name: file_digest(path) for path in own}
    for part, key in (("model", "pretrained"), ("data", "detections")):
        if given := settings[part].get(key):
            settings[part][key] = _content_digest(given)
    return settings


def _content_digest(given: str) -> str:
    """Digest of a file or folder, or the text itself if it names none."""
    path = Path(given)
    if path.is_file() and path.suffix == ".ckpt":
        return weights_digest(read_checkpoint(path)["state_dict"])
    if path.is_file():
        return file_digest(path)
    return folder_digest(path) if path.is_dir() else given


def run_name(config: Any, stage: str) -> str:
    """Name of a run: the one given, or the names of its configs.

    Raises:
        UsageError: If it is a path.
    """
    stems = "-".join(Path(str(path)).stem for path in config.get("config") or [])
    name: str = config.name or stems or stage
    if Path(name).name != name or name.startswith("."):
        raise UsageError(f"--name {name}: is a path; give a name, and the folder with --runs")
    return name


def evaluation_folder(
    config: Any, run: Path, subcommand: str | None, settings: Mapping[str, Any]
) -> Path:
    """Folder of an evaluation, in the folder of the run it evaluates if that can be written to.

    The same checkpoint on other data or under another protocol must not replace what is there.

    Args:
        config: The parsed config of the subcommand.
        run: Folder of a run of this name.
        subcommand: validate, test or predict.
        settings: See `run_settings`.
    """
    path = Path(config.ckpt_path).resolve() if config.ckpt_path else None
    beside = path is not None and path.parent.name == "checkpoints"
    if path and beside and os.access(path.parents[1], os.W_OK):
        run = path.parents[1]
    digest = settings_digest([settings, path and file_digest(path)])
    folder = run / f"{subcommand}-{digest[:6]}"
    make_folder(folder)
    remove_partial_files(folder)
    return folder
