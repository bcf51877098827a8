"""Checkpoints of runs: atomic writing, digests of weights, modules loaded from checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonargparse
import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.cli import instantiate_module
from torch import Tensor, nn

from pipeline.errors import DataError, UsageError
from pipeline.files.torch_files import read_checkpoint
from pipeline.files.writing import write_atomically
from pipeline.training.private_names import INSTANTIATOR, tested_versions, without_instantiator

ALLOWED_IMPORTS = (
    "pipeline",
    "torch.optim",
    "torch.nn",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "lightning.pytorch.plugins",
    "lightning.pytorch.cli",
)
"""Modules whose classes a YAML file or a checkpoint may name; --import adds to them."""


jsonargparse.set_parsing_settings(
    import_path_denylist=["*"], import_path_allowlist=list(ALLOWED_IMPORTS)
)


def allow_import(name: str) -> None:
    """Allow configs and checkpoints to name classes of a module that --import named."""
    jsonargparse.set_parsing_settings(import_path_allowlist=[name])


def describe_mismatch(message: str) -> str | None:
    """One line about weights that do not fit a network, from torch's error; None for another error.

    Args:
        message: Text of the error.
    """
    if "loading state_dict" not in message:
        return None
    parts = []
    for kind, words in (("Missing", "missing"), ("Unexpected", "unknown")):
        if found := re.search(
            rf"{kind} key\(s\) in state_dict: ([^\n]*?)\.\s*(?:\n|$|size|Unex)", message
        ):
            names = re.findall(r'"([^"]+)"', found[1])
            parts.append(f"{len(names)} {'is' if len(names) == 1 else 'are'} {words} ({names[0]})")
    shapes = re.findall(r"mismatch for (\S+):.*?Size\((.*?)\) from.*?Size\((.*?)\)", message, re.S)
    if shapes:
        name, there, here = shapes[0]
        verb = "has" if len(shapes) == 1 else "have"
        parts.append(f"{len(shapes)} {verb} another shape ({name}: {there} there, {here} here)")
    return (
        f"its weights do not fit the network: {', '.join(parts)}; it has other arguments, or its "
        "code has changed since the training"
    )


def checkpoint_stage(content: Mapping[str, Any], path: str | Path) -> str:
    """Name of the stage that a checkpoint belongs to.

    Raises:
        DataError: If the checkpoint does not name its stage.
    """
    stage = content.get("heatlift", {}).get("stage")
    if stage is None:
        raise DataError(
            f"{path}: does not name its stage; if these are published weights, use "
            "`heatlift weights import` first"
        )
    return str(stage)


WEIGHTS_ONLY = "weights alone"
"""Storage option of `AtomicCheckpointIO`: leave out what only a resumed run needs."""

_RESUME_KEYS = (
    "callbacks",
    "optimizer_states",
    "lr_schedulers",
    "MixedPrecision",
    "averaging_state",
    "current_model_state",
)


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoint files, written atomically and verified when read."""

    content: dict[str, Any] | None = None
    """Content of the checkpoint that was read last, until `require_checked_content` has seen it."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint through a temporary file, fsync and a rename."""
        if storage_options == WEIGHTS_ONLY:
            checkpoint = {key: checkpoint[key] for key in checkpoint if key not in _RESUME_KEYS}
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint; see `read_checkpoint`."""
        self.content = read_checkpoint(path)
        return self.content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()


def require_checked_reading(trainer: pl.Trainer) -> pl.Trainer:
    """The trainer, if it writes and reads its checkpoints with `AtomicCheckpointIO`.

    A new version of Lightning could leave the plugin out without a word.

    Raises:
        UsageError: If it has another reader.
    """
    if isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO):
        return trainer
    raise _unchecked_reading()


def require_checked_content(trainer: pl.Trainer, content: Mapping[str, Any]) -> None:
    """Check that the content of a checkpoint was read by the trainer's `AtomicCheckpointIO`.

    Args:
        trainer: A Trainer; one of a script, without that plugin, may read files in its own way.
        content: Content of a checkpoint that is about to be used.

    Raises:
        UsageError: If Lightning read the file itself.
    """
    reader = trainer.strategy.checkpoint_io
    if isinstance(reader, AtomicCheckpointIO):
        last, reader.content = reader.content, None
        if content is not last:
            raise _unchecked_reading()


def _unchecked_reading() -> UsageError:
    return UsageError(
        f"lightning {version('lightning')} reads checkpoints without Heatlift's checks of them; "
        f"run: pip install {tested_versions('lightning')}"
    )


def attached_trainer(module: pl.LightningModule) -> pl.Trainer | None:
    """The trainer of a module; None outside a run."""
    with contextlib.suppress(RuntimeError):
        return module.trainer
    return None


def weights_digest(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, types and values of all weights and buffers."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_module(path: str | Path, classes: Sequence[type[Any]]) -> Any:
    """Load the module of a checkpoint, with its weights, in evaluation mode on the CPU.

    Args:
        path: Checkpoint of a run.
        classes: Accepted stages, subclasses of `Stage`.

    Raises:
        DataError: If the file is damaged, of another stage, or without settings of its module.
    """
    content = read_checkpoint(path)
    stage = checkpoint_stage(content, path)
    cls = next((known for known in classes if known.stage == stage), None)
    if cls is None:
        wanted = " or ".join(known.stage for known in classes)
        raise DataError(f"{path}: is a checkpoint of stage {stage}; wanted {wanted}")
    if not INSTANTIATOR.keys() <= content.get("hyper_parameters", {}).keys():
        problem = "has no settings of its network; train it with the CLI"
        if "published" in content["heatlift"]:
            problem = (
                "is imported from published weights, without settings of a run; give it as "
                "--model.pretrained, or, to use it as a detector, import a whole 2D network with "
                "its --skeleton"
            )
        raise DataError(f"{path}: {problem}")
    cls.check_source(content, path)
    try:
        module = instantiate_module(cls, without_instantiator(content["hyper_parameters"]))
        module.on_load_checkpoint(content)
        module.load_state_dict(content["state_dict"])
    except Exception as error:
        if mismatch := describe_mismatch(str(error)):
            raise DataError(f"{path}: {mismatch}") from error
        if denied := re.search(r"Importing '([^']+)' is not allowed", str(error)):
            raise DataError(
                f"{path}: is a checkpoint of {denied[1]}, which is not part of Heatlift; give the "
                "file of the class with --import FILE.py"
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: cannot be loaded as a {cls.__name__} ({reason})") from error
    return module.eval()
