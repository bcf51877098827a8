"""The catalogue of published weights: names, digests, licences, and where they are kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from pipeline.files.digests import file_digest


@dataclass(frozen=True)
class PublishedWeights:
    """A weight file of the catalogue.

    Args:
        name: Name in commands.
        what: One line about what it is.
        file: Name of the file in the folder of weights.
        digests: Accepted SHA-256 of the file.
        size: Size in bytes.
        licence: Licence.
        origin: Where it comes from.
    """

    name: str
    what: str
    file: str
    digests: tuple[str, ...]
    size: int
    licence: str
    origin: str


_WHEEL = "PyPI, wheel mediapipe 0.10.21"
_NPM = "npm, package @mediapipe/pose"

CATALOGUE = {
    weights.name: weights
    for weights in (
        PublishedWeights(
            "blazepose-full",
            "33 joints of a person in a crop",
            "pose_landmark_full.tflite",
            ("e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",),
            6_400_000,
            "Apache-2.0",
            _WHEEL,
        ),
        PublishedWeights(
            "blazepose-lite",
            "33 joints of a person in a crop, half the time",
            "pose_landmark_lite.tflite",
            ("f17bfbecadb61c3be1baa8b8d851cc6619c870a87167b32848ad20db306b9d61",),
            2_700_000,
            "Apache-2.0",
            _NPM,
        ),
        PublishedWeights(
            "blazepose-heavy",
            "33 joints of a person in a crop, four times the time",
            "pose_landmark_heavy.tflite",
            ("59e42d71bcd44cbdbabc419f0ff76686595fd265419566bd4009ef703ea8e1fe",),
            27_000_000,
            "Apache-2.0",
            _NPM,
        ),
        PublishedWeights(
            "blazepose-detector",
            "people in an image",
            "pose_detection.tflite",
            (
                "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
                "a63c614bef30d35947f13be361820b1e4e3bec9cfeebf4d11216a18373108e85",
            ),
            3_000_000,
            "Apache-2.0",
            _WHEEL,
        ),
    )
}
"""Name -> weight file."""


def weights_folder() -> Path:
    """Folder of downloaded weights: `$HEATLIFT_WEIGHTS`, else `~/.cache/heatlift/weights`."""
    given = os.environ.get("HEATLIFT_WEIGHTS")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given).expanduser() if given else Path(home) / "heatlift" / "weights"


def find_weights(name: str) -> Path | None:
    """Path of a weight file of the catalogue; None if it is not there.

    Raises:
        DataError: If the file has another digest than the catalogue.
    """
    weights = CATALOGUE[name]
    path = weights_folder() / weights.file
    if not path.is_file():
        return None
    if file_digest(path) not in weights.digests:
        raise DataError(
            f"{path}: is not the published file (its SHA-256 differs); remove it and run "
            "heatlift weights get blazepose"
        )
    return path
