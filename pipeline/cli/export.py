"""`heatlift export`: a motion that was predicted before, written in other formats."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline.errors import StorageError, UsageError
from pipeline.export.motion import FORMATS, Motion
from pipeline.training.console import print_line


def export(
    file: str,
    *,
    to: str = "csv",
    out: str | None = None,
    up: Literal["y", "z"] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a motion in other formats, without running anything again.

    Args:
        file: The motion.npz of an earlier prediction.
        to: Formats, separated by commas: npz, json, csv, trc, html.
        out: Folder of the files; that of the motion by default.
        up: Axis that points up in bvh, trc and c3d: y or z; by default what the programs of the
            format expect, y in bvh and trc, z in c3d.
        overwrite: Replace files that are there already.

    Raises:
        DataError: If the file is damaged or no motion.
        UsageError: If a format is unknown.
        StorageError: If a file is there already, or cannot be written.
    """
    formats = check_formats(to)
    source = Path(file)
    motion = Motion.load(source)
    folder = source.parent if out is None else Path(out)
    targets = [folder / f"{source.stem}.{name}" for name in formats]
    for target in targets:
        if not overwrite and any(folder.glob(f"{target.stem}*{target.suffix}")):
            raise StorageError(
                f"{target}: is there already; give another folder with --out, or --overwrite true"
            )
    for target in targets:
        for written in motion.save(target, up=up):
            print_line(f"  {written}")


def check_formats(text: str) -> list[str]:
    """Formats in a text like `json,csv`.

    Raises:
        UsageError: If one is unknown, or there is none.
    """
    formats = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"export is {name}; known formats are {', '.join(FORMATS)}")
    if not formats:
        raise UsageError(f"no format to export; known formats are {', '.join(FORMATS)}")
    return formats
