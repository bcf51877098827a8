"""Weights that others published: read safely, renamed, loaded strictly or not at all."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import re
import shlex
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import camera, checkpoint, pickled
from pipeline.errors import DataError, UsageError
from pipeline.skeleton import H36M17, SKELETONS

Part = Literal["whole", "base", "backbone"]
"""What is loaded: everything; all but modules that start as the identity; or the trunk alone."""

WRAPPERS = ("model_pos", "state_dict", "network", "model")
"""Where files keep their weights, if not at the top."""

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

JOINT_SETS = {"heatmap": {17: "COCO17", 16: "MPII16"}, "integral": {18: "H36M18", 16: "MPII16"}}
"""Stage -> number of joints -> the set that published 2D networks with so many were trained on."""

NUMPY_NAMES = (
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.random.__RandomState_ctor",
    "numpy.random._pickle.__randomstate_ctor",
    "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random._mt19937.MT19937",
)
"""What a NumPy random state, array or number is made of in a pickle."""


FORMATS = {*NUMPY_NAMES, "_codecs.encode", "torch._utils._rebuild_tensor", "__builtin__.set"}
"""What the pickle in a published file may name beside what one in a checkpoint may."""


class _Inert:
    """Stands in a file for a NumPy value that nobody needs; takes anything and does nothing."""

    def __new__(cls, *_: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        return


Sizes = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """What became of published weights.

    Args:
        source: The file, or "state dict".
        digest: SHA-256 of the file, or "".
        layout: Whose names it has.
        part: What was asked for.
        loaded: Our names that got values.
        kept: Our names that kept theirs: outside the part, or counters that old files lack.
        dropped: Names in the source that were left out on purpose; also of other sets of weights
            beside (VideoPose3D's `model_traj`, averages) and of entries that are no tensors.
        net: Of an import, `class_path` and `init_args`.
        notes: What weights do not tell and was taken for granted, for people.
    """

    source: str
    digest: str
    layout: str
    part: str
    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    net: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As plain types, for a checkpoint or JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    def __str__(self) -> str:
        line = f"{self.source} ({self.layout}): {len(self.loaded)} loaded"
        for word, names in (("kept", self.kept), ("dropped", self.dropped)):
            if names:
                line += f", {len(names)} {word} ({', '.join(names[:4])}{' …' * (len(names) > 4)})"
        lines = [line]
        if self.net:
            words = ["--model.net", self.net["class_path"]]
            for name, value in self.net["init_args"].items():
                words += [f"--model.net.init_args.{name}", json.dumps(value)]
            lines.append(f"network: {shlex.join(words)}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def read_published(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file that others published, read without running anything it holds.

    NumPy values beside the weights (the random state and losses that published training scripts
    save) are read past; any other foreign object is refused. Both of torch's formats are read: zip,
    checked by its CRCs, and the one before it, which has no checks.

    Args:
        path: The file.

    Returns:
        Name -> tensor, without `module.` in front, however often.

    Raises:
        DataError: If the file is missing, damaged, holds anything but tensors and plain or NumPy
            values, claims more than it holds, or has no weights; see also `weights_in`.
    """
    return weights_in(_content(Path(path)), str(path))


def _content(path: Path) -> Any:
    """What a file holds, with stand-ins for NumPy's values."""
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path")
    if not path.is_file():
        raise DataError(f"{path}: is not a file; give the file with the weights")
    if zipfile.is_zipfile(path):
        checkpoint.verify(path)
    try:
        pickled.scan(path, _allowed)
        with torch.serialization.safe_globals([(_Inert, name) for name in NUMPY_NAMES]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickled.ForeignName as error:
        raise DataError(
            f"{path}: refused: it wants to run {error}, which no file of weights needs"
        ) from error
    except Exception as error:  # a hostile or foreign file can make torch raise anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(
            f"{path}: is no file of weights that torch can read safely ({reason})"
        ) from error


def _allowed(name: str) -> bool:
    return name in FORMATS or checkpoint.HARMLESS.fullmatch(name) is not None


def weights_in(content: Any, source: str = "state dict") -> dict[str, Tensor]:
    """The weights in a loaded file: bare, or under one of `WRAPPERS`; `module.` is stripped.

    Raises:
        DataError: If there are none, any is not a dense, finite tensor, or `module.` stands before
            some names only.
    """
    state, _ = _chosen(content)
    tensors = (
        {name: value.detach() for name, value in state.items() if isinstance(value, Tensor)}
        if isinstance(state, Mapping)
        else {}
    )
    if not tensors or not all(isinstance(name, str) for name in tensors):
        several = isinstance(content, list | tuple) and any(map(_holds_weights, content))
        raise DataError(
            f"{source}: holds no named weights, neither at the top nor under {', '.join(WRAPPERS)}"
            + "; of a cascade's stages give one, in a file of its own" * several
        )
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise DataError(f"{source}: {name} is not a plain tensor; refused")
    checkpoint.refuse_claims(tensors, source)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DataError(f"{source}: {name} is not finite; the file is of no use")
    while all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    marked = sum(name.startswith("module.") for name in tensors)
    if marked:
        raise DataError(
            f"{source}: {marked} of its {len(tensors)} names begin with `module.` and the others "
            "do not; it is not the file of one network"
        )
    return tensors


def _holds_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(part, Tensor) for part in value.values())


def _chosen(content: Any) -> tuple[Any, tuple[str, ...]]:
    """What holds the weights in a file; names of what else there is: weights, and no tensors."""
    if not isinstance(content, Mapping):
        return content, ()
    wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
    state = content if wrapper is None else content[wrapper]
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if wrapper is not None:
        beside = [name for name, value in content.items() if _holds_weights(value)]
        others += [str(name) for name in beside if name != wrapper]
    return state, tuple(others)


def load_published(
    net: nn.Module,
    source: str | Path | Mapping[str, Any],
    part: Part = "whole",
    *,
    stats: str | Path | None = None,
) -> Report:
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
    origin, digest, given, beside = _open(source)
    wanted = net.state_dict()
    matched, report = _match(wanted, given, origin, digest, part, stats)
    net.load_state_dict(wanted | matched)
    return replace(report, dropped=report.dropped + beside)


def import_weights(
    file: str | Path,
    as_: str,
    output: str | Path,
    stats: str | Path | None = None,
    *,
    part: Part = "whole",
    skeleton: str | None = None,
    input_size: tuple[int, int] | None = None,
) -> Report:
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
            (length of their unit), size (width and height of the pictures).
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
            f"{as_} is not a network with published weights; take one of {_known()}{hint}"
        )
    if skeleton is not None and skeleton not in SKELETONS:
        raise UsageError(f"no joint set {skeleton!r}; there are {', '.join(SKELETONS)}")
    if Path(output).exists() and Path(file).exists() and Path(output).samefile(file):
        raise UsageError(f"{output}: is the input; choose another name for the checkpoint")
    class_path, _ = NETWORKS[as_]
    origin, digest, given, beside = _open(file)
    arguments = _sizes(file, as_, _renamed(given, origin)[0], skeleton)
    home, _, name = class_path.rpartition(".")
    stage = home.rpartition(".")[2]
    try:
        with torch.device("meta"):  # names and shapes are all that is needed
            net = getattr(importlib.import_module(home), name)(**arguments)
    except (ValueError, RuntimeError) as error:
        raise DataError(
            f"{file}: has sizes that no {as_} can have ({error}); is it of another network?"
        ) from error
    matched, report = _match(net.state_dict(), given, origin, digest, part, stats)
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
    checkpoint.write_whole(Path(output), lambda handle: torch.save(content, handle))
    return report


def _sizes(
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
            f"{file}: is not a {as_}: it has no {error}; --as takes {_known()}"
        ) from error
    except ValueError as error:
        raise DataError(f"{file}: is not a {as_}: a weight has too many or few axes") from error


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


def read_statistics(path: str | Path, joints2d: int) -> dict[str, Tensor]:
    """The statistics a residual MLP was trained with, as buffers of `Martinez`.

    Args:
        path: An .npz with `mean2d` and `deviation2d`, pixels, of the joints that come in, (J, 2) or
            flat; `mean3d` and `deviation3d` of the 16 joints besides the root, (16, 3) or flat;
            `metres`, the length of a unit of these in metres (a thousandth for millimetres);
            `size`, width and height of the pictures in pixels.
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


def _open(
    source: str | Path | Mapping[str, Any],
) -> tuple[str, str, dict[str, Tensor], tuple[str, ...]]:
    """Name, digest and weights of a source, and the names of what it has beside them."""
    content: Any = source
    origin, digest = "state dict", ""
    if not isinstance(source, Mapping):
        content, origin = _content(Path(source)), str(source)
        with Path(source).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return origin, digest, weights_in(content, origin), _chosen(content)[1]


def _renamed(given: Mapping[str, Tensor], origin: str) -> tuple[dict[str, Tensor], str]:
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


def _match(
    wanted: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    origin: str,
    digest: str,
    part: Part,
    stats: str | Path | None,
) -> tuple[dict[str, Tensor], Report]:
    """The values for our names, and the report, or an error that names what does not fit."""
    if part not in ("whole", "base", "backbone"):
        raise UsageError(f"there is no part {part!r}; take whole, base or backbone")
    if part == "backbone" and "conv1.weight" not in wanted:
        raise UsageError("this network has no backbone; only 2D networks do")
    prefix = "mlp." if "mlp.w1.weight" in wanted else ""
    renamed, layout = _renamed(given, origin)
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
    return matched, Report(origin, digest, layout, part, tuple(matched), kept, tuple(sorted(spare)))


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


def _known() -> str:
    return ", ".join(NETWORKS)
