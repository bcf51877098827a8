"""Transfer of weights from one stage to the next, with a report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.errors import DataError, UsageError, printable
from pipeline.files.torch_files import read_checkpoint
from pipeline.training.checkpoints import checkpoint_stage, weights_digest


@dataclass(frozen=True)
class WeightsReport:
    """Report of transferred or imported weights.

    Args:
        source: Published file, "state dict", or stage of the source checkpoint (not its path).
        digest: SHA-256 of the weights or of the published file, or "".
        loaded: Names of weights of this network that were loaded.
        kept: Names of weights of this network that were not in the source.
        dropped: Names of weights of the source that are not in this network.
        layout: Naming scheme of a published file.
        part: Part of the network that was requested: whole, base or backbone.
        net: Network of an import, `class_path` and `init_args`.
        image_input: Input that an imported 2D network was trained on: channel order, mean and
            deviation.
        notes: Assumptions about facts that cannot be read from weights.
    """

    source: str
    digest: str
    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    layout: str = ""
    part: str = ""
    net: Mapping[str, Any] = field(default_factory=dict)
    image_input: str = ""
    notes: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Convert the report to plain types, for a checkpoint or JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    def text(self) -> str:
        """One line with the numbers of loaded, kept and dropped weights."""
        title = f"{self.source} ({self.layout})" if self.layout else f"weights {self.digest[:12]}"
        line = f"{title}: {len(self.loaded)} loaded"
        for outcome, names in (("kept", self.kept), ("dropped", self.dropped)):
            if names:
                more = " …" if len(names) > 4 else ""
                line += f", {len(names)} {outcome} ({', '.join(names[:4])}{more})"
        return printable(line)

    def __str__(self) -> str:
        lines = [self.text()]
        if self.net:
            options = ["--model.net", self.net["class_path"]]
            for name, value in self.net["init_args"].items():
                options += [f"--model.net.init_args.{name}", json.dumps(value)]
            lines.append(f"network: {shlex.join(options)}")
        if self.image_input:
            lines.append(f"input: {self.image_input}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(map(printable, lines))


def transfer_weights(
    module: nn.Module,
    path: str | Path,
    *,
    stages: Sequence[str],
    prefixes: Callable[[str], tuple[str, ...]],
    check: Callable[[Mapping[str, Any], str | Path], None] | None = None,
    whole: bool = False,
) -> WeightsReport:
    """Load the weights of a checkpoint of another stage that have the same names.

    If an error is raised, the module has not changed.

    Args:
        module: Module that gets the weights.
        path: Source checkpoint.
        stages: Accepted stages of the source checkpoint.
        prefixes: Returns the name prefixes of the transferred weights for the source's stage.
        check: Further check of the content of the checkpoint and its path.
        whole: Whether the file must have all weights of the module's `net`.

    Raises:
        DataError: If the file is damaged, is of another stage, shares no name with the module, or
            has another shape for a shared name.
        UsageError: If `whole` is true and the file lacks weights of `net`.
    """
    content = read_checkpoint(path)
    stage = checkpoint_stage(content, path)
    if stage not in stages:
        raise DataError(f"{path}: is a checkpoint of stage {stage}; wanted {' or '.join(stages)}")
    if check is not None:
        check(content, path)
    selected = prefixes(stage)
    source = {n: value for n, value in content["state_dict"].items() if n.startswith(selected)}
    target = {n: value for n, value in module.state_dict().items() if n.startswith(selected)}
    shared = _shared_names(source, target, path)
    if whole:
        _require_all_weights(module, shared, path)
    module.load_state_dict({name: source[name] for name in shared}, strict=False)
    return WeightsReport(
        f"checkpoint of {stage}",
        weights_digest(source),
        tuple(shared),
        tuple(name for name in target if name not in source),
        tuple(name for name in source if name not in target),
    )


def _shared_names(
    source: Mapping[str, Tensor], target: Mapping[str, Tensor], path: str | Path
) -> list[str]:
    """Names in both state dicts; raise DataError if none is of `net` or if shapes differ."""
    shared = [name for name in target if name in source]
    if not any(name.startswith("net.") for name in shared):
        raise DataError(
            f"{path}: none of its {len(source)} weights fits this network; "
            "give the same `net` to both stages"
        )
    different = [name for name in shared if source[name].shape != target[name].shape]
    if different:
        name = different[0]
        raise DataError(
            f"{path}: {name} is {tuple(source[name].shape)} there and "
            f"{tuple(target[name].shape)} here (and {len(different) - 1} more); "
            "give the same `net` to both stages"
        )
    return shared


def _require_all_weights(module: nn.Module, shared: Sequence[str], path: str | Path) -> None:
    """Raise UsageError if a weight of `net` would keep its random initial value."""
    missing = sorted(
        name
        for name in module.state_dict().keys() - set(shared)
        if name.startswith("net.") and not name.endswith("num_batches_tracked")
    )
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UsageError(
            f"{path}: has only a part of this network, without {', '.join(missing[:3])}{more}; "
            "train it first, or give a checkpoint of this stage by --ckpt_path instead"
        )


def check_joint_set(content: Mapping[str, Any], module: nn.Module, path: object) -> None:
    """Check that a checkpoint of a 2D stage finds the joints that a module of the same stage finds.

    Args:
        content: Content of the checkpoint.
        module: The module; one without a joint set of its own, `skeleton`, is not checked.
        path: Path of the checkpoint, for error messages.

    Raises:
        DataError: If it finds those of another set; of some published weights that is not known.
    """
    skeleton = getattr(module, "skeleton", None)
    theirs = content.get("hyper_parameters", {}).get("skeleton")
    same_stage = checkpoint_stage(content, str(path)) == getattr(module, "stage", None)
    if same_stage and skeleton is not None and theirs not in (None, skeleton.name):
        raise DataError(
            f"{path}: finds the joints of {theirs}, and this run has {skeleton.name}; give "
            f"--data.skeleton {theirs}"
        )
