"""Estimators found by name or by file, with what finds people for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.errors import DataError, UsageError
from pipeline.heatmap.module import HeatmapModule
from pipeline.integral.module import IntegralModule
from pipeline.predict.blazepose import load_blazepose
from pipeline.predict.estimators import (
    BlazePoseEstimator,
    BlazePoseFinder,
    Estimator,
    PersonFinder,
    StageEstimator,
    WholeImage,
)
from pipeline.predict.onnx_estimators import (
    OwnPeopleFinder,
    WholeImageOnnxEstimator,
    load_onnx,
)
from pipeline.predict.options import Runtime
from pipeline.predict.person_detector import load_person_detector
from pipeline.training.checkpoints import load_module, weights_digest
from pipeline.weights.catalogue import BUNDLES, CATALOGUE, find_weights
from pipeline.weights.onnx_export import exported_checkpoint

DEFAULT = "blazepose"
"""Estimator that is used where none is named."""

BLAZEPOSE = {
    "blazepose": "blazepose-full",
    "blazepose-lite": "blazepose-lite",
    "blazepose-full": "blazepose-full",
    "blazepose-heavy": "blazepose-heavy",
}
"""Name of an estimator -> name of its weights in the catalogue."""

DETECTOR = "blazepose-detector"
"""Name of the person detector in the catalogue."""

MakeFinder = Callable[[float], PersonFinder]
"""What makes the finder of people for a threshold."""


def load_estimator(
    name: str | None, device: str, joints: str | None = None, runtime: Runtime = "torch"
) -> tuple[Estimator, MakeFinder]:
    """Load an estimator of 2D joints and what finds people for it.

    People are found by the estimator itself if it takes whole images (RTMO, YOLO-pose), else by
    BlazePose's detector if its weights are there; otherwise the whole image is
    taken for one person.

    Args:
        name: `blazepose`, `blazepose-lite`, `blazepose-full`, `blazepose-heavy`, or a file: a
            checkpoint of our 2D stages (.ckpt), an ONNX file, or a landmark network of BlazePose
            (.tflite). None is `blazepose`.
        device: Device of torch.
        joints: Joint set of an ONNX file that does not name its joints.
        runtime: What computes the network of a checkpoint.

    Raises:
        DataError: If the weights are not there or damaged; the message has the command that gets
            them.
        UsageError: If the name is unknown.
    """
    name = name or DEFAULT
    estimator: Estimator
    if name in BLAZEPOSE:
        path = find_weights(BLAZEPOSE[name])
        if path is None:
            entry = CATALOGUE[BLAZEPOSE[name]]
            kept = sum(CATALOGUE[part].size for part in BUNDLES[name])
            raise DataError(
                f"no 2D network for real people yet: run heatlift weights get {name} "
                f"({kept / 1e6:.0f} MB, {entry.licence})"
            )
        estimator = BlazePoseEstimator(load_blazepose(path, device), BLAZEPOSE[name])
    else:
        estimator = _load_file(Path(name), device, joints, runtime)
    if isinstance(estimator, WholeImageOnnxEstimator):
        whole = estimator
        return whole, lambda threshold: OwnPeopleFinder(whole, threshold)
    detector = find_weights(DETECTOR)
    if detector is None:
        return estimator, lambda threshold: WholeImage()
    network = load_person_detector(detector, device)
    return estimator, lambda threshold: BlazePoseFinder(network, threshold)


def _load_file(path: Path, device: str, joints: str | None, runtime: Runtime) -> Estimator:
    """An estimator from a file."""
    known = ", ".join(BLAZEPOSE)
    if path.suffix not in (".ckpt", ".onnx", ".tflite"):
        raise UsageError(
            f"estimator is {path}; give {known}, or a file: .ckpt of a 2D stage, .onnx or .tflite"
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file; estimators with a name are {known}")
    if path.suffix == ".tflite":
        return BlazePoseEstimator(load_blazepose(path, device), path.stem)
    if path.suffix == ".ckpt" and runtime == "onnx":
        path = exported_checkpoint(path)
    if path.suffix == ".onnx":
        return load_onnx(path, device, joints)
    module = load_module(path, (HeatmapModule, IntegralModule))
    digest = weights_digest(module)
    module.fold_norms()
    return StageEstimator(module.to(device), path.stem, digest)
