from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from soak import SEED

from pipeline.cli import cache
from pipeline.errors import DataError, StorageError, UsageError
from pipeline.files import entries, store
from pipeline.files import writing as writing_tools
from pipeline.files.entries import CacheSpecification
from pipeline.files.store import Shards, Store
from pipeline.files.unpacked import unpack_once
from pipeline.files.writing import remove_path

forked = multiprocessing.get_context("fork")


def specification_of(key: int = 1, rows: int = 40) -> CacheSpecification:
    layout = {"joints2d": ((rows, 3, 2), "<f4"), "score": ((rows, 3), "<f4")}
    return CacheSpecification("Study / walk", {"what": key}, layout, {"spans": {"walk": [0, rows]}})


def arrays_of(specification: CacheSpecification) -> dict[str, np.ndarray]:
    random_numbers = np.random.default_rng(specification.key["what"])
    return {
        name: random_numbers.normal(size=shape).astype(kind)
        for name, (shape, kind) in specification.layout.items()
    }


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def build(cache: Store, specification: CacheSpecification) -> entries.Entry:
    return cache.fetch(specification, lambda shards: arrays_of(specification))


def not_built(shards: Shards) -> dict[str, np.ndarray]:
    raise AssertionError("the entry was there")


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    return store.default_store()


def test_an_entry_is_built_once_and_then_memory_mapped(cache_folder):
    build(cache_folder, specification_of())
    entry = cache_folder.fetch(specification_of(), not_built)
    assert isinstance(entry.arrays["joints2d"], np.memmap)
    assert not entry.arrays["joints2d"].flags.writeable
    np.testing.assert_array_equal(entry.arrays["score"], arrays_of(specification_of())["score"])
    assert entry.facts == {"spans": {"walk": [0, 40]}}
    assert entry.path.name.startswith("Study-walk-")


def test_the_same_input_gives_the_same_bytes_in_another_cache(tmp_path):
    first = build(Store(tmp_path / "a"), specification_of())
    second = build(Store(tmp_path / "b"), specification_of())
    assert content(first.path) == content(second.path)


def test_nothing_but_the_entry_and_its_lock_is_left(cache_folder):
    entry = build(cache_folder, specification_of())
    names = {file.name for file in cache_folder.root.iterdir()}
    assert names == {entry.path.name, f".{entry.path.name}.lock"}


def rewrite(entry: Path, **changes) -> None:
    """Change a manifest and give it a valid checksum again."""
    manifest = json.loads((entry / "manifest.json").read_bytes())
    manifest.update(changes)
    manifest.pop("sha256")
    manifest["sha256"] = entries.json_digest(manifest)
    (entry / "manifest.json").write_bytes(entries.canonical_json(manifest))


def flip(entry: Path, chosen: random.Random) -> None:
    file = chosen.choice(sorted(entry.iterdir()))
    held = bytearray(file.read_bytes())
    held[chosen.randrange(len(held))] ^= 1 << chosen.randrange(8)
    file.write_bytes(held)


def cut(entry: Path, chosen: random.Random) -> None:
    file = chosen.choice(sorted(entry.iterdir()))
    os.truncate(file, chosen.randrange(file.stat().st_size))


def empty(entry: Path, chosen: random.Random) -> None:
    os.truncate(chosen.choice(sorted(entry.iterdir())), 0)


def other_version(entry: Path, chosen: random.Random) -> None:
    rewrite(entry, schema=entries.SCHEMA + chosen.randrange(1, 9))


def other_key(entry: Path, chosen: random.Random) -> None:
    rewrite(entry, key={"what": chosen.randrange(2, 99)})


def other_entry(entry: Path, chosen: random.Random) -> None:
    other = build(Store(entry.parent.parent / "other"), specification_of(chosen.randrange(2, 99)))
    shutil.rmtree(entry)
    shutil.move(other.path, entry)


def swapped_arrays(entry: Path, chosen: random.Random) -> None:
    other = build(Store(entry.parent.parent / "other"), specification_of(chosen.randrange(2, 99)))
    shutil.copy(other.path / "score.npy", entry / "score.npy")


def extra_file(entry: Path, chosen: random.Random) -> None:
    (entry / f"more{chosen.randrange(9)}.npy").write_bytes(b"")


def missing_file(entry: Path, chosen: random.Random) -> None:
    chosen.choice(sorted(entry.iterdir())).unlink()


def other_shape(entry: Path, chosen: random.Random) -> None:
    manifest = json.loads((entry / "manifest.json").read_bytes())
    array = np.load(entry / "score.npy").reshape(3, -1)
    np.save(entry / "score.npy", array)
    digest = hashlib.sha256((entry / "score.npy").read_bytes()).hexdigest()
    described = manifest["arrays"]["score"] | {"shape": list(array.shape), "sha256": digest}
    rewrite(entry, arrays=manifest["arrays"] | {"score": described})


def wrong_type(entry: Path, chosen: random.Random) -> None:
    manifest = json.loads((entry / "manifest.json").read_bytes())
    manifest["arrays"]["score"]["dtype"] = chosen.choice(["<i4", "<f8", "|O"])
    rewrite(entry, arrays=manifest["arrays"])


def other_offsets(entry: Path, chosen: random.Random) -> None:
    rewrite(entry, facts={"spans": {"walk": [chosen.randrange(1, 9), 40]}})


def not_a_manifest(entry: Path, chosen: random.Random) -> None:
    text = chosen.choice(["[]", "{}", "[" * 100_000, '{"sha256": 1}', "\xff"])
    (entry / "manifest.json").write_text(text, "latin-1")


def file_in_its_place(entry: Path, chosen: random.Random) -> None:
    shutil.rmtree(entry)
    entry.write_bytes(b"")


TWICE = (empty, other_version, other_key, other_entry, swapped_arrays, extra_file)
TWICE = (*TWICE, missing_file, other_shape, wrong_type, other_offsets, file_in_its_place)
FAULTS = {flip: 40, cut: 15, not_a_manifest: 5} | dict.fromkeys(TWICE, 2)


def damage_and_mend(fault, folder: Path, whole, seed: str, caplog) -> dict[str, object]:
    """Damage an entry, open it and build it again; True for each kind of harm that happened."""
    fault(folder, random.Random(seed))
    seen = Store(folder.parent).find(specification_of())
    caplog.clear()
    build(Store(folder.parent), specification_of())
    shutil.rmtree(folder.parent.parent / "other", ignore_errors=True)
    lines = [record.getMessage() for record in caplog.records]
    return {
        "wrong": seen is not None,
        "lost": content(folder) != whole,
        "other": len(lines) != 1 or "rebuilding" not in lines[0],
    }


@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_damage_is_noticed_before_use_and_mended_to_the_same_bytes(
    cache_folder, caplog, fault, times
):
    entry = build(cache_folder, specification_of()).path
    whole = content(entry)
    for number in range(FAULTS[fault] * times):
        seed = f"{fault.__name__} {times} {number}"
        assert not any(damage_and_mend(fault, entry, whole, seed, caplog).values()), seed


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_damage_by_the_thousand(cache_folder, caplog, fault, soak):
    entry = build(cache_folder, specification_of()).path
    whole = content(entry)
    row = soak("cache")
    for number in row.times(FAULTS[fault] * 35):
        seed = f"{SEED} {fault.__name__} {number}"
        row.look(seed, **damage_and_mend(fault, entry, whole, seed, caplog))


def test_another_key_is_another_entry(cache_folder):
    build(cache_folder, specification_of(1))
    assert cache_folder.find(specification_of(2)) is None
    assert (
        build(cache_folder, specification_of(2)).path
        != build(cache_folder, specification_of(1)).path
    )


def test_an_entry_is_found_by_its_key_alone_and_never_by_another_key(cache_folder, tmp_path):
    build(cache_folder, specification_of(1))
    assert cache_folder.find(CacheSpecification(specification_of(1).stem, {"what": 1})).facts[
        "spans"
    ]
    entry = cache_folder.root / specification_of(1).name
    other = build(Store(tmp_path / "other"), specification_of(2))
    shutil.rmtree(entry)
    shutil.move(other.path, entry)
    assert cache_folder.find(CacheSpecification(specification_of(1).stem, {"what": 1})) is None


def build_counting(root: Path, counts: Path, pause: float = 0.0) -> None:
    def counting(shards: Shards) -> dict[str, np.ndarray]:
        arrays = arrays_of(specification_of())
        for row in range(8):
            if shards.get(f"row{row}") is None:
                with counts.open("a") as lines:
                    lines.write(f"{row}\n")
                time.sleep(pause)
                shards.put(f"row{row}", {name: array[row] for name, array in arrays.items()})
        for name, array in arrays.items():
            array[:8] = [shards.get(f"row{row}")[name] for row in range(8)]
        return arrays

    Store(root).fetch(specification_of(), counting)


def built_together(folder: Path, count: int, pause: float) -> tuple[list[int], list[str]]:
    """Exit codes of builders of one entry, and the items they made, in order."""
    arguments = (folder / "cache", folder / "counts", pause)
    builders = [forked.Process(target=build_counting, args=arguments) for _ in range(count)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    return [builder.exitcode for builder in builders], (folder / "counts").read_text().split()


def test_three_builders_compute_every_item_once(tmp_path):
    assert built_together(tmp_path, 3, 0.02) == ([0, 0, 0], list("01234567"))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_eight_builders(tmp_path, soak):
    row = soak("builders")
    for number in row.times(10):
        (tmp_path / str(number)).mkdir()
        codes, items = built_together(tmp_path / str(number), 8, 0.01)
        entry = tmp_path / str(number) / "cache" / specification_of().name
        fresh = build(Store(tmp_path / f"fresh{number}"), specification_of()).path
        row.look(
            wrong=content(entry) != content(fresh),
            orphans=multiprocessing.active_children(),
            other=codes != [0] * 8 or items != list("01234567"),
        )


def rebuild_endlessly(root: Path) -> None:
    while True:
        remove_path(root / specification_of().name)
        # the other builder may remove the entry before this one has read it back
        with contextlib.suppress(entries.MissingEntryError, entries.DamagedEntryError):
            build(Store(root), specification_of())


def partial_reads(root: Path, reads: int) -> Iterator[bool]:
    """For each successful read beside two builders, whether it saw something else than the whole.

    At most as many as asked, and as many as two minutes allow.
    """
    builders = [forked.Process(target=rebuild_endlessly, args=(root,)) for _ in range(2)]
    for builder in builders:
        builder.start()
    whole, end = arrays_of(specification_of()), time.monotonic() + 120
    try:
        while reads and time.monotonic() < end:
            if entry := Store(root).find(specification_of()):
                reads -= 1
                yield not all(np.array_equal(entry.arrays[name], whole[name]) for name in whole)
    finally:
        for builder in builders:
            builder.kill()
            builder.join()


@pytest.mark.parametrize("reads", [300, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.timeout(300)
def test_a_reader_never_sees_a_part_of_an_entry(tmp_path, reads):
    seen = list(partial_reads(tmp_path, reads))
    assert len(seen) == reads
    assert not any(seen)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_readers_beside_builders(tmp_path, soak):
    row = soak("reads")
    with contextlib.closing(partial_reads(tmp_path, 5000)) as reads:
        for _ in row.times(5000):
            row.look(wrong=next(reads))


def test_a_reader_that_waits_logs_the_process_it_waits_for(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(store, "_WAITING_INTERVAL", 0.1)
    arguments = (tmp_path / "cache", tmp_path / "counts", 0.1)
    builder = forked.Process(target=build_counting, args=arguments)
    builder.start()
    while not (tmp_path / "counts").exists():
        time.sleep(0.01)
    with caplog.at_level(logging.WARNING):
        Store(tmp_path / "cache").fetch(specification_of(), not_built)
    builder.join(30)
    assert f"locked by process {builder.pid}" in caplog.text


def taken_over(folder: Path, killed_at: int) -> dict[str, object]:
    """Kill a builder and let another continue; True for each kind of harm that happened."""
    root, counts = folder / "cache", folder / "counts"
    builder = forked.Process(target=build_counting, args=(root, counts, 0.05))
    builder.start()
    while not counts.exists() or len(counts.read_text().split()) <= killed_at:
        time.sleep(0.002)
    os.kill(builder.pid, signal.SIGKILL)
    builder.join(30)
    began = time.monotonic()
    build_counting(root, counts)
    late = time.monotonic() - began > 5
    rows = counts.read_text().split()
    fresh = build(Store(folder / "fresh"), specification_of()).path
    return {
        "wrong": content(root / specification_of().name) != content(fresh),
        # The item that was being computed when the kill came is the only one done twice.
        "other": late or sorted(set(rows)) != list("01234567") or len(rows) > 9,
    }


@pytest.mark.parametrize("killed_at", [1, 4, 7])
def test_a_killed_builder_is_taken_over_without_repeating_finished_items(tmp_path, killed_at):
    assert not any(taken_over(tmp_path, killed_at).values())


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_99_killed_builders(tmp_path, soak):
    row = soak("kill builder")
    for number in row.times(99):
        (tmp_path / str(number)).mkdir()
        row.look(number, **taken_over(tmp_path / str(number), number % 8))


def test_a_damaged_shard_is_made_again(tmp_path):
    shards = Shards(tmp_path)
    shards.make_folder()
    shards.put("part", {"score": np.arange(9.0)})
    whole = (tmp_path / "part.npz").read_bytes()
    for place in range(0, len(whole) * 8, 97):
        held = bytearray(whole)
        held[place // 8] ^= 1 << place % 8
        (tmp_path / "part.npz").write_bytes(held)
        arrays = shards.get("part")
        assert arrays is None or np.array_equal(arrays.get("score", 0), np.arange(9.0))
    os.truncate(tmp_path / "part.npz", len(whole) // 2)
    assert shards.get("part") is None


def test_leftovers_of_dead_writers_are_removed_and_of_others_kept(cache_folder):
    others = [specification_of(key).name for key in (2, 3, 4)]
    writer = writing_tools.writer_name()
    names = (
        f"{others[0]}.{writer}",
        *(f"{other}.4000" for other in others[1:]),
        f"{specification_of().name}.1",
    )
    dead, writing, foreign, own = (cache_folder.root / f".{name}.tmp" for name in names)
    for folder in (dead, writing, foreign, own):
        folder.mkdir(parents=True)
    (cache_folder.root / f".{others[2]}.lock").mkdir()  # a lock that cannot be taken
    with cache_folder.lock(others[1]):
        build(cache_folder, specification_of())
    left = [folder.exists() for folder in (dead, writing, foreign, own)]
    assert left == [False, True, True, False]


def test_a_full_disk_is_reported_before_the_work_begins(cache_folder, monkeypatch):
    free = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(StorageError, match=r"needs 2\.88 kB, 1 kB free"):
        cache_folder.fetch(specification_of(), not_built)


def test_a_write_that_fails_half_way_leaves_no_entry(cache_folder, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        build(cache_folder, specification_of())
    assert not [file for file in cache_folder.root.glob("*") if not file.name.startswith(".")]
    assert not list(cache_folder.root.glob("*.tmp"))


def as_nobody(task, *arguments) -> int:
    """Exit code of a task in a child without the privileges of root."""

    def child() -> None:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        task(*arguments)

    process = forked.Process(target=child)
    process.start()
    process.join(30)
    return process.exitcode


def use_read_only(root: Path) -> None:
    assert Store(root).fetch(specification_of(), not_built).facts["spans"]
    with pytest.raises(StorageError, match="cannot be written"):
        Store(root).fetch(specification_of(2), not_built)


def test_a_read_only_cache_serves_what_is_complete_and_rejects_the_rest(tmp_path):
    root = tmp_path / "cache"
    build(Store(root), specification_of())
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/") and "pytest" in str(folder):
            folder.chmod(folder.stat().st_mode | 0o111)
    root.chmod(0o555)
    try:
        assert as_nobody(use_read_only, root) == 0
    finally:
        root.chmod(0o755)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_modes_follow_the_umask_and_no_file_can_be_executed(tmp_path, mask):
    before = os.umask(mask)
    try:
        entry = build(Store(tmp_path / "cache"), specification_of())
    finally:
        os.umask(before)
    assert entry.path.stat().st_mode & 0o777 == 0o777 & ~mask
    for file in [*entry.path.iterdir(), *entry.path.parent.glob(".*.lock")]:
        assert file.stat().st_mode & 0o777 == 0o666 & ~mask


def test_an_entry_that_is_a_link_is_rejected(cache_folder, tmp_path):
    outside = shutil.move(build(cache_folder, specification_of()).path, tmp_path / "outside")
    (cache_folder.root / specification_of().name).symlink_to(outside)
    with pytest.raises(StorageError, match="is a symbolic link"):
        cache_folder.fetch(specification_of(), not_built)


def test_a_link_inside_an_entry_is_rejected(cache_folder, tmp_path):
    entry = build(cache_folder, specification_of())
    outside = shutil.move(entry.path / "score.npy", tmp_path / "score.npy")
    (entry.path / "score.npy").symlink_to(outside)
    with pytest.raises(StorageError, match=r"score\.npy: is a symbolic link"):
        cache_folder.fetch(specification_of(), not_built)


def test_a_manifest_cannot_reach_outside_its_entry(cache_folder):
    entry = build(cache_folder, specification_of())
    manifest = json.loads((entry.path / "manifest.json").read_bytes())
    described = manifest["arrays"] | {"../../../secret": manifest["arrays"]["score"]}
    rewrite(entry.path, arrays=described)
    assert cache_folder.find(specification_of()) is None


def test_a_cache_may_itself_be_a_link(tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "big")
    assert build(Store(tmp_path / "cache"), specification_of()).facts["spans"]


def test_a_folder_that_everyone_may_write_to_is_warned_about(cache_folder, caplog):
    cache_folder.root.mkdir()
    cache_folder.root.chmod(0o777)
    build(cache_folder, specification_of(1))
    assert "writable by everyone" in caplog.text
    caplog.clear()
    cache_folder.root.chmod(0o1777)
    build(cache_folder, specification_of(2))
    assert not caplog.text


def test_an_entry_without_rows_is_an_entry(cache_folder):
    assert build(cache_folder, specification_of(rows=0)).arrays["joints2d"].shape == (0, 3, 2)


def test_a_file_is_read_again_only_when_it_changed(cache_folder, tmp_path, monkeypatch):
    long_ago(monkeypatch)
    file = tmp_path / "image.jpg"
    file.write_bytes(b"one")
    digest = cache_folder.digest(file)
    assert digest == hashlib.sha256(b"one").hexdigest()
    store._known_digests.cache_clear()
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert cache_folder.digest(file) == digest
    monkeypatch.undo()
    monkeypatch.setenv("HEATLIFT_CACHE", str(cache_folder.root))
    file.write_bytes(b"two")
    assert cache_folder.digest(file) == hashlib.sha256(b"two").hexdigest()


def long_ago(monkeypatch) -> None:
    """Let files that were just written count as old, so that their digests are remembered."""
    later = time.time_ns() + 10**10
    monkeypatch.setattr(time, "time_ns", lambda: later)


def test_a_file_of_the_same_size_and_time_with_other_bytes_is_read_again(
    cache_folder, tmp_path, monkeypatch
):
    long_ago(monkeypatch)
    file = tmp_path / "poses.npz"
    file.write_bytes(b"old")
    os.utime(file, (1, 1))
    assert cache_folder.digest(file) == hashlib.sha256(b"old").hexdigest()
    file.write_bytes(b"new")
    os.utime(file, (1, 1))
    assert cache_folder.digest(file) == hashlib.sha256(b"new").hexdigest()
    (tmp_path / "other").write_bytes(b"neu")
    os.utime(tmp_path / "other", (1, 1))
    (tmp_path / "other").rename(file)
    assert cache_folder.digest(file) == hashlib.sha256(b"neu").hexdigest()


def test_an_archive_that_changes_while_it_is_unpacked_is_not_stored(cache_folder, tmp_path):
    file = tmp_path / "poses.npz"
    file.write_bytes(b"old")

    def unpack():
        file.write_bytes(b"new")
        return {"joints": np.zeros(3)}, {}

    with pytest.raises(DataError, match=r"poses\.npz: changed while it was read"):
        unpack_once("poses", [file], "1", unpack)
    assert not list(cache_folder.root.glob("[!.]*"))


def test_torn_lines_of_remembered_digests_are_passed_over(cache_folder, tmp_path):
    cache_folder.root.mkdir()
    (cache_folder.root / ".digests.jsonl").write_bytes(b'["/a", 1, 2, "ab"]\n{"\xff\n[1]\n["/b", 1')
    file = tmp_path / "image.jpg"
    file.write_bytes(b"one")
    assert cache_folder.digest(file) == hashlib.sha256(b"one").hexdigest()


def test_verify_names_damaged_entries_and_ls_lists_unfinished_ones(cache_folder, capsys):
    entry = build(cache_folder, specification_of())
    unfinished = cache_folder.shards(specification_of(2))
    unfinished.make_folder()
    unfinished.put("part", arrays_of(specification_of(2)))
    cache.verify()
    cache.ls()
    assert "unfinished: 1 shards" in capsys.readouterr().out
    flip(entry.path, random.Random(1))
    with pytest.raises(StorageError, match=f"damaged entries: {entry.path.name}"):
        cache.verify()


def everything_below(folder: Path) -> dict[str, bytes]:
    """Files below a folder, without those that the cache wrote."""
    own = "manifest.json", "joints2d.npy", "score.npy", "heatlift.txt"
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name not in own and not file.name.endswith((".lock", ".npz"))
    }


def test_rm_all_leaves_foreign_files_and_names_them(cache_folder, capsys):
    entry = build(cache_folder, specification_of())
    for name in ("thesis", ".thesis.building", ".thesis-1.4000.tmp", "thesis-0123456789abcdef"):
        (cache_folder.root / name).mkdir()
        (cache_folder.root / name / "text.npy").write_bytes(b"years of work")
    (cache_folder.root / ".thesis.pid").write_text("mine")
    before = everything_below(cache_folder.root)
    cache.verify()
    cache.rm("all")
    assert everything_below(cache_folder.root) == before
    assert not entry.path.exists()
    assert "never touched: thesis, thesis-0123456789abcdef" in capsys.readouterr().err


def test_an_entry_with_a_foreign_file_is_left_whole_and_named(cache_folder):
    entry = build(cache_folder, specification_of())
    (entry.path / "notes.npy").write_bytes(b"mine")
    before = content(entry.path)
    with pytest.raises(StorageError, match=rf"left as they are.*{entry.path.name}/notes\.npy"):
        cache.rm("all")
    assert content(entry.path) == before


def test_a_foreign_file_in_a_damaged_entry_is_kept_when_it_is_rebuilt(cache_folder, caplog):
    entry = build(cache_folder, specification_of())
    (entry.path / "notes.txt").write_bytes(b"mine")
    build(cache_folder, specification_of())
    assert (cache_folder.root / f"{entry.path.name}.bad" / "notes.txt").read_bytes() == b"mine"
    assert caplog.text.count("warning: ") == 1
    assert f"is now {entry.path.name}.bad" in caplog.text


def test_a_foreign_file_among_shards_stays(cache_folder, caplog):
    folder = cache_folder.shards(specification_of()).folder
    folder.mkdir(parents=True)
    (folder / "mine.npz").write_bytes(b"mine")
    build(cache_folder, specification_of())
    assert (folder / "mine.npz").read_bytes() == b"mine"
    assert "mine.npz" in caplog.text


def without_mark(entry: Path) -> None:
    """Make an entry as versions before 0.4 wrote them."""
    (entry / "heatlift.txt").unlink()
    rewrite(entry, schema=1)


def test_entries_of_earlier_versions_are_used_and_can_be_removed(cache_folder):
    entry = build(cache_folder, specification_of())
    without_mark(entry.path)
    assert cache_folder.fetch(specification_of(), not_built).facts["spans"]
    shards = cache_folder.shards(specification_of(2)).folder
    shards.mkdir()
    np.savez(shards / "0000007.npz", score=np.arange(3))
    cache.verify()
    cache.rm("all")
    assert not entry.path.exists()
    assert not shards.exists()


FOREIGN = ("notes.txt", "notes.npy", "deep/manifest.json", ".hidden.npz.7.tmp", "0000001.npz")


def foreign_survives(root: Path, chosen: random.Random) -> dict[str, object]:
    """Put foreign files in and beside entries, use the cache; True for each kind of harm."""
    entry = build(Store(root), specification_of()).path
    shards = Store(root).shards(specification_of(2))
    shards.make_folder()
    shards.put("part", arrays_of(specification_of(2)))
    hosts = [root, entry, shards.folder, root / "thesis", root / ".x-0123456789abcdef.7.tmp"]
    files = [chosen.choice(hosts) / chosen.choice(FOREIGN) for _ in range(chosen.randrange(1, 6))]
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"foreign %d" % number)
    held = sorted({file.read_bytes() for file in files})
    for use in chosen.choices([cache.verify, cache.ls, lambda: cache.rm("all")], k=4):
        with contextlib.suppress(StorageError):
            use()
        build(Store(root), specification_of(chosen.randrange(1, 3)))
    left = {file.read_bytes() for file in root.rglob("*") if file.is_file()}
    return {"lost": [content for content in held if content not in left]}


@pytest.mark.parametrize("number", range(4))
def test_foreign_files_survive_everything_that_the_cache_does(cache_folder, number):
    assert not any(foreign_survives(cache_folder.root, random.Random(f"near {number}")).values())


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_foreign_files_survive_by_the_hundred(tmp_path, monkeypatch, soak):
    row = soak("foreign")
    for number in row.times(300):
        root = tmp_path / str(number)
        monkeypatch.setenv("HEATLIFT_CACHE", str(root))
        row.look(number, **foreign_survives(root, random.Random(f"{SEED} {number}")))


def test_rm_removes_what_it_is_told_and_nothing_else(cache_folder):
    one, two = build(cache_folder, specification_of(1)), build(cache_folder, specification_of(2))
    with pytest.raises(UsageError, match=r"no entry \.\./secret"):
        cache.rm("../secret")
    cache.rm(one.path.name)
    assert not one.path.exists()
    assert two.path.exists()
    cache.rm("all")
    assert not two.path.exists()
