"""Weights transferred from one stage to the next, with a report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.errors import DataError, UsageError
from pipeline.files.torch_files import read_checkpoint
from pipeline.training.checkpoints import stage_of, weights_digest


@dataclass(frozen=True)
class WeightsReport:
    """What became of the weights of another stage, or of weights that others published.

    Args:
        source: Published file, "state dict", or stage of the source checkpoint (not its path).
        digest: SHA-256 of the weights or of the published file, or "".
        loaded: Names of this network that got values.
        kept: Names of this network that kept theirs.
        dropped: Names in the source that were left out.
        layout: Whose names a published file has.
        part: Which part was asked for: whole, base or backbone.
        net: Network of an import, `class_path` and `init_args`.
        notes: Assumptions about facts that weights do not tell.
    """

    source: str
    digest: str
    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    layout: str = ""
    part: str = "whole"
    net: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """The report as plain types, for a checkpoint or JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    def text(self) -> str:
        """One line: how much was loaded, and what was not."""
        title = f"{self.source} ({self.layout})" if self.layout else f"weights {self.digest[:12]}"
        line = f"{title}: {len(self.loaded)} loaded"
        for word, names in (("kept", self.kept), ("dropped", self.dropped)):
            if names:
                more = " …" if len(names) > 4 else ""
                line += f", {len(names)} {word} ({', '.join(names[:4])}{more})"
        return line

    def __str__(self) -> str:
        lines = [self.text()]
        if self.net:
            words = ["--model.net", self.net["class_path"]]
            for name, value in self.net["init_args"].items():
                words += [f"--model.net.init_args.{name}", json.dumps(value)]
            lines.append(f"network: {shlex.join(words)}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def transfer_weights(
    module: nn.Module,
    path: str | Path,
    *,
    stages: Sequence[str],
    prefixes: Callable[[str], tuple[str, ...]],
    whole: bool = False,
) -> WeightsReport:
    """Load the weights of another stage, strictly where they overlap, or change nothing.

    Args:
        module: The receiver.
        path: The source checkpoint.
        stages: The stages that it may come from.
        prefixes: Stage of the source checkpoint -> how the names begin that are transferred.
        whole: Whether all of the receiver's `net` must be in the file, because no training follows.

    Raises:
        DataError: If the file is damaged, comes from another stage, shares no name with the
            receiver, or has a shared name in another shape.
        UsageError: If `whole` is true and a part of `net` is not in the file.
    """
    content = read_checkpoint(path)
    stage = stage_of(content, path)
    if stage not in stages:
        raise DataError(f"{path}: is a checkpoint of stage {stage}; wanted {' or '.join(stages)}")
    passing = prefixes(stage)
    given = {n: value for n, value in content["state_dict"].items() if n.startswith(passing)}
    wanted = {n: value for n, value in module.state_dict().items() if n.startswith(passing)}
    shared = _shared_names(given, wanted, path)
    if whole:
        _require_whole(module, shared, path)
    module.load_state_dict({name: given[name] for name in shared}, strict=False)
    return WeightsReport(
        f"checkpoint of {stage}",
        weights_digest(given),
        tuple(shared),
        tuple(name for name in wanted if name not in given),
        tuple(name for name in given if name not in wanted),
    )


def _shared_names(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str | Path
) -> list[str]:
    """Names that source and receiver share, all of the same shape."""
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
    return shared


def _require_whole(module: nn.Module, shared: Sequence[str], path: str | Path) -> None:
    """Raise if a weight of `net` would keep its random initial value."""
    initial = sorted(
        name
        for name in module.state_dict().keys() - set(shared)
        if name.startswith("net.") and not name.endswith("num_batches_tracked")
    )
    if initial:
        more = f" and {len(initial) - 3} more" if len(initial) > 3 else ""
        raise UsageError(
            f"{path}: has only a part of this network, without {', '.join(initial[:3])}{more}; "
            "train it first, or give a checkpoint of this stage by --ckpt_path instead"
        )
