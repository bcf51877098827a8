"""Weights that others published: read safely, renamed, loaded strictly or not at all."""

from __future__ import annotations

import hashlib
import importlib
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import camera, checkpoint, pickled
from pipeline.errors import DataError, UsageError
from pipeline.skeleton import H36M17

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

BESIDE = ("model_traj",)
"""Other networks that files have beside their weights: VideoPose3D's, of the root's trajectory."""

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
        dropped: Names in the source that were left out on purpose, also of whole networks
            (`BESIDE`).
    """

    source: str
    digest: str
    layout: str
    part: str
    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    dropped: tuple[str, ...]

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
        return line


def read_published(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file that others published, read without running anything it holds.

    NumPy values beside the weights (the random state and losses that published training scripts
    save) are read past; any other foreign object is refused. Both of torch's formats are read: zip,
    checked by its CRCs, and the one before it, which has no checks.

    Args:
        path: The file.

    Returns:
        Name -> tensor, without `module.` in front where all names have it.

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
        DataError: If there are none, or any is not a dense, finite tensor.
    """
    state: Any = content
    if isinstance(content, Mapping):
        wrapped = [content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        state = wrapped[0] if wrapped else content
    tensors = (
        {name: value.detach() for name, value in state.items() if isinstance(value, Tensor)}
        if isinstance(state, Mapping)
        else {}
    )
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise DataError(
            f"{source}: holds no named weights, neither at the top nor under {', '.join(WRAPPERS)}"
        )
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise DataError(f"{source}: {name} is not a plain tensor; refused")
    checkpoint.refuse_claims(tensors, source)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DataError(f"{source}: {name} is not finite; the file is of no use")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


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
) -> Report:
    """Turn a published file into a checkpoint that a stage can start from (`--model.pretrained`).

    The network's sizes are read off the weights; the checkpoint names class and arguments under
    `heatlift.net`. One thing cannot be read off them: the number of attention heads. Weights of a
    MixSTE or PoseFormer with others than 8 fit all the same and give other numbers.

    Args:
        file: The published file.
        as_: Which network it is of: mixste, poseformer, videopose3d, martinez, hrnet,
            simple_baseline or san. A mixste or poseformer is taken for one with 8 heads, as
            published; set --model.net.init_args.heads if it was trained with others.
        output: Where the checkpoint goes.
        stats: For martinez, an .npz of the statistics its weights were trained with: mean2d,
            deviation2d (pixels), mean3d, deviation3d (of the 16 joints besides the root), metres
            (length of their unit), size (width and height of the pictures).
        part: whole; base, without modules that start as the identity (group attention, attention
            modules, SAN's attention); or backbone, the trunk of a 2D network without its head.

    Raises:
        DataError: If the file is refused, is not such a network, or has odd sizes.
        UsageError: If there is no such network, or the output is the input.
    """
    if as_ not in NETWORKS:
        raise UsageError(f"{as_} is not a network with published weights; take one of {_known()}")
    if Path(output).exists() and Path(file).exists() and Path(output).samefile(file):
        raise UsageError(f"{output}: is the input; choose another name for the checkpoint")
    class_path, sizes = NETWORKS[as_]
    origin, digest, given, beside = _open(file)
    try:
        arguments = sizes(_renamed(given)[0])
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise DataError(
            f"{file}: is not a {as_}: it has no {error}; --as takes {_known()}"
        ) from error
    except ValueError as error:
        raise DataError(f"{file}: is not a {as_}: a weight has too many or few axes") from error
    home, _, name = class_path.rpartition(".")
    try:
        with torch.device("meta"):  # names and shapes are all that is needed
            net = getattr(importlib.import_module(home), name)(**arguments)
    except (ValueError, RuntimeError) as error:
        raise DataError(
            f"{file}: has sizes that no {as_} can have ({error}); is it of another network?"
        ) from error
    matched, report = _match(net.state_dict(), given, origin, digest, part, stats)
    report = replace(report, dropped=report.dropped + beside)
    content = {
        "state_dict": {f"net.{name}": tensor.contiguous() for name, tensor in matched.items()},
        "heatlift": {
            "stage": home.rpartition(".")[2],
            "net": {"class_path": class_path, "init_args": arguments},
            "published": report.plain(),
        },
    }
    checkpoint.write_whole(Path(output), lambda handle: torch.save(content, handle))
    return report


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
    """Name, digest and weights of a source, and which of `BESIDE` it has."""
    content: Any = source
    origin, digest = "state dict", ""
    if not isinstance(source, Mapping):
        content, origin = _content(Path(source)), str(source)
        with Path(source).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    weights = weights_in(content, origin)
    return origin, digest, weights, tuple(name for name in BESIDE if name in content)


def _renamed(given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The same weights under our names, and whose names they had."""
    renamed, layout = {}, "names as ours"
    for name, tensor in given.items():
        ours = name
        for whose, pattern, replacement in RENAMES:
            ours, changes = re.subn(pattern, replacement, ours)
            layout = whose if changes else layout
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
    renamed, layout = _renamed(given)
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
    matched = {name: found[name] for name in wanted if name in asked and name in found}
    for name, tensor in matched.items():
        if wanted[name].is_floating_point() and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise DataError(f"{origin}: {name} is {kind}, and weights are real numbers; refused")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DataError(f"{origin}: {name} is not finite; the file is of no use")
    kept = tuple(name for name in wanted if name not in matched)
    return matched, Report(origin, digest, layout, part, tuple(matched), kept, tuple(sorted(spare)))


Sizes = dict[str, Any]


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
        "channels": channels,
    }


def _videopose3d(state: Mapping[str, Tensor]) -> Sizes:
    first = state["expand_conv.weight"]
    joints = state["shrink.weight"].shape[0] // 3
    levels = _count(state, r"layers_conv\.(\d+)\.") // 2
    deeper = (state[f"layers_conv.{2 * level}.weight"].shape[2] for level in range(levels))
    return {
        "joints": joints,
        "widths": [first.shape[2], *deeper],
        "channels": first.shape[0],
        "input_channels": first.shape[1] // joints,
    }


def _martinez(state: Mapping[str, Tensor]) -> Sizes:
    width, inputs = state["w1.weight"].shape
    blocks = _count(state, r"linear_stages\.(\d+)\.")
    unseen = ["nose"] if inputs == 2 * (len(H36M17) - 1) else []
    return {"width": width, "blocks": blocks, "unseen": unseen}


def _hrnet(state: Mapping[str, Tensor]) -> Sizes:
    return {"width": state["stage2.0.branches.0.0.conv1.weight"].shape[0]} | _joints(state)


def _simple_baseline(state: Mapping[str, Tensor]) -> Sizes:
    return _layers(state) | _joints(state)


def _san(state: Mapping[str, Tensor]) -> Sizes:
    sizes: Sizes = _layers(state) | {"attention": "attention.delta" in state}
    maps = _joints(state).get("joints", 0)
    # 64 bins at 256x256, 72 at 384x288 (Integral); the product with the joints tells which
    bins = next((bins for bins in (64, 72) if maps and maps % bins == 0), None)
    return sizes | ({"joints": maps // bins, "depth_bins": bins} if bins else {})


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
