"""Published weight files, read without running code from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.files import torch_files
from pipeline.files.digests import file_digest
from pipeline.files.foreign_torch import read_foreign_torch

WRAPPERS = ("model_pos", "state_dict", "network", "model")
"""Keys under which files have their weights, if not at the top."""


class PublishedWeights(NamedTuple):
    """Weights that others published, with their origin.

    Args:
        origin: File, or "state dict".
        digest: SHA-256 of the file, or "".
        weights: Tensors under their published names, without `module.`.
        others: Names of what the source has beside the weights.
    """

    origin: str
    digest: str
    weights: dict[str, Tensor]
    others: tuple[str, ...]


def read_published(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file that others published, read without running code from it.

    NumPy values beside the weights (the random state and losses that published training scripts
    save) are ignored; any other foreign object is an error. Both of torch's formats are read: zip,
    checked by its CRCs, and the older one, which has no checks.

    Args:
        path: Path of the file.

    Returns:
        Name -> tensor; every leading `module.` is removed from the names.

    Raises:
        DataError: If the file is missing, damaged, holds anything but tensors and plain or NumPy
            values, claims more than it holds, or has no weights; see also `extract_weights`.
    """
    return extract_weights(read_foreign_torch(Path(path)), str(path))


def extract_weights(content: Any, source: str = "state dict") -> dict[str, Tensor]:
    """The weights in a loaded file: at the top, or under one of `WRAPPERS`, without `module.`.

    Args:
        content: Loaded content of a file.
        source: Name of the source, for error messages.

    Raises:
        DataError: If there are none, one is not a dense, finite tensor, or only some names begin
            with `module.`.
    """
    state, _ = _find_weights(content)
    tensors = (
        {name: value.detach() for name, value in state.items() if isinstance(value, Tensor)}
        if isinstance(state, Mapping)
        else {}
    )
    if not tensors or not all(isinstance(name, str) for name in tensors):
        hint = ""
        if isinstance(content, list | tuple) and any(map(_holds_weights, content)):
            hint = "; of a cascade's stages give one, in a file of its own"
        raise DataError(
            f"{source}: holds no named weights, neither at the top nor under {', '.join(WRAPPERS)}"
            f"{hint}"
        )
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise DataError(f"{source}: {name} is not a plain tensor; rejected")
    torch_files.check_tensor_sizes(tensors, source)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DataError(f"{source}: {name} is not finite; the file is of no use")
    while all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    prefixed = sum(name.startswith("module.") for name in tensors)
    if prefixed:
        raise DataError(
            f"{source}: {prefixed} of its {len(tensors)} names begin with `module.` and the others "
            "do not; it is not the file of one network"
        )
    return tensors


def _holds_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(part, Tensor) for part in value.values())


def _find_weights(content: Any) -> tuple[Any, tuple[str, ...]]:
    """The part of a loaded file that has its weights.

    Returns:
        The part, and the names of what is beside the weights: other weights, and values in the part
        that are no tensors.
    """
    if not isinstance(content, Mapping):
        return content, ()
    wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
    state = content if wrapper is None else content[wrapper]
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if wrapper is not None:
        others += [
            str(name)
            for name, value in content.items()
            if name != wrapper and _holds_weights(value)
        ]
    return state, tuple(others)


def open_weights(source: str | Path | Mapping[str, Any]) -> PublishedWeights:
    """The weights in a file or in a loaded state dict.

    Raises:
        DataError: See `read_published`.
    """
    if isinstance(source, Mapping):
        content: Any = source
        origin, digest = "state dict", ""
    else:
        content = read_foreign_torch(Path(source))
        origin, digest = str(source), file_digest(Path(source))
    weights = extract_weights(content, origin)
    return PublishedWeights(origin, digest, weights, _find_weights(content)[1])
