"""Weight files that other programs wrote with torch, read without running code from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import torch_files, torch_pickle
from pipeline.files.pickle_machine import ForeignNameError
from pipeline.files.zip_members import ArchiveError

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
"""Names that a pickle has for a NumPy random state, array or number; their values are ignored."""


EXTRA_NAMES = {*NUMPY_NAMES, "_codecs.encode", "torch._utils._rebuild_tensor", "__builtin__.set"}
"""Names that a pickle in a published file may have, beside those allowed in a checkpoint."""


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
    try:
        return torch_pickle.read_torch(path, _is_allowed)
    except ForeignNameError as error:
        raise DataError(
            f"{path}: rejected: it wants to run {error}, which no file of weights needs"
        ) from error
    except ArchiveError as error:
        raise DataError(f"{path}: damaged ({error}); fetch it again") from error
    except (ValueError, OSError, MemoryError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(
            f"{path}: is no file of weights that can be read safely ({reason})"
        ) from error


def _is_allowed(name: str) -> bool:
    return name in EXTRA_NAMES or torch_files.ALLOWED_NAMES.fullmatch(name) is not None
