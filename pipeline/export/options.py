"""Options of the files of a motion, the same for the commands and for `Motion.save`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ExportOptions:
    """How a motion is written in formats of other programs.

    Args:
        up: Axis that points up in bvh, trc and c3d: `y` or `z`; by default what the programs of the
            format expect, y in bvh and trc, z in c3d.
    """

    up: Literal["y", "z"] | None = None
