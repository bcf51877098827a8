"""Inputs of a run: the files and folders that its data come from, by their content."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonargparse

from pipeline.cli.configs import plain_values
from pipeline.detections.request import DetectionRequest
from pipeline.errors import DataError
from pipeline.files.digests import bytes_digest, listing_digest
from pipeline.files.reading import read_bytes
from pipeline.files.store import default_store
from pipeline.sources import Source, SourceWithFiles, Split
from pipeline.training.stage import SPLITS, Stage, StageData

LISTED_FILES = 16
"""Files of one suffix that are listed one by one; of more files, their number and one digest."""


def run_inputs(stage: type[Stage], config: Any, subcommand: str) -> dict[str, str]:
    """Files and folders that the data of a run are read from: name -> SHA-256.

    The name is that below the root of the data, so that a moved folder has the same inputs. Files
    count by their content, which is hashed once while their size and time stay; folders, mostly of
    images, by the names, sizes and times of their files.

    Args:
        stage: Stage that runs.
        config: The parsed config of the subcommand.
        subcommand: fit, validate, test or predict.

    Raises:
        DataError: If a file is missing or cannot be read.
        UsageError: If the arguments of the data module do not fit each other.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(stage.data_class, "data")
    content = parser.parse_object({"data": plain_values(config.data)})
    data: StageData = parser.instantiate(content).data
    splits = {*SPLITS[subcommand], "test"} if subcommand == "fit" else SPLITS[subcommand]
    request = getattr(data, "detections", None)
    is_archive = isinstance(request, DetectionRequest) and request.kind == "archive"
    archive = request.text if isinstance(request, DetectionRequest) and is_archive else ""
    files: dict[str, str] = {}
    for source in data.data_sources():
        for root, path in _source_files(source, splits, archive):
            name = _name_below(path, root)
            same = sum(other == name or other.startswith(f"{name} #") for other in files)
            files[f"{name} #{same + 1}" if same else name] = _content_of(path)
    return _grouped(files)


def content_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the place of the data, whose content the inputs have.

    Two runs with the same of these are the same run: a moved or copied folder is the same data.

    Args:
        settings: Settings of a run; see `pipeline.cli.run_settings.run_settings`.
    """
    if not settings.get("inputs"):
        return dict(settings)
    return {**settings, "data": _without_roots(settings["data"])}


def _without_roots(value: Any) -> Any:
    """Nested settings without `root`; paths beside it that lead below it become relative to it."""
    if isinstance(value, Mapping):
        root = value.get("root")
        is_path = isinstance(root, str) and "://" not in root
        return {
            key: _name_below(Path(item), Path(str(root)))
            if is_path and isinstance(item, str) and Path(item).is_relative_to(str(root))
            else _without_roots(item)
            for key, item in value.items()
            if not (is_path and key == "root")
        }
    return [_without_roots(item) for item in value] if isinstance(value, list) else value


def _name_below(path: Path, root: Path | None) -> str:
    """Name of a path below a folder; `folder` for itself, the last part if it is elsewhere."""
    if root is None or not path.is_relative_to(root):
        return path.name
    return path.relative_to(root).as_posix() if path != root else "folder"


def _source_files(
    source: Source, splits: Collection[Split], detections: str
) -> Iterator[tuple[Path | None, Path]]:
    """Root of each source, also of those in another one, and the files that it reads."""
    places = [getattr(source, name, None) for name in ("folder", "root")]
    root = next((Path(p).expanduser() for p in places if isinstance(p, (str, Path))), None)
    if isinstance(source, SourceWithFiles):
        for path in source.input_files(splits, detections):
            yield root, path
        return
    inner = [part for value in vars(source).values() for part in _sources_in(value)]
    for part in inner:
        yield from _source_files(part, splits, detections)
    for path in _named_paths(source):
        if path.is_file() or not inner:
            yield root, path


def _sources_in(value: Any) -> list[Source]:
    """The data sources in an attribute of another one."""
    items = value if isinstance(value, (list, tuple)) else [value]
    return [item for item in items if callable(getattr(item, "describe", None))]


def _named_paths(source: Source) -> list[Path]:
    """Files and folders that the attributes of a source without `input_files` name.

    A folder that the current one lies in is left out: it has the folders of runs and cache, too.
    """
    found = []
    for name, value in vars(source).items():
        is_name = isinstance(value, str) and (name == "root" or os.sep in value)
        if not isinstance(value, Path) and not is_name:
            continue
        path = Path(value).expanduser()
        if path.is_file() or (path.is_dir() and not Path.cwd().is_relative_to(path.resolve())):
            found.append(path)
    return found


def _content_of(path: Path) -> str:
    """SHA-256 of a file, or number of files and SHA-256 of the listing of a folder."""
    if path.is_dir():
        count, digest = listing_digest(path)
        return f"{count} files, {digest}"
    if not path.is_file():
        read_bytes(path)  # raises with the reason
    try:
        return default_store().digest(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); fetch it again") from None


def _grouped(files: Mapping[str, str]) -> dict[str, str]:
    """Inputs, where many files of one suffix are one input."""
    by_suffix: dict[str, list[str]] = {}
    for name in files:
        suffix = Path(name.lower().removesuffix(".gz")).suffix
        by_suffix.setdefault(suffix, []).append(name)
    found: dict[str, str] = {}
    for suffix, names in by_suffix.items():
        if len(names) <= LISTED_FILES:
            found |= {name: files[name] for name in names}
        else:
            lines = sorted(f"{name} {files[name]}" for name in names)
            found[f"*{suffix}"] = (
                f"{len(names)} files, {bytes_digest(chr(10).join(lines).encode())}"
            )
    return found
