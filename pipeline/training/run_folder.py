"""The run folder and run.json: find, open and resume runs."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, ProcessLostError, StorageError, UsageError
from pipeline.files.writing import (
    process_start_time,
    remove_leftovers,
    remove_path,
    write_atomically,
)
from pipeline.training import processes
from pipeline.training.folder_lock import FolderLock, identity
from pipeline.training.run_changes import (
    FINISHED,
    IN_USE,
    UNFINISHED,
    changed_names,
    describe_skipped,
    finish_order,
    mask_values,
)


def settings_digest(settings: Any) -> str:
    """SHA-256 of settings of plain types, independent of the order of keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def launch_id() -> str | None:
    """Identifier shared by all processes of one torchrun or SLURM step; None without a launcher."""
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID")
    parts = [os.environ.get(name, "") for name in (*names, "MASTER_ADDR", "MASTER_PORT")]
    if os.environ.get("GROUP_WORLD_SIZE") == "1":  # torchrun: all ranks have one parent
        parts += [str(os.getppid()), process_start_time(os.getppid())]
    return ":".join(parts) if any(parts) and processes.current_rank() is not None else None


@dataclass
class Run:
    """A run: its folder, the content of run.json, the checkpoint to resume, the lock.

    Args:
        folder: Run folder `runs/STAGE/NAME`.
        state: Content of run.json: stage, name, digest, settings, state, checkpoint, numbers.
        resume: Checkpoint to resume from; None for a new run.
        lock: Lock that this process holds while it works on the run.
    """

    folder: Path
    state: dict[str, Any]
    resume: Path | None = None
    lock: FolderLock | None = None
    _identity: tuple[int, int] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._identity = identity(self.folder)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    def write(self, **changes: Any) -> None:
        """Change entries of run.json; the file is replaced atomically."""
        self.check_folder()
        self.state |= changes
        write_state(self.folder, self.state)

    def finish(self, **changes: Any) -> None:
        """Mark the run as finished, as the last one of its stage so far, and change run.json."""
        orders = [finish_order(state)[0] for state in _states(self.folder.parent).values()]
        order = 1 + max(orders, default=0)
        self.write(state=FINISHED, finished=time.time(), order=order, **changes)

    def check_folder(self) -> None:
        """Check that the folder is still that of this run, before something is written there.

        Raises:
            StorageError: If it was removed, or if another one stands in its place.
        """
        now = identity(self.folder)
        if self._identity and now != self._identity:
            what = "removed" if now is None else "replaced by another folder"
            raise StorageError(f"{self.folder}: was {what} while this run worked in it; it stops")
        if self.lock:
            self.lock.check()

    def release(self) -> None:
        """Release the lock, so that other processes can open the run."""
        if self.lock:
            self.lock.release()

    def close(self) -> None:
        """Release the lock at the end; the folder goes if the run failed before it had results."""
        in_use = (self.folder / "wandb").exists()  # by W&B until this process ends
        if self.lock and not has_results(self.folder) and not in_use:
            remove_path(self.folder)
        self.release()


OWN_FILES = ("run.json", "metrics.csv", "index.html", "images", "tables", "checkpoints")
"""Files and folders that a run may make before its first step."""

DIGEST_KEY = "sha256"
"""Key in run.json of the digest over all other entries."""

CALLBACK_STATE_KEY = "CheckpointCallback"
"""Key under which Lightning stores the state of the checkpoint callback in a checkpoint."""


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write run.json with a digest of its content; keys and passwords in it are masked."""
    plain = mask_values(json.loads(json.dumps({**state, DIGEST_KEY: None}, default=str)))
    text = (
        json.dumps({**plain, DIGEST_KEY: settings_digest(plain)}, indent=2, sort_keys=True) + "\n"
    )
    write_atomically(folder / "run.json", lambda file: file.write(text.encode()))


def read_state(folder: Path) -> dict[str, Any] | None:
    """Content of the run.json of a folder; None if it is missing or its digest does not match."""
    try:
        state = json.loads((folder / "run.json").read_text())
        digest = state.pop(DIGEST_KEY)
        intact = bool(digest == settings_digest({**state, DIGEST_KEY: None}))
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return None
    return state if intact else None


def open_run(
    root: Path,
    stage: str,
    name: str,
    settings: Mapping[str, Any],
    report: Callable[[str], None] = print,
    *,
    content: Mapping[str, Any] | None = None,
    code: Mapping[str, str] | None = None,
    resume_with_changed_code: bool = False,
    test_command: str = "",
) -> Run:
    """Open the unfinished run of these settings, or begin a new run under the first free name.

    A run without results does not keep its name: a new run with other settings takes it.

    Args:
        root: Folder of all runs.
        stage: Name of the stage.
        name: Name of the run. If it belongs to a finished run, to other settings or to a run that
            another process works on, name-2, name-3 … are tried.
        settings: All settings that affect the result, as plain types.
        report: Called with a line for each run of this name that is not resumed, and the reason.
        content: What all starts of one run have in common; the settings by default.
        code: Files of the code and their digests; a run of other code is not resumed.
        resume_with_changed_code: Whether a run of other code is resumed nevertheless.
        test_command: Command that tests a checkpoint of this run, up to its path, for messages.

    Raises:
        StorageError: If the folder cannot be made.
        UsageError: If the run to resume began with other code.
    """
    digest = settings_digest(settings if content is None else content)
    opened = os.environ.get("HEATLIFT_RUN")  # by the supervising process
    if opened and processes.current_rank() is not None:
        resume = os.environ.get("HEATLIFT_RESUME")
        return Run(Path(opened), read_state(Path(opened)) or {}, Path(resume) if resume else None)
    if processes.current_rank():
        return _wait_for_first(root / stage, digest, settings)
    skipped: list[tuple[Path, dict[str, Any]]] = []
    for candidate in _candidate_folders(root / stage, name):
        make_folder(candidate)
        lock = FolderLock(candidate)
        if not lock.acquire(timeout=0.2):  # another process that only checks the run takes less
            skipped.append((candidate, {"state": IN_USE}))
            continue
        remove_partial_files(candidate)
        new_state = {
            "stage": stage,
            "name": candidate.name,
            "digest": digest,
            "settings": dict(settings),
            "state": UNFINISHED,
        }
        state = _state_of(candidate, new_state, report)
        if state.get("digest") != digest or state.get("state") != UNFINISHED:
            skipped.append((candidate, state))
            lock.release()
            continue
        run = Run(candidate, state, lock=lock)
        run.resume = newest_checkpoint(candidate, digest, report)
        for line in describe_skipped(skipped, candidate, digest, settings, test_command):
            report(line)
        _compare_code(run, code or {}, report, allowed=resume_with_changed_code)
        run.write(launch=launch_id(), resume=run.resume.name if run.resume else None)
        return run
    raise AssertionError("there is always another name")


def has_results(folder: Path) -> bool:
    """Whether a run folder has more than what a run makes before its first step."""
    if not folder.is_dir():
        return False
    foreign = {path.name for path in folder.iterdir()} - {*OWN_FILES, ".lock", "wandb"}
    metrics = folder / "metrics.csv"
    return bool(
        foreign
        or (metrics.exists() and len(metrics.read_bytes().splitlines()) > 1)
        or any((folder / "checkpoints").glob("*"))
    )


def _compare_code(
    run: Run, code: Mapping[str, str], report: Callable[[str], None], *, allowed: bool
) -> None:
    """Compare the code of a run with that of its start, and store it.

    Raises:
        UsageError: If a run that would be resumed began with other code and that is not allowed.
    """
    before = run.state.get("code")
    changed = changed_names(before, code) if before else []
    if run.resume and code and not before:
        report(f"heatlift: {run.folder}: it is not known which code the run began with")
    if run.resume and changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        files = f"{', '.join(changed[:3])}{more}"
        if not allowed:
            run.release()
            raise UsageError(
                f"{run.folder}: the code changed since the run began ({files}); give "
                "--resume_with_changed_code to resume it with this code, or --name for a new run"
            )
        report(f"heatlift: {run.folder} is resumed with changed code ({files})")
        run.state["changed_code"] = sorted({*run.state.get("changed_code", ()), *changed})
    if code:
        run.state["code"] = dict(code)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents.

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
    """Remove the temporary files that killed processes left in a run folder."""
    for part in ("", "checkpoints", "images", "tables"):
        remove_leftovers(folder / part)


def _state_of(
    folder: Path, new_state: dict[str, Any], report: Callable[[str], None]
) -> dict[str, Any]:
    """State of the run in a folder; `new_state` if the folder is free or a run left no results."""
    state = read_state(folder)
    if state is None:
        return _recover_state(folder, new_state, report)
    if state.get("state") == UNFINISHED and not has_results(folder):
        for own in OWN_FILES:
            remove_path(folder / own)
        return new_state
    return state


def _recover_state(
    folder: Path, new_state: dict[str, Any], report: Callable[[str], None]
) -> dict[str, Any]:
    """State of a run without a valid run.json.

    It is `new_state` if the folder is unused or its checkpoints belong to the run, otherwise empty.
    """
    evaluations = ("validate-", "test-", "predict-")  # of checkpoints from other folders
    if all(path.name == ".lock" or path.name.startswith(evaluations) for path in folder.iterdir()):
        return new_state
    checkpoints = (folder / "checkpoints").glob("step-*.ckpt")
    if any(_belongs_to_run(path, new_state["digest"]) for path in checkpoints):
        report(
            f"heatlift: warning: {folder}/run.json is damaged or missing; "
            "the run is resumed from its checkpoints"
        )
        return new_state
    report(f"heatlift: warning: {folder} has no readable run.json; the folder is not used")
    return {}


def _belongs_to_run(path: Path, digest: str) -> bool:
    try:
        _check_checkpoint(path, digest)
    except DataError:
        return False
    return True


def _candidate_folders(folder: Path, name: str) -> Iterator[Path]:
    """Folders NAME, NAME-2, NAME-3 … without end."""
    yield folder / name
    number = 2
    while True:
        yield folder / f"{name}-{number}"
        number += 1


def _wait_for_first(
    folder: Path, digest: str, settings: Mapping[str, Any], patience: float = 120.0
) -> Run:
    """Wait until rank 0 of this launch has opened a run; return that run.

    A rank that sees other data finds the run, too: the data of all ranks are compared at the start.
    """
    own = json.loads(json.dumps({**settings, "inputs": None}, default=str))
    end = time.monotonic() + patience
    while time.monotonic() < end:
        for place, state in _states(folder).items():
            same = state.get("digest") == digest or {**state["settings"], "inputs": None} == own
            if state.get("launch") == launch_id() and same:
                run = Run(place, state)
                run.resume = run.checkpoints / state["resume"] if state["resume"] else None
                return run
        time.sleep(0.2)
    raise ProcessLostError(
        f"{folder}: rank 0 opened no run within {patience:.0f} s; "
        "check that the runs are on a shared disk"
    )


def newest_checkpoint(
    folder: Path, digest: str = "", report: Callable[[str], None] = print
) -> Path | None:
    """Find the newest valid checkpoint to resume from; invalid ones are reported and renamed.

    Args:
        folder: Run folder.
        digest: Digest of the run's settings; "" to accept any.
        report: Called with a line for each invalid checkpoint and one for the one used instead.
    """
    found_invalid = False
    paths = (folder / "checkpoints").glob("step-*.ckpt")
    for path in sorted(paths, key=lambda path: (step_in_name(path), path.name), reverse=True):
        try:
            _check_checkpoint(path, digest)
        except DataError as error:
            report(f"heatlift: warning: {error}")
            mark_as_damaged(path)
            found_invalid = True
            continue
        if found_invalid:
            report(f"heatlift: warning: resuming from {path.name}, the newest valid checkpoint")
        return path
    if found_invalid:
        report(f"heatlift: warning: {folder} has no valid checkpoint; starting from the beginning")
    return None


def step_in_name(path: Path) -> int:
    """Step in a file name like `step-000000200.ckpt`; -1 for other names."""
    number = path.stem.removeprefix("step-")
    # step-5.ckpt and the like are copies that somebody named
    return int(number) if number.isdecimal() and f"{int(number):09d}" == number else -1


def mark_as_damaged(path: Path) -> None:
    """Append `.bad` to the name of an invalid file, so that it is not used again."""
    with contextlib.suppress(OSError):
        path.rename(f"{path}.bad")


def _check_checkpoint(path: Path, digest: str) -> None:
    """Check that a checkpoint is intact, of the step in its name, and of the run with this digest.

    Raises:
        DataError: If it is not.
    """
    from pipeline.files.torch_files import read_checkpoint  # imports torch

    content = read_checkpoint(path)
    step = content.get("global_step")
    if step != step_in_name(path):
        raise DataError(f"{path}: is a checkpoint of step {step}; the file was renamed or copied")
    run = content.get("callbacks", {}).get(CALLBACK_STATE_KEY, {}).get("run", "")
    if digest and run != digest:
        raise DataError(f"{path}: is a checkpoint of another run; the file was copied here")


def newest_finished_run(
    root: Path, stage: str, accepts: Callable[[Mapping[str, Any]], bool], name: str = ""
) -> Path | None:
    """Find the checkpoint of the accepted run that finished last; None if there is no such run.

    Args:
        root: Folder of all runs.
        stage: Name of the stage.
        accepts: Returns whether a run with these settings is accepted.
        name: Prefix of the run's name.
    """
    finished = []
    for folder, state in _states(root / stage, name).items():
        if state.get("state") == FINISHED and accepts(state.get("settings", {})):
            is_copy = state.get("name") != folder.name
            finished.append((finish_order(state), not is_copy, folder / state["checkpoint"]))
    existing = [checkpoint for *_, checkpoint in sorted(finished) if checkpoint.is_file()]
    return existing[-1] if existing else None


def _states(folder: Path, name: str = "") -> dict[Path, dict[str, Any]]:
    """Run folder -> valid content of its run.json, for the runs whose names begin with `name`."""
    found = {}
    for path in sorted(folder.glob(f"{glob.escape(name)}*/run.json")):
        if state := read_state(path.parent):
            found[path.parent] = state
    return found
