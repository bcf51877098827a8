"""What `--data.detections` may be: exact or noisy 2D, a checkpoint, a file, a folder, an archive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["exact", "noisy", "newest", "checkpoint", "file", "folder", "archive"]


@dataclass(frozen=True)
class DetectionRequest:
    """Which 2D joints a lifter gets, parsed once.

    Args:
        kind: `exact` (projected joints), `noisy` (the open benchmark's detection noise on them),
            `newest` (the newest finished 2D stage on the same data), `checkpoint` of a 2D stage,
            `file` or `folder` of detections made by other tools, or `archive` (the detections of
            this name that come with the data source).
        text: As given: one of these words, a path, or a name.
    """

    kind: Kind
    text: str

    @classmethod
    def parse(cls, text: str) -> DetectionRequest:
        """Tell what a text means.

        A text that is neither a word nor a path that exists is the name of an archive.

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
        """Whether the 2D joints are projections of the motion, so that no detector is needed."""
        return self.kind in ("exact", "noisy")

    @property
    def path(self) -> Path:
        """Path of a checkpoint, file or folder."""
        return Path(self.text)

    def __str__(self) -> str:
        return self.text
