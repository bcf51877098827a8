"""Checkpoints: atomic writing, detection of damage, and no code or memory bombs when reading."""

from __future__ import annotations

import ast
import contextlib
import errno
import io
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
import warm
from runs import COMMANDS, differences, outcome
from soak import SEED

from pipeline.errors import DataError, StorageError
from pipeline.files import torch_files, writing
from pipeline.training import checkpoints
from pipeline.training.checkpoints import describe_mismatch
from pipeline.training.run_folder import newest_checkpoint

RANDOM = random.Random(20261120)


@pytest.fixture(scope="session")
def run_folder(uninterrupted):
    """Folder of a finished pretraining run."""
    uninterrupted("pretrain")
    return uninterrupted.folders[("pretrain",)]


@pytest.fixture(scope="session")
def whole(run_folder):
    """Bytes of a valid checkpoint."""
    return sorted((run_folder / "checkpoints").glob("step-*.ckpt"))[-1].read_bytes()


def error_line(path: Path) -> str:
    """Error of reading a checkpoint; it must name the file."""
    with pytest.raises(DataError) as caught:
        torch_files.read_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def harmless(path: Path, data: bytes) -> bool:
    """Whether a changed file still has exactly the same content."""
    reference = path.with_name("whole.ckpt")
    reference.write_bytes(data)
    one, other = torch_files.read_checkpoint(path), torch_files.read_checkpoint(reference)
    return pickle.dumps(one["loops"]) == pickle.dumps(other["loops"]) and all(
        torch.equal(one["state_dict"][key], value) for key, value in other["state_dict"].items()
    )


def silently_wrong(path: Path, whole: bytes, changed: bytes) -> bool:
    """Whether a changed file is read without an error and with other content."""
    path.write_bytes(changed)
    try:
        torch_files.read_checkpoint(path)
    except DataError as error:
        message = str(error)
    else:
        return not harmless(path, whole)
    assert message.startswith(f"{path}: ")
    return False


def faults(whole: bytes, count: int) -> list[bytes]:
    """Bit flips, a fifth as many truncations, and one empty file."""
    flips = [flipped(whole, RANDOM.randrange(8 * len(whole))) for _ in range(count)]
    cuts = [whole[: RANDOM.randrange(len(whole))] for _ in range(count // 5)]
    return [*flips, *cuts, b""]


def test_no_flipped_bit_or_cut_is_silently_wrong(whole, tmp_path):
    assert not any(silently_wrong(tmp_path / "a.ckpt", whole, bad) for bad in faults(whole, 100))


def test_a_flipped_bit_in_the_weights_would_be_silent_without_the_check(whole, tmp_path):
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(_written(path, whole)) as archive:
        member = max(archive.infolist(), key=lambda member: member.file_size)
    path.write_bytes(flipped(whole, 8 * (member.header_offset + 400)))
    torch.load(path, weights_only=True)
    assert "fails its CRC" in error_line(path)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_other_kinds_of_files_get_an_exact_error(tmp_path):
    assert "no such checkpoint" in error_line(tmp_path / "absent.ckpt")
    assert "is not a file" in error_line(tmp_path)
    assert "is not a checkpoint" in error_line(_written(tmp_path / "a.ckpt", b"some text\n"))
    assert "0 bytes" in error_line(_written(tmp_path / "b.ckpt", b""))
    os.mkfifo(tmp_path / "pipe.ckpt")
    assert "is not a file" in error_line(tmp_path / "pipe.ckpt")
    with zipfile.ZipFile(tmp_path / "c.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "is not a checkpoint" in error_line(tmp_path / "c.ckpt")


def repacked(
    whole: bytes, path: Path, *, packing=zipfile.ZIP_STORED, pickled=None, more=()
) -> Path:
    """The same checkpoint in another kind of zip file or with another pickle."""
    source = path.with_name("source.zip")
    source.write_bytes(whole)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", packing) as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, pickled if pickled and name.endswith("/data.pkl") else data)
        for name, data in more:
            new.writestr(name, data)
    return path


def test_packed_members_raise_an_error_before_they_are_unpacked(whole, tmp_path):
    bomb = [("archive/data/bomb", bytes(200_000_000))]
    path = repacked(whole, tmp_path / "bomb.ckpt", packing=zipfile.ZIP_DEFLATED, more=bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "packed members" in error_line(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


class Gadget:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def gadgets(canary: Path) -> dict[str, object]:
    """Objects that would write a file or use all memory if they were unpickled."""
    import builtins
    import codecs
    import importlib
    import tempfile
    import types
    import webbrowser

    touch = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w')"
    return {
        "os.system": Gadget(os.system, touch),
        "os.popen": Gadget(os.popen, touch),
        "subprocess.Popen": Gadget(subprocess.Popen, ["touch", str(canary)]),
        "subprocess.check_output": Gadget(subprocess.check_output, ["touch", str(canary)]),
        "eval": Gadget(builtins.eval, code),
        "exec": Gadget(builtins.exec, code),
        "open": Gadget(builtins.open, str(canary), "w"),
        "import": Gadget(importlib.import_module, "antigravity"),
        "shutil.copy": Gadget(shutil.copy, "/etc/hostname", str(canary)),
        "tempfile": Gadget(tempfile.mkstemp, "", "", str(canary.parent)),
        "types": Gadget(types.SimpleNamespace),
        "webbrowser": Gadget(webbrowser.open, "http://localhost"),
        "torch.load": Gadget(torch.load, str(canary)),
        "torch.hub": Gadget(torch.hub.load, "a/b", "c"),
        "path.write": Gadget(Path.write_text, canary, "x"),
        "codecs": Gadget(codecs.encode, b"x", "bz2"),
        "bytearray": Gadget(bytearray, 8 * 10**9),
    }


@pytest.mark.parametrize("name", gadgets(Path("x")))
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_runs_code_or_uses_all_memory_raises_an_error(
    name, protocol, whole, tmp_path
):
    canary = tmp_path / "canary"
    content = {"state_dict": {"net.weight": gadgets(canary)[name]}, "global_step": 1}
    path = repacked(whole, tmp_path / "evil.ckpt", pickled=pickle.dumps(content, protocol))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "contains code" in error_line(path)
    assert not canary.exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000


def test_a_pickle_without_an_end_raises_an_error(whole, tmp_path):
    error_line(repacked(whole, tmp_path / "a.ckpt", pickled=b"\x80\x02}q\x00"))
    error_line(repacked(whole, tmp_path / "b.ckpt", pickled=b"(" * 100_000))


def test_a_tensor_larger_than_its_file_raises_an_error(tmp_path):
    path = tmp_path / "wide.ckpt"
    torch.save({"state_dict": {"w": torch.zeros(1).expand(10**11)}}, path)
    assert "w of state_dict claims more numbers than the file holds" in error_line(path)


@pytest.mark.parametrize("inside", [lambda t: {"state": {0: {"exp_avg": t}}}, lambda t: [(1, t)]])
def test_a_tensor_larger_than_its_file_raises_an_error_in_any_place(tmp_path, inside):
    path = tmp_path / "wide.ckpt"
    wide = torch.zeros(1).expand(30_000, 30_000)
    torch.save({"state_dict": {"w": torch.zeros(2)}, "optimizer_states": [inside(wide)]}, path)
    assert "claims more numbers than the file holds" in error_line(path)


def test_many_tensors_of_one_storage_raise_an_error(tmp_path):
    path, shared = tmp_path / "shared.ckpt", torch.zeros(1000)
    torch.save({"state_dict": {"a": shared, "b": shared}}, path)
    assert torch_files.read_checkpoint(path)["state_dict"]["b"].shape == (1000,)
    torch.save({"state_dict": {f"w{i}": shared for i in range(50)}}, path)
    assert "claim more numbers than the file holds" in error_line(path)


def tensor_of(size, stride=(1,), offset=0, count=4, key="0") -> bytes:
    """Pickle operations that make a float32 tensor of these sizes."""

    def numbers(values):
        return b"(" + b"".join(b"\x8a\x08" + n.to_bytes(8, "little", signed=True) for n in values)

    def text(word):
        return b"X" + len(word).to_bytes(4, "little") + word.encode()

    storage = text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + (storage + numbers([count])[1:] + b"tQ" + numbers([offset])[1:])
        + (numbers(size) + b"t" + numbers(stride) + b"t\x89ccollections\nOrderedDict\n)RtR")
    )


def file_with(path: Path, operations: bytes) -> Path:
    """A checkpoint with a storage of 16 bytes and these pickle operations for the weight w."""
    pickled = b"\x80\x02}X\n\x00\x00\x00state_dict}X\x01\x00\x00\x00w" + operations + b"ss."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data/0", bytes(16))
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
    return path


def test_a_tensor_written_by_hand_is_read(tmp_path):
    path = file_with(tmp_path / "a.ckpt", tensor_of([2, 2], [2, 1]))
    assert torch_files.read_checkpoint(path)["state_dict"]["w"].tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"size": [2**31]}, "beyond its storage"),
        ({"size": [4], "offset": 1}, "beyond its storage"),
        ({"size": [2], "stride": [-1], "offset": 1}, "beyond its storage"),
        ({"size": [4], "offset": -1}, "beyond its storage"),
        ({"size": [5], "count": 5}, "storage 0 claims more"),
        ({"size": [5], "count": 2**40}, "storage 0 claims more"),
        ({"size": [1], "key": "1"}, "storage 1 claims more"),
        ({"size": [1], "count": -1}, "no storage"),
    ],
)
def test_a_tensor_with_a_wrong_size_raises_an_error(changes, text, tmp_path):
    assert text in error_line(file_with(tmp_path / "a.ckpt", tensor_of(**changes)))


def costs(
    paths: list[Path], read: str = "torch_files.read_checkpoint"
) -> list[tuple[str, int, float]]:
    """Read files in a child process: its error, MiB of added memory and seconds for each file."""
    code = (
        "import resource, sys, time\n"
        "from pipeline.files import torch_files\n"
        "from pipeline.weights import published_files\n"
        "def memory(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = memory()\n"
        "for path in sys.argv[1:]:\n"
        "    begin = time.process_time()\n"
        f"    try: {read}(path); result = 'nothing'\n"
        "    except BaseException as error: result = f'{type(error).__name__}: {error}'\n"
        "    print((result, (memory() - before) // 1024, time.process_time() - begin))"
    )
    command = [sys.executable, "-c", code, *map(str, paths)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [ast.literal_eval(line) for line in output.splitlines()]


MANY = b"](" + b"K\x00K\x01\x86" * 100_000 + b"eq\x01\x85q\x02"
BOMBS = {
    "operations": b"N0" * 5_000_000 + b"N",
    "long": b"](" + b"N" * 20_000_000 + b"e",
    "lists": b"](" + b"]" * 5_000_000 + b"e",
    "bytearray": b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R",
    "old bytearray": b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R",
    "storage": b"ctorch.storage\nUntypedStorage\nJ\xff\xff\xff\x7f\x85R",
    "copies": b"](" + MANY + b"ccollections\nCounter\nh\x02R" * 2000 + b"e",
    "copies of a state": b"](" + MANY + b"ccollections\nOrderedDict\n)Rh\x01b" * 2000 + b"e",
    "depth": b"]" * 900_000 + b"a" * 899_999,
}
"""Pickle operations that would take over 1 GiB, or minutes, if they were run or listed."""


@pytest.mark.slow
def test_short_pickles_take_no_memory(tmp_path):
    names = list(BOMBS)
    files = [
        file_with(tmp_path / f"{number}.ckpt", BOMBS[name]) for number, name in enumerate(names)
    ]
    for name, (result, mib, seconds) in zip(names, costs(files), strict=True):
        assert result.startswith("DataError: ") or name == "depth", name
        assert "\n" not in result
        assert mib < 600, name
        assert seconds < 20, name


def test_weights_that_are_not_finite_raise_an_error(tmp_path):
    path = tmp_path / "nan.ckpt"
    torch.save({"state_dict": {"net.w": torch.tensor([1.0, float("nan")])}}, path)
    assert "net.w is not finite" in error_line(path)


# ---- writing -------------------------------------------------------------------------------------


def fails_with(number):
    def fail(*rest, **options):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("broken", ["os.fsync", "pathlib.Path.replace", "torch.save"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_error_keeps_the_older_file(broken, number, whole, tmp_path, monkeypatch):
    path = _written(tmp_path / "a.ckpt", whole)
    monkeypatch.setattr(broken, fails_with(number))
    with pytest.raises(StorageError, match="file that was there before is untouched"):
        checkpoints.AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, path)
    assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_file_size_limit_ends_with_5_and_keeps_the_older_checkpoint(heatlift, tmp_path):
    faults = [("limit_file_size", 4)]
    child = heatlift(*COMMANDS["lift"], faults=faults)
    assert child.wait() == 5
    assert "cannot be written" in child.stderr.splitlines()[-1]
    states = sorted((tmp_path / "runs/lift/lift/checkpoints").iterdir())
    assert [path.name for path in states] == ["step-000000002.ckpt"]
    assert torch_files.read_checkpoint(states[0])


def test_a_full_disk_is_named_with_what_is_needed_and_what_is_free(whole, tmp_path, monkeypatch):
    content = {"state_dict": {"w": torch.zeros(300_000)}}
    path = _written(tmp_path / "a.ckpt", whole)
    torch.save(content, tmp_path / "size")
    needed = writing.format_bytes((tmp_path / "size").stat().st_size)
    opened = Path.open

    def full(self, mode="r", *rest, **options):
        return io.FileIO("/dev/full", mode) if "w" in mode else opened(self, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError) as raised:
        checkpoints.AtomicCheckpointIO().save_checkpoint(content, path)
    assert re.match(rf"{path}: disk full: needs {needed}, \S+ .B free; ", str(raised.value))
    assert path.read_bytes() == whole


def test_an_error_that_is_not_of_the_disk_is_not_taken_for_one(tmp_path, monkeypatch):
    def lost(*rest):
        raise RuntimeError("NCCL communicator was aborted")

    monkeypatch.setattr(torch, "save", lost)
    with pytest.raises(RuntimeError, match="NCCL"):
        checkpoints.AtomicCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_keeps_the_older_file(whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    size = 3 * len(whole) // 2
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        path = _written(disk / "last.ckpt", whole)
        content = torch_files.read_checkpoint(path)
        with pytest.raises(StorageError, match="disk full: needs"):
            checkpoints.AtomicCheckpointIO().save_checkpoint(content, path)
        assert path.read_bytes() == whole
        assert [file.name for file in disk.iterdir()] == ["last.ckpt"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_kill_while_saving_never_leaves_a_partial_checkpoint(kills, server, tmp_path):
    path = tmp_path / "a.ckpt"
    for _ in range(kills):
        process = server.Process(target=warm.save_for_ever, args=(path,))
        process.start()
        while not path.exists():
            process.join(0.01)
        process.join(RANDOM.uniform(0.0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        values = torch_files.read_checkpoint(path)["state_dict"]["w"]
        assert values.min() == values.max()
    writing.remove_leftovers(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_the_temporary_file_of_a_running_process_is_not_removed(tmp_path):
    for writer in (writing.writer_name(), os.getpid()):
        part = _written(tmp_path / f".a.ckpt.{writer}.part", b"x")
        writing.remove_leftovers(tmp_path)
        assert part.exists()


DAY = 86_400


@pytest.mark.parametrize(
    ("writer", "age", "stays"),
    [
        ("{host}-{boot}-{space}-{start}-{pid}", 9 * DAY, True),
        ("{host}-{boot}-{space}-7-{pid}", 0, False),  # an earlier process
        ("{host}-{boot}-{space}-{start}-999999999", 0, False),  # it has ended
        ("{host}-0000000f-{space}-{start}-{pid}", 0, False),  # before this machine started
        ("0000000f-{boot}-{space}-{start}-{pid}", DAY - 60, True),  # another machine
        ("0000000f-{boot}-{space}-{start}-{pid}", DAY + 60, False),
        ("{host}-{boot}-{space}1-{start}-{pid}", DAY - 60, True),  # another container
        ("{host}-{boot}-{space}1-{start}-{pid}", DAY + 60, False),
        ("{pid}", DAY - 60, True),  # until version 0.3: of any machine
        ("{pid}", DAY + 60, False),
        ("999999999", 0, False),
    ],
)
def test_an_unfinished_file_stays_while_its_writer_may_run(writer, age, stays, tmp_path):
    names = ("host", "boot", "space", "start", "pid")
    own = dict(zip(names, writing.writer_name().split("-"), strict=True))
    part = _written(tmp_path / f".a.ckpt.{writer.format(**own)}.part", b"x")
    os.utime(part, (time.time() - age,) * 2)
    writing.remove_leftovers(tmp_path)
    assert part.exists() == stays


# ---- which checkpoint a run is resumed from ------------------------------------------------------


@pytest.fixture
def states(run_folder, tmp_path):
    """A copy of a run folder, and its two newest checkpoints, oldest first."""
    shutil.copytree(run_folder, tmp_path / "run")
    return tmp_path / "run", sorted((tmp_path / "run/checkpoints").glob("step-*.ckpt"))


def test_a_run_is_resumed_from_the_newest_checkpoint(states):
    folder, (_, new) = states
    assert newest_checkpoint(folder) == new


def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(states):
    folder, (old, new) = states
    new.write_bytes(flipped(new.read_bytes(), 8 * 20_000))
    lines = []
    assert newest_checkpoint(folder, "", lines.append) == old
    assert str(new) in lines[0]
    assert old.name in lines[1]


def test_a_checkpoint_with_another_name_or_of_another_run_is_not_used(states):
    folder, (old, new) = states
    lines = []
    shutil.copy(old, new)
    assert newest_checkpoint(folder, "", lines.append) == old
    assert "was renamed or copied" in lines[0]
    assert newest_checkpoint(folder, "another digest", lines.append) is None
    assert "of another run" in lines[2]


def test_a_run_with_a_damaged_newest_checkpoint_resumes_from_the_one_before(
    heatlift, uninterrupted, tmp_path
):
    assert heatlift(*COMMANDS["lift"], faults=[("at", "saved", 6, "kill")]).wait() == -9
    newest = sorted((tmp_path / "runs/lift/lift/checkpoints").glob("step-*.ckpt"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    child = heatlift(*COMMANDS["lift"])
    assert child.wait() == 0
    assert f"{newest.name}: " in child.stdout
    assert "resumed from step-000000004.ckpt" in child.stdout
    assert differences(outcome(tmp_path, "lift"), uninterrupted("lift")) == []


# ---- make soak -----------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_damage_by_the_thousand(whole, tmp_path, soak):
    bad = random.Random(f"{SEED} checkpoint")
    kinds = ["bit"] * 1000 + ["cut"] * 200 + ["empty"]
    bad.shuffle(kinds)
    row = soak("checkpoint")
    for number in row.times(len(kinds)):
        changed = {
            "bit": lambda: flipped(whole, bad.randrange(8 * len(whole))),
            "cut": lambda: whole[: bad.randrange(len(whole))],
            "empty": lambda: b"",
        }[kinds[number]]()
        row.look(kinds[number], wrong=silently_wrong(tmp_path / "a.ckpt", whole, changed))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(2))
def test_kills_while_saving(part, server, tmp_path, soak):
    path = tmp_path / "a.ckpt"
    chance = random.Random(f"{SEED} save {part}")
    row = soak("kill save")
    for _ in row.times(100):
        process = server.Process(target=warm.save_for_ever, args=(path,))
        process.start()
        while not path.exists():
            process.join(0.01)
        process.join(chance.uniform(0.0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        try:
            values = torch_files.read_checkpoint(path)["state_dict"]["w"]
        except DataError as error:
            row.look(lost=error)
            continue
        writing.remove_leftovers(tmp_path)
        left = [file.name for file in tmp_path.iterdir()] != ["a.ckpt"]
        row.look(lost=False, wrong=bool(values.min() != values.max()), other=left)


@contextlib.contextmanager
def disk(kind: str, at: int):
    """A disk that fails in this way, if it matters from the byte `at` on."""
    if kind == "limit":
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (at, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
        return
    number = errno.EIO if at % 2 else errno.ENOSPC
    with pytest.MonkeyPatch.context() as patch:
        if kind == "write":
            patch.setattr(torch, "save", lambda content, file: (file.write(bytes(at)), fail()))
            fail = fails_with(number)
        else:
            patch.setattr(
                {"fsync": "os.fsync", "rename": "pathlib.Path.replace"}[kind], fails_with(number)
            )
        yield


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["limit", "write", "fsync", "rename"])
def test_failing_writes(kind, whole, tmp_path, soak):
    path = _written(tmp_path / "a.ckpt", whole)
    content = torch_files.read_checkpoint(path)
    chance = random.Random(f"{SEED} write {kind}")
    row = soak("write")
    for _ in row.times(15):
        failed = False
        with disk(kind, chance.randrange(1, len(whole) - 1000)):
            try:
                checkpoints.AtomicCheckpointIO().save_checkpoint(content, path)
            except StorageError:
                failed = True
        left = [file.name for file in tmp_path.iterdir()] != ["a.ckpt"]
        row.look(kind, lost=path.read_bytes() != whole, zero=not failed, other=left)


def hidden(chance, gadget):
    """A checkpoint with a gadget in a random place and depth."""
    for _ in range(chance.randrange(4)):
        gadget = chance.choice(
            [
                lambda what: {"lr": 0.1, "state": what},
                lambda what: [1, what, "adam"],
                lambda what: (what, None),
                lambda what: {1: {2: what}},
            ]
        )(gadget)
    content = {"state_dict": {}, "global_step": 1}
    place = chance.choice(["state_dict", "optimizer_states", "global_step", "loops", "epoch"])
    return {**content, place: gadget}


@pytest.mark.soak
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_hostile_pickles(protocol, whole, tmp_path, soak):
    row = soak("pickle")
    chance = random.Random(f"{SEED} pickle {protocol}")
    names = list(gadgets(tmp_path / "x"))
    for number in row.times(500):
        canary = tmp_path / f"canary{number}"
        name = names[number % len(names)]
        content = hidden(chance, gadgets(canary)[name])
        path = repacked(whole, tmp_path / "evil.ckpt", pickled=pickle.dumps(content, protocol))
        row.look(name, **ran(lambda path=path: torch_files.read_checkpoint(path), canary))


def ran(read, canary: Path) -> dict[str, object]:
    """Harm done by reading a hostile file, by kind."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read()
    except DataError as error:
        bad = "\n" in str(error)
    else:
        bad = True
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"canaries": canary.exists(), "other": bad or more > 2**20}


@pytest.mark.soak
def test_bombs(whole, tmp_path, soak):
    row = soak("bomb")
    for number in row.times(20):
        size = (1 + number) * 20_000_000
        bomb = [("archive/data/bomb", bytes(size))] if number % 2 else []
        path = tmp_path / "bomb.ckpt"
        if bomb:
            repacked(whole, path, packing=zipfile.ZIP_DEFLATED, more=bomb)
        else:
            torch.save({"state_dict": {"w": torch.zeros(1).expand(size * 1000)}}, path)
        row.look(
            number, **ran(lambda path=path: torch_files.read_checkpoint(path), tmp_path / "canary")
        )


def test_weights_of_another_network_are_told_in_one_line():
    """From torch's own message: what is missing, what is unknown, which shape differs."""
    ours = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 5), torch.nn.Linear(5, 2))
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Linear(4, 5))
    state = theirs.state_dict() | {"extra.weight": torch.ones(2)}
    with pytest.raises(RuntimeError) as raised:
        ours.load_state_dict(state)
    line = describe_mismatch(str(raised.value))
    assert line == (
        "its weights do not fit the network: 2 are missing (2.weight), 1 is unknown "
        "(extra.weight), 2 have another shape (0.weight: [6, 3] there, [4, 3] here); it has other "
        "arguments, or its code has changed since the training"
    )
    assert describe_mismatch("another error") is None
