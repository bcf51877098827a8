"""Fixtures: child processes that run command lines, uninterrupted runs, shared data."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

os.environ.update(OMP_NUM_THREADS="1", WANDB="off")
sys.path.insert(0, str(Path(__file__).parent))

import torch
import warm
from runs import COMMANDS, TINY, outcome
from soak import PAGE, Soak, Tries

SOAK = pytest.StashKey()


def pytest_collection_modifyitems(items):
    """The timeout ends tests that hang; on a busy machine a slow test needs longer."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared():
    """Folder of the shared data and reference values; without it the test is skipped."""
    folder = Path(os.environ.get("HEATLIFT_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}")
    return folder


@pytest.fixture(scope="session")
def server():
    """A forkserver whose children start with all modules imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["warm", "torch", "lightning.pytorch", "pipeline.cli.launch", *PRELOADED_MODULES]
    )
    return context


PRELOADED_MODULES = [
    f"pipeline.{stage}.{part}" for stage in TINY for part in ("module", "data")
] + [
    "pipeline.mocap.synthetic",
    "pipeline.datasets.mixed",
    "pipeline.lift.mixste",
    "pipeline.heatmap.hrnet",
]


@dataclass
class Child:
    """A command line that runs in a child process."""

    process: multiprocessing.Process
    folder: Path
    start_time: float = field(default_factory=time.monotonic)

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout.txt").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr.txt").read_text()

    def wait(self, seconds: float = 240) -> int:
        """Wait for the end; return the exit code, negative if a signal killed the process."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.kill_all()
            raise AssertionError(f"still running after {seconds} s: {self.stdout}{self.stderr}")
        return self.process.exitcode

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until a text is on stdout."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if text in self.stdout:
                    return
            if not self.process.is_alive():
                break
            time.sleep(0.01)
        raise AssertionError(f"no {text!r}: {self.stdout}{self.stderr}")

    def send(self, number: int, *, to_all: bool = False) -> None:
        """Send a signal to it or to its whole group; then the fault `wait` ends."""
        (os.killpg if to_all else os.kill)(self.process.pid, number)
        (self.folder / "sent").touch()

    def alive(self) -> list[int]:
        """Ids of the running processes of its session."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session = path.read_text().rpartition(") ")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    found.append(int(path.parent.name))
        return found

    def orphans(self, seconds: float = 5) -> list[int]:
        """Ids of the processes that still run some seconds after the command has ended."""
        end = time.monotonic() + seconds
        while self.alive() and time.monotonic() < end:
            time.sleep(0.05)
        return self.alive()

    def kill_all(self) -> None:
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _starter(server, folder, children):
    """Starts `heatlift ARGUMENTS`: start("lift", "fit", …, faults=[…], env={…}, limits={…})."""

    def start(*arguments, faults=(), env=None, limits=None):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("stdout.txt", "stderr.txt", "sent"):
            (folder / name).unlink(missing_ok=True)
        for stage, text in TINY.items():
            if not (folder / f"{stage}.yaml").exists():
                (folder / f"{stage}.yaml").write_text(text)
        environment = {"HEATLIFT_CACHE": str(folder / "cache"), "WANDB": "off", **(env or {})}
        file = Path(__file__).parent / "faults.py"
        calls = [(f"{file}:{name}", *rest) for name, *rest in faults]
        process = server.Process(
            target=warm.run,
            args=(list(map(str, arguments)), str(folder), environment, calls, limits or {}),
        )
        process.start()
        children.append(Child(process, folder))
        return children[-1]

    return start


@pytest.fixture(scope="session")
def heatlift_in(server):
    """Makes a function that starts command lines in a folder; see `_starter`."""
    children = []
    yield lambda folder: _starter(server, folder, children)
    for child in children:
        child.kill_all()


@pytest.fixture
def heatlift(server, tmp_path):
    """Starts command lines in the folder of the test; see `_starter`."""
    children = []
    yield _starter(server, tmp_path, children)
    for child in children:
        child.kill_all()
        child.process.join(5)


@pytest.fixture(scope="session")
def uninterrupted(server, tmp_path_factory, heatlift_in):
    """Outcome of an uninterrupted run of a stage; `folders` has its run folder."""
    outcomes = {}

    def run(stage, *more):
        if (stage, more) not in outcomes:
            folder = tmp_path_factory.mktemp(f"uninterrupted-{stage}")
            child = heatlift_in(folder)(*COMMANDS[stage], *more)
            assert child.wait() == 0, child.stderr
            outcomes[stage, more] = outcome(folder, stage)
            run.folders[stage, *more] = folder / "runs" / stage / stage
        return outcomes[stage, more]

    run.folders = {}
    return run


@pytest.fixture
def soak(request):
    """Makes a row of the soak table that counts tries: soak("kill lift"); see `soak.Tries`."""
    rows = []

    def begin(name):
        rows.append(Tries(name))
        return rows[-1]

    yield begin
    for row in rows:
        request.node.user_properties.append(("soak", row.record()))


# ---- the table of `make soak` --------------------------------------------------------------------


def _soak_of(config):
    """The soak table in the main pytest process of `make soak`; None elsewhere."""
    is_soak = config.option.markexpr.strip() == "soak" and not hasattr(config, "workerinput")
    return config.stash.setdefault(SOAK, Soak()) if is_soak else None


def pytest_configure(config):
    soak = _soak_of(config)
    if soak is not None:
        soak.seconds = -time.time()
        soak.processes = int(getattr(config.option, "numprocesses", 0) or 1)
        minutes = float(os.environ.get("HEATLIFT_SOAK_MINUTES", "58"))
        os.environ.setdefault("HEATLIFT_SOAK_END", str(time.time() + 60 * minutes))


class SoakPlugin:
    """Adds the counts of all tests of a soak, from all pytest workers, and prints the table."""

    def __init__(self, soak):
        self.soak, self.failed = soak, set()

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.add(report.nodeid)
            if report.nodeid not in self.soak.failed:
                self.soak.failed.append(report.nodeid)
        if report.when == "teardown":
            records = [record for name, record in report.user_properties if name == "soak"]
            self.soak.add(records, failed=report.nodeid in self.failed)

    def pytest_terminal_summary(self, terminalreporter):
        self.soak.seconds += time.time()
        terminalreporter.section("soak")
        if self.soak.rows:
            page = Path(os.environ.get("HEATLIFT_SOAK_PAGE", PAGE))
            line = self.soak.write(page)
            terminalreporter.write_line(self.soak.text())
            terminalreporter.write_line(self.soak.projection())
            terminalreporter.write_line(line)


def pytest_sessionstart(session):
    soak = _soak_of(session.config)
    if soak is not None:
        session.config.pluginmanager.register(SoakPlugin(soak), "soak-table")
