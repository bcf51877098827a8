"""ONNX files as estimators of 2D joints, recognised by their outputs and metadata."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UsageError
from pipeline.predict.estimators import Estimator


def load_onnx(path: Path, digest: str, device: str) -> Estimator:
    """Load an ONNX file as an estimator.

    Raises:
        UsageError: Always: there is no reader yet.
    """
    raise UsageError(f"{path}: ONNX files cannot be used yet")
