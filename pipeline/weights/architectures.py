"""Networks with published weights, and their sizes, inferred from the shapes of the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pipeline.errors import DataError
from pipeline.skeleton import H36M17, SKELETONS

Weights = Mapping[str, Tensor]
"""Weights by our names; only their shapes matter here."""

Sizes = dict[str, Any]
"""Arguments of a network."""


class PublishedNetwork(NamedTuple):
    """A network whose published weights can be imported.

    Args:
        class_path: Class of the network.
        marker: Name of a weight, under our name, that tells this network from the others.
        infer: Function that infers the arguments of the network from its weights and the name of
            its joint set, if that was given.
        joint_sets: Number of joints -> joint set that published networks with so many joints were
            trained on; empty for lifters.
    """

    class_path: str
    marker: str
    infer: Callable[[Weights, str | None], Sizes]
    joint_sets: Mapping[int, str] = {}

    @property
    def stage(self) -> str:
        """The stage that trains this network."""
        return self.class_path.split(".")[-2]


def infer_sizes(file: str | Path, as_: str, weights: Weights, skeleton: str | None) -> Sizes:
    """Infer the arguments of a network from its weights.

    Args:
        file: File of the weights, for error messages.
        as_: Name of the network in `NETWORKS`.
        weights: Weights under our names.
        skeleton: Joint set of a 2D network, if it was given.

    Raises:
        DataError: If the weights are of another network, or their shapes are ambiguous.
    """
    matching = [name for name, network in NETWORKS.items() if network.marker in weights]
    if matching and as_ not in matching:
        raise DataError(
            f"{file}: is not a {as_}: its names are those of a {matching[0]}; take --as "
            f"{' or '.join(matching)}"
        )
    try:
        return NETWORKS[as_].infer(weights, skeleton)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise DataError(
            f"{file}: is not a {as_}: it has no {error}; --as takes {network_names()}"
        ) from error
    except ValueError as error:
        raise DataError(f"{file}: is not a {as_}: a weight has too many or few axes") from error


def _count(weights: Weights, pattern: str) -> int:
    """Number of modules in a list; group 1 of the pattern is the index in a weight's name."""
    indices = {match[1] for name in weights if (match := re.match(pattern, name))}
    return len(indices)


def _infer_mixste(weights: Weights, _: str | None) -> Sizes:
    dim, channels = weights["Spatial_patch_to_embedding.weight"].shape
    return {
        "joints": weights["Spatial_pos_embed"].shape[1],
        "frames": weights["Temporal_pos_embed"].shape[1],
        "dim": dim,
        "depth": _count(weights, r"(?:STEblocks|Spatial_blocks)\.(\d+)\."),
        "heads": math.gcd(dim, 8),
        "channels": channels,
    }


def _infer_videopose3d(weights: Weights, _: str | None) -> Sizes:
    first = weights["expand_conv.weight"]
    joints = weights["shrink.weight"].shape[0] // 3
    levels = _count(weights, r"layers_conv\.(\d+)\.") // 2
    deeper = (weights[f"layers_conv.{2 * level}.weight"].shape[2] for level in range(levels))
    widths = [first.shape[2], *deeper]
    dense_widths = _undilated_widths(widths)
    if dense_widths is not None and dense_widths != widths:
        raise DataError(
            f"its convolutions cover {', '.join(map(str, widths))} frames, as those of a network "
            f"trained with --dense and widths {', '.join(map(str, dense_widths))}; only networks "
            "with dilations can be imported"
        )
    return {
        "joints": joints,
        "widths": widths,
        "channels": first.shape[0],
        "input_channels": first.shape[1] // joints,
    }


def _undilated_widths(kernels: list[int]) -> list[int] | None:
    """Widths of the network that has these kernel sizes with --dense; None if there is none."""
    widths = kernels[:1]
    for kernel in kernels[1:]:
        steps, rest = divmod(kernel - 1, math.prod(widths))
        if rest or steps % 2:
            return None
        widths.append(steps + 1)
    return widths


def _infer_martinez(weights: Weights, _: str | None) -> Sizes:
    width, inputs = weights["w1.weight"].shape
    blocks = _count(weights, r"linear_stages\.(\d+)\.")
    unseen = ["nose"] if inputs == 2 * (len(H36M17) - 1) else []
    return {"width": width, "blocks": blocks, "unseen": unseen}


def _infer_hrnet(weights: Weights, _: str | None) -> Sizes:
    width = weights["stage2.0.branches.0.0.conv1.weight"].shape[0]
    return {"width": width} | _infer_joints(weights)


def _infer_simple_baseline(weights: Weights, _: str | None) -> Sizes:
    return _infer_layers(weights) | _infer_joints(weights)


def _infer_san(weights: Weights, skeleton: str | None) -> Sizes:
    sizes: Sizes = _infer_layers(weights) | {"attention": "attention.delta" in weights}
    maps = _infer_joints(weights).get("joints")
    if maps is None:
        return sizes
    joints, bins = _volume_sizes(maps, skeleton)
    return sizes | {"joints": joints, "depth_bins": bins}


def _volume_sizes(maps: int, skeleton: str | None) -> tuple[int, int]:
    """Number of joints and of depth bins of a network with so many maps (joints times bins).

    Raises:
        DataError: If the joint set does not fit, or none was given and the numbers are ambiguous.
    """
    if skeleton is not None:
        joints = len(SKELETONS[skeleton])
        if maps % joints:
            raise DataError(
                f"its {maps:,} maps are no multiple of the {joints} joints of {skeleton}; "
                "give another --skeleton"
            )
        return joints, maps // joints
    # published networks have 64 bins at 256x256 and 72 at 384x288 (Integral)
    candidates = [(maps // bins, bins) for bins in (64, 72) if maps % bins == 0]
    if len(candidates) != 1:
        found = " or ".join(f"{joints} joints of {bins} bins" for joints, bins in candidates)
        raise DataError(
            f"its {maps:,} maps are {found or 'no joints of 64 or 72 bins'}; give --skeleton"
        )
    return candidates[0]


def _infer_layers(weights: Weights) -> Sizes:
    """Depth of a ResNet, by the number of blocks in its third layer."""
    layers = {6: 50, 23: 101, 36: 152}
    return {"layers": layers[_count(weights, r"layer3\.(\d+)\.")]}


def _infer_joints(weights: Weights) -> Sizes:
    """Number of maps of a 2D network with a head; nothing for a classifier or a trunk."""
    head = weights.get("final_layer.weight")
    return {} if head is None or "classifier.weight" in weights else {"joints": head.shape[0]}


NETWORKS = {
    "mixste": PublishedNetwork(
        "pipeline.lift.MixSTE",
        "STEblocks.0.attn.qkv.weight",
        _infer_mixste,
    ),
    "poseformer": PublishedNetwork(
        "pipeline.lift.PoseFormer",
        "Spatial_blocks.0.attn.qkv.weight",
        _infer_mixste,
    ),
    "videopose3d": PublishedNetwork(
        "pipeline.lift.VideoPose3D",
        "expand_conv.weight",
        _infer_videopose3d,
    ),
    "martinez": PublishedNetwork(
        "pipeline.lift.Martinez",
        "w1.weight",
        _infer_martinez,
    ),
    "hrnet": PublishedNetwork(
        "pipeline.heatmap.HRNet",
        "stage2.0.branches.0.0.conv1.weight",
        _infer_hrnet,
        {17: "COCO17", 16: "MPII16"},
    ),
    "simple_baseline": PublishedNetwork(
        "pipeline.heatmap.SimpleBaseline",
        "deconv_layers.0.weight",
        _infer_simple_baseline,
        {17: "COCO17", 16: "MPII16"},
    ),
    "san": PublishedNetwork(
        "pipeline.integral.SAN",
        "deconv_layers.0.weight",
        _infer_san,
        {18: "H36M18", 16: "MPII16"},
    ),
}
"""Name of a network for `heatlift weights import --as` -> what is known about it."""


def network_names() -> str:
    """Names that `heatlift weights import --as` takes, for messages."""
    return ", ".join(NETWORKS)
