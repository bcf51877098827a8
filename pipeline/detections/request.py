"""Values of `--data.detections`: exact or noisy 2D, a checkpoint, a file, a folder, an archive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["exact", "noisy", "newest", "checkpoint", "file", "folder", "archive"]


@dataclass(frozen=True)
class DetectionRequest:
    """Which 2D joints a lifter gets: the parsed value of `--data.detections`.

    Args:
        kind: `exact` (projected joints), `noisy` (projected joints with the open benchmark's
            detection noise), `newest` (newest finished 2D stage on the same data), `checkpoint`
            of a 2D stage, `file` or `folder` of detections made by other tools, or `archive`
            (detections of this name that come with the data source).
        text: Value of the option: one of these words, a path, or a name.
    """

    kind: Kind
    text: str

    @classmethod
    def parse(cls, text: str) -> DetectionRequest:
        """Parse the value of the option.

        A text that is neither one of the words nor an existing path is the name of an archive.

        >>> DetectionRequest.parse("noisy")
        DetectionRequest(kind='noisy', text='noisy')
        >>> DetectionRequest.parse("runs/heatmap/a/checkpoints/best.ckpt").kind
        'checkpoint'
        >>> DetectionRequest.parse("cpn_ft_h36m_dbb").kind
        'archive'
        """
        kind: Kind
        match text:
            case "exact" | "noisy" | "newest":
                kind = text
            case _ if Path(text).suffix == ".ckpt":
                kind = "checkpoint"
            case _ if Path(text).is_dir():
                kind = "folder"
            case _ if Path(text).exists():
                kind = "file"
            case _:
                kind = "archive"
        return cls(kind, text)

    @property
    def is_projected(self) -> bool:
        """True if the 2D joints are projections of the motion, so that no detector is needed."""
        return self.kind in ("exact", "noisy")

    @property
    def path(self) -> Path:
        """Path of a checkpoint, file or folder."""
        return Path(self.text)

    def __str__(self) -> str:
        return self.text
