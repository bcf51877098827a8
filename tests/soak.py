"""What `make soak` counts, and the table of docs/reliability.md that it ends in."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

SEED = int(os.environ.get("HEATLIFT_SOAK_SEED", "20261120"))
SHARE = float(os.environ.get("HEATLIFT_SOAK_SHARE", "1"))
"""How much of the soak to run; 0.1 is a tenth."""

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"
HARMS = ("wrong", "lost", "zero", "orphans", "canaries", "other")
"""Silently wrong results, lost good checkpoints, false exits with 0, orphans, canaries, the rest:
too late, another exit code or message than promised, a file left behind, too much memory."""


@dataclass(frozen=True)
class Fault:
    """A row: what is done, what the stock stack does [M: measured], what Heatlift does, how often.

    Args:
        name: The fault.
        stock: What lightning 2.6.6, torch 2.13 and wandb 0.31 do, as measured for the design.
        ours: What is expected here at each try.
        asked: Tries of a whole soak.
    """

    name: str
    stock: str
    ours: str
    asked: int


RESUMED = "ends bit-equal to the uninterrupted run"
NEVER_EQUAL = "never bit-equal (0 of 4)"
REFUSED = "one-line error that names the file"
READ = "other numbers, or any exception"
FAULTS = {
    "kill heatmap": Fault("`kill -9`, 2D stage", NEVER_EQUAL, RESUMED, 50),
    "kill integral": Fault("`kill -9`, 2D stage with 3D heatmaps", NEVER_EQUAL, RESUMED, 50),
    "kill pretrain": Fault("`kill -9`, pretraining", NEVER_EQUAL, RESUMED, 50),
    "kill lift": Fault("`kill -9`, lifting", NEVER_EQUAL, RESUMED, 50),
    "kill two": Fault("`kill -9`, one of two processes", NEVER_EQUAL, RESUMED, 20),
    "kill three": Fault("`kill -9`, one of three processes", "last bits (0 of 5)", RESUMED, 21),
    "kill chain": Fault(
        "`kill -9`, both stages of pretrain && lift", "lifts from a half-trained stage", RESUMED, 20
    ),
    "kill detect": Fault(
        "`kill -9`, `heatlift detect` filling the cache", "not measured", "resumes; same bytes", 20
    ),
    "kill step": Fault("`kill -9` after each step, 4 stages", NEVER_EQUAL, RESUMED, 50),
    "control": Fault(
        "control: the same with the re-seeding off",
        "not measured",
        "ends with other weights, as expected",
        3,
    ),
    "kill save": Fault(
        "`kill -9` while saving in a loop", "6 of 20 files broken", "old or new file, whole", 200
    ),
    "kill builder": Fault(
        "`kill -9`, builder of a cache entry",
        "not measured",
        "the next resumes within 5 s; same bytes",
        99,
    ),
    "signal": Fault(
        "SIGTERM, SIGINT; 1 and 2 processes",
        "exit 0; two processes hang",
        "saved, exit 143 or 130 within 10 s; resumes bit-equal",
        80,
    ),
    "signal group": Fault(
        "SIGTERM, SIGINT, SIGHUP, SIGUSR1 to a group with DataLoader workers",
        "the workers die; the work is lost, 5 of 5",
        "saved, exit 128 + number; resumes bit-equal",
        20,
    ),
    "launcher": Fault(
        "`kill -9`, launcher (torchrun)",
        "its processes run on for a second and more",
        "its processes end within 1 s",
        20,
    ),
    "lock": Fault(
        "`.lock` of a run deleted in mid-run", "not measured", "no second process comes in", 20
    ),
    "death": Fault(
        "one of two processes dies, 4 ways",
        "orphan for up to 3 s",
        "all gone within 15 s, exit not 0, cause in the last line",
        80,
    ),
    "hang": Fault(
        "one of two processes hangs", "continues after the run", "all gone within 30 s, exit 6", 10
    ),
    "world": Fault("resume with 2 processes instead of 1", "other samples", "error, exit 2", 3),
    "swap": Fault(
        "data swapped between two starts, same count; 1 and 2 processes",
        "not measured",
        "named, another run; with the old data back it resumes, bit-equal",
        20,
    ),
    "code": Fault(
        "code changed between two starts",
        "not measured",
        "named, exit 2, nothing changed; with the old code back it resumes, bit-equal",
        20,
    ),
    "not finite": Fault(
        "NaN loss or infinite gradient",
        "exit 0, good checkpoint overwritten",
        "exit 3, samples named, checkpoints finite",
        40,
    ),
    "worker": Fault(
        "a DataLoader worker is killed, hangs or raises",
        "up to 104 lines; a hang waits for ever",
        "one line within 30 s, exit 4 or 6",
        30,
    ),
    "checkpoint": Fault(
        "a flipped bit, a cut or nothing for a checkpoint",
        "wrong weights, 299 of 300",
        REFUSED,
        1201,
    ),
    "fallback": Fault(
        "newest state of a run damaged, run resumed",
        "wrong weights or a traceback",
        "resumes from the state before, named; bit-equal",
        20,
    ),
    "rows": Fault(
        "metrics.csv loses rows, run resumed",
        "not measured",
        "lost and kept rows in one line; the rest ends equal",
        20,
    ),
    "write": Fault(
        "a write of a checkpoint fails: file-size limit, ENOSPC, EIO, fsync, rename",
        "last.ckpt destroyed (1 of 1)",
        "older file untouched, nothing partial",
        60,
    ),
    "full": Fault(
        "disk full while a run saves",
        "last.ckpt destroyed (1 of 1)",
        "exit 5, one line with what is needed; resumes bit-equal",
        20,
    ),
    "cache": Fault(
        "damage to a cache entry, 14 kinds",
        "npy: wrong numbers, 298 of 300",
        "detected before use, rebuilt to the same bytes, 1 warning",
        2870,
    ),
    "builders": Fault(
        "8 builders of one cache entry",
        "99,827 of 100,157 reads fail",
        "every item built once, same bytes",
        10,
    ),
    "reads": Fault(
        "reads while two processes rebuild the entry",
        "99,827 of 100,157 fail",
        "none partial",
        5000,
    ),
    "foreign": Fault(
        "foreign files in and beside entries of the cache, and `rm all`",
        "not measured",
        "every foreign file stays",
        300,
    ),
    "wandb": Fault(
        "W&B outages, 10 kinds",
        "kills training: exit 1 after 9 to 112 s",
        "same result, exit 0, at most 15 s more, at most 1 warning",
        20,
    ),
    "pickle": Fault(
        "hostile pickles in checkpoints and npz",
        "run (`weights_only=False`, `allow_pickle=True`)",
        "error; nothing runs, below 1 GiB",
        2116,
    ),
    "bomb": Fault("zip bombs, lying headers", "6.0 GB asked for", "error, below 1 GiB", 60),
    "parsers": Fault(
        "archives of weights that two readers read differently, 19 kinds",
        "torch loads another member than `zipfile` shows",
        "one-line error; nothing of it is loaded",
        380,
    ),
    "budget": Fault(
        "small files that ask for much memory or time, 35 kinds",
        "up to 7.2 GB, or hours",
        "one-line error, below 1 GiB and 30 s",
        70,
    ),
    "config": Fault(
        "foreign class_path, tags, NaN, typos, duplicate keys, deep YAML",
        "the module is imported and run",
        "exit 2, one line, nothing imported",
        5000,
    ),
    "npz": Fault("damaged npz and pickles of joints", READ, "one-line error", 20000),
    "json": Fault("malformed COCO-style JSON", READ, "one-line error", 20000),
    "bvh": Fault("malformed BVH", READ, "one-line error", 20000),
    "mat": Fault("damaged MATLAB files", READ, "one-line error", 5000),
    "image": Fault(
        "damaged JPEG and PNG",
        "another image, 100 of 100; grey rows",
        "error, or found by its digest",
        5000,
    ),
}


class Tries:
    """Counts the tries of one test on one row.

    Args:
        name: Of the row, a key of `FAULTS`.
    """

    def __init__(self, name: str) -> None:
        assert name in FAULTS, name
        self.name, self.tried, self.seconds = name, 0, 0.0
        self.harms: dict[str, int] = {}
        self.said: list[str] = []

    def times(self, count: int) -> Iterator[int]:
        """Numbers from 0, this share of `count`, until the soak's time is up; then the verdict."""
        end = float(os.environ.get("HEATLIFT_SOAK_END", "inf"))
        for number in range(max(1, round(count * SHARE))):
            if time.time() > end:
                break
            begun = time.monotonic()
            yield number
            self.tried += 1
            self.seconds += time.monotonic() - begun
        assert not any(self.harms.values()), f"seed {SEED}: {self.harms}: {self.said}"

    def look(self, what: object = "", **harms: object) -> None:
        """What one try did: `wrong=`, `lost=`, `zero=`, `orphans=`, `canaries=`, `other=`.

        A true value, or one that is not empty, is a harm; an argument that is not given was not
        looked at.
        """
        for harm, value in harms.items():
            assert harm in HARMS, harm
            self.harms[harm] = self.harms.get(harm, 0) + bool(value)
            if value:
                self.said.append(f"try {self.tried} {what}: {harm} {value}"[:300])

    def record(self) -> str:
        """For the process that writes the table."""
        return json.dumps([self.name, self.tried, self.seconds, self.harms])


@dataclass
class Row:
    """What all tests of a row counted together."""

    tried: int = 0
    seconds: float = 0.0
    harms: dict[str, int] = field(default_factory=dict)
    failed: bool = False

    def add(self, tried: int, seconds: float, harms: dict[str, int], *, failed: bool) -> None:
        self.tried += tried
        self.seconds += seconds
        self.failed |= failed
        for harm, count in harms.items():
            self.harms[harm] = self.harms.get(harm, 0) + count


@dataclass
class Soak:
    """All rows of a soak, and what became of its tests."""

    rows: dict[str, Row] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    processes: int = 1

    def add(self, records: list[str], *, failed: bool = False) -> None:
        """What one test counted."""
        for record in records:
            name, *numbers = json.loads(record)
            self.rows.setdefault(name, Row()).add(*numbers, failed=failed)

    @property
    def verdict(self) -> str:
        """`failed`, `cut` or `whole`."""
        if self.failed or any(row.failed or any(row.harms.values()) for row in self.rows.values()):
            return "failed"
        short = any(self.tried(name) < fault.asked for name, fault in FAULTS.items())
        return "cut" if short else "whole"

    def tried(self, name: str) -> int:
        return self.rows.get(name, Row()).tried

    def total(self) -> int:
        return sum(row.tried for row in self.rows.values())

    def text(self) -> str:
        """What stands between the markers."""
        count, minutes = self.total(), self.seconds / 60
        opening = {
            "whole": f"**Whole: {count:,} trials**",
            "cut": f"**Cut: {count:,} trials**, fewer than planned in some rows",
            "failed": f"**FAILED: {count:,} trials**, {len(self.failed)} tests failed",
        }[self.verdict]
        lines = [
            f"{opening}; {datetime.now(UTC):%Y-%m-%d}, `{command()}`, {minutes:.0f} min, {SEED=}.",
            f"{hardware()}.",
            "",
            "W / L / Z / O / C / + count silently wrong results, lost good checkpoints, false exits"
            " with 0, orphans,",
            "canaries, and everything else that was not as promised (late, another line or code,"
            " memory); - was not checked.",
            "",
            "| fault | stock | Heatlift | trials | W / L / Z / O / C / + | true rate, 95 % |",
            "|---|---|---|---|---|---|",
        ]
        lines += [self.line(name) for name in FAULTS]
        lines += [f"\nFailed: `{name}`" for name in self.failed]
        return "\n".join(lines)

    def line(self, name: str) -> str:
        """A row of the table."""
        fault, row = FAULTS[name], self.rows.get(name, Row())
        harms = " / ".join(str(row.harms.get(harm, "-")) for harm in HARMS)
        times = f"{row.tried:,}" + (
            "" if row.tried >= fault.asked else f" of {fault.asked:,} planned"
        )
        bad = sum(row.harms.values())
        bound = "FAILED" if row.failed or bad else "not tried" if not row.tried else ""
        bound = bound or (f"< {300 / row.tried:.2g} %" if row.tried > 3 else "no useful bound")
        return f"| {fault.name} | {fault.stock} | {fault.ours} | {times} | {harms} | {bound} |"

    def projection(self) -> str:
        """How long a whole soak would take, by the seconds per try of this one."""
        lines, whole = [], 0.0
        for name, row in self.rows.items():
            if row.tried:
                each = row.seconds / row.tried
                whole += each * FAULTS[name].asked
                lines.append(f"  {name:14s} {row.tried:6,} tries {1e3 * each:9.1f} ms each")
        lines.append(
            f"  a whole soak: {whole / 60:.0f} min of tries, {whole / 60 / self.processes:.0f} min "
            f"on {self.processes} processes"
        )
        return "\n".join(lines)

    def write(self, page: Path = PAGE) -> str:
        """Put the table into the page; says what was done.

        A cut soak that held leaves the figures of a longer one that held alone.
        """
        text = page.read_text()
        before, begin, rest = text.partition(BEGIN)
        inside, end, after = rest.partition(END)
        assert begin, f"{page} has lost its marker {BEGIN}"
        assert end, f"{page} has lost its marker {END}"
        there = re.search(r"\*\*(?:Whole|Cut): ([\d,]+) tr(?:ies|ials)", inside)
        longer = there is not None and int(there[1].replace(",", "")) > self.total()
        if self.verdict == "cut" and longer:
            return f"cut; {page.name} keeps the figures of a longer soak"
        part = page.with_name(f".{page.name}.part")
        part.write_text(f"{before}{BEGIN}\n{self.text()}\n{END}{after}")
        part.replace(page)
        return f"{self.verdict}; written into {page.name}"


def command() -> str:
    share = f"HEATLIFT_SOAK_SHARE={SHARE:g} " if SHARE != 1 else ""
    return f"{share}make soak"


def hardware() -> str:
    """Processor and libraries, in a line."""
    import lightning
    import numpy
    import torch

    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return (
        f"{os.cpu_count()} cores ({names[0] if names else platform.processor()}), "
        f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"lightning {lightning.__version__}, numpy {numpy.__version__}"
    )
