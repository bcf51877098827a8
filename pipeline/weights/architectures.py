"""The sizes of a network, inferred from the shapes of its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import DataError
from pipeline.skeleton import H36M17, SKELETONS

SIGNS = {
    "mixste": "STEblocks.0.attn.qkv.weight",
    "poseformer": "Spatial_blocks.0.attn.qkv.weight",
    "videopose3d": "expand_conv.weight",
    "martinez": "w1.weight",
    "hrnet": "stage2.0.branches.0.0.conv1.weight",
    "simple_baseline": "deconv_layers.0.weight",
    "san": "deconv_layers.0.weight",
}
"""A parameter, under our name, by which a whole network of each kind is told from the others."""


Sizes = dict[str, Any]


def infer_sizes(
    file: str | Path, as_: str, renamed: Mapping[str, Tensor], skeleton: str | None
) -> Sizes:
    """The arguments of a network of this kind, by its weights.

    Raises:
        DataError: If they are of another kind, or do not tell.
    """
    looks = [name for name, sign in SIGNS.items() if sign in renamed]
    if looks and as_ not in looks:
        raise DataError(
            f"{file}: is not a {as_}: its names are those of a {looks[0]}; take --as "
            f"{' or '.join(looks)}"
        )
    try:
        return _san(renamed, skeleton) if as_ == "san" else NETWORKS[as_][1](renamed)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise DataError(
            f"{file}: is not a {as_}: it has no {error}; --as takes {known_networks()}"
        ) from error
    except ValueError as error:
        raise DataError(f"{file}: is not a {as_}: a weight has too many or few axes") from error


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many members a numbered list has, by the names of its parts."""
    found = {match[1] for name in state if (match := re.match(pattern, name))}
    return len(found)


def _mixste(state: Mapping[str, Tensor]) -> Sizes:
    dim, channels = state["Spatial_patch_to_embedding.weight"].shape
    return {
        "joints": state["Spatial_pos_embed"].shape[1],
        "frames": state["Temporal_pos_embed"].shape[1],
        "dim": dim,
        "depth": _count(state, r"(?:STEblocks|Spatial_blocks)\.(\d+)\."),
        "heads": math.gcd(dim, 8),
        "channels": channels,
    }


def _videopose3d(state: Mapping[str, Tensor]) -> Sizes:
    first = state["expand_conv.weight"]
    joints = state["shrink.weight"].shape[0] // 3
    levels = _count(state, r"layers_conv\.(\d+)\.") // 2
    deeper = (state[f"layers_conv.{2 * level}.weight"].shape[2] for level in range(levels))
    widths = [first.shape[2], *deeper]
    dense = _undilated(widths)
    if dense is not None and dense != widths:
        raise DataError(
            f"its convolutions see {', '.join(map(str, widths))} frames, as those of a network "
            f"trained with --dense and widths {', '.join(map(str, dense))}; that is not a "
            "videopose3d with dilations, and there is none here"
        )
    return {
        "joints": joints,
        "widths": widths,
        "channels": first.shape[0],
        "input_channels": first.shape[1] // joints,
    }


def _undilated(kernels: list[int]) -> list[int] | None:
    """Widths of the levels, if convolutions without dilation over so many frames span them."""
    widths = kernels[:1]
    for kernel in kernels[1:]:
        further, rest = divmod(kernel - 1, math.prod(widths))
        if rest or further % 2:
            return None
        widths.append(further + 1)
    return widths


def _martinez(state: Mapping[str, Tensor]) -> Sizes:
    width, inputs = state["w1.weight"].shape
    blocks = _count(state, r"linear_stages\.(\d+)\.")
    unseen = ["nose"] if inputs == 2 * (len(H36M17) - 1) else []
    return {"width": width, "blocks": blocks, "unseen": unseen}


def _hrnet(state: Mapping[str, Tensor]) -> Sizes:
    return {"width": state["stage2.0.branches.0.0.conv1.weight"].shape[0]} | _joints(state)


def _simple_baseline(state: Mapping[str, Tensor]) -> Sizes:
    return _layers(state) | _joints(state)


def _san(state: Mapping[str, Tensor], skeleton: str | None = None) -> Sizes:
    sizes: Sizes = _layers(state) | {"attention": "attention.delta" in state}
    maps = _joints(state).get("joints")
    if maps is None:
        return sizes
    # 64 bins at 256x256, 72 at 384x288 (Integral); the product with the joints mostly tells which
    usual = [(maps // bins, bins) for bins in (64, 72) if maps % bins == 0]
    if skeleton is not None:
        joints = len(SKELETONS[skeleton])
        if maps % joints:
            raise DataError(
                f"its {maps:,} maps are no multiple of the {joints} joints of {skeleton}; "
                "give another --skeleton"
            )
        usual = [(joints, maps // joints)]
    if len(usual) != 1:
        found = " or ".join(f"{joints} joints of {bins} bins" for joints, bins in usual)
        raise DataError(
            f"its {maps:,} maps are {found or 'no joints of 64 or 72 bins'}; "
            "say which with --skeleton"
        )
    ((joints, bins),) = usual
    return sizes | {"joints": joints, "depth_bins": bins}


def _layers(state: Mapping[str, Tensor]) -> Sizes:
    depth = {6: 50, 23: 101, 36: 152}
    return {"layers": depth[_count(state, r"layer3\.(\d+)\.")]}


def _joints(state: Mapping[str, Tensor]) -> Sizes:
    """Number of maps of a 2D network with a head; a classifier's file has none to tell."""
    head = state.get("final_layer.weight")
    return {} if head is None or "classifier.weight" in state else {"joints": head.shape[0]}


NETWORKS: dict[str, tuple[str, Callable[[Mapping[str, Tensor]], Sizes]]] = {
    "mixste": ("pipeline.lift.MixSTE", _mixste),
    "poseformer": ("pipeline.lift.PoseFormer", _mixste),
    "videopose3d": ("pipeline.lift.VideoPose3D", _videopose3d),
    "martinez": ("pipeline.lift.Martinez", _martinez),
    "hrnet": ("pipeline.heatmap.HRNet", _hrnet),
    "simple_baseline": ("pipeline.heatmap.SimpleBaseline", _simple_baseline),
    "san": ("pipeline.integral.SAN", _san),
}
"""Network as `heatlift weights import --as` calls it -> its class, and its sizes by its weights."""


def known_networks() -> str:
    return ", ".join(NETWORKS)
