"""`heatlift weights export`: the networks of checkpoints as ONNX files for onnxruntime."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import DataError, StorageError, UsageError
from pipeline.files.digests import file_digest
from pipeline.files.writing import write_atomically
from pipeline.heatmap import targets
from pipeline.heatmap.hrnet import HRNet
from pipeline.heatmap.image_stage import ImageStage
from pipeline.heatmap.module import HeatmapModule
from pipeline.heatmap.resnet import fold_norms
from pipeline.heatmap.simple_baseline import SimpleBaseline
from pipeline.integral.module import IntegralModule
from pipeline.lift.combined import Cascade
from pipeline.lift.lifter import Lifter
from pipeline.lift.lifter_stage import LifterStage
from pipeline.lift.module import LiftModule
from pipeline.training.checkpoints import load_module, weights_digest
from pipeline.weights.catalogue import EXPORTS, weights_folder
from pipeline.weights.onnx_facts import (
    IMAGE_INPUT,
    IMAGE_OUTPUT,
    KEY,
    LIFTER_INPUTS,
    LIFTER_OUTPUT,
    VERSION,
    Facts,
    ImageFacts,
    LifterFacts,
    facts_to_json,
    skeleton_of,
)

OPSET = 18
"""Version of ONNX's operators: the first one that torch's exporter writes natively."""

TOLERANCE = 1e-4
"""Largest difference between torch and onnxruntime, relative to the largest number if above 1."""

STAGES = (LiftModule, HeatmapModule, IntegralModule)
"""Stages whose networks can be exported."""


class LifterGraph(nn.Module):
    """A lifter with its mask token: joints2d (B, T, J, C), visible (B, T, J) -> (B, T', J, 3)."""

    def __init__(self, module: LiftModule) -> None:
        super().__init__()
        self.net, self.mask_token = module.net, module.mask_token

    def forward(self, joints2d: Tensor, visible: Tensor) -> Tensor:
        """See `LifterStage.forward`."""
        return LifterStage.forward(cast(LifterStage, self), joints2d, visible)


class ImageGraph(nn.Module):
    """A 2D network with its normalisation: RGB crops, uint8, (B, H, W, 3) -> heatmaps."""

    def __init__(self, module: ImageStage) -> None:
        super().__init__()
        self.net, self.normalise = module.net, module.normalise
        if isinstance(module.net, HRNet | SimpleBaseline):  # others may have norms in another order
            self.net = fold_norms(module.net)

    def forward(self, images: Tensor) -> Tensor:
        """Heatmaps, float32."""
        heatmaps: Tensor = self.net(self.normalise(images))
        return heatmaps.float()


def export_checkpoint(
    checkpoint: Path, output: Path, *, licence: str = "", overwrite: bool = False
) -> Facts:
    """Write the network of a checkpoint as an ONNX file.

    Args:
        checkpoint: Checkpoint of the stage lift, heatmap or integral.
        output: The ONNX file to write.
        licence: Licence of the weights, for the metadata.
        overwrite: Whether an older file is replaced.

    Returns:
        The facts in its metadata.

    Raises:
        DataError: If the checkpoint is damaged, or of another stage.
        StorageError: If the file is there already, or cannot be written.
        UsageError: If the exporter is not installed.
    """
    if output.suffix != ".onnx":
        raise UsageError(f"{output}: is no name of an ONNX file; end it with .onnx")
    if output.exists() and not overwrite:
        raise StorageError(f"{output}: is there already; choose another -o or give --overwrite")
    require_exporter(str(checkpoint))
    module = load_module(checkpoint, STAGES)
    facts = find_facts(module, licence)
    content = make_onnx(module, facts, str(checkpoint))
    write_atomically(output, lambda file: file.write(content))
    return facts


def exported_checkpoint(checkpoint: Path) -> Path:
    """The ONNX file of a checkpoint in the folder of weights, made when it is first needed.

    Raises:
        DataError: If the checkpoint is damaged, or of another stage.
        StorageError: If the file cannot be written.
        UsageError: If the exporter is not installed.
    """
    if not checkpoint.is_file():
        raise DataError(f"{checkpoint}: no such file; give a checkpoint")
    folder = weights_folder() / EXPORTS / f"{file_digest(checkpoint)[:32]}-{VERSION}"
    output = folder / f"{checkpoint.stem}.onnx"
    if not output.is_file():
        export_checkpoint(checkpoint, output, overwrite=True)
    return output


def require_exporter(path: str) -> None:
    """Check that everything that exports is installed.

    Raises:
        UsageError: If it is not.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"{path}: its export needs {error.name}; pip install 'heatlift[onnx]'"
        ) from None


def find_facts(module: LiftModule | HeatmapModule | IntegralModule, licence: str = "") -> Facts:
    """Facts of the network of a stage, for the metadata of its ONNX file."""
    net = module.net
    network = type(getattr(net, "net", net)).__name__
    digest = weights_digest(module)
    if isinstance(module, LiftModule):
        lifter, sizes = module.net, module.trained_sizes
        return LifterFacts(
            network,
            digest,
            licence,
            lifter.skeleton.name,
            lifter.frames,
            lifter.receptive_field,
            lifter.output,
            lifter.causal,
            count_channels(lifter),
            module.flip_test,
            None if module.trained_rate is None else float(module.trained_rate),
            None if sizes is None else (float(sizes[0]), float(sizes[1])),
        )
    return ImageFacts(
        network,
        digest,
        licence,
        module.skeleton.name,
        (int(module.input_size[0]), int(module.input_size[1])),
        module.padding,
        module.offset == targets.PUBLISHED_CELLS,
        module.decoding,
        module.flip_test,
        module.grid.cube if isinstance(module, IntegralModule) else None,
        "integral" if isinstance(module, IntegralModule) else "heatmap",
    )


def count_channels(net: Lifter) -> int:
    """Input channels per joint: 2 (x, y), or 3 (x, y, score) where a network takes no 2."""
    clip = torch.zeros(1, net.frames, len(net.skeleton), 2)
    try:
        with torch.no_grad():
            net(clip, torch.ones_like(clip[..., 0], dtype=torch.bool))
    except (RuntimeError, ValueError):
        return 3
    return 2


def make_onnx(
    module: LiftModule | HeatmapModule | IntegralModule, facts: Facts, name: str
) -> bytes:
    """The ONNX file of the network of a stage, checked against torch.

    Args:
        module: The stage, in evaluation mode; not used afterwards.
        facts: Its facts.
        name: Name of the checkpoint, for error messages.

    Raises:
        DataError: If the network cannot be exported, or computes something else in onnxruntime.
    """
    is_lifter = isinstance(module, LiftModule)
    inputs: tuple[str, ...] = LIFTER_INPUTS if is_lifter else (IMAGE_INPUT,)
    graph: nn.Module = LifterGraph(module) if isinstance(module, LiftModule) else ImageGraph(module)
    graph = graph.float().cpu().eval().requires_grad_(False)
    _fix_stages(graph)
    axes: dict[int, str] = {0: "batch"}
    if isinstance(facts, LifterFacts) and facts.any_frames:
        axes[1] = "frames"
    example = _random_inputs(facts, 2, more=2 if len(axes) > 1 else 0)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph,
                example,
                input_names=list(inputs),
                output_names=[LIFTER_OUTPUT if is_lifter else IMAGE_OUTPUT],
                dynamic_shapes=tuple(dict(axes) for _ in inputs),
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
            )
        assert program is not None
        content = _to_bytes(program.model_proto, facts)
    except Exception as error:  # the exporter has many
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name}: cannot be exported to ONNX ({reason})") from error
    _compare(graph, content, facts, inputs, name)
    return content


def _fix_stages(graph: nn.Module) -> None:
    """Keep of each cascade the MLPs in use: an exporter cannot read their number from a buffer."""
    for part in graph.modules():
        if isinstance(part, Cascade):
            count = int(part.stage) + 1
            del part.stage
            part.stages = part.stages[:count]
            part.__dict__["stage"] = count - 1


def _random_inputs(facts: Facts, batch: int, *, more: int = 0) -> tuple[Tensor, ...]:
    """Inputs of a network, the same ones each time.

    Args:
        facts: Facts of the network.
        batch: B.
        more: Frames beyond the shortest clip.
    """
    generator = torch.Generator().manual_seed(7)
    if isinstance(facts, ImageFacts):
        shape = (batch, facts.input_size[1], facts.input_size[0], 3)
        return (torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),)
    shape = (batch, facts.frames + more, len(skeleton_of(facts)), facts.channels)
    joints2d = 0.3 * torch.randn(shape, generator=generator)
    return joints2d, torch.rand(shape[:3], generator=generator) > 0.2


def _to_bytes(model: Any, facts: Facts) -> bytes:
    """The file, with the facts and without the exporter's notes: paths and lines of its sources."""
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer, graph, model):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]
    graph.name = facts.network
    model.metadata_props.add(key=KEY, value=facts_to_json(facts))
    if facts.licence:
        model.metadata_props.add(key="licence", value=facts.licence)
    content: bytes = model.SerializeToString()
    return content


def _compare(
    graph: nn.Module, content: bytes, facts: Facts, inputs: tuple[str, ...], name: str
) -> None:
    """Raise if onnxruntime gives other numbers than torch, or cannot run the file."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    example = _random_inputs(facts, 3)
    with torch.no_grad():
        expected = graph(*example).numpy()
    feeds = {key: value.numpy() for key, value in zip(inputs, example, strict=True)}
    (found,) = session.run(None, feeds)
    if found.shape != expected.shape:
        raise DataError(f"{name}: gives {found.shape} in onnxruntime, not {expected.shape}")
    error = float(np.abs(found - expected).max())
    if not error <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise DataError(f"{name}: gives other numbers in onnxruntime, by up to {error:.2g}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and log lines of the exporter, which are about its own parts."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
