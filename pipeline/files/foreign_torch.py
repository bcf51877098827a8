"""Weight files that other programs wrote with torch, read without running code from them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import DataError
from pipeline.files import torch_files, torch_pickle

NUMPY_NAMES = (
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.random.__RandomState_ctor",
    "numpy.random._pickle.__randomstate_ctor",
    "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random._mt19937.MT19937",
)
"""Names that a pickle has for a NumPy random state, array or number."""


EXTRA_NAMES = {*NUMPY_NAMES, "_codecs.encode", "torch._utils._rebuild_tensor", "__builtin__.set"}
"""Names that a pickle in a published file may have, beside those allowed in a checkpoint."""


class _Ignored:
    """Stand-in for a NumPy value that is not needed; it takes any arguments and does nothing."""

    def __new__(cls, *_: object) -> _Ignored:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        return


def read_foreign_torch(path: Path) -> Any:
    """The content of a file of either torch format, with stand-ins for NumPy's values.

    Raises:
        DataError: If the file is missing, damaged, or holds anything but tensors and plain or NumPy
            values.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path")
    if not path.is_file():
        raise DataError(f"{path}: is not a file; give the file with the weights")
    if zipfile.is_zipfile(path):
        torch_files.verify_checkpoint(path)
    try:
        torch_pickle.scan_pickle(path, _is_allowed)
        with torch.serialization.safe_globals([(_Ignored, name) for name in NUMPY_NAMES]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except torch_pickle.ForeignNameError as error:
        raise DataError(
            f"{path}: rejected: it wants to run {error}, which no file of weights needs"
        ) from error
    except Exception as error:  # a hostile or foreign file can make torch raise anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(
            f"{path}: is no file of weights that torch can read safely ({reason})"
        ) from error


def _is_allowed(name: str) -> bool:
    return name in EXTRA_NAMES or torch_files.ALLOWED_NAMES.fullmatch(name) is not None
