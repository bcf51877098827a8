"""What an ONNX file is: recognised by its outputs and metadata, or told by a YAML file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pipeline.errors import DataError
from pipeline.files.yaml_documents import read_yaml_document
from pipeline.predict.onnx_network import MAX_SIDE, OnnxNetwork, Port
from pipeline.skeleton import (
    BLAZEPOSE33,
    COCO17,
    DETECTOR_SKELETONS,
    HALPE26,
    SKELETONS,
    Skeleton,
)

Kind = Literal["simcc", "heatmaps", "rtmo", "yolo"]
"""Kinds of outputs: RTMPose's two vectors per joint; heatmaps; people of RTMO and of YOLO."""

Cells = Literal["published", "exact", "udp"]
"""Pixel of the crop at cell c of a heatmap: 4c; 4c + 1.5, as Heatlift trains; c (W-1)/(W/4-1)."""

Channels = Literal["RGB", "BGR"]

COUNTS = {17: COCO17, 26: HALPE26, 33: BLAZEPOSE33, 133: COCO17}
"""Number of joints -> the usual set; of the 133 of COCO-WholeBody the first 17 are COCO's."""

WHOLE_BODY = 133

JOINT_SETS = {**SKELETONS, **DETECTOR_SKELETONS}

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""Mean and deviation of ImageNet's images, RGB, 0 to 255."""

RAW = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
UNIT = ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))

_USUAL: dict[Kind, tuple[Any, Channels]] = {
    "simcc": (IMAGENET, "RGB"),
    "heatmaps": (IMAGENET, "RGB"),
    "rtmo": (RAW, "BGR"),
    "yolo": (UNIT, "RGB"),
}

_KEYS = (
    "kind",
    "outputs",
    "joints",
    "input_size",
    "mean",
    "std",
    "channels",
    "padding",
    "cells",
    "licence",
)
"""Keys of the YAML file, and of the JSON object under `heatlift` in the metadata."""

ADVICE = 'see `heatlift docs predict`, "ONNX files of others"'


@dataclass(frozen=True)
class OnnxSpec:
    """How an ONNX file is used.

    Args:
        kind: What its outputs are.
        outputs: Names of the outputs: simcc x and y; heatmaps one; rtmo boxes and joints; yolo one.
        skeleton: Joint set of the result: the first joints that the file finds.
        count: Number of joints that the file finds.
        input_size: Width and height of the images that it takes, pixels.
        mean: Mean that is subtracted from each channel, 0 to 255, in the order of `channels`.
        std: Deviation that each channel is divided by.
        channels: Order of the colour channels.
        padding: Size of a crop relative to the person's box; 1 for kinds that take whole images.
        cells: Where the cells of heatmaps are.
        licence: Licence of the weights; "" if it is not known.
    """

    kind: Kind
    outputs: tuple[str, ...]
    skeleton: Skeleton
    count: int
    input_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels: Channels
    padding: float
    cells: Cells
    licence: str

    @property
    def finds_people(self) -> bool:
        """Whether the network takes whole images and finds the people in them."""
        return self.kind in ("rtmo", "yolo")

    def settings(self) -> dict[str, Any]:
        """Everything that affects joints, as plain types."""
        return {
            "kind": self.kind,
            "outputs": list(self.outputs),
            "joints": self.skeleton.name,
            "count": self.count,
            "input_size": list(self.input_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "channels": self.channels,
            "padding": self.padding,
            "cells": self.cells,
        }


def recognise(network: OnnxNetwork, joints: str | None) -> tuple[OnnxSpec, list[str]]:
    """What a file is, and what was assumed about it, as sentences for the user.

    Args:
        network: The network of the file; `FILE.yaml` beside `FILE.onnx` is read if it is there.
        joints: Joint set that the user gives, instead of that in the file or the YAML file.

    Raises:
        DataError: If it is not recognised, or if what is told about it does not fit.
    """
    told = _told(network)
    if joints is not None:
        told["joints"] = _one_of(joints, JOINT_SETS, f"{network.path}: joints")
    kind, outputs = _find_kind(network, told)
    ports = [_port(network, name) for name in outputs]
    size = _input_size(network, kind, ports, told)
    count = _count(network, kind, ports, told)
    skeleton, notes = _skeleton(network, count, told)
    (mean, std), channels = _USUAL[kind]
    spec = OnnxSpec(
        kind,
        outputs,
        skeleton,
        count or len(skeleton),
        size,
        told.get("mean", mean),
        told.get("std", std),
        told.get("channels", channels),
        told.get("padding", 1.25 if kind in ("simcc", "heatmaps") else 1.0),
        told.get("cells", "published"),
        *_licence(network, told, notes),
    )
    if spec.finds_people and "padding" in told:
        raise DataError(
            f"{network.path}: padding is for crops of people; {kind} takes whole images"
        )
    if kind == "heatmaps" and "cells" not in told:
        notes.append("heatmap cell c is at pixel 4c (cells: udp or exact in the .yaml file beside)")
    return spec, notes


def _told(network: OnnxNetwork) -> dict[str, Any]:
    """What the metadata of the file and the YAML file beside it tell, checked."""
    told: dict[str, Any] = {}
    own = network.metadata.get("heatlift")
    if own is not None:
        place = f"{network.path}: heatlift in its metadata"
        told |= check_told(_json(own, place), place)
    beside = network.path.with_suffix(".yaml")
    if beside.exists():
        told |= check_told(read_yaml_document(beside, "`heatlift docs predict`"), str(beside))
    return told


def check_told(table: Any, place: str) -> dict[str, Any]:
    """The keys of a YAML file or of our metadata, checked.

    Args:
        table: Content.
        place: Where it stands, for error messages.

    Raises:
        DataError: If a key is unknown or a value makes no sense.
    """
    if not isinstance(table, dict):
        raise DataError(f"{place}: is no mapping; its keys are {', '.join(_KEYS)}")
    unknown = [key for key in table if key not in _KEYS]
    if unknown:
        raise DataError(
            f"{place}: unknown key {str(unknown[0])[:40]!r}; there are {', '.join(_KEYS)}"
        )
    told = dict(table)
    choices: dict[str, Any] = {
        "kind": get_args(Kind),
        "cells": get_args(Cells),
        "channels": get_args(Channels),
        "joints": JOINT_SETS,
    }
    for key in choices.keys() & told.keys():
        _one_of(told[key], choices[key], f"{place}: {key}")
    for key in {"mean", "std"} & told.keys():
        told[key] = _numbers(told[key], 3, f"{place}: {key}", above=0 if key == "std" else -1e4)
    if "input_size" in told:
        sides = _numbers(told["input_size"], 2, f"{place}: input_size", above=15, most=MAX_SIDE)
        told["input_size"] = tuple(int(side) for side in sides)
        if told["input_size"] != sides:
            raise DataError(f"{place}: input_size: give whole pixels")
    if "padding" in told:
        (told["padding"],) = _numbers([told["padding"]], 1, f"{place}: padding", above=0.1, most=10)
    if "outputs" in told:
        names = told["outputs"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{place}: outputs: give a list of names of outputs")
        told["outputs"] = tuple(names)
    if not isinstance(told.get("licence", ""), str):
        raise DataError(f"{place}: licence: give a text")
    return told


def _one_of(value: Any, known: Any, place: str) -> str:
    if not isinstance(value, str) or value not in known:
        raise DataError(f"{place} is {str(value)[:40]!r}; give one of {', '.join(known)}")
    return value


def _numbers(
    value: Any, count: int, place: str, *, above: float, most: float = 1e4
) -> tuple[float, ...]:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != count or not all(
        isinstance(n, int | float) and not isinstance(n, bool) and above < n <= most
        for n in numbers
    ):
        raise DataError(f"{place}: give {count} numbers above {above:g}, up to {most:g}")
    return tuple(float(n) for n in numbers)


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{place}: is damaged ({text[:40]!r}); {ADVICE}") from None


def _find_kind(network: OnnxNetwork, told: Mapping[str, Any]) -> tuple[Kind, tuple[str, ...]]:
    """The kind of a file, and the names of the outputs that matter."""
    needed = {"simcc": 2, "heatmaps": 1, "rtmo": 2, "yolo": 1}
    kind: Kind | None = told.get("kind")
    outputs: tuple[str, ...]
    candidates = _candidates(network)
    if kind is None and len(candidates) == 1:
        kind, outputs = next(iter(candidates.items()))
    elif kind is None:
        raise _unknown(network, f"is not recognised; give its kind ({', '.join(needed)})")
    else:
        in_order = tuple(port.name for port in network.outputs)
        outputs = candidates.get(kind, in_order if len(in_order) == needed[kind] else ())
    outputs = told.get("outputs", outputs)
    if len(outputs) != needed[kind]:
        raise _unknown(network, f"needs {needed[kind]} outputs for {kind}; give their names")
    return kind, outputs


def _candidates(network: OnnxNetwork) -> dict[Kind, tuple[str, ...]]:
    """Kinds that a file may be, each with its outputs."""
    outputs = network.outputs
    found: dict[Kind, tuple[str, ...]] = {}
    names = [port.name for port in outputs]
    if {"simcc_x", "simcc_y"} <= {*names}:
        return {"simcc": ("simcc_x", "simcc_y")}
    ranks = [len(port.shape) for port in outputs]
    task = network.metadata.get("task")
    if task is not None:  # ultralytics' files name their task
        return {"yolo": (names[0],)} if (task, ranks) == ("pose", [3]) else {}
    if ranks in ([3, 4], [4, 3]):
        boxes, poses = sorted(outputs, key=lambda port: len(port.shape))
        if boxes.shape[2] == 5 and poses.shape[3] == 3:
            found["rtmo"] = (boxes.name, poses.name)
    if ranks == [4] and _has_cells(network.image_port().shape, outputs[0].shape):
        found["heatmaps"] = (names[0],)
    return found


def _has_cells(image: tuple[int | None, ...], maps: tuple[int | None, ...]) -> bool:
    """Whether maps can have a quarter of the rows and columns of the image."""
    pairs = zip(image[2:], maps[2:], strict=True)
    return all(pixels is None or cells is None or pixels == 4 * cells for pixels, cells in pairs)


def _unknown(network: OnnxNetwork, problem: str) -> DataError:
    beside = network.path.with_suffix(".yaml").name
    return DataError(f"{network.path}: {problem} in {beside}, {ADVICE}; found {network.describe()}")


def _port(network: OnnxNetwork, name: str) -> Port:
    for port in network.outputs:
        if port.name == name:
            return port
    raise _unknown(network, f"has no output {name[:40]!r}; give one that it has")


_RANKS = {"simcc": (3, 3), "heatmaps": (4,), "rtmo": (3, 4), "yolo": (3,)}


def _input_size(
    network: OnnxNetwork, kind: Kind, ports: list[Port], told: Mapping[str, Any]
) -> tuple[int, int]:
    """Width and height of the images that a network takes."""
    if tuple(len(port.shape) for port in ports) != _RANKS[kind]:
        raise _unknown(network, f"has outputs of other shapes than {kind}; give another kind")
    height, width = network.image_port().shape[2:]
    guesses: dict[Kind, list[int | None]] = {
        "simcc": [ports[0].shape[2], ports[-1].shape[2]],
        "heatmaps": [ports[0].shape[-1], ports[0].shape[-2]],
        "rtmo": [640, 640],
        "yolo": _sides(network)[::-1],
    }
    scale = {"simcc": 0.5, "heatmaps": 4}.get(kind, 1)
    guess = [None if side is None else int(side * scale) for side in guesses[kind]]
    given = told.get("input_size", (None, None))
    found = []
    for fixed, stated, usual in zip((width, height), given, guess, strict=True):
        if fixed is not None and stated is not None and fixed != stated:
            raise DataError(
                f"{network.path}: takes images {width}x{height}, not {given[0]}x{given[1]}"
            )
        found.append(fixed or stated or usual)
    sides = [side for side in found if side is not None and 16 <= side <= MAX_SIDE]
    if len(sides) != 2:
        raise _unknown(network, "does not tell the size of its images; give input_size: [W, H]")
    return sides[0], sides[1]


def _sides(network: OnnxNetwork) -> list[int | None]:
    """Height and width of the images in ultralytics' metadata, `imgsz`."""
    return _whole_numbers(network, "imgsz") or [None, None]


def _whole_numbers(network: OnnxNetwork, key: str) -> list[int | None]:
    """Two whole numbers in the metadata; [] if the key is not there."""
    text = network.metadata.get(key)
    if text is None:
        return []
    place = f"{network.path}: {key} in its metadata"
    numbers = _json(text, place)
    numbers = [numbers, numbers] if isinstance(numbers, int) else numbers
    return [int(n) for n in _numbers(numbers, 2, place, above=0)]


def _count(
    network: OnnxNetwork, kind: Kind, ports: list[Port], told: Mapping[str, Any]
) -> int | None:
    """Number of joints that a network finds; None if it does not tell."""
    if kind == "yolo":
        shape = _whole_numbers(network, "kpt_shape")
        return shape[0] if shape else None
    axis = 2 if kind == "rtmo" else 1
    counts = {port.shape[axis] for port in ports[-1 if kind == "rtmo" else 0 :]} - {None}
    if len(counts) > 1:
        raise _unknown(network, f"has outputs of different numbers of joints; give {kind}'s own")
    return next(iter(counts), None)


def _skeleton(
    network: OnnxNetwork, count: int | None, told: Mapping[str, Any]
) -> tuple[Skeleton, list[str]]:
    """Joint set, and what was assumed."""
    if "joints" in told:
        skeleton = JOINT_SETS[told["joints"]]
        if count not in (None, len(skeleton)) and (count, skeleton) != (WHOLE_BODY, COCO17):
            raise DataError(
                f"{network.path}: finds {count} joints, and {skeleton.name} has {len(skeleton)}; "
                f"give --joints with {_sets_of(count)}"
            )
        return skeleton, []
    if count not in COUNTS:
        raise DataError(
            f"{network.path}: finds {count or 'an open number of'} joints; give their set with "
            f"--joints: {_sets_of(count)}; found {network.describe()}"
        )
    skeleton = COUNTS[count]
    if count == WHOLE_BODY:
        return skeleton, [
            "the first 17 of 133 joints are taken for COCO17; the others are left out"
        ]
    return skeleton, [f"{count} joints are taken for {skeleton.name} (--joints)"]


def _sets_of(count: int | None) -> str:
    """Names of the joint sets with so many joints; of all if there are none."""
    fitting = [name for name, s in JOINT_SETS.items() if len(s) == count]
    return ", ".join(fitting) or ", ".join(f"{n} ({len(s)})" for n, s in JOINT_SETS.items())


def _licence(network: OnnxNetwork, told: Mapping[str, Any], notes: list[str]) -> tuple[str]:
    """Licence of the weights; a note if it is a strict one."""
    metadata = {key.lower(): value for key, value in network.metadata.items()}
    stated = metadata.get("license") or metadata.get("licence") or ""
    licence = str(told.get("licence", stated))[:120]
    ultralytics = "ultralytics" in f"{metadata.get('author', '')} {licence}".lower()
    if "agpl" in licence.lower() or (ultralytics and not licence):
        licence = licence or "AGPL-3.0"
        notes.append(
            "the weights are under the AGPL-3.0 (ultralytics): it binds what is offered with them"
        )
    return (licence,)
