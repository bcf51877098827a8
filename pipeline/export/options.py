"""Options of the files of a motion, the same for the commands and for `Motion.save`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import UsageError
from pipeline.export.body_names import read_names

FORMATS = ("npz", "json", "csv", "trc", "bvh", "c3d", "glb", "html")
"""Formats that a motion can be written in."""

PER_PERSON = ("trc", "bvh", "c3d")
"""Formats with a file for each person."""


@dataclass(frozen=True)
class ExportOptions:
    """How a motion is written in formats of other programs.

    Args:
        up: Axis that points up in bvh, trc and c3d: `y` or `z`; by default what the programs of the
            format expect, y in bvh and trc, z in c3d.
        bvh_unit: Unit of bvh: cm, which most programs expect, or m, as Blender does.
        bvh_names: Names of the joints in bvh: heatlift, mixamo, cmu, lafan1, or a YAML file with
            own ones.

    Raises:
        UsageError: If a value is unknown.
        DataError: If the file with names cannot be read.
    """

    up: Literal["y", "z"] | None = None
    bvh_unit: Literal["cm", "m"] = "cm"
    bvh_names: str = "heatlift"

    def __post_init__(self) -> None:
        if self.up not in (None, "y", "z"):
            raise UsageError(f"up is {self.up!r}; give y or z")
        if self.bvh_unit not in ("cm", "m"):
            raise UsageError(f"bvh_unit is {self.bvh_unit!r}; give cm or m")
        read_names(self.bvh_names)  # before anything is predicted or written


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
