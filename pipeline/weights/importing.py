"""`heatlift weights import`: published files as checkpoints."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import DataError, UsageError
from pipeline.files import writing
from pipeline.skeleton import SKELETONS
from pipeline.training.transfer import WeightsReport
from pipeline.weights.architectures import NETWORKS, Sizes, infer_sizes, known_networks
from pipeline.weights.matching import Part, match_weights, renamed_weights
from pipeline.weights.published_files import open_source

JOINT_SETS = {"heatmap": {17: "COCO17", 16: "MPII16"}, "integral": {18: "H36M18", 16: "MPII16"}}
"""Stage -> number of joints -> the set that published 2D networks with so many were trained on."""


def import_weights(
    file: str | Path,
    as_: str,
    output: str | Path,
    stats: str | Path | None = None,
    *,
    part: Part = "whole",
    skeleton: str | None = None,
    input_size: tuple[int, int] | None = None,
) -> WeightsReport:
    """Turn a published file into a checkpoint that a stage can start from (`--model.pretrained`).

    The network's sizes are read off the weights and printed as the options of a stage; the
    checkpoint has them under `heatlift.net`. Two things cannot be read off: how many attention
    heads a MixSTE or PoseFormer has, and whether a VideoPose3D is causal. The weights fit all the
    same and give other numbers. A 2D network with its head becomes a detector, too (`heatlift
    detect --detector`, `--data.detections`): x/4 for the cell of pixel x and a flip test, as
    published networks are tested.

    Args:
        file: The published file.
        as_: Which network it is of: mixste, poseformer, videopose3d, martinez, hrnet,
            simple_baseline or san. A mixste or poseformer is taken for one with 8 heads, as
            published (4, 2 or 1 where 8 do not divide its width); set --model.net.init_args.heads
            if it was trained with others. A videopose3d is taken for one that is not causal; set
            --model.net.init_args.causal true if it was. Of a cascade of martinez one stage can be
            taken, no sum of them.
        output: Where the checkpoint goes.
        stats: For martinez, an .npz of the statistics its weights were trained with: mean2d,
            deviation2d (pixels), mean3d, deviation3d (of the 16 joints besides the root), metres
            (length of their unit), size (width and height of the images).
        part: whole; base, without modules that start as the identity (group attention, attention
            modules, SAN's attention); or backbone, the trunk of a 2D network without its head.
        skeleton: Joint set of a 2D network. Unless given, 17 joints of hrnet and simple_baseline
            are COCO17, 16 are MPII16, and 18 of san are H36M18. A san needs it where its maps can
            be both joints of 64 and of 72 bins (1,152: 18 x 64 or 16 x 72), or neither.
        input_size: Width and height that a 2D network was trained on, as a detector's crops. Unless
            given, 192 x 256 for COCO17, 288 x 384 for 72 bins, else 256 x 256.

    Raises:
        DataError: If the file is refused, is not such a network, or has odd sizes.
        UsageError: If there is no such network or joint set, or the output is the input.
    """
    if as_ not in NETWORKS:
        hint = "; of a cascade take one stage as martinez" * (as_ == "cascade")
        raise UsageError(
            f"{as_} is not a network with published weights; take one of {known_networks()}{hint}"
        )
    if skeleton is not None and skeleton not in SKELETONS:
        raise UsageError(f"no joint set {skeleton!r}; there are {', '.join(SKELETONS)}")
    if Path(output).exists() and Path(file).exists() and Path(output).samefile(file):
        raise UsageError(f"{output}: is the input; choose another name for the checkpoint")
    class_path, _ = NETWORKS[as_]
    origin, digest, given, beside = open_source(file)
    arguments = infer_sizes(file, as_, renamed_weights(given, origin)[0], skeleton)
    home, _, name = class_path.rpartition(".")
    stage = home.rpartition(".")[2]
    try:
        with torch.device("meta"):  # names and shapes are all that is needed
            net = getattr(importlib.import_module(home), name)(**arguments)
    except (ValueError, RuntimeError) as error:
        raise DataError(
            f"{file}: has sizes that no {as_} can have ({error}); is it of another network?"
        ) from error
    matched, report = match_weights(net.state_dict(), given, origin, digest, part, stats)
    made = {"class_path": class_path, "init_args": arguments}
    whole = part != "backbone"
    asked = _detector(stage, arguments, skeleton, input_size) if whole else {}
    report = replace(
        report,
        dropped=report.dropped + beside,
        net=made,
        notes=tuple(_notes(as_, stage, arguments, asked)) if whole else (),
    )
    about = report.plain()
    content: dict[str, Any] = {
        "state_dict": {f"net.{name}": tensor.contiguous() for name, tensor in matched.items()},
        "heatlift": {"stage": stage, "net": about.pop("net"), "published": about},
    }
    if asked:  # what the command line writes into checkpoints of its runs, so that it is one, too
        counters = [name for name in report.kept if name.endswith("num_batches_tracked")]
        content["state_dict"] |= {
            f"net.{name}": torch.zeros((), dtype=torch.int64) for name in counters
        }
        content["hyper_parameters"] = {
            "net": made,
            **asked,
            "_instantiator": "lightning.pytorch.cli.instantiate_module",
        }
        content["pytorch-lightning_version"] = version("lightning")
    writing.write_atomically(Path(output), lambda handle: torch.save(content, handle))
    return report


def _detector(
    stage: str, sizes: Mapping[str, Any], skeleton: str | None, input_size: tuple[int, int] | None
) -> Sizes:
    """How a 2D network is asked for joints; nothing if the set of its joints is not known.

    Raises:
        UsageError: If it has no joints, or another number than the set.
    """
    if stage not in JOINT_SETS or "joints" not in sizes:
        if skeleton or input_size:
            raise UsageError("--skeleton and --input_size are for 2D networks with their head")
        return {}
    joints: int = sizes["joints"]
    name = skeleton or JOINT_SETS[stage].get(joints)
    if name is None:
        return {}
    if len(SKELETONS[name]) != joints:
        raise UsageError(
            f"--skeleton {name}: has {len(SKELETONS[name])} joints and the network finds {joints}"
        )
    usual = (288, 384) if sizes.get("depth_bins") == 72 else (256, 256)
    size = input_size or ((192, 256) if name == "COCO17" else usual)
    return {
        "skeleton": name,
        "input_size": list(size),
        "published_cells": True,
        "flip_test": True,
    }


def _notes(as_: str, stage: str, sizes: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What weights do not tell, as a person is to hear it."""
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
    if stage not in JOINT_SETS:
        return []
    if not asked:
        return [
            f"{sizes.get('joints', 'no')} joints do not tell their set; to be a detector it needs "
            "--skeleton"
        ]
    width, height = asked["input_size"]
    return [
        f"as a detector it finds {asked['skeleton']} in crops of {width}x{height}; import it with "
        "--skeleton or --input_size if it was trained otherwise",
        "at its stage give --model.published_cells true, too, unless the preset has it",
    ]
