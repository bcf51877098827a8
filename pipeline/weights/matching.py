"""Published weights matched to our networks by name and shape, and loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import camera
from pipeline.errors import DataError, UsageError
from pipeline.files.archive import Npz
from pipeline.heatmap.image_input import ImageInput
from pipeline.skeleton import H36M17
from pipeline.training.transfer import WeightsReport
from pipeline.weights.published_files import PublishedWeights, open_weights

Part = Literal["whole", "base", "backbone"]
"""Loaded part: everything; all except modules that start as the identity; or the trunk alone."""

RENAMES = (
    ("EvoSkeleton", r"^res_blocks\.", "linear_stages."),
    ("3DMPPE or Integral", r"^backbone\.", ""),
    ("3DMPPE", r"^head\.(deconv_layers|final_layer)\.", r"\1."),
    ("Integral", r"^head\.features\.9\.", "final_layer."),
    ("Integral", r"^head\.features\.", "deconv_layers."),
)
"""Published layout, pattern of its names, and our names. MixSTE, PoseFormer, VideoPose3D, weigq's
MLP, HRNet, the simple baseline and ImageNet's files need no line: they have the same names."""

IDENTITIES = re.compile(r"(^|\.)group\.|^attention\.")
"""Names of parameters in modules that start as the identity: SAM and TAM, AM, SAN's attention."""

SAME_NAMES = "names as ours"
"""Layout of published files that need no line in `RENAMES`."""

MOST_JOINTS = 200
"""A published head with more maps than this has 3D heatmaps: many maps per joint."""

HEADS = re.compile(r"^(final_layer|deconv_layers|attention)\.")
"""Names of parameters of 2D networks that do not belong to the trunk."""

NOT_BACKBONE = re.compile(
    r"^(fc|classifier|final_layer|deconv_layers|incre_modules|downsamp_modules)\."
    r"|^stage4\.\d+\.fuse_layers\.[1-3]\."
)
"""Published parameters of classifiers and heads, and of branches that only HRNet's classifier
uses."""

STATISTICS = ("mean2d", "deviation2d", "mean3d", "deviation3d")
"""Buffers of lifters that work on z-scored coordinates; no published file of weights has them."""

_ABSENT_IN_PART = {"whole": None, "base": IDENTITIES, "backbone": HEADS}
"""Part -> names of our parameters that do not belong to it."""


def load_published(
    net: nn.Module,
    source: str | Path | Mapping[str, Any],
    part: Part = "whole",
    *,
    stats: str | Path | None = None,
) -> WeightsReport:
    """Load published weights into one of our networks: all weights of the part, or nothing.

    Args:
        net: Network of this package.
        source: Path of a file, or a loaded state dict; at the top or under a key of `WRAPPERS`,
            with or without `module.`.
        part: `whole`; `base` leaves modules that start as the identity (group attention, attention
            modules, SAN's attention) as they are; `backbone` takes the trunk of a 2D network and
            drops classifiers and heads.
        stats: For `Martinez`, the statistics that its weights were trained with; see
            `read_statistics`.

    Returns:
        Report of what was loaded, kept and dropped.

    Raises:
        DataError: If a name is missing, left over, has another shape or is not of real numbers; the
            network is unchanged.
        UsageError: If there is no such part.
    """
    expected = net.state_dict()
    matched, report = match_weights(expected, open_weights(source), part, stats)
    net.load_state_dict(expected | matched)
    return report


def read_statistics(path: str | Path, joints2d: int) -> dict[str, Tensor]:
    """The statistics a residual MLP was trained with, as buffers of `Martinez`.

    Args:
        path: Path of an .npz with `mean2d` and `deviation2d` of the input joints, pixels, (J, 2) or
            flat; `mean3d` and `deviation3d` of the 16 joints besides the root, (16, 3) or flat;
            `metres`, length of their unit in metres (0.001 for millimetres); `size`, width and
            height of the images in pixels.
        joints2d: Number of input joints J: 17, or 16 without the nose.

    Raises:
        DataError: If the file is missing, is not such a file, or a deviation is not positive.
    """
    statistics = _read_statistics_arrays(Path(path), joints2d)
    width, height = (int(number) for number in statistics["size"])
    all_joints = range(len(H36M17))
    has_nose = joints2d == len(H36M17)
    inputs = [j for j in all_joints if has_nose or H36M17.joints[j] != "nose"]
    outputs = [j for j in all_joints if j != H36M17.root]
    buffers = {
        "mean2d": np.zeros((len(H36M17), 2)),
        "deviation2d": np.ones((len(H36M17), 2)),
        "mean3d": np.zeros((len(H36M17), 3)),
        "deviation3d": np.ones((len(H36M17), 3)),
    }
    buffers["mean2d"][inputs] = camera.normalise(statistics["mean2d"], (width, height))
    buffers["deviation2d"][inputs] = statistics["deviation2d"] * 2 / width
    buffers["mean3d"][outputs] = statistics["mean3d"] * statistics["metres"]
    buffers["deviation3d"][outputs] = statistics["deviation3d"] * statistics["metres"]
    return {name: torch.from_numpy(array).float() for name, array in buffers.items()}


def _read_statistics_arrays(path: Path, joints2d: int) -> dict[str, NDArray[np.float64]]:
    """The arrays in a file of statistics, checked for shape, finite values and positive lengths."""
    shapes: dict[str, tuple[int, ...]] = {
        "mean2d": (joints2d, 2),
        "deviation2d": (joints2d, 2),
        "mean3d": (len(H36M17) - 1, 3),
        "deviation3d": (len(H36M17) - 1, 3),
        "metres": (),
        "size": (2,),
    }
    try:
        archive = Npz(path)
        arrays = {
            name: archive.array(name).astype(np.float64).reshape(shape)
            for name, shape in shapes.items()
        }
    except (DataError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        needed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise DataError(
            f"{path}: is not a file of statistics ({reason}); it needs {needed}"
        ) from error
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise DataError(f"{path}: holds numbers that are not finite")
    for name in ("deviation2d", "deviation3d", "metres", "size"):
        if (arrays[name] <= 0).any():
            raise DataError(f"{path}: {name} is not positive everywhere; it is a length")
    return arrays


def rename_weights(weights: Mapping[str, Tensor], origin: str) -> tuple[dict[str, Tensor], str]:
    """The same weights under our names, and the layout whose names they had.

    Raises:
        DataError: If two of them become one.
    """
    renamed: dict[str, Tensor] = {}
    layout = SAME_NAMES
    for name, tensor in weights.items():
        new_name = name
        for published_layout, pattern, replacement in RENAMES:
            new_name, changes = re.subn(pattern, replacement, new_name)
            if changes:
                layout = published_layout
        if new_name in renamed:
            raise DataError(
                f"{origin}: {name} and another of its names are both {new_name} here; "
                "it is not the file of one network"
            )
        renamed[new_name] = tensor
    return renamed, layout


def published_input(weights: Mapping[str, Tensor], layout: str) -> ImageInput | None:
    """Input that the network of a published file was trained on; None for lifters.

    A simple baseline is BGR: Microsoft's code never converts OpenCV's images, and HRNet's configs
    for it have `COLOR_RGB: false`. HRNet and ImageNet classifiers are RGB. The ResNets of Integral
    and 3DMPPE are taken as RGB. ImageNet's mean and deviation of red, green and blue are applied to
    the channels in the network's order, also where these are blue, green and red.

    Args:
        weights: Weights under our names.
        layout: Layout whose names the file had; see `rename_weights`.
    """
    if "conv1.weight" not in weights:
        return None
    head = weights.get("final_layer.weight")
    is_simple_baseline = (
        layout == SAME_NAMES
        and "deconv_layers.0.weight" in weights
        and head is not None
        and len(head) <= MOST_JOINTS
    )
    return ImageInput("BGR" if is_simple_baseline else "RGB")


def match_weights(
    expected: Mapping[str, Tensor], source: PublishedWeights, part: Part, stats: str | Path | None
) -> tuple[dict[str, Tensor], WeightsReport]:
    """Match published weights to the names and shapes of one of our networks.

    Args:
        expected: State dict of the network; only names, shapes and types matter.
        source: Published weights.
        part: Part of the network to load; see `load_published`.
        stats: Path of the statistics for `Martinez`; see `read_statistics`.

    Returns:
        Name -> value for the weights of the part, and the report.

    Raises:
        DataError: If a name is missing, left over, has another shape or is not of real numbers.
        UsageError: If there is no such part.
    """
    if part not in _ABSENT_IN_PART:
        raise UsageError(f"there is no part {part!r}; take whole, base or backbone")
    if part == "backbone" and "conv1.weight" not in expected:
        raise UsageError("this network has no backbone; only 2D networks do")
    renamed, layout = rename_weights(source.weights, source.origin)
    prefix = "mlp." if "mlp.w1.weight" in expected else ""
    found = {prefix + name: tensor for name, tensor in renamed.items()}
    if not found.keys() & expected.keys():
        raise DataError(
            f"{source.origin}: none of its {len(found)} names fits this network "
            f"(it has {', '.join(list(source.weights)[:3])} …, "
            f"expected {', '.join(list(expected)[:3])} …)"
        )
    clashes = _shape_clashes(found, expected)
    if prefix and not found.keys() >= set(STATISTICS):
        inputs = expected["mlp.w1.weight"].shape[1]
        found |= _statistics_of_mlp(source.origin, clashes, stats, inputs // 2)
    absent = _ABSENT_IN_PART[part]
    names = [name for name in expected if absent is None or not absent.search(name)]
    unused = found.keys() - set(names)
    dropped = {name for name in unused if part == "backbone" and NOT_BACKBONE.match(name)}
    missing = [name for name in names if name not in found]
    wrong_shapes = [text for name, text in clashes.items() if name in names]
    _raise_if_unmatched(source.origin, missing, unused - dropped, wrong_shapes)
    matched = {
        name: _checked_value(found[name], expected[name].dtype, f"{source.origin}: {name}")
        for name in names
        if name in found
    }
    image_input = published_input(renamed, layout)
    report = WeightsReport(
        source.origin,
        source.digest,
        loaded=tuple(matched),
        kept=tuple(name for name in expected if name not in matched),
        dropped=(*sorted(dropped), *source.others),
        layout=layout,
        part=part,
        image_input="" if image_input is None else str(image_input),
    )
    return matched, report


def _shape_clashes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> description, of each weight whose shape differs."""
    return {
        name: f"{name} is {tuple(found[name].shape)} there and {tuple(expected[name].shape)} here"
        for name in sorted(found.keys() & expected.keys())
        if found[name].shape != expected[name].shape
    }


def _statistics_of_mlp(
    origin: str, clashes: Mapping[str, str], stats: str | Path | None, joints2d: int
) -> dict[str, Tensor]:
    """The statistics of a `Martinez` whose published weights do not have them.

    Raises:
        DataError: If the weights have other shapes, or no file of statistics is given.
    """
    if clashes:
        raise DataError(
            f"{origin}: does not fit this network: {'; '.join([*clashes.values()][:2])}; "
            "a Martinez takes 34 numbers, or 32 without the nose, and gives 48, without the "
            "root; load others into a ResidualMLP"
        )
    if stats is None:
        raise DataError(
            f"{origin}: these weights work on z-scored coordinates and do not carry the means "
            "and deviations they were trained with; give them as --stats FILE.npz (stats=), or "
            "load into a ResidualMLP"
        )
    return read_statistics(stats, joints2d)


def _raise_if_unmatched(
    origin: str, missing: Iterable[str], left_over: Iterable[str], clashes: Iterable[str]
) -> None:
    """Raise one line if names are missing or left over, or shapes differ."""
    faults = []
    # old files have no counters of batches
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    for fault, names in (("missing", sorted(missing)), ("left over", sorted(left_over))):
        if names:
            more = " …" if len(names) > 3 else ""
            faults.append(f"{len(names)} {fault} ({', '.join(names[:3])}{more})")
    faults += list(clashes)[:2]
    if faults:
        raise DataError(
            f"{origin}: does not fit this network: {'; '.join(faults)}; "
            "build the network with the file's sizes"
        )


def _checked_value(tensor: Tensor, dtype: torch.dtype, place: str) -> Tensor:
    """A tensor converted to a type.

    Raises:
        DataError: If it is not of real numbers, not finite, or a negative variance.
    """
    if dtype.is_floating_point and not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise DataError(f"{place} is {kind}, and weights are real numbers; rejected")
    tensor = tensor.to(dtype)
    if dtype.is_floating_point and not tensor.isfinite().all():
        kind = str(dtype).removeprefix("torch.")
        raise DataError(f"{place} is not finite in {kind}; the file is of no use")
    if place.endswith("running_var") and (tensor < 0).any():
        raise DataError(f"{place} is a variance and negative; the file is of no use")
    return tensor
