"""Published weight files, read without running anything that they hold."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.files import torch_files, torch_pickle

WRAPPERS = ("model_pos", "state_dict", "network", "model")
"""Where files keep their weights, if not at the top."""


NUMPY_NAMES = (
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.random.__RandomState_ctor",
    "numpy.random._pickle.__randomstate_ctor",
    "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random._mt19937.MT19937",
)
"""What a NumPy random state, array or number is made of in a pickle."""


FORMATS = {*NUMPY_NAMES, "_codecs.encode", "torch._utils._rebuild_tensor", "__builtin__.set"}
"""What the pickle in a published file may name beside what one in a checkpoint may."""


class _Inert:
    """Stands in a file for a NumPy value that nobody needs; takes anything and does nothing."""

    def __new__(cls, *_: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        return


def read_published(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file that others published, read without running anything it holds.

    NumPy values beside the weights (the random state and losses that published training scripts
    save) are read past; any other foreign object is refused. Both of torch's formats are read: zip,
    checked by its CRCs, and the one before it, which has no checks.

    Args:
        path: The file.

    Returns:
        Name -> tensor, without `module.` in front, however often.

    Raises:
        DataError: If the file is missing, damaged, holds anything but tensors and plain or NumPy
            values, claims more than it holds, or has no weights; see also `weights_in`.
    """
    return weights_in(_content(Path(path)), str(path))


def _content(path: Path) -> Any:
    """What a file holds, with stand-ins for NumPy's values."""
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path")
    if not path.is_file():
        raise DataError(f"{path}: is not a file; give the file with the weights")
    if zipfile.is_zipfile(path):
        torch_files.verify_checkpoint(path)
    try:
        torch_pickle.scan_pickle(path, _allowed)
        with torch.serialization.safe_globals([(_Inert, name) for name in NUMPY_NAMES]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except torch_pickle.ForeignNameError as error:
        raise DataError(
            f"{path}: refused: it wants to run {error}, which no file of weights needs"
        ) from error
    except Exception as error:  # a hostile or foreign file can make torch raise anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(
            f"{path}: is no file of weights that torch can read safely ({reason})"
        ) from error


def _allowed(name: str) -> bool:
    return name in FORMATS or torch_files.HARMLESS.fullmatch(name) is not None


def weights_in(content: Any, source: str = "state dict") -> dict[str, Tensor]:
    """The weights in a loaded file: bare, or under one of `WRAPPERS`; `module.` is stripped.

    Raises:
        DataError: If there are none, any is not a dense, finite tensor, or `module.` stands before
            some names only.
    """
    state, _ = _chosen(content)
    tensors = (
        {name: value.detach() for name, value in state.items() if isinstance(value, Tensor)}
        if isinstance(state, Mapping)
        else {}
    )
    if not tensors or not all(isinstance(name, str) for name in tensors):
        several = isinstance(content, list | tuple) and any(map(_holds_weights, content))
        raise DataError(
            f"{source}: holds no named weights, neither at the top nor under {', '.join(WRAPPERS)}"
            + "; of a cascade's stages give one, in a file of its own" * several
        )
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise DataError(f"{source}: {name} is not a plain tensor; refused")
    torch_files.check_tensor_sizes(tensors, source)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DataError(f"{source}: {name} is not finite; the file is of no use")
    while all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    marked = sum(name.startswith("module.") for name in tensors)
    if marked:
        raise DataError(
            f"{source}: {marked} of its {len(tensors)} names begin with `module.` and the others "
            "do not; it is not the file of one network"
        )
    return tensors


def _holds_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(part, Tensor) for part in value.values())


def _chosen(content: Any) -> tuple[Any, tuple[str, ...]]:
    """What holds the weights in a file; names of what else there is: weights, and no tensors."""
    if not isinstance(content, Mapping):
        return content, ()
    wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
    state = content if wrapper is None else content[wrapper]
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if wrapper is not None:
        beside = [name for name, value in content.items() if _holds_weights(value)]
        others += [str(name) for name in beside if name != wrapper]
    return state, tuple(others)


def open_source(
    source: str | Path | Mapping[str, Any],
) -> tuple[str, str, dict[str, Tensor], tuple[str, ...]]:
    """Name, digest and weights of a source, and the names of what it has beside them."""
    content: Any = source
    origin, digest = "state dict", ""
    if not isinstance(source, Mapping):
        content, origin = _content(Path(source)), str(source)
        with Path(source).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return origin, digest, weights_in(content, origin), _chosen(content)[1]
