"""W&B unreachable, failing, hanging or without disk space: the run gives the same results."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from runs import COMMANDS, differences, outcome
from wandb_stub import Server

OUTAGES = (
    "unreachable",
    "no key",
    "wrong key",
    "answers 500",
    "10 s a reply",
    "hangs",
    "dies in mid-run",
    "its own process dies",
    "full disk",
    "offline",
)
WAYS = {"wrong key": "401", "answers 500": "500", "10 s a reply": "slow", "hangs": "hangs"}
QUIET = ("offline",)
"""Kinds without an outage, so without a warning."""


@pytest.fixture
def plain(heatlift_in, tmp_path, uninterrupted):
    """Outcome and seconds of a run without W&B."""
    start = time.monotonic()
    child = heatlift_in(tmp_path / "plain")(*COMMANDS["lift"])
    assert child.wait() == 0, child.stderr
    return outcome(tmp_path / "plain", "lift"), time.monotonic() - start


def wandb_processes(child):
    """Ids of the W&B processes that a run has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command_line = path.read_bytes()
            parent = int((path.parent / "stat").read_text().rpartition(") ")[2].split()[1])
            if b"wandb-core" in command_line.split(b"\0")[0] and parent == child.process.pid:
                found.append(int(path.parent.name))
    return found


def run_in_outage(kind, start, folder):
    """Start a run in an outage and wait for its end; its process, exit code and seconds."""
    server = Server(WAYS.get(kind, "well"))
    env = {
        "WANDB_API_KEY": "0" * 40,
        "WANDB_BASE_URL": server.url,
        "NETRC": str(folder / "netrc"),
        "WANDB_CACHE_DIR": str(folder / "w"),
        "WANDB_DATA_DIR": str(folder / "w"),
    }
    faults = []
    if kind == "unreachable":
        server.die()
    if kind == "no key":
        env["WANDB_API_KEY"] = ""
    if kind == "full disk":
        faults = [("full_wandb_disk",)]
    if "dies" in kind:
        faults = [("at", "batch", 4, "print"), ("slow",)]
    mode = "offline" if kind == "offline" else "online"
    begin = time.monotonic()
    child = start(*COMMANDS["lift"], "--wandb", mode, faults=faults, env=env)
    try:
        if "dies" in kind:
            child.wait_for("HERE")
            if kind == "dies in mid-run":
                server.die()
            for process in wandb_processes(child) if kind == "its own process dies" else []:
                os.kill(process, signal.SIGKILL)
        code = child.wait()
    finally:
        if not server.ended.is_set():
            server.die()
        for mount in folder.glob("runs/*/*/wandb"):
            if os.path.ismount(mount):
                subprocess.run(["umount", "-l", str(mount)], check=True)
    return child, code, time.monotonic() - begin


def warnings(child):
    return [line for line in child.stderr.splitlines() if line.strip()]


def check(kind, heatlift_in, folder, plain):
    """Differences from the expected behaviour, by kind; empty if there are none."""
    if kind == "full disk" and os.geteuid():
        pytest.skip("mounting needs root")
    expected_outcome, usual_seconds = plain
    child, code, seconds = run_in_outage(kind, heatlift_in(folder), folder)
    bad = {"zero": False, "wrong": False, "orphans": child.orphans(), "other": []}
    if code:
        bad["other"] = [f"exit {code}", child.stderr[-300:]]
        return bad
    bad["wrong"] = differences(outcome(folder, "lift"), expected_outcome)
    if seconds - usual_seconds > 15:
        bad["other"].append(f"{seconds - usual_seconds:.1f} s more")
    expected_warnings = 0 if kind in QUIET else 1
    if len(warnings(child)) != expected_warnings:
        bad["other"].append(warnings(child))
    return bad


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_server_that_works_causes_no_warning(heatlift, tmp_path):
    server = Server("well")
    env = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": server.url}
    child = heatlift(*COMMANDS["lift"], "--wandb", "online", env=env)
    assert child.wait() == 0, child.stderr
    server.die()
    assert server.asked > 3, child.stderr
    assert f"W&B: {server.url}" in child.stdout
    assert all("ArtifactType" in line for line in warnings(child))  # the stub keeps no files


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", OUTAGES)
def test_an_outage_only_prints_a_line(kind, heatlift_in, tmp_path, plain):
    assert not any(check(kind, heatlift_in, tmp_path / "run", plain).values())


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", OUTAGES)
def test_outages(kind, heatlift_in, tmp_path, plain, soak):
    row = soak("wandb")
    for number in row.times(2):
        row.look(kind, **check(kind, heatlift_in, tmp_path / str(number), plain))
