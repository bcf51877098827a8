"""Files of torch: verified, scanned and read without running anything that they hold."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import DataError, StorageError
from pipeline.files import torch_pickle

HARMLESS = re.compile(
    r"torch\.\w+Storage|torch\.(float|bfloat|int|uint|complex)\d+|torch\.(bool|Size|device)|"
    r"torch\._utils\._rebuild_(tensor_v2|parameter)|"
    r"collections\.(OrderedDict|defaultdict|Counter)|builtins\.(set|dict)"
)
"""What the pickle in a checkpoint may name: how torch writes tensors, and containers of them."""


def verify_checkpoint(path: str | Path) -> Path:
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


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, verified and loaded without running anything it holds.

    Raises:
        DataError: See `verify_checkpoint`; also if it holds anything but tensors and plain values.
    """
    path = verify_checkpoint(path)
    try:
        torch_pickle.scan_pickle(path, HARMLESS.fullmatch)
    except torch_pickle.ForeignNameError as error:
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
    check_tensor_sizes(content, path)
    for name, value in content["state_dict"].items():
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            raise DataError(f"{path}: {name} is not finite; use an older checkpoint")
    return content


SHARING = 4
"""How many times the numbers of a file its tensors may have together; tied weights share theirs."""


def check_tensor_sizes(content: Any, path: str | Path) -> None:
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
