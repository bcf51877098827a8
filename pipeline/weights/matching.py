"""Published weights matched to our networks by name and shape, and loaded."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import camera
from pipeline.errors import DataError, UsageError
from pipeline.skeleton import H36M17
from pipeline.training.transfer import WeightsReport
from pipeline.weights.published_files import open_source

Part = Literal["whole", "base", "backbone"]
"""What is loaded: everything; all but modules that start as the identity; or the trunk alone."""


RENAMES = (
    ("EvoSkeleton", r"^res_blocks\.", "linear_stages."),
    ("3DMPPE or Integral", r"^backbone\.", ""),
    ("3DMPPE", r"^head\.(deconv_layers|final_layer)\.", r"\1."),
    ("Integral", r"^head\.features\.9\.", "final_layer."),
    ("Integral", r"^head\.features\.", "deconv_layers."),
)
"""Published layout, its names, and ours. MixSTE, PoseFormer, VideoPose3D, weigq's MLP, HRNet, the
simple baseline and ImageNet's files need no line: our names are theirs."""


IDENTITIES = re.compile(r"(^|\.)group\.|^attention\.")
"""Our parameters of modules that start as the identity: SAM and TAM, AM, SAN's attention."""


HEADS = re.compile(r"^(final_layer|deconv_layers|attention)\.")
"""Our parameters of 2D networks that are no part of the trunk."""


NOT_BACKBONE = re.compile(
    r"^(fc|classifier|final_layer|deconv_layers|incre_modules|downsamp_modules)\."
    r"|^stage4\.\d+\.fuse_layers\.[1-3]\."
)
"""Parameters of classifiers and heads, and of the branches that only HRNet's classifier uses."""


STATISTICS = ("mean2d", "deviation2d", "mean3d", "deviation3d")
"""Buffers of lifters that work on z-scored coordinates; no published file of weights has them."""


def load_published(
    net: nn.Module,
    source: str | Path | Mapping[str, Any],
    part: Part = "whole",
    *,
    stats: str | Path | None = None,
) -> WeightsReport:
    """Load published weights into one of our networks: all that the part wants, or nothing.

    Args:
        net: One of our networks.
        source: A file, or a loaded state dict; bare or wrapped, with or without `module.`.
        part: `whole`; `base` leaves modules that start as the identity (group attention, attention
            modules, SAN's attention) as they are; `backbone` takes the trunk of a 2D network and
            drops classifiers and heads.
        stats: For `Martinez`, the statistics its weights were trained with; see `read_statistics`.

    Returns:
        What was loaded, kept and dropped.

    Raises:
        DataError: If a name is missing, left over, has another shape or is not of real numbers; the
            network is unchanged.
        UsageError: If there is no such part.
    """
    origin, digest, given, beside = open_source(source)
    wanted = net.state_dict()
    matched, report = match_weights(wanted, given, origin, digest, part, stats)
    net.load_state_dict(wanted | matched)
    return replace(report, dropped=report.dropped + beside)


def read_statistics(path: str | Path, joints2d: int) -> dict[str, Tensor]:
    """The statistics a residual MLP was trained with, as buffers of `Martinez`.

    Args:
        path: An .npz with `mean2d` and `deviation2d`, pixels, of the joints that come in, (J, 2) or
            flat; `mean3d` and `deviation3d` of the 16 joints besides the root, (16, 3) or flat;
            `metres`, the length of a unit of these in metres (a thousandth for millimetres);
            `size`, width and height of the images in pixels.
        joints2d: J: 17, or 16 without the nose.

    Raises:
        DataError: If the file is missing, is not that, or a deviation is not positive.
    """
    shapes: dict[str, tuple[int, ...]]
    shapes = dict.fromkeys(("mean2d", "deviation2d"), (joints2d, 2))
    shapes |= dict.fromkeys(("mean3d", "deviation3d"), (len(H36M17) - 1, 3))
    shapes |= {"metres": (), "size": (2,)}
    try:
        with np.load(path, allow_pickle=False) as file:
            given = {
                name: np.asarray(file[name], dtype=np.float64).reshape(shape)
                for name, shape in shapes.items()
            }
    except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: is not a file of statistics ({error}); it needs "
            f"{', '.join(f'{name} {shape}' for name, shape in shapes.items())}"
        ) from error
    if not all(np.isfinite(array).all() for array in given.values()):
        raise DataError(f"{path}: holds numbers that are not finite")
    for name in ("deviation2d", "deviation3d", "metres", "size"):
        if (given[name] <= 0).any():
            raise DataError(f"{path}: {name} is not positive everywhere; it is a length")
    width, height = (int(number) for number in given["size"])
    seen = [j for j in range(len(H36M17)) if joints2d == len(H36M17) or H36M17.joints[j] != "nose"]
    body = [j for j in range(len(H36M17)) if j != H36M17.root]
    buffers = {
        name: np.full((len(H36M17), 2 + (name[-2] == "3")), float("dev" in name))
        for name in STATISTICS
    }
    buffers["mean2d"][seen] = camera.normalise(given["mean2d"], (width, height))
    buffers["deviation2d"][seen] = given["deviation2d"] * 2 / width
    buffers["mean3d"][body] = given["mean3d"] * given["metres"]
    buffers["deviation3d"][body] = given["deviation3d"] * given["metres"]
    return {name: torch.from_numpy(array).float() for name, array in buffers.items()}


def renamed_weights(given: Mapping[str, Tensor], origin: str) -> tuple[dict[str, Tensor], str]:
    """The same weights under our names, and whose names they had.

    Raises:
        DataError: If two of them become one.
    """
    renamed: dict[str, Tensor] = {}
    layout = "names as ours"
    for name, tensor in given.items():
        ours = name
        for whose, pattern, replacement in RENAMES:
            ours, changes = re.subn(pattern, replacement, ours)
            layout = whose if changes else layout
        if ours in renamed:
            raise DataError(
                f"{origin}: {name} and another of its names are both {ours} here; "
                "it is not the file of one network"
            )
        renamed[ours] = tensor
    return renamed, layout


def match_weights(
    wanted: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    origin: str,
    digest: str,
    part: Part,
    stats: str | Path | None,
) -> tuple[dict[str, Tensor], WeightsReport]:
    """The values for our names, and the report, or an error that names what does not fit."""
    if part not in ("whole", "base", "backbone"):
        raise UsageError(f"there is no part {part!r}; take whole, base or backbone")
    if part == "backbone" and "conv1.weight" not in wanted:
        raise UsageError("this network has no backbone; only 2D networks do")
    prefix = "mlp." if "mlp.w1.weight" in wanted else ""
    renamed, layout = renamed_weights(given, origin)
    found = {prefix + name: tensor for name, tensor in renamed.items()}
    if not found.keys() & wanted.keys():
        raise DataError(
            f"{origin}: none of its {len(given)} names fits this network "
            f"(it has {', '.join(list(given)[:3])} …, wanted {', '.join(list(wanted)[:3])} …)"
        )
    clashes = {
        name: f"{name} is {tuple(found[name].shape)} there and {tuple(wanted[name].shape)} here"
        for name in sorted(found.keys() & wanted.keys())
        if found[name].shape != wanted[name].shape
    }
    if prefix and not found.keys() >= set(STATISTICS):
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
        found |= read_statistics(stats, wanted["mlp.w1.weight"].shape[1] // 2)
    outside = {"whole": None, "base": IDENTITIES, "backbone": HEADS}[part]
    asked = {name for name in wanted if outside is None or not outside.search(name)}
    spare = {
        name for name in found.keys() - asked if part == "backbone" and NOT_BACKBONE.match(name)
    }
    missing = {name for name in asked if name not in found}
    uncounted = {name for name in missing if name.endswith("num_batches_tracked")}
    missing -= uncounted
    surplus = found.keys() - asked - spare
    faults = [
        f"{len(names)} {fault} ({', '.join(sorted(names)[:3])}{' …' * (len(names) > 3)})"
        for fault, names in (("missing", missing), ("left over", surplus))
        if names
    ]
    faults += [clash for name, clash in clashes.items() if name in asked][:2]
    if faults:
        raise DataError(
            f"{origin}: does not fit this network: {'; '.join(faults)}; "
            "build the network with the file's sizes"
        )
    matched = {
        name: _value(found[name], wanted[name].dtype, f"{origin}: {name}")
        for name in wanted
        if name in asked and name in found
    }
    kept = tuple(name for name in wanted if name not in matched)
    return matched, WeightsReport(
        origin, digest, tuple(matched), kept, tuple(sorted(spare)), layout=layout, part=part
    )


def _value(tensor: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """A tensor in the type that it is wanted in, or an error."""
    if dtype.is_floating_point and not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise DataError(f"{what} is {kind}, and weights are real numbers; refused")
    tensor = tensor.to(dtype)
    if dtype.is_floating_point and not tensor.isfinite().all():
        kind = str(dtype).removeprefix("torch.")
        raise DataError(f"{what} is not finite in {kind}; the file is of no use")
    if what.endswith("running_var") and (tensor < 0).any():
        raise DataError(f"{what} is a variance and negative; the file is of no use")
    return tensor
