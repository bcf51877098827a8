"""Archives for two parsers and files that ask for much memory, for `make soak`."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import resource
import time
from pathlib import Path

import pytest
from ambiguous import KINDS, ambiguous
from costly import FILES, line_of
from soak import FAULTS, SEED

from pipeline.errors import DataError
from pipeline.files.foreign_torch import read_foreign_torch
from pipeline.files.torch_files import read_checkpoint

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def test_the_rows_name_the_number_of_kinds():
    assert f"{len(KINDS)} kinds" in FAULTS["parsers"].name
    assert f"{len(FILES)} kinds" in FAULTS["budget"].name


def test_archives_for_two_parsers(tmp_path, soak):
    row, chance = soak("parsers"), random.Random(f"{SEED} parsers")
    for number in row.times(20 * len(KINDS)):
        kind = KINDS[number % len(KINDS)]
        more = {"state_dict": {}, "more": "x" * chance.randrange(1000)}
        pickles = [pickle.dumps({**more, "word": word}, 2) for word in ("checked", "unchecked")]
        path = tmp_path / "a.ckpt"
        path.write_bytes(ambiguous(*pickles)[kind])
        read = chance.choice([read_checkpoint, read_foreign_torch])
        try:
            found, line = read(path), ""
        except DataError as error:
            found, line = None, str(error)
        row.look(kind, wrong=found, other=not line.startswith(f"{path}: ") or "\n" in line)


def measure(path: Path, end) -> None:
    """Read a file in a child process within 4 GiB: its line, added MiB and seconds."""
    sizes = [int(size) * os.sysconf("SC_PAGE_SIZE") for size in _statm()]
    resource.setrlimit(resource.RLIMIT_AS, (sizes[0] + 4 * 2**30,) * 2)
    begun = time.process_time()
    try:
        line = line_of(path)
    except BaseException as error:
        line = f"\n{type(error).__name__}"
    status = Path("/proc/self/status").read_text()
    most = int(status.split("VmHWM:")[1].split()[0]) * 1024
    end.send((line, (most - sizes[1]) / 2**20, time.process_time() - begun))


def _statm() -> list[str]:
    return Path("/proc/self/statm").read_text().split()[:2]


@pytest.mark.parametrize("part", range(2))
def test_files_that_ask_for_much(part, tmp_path, soak):
    row, context = soak("budget"), multiprocessing.get_context("fork")
    names = list(FILES)
    for number in row.times(len(names)):
        name = names[(number + part * len(names) // 2) % len(names)]
        path = tmp_path / name
        path.write_bytes(FILES[name]())
        here, there = context.Pipe()
        child = context.Process(target=measure, args=(path, there))
        child.start()
        there.close()
        try:
            line, mebibytes, seconds = here.recv()
        except EOFError:
            line, mebibytes, seconds = "\nended", 0, 0
        child.join()
        row.look(
            name,
            other=not line or "\n" in line or mebibytes > 1024 or seconds > 30,
        )
        path.unlink()
