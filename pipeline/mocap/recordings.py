"""The recordings of a motion capture set: splits, digests, and checks of a folder."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError, printable
from pipeline.files import store
from pipeline.files.reading import read_bytes
from pipeline.mocap.bvh import shorten
from pipeline.mocap.mapping import UNITS

SHIPPED = Path(__file__).parent / "cmu"
"""Folder with splits, digests, mapping and credit of the CMU recordings."""
SUFFIXES = (".bvh", ".bvh.gz", ".npz")
"""Suffixes of recordings, also in capitals."""
MAX_TABLE_BYTES = 16 * 2**20
"""Largest table of splits; that of all 2,548 CMU recordings has 0.1 MB."""
SPLITS = ("train", "val", "test", "exclude")
_REQUIRED_COLUMNS = ("sequence", "subject", "split")
_RANGE = re.compile(r"(\d{1,9})-(\d{1,9})\Z")


_HUMAN36M_SUBJECTS: dict[str, tuple[str, ...]] = {
    "train": ("S1", "S5", "S6", "S7", "S8"),
    "val": ("S1", "S5", "S6", "S7", "S8"),
    "test": ("S9", "S11"),
}


@dataclass(frozen=True)
class Recording:
    """One recording in a table of splits.

    Args:
        name: Name of the recording and of its file without suffix.
        subject: Name of the person.
        split: Name of the split: train, val, test or exclude.
        kind: Kind of motion, by which results are grouped.
        group: Whether the kind occurs in training: "seen" or "unseen"; "" if unknown.
        bad: First and last file frame of each bad range, which is neither trained on nor evaluated.
        floor: Height of the floor, metres; none if unknown.
    """

    name: str
    subject: str
    split: str
    kind: str = ""
    group: str = ""
    bad: tuple[tuple[int, int], ...] = ()
    floor: float | None = None


def find_table(name: str, folder: Path | None) -> str:
    """Path of a table of splits or a mapping: as given, else in the folder of the recordings.

    Args:
        name: Name of a shipped table, or path of a file.
        folder: Folder of the recordings, if it is known.
    """
    if folder is None or Path(name).is_file() or not (folder / name).is_file():
        return name
    return str(folder / name)


def read_splits(source: str | Path) -> list[Recording]:
    """Read a table of splits.

    Args:
        source: Name of the shipped table, `cmu`, or a CSV file. Required columns are sequence,
            subject and split (train, val, test or exclude). Optional columns are kind,
            kind_in_train (yes or no), floor_mm, and bad_ranges (file frames from 0, ends included,
            as in `12-40 77-90`; bad_ranges_120hz in the CMU table).

    Raises:
        DataError: If the file is not such a table.
    """
    path = SHIPPED / "splits.csv" if source == "cmu" else Path(source)
    if not path.exists():
        needed = ", ".join(_REQUIRED_COLUMNS)
        raise DataError(
            f"{path}: no such table of splits; name a CSV file with the columns {needed} "
            "(`heatlift docs mocap`), or cmu"
        )
    try:
        text = read_bytes(path, MAX_TABLE_BYTES).decode("utf-8-sig")
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = table.fieldnames or []
        for column in _REQUIRED_COLUMNS:
            if column not in columns:
                needed = ", ".join(_REQUIRED_COLUMNS)
                raise DataError(f"{path}: has no column {column}; its first line needs {needed}")
        rows = [_parse_row(row, f"{path}: line {table.line_num}") for row in table]
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


def shared_subjects(recordings: Iterable[Recording]) -> list[str]:
    """Subjects of a table who are both in training and in a split that is evaluated."""
    splits: dict[str, set[str]] = {}
    for recording in recordings:
        splits.setdefault(recording.subject, set()).add(recording.split)
    return [name for name, of in splits.items() if "train" in of and of & {"val", "test"}]


def _parse_row(row: dict[str, str], place: str) -> Recording:
    """The recording of one row of a table."""
    if None in row or None in row.values():
        raise DataError(f"{place}: has another number of columns than the first line; mend it")
    for column in _REQUIRED_COLUMNS:
        if not row[column].strip():
            raise DataError(f"{place}: {column} is empty; fill it in")
    if row["split"] not in SPLITS:
        raise DataError(
            f"{place}: split is {shorten(row['split'])}, not one of {', '.join(SPLITS)}"
        )
    in_train = row.get("kind_in_train", "")
    if in_train not in ("", "yes", "no"):
        raise DataError(f"{place}: kind_in_train is {shorten(in_train)}, not yes or no")
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
        {"yes": "seen", "no": "unseen"}.get(in_train, ""),
        tuple(bad),
        _parse_height(row.get("floor_mm", ""), place),
    )


def _parse_height(text: str, place: str) -> float | None:
    """Height in metres from millimetres; none from an empty text."""
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
    """Motion files at any depth below a folder, by name without suffix.

    Links to folders are not followed.

    Raises:
        DataError: If the folder does not exist or has no such file.
    """
    if not root.is_dir():
        problem = "is a file" if root.exists() else "not found"
        raise DataError(
            f"{root}: {problem}; name the folder of your recordings "
            "(CMU's recordings: `heatlift data get cmu`)"
        )
    found: dict[str, list[Path]] = {}
    for folder, folders, files in os.walk(root):
        folders.sort()
        for file in sorted(files):
            suffix = next((s for s in SUFFIXES if file.lower().endswith(s)), "")
            if suffix:
                found.setdefault(file[: -len(suffix)], []).append(Path(folder, file))
    if not found:
        raise DataError(
            f"{root}: holds no {', '.join(SUFFIXES)} file; name the folder of your recordings "
            "(CMU's recordings: `heatlift data get cmu`)"
        )
    return found


def select_recordings(recordings: Iterable[Recording], root: Path) -> list[Path]:
    """The file of each recording below a folder.

    Raises:
        DataError: If a recording has no file, or more than one.
    """
    found = find_recordings(root)
    files = []
    for recording in recordings:
        paths = found.get(recording.name, [])
        if not paths:
            missing = [r.name for r in recordings if r.name not in found]
            if not any(recording.name in found for recording in recordings):
                raise DataError(
                    f"{root}: has none of the {len(missing)} recordings of the table of splits "
                    f"({_first(missing)}), but {_first(sorted(found))}; name your own table with "
                    "splits: (`heatlift docs own_data`), or see `heatlift data get cmu`"
                )
            raise DataError(
                f"{root}: lacks {len(missing)} of the recordings ({', '.join(missing[:5])}"
                f"{', …' if len(missing) > 5 else ''}); add these files, or take their "
                "lines out of your table of splits (CMU's recordings: `heatlift data get cmu`)"
            )
        if len(paths) > 1:
            raise DataError(f"{root}: {paths[0]} and {paths[1]} have the same name; keep one")
        files.append(paths[0])
    return files


def _first(names: list[str]) -> str:
    """The first three of some names."""
    return ", ".join(map(printable, names[:3])) + (", …" if len(names) > 3 else "")


def cmu_digests() -> dict[str, str]:
    """SHA-256 of each CMU recording by file name, plain (.bvh) and packed by `gzip -9 -n`."""
    lines = (SHIPPED / "SHA256SUMS").read_text("utf-8").splitlines()
    return {Path(name).name: digest for digest, name in (line.split() for line in lines)}


def released_name(path: Path) -> str:
    """Name of a file with its suffix in small letters, as `cmu_digests` has it."""
    name, dot, suffix = path.name.partition(".")
    return name + dot + suffix.lower()


def file_digests(files: Iterable[Path]) -> list[str]:
    """SHA-256 of each file; a file of a known version is not read again.

    Raises:
        DataError: If a file cannot be read.
    """
    cache = store.default_store()
    digests = []
    for file in files:
        try:
            digests.append(cache.digest(file))
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}); fetch it again") from None
    return digests


def assign_human36m_subjects(recordings: Many[Recording], frames: dict[str, int]) -> dict[str, str]:
    """Human3.6M subject whose name and cameras each subject of a split gets.

    Subjects are assigned by falling number of frames, each to the Human3.6M subject with the fewest
    frames so far.

    Args:
        recordings: Recordings of one split.
        frames: Number of frames of each recording, by its name.

    Returns:
        Subject of the recordings -> subject of Human3.6M.
    """
    if not recordings:
        return {}
    assigned_frames = dict.fromkeys(_HUMAN36M_SUBJECTS[recordings[0].split], 0)
    own_frames: dict[str, int] = {}
    for recording in recordings:
        own_frames.setdefault(recording.subject, 0)
        own_frames[recording.subject] += frames[recording.name]
    assigned = {}
    for subject, count in sorted(own_frames.items(), key=lambda item: (-item[1], item[0])):
        assigned[subject] = min(assigned_frames, key=lambda name: assigned_frames[name])
        assigned_frames[assigned[subject]] += count
    return assigned


@dataclass(frozen=True)
class FolderCheck:
    """Result of comparing a folder with the CMU recordings.

    Args:
        intact: Names of the recordings whose digest is right.
        missing: Names of the recordings without a file.
        damaged: Files whose digest is wrong.
        unneeded: Names of the missing recordings that the benchmark does not use.
    """

    intact: tuple[str, ...]
    missing: tuple[str, ...]
    damaged: tuple[Path, ...]
    unneeded: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether all recordings of the benchmark are there and intact."""
        return not self.damaged and set(self.missing) <= set(self.unneeded)


def check_cmu(root: Path) -> FolderCheck:
    """Compare a folder with the digests of the CMU recordings.

    Args:
        root: Folder with .bvh or .bvh.gz files at any depth.
    """
    recordings, released = read_splits("cmu"), cmu_digests()
    try:
        found = find_recordings(root)
    except DataError:
        found = {}
    files = [path for recording in recordings for path in found.get(recording.name, [])]
    pairs = zip(files, file_digests(files), strict=True)
    damaged = tuple(path for path, digest in pairs if digest != released.get(released_name(path)))
    damaged_names = {path.name.split(".")[0] for path in damaged}
    missing = tuple(r.name for r in recordings if r.name not in found)
    return FolderCheck(
        intact=tuple(r.name for r in recordings if r.name in found and r.name not in damaged_names),
        missing=missing,
        damaged=damaged,
        unneeded=tuple(r.name for r in recordings if r.split == "exclude" and r.name in missing),
    )


def get_cmu(root: Path) -> str:
    """Report the source of the CMU recordings, those that a folder has, and the next step.

    Nothing is downloaded: the recordings belong to others, and many machines are offline.

    Raises:
        DataError: If files in the folder differ from the released ones.
    """
    check = check_cmu(root)
    if check.damaged:
        listed = ", ".join(str(path) for path in check.damaged[:5])
        raise DataError(
            f"{root}: {len(check.damaged)} of the recordings are not the released ones ({listed}); "
            "fetch these files again"
        )
    lines = [(SHIPPED / "CREDIT").read_text("utf-8").strip(), ""]
    total = len(check.intact) + len(check.missing)
    if check.complete:
        lines.append(f"{root}: {len(check.intact)} of {total} recordings, every digest right.")
        lines.append(
            f"Next: heatlift pretrain fit -c pretrain/mixste_small -c data/mocap "
            f"--data.source.init_args.root {root}"
        )
    else:
        needed = [name for name in check.missing if name not in check.unneeded]
        some = ", ".join(needed[:8]) + (", …" if len(needed) > 8 else "")
        lines.append(
            f"{root}: {len(check.intact)} of {total} recordings; {len(needed)} lack: {some}"
        )
        lines.append(
            "Put the .bvh or .bvh.gz files of subjects 01-14 anywhere below this folder and run "
            "the same command again. Without a network copy them from another machine, or point "
            "ROOT= or $HEATLIFT_DATA/mocap to a folder that has them."
        )
    return "\n".join(lines)


def check_released(files: Many[Path], digests: Many[str]) -> None:
    """Compare digests of files with those of the CMU release.

    Raises:
        DataError: If a file is not the released one.
    """
    released = cmu_digests()
    for file, digest in zip(files, digests, strict=True):
        if released.get(released_name(file)) != digest:
            raise DataError(
                f"{file}: is not the released recording (its digest differs); "
                "fetch it again, see `heatlift data get cmu`"
            )
