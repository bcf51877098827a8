"""Processes of a run on one machine: started together, supervised, ended together."""

from __future__ import annotations

import contextlib
import ctypes
import errno
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

from pipeline.errors import ProcessLostError, UsageError

STOP_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)
"""Signals that stop a command: a terminal that closes sends SIGHUP, SLURM SIGUSR1 or SIGUSR2 if
asked to, a limit of processor time SIGXCPU. By default each of them would end a process at once."""

REPEAT_SECONDS = 1.0
"""Seconds after a stop signal within which another one is taken as the same: a terminal, `timeout`
and torchrun send it to the process and to its group, and a supervising process forwards it."""

PARENT_VARIABLE = "HEATLIFT_PARENT"
"""Environment variable of the started processes: process id of the supervising process."""

ERROR_PREFIX = "heatlift: error: "
"""Prefix of the line on stderr in which a process reports why it ends."""

LOST_CODE = ProcessLostError.exit_code
"""Exit code of a process that lost another process."""

GRACE_SECONDS = 5.0
"""Seconds that the other processes get to end by themselves after one has failed."""

_LOSS_MESSAGES = (
    *(
        os.strerror(number).lower()
        for number in (errno.ECONNRESET, errno.ECONNREFUSED, errno.EPIPE)
    ),
    "connection closed by peer",
    "socket closed",
    "socket timeout",
    "timed out waiting",
    "wait timeout",
    "watchdog caught collective",
    "store->get",
    "nccl communicator was aborted",
)
"""Parts of the messages, in lower case, by which torch.distributed reports a lost process."""


class StoppedBySignal(SystemExit):
    """A signal stopped the command. It is a SystemExit, so that no `except Exception` catches it.

    Args:
        number: Number of the signal.
        message: Line for the user.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(128 + number)
        self.exit_code, self.message = 128 + number, message


def current_rank() -> int | None:
    """Rank of this process as set by the launcher, also before the process group exists.

    Returns:
        The rank; None if this process runs alone.

    Raises:
        UsageError: If an environment variable of the launcher is not a number.
    """
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    ranks = {name: os.environ[name] for name in names if name in os.environ}
    for name, rank in ranks.items():
        if not rank.isdecimal():
            raise UsageError(f"{name} is {rank!r}, not a number; unset it, or use torchrun")
    return int(next(iter(ranks.values()))) if ranks else None


def is_rank_zero() -> bool:
    """Whether this process is rank 0 or runs alone.

    Lightning knows it also for processes that it has forked. It is asked where it is imported, and
    not imported for this: that takes seconds.
    """
    lightning = sys.modules.get("lightning.fabric.utilities.rank_zero")
    if known := getattr(lightning, "rank_zero_only", None):
        return not known.rank
    return not current_rank()


def speaks_for_all() -> bool:
    """Whether this process reports what all processes of a run report: rank 0, or one alone.

    A supervising process prints one of the lines that its processes report.
    """
    return PARENT_VARIABLE in os.environ or not current_rank()


def exit_with_parent() -> None:
    """Make this process end when the one that launched it ends, also if that is killed (Linux).

    The launcher is the supervising process of a run on several devices, or torchrun. SLURM ends
    what it started by itself.
    """
    if parent := os.environ.get(PARENT_VARIABLE):
        exit_with(int(parent))
    elif "TORCHELASTIC_RUN_ID" in os.environ and "LOCAL_RANK" in os.environ:
        exit_with(None)


def exit_with(parent: int | None) -> None:
    """Make this process end when its parent process ends, also if that is killed (Linux).

    Args:
        parent: Process id of the parent; None if unknown; then an end before this call is missed.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
    if parent is not None and os.getppid() != parent:
        os._exit(LOST_CODE)


def is_process_loss(error: BaseException) -> bool:
    """Whether an exception of torch.distributed means that a process died or stopped answering."""
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, RuntimeError) and any(message in text for message in _LOSS_MESSAGES)


def start_process(
    arguments: Sequence[str], environment: Mapping[str, str], *, stdout: int | None = None
) -> subprocess.Popen[str]:
    """Start one process of a run, with the code of this process.

    The package may be a checkout beside an installed one, and `--import` may have put a folder with
    another one before it. So the child imports this very package, then gets the same `sys.path`.
    """
    package = str(Path(__file__).resolve().parents[2])
    paths = [str(Path(path).absolute()) for path in sys.path]  # "" is the current folder
    code = (
        f"import sys; sys.path.insert(0, {package!r}); import pipeline; sys.path[:] = {paths!r}; "
        "from pipeline.__main__ import main; sys.exit(main())"
    )
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, *arguments],
        env=dict(environment),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def supervise_processes(
    count: int, arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[str, int]:
    """Run a command line in several processes of this machine and wait for all of them.

    When one fails, the others have `GRACE_SECONDS` to end; then they are killed. Stop signals are
    forwarded to all; a second one, `REPEAT_SECONDS` later, kills them. If this process dies, they
    end too.

    Args:
        count: Number of processes.
        arguments: Command line without the name of the program.
        environment: Environment variables for the processes, besides those of this process.

    Returns:
        Error line and exit code; "" and 0 if there was no error.
    """
    shared = {**os.environ, **environment, PARENT_VARIABLE: str(os.getpid())}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0"}
    processes = [
        start_process(arguments, {**shared, "LOCAL_RANK": str(rank)}) for rank in range(count)
    ]
    error_lines: list[str] = [""] * count
    readers = [
        threading.Thread(
            target=_forward_stderr, args=(process.stderr, error_lines, rank), daemon=True
        )
        for rank, process in enumerate(processes)
    ]
    for reader in readers:
        reader.start()
    signals: list[int] = []
    received_at = -REPEAT_SECONDS

    def forward_signal(number: int, frame: FrameType | None) -> None:
        nonlocal received_at
        now = time.monotonic()
        if now - received_at < REPEAT_SECONDS or (signals and number == signal.SIGXCPU):
            return
        signals.append(number)
        received_at = now
        for process in processes:
            process.send_signal(signal.SIGKILL if len(signals) > 1 else number)

    with signal_handlers(STOP_SIGNALS, forward_signal):
        killed = _wait_for_all(processes)
    for reader in readers:
        reader.join(2.0)
    codes = [process.wait() for process in processes]
    return _find_cause(codes, error_lines, killed, signals)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def signal_handlers(
    numbers: Sequence[int], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Install a signal handler within the context; does nothing outside of the main thread.

    SIGTERM, SIGINT and SIGALRM are always handled, the other signals where nobody else handles or
    ignores them: `nohup` lets a command ignore SIGHUP.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_lost_terminal()
        handler(number, frame)

    before = {number: signal.signal(number, handle) for number in numbers if _is_ours(number)}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def _is_ours(number: int) -> bool:
    """Whether this signal is ours to handle."""
    handler = signal.getsignal(number)
    module = getattr(handler, "__module__", None) or ""
    always = number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    return always or handler == signal.SIG_DFL or module.startswith("pipeline.")


def leave_lost_terminal() -> None:
    """Write to nowhere, not to a terminal that is closed: each write to it would be an error."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def _forward_stderr(stream: IO[str], error_lines: list[str], rank: int) -> None:
    """Forward the stderr of a process, but store its error line in `error_lines[rank]`."""
    for line in stream:
        if line.startswith(ERROR_PREFIX):
            error_lines[rank] = line.removeprefix(ERROR_PREFIX).strip()
        else:
            sys.stderr.write(line)


def _wait_for_all(processes: Sequence[subprocess.Popen[str]]) -> set[int]:
    """Wait until all processes have ended; return the ranks of those that had to be killed."""
    end: float | None = None
    while any(process.poll() is None for process in processes):
        if end is None and any(process.poll() for process in processes):
            end = time.monotonic() + GRACE_SECONDS
        if end is not None and time.monotonic() > end:
            break
        time.sleep(0.05)
    late = {rank for rank, process in enumerate(processes) if process.poll() is None}
    for rank in late:
        processes[rank].kill()
    return late


def _find_cause(
    codes: Sequence[int], error_lines: Sequence[str], killed: set[int], signals: Sequence[int]
) -> tuple[str, int]:
    """Error line and exit code of a run, given the exit code and error line of each rank."""
    if not signals or not any(codes):
        return _find_failure(codes, error_lines, killed)
    name, stop_code = signal.Signals(signals[0]).name, 128 + signals[0]
    for line, code in zip(error_lines, codes, strict=True):
        if code == stop_code:
            return line, stop_code
    if len(signals) > 1:
        again = signal.Signals(signals[1]).name
        problem = f"killed by a second signal, {again}; run the same command again to resume"
    else:
        problem, _ = _find_failure(codes, error_lines, killed)
    return f"stopped by {name}; {problem}", stop_code


def _find_failure(
    codes: Sequence[int], error_lines: Sequence[str], killed: set[int]
) -> tuple[str, int]:
    """Error line and exit code of the first failure.

    The first that applies of: a process died by a signal, failed, was killed because it did not
    end, lost another process.
    """
    for rank, code in enumerate(codes):
        if code < 0 and rank not in killed:
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            name = signal.Signals(-code).name
            return _add_advice(f"process {rank} died by signal {-code}, {name}{hint}"), LOST_CODE
    for rank, code in enumerate(codes):
        if code not in (0, LOST_CODE) and rank not in killed:
            return f"process {rank}: {error_lines[rank] or f'ended with exit code {code}'}", code
    for rank in sorted(killed):
        return _add_advice(f"process {rank} stopped answering and was killed"), LOST_CODE
    for rank, code in enumerate(codes):
        if code:
            return f"process {rank}: {error_lines[rank] or 'lost another process'}", LOST_CODE
    return "", 0


def _add_advice(problem: str) -> str:
    return f"{problem}; the others were stopped; run the same command again to resume"


def run_environment(folder: Path, resume: Path | None) -> dict[str, str]:
    """Environment variables for the processes of a run: its folder and the checkpoint to resume."""
    return {"HEATLIFT_RUN": str(folder), "HEATLIFT_RESUME": str(resume or "")}
