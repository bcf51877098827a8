"""What an ONNX file of Heatlift tells about its network: JSON in its metadata, written and read."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pipeline.errors import DataError
from pipeline.files.json_documents import expect_type, required_key
from pipeline.heatmap.module import Decode
from pipeline.skeleton import SKELETONS, Skeleton

KEY = "heatlift_network"
"""Key of the metadata of an ONNX file; a file with it is one that Heatlift exported."""

VERSION = 1
"""Version of the facts and of the inputs and outputs; raised when they change."""

Output = Literal["every", "centre", "valid"]

LIFTER_INPUTS, LIFTER_OUTPUT = ("joints2d", "visible"), "joints3d"
IMAGE_INPUT, IMAGE_OUTPUT = "images", "heatmaps"

MOST_FRAMES = 10_000
"""Largest number of frames of a window."""

_SIDES = range(16, 4097)

_DECODES = (*get_args(Decode), "soft-argmax")

_LIFTER_WORDS = {
    "joints2d": "float32 (B, T, J, channels): x/w*2 - 1 and y/w*2 - h/w of pixels x, y in an image "
    "of w x h; any value, also NaN, where a joint is not visible; `heatlift predict` gives it 2D "
    "as a camera sees it that follows the person",
    "visible": "bool (B, T, J)",
    "joints3d": "float32 (B, T', J, 3): metres, relative to the root, camera frame (x right, y "
    "down, z forward); T' is T for output every, 1 (the centre) for centre, and T - "
    "receptive_field + 1 for valid",
}
_IMAGE_WORDS = {
    "images": "uint8 (B, H, W, 3): RGB crops of people of this input_size (width, height), cut "
    "with this padding; the network normalises them itself",
    "heatmaps": "float32 (B, J, H/4, W/4) of stage heatmap; logits (B, J, D, H/4, W/4) of stage "
    "integral, whose softmax is the probability; cell c is at pixel 4 c, or at 4 c + 1.5 if "
    "published_cells is false",
}


@dataclass(frozen=True)
class LifterFacts:
    """Facts of a lifter.

    Args:
        network: Class of the network.
        digest: SHA-256 of the weights of the checkpoint, as the file states it.
        licence: Licence of the weights; "" if it is not known.
        joints: Name of the joint set.
        frames: T of the windows.
        receptive_field: See `Lifter`.
        output: See `Lifter`.
        causal: See `Lifter`.
        channels: Input channels per joint.
        flip_test: Whether each clip and its mirror image are lifted and averaged.
        frame_rate: Frame rate in training, Hz; None if it is not known.
        person_sizes: Smallest and largest usual size of people in training, in normalised 2D; None
            if it is not known.
    """

    network: str
    digest: str
    licence: str
    joints: str
    frames: int
    receptive_field: int
    output: Output
    causal: bool
    channels: int
    flip_test: bool
    frame_rate: float | None
    person_sizes: tuple[float, float] | None
    stage: Literal["lift"] = "lift"

    @property
    def any_frames(self) -> bool:
        """Whether clips may have any number of frames, from the receptive field on."""
        return self.output == "valid" or self.frames == 1


@dataclass(frozen=True)
class ImageFacts:
    """Facts of a 2D network.

    Args:
        network: Class of the network.
        digest: SHA-256 of the weights of the checkpoint, as the file states it.
        licence: Licence of the weights; "" if it is not known.
        joints: Name of the joint set.
        input_size: Width and height of the crops, pixels.
        padding: Size of a crop relative to the person's box.
        published_cells: Whether pixel x belongs to heatmap cell x/4.
        decode: How joints are read from the heatmaps.
        flip_test: Whether joints are found in each crop and in its mirror image.
        cube: Length that the depth of the heatmaps spans, metres; None for stage heatmap.
        stage: Stage of the checkpoint.
    """

    network: str
    digest: str
    licence: str
    joints: str
    input_size: tuple[int, int]
    padding: float
    published_cells: bool
    decode: str
    flip_test: bool
    cube: float | None
    stage: Literal["heatmap", "integral"]


Facts = LifterFacts | ImageFacts


def skeleton_of(facts: Facts) -> Skeleton:
    """Joint set of a network."""
    return SKELETONS[facts.joints]


def facts_to_json(facts: Facts) -> str:
    """The facts as JSON, with what other programs need: joints by name, inputs and outputs."""
    skeleton = skeleton_of(facts)
    words = _LIFTER_WORDS if isinstance(facts, LifterFacts) else _IMAGE_WORDS
    return json.dumps(
        {
            "version": VERSION,
            **dataclasses.asdict(facts),
            "joint_names": list(skeleton.joints),
            "parents": list(skeleton.parents),
            "left": list(skeleton.left),
            "right": list(skeleton.right),
            "arrays": words,
        }
    )


def read_facts(metadata: Mapping[str, str], path: object) -> Facts | None:
    """The facts in the metadata of an ONNX file; None if Heatlift did not export it.

    Args:
        metadata: Metadata of the file, which may be damaged or hostile.
        path: The file, for error messages.

    Raises:
        DataError: If they are damaged or of another version.
    """
    if KEY not in metadata:
        return None
    place = f"{path}: {KEY} in its metadata"
    try:
        record = json.loads(metadata[KEY])
    except (ValueError, RecursionError):
        raise DataError(f"{place}: is damaged; export the checkpoint again") from None
    version = expect_type(required_key(record, "version", place), int, f"{place}: version")
    if version != VERSION:
        raise DataError(f"{place}: has version {version}, not {VERSION}; export it again")
    return _Reader(record, place).facts()


class _Reader:
    """Values of a JSON object, each checked."""

    def __init__(self, record: Any, place: str) -> None:
        self.record, self.place = record, place

    def facts(self) -> Facts:
        """All of them."""
        stage = self.choice("stage", ("lift", "heatmap", "integral"))
        common: dict[str, Any] = {
            "network": self.text("network"),
            "digest": self.text("digest"),
            "licence": self.text("licence"),
            "joints": self.choice("joints", tuple(SKELETONS)),
            "flip_test": self.switch("flip_test"),
        }
        if stage == "lift":
            sizes = self.value("person_sizes")
            return LifterFacts(
                **common,
                frames=self.count("frames", MOST_FRAMES),
                receptive_field=self.count("receptive_field", MOST_FRAMES),
                channels=self.count("channels", 3),
                output=self.choice("output", get_args(Output)),
                causal=self.switch("causal"),
                frame_rate=self.length("frame_rate", 1000.0),
                person_sizes=None if sizes is None else self.pair("person_sizes"),
            )
        width, height = self.pair("input_size")
        if int(width) not in _SIDES or int(height) not in _SIDES:
            raise self.error("input_size", f"two sides of {_SIDES[0]} to {_SIDES[-1]} pixels")
        return ImageFacts(
            **common,
            input_size=(int(width), int(height)),
            padding=self.length("padding", 10.0) or 1.0,
            published_cells=self.switch("published_cells"),
            decode=self.choice("decode", _DECODES if stage == "integral" else get_args(Decode)),
            cube=self.length("cube", 100.0) or 1.0 if stage == "integral" else None,
            stage=stage,
        )

    def value(self, name: str) -> Any:
        return required_key(self.record, name, self.place)

    def error(self, name: str, wanted: str) -> DataError:
        found = str(self.value(name))[:40]
        return DataError(f"{self.place}: {name} is {found!r}, not {wanted}; export it again")

    def text(self, name: str) -> str:
        return expect_type(self.value(name), str, f"{self.place}: {name}")[:200]

    def choice(self, name: str, known: tuple[str, ...]) -> Any:
        if self.value(name) not in known:
            raise self.error(name, f"one of {', '.join(known)}")
        return self.value(name)

    def switch(self, name: str) -> bool:
        if not isinstance(self.value(name), bool):
            raise self.error(name, "true or false")
        return bool(self.value(name))

    def count(self, name: str, most: int) -> int:
        number = expect_type(self.value(name), int, f"{self.place}: {name}")
        if not 1 <= number <= most:
            raise self.error(name, f"from 1 to {most}")
        return number

    def length(self, name: str, most: float) -> float | None:
        number = self.value(name)
        if number is None:
            return None
        if not _is_number(number) or not 0 < number <= most:
            raise self.error(name, f"a number above 0, at most {most:g}")
        return float(number)

    def pair(self, name: str) -> tuple[float, float]:
        numbers = self.value(name)
        if not isinstance(numbers, list) or len(numbers) != 2 or not all(map(_is_number, numbers)):
            raise self.error(name, "two numbers")
        return float(numbers[0]), float(numbers[1])


def _is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < 1e9 and math.isfinite(value)
