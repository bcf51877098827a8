"""`heatlift export`: a motion that was predicted before, written in other formats."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from pipeline.errors import StorageError
from pipeline.export.options import ExportOptions, check_formats
from pipeline.training.console import print_line


def export(
    file: str,
    *,
    to: str = "csv",
    out: str | None = None,
    up: Literal["y", "z"] | None = None,
    bvh_unit: Literal["cm", "m"] = "cm",
    bvh_names: str = "heatlift",
    overwrite: bool = False,
) -> None:
    """Write a motion in other formats, without running anything again.

    Args:
        file: The motion.npz of an earlier prediction.
        to: Formats, separated by commas: npz, json, csv, trc, bvh, c3d, glb, html.
        out: Folder of the files; that of the motion by default.
        up: Axis that points up in bvh, trc and c3d: y or z; by default what the programs of the
            format expect, y in bvh and trc, z in c3d.
        bvh_unit: Unit of bvh: cm, which most programs expect, or m, as Blender does.
        bvh_names: Names of the joints in bvh: heatlift, mixamo, cmu, lafan1, or a YAML file with
            own ones.
        overwrite: Replace files that are there already.

    Raises:
        DataError: If the file is damaged or no motion, or that with names is no map of them.
        UsageError: If a format is unknown, or cannot hold the joints of the motion.
        StorageError: If a file is there already, or cannot be written.
    """
    from pipeline.export.bvh import bvh_errors
    from pipeline.export.motion import Motion
    from pipeline.export.trc import person_path

    formats = check_formats(to)
    options = ExportOptions(up=up, bvh_unit=bvh_unit, bvh_names=bvh_names)
    source = Path(file)
    motion = Motion.load(source)
    folder = source.parent if out is None else Path(out)
    targets = [folder / f"{source.stem}.{name}" for name in formats]
    for target in targets:
        own = [target, *(person_path(target, person, motion) for person in motion.people)]
        own += [
            path.with_name(f"{path.name}.json") for path in own if path.suffix in (".csv", ".bvh")
        ]
        if not overwrite and any(file.exists() for file in own):
            raise StorageError(
                f"{target}: is there already; give another folder with --out, or --overwrite true"
            )
    for target in targets:
        saved = motion.save(target, **dataclasses.asdict(options))
        if not saved:
            print_line(f"{target}: not written, there is nobody in {source}")
        for line in [*(f"  {file}" for file in saved), *bvh_errors(saved)]:
            print_line(line)
