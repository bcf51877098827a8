"""Files of torch: verified, scanned and read without running code from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import DataError, StorageError
from pipeline.files import torch_pickle
from pipeline.files.pickle_machine import ForeignNameError
from pipeline.files.zip_members import ArchiveError

ALLOWED_NAMES = re.compile(
    r"torch\.\w+Storage|torch\.(float|bfloat|int|uint|complex)\d+|torch\.(bool|Size|device)|"
    r"torch\._utils\._rebuild_(tensor_v2|parameter)|"
    r"collections\.(OrderedDict|Counter)|builtins\.set"
)
"""Names that the pickle in a checkpoint may have: tensors as torch writes them, and containers."""

SHARING = 4
"""Largest ratio of the bytes of all tensors to those of all storages; tied weights share one."""


def suggest_checkpoint(path: Path, otherwise: str) -> str:
    """What to give instead of a path that is no file: the weights of the run that it names.

    Args:
        path: Folder of a run, or its name, such as lift/mixste_small.
        otherwise: Advice if it is neither.
    """
    for folder in (path, Path("runs") / path):
        for name in ("best.ckpt", "last.ckpt"):
            if (found := folder / "checkpoints" / name).is_file():
                return f"did you mean {found}?"
    if others := sorted(path.parent.glob("*.ckpt")):
        return f"{path.parent} has {', '.join(other.name for other in others[-4:])}"
    return otherwise


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, verified and loaded without running code from it.

    Raises:
        DataError: If it is missing, not a checkpoint, truncated, changed by a single bit or more,
            claims more than its size, or holds anything but tensors and plain values.
        StorageError: If it does not fit into memory.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is not a file" if path.exists() else "no such checkpoint"
        otherwise = "give the .ckpt inside it" if path.exists() else "check the path"
        raise DataError(f"{path}: {problem}; {suggest_checkpoint(path, otherwise)}")
    try:
        if _first_bytes(path) != b"PK\x03\x04":
            size = path.stat().st_size
            raise DataError(f"{path}: is not a checkpoint, or was truncated ({size:,} bytes)")
        content = torch_pickle.read_torch(path, ALLOWED_NAMES.fullmatch)
    except ForeignNameError as error:
        raise DataError(f"{path}: contains code ({error}); rejected") from error
    except ArchiveError as error:
        raise DataError(f"{path}: damaged, {error}; use an older checkpoint") from error
    except ValueError as error:
        raise DataError(f"{path}: is not a checkpoint ({error}); rejected") from error
    except OSError as error:
        raise DataError(f"{path}: damaged ({error}); use an older checkpoint") from error
    except MemoryError as error:
        raise StorageError(f"{path}: does not fit into memory") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise DataError(f"{path}: holds no state_dict; it is not a checkpoint of Heatlift")
    check_tensor_sizes(content, path)
    for name, value in content["state_dict"].items():
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            raise DataError(f"{path}: {name} is not finite; use an older checkpoint")
    return content


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def check_tensor_sizes(content: Any, path: str | Path) -> None:
    """Raise if a tensor, at any depth of the content, has more numbers than its storage.

    A few bytes can be expanded to a tensor of any size, which takes memory as soon as it is copied.

    Args:
        content: Content of a file: nested dictionaries, lists, tuples and sets.
        path: Path of the file, for error messages.

    Raises:
        DataError: If a tensor has more bytes than its storage, or all tensors have more than
            `SHARING` times the bytes of all storages.
    """
    remaining: list[tuple[Any, Any]] = [(None, content)]
    seen: set[int] = set()
    claimed, storages = 0, {}
    while remaining:
        trail, value = remaining.pop()
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            claimed += value.nbytes
            storages[storage.data_ptr()] = storage.nbytes()
            if value.nbytes > storage.nbytes():
                raise DataError(
                    f"{path}: {_trail_text(trail)} claims more numbers than the file holds; "
                    "rejected"
                )
        elif isinstance(value, Mapping | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            inner = value.items() if isinstance(value, Mapping) else enumerate(value)
            remaining += [((trail, key), part) for key, part in inner]
    if claimed > SHARING * sum(storages.values()):
        raise DataError(f"{path}: its tensors claim more numbers than the file holds; rejected")


def _trail_text(trail: Any) -> str:
    """The last three keys that lead to a value, the innermost first: `exp_avg of 0 of state`.

    Args:
        trail: Pair of the trail of the container and the key in it; None at the top.
    """
    keys: list[str] = []
    while trail and len(keys) < 3:
        trail, key = trail
        keys.append(str(key)[:80])
    return " of ".join(keys)
