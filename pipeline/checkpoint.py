"""How a checkpoint is written, verified and read; what may be imported because a file names it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor, nn

from pipeline import pickled
from pipeline.errors import DataError, StorageError, UsageError

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
"""What a YAML file or a checkpoint may name; the command line adds to it with --import."""

HARMLESS = re.compile(
    r"torch\.\w+Storage|torch\.(float|bfloat|int|uint|complex)\d+|torch\.(bool|Size|device)|"
    r"torch\._utils\._rebuild_(tensor_v2|parameter)|"
    r"collections\.(OrderedDict|defaultdict|Counter)|builtins\.(set|dict)"
)
"""What the pickle in a checkpoint may name: how torch writes tensors, and containers of them."""

jsonargparse.set_parsing_settings(
    import_path_denylist=["*"], import_path_allowlist=list(ALLOWED_IMPORTS)
)


def allow_import(name: str) -> None:
    """Let configs and checkpoints name classes of a module that the command line named."""
    jsonargparse.set_parsing_settings(import_path_allowlist=[name])


def fsync_folder(folder: Path) -> None:
    """Make renames inside a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, write: Any) -> None:
    """Write a file so that it is there whole or not at all.

    Args:
        path: The final name. An older file under it stays until the new one is on the disk.
        write: Called with an open binary file.

    Raises:
        StorageError: If the disk refuses; the older file is untouched and nothing partial is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        fsync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer turns ENOSPC into RuntimeError
        part.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: cannot be written ({error}); make room or choose another folder. "
            "The file that was there before is untouched"
        ) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Remove the unfinished files of processes that no longer live."""
    for part in folder.glob(".*.part"):
        pid = part.name.split(".")[-2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
            part.unlink(missing_ok=True)


def verify(path: str | Path) -> Path:
    """Check that a file is a whole checkpoint before anything of it is used.

    Returns:
        The path.

    Raises:
        DataError: If it is missing, not a checkpoint, cut short, changed by as much as one bit, or
            would unpack to more than its size.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such checkpoint; check the path")
    if not path.is_file():
        raise DataError(f"{path}: is not a file; give the .ckpt inside it")
    if not zipfile.is_zipfile(path):
        size = path.stat().st_size
        raise DataError(f"{path}: is not a checkpoint, or was cut short ({size:,} bytes)")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise DataError(f"{path}: holds packed members, which torch never writes; refused")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise DataError(f"{path}: claims to unpack to more than its size; refused")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: damaged ({error}); use an older checkpoint") from error
    if damaged:
        raise DataError(f"{path}: damaged, {damaged} fails its CRC; use an older checkpoint")
    return path


def read(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, verified and loaded without running anything it holds.

    Raises:
        DataError: See `verify`; also if it holds anything but tensors and plain values.
    """
    path = verify(path)
    try:
        pickled.scan(path, HARMLESS.fullmatch)
    except pickled.ForeignName as error:
        raise DataError(f"{path}: contains code ({error}), refused") from error
    except ValueError as error:
        raise DataError(f"{path}: is not a checkpoint ({error}); refused") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise StorageError(f"{path}: does not fit into memory") from error
    except Exception as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise DataError(f"{path}: refused by the safe reader ({reason})") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise DataError(f"{path}: holds no state_dict; it is not a checkpoint of Heatlift")
    refuse_claims(content, path)
    for name, value in content["state_dict"].items():
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            raise DataError(f"{path}: {name} is not finite; use an older checkpoint")
    return content


SHARING = 4
"""How many times the numbers of a file its tensors may have together; tied weights share theirs."""


def refuse_claims(content: Any, path: str | Path) -> None:
    """Raise if a tensor, however deep in the content, has more numbers than the file gave it.

    A few bytes can be expanded to a tensor of any size, which takes memory as soon as it is copied.

    Args:
        content: Dictionaries, lists and tuples of whatever there is.
        path: For people.

    Raises:
        DataError: If one tensor has more numbers than its storage, or all have more than `SHARING`
            times as many as all storages.
    """
    todo: list[tuple[Any, Any]] = [(None, content)]
    seen: set[int] = set()
    claimed, given = 0, {}
    while todo:
        trail, value = todo.pop()
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            claimed += value.nbytes
            given[storage.data_ptr()] = storage.nbytes()
            if value.nbytes > storage.nbytes():
                raise DataError(
                    f"{path}: {_spelled(trail)} claims more numbers than the file holds; refused"
                )
        elif isinstance(value, Mapping | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            inner = value.items() if isinstance(value, Mapping) else enumerate(value)
            todo += [((trail, key), part) for key, part in inner]
    if claimed > SHARING * sum(given.values()):
        raise DataError(f"{path}: its tensors claim more numbers than the file holds; refused")


def _spelled(trail: Any) -> str:
    """The last keys of a way into nested containers, as `exp_avg of 0 of state`."""
    keys: list[str] = []
    while trail and len(keys) < 3:
        trail, key = trail
        keys.append(str(key)[:80])
    return " of ".join(keys)


def stage_of(content: Mapping[str, Any], path: str | Path) -> str:
    """Which stage a checkpoint is of.

    Raises:
        DataError: If it does not say.
    """
    stage = content.get("heatlift", {}).get("stage")
    if stage is None:
        raise DataError(
            f"{path}: does not say which stage it is of; if others published it, use "
            "`heatlift weights import` first"
        )
    return str(stage)


WEIGHTS_ALONE = "weights alone"
"""Told to `WholeFiles`: leave out what only a run that goes on needs."""

_TO_GO_ON = (
    "callbacks",
    "optimizer_states",
    "lr_schedulers",
    "MixedPrecision",
    "averaging_state",
    "current_model_state",
)


class WholeFiles(CheckpointIO):
    """Lightning's checkpoints, written whole or not at all and verified before use."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint: temporary file in the same folder, fsync, one rename."""
        if storage_options == WEIGHTS_ALONE:
            checkpoint = {key: checkpoint[key] for key in checkpoint if key not in _TO_GO_ON}
        write_whole(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint; see `read`."""
        return read(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()


def weights_digest(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and values of all weights and buffers."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of all files of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{file_digest(path)} {path.relative_to(folder)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def rebuild(path: str | Path, stages: Sequence[str]) -> pl.LightningModule:
    """The module a checkpoint holds, with its weights, in evaluation mode on the CPU.

    Args:
        path: A checkpoint of a run.
        stages: The stages that will do.

    Raises:
        DataError: If the file is damaged, of another stage, or does not say how its module is made.
    """
    import importlib

    content = read(path)
    stage = stage_of(content, path)
    if stage not in stages:
        raise DataError(f"{path}: is a checkpoint of stage {stage}; wanted {' or '.join(stages)}")
    if "_instantiator" not in content.get("hyper_parameters", {}):
        what = "does not say how its network is made; train it with the CLI"
        if "published" in content["heatlift"]:
            what = (
                "is imported from published weights, without settings of a run; give it as "
                "--model.pretrained, or, to be a detector, import a whole 2D network with its "
                "--skeleton"
            )
        raise DataError(f"{path}: {what}")
    names = {"heatmap": "HeatmapModule", "integral": "IntegralModule"} | {
        "pretrain": "PretrainModule",
        "lift": "LiftModule",
    }
    cls = getattr(importlib.import_module(f"pipeline.{stage}"), names[stage])
    try:
        module: pl.LightningModule = cls.load_from_checkpoint(path, map_location="cpu")
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: cannot be turned into a {names[stage]} ({reason})") from error
    return module.eval()


@dataclass(frozen=True)
class HandOver:
    """What became of the weights that one stage hands to the next.

    Args:
        digest: Of the weights in the file.
        loaded: Names that were taken over.
        new: Names of the receiver that the file does not have; they keep their initial values.
        left_over: Names in the file that the receiver does not have.
    """

    digest: str
    loaded: tuple[str, ...]
    new: tuple[str, ...]
    left_over: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """As plain types, for a checkpoint or JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    def text(self) -> str:
        """One line: how much was loaded, and what was not."""
        line = f"weights {self.digest[:12]}: {len(self.loaded)} loaded"
        for word, names in (("new", self.new), ("left over", self.left_over)):
            if names:
                line += f", {len(names)} {word} ({', '.join(names[:4])}{' …' * (len(names) > 4)})"
        return line


def hand_over(
    module: nn.Module,
    path: str | Path,
    *,
    stages: Sequence[str],
    passing: tuple[str, ...],
    whole: bool = False,
) -> HandOver:
    """Load the weights of another stage, strictly where they overlap, or change nothing.

    Args:
        module: The receiver.
        path: The checkpoint.
        stages: The stages it may come from.
        passing: Prefixes of the names that pass.
        whole: Whether nothing of the receiver's `net` may stay as it was drawn, because nobody is
            going to train it.

    Raises:
        DataError: If the file is damaged, comes from another stage, shares no name with the
            receiver, or has a shared name in another shape.
        UsageError: If it has to have all of `net` and has not.
    """
    content = read(path)
    stage = stage_of(content, path)
    if stage not in stages:
        raise DataError(f"{path}: is a checkpoint of stage {stage}; wanted {' or '.join(stages)}")
    given = {
        name: value for name, value in content["state_dict"].items() if name.startswith(passing)
    }
    wanted = {
        name: value for name, value in module.state_dict().items() if name.startswith(passing)
    }
    shared = [name for name in wanted if name in given]
    if not shared:
        raise DataError(
            f"{path}: none of its {len(given)} weights fits this network; "
            "give the same `net` to both stages"
        )
    clashes = [name for name in shared if given[name].shape != wanted[name].shape]
    if clashes:
        name = clashes[0]
        raise DataError(
            f"{path}: {name} is {tuple(given[name].shape)} there and "
            f"{tuple(wanted[name].shape)} here (and {len(clashes) - 1} more); "
            "give the same `net` to both stages"
        )
    drawn = [
        name
        for name in module.state_dict().keys() - set(shared)
        if name.startswith("net.") and not name.endswith("num_batches_tracked")
    ]
    if whole and drawn:
        raise UsageError(
            f"{path}: has only a part of this network, without {', '.join(sorted(drawn)[:3])}"
            f"{f' and {len(drawn) - 3} more' * (len(drawn) > 3)}; train it first, or give "
            "a checkpoint of this stage by --ckpt_path instead"
        )
    module.load_state_dict({name: given[name] for name in shared}, strict=False)
    return HandOver(
        weights_digest(given),
        tuple(shared),
        tuple(name for name in wanted if name not in given),
        tuple(name for name in given if name not in wanted),
    )
