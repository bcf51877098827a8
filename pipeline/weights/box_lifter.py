"""The lifter in the box: a checkpoint inside the package, with its digest and its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files.digests import file_digest
from pipeline.files.writing import write_atomically

BOX = Path(__file__).parent / "box"
"""Folder of the lifter in the box."""

FILE, CARD = "mixste-box.ckpt", "MODEL_CARD.md"
"""Names of the checkpoint and of its card; the digest stands in FILE.sha256."""

NAME, LICENCE = "mixste-box", "Apache-2.0"

LARGEST = 5 * 10**6
"""Largest size of the checkpoint, bytes."""

_KEPT = ("state_dict", "hyper_parameters", "heatlift", "pytorch-lightning_version", "global_step")


def find_box() -> Path | None:
    """Checkpoint of the lifter in the box; None if this package has none.

    Raises:
        DataError: If it is not the file that the package was made with.
    """
    path = BOX / FILE
    if not path.is_file():
        return None
    if file_digest(path) != box_digest():
        raise DataError(f"{path}: is damaged (its SHA-256 differs); install heatlift again")
    return path


def licence_of(path: Path) -> str:
    """Licence of a lifter's file: that of the lifter in the box; "" for others."""
    return LICENCE if path == BOX / FILE else ""


def box_digest(folder: Path | None = None) -> str:
    """SHA-256 that the checkpoint in a folder, by default the box, must have; "" if unknown."""
    path = (folder or BOX) / f"{FILE}.sha256"
    return path.read_text("utf-8").split(" ")[0] if path.is_file() else ""


def pack_lifter(checkpoint: Path, folder: Path) -> Path:
    """Store the part of a checkpoint of a run that is needed to use it, and its digest.

    The bytes depend on the weights and settings only.

    Args:
        checkpoint: Checkpoint of a finished run of a lifter.
        folder: Folder of the lifter in the box.

    Returns:
        Path of the stored checkpoint.

    Raises:
        DataError: If it is no checkpoint of a lifter, or larger than `LARGEST`.
    """
    import torch  # takes seconds, and `weights ls` needs the names above

    from pipeline.files.torch_files import read_checkpoint

    content = read_checkpoint(checkpoint)
    stage = content.get("heatlift", {}).get("stage")
    if stage != "lift":
        raise DataError(f"{checkpoint}: is of stage {stage}; give the checkpoint of a lifter")
    kept: dict[str, Any] = {key: content[key] for key in _KEPT if key in content}
    path = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(kept, file))
    if path.stat().st_size > LARGEST:
        size = path.stat().st_size
        path.unlink()
        raise DataError(
            f"{checkpoint}: needs {size:,} bytes, more than {LARGEST:,}; train a smaller lifter"
        )
    line = f"{file_digest(path)}  {FILE}\n".encode()
    write_atomically(path.with_name(f"{FILE}.sha256"), lambda file: file.write(line))
    return path
