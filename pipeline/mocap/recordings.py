"""The recordings of a motion capture set: splits, digests, where they come from, what lacks."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from pipeline.files import store
from pipeline.files.reading import read_bytes
from pipeline.mocap.bvh import shorten
from pipeline.mocap.mapping import UNITS

SHIPPED = Path(__file__).parent / "cmu"
"""Facts about the CMU recordings: splits, digests, mapping, credit."""
SUFFIXES = (".bvh", ".bvh.gz", ".npz")
SPLITS = ("train", "val", "test", "exclude")
_NEEDED = ("sequence", "subject", "split")
_RANGE = re.compile(r"(\d{1,9})-(\d{1,9})\Z")


@dataclass(frozen=True)
class Recording:
    """What a table of splits says about one file.

    Args:
        name: Of the sequence and of its file without suffix.
        subject: Who.
        split: train, val, test or exclude.
        kind: What, as tables group it.
        group: "seen" or "unseen": whether the kind occurs in training; "" where the table does not
            say.
        bad: First and last file frame of each stretch that is not to be trained on or scored.
        floor: Height of the floor, metres; none where the table does not say.
    """

    name: str
    subject: str
    split: str
    kind: str = ""
    group: str = ""
    bad: tuple[tuple[int, int], ...] = ()
    floor: float | None = None


def read_splits(source: str | Path) -> list[Recording]:
    """The recordings of a table.

    Args:
        source: `cmu`, or a CSV file with the columns sequence, subject and split (train, val, test
            or exclude), and if it likes kind, kind_in_train (yes or no), floor_mm, and bad_ranges
            (file frames from 0, ends included, as in `12-40 77-90`; the CMU table calls it
            bad_ranges_120hz).

    Raises:
        DataError: If it is not such a table.
    """
    path = SHIPPED / "splits.csv" if source == "cmu" else Path(source)
    try:
        text = read_bytes(path).decode("utf-8-sig")
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = table.fieldnames or []
        for column in _NEEDED:
            if column not in columns:
                raise DataError(
                    f"{path}: has no column {column}; its first line needs {', '.join(_NEEDED)}"
                )
        rows = [_recording(row, f"{path}: line {table.line_num}") for row in table]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}: is no CSV file ({error}); save it again") from None
    if not rows:
        raise DataError(f"{path}: names no sequence; add a line for each")
    names = set()
    for row in rows:
        if row.name in names:
            raise DataError(f"{path}: names {row.name} twice; keep one line")
        names.add(row.name)
    return rows


def _recording(row: dict[str, str], place: str) -> Recording:
    if None in row or None in row.values():
        raise DataError(f"{place}: has another number of columns than the first line; mend it")
    for column in _NEEDED:
        if not row[column].strip():
            raise DataError(f"{place}: {column} is empty; fill it in")
    if row["split"] not in SPLITS:
        raise DataError(
            f"{place}: split is {shorten(row['split'])}, not one of {', '.join(SPLITS)}"
        )
    known = row.get("kind_in_train", "")
    if known not in ("", "yes", "no"):
        raise DataError(f"{place}: kind_in_train is {shorten(known)}, not yes or no")
    bad = []
    for word in (row.get("bad_ranges") or row.get("bad_ranges_120hz") or "").split():
        found = _RANGE.match(word)
        if not found or int(found[1]) > int(found[2]):
            raise DataError(f"{place}: bad range {shorten(word)}; write first-last, as in 12-40")
        bad.append((int(found[1]), int(found[2])))
    return Recording(
        row["sequence"],
        row["subject"],
        row["split"],
        row.get("kind", "") or row["sequence"],
        {"yes": "seen", "no": "unseen"}.get(known, ""),
        tuple(bad),
        _metres(row.get("floor_mm", ""), place),
    )


def _metres(text: str, place: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < 1e5:
        raise DataError(f"{place}: floor_mm is {shorten(text)}, not a height in millimetres")
    return value * UNITS["mm"]


def find_recordings(root: Path) -> dict[str, list[Path]]:
    """Files with motion anywhere below a folder, by name without suffix.

    Links to folders are not followed.

    Raises:
        DataError: If the folder is not there or holds no such file.
    """
    if not root.is_dir():
        raise DataError(f"{root}: is no folder; see `heatlift data get cmu` for the recordings")
    found: dict[str, list[Path]] = {}
    for folder, folders, files in os.walk(root):
        folders.sort()
        for file in sorted(files):
            suffix = next((s for s in SUFFIXES[1:] + SUFFIXES[:1] if file.endswith(s)), None)
            if suffix:
                found.setdefault(file.removesuffix(suffix), []).append(Path(folder, file))
    if not found:
        raise DataError(
            f"{root}: holds no {', '.join(SUFFIXES)} file; "
            "see `heatlift data get cmu` for the recordings"
        )
    return found


def choose_recordings(recordings: Iterable[Recording], root: Path) -> list[Path]:
    """The file of each recording.

    Raises:
        DataError: If one has none, or two.
    """
    found = find_recordings(root)
    files = []
    for recording in recordings:
        paths = found.get(recording.name, [])
        if not paths:
            missing = [r.name for r in recordings if r.name not in found]
            raise DataError(
                f"{root}: lacks {len(missing)} of the recordings ({', '.join(missing[:5])}"
                f"{', …' if len(missing) > 5 else ''}); see `heatlift data get cmu`"
            )
        if len(paths) > 1:
            raise DataError(f"{root}: {paths[0]} and {paths[1]} have the same name; keep one")
        files.append(paths[0])
    return files


def cmu_digests() -> dict[str, str]:
    """SHA-256 of each CMU recording, by file name, unpacked and as `gzip -9 -n` packs it."""
    lines = (SHIPPED / "SHA256SUMS").read_text("utf-8").splitlines()
    return {Path(name).name: digest for digest, name in (line.split() for line in lines)}


def check_digests(files: Iterable[Path]) -> list[str]:
    """SHA-256 of files; one whose path, size and time of change are remembered is not read again.

    Raises:
        DataError: If a file cannot be read.
    """
    memory = store.default_store()
    found = []
    for file in files:
        try:
            found.append(memory.digest(file))
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}); fetch it again") from None
    return found


@dataclass(frozen=True)
class Check:
    """What a folder holds of the CMU recordings.

    Args:
        whole: Names of the recordings that are there, byte for byte.
        missing: Names of those that are not.
        damaged: Files that are not what was recorded.
        unneeded: Names of the missing ones that the benchmark leaves out anyway.
    """

    whole: tuple[str, ...]
    missing: tuple[str, ...]
    damaged: tuple[Path, ...]
    unneeded: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether the benchmark can be built."""
        return not self.damaged and set(self.missing) <= set(self.unneeded)


def check_cmu(root: Path) -> Check:
    """Compare a folder with the digests of the CMU recordings.

    Args:
        root: The folder; files count wherever they lie below it, as .bvh or .bvh.gz.
    """
    wanted, right = read_splits("cmu"), cmu_digests()
    try:
        found = find_recordings(root)
    except DataError:
        found = {}
    files = [path for recording in wanted for path in found.get(recording.name, [])]
    pairs = zip(files, check_digests(files), strict=True)
    damaged = tuple(path for path, digest in pairs if digest != right.get(path.name))
    missing = tuple(r.name for r in wanted if r.name not in found)
    spoilt = {path.name.split(".")[0] for path in damaged}
    return Check(
        tuple(r.name for r in wanted if r.name in found and r.name not in spoilt),
        missing,
        damaged,
        tuple(r.name for r in wanted if r.split == "exclude" and r.name in missing),
    )


def get_cmu(root: Path) -> str:
    """Say where the CMU recordings come from, what a folder has of them, and what to do next.

    Nothing is downloaded: the recordings belong to others, and many machines are offline.

    Raises:
        DataError: If files there are not what was recorded.
    """
    check = check_cmu(root)
    if check.damaged:
        listed = ", ".join(str(path) for path in check.damaged[:5])
        raise DataError(
            f"{root}: {len(check.damaged)} of the recordings are not the released ones ({listed}); "
            "fetch these files again"
        )
    lines = [(SHIPPED / "CREDIT").read_text("utf-8").strip(), ""]
    total = len(check.whole) + len(check.missing)
    if check.complete:
        lines.append(f"{root}: {len(check.whole)} of {total} recordings, every digest right.")
        lines.append(f"Next: make pretrain DATA=mocap ROOT={root}")
    else:
        needed = [name for name in check.missing if name not in check.unneeded]
        some = ", ".join(needed[:8]) + (", …" if len(needed) > 8 else "")
        lines.append(
            f"{root}: {len(check.whole)} of {total} recordings; {len(needed)} lack: {some}"
        )
        lines.append(
            "Put the .bvh or .bvh.gz files of subjects 01-14 anywhere below this folder and run "
            "the same command again. Without a network copy them from another machine, or point "
            "ROOT= or $HEATLIFT_DATA/mocap to a folder that has them."
        )
    return "\n".join(lines)
