"""`heatlift weights`: list, get, import and verify published weights; export networks to ONNX."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.tables import print_table
from pipeline.errors import DataError, UsageError
from pipeline.files.writing import format_bytes
from pipeline.training.console import print_line, print_status
from pipeline.weights import fetching, stored
from pipeline.weights.box_lifter import NAME
from pipeline.weights.catalogue import BUNDLES, CATALOGUE, weights_folder

if TYPE_CHECKING:
    from pipeline.training.transfer import WeightsReport

_COLUMNS = ("name", "what", "state", "size", "licence", "from")


def ls() -> None:
    """Print a table of all weights that can be got, and of the imported ones."""
    _print_files([*stored.list_files()])
    for path in stored.unfinished_files():
        size = format_bytes(path.stat().st_size)
        print_status(f"{path}: {size} of a stopped download; heatlift weights get goes on with it")


def get(name: str) -> None:
    """Download weights and store them with their licence; what is there already stays.

    Args:
        name: Name in the table of `heatlift weights ls`, or blazepose. Networks that find joints
            come with the person detector.

    Raises:
        DataError: If they cannot be downloaded, or are not the published ones.
        StorageError: If they cannot be written.
        UsageError: If there is no such name.
    """
    if name not in BUNDLES:
        similar = difflib.get_close_matches(name, BUNDLES, 1)
        hint = f"did you mean {similar[0]}?" if similar else f"there are {', '.join(BUNDLES)}"
        raise UsageError(f"{name}: no weights of this name; {hint}")
    paths = fetching.get_weights(name)
    _print_stored(paths)
    for part in BUNDLES[name]:
        path = weights_folder() / CATALOGUE[part].file
        if path not in paths:
            print_line(f"{path}: {part}, was there and is whole")


def import_file(
    file: str, as_: str | None = None, output: str | None = None, **options: Any
) -> WeightsReport | None:
    """Import published weights from a file, without a network.

    Args:
        file: Published file. A wheel of mediapipe, npm's package @mediapipe/pose (.tgz), a .tflite
            or an .onnx file is stored in the folder of weights ($HEATLIFT_WEIGHTS, or
            ~/.cache/heatlift/weights); its content decides what it is. Weights of a network of
            the papers (.pth, .bin, .tar) become a checkpoint that a stage can start from
            (`--model.pretrained`): give --as and -o.
        as_: Name of the network in the file: mixste, poseformer, videopose3d, martinez, hrnet,
            simple_baseline or san. A mixste or poseformer is imported with 8 heads, as published
            (4, 2 or 1 where 8 do not divide its width); set --model.net.init_args.heads if it was
            trained with others. A videopose3d is imported as not causal; set
            --model.net.init_args.causal true if it is. Of a cascade of martinez, one stage can be
            imported, but not the sum of stages.
        output: Path of the checkpoint to write; needed with --as.
        **options: More options of networks of the papers; see `import_weights`.

    Returns:
        The report about a checkpoint; nothing for stored files.

    Raises:
        DataError: If the file cannot be read safely, or is not what it should be.
        StorageError: If a file cannot be written.
        UsageError: If options do not fit each other or the file.
    """
    from pipeline.weights import importing  # imports torch

    if as_ is not None and output is not None:
        return importing.import_weights(file, as_, output, **options)
    if as_ is not None:
        raise UsageError(f"{file}: --as {as_} writes a checkpoint; add -o OUTPUT.ckpt")
    defaults = {"part": "whole"}
    given = [name for name, value in options.items() if value != defaults.get(name)]
    given += ["output"] if output is not None else []
    if given:
        raise UsageError(f"{file}: --{given[0]} is for networks of the papers; add --as NETWORK")
    _print_stored(stored.import_file(Path(file)))
    return None


def verify() -> None:
    """Read all stored weights and compare them with their SHA-256.

    Raises:
        DataError: If a file is damaged.
    """
    files = [file for file in stored.list_files() if file.state != "not there"]
    _print_files(files)
    damaged = [file.name for file in files if file.is_damaged]
    if damaged:
        mend = "run heatlift weights get NAME, or import the file again"
        if NAME in damaged:
            mend = f"install heatlift again for {NAME}; for others {mend}"
        raise DataError(f"{weights_folder()}: damaged: {', '.join(damaged)}; {mend}")


def export(
    checkpoint: str, output: str | None = None, licence: str = "", overwrite: bool = False
) -> None:
    """Write the network of a checkpoint as an ONNX file, for onnxruntime and other programs.

    The file needs nothing else: a lifter has its mask token, a 2D network its normalisation, and
    the metadata tell the joint set, the shapes and the units. It is compared with torch before it
    is written. Needs pip install 'heatlift[onnx]'.

    Args:
        checkpoint: Checkpoint of a lifter, or of the stage heatmap or integral.
        output: Path of the ONNX file to write; by default that of the checkpoint with .onnx.
        licence: Licence of the weights, for the metadata.
        overwrite: Replace an older file.

    Raises:
        DataError: If the checkpoint is damaged, or of another stage.
        StorageError: If the file is there already, or cannot be written.
        UsageError: If the exporter is not installed.
    """
    from pipeline.weights.onnx_export import export_checkpoint
    from pipeline.weights.onnx_facts import LifterFacts

    path = Path(checkpoint).with_suffix(".onnx") if output is None else Path(output)
    facts = export_checkpoint(Path(checkpoint), path, licence=licence, overwrite=overwrite)
    size = format_bytes(path.stat().st_size)
    use = "lifter" if isinstance(facts, LifterFacts) else "estimator"
    print_line(
        f"{path}: {facts.network}, {facts.joints} ({size}); the same numbers as torch; use it with "
        f"heatlift predict --{use} {path}"
    )


def _print_stored(paths: list[Path]) -> None:
    """Print a line about each stored file."""
    entries = {entry.file: entry for entry in CATALOGUE.values()}
    for path in paths:
        size = format_bytes(path.stat().st_size)
        if path.name in entries:
            entry = entries[path.name]
            print_line(f"{path}: {entry.name}, {entry.what} ({size}, {entry.licence})")
        else:
            print_line(f"{path}: stored ({size}); its licence is not known: ask who published it")


def _print_files(files: list[stored.StoredFile]) -> None:
    rows = [
        (file.name, file.what, file.state, format_bytes(file.size), file.licence, file.origin)
        for file in files
    ]
    print_table(_COLUMNS, rows, str(weights_folder()), right=("size",))
