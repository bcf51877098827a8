"""The run folder and run.json: found, opened, resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from pipeline.errors import DataError, ProcessLostError, StorageError
from pipeline.files import torch_files
from pipeline.files.writing import remove_leftovers, write_atomically
from pipeline.training import processes

UNFINISHED, FINISHED = "unfinished", "finished"


def settings_digest(settings: Any) -> str:
    """SHA-256 of plain settings, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def launch_id() -> str | None:
    """What the processes of a torchrun or SLURM step have in common; none for a process alone."""
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID")
    parts = [os.environ.get(name, "") for name in (*names, "MASTER_ADDR", "MASTER_PORT")]
    if os.environ.get("GROUP_WORLD_SIZE") == "1":  # of torchrun: all have this one parent
        parts += [str(os.getppid()), processes.process_start_time(os.getppid())]
    return ":".join(parts) if any(parts) and processes.current_rank() is not None else None


@dataclass
class Run:
    """The folder of one run, and what is known of it.

    Args:
        folder: `runs/STAGE/NAME`.
        state: What run.json holds: stage, name, digest, settings, state, checkpoint, numbers.
        resume: The checkpoint to go on from; none to begin.
        lock: Held while this process works on the run.
    """

    folder: Path
    state: dict[str, Any]
    resume: Path | None = None
    lock: filelock.FileLock | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    def write(self, **changes: Any) -> None:
        """Change run.json, in one step."""
        self.state |= changes
        write_state(self.folder, self.state)

    def release(self) -> None:
        """Let others work on the folder."""
        if self.lock:
            self.lock.release()


SEAL = "sha256"
"""Key in run.json: the digest of all else in it."""


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write run.json, with a digest of what it holds."""
    plain = json.loads(json.dumps({**state, SEAL: None}, default=str))
    text = json.dumps({**plain, SEAL: settings_digest(plain)}, indent=2, sort_keys=True) + "\n"
    write_atomically(folder / "run.json", lambda file: file.write(text.encode()))


def read_state(folder: Path) -> dict[str, Any] | None:
    """What the run.json of a folder holds; none if there is none that is as it was written."""
    try:
        state = json.loads((folder / "run.json").read_text())
        seal = state.pop(SEAL)
        whole = bool(seal == settings_digest({**state, SEAL: None}))
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return None
    return state if whole else None


def open_run(
    root: Path,
    stage: str,
    name: str,
    settings: Mapping[str, Any],
    report: Callable[[str], None] = print,
) -> Run:
    """Find the unfinished run of these settings, or begin a new one under the first free name.

    Args:
        root: Folder of all runs.
        stage: Which stage.
        name: NAME; where it is taken by a finished run, by other settings or by a run that another
            process works on, NAME-2, NAME-3 … are tried.
        settings: Everything that shapes the result, as plain types.
        report: Called with a line for whatever keeps an unfinished run from being gone on with.

    Raises:
        StorageError: If the folder cannot be made.
    """
    digest = settings_digest(settings)
    given = os.environ.get("HEATLIFT_RUN")
    if given and processes.current_rank() is not None:
        resume = os.environ.get("HEATLIFT_RESUME")
        return Run(Path(given), read_state(Path(given)) or {}, Path(resume) if resume else None)
    if processes.current_rank():
        return _wait_for_first(root / stage, digest)
    for candidate in _names(root / stage, name):
        make_folder(candidate)
        lock = filelock.FileLock(candidate / ".lock")
        try:
            lock.acquire(timeout=0.2)  # a look at it by another process takes less
        except filelock.Timeout:
            continue
        remove_partial_files(candidate)
        begun = {
            "stage": stage,
            "name": candidate.name,
            "digest": digest,
            "settings": dict(settings),
            "state": UNFINISHED,
        }
        state = read_state(candidate)
        if state is None:
            state = _recovered(candidate, begun, report)
        if state.get("digest") != digest or state.get("state") != UNFINISHED:
            _tell_difference(candidate, state, settings, report)
            lock.release()
            continue
        run = Run(candidate, state, lock=lock)
        run.resume = newest_checkpoint(candidate, digest, report)
        run.write(launch=launch_id(), resume=run.resume.name if run.resume else None)
        return run
    raise AssertionError("names never end")


def make_folder(folder: Path) -> None:
    """Make a folder under that of all runs.

    Raises:
        StorageError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be made ({error.strerror}); choose another --runs folder"
        ) from error


def remove_partial_files(folder: Path) -> None:
    """Remove the unfinished files that killed processes left in a run folder."""
    for part in ("", "checkpoints", "images", "tables"):
        remove_leftovers(folder / part)


def _recovered(
    folder: Path, begun: dict[str, Any], report: Callable[[str], None]
) -> dict[str, Any]:
    """The state of a run whose run.json is missing or damaged: begun, or of nobody knows whom."""
    tests = ("validate-", "test-", "predict-")  # of weights from elsewhere
    if all(path.name == ".lock" or path.name.startswith(tests) for path in folder.iterdir()):
        return begun
    states = (folder / "checkpoints").glob("step-*.ckpt")
    if any(_is_of(path, begun["digest"]) for path in states):
        report(f"heatlift: warning: {folder}/run.json is damaged or missing; its states are not")
        return begun
    report(f"heatlift: warning: {folder} has no run.json that can be read; it is left as it is")
    return {}


def _is_of(path: Path, digest: str) -> bool:
    try:
        _refuse_misplaced(path, digest)
    except DataError:
        return False
    return True


def _tell_difference(
    folder: Path,
    state: Mapping[str, Any],
    settings: Mapping[str, Any],
    report: Callable[[str], None],
) -> None:
    """Say why an unfinished run is not gone on with."""
    if state.get("state") != UNFINISHED:
        return
    before = _flat(state.get("settings", {}))
    now = _flat(json.loads(json.dumps(settings, default=str)))
    changed = [
        f"{key}: {before.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, "absent") != now.get(key, "absent")
    ]
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    report(
        f"heatlift: {folder} is unfinished and had other settings "
        f"({'; '.join(changed[:4])}{more}); it is left as it is"
    )


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested settings by dotted name.

    >>> _flat({"data": {"batch_size": 8}, "seed": 1})
    {'data.batch_size': 8, 'seed': 1}
    """
    if not isinstance(value, Mapping) or not value:
        return {key: value}
    return {
        name: leaf
        for part, inner in value.items()
        for name, leaf in _flat(inner, f"{key}.{part}".removeprefix(".")).items()
    }


def _names(folder: Path, name: str) -> Iterator[Path]:
    yield folder / name
    number = 2
    while True:
        yield folder / f"{name}-{number}"
        number += 1


def _wait_for_first(folder: Path, digest: str, patience: float = 120.0) -> Run:
    """The run that the first process of this launch opened."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        for candidate in folder.glob("*/run.json"):
            state = read_state(candidate.parent)
            if state and (state.get("launch"), state.get("digest")) == (launch_id(), digest):
                run = Run(candidate.parent, state)
                run.resume = run.checkpoints / state["resume"] if state["resume"] else None
                return run
        time.sleep(0.2)
    raise ProcessLostError(
        f"{folder}: the first process opened no run within {patience:.0f} s; "
        "are the runs on a shared disk?"
    )


def newest_checkpoint(
    folder: Path, digest: str = "", report: Callable[[str], None] = print
) -> Path | None:
    """The newest whole state to go on from; damaged and misplaced ones are named and set aside.

    Args:
        folder: Of the run.
        digest: Of the run's settings.
        report: Called with a line for each state passed over, and one for the state taken instead.
    """
    passed_over = False
    states = (folder / "checkpoints").glob("step-*.ckpt")
    for path in sorted(states, key=lambda path: (step_in_name(path), path.name), reverse=True):
        try:
            _refuse_misplaced(path, digest)
        except DataError as error:
            report(f"heatlift: warning: {error}")
            rename_to_bad(path)
            passed_over = True
            continue
        if passed_over:
            report(f"heatlift: warning: {path.name} is the newest good state; going on from there")
        return path
    if passed_over:
        report(f"heatlift: warning: {folder} has no good state; beginning anew")
    return None


def step_in_name(path: Path) -> int:
    """The step in the name of a state, `step-000000200.ckpt`; -1 if it has another name."""
    number = path.stem.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def rename_to_bad(path: Path) -> None:
    """Take a file that is of no use out of the way, under the name with `.bad` behind it."""
    with contextlib.suppress(OSError):
        path.rename(f"{path}.bad")


def _refuse_misplaced(path: Path, digest: str) -> None:
    content = torch_files.read_checkpoint(path)
    step = content.get("global_step")
    if step != step_in_name(path):
        raise DataError(
            f"{path}: holds the state after step {step}; the file was renamed or copied"
        )
    theirs = content.get("callbacks", {}).get("CheckpointCallback", {}).get("run", "")
    if digest and theirs != digest:
        raise DataError(f"{path}: is a state of another run; the file was copied here")


def newest_finished_run(
    root: Path, stage: str, wanted: Callable[[Mapping[str, Any]], bool], name: str = ""
) -> Path | None:
    """Checkpoint of the run that finished last among those that will do; none if there is none.

    Args:
        root: Folder of all runs.
        stage: Which stage.
        wanted: Whether settings will do.
        name: How the run's name begins.
    """
    finished = []
    for path in (root / stage).glob(f"{name}*/run.json"):
        state = read_state(path.parent)
        if state and state.get("state") == FINISHED and wanted(state.get("settings", {})):
            finished.append((state.get("finished", 0.0), path.parent / state["checkpoint"]))
    whole = [checkpoints for _, checkpoints in sorted(finished) if checkpoints.is_file()]
    return whole[-1] if whole else None
