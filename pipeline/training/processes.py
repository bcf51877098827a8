"""Several processes on one machine: started together, watched, and none left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from pipeline.errors import UsageError

PARENT = "HEATLIFT_PARENT"
"""Environment variable that holds the process id of the watcher; set in the processes it starts."""

ERROR = "heatlift: error: "
"""How the line begins by which a process says why it ends."""

LOST = 6
"""Exit code of a process that lost another."""

GRACE = 5.0
"""Seconds that the others have to end by themselves when one has failed."""

_SIGNS_OF_LOSS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket closed",
    "socket timeout",
    "timed out waiting",
    "wait timeout",
    "watchdog caught collective",
    "store->get",
    "nccl communicator was aborted",
)


def current_rank() -> int | None:
    """This process's number among those started together, before the process group exists.

    Raises:
        UsageError: If a launcher's variable is set to something else than a number.
    """
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    given = {name: os.environ[name] for name in names if name in os.environ}
    for name, number in given.items():
        if not number.isdecimal():
            raise UsageError(f"{name} is {number!r} and no number; unset it, or use torchrun")
    return int(next(iter(given.values()))) if given else None


def process_start_time(pid: int) -> str:
    """When a process of this machine was started, in its own clock's ticks; "" if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19]
    except OSError:
        return ""


def exit_with_parent() -> None:
    """End when the watcher ends, however it ends (Linux)."""
    parent = os.environ.get(PARENT)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
    if os.getppid() != int(parent):
        os._exit(LOST)


def is_process_loss(error: BaseException) -> bool:
    """Whether an exception of torch.distributed means that a process died or stopped answering."""
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS_OF_LOSS)


def start(words: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start one process of a run."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pipeline", *words],
        env=dict(environment),
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def supervise_processes(
    count: int, words: Sequence[str], given: Mapping[str, str]
) -> tuple[str, int]:
    """Run a command line in several processes of this machine and wait for all of them.

    When one fails, the others have a few seconds to end, then they are killed. SIGTERM and SIGINT
    are passed on to all; a second one kills. Whatever happens to this process, they end with it.

    Args:
        count: How many.
        words: The command line without the program's name.
        given: Environment variables for all of them, beside those of this process.

    Returns:
        Why it ended, in a line, and the exit code; nothing and 0 if all went well.
    """
    shared = {**os.environ, **given, PARENT: str(os.getpid())}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0"}
    processes = [start(words, {**shared, "LOCAL_RANK": str(number)}) for number in range(count)]
    last_words: list[str] = [""] * count
    readers = [
        threading.Thread(target=_relay, args=(process.stderr, last_words, number), daemon=True)
        for number, process in enumerate(processes)
    ]
    for reader in readers:
        reader.start()
    told: list[int] = []

    def tell(number: int, frame: FrameType | None) -> None:
        told.append(number)
        for process in processes:
            process.send_signal(signal.SIGKILL if len(told) > 1 else number)

    with signal_handlers((signal.SIGTERM, signal.SIGINT), tell):
        killed = _wait(processes)
    for reader in readers:
        reader.join(2.0)
    codes = [process.wait() for process in processes]
    return _verdict(codes, last_words, killed, told)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def signal_handlers(
    numbers: Sequence[int], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Handle signals in this way, then as before; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def _relay(stream: IO[str], last_words: list[str], number: int) -> None:
    """Pass on what a process writes on stderr, but keep the line that says why it ends."""
    for line in stream:
        if line.startswith(ERROR):
            last_words[number] = line.removeprefix(ERROR).strip()
        else:
            sys.stderr.write(line)


def _wait(processes: Sequence[subprocess.Popen[str]]) -> set[int]:
    """Wait until all have ended; those that had to be killed."""
    end: float | None = None
    while any(process.poll() is None for process in processes):
        if end is None and any(process.poll() for process in processes):
            end = time.monotonic() + GRACE
        if end is not None and time.monotonic() > end:
            break
        time.sleep(0.05)
    late = {number for number, process in enumerate(processes) if process.poll() is None}
    for number in late:
        processes[number].kill()
    return late


def _verdict(
    codes: Sequence[int], last_words: Sequence[str], killed: set[int], told: Sequence[int]
) -> tuple[str, int]:
    """The first cause: who was told to stop, died or failed; who only lost another comes last."""
    if told and any(codes):
        name = signal.Signals(told[0]).name
        said = [text for text, code in zip(last_words, codes, strict=True) if code == 128 + told[0]]
        return (said or [f"stopped by {name}; the same command goes on from what was saved"])[0], (
            128 + told[0]
        )
    for number, code in enumerate(codes):
        if code < 0 and number not in killed:
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            name = signal.Signals(-code).name
            return _advice(f"process {number} died by signal {-code}, {name}{hint}"), LOST
    for number, code in enumerate(codes):
        if code not in (0, LOST) and number not in killed:
            return f"process {number}: {last_words[number] or f'ended with exit code {code}'}", code
    for number in sorted(killed):
        return _advice(f"process {number} stopped answering and was killed"), LOST
    for number, code in enumerate(codes):
        if code:
            return f"process {number}: {last_words[number] or 'lost another process'}", LOST
    return "", 0


def _advice(what: str) -> str:
    return f"{what}; the others were stopped; the same command goes on from the newest state"


def run_environment(folder: Path, resume: Path | None) -> dict[str, str]:
    """What the processes of a run are told: its folder, and the checkpoint to go on from."""
    return {"HEATLIFT_RUN": str(folder), "HEATLIFT_RESUME": str(resume or "")}
