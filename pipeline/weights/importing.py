"""`heatlift weights import`: published files as checkpoints."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import DataError, UsageError
from pipeline.files import writing
from pipeline.heatmap.image_input import Channels, ImageInput, stored_input
from pipeline.skeleton import SKELETONS
from pipeline.training.private_names import INSTANTIATOR
from pipeline.training.transfer import WeightsReport
from pipeline.weights.architectures import NETWORKS, Sizes, infer_sizes, network_names
from pipeline.weights.matching import Part, match_weights, published_input, rename_weights
from pipeline.weights.published_files import open_weights


def import_weights(
    file: str | Path,
    as_: str,
    output: str | Path,
    stats: str | Path | None = None,
    *,
    part: Part = "whole",
    skeleton: str | None = None,
    input_size: tuple[int, int] | None = None,
    channels: Channels | None = None,
) -> WeightsReport:
    """Turn a published file into a checkpoint that a stage can start from (`--model.pretrained`).

    The sizes of the network are inferred from the shapes of its weights and printed as options of a
    stage; the checkpoint has them under `heatlift.net`. Two facts cannot be inferred: the number of
    attention heads of a MixSTE or PoseFormer, and whether a VideoPose3D is causal. The weights fit
    in either case, but give other numbers. A 2D network with its head becomes a detector, too
    (`heatlift detect --detector`, `--data.detections`), with x/4 as the cell of pixel x and a flip
    test, as published networks are tested.

    Args:
        file: Path of the published file.
        as_: Name of the network in the file: mixste, poseformer, videopose3d, martinez, hrnet,
            simple_baseline or san. A mixste or poseformer is imported with 8 heads, as published
            (4, 2 or 1 where 8 do not divide its width); set --model.net.init_args.heads if it was
            trained with others. A videopose3d is imported as not causal; set
            --model.net.init_args.causal true if it is. Of a cascade of martinez, one stage can be
            imported, but not the sum of stages.
        output: Path of the checkpoint to write.
        stats: Path of an .npz with the statistics that a martinez was trained with: mean2d,
            deviation2d (pixels), mean3d, deviation3d (of the 16 joints besides the root), metres
            (length of their unit), size (width and height of the images).
        part: Part of the network: whole; base, without modules that start as the identity (group
            attention, attention modules, SAN's attention); or backbone, the trunk of a 2D network
            without its head.
        skeleton: Joint set of a 2D network. Default: COCO17 for 17 joints and MPII16 for 16 joints
            of hrnet and simple_baseline, H36M18 for 18 joints of san. A san needs it where its maps
            can be both joints of 64 and of 72 bins (1,152: 18 x 64 or 16 x 72), or neither.
        input_size: Width and height of the crops that a 2D network was trained on, pixels. Default:
            192 x 256 for COCO17, 288 x 384 for 72 bins, else 256 x 256.
        channels: Order of the colour channels that a 2D network was trained on. Default: BGR for a
            simple baseline in Microsoft's layout, else RGB.

    Raises:
        DataError: If the file cannot be read safely, is of another network, or has odd sizes.
        UsageError: If there is no such network or joint set, or the output is the input.
    """
    _check_arguments(file, as_, output, skeleton)
    stage = NETWORKS[as_].stage
    source = open_weights(file)
    renamed, layout = rename_weights(source.weights, source.origin)
    sizes = infer_sizes(file, as_, renamed, skeleton)
    expected = _empty_network(file, as_, sizes).state_dict()
    matched, report = match_weights(expected, source, part, stats)
    net = {"class_path": NETWORKS[as_].class_path, "init_args": sizes}
    image_input = _image_input(as_, published_input(renamed, layout), channels)
    settings: Sizes = {}
    notes: list[str] = []
    if part != "backbone":
        settings = _detector_settings(as_, sizes, skeleton, input_size)
        notes = _notes(as_, sizes, settings)
    if image_input is not None and channels is None:
        notes.append(
            "weights do not tell the order of the colour channels; "
            f"{image_input.channels} is taken: give --channels if they were trained on the other"
        )
    report = replace(report, net=net, notes=tuple(notes), image_input=str(image_input or ""))
    content = _checkpoint_content(stage, matched, report, settings, image_input)
    writing.write_atomically(Path(output), lambda handle: torch.save(content, handle))
    return report


def _check_arguments(file: str | Path, as_: str, output: str | Path, skeleton: str | None) -> None:
    """Raise if there is no such network or joint set, or the output is the input."""
    if as_ not in NETWORKS:
        hint = "; of a cascade take one stage as martinez" if as_ == "cascade" else ""
        raise UsageError(
            f"{as_} is not a network with published weights; take one of {network_names()}{hint}"
        )
    if skeleton is not None and skeleton not in SKELETONS:
        raise UsageError(f"no joint set {skeleton!r}; there are {', '.join(SKELETONS)}")
    if Path(output).exists() and Path(file).exists() and Path(output).samefile(file):
        raise UsageError(f"{output}: is the input; choose another name for the checkpoint")


def _empty_network(file: str | Path, as_: str, sizes: Sizes) -> nn.Module:
    """The network with names and shapes of its weights, but without values."""
    module, _, name = NETWORKS[as_].class_path.rpartition(".")
    try:
        with torch.device("meta"):
            net: nn.Module = getattr(importlib.import_module(module), name)(**sizes)
    except (ValueError, RuntimeError) as error:
        raise DataError(
            f"{file}: has sizes that no {as_} can have ({error}); is it of another network?"
        ) from error
    return net


def _image_input(
    as_: str, usual: ImageInput | None, channels: Channels | None
) -> ImageInput | None:
    """Input of a published 2D network, with the given channel order; None for lifters."""
    if channels is None:
        return usual
    if usual is None:
        raise UsageError(f"--channels is for 2D networks, and {as_} is a lifter")
    return replace(usual, channels=channels)


def _checkpoint_content(
    stage: str,
    matched: Mapping[str, Tensor],
    report: WeightsReport,
    settings: Sizes,
    image_input: ImageInput | None,
) -> dict[str, Any]:
    """Content of the checkpoint; with settings of a detector, it is like that of a run."""
    published = report.plain()
    content: dict[str, Any] = {
        "state_dict": {f"net.{name}": tensor.contiguous() for name, tensor in matched.items()},
        "heatlift": {"stage": stage, "net": published.pop("net"), "published": published},
    }
    if image_input is not None:
        content["state_dict"] |= stored_input(image_input)
    if settings:
        counters = [name for name in report.kept if name.endswith("num_batches_tracked")]
        content["state_dict"] |= {
            f"net.{name}": torch.zeros((), dtype=torch.int64) for name in counters
        }
        content["hyper_parameters"] = {
            "net": report.net,
            **settings,
            **INSTANTIATOR,
        }
        content["pytorch-lightning_version"] = version("lightning")
    return content


def _detector_settings(
    as_: str, sizes: Sizes, skeleton: str | None, input_size: tuple[int, int] | None
) -> Sizes:
    """Settings of a 2D network as a detector; empty if the set of its joints is not known.

    Raises:
        UsageError: If it has no joints, or another number of joints than the set.
    """
    joint_sets = NETWORKS[as_].joint_sets
    if not joint_sets or "joints" not in sizes:
        if skeleton or input_size:
            raise UsageError("--skeleton and --input_size are for 2D networks with their head")
        return {}
    joints: int = sizes["joints"]
    name = skeleton or joint_sets.get(joints)
    if name is None:
        return {}
    if len(SKELETONS[name]) != joints:
        raise UsageError(
            f"--skeleton {name}: has {len(SKELETONS[name])} joints and the network finds {joints}"
        )
    if input_size is None:
        input_size = _usual_input_size(name, sizes)
    return {
        "skeleton": name,
        "input_size": list(input_size),
        "published_cells": True,
        "flip_test": True,
    }


def _usual_input_size(skeleton: str, sizes: Sizes) -> tuple[int, int]:
    """Width and height of the crops that such a published network was trained on, pixels."""
    if skeleton == "COCO17":
        return 192, 256
    if sizes.get("depth_bins") == 72:
        return 288, 384
    return 256, 256


def _notes(as_: str, sizes: Sizes, settings: Sizes) -> list[str]:
    """Notes for the user about facts that cannot be inferred from weights."""
    if "heads" in sizes:
        return [
            f"weights do not tell the number of attention heads; {sizes['heads']} are taken: "
            "give --model.net.init_args.heads if it was trained with others"
        ]
    if as_ == "videopose3d":
        return [
            "weights do not tell a causal network from others; give "
            "--model.net.init_args.causal true if it was trained so"
        ]
    if not NETWORKS[as_].joint_sets:
        return []
    if not settings:
        return [
            f"{sizes.get('joints', 'no')} joints do not tell their set; to be a detector it needs "
            "--skeleton"
        ]
    width, height = settings["input_size"]
    return [
        f"as a detector it finds {settings['skeleton']} in crops of {width}x{height}; import it "
        "with --skeleton or --input_size if it was trained otherwise",
        "at its stage give --model.published_cells true, too, unless the preset has it",
    ]
