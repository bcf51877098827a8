"""Values of `--data.detections`: exact or noisy 2D, a checkpoint, a file, a folder, an archive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import UsageError

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
        first_frame: Number of the first frame of a video in the files of another tool; None to find
            it from the numbers in them.
        person: Person in the files of another tool; None for the one that is seen most.
    """

    kind: Kind
    text: str
    first_frame: int | None = None
    person: str | None = None

    @classmethod
    def parse(
        cls, text: str, *, first_frame: int | None = None, person: int | str | None = None
    ) -> DetectionRequest:
        """Parse the value of the option.

        A text that is neither one of the words nor an existing path is the name of an archive.

        Args:
            text: Value of the option.
            first_frame: See the class.
            person: See the class.

        Raises:
            UsageError: If `first_frame` or `person` is given for anything but a file or folder of
                another tool, or `first_frame` is negative.

        >>> DetectionRequest.parse("noisy").kind
        'noisy'
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
        given = [
            f"{name} is {value}"
            for name, value in (("first_frame", first_frame), ("person", person))
            if value is not None
        ]
        if given and kind not in ("file", "folder"):
            raise UsageError(
                f"{' and '.join(given)}, and detections are {text}; this is for files of other "
                "tools, so leave it out"
            )
        if first_frame is not None and first_frame < 0:
            raise UsageError(f"first_frame is {first_frame}; give the number 0 or a larger one")
        return cls(kind, text, first_frame, None if person is None else str(person))

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
