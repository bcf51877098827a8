from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from pipeline import detections
from pipeline.camera import Camera
from pipeline.datasets import Sequence
from pipeline.detecting import CHUNK, PIECE, Job, person_boxes
from pipeline.detections import detect_jobs, detect_sequences, export, from_file, wanted
from pipeline.errors import DataError
from pipeline.skeleton import COCO17, H36M17, MPII16
from pipeline.store import Store

forked = multiprocessing.get_context("fork")
CAMERA = Camera(
    np.eye(3), np.zeros(3), np.full(2, 200.0), np.full(2, 60.0), (120, 120), np.zeros(5)
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Blobs:
    """Pictures of noise, a pure function of seed and frame."""

    def __init__(self, seed: int, count: int) -> None:
        self.seed, self.count = seed, count

    def __len__(self) -> int:
        return self.count

    def size(self, index: int) -> tuple[int, int]:
        return CAMERA.size

    def crop(self, index, matrix, size):
        numbers = np.random.default_rng((self.seed, index))
        whole = numbers.integers(0, 256, (*CAMERA.size, 3), np.uint8)
        return cv2.warpAffine(whole, matrix, size)

    def fingerprint(self, index: int) -> str:
        return f"blobs {self.seed} {index}"


class Counted(nn.Module):
    """A small network with real convolutions that writes down how many pictures it saw."""

    def __init__(self, seed: int = 0, log: Path | None = None, pause: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(
                *(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU()),
                nn.Conv2d(32, 17, 1),
            )
        self.skeleton, self.input_size, self.padding = H36M17, (48, 64), 1.25
        self.decode, self.flip_test = "quarter", False
        self.log, self.pause = log, pause

    def settings(self):
        return {"decode": self.decode, "flip_test": self.flip_test}

    def detect(self, images):
        if self.log:
            with self.log.open("a") as lines:
                lines.write(f"{len(images)}\n")
        time.sleep(self.pause)
        heatmaps = self.net(images.permute(0, 3, 1, 2).float() / 255)
        score = heatmaps.flatten(2).softmax(-1)
        B, J, H, W = heatmaps.shape
        weight = score.view(B, J, H, W)
        x = (weight.sum(2) * torch.arange(W)).sum(-1)
        y = (weight.sum(3) * torch.arange(H)).sum(-1)
        return 2 * torch.stack([x, y], -1), score.amax(-1)


def sequence(name: str, count: int, seed: int) -> Sequence:
    numbers = np.random.default_rng((seed, 99))
    joints2d = numbers.uniform(20, 100, (count, 17, 2)).astype(np.float32)
    pictures = Blobs(seed, count)
    return Sequence(name, "s", "a", CAMERA, 50.0, H36M17, joints2d=joints2d, pictures=pictures)


def walks() -> list[Sequence]:
    """Odd counts: neither pieces nor chunks nor ranks come out even."""
    lengths = (PIECE - 1, 1, PIECE + CHUNK + 5, 2)
    return [sequence(f"walk {i}", count, i) for i, count in enumerate(lengths)]


def content(store: Store) -> dict[str, bytes]:
    (entry,) = store.root.glob("[!.]*")
    return {file.name: file.read_bytes() for file in sorted(entry.iterdir())}


def seen(log: Path) -> int:
    return len(log.read_text().split()) if log.exists() else 0


def test_a_second_run_asks_the_detector_nothing(tmp_path):
    log, store = tmp_path / "log", Store(tmp_path / "cache")
    first = detect_sequences(walks(), Counted(log=log), "d", store=store)
    calls = seen(log)
    again = detect_sequences(walks(), Counted(log=log), "d", store=store)
    assert seen(log) == calls > 0
    assert isinstance(again.joints2d, np.memmap)
    np.testing.assert_array_equal(first.joints2d, again.joints2d)


def test_detections_are_what_the_detector_finds_brought_back_to_the_picture(tmp_path):
    found = detect_sequences(walks(), Counted(), "d", store=Store(tmp_path))
    one = walks()[2]
    joints2d, score = found.of("walk 2")
    assert joints2d.shape == (len(one), 17, 2)
    x, y, width, height = person_boxes(one)[7]
    shown = max(width, height * 48 / 64) * 1.25
    zoom, middle = 48 / shown, np.array([x + width / 2, y + height / 2])
    matrix = np.array([[zoom, 0, 23.5 - zoom * middle[0]], [0, zoom, 31.5 - zoom * middle[1]]])
    crop = torch.from_numpy(one.pictures.crop(7, matrix, (48, 64)))[None]
    with torch.inference_mode():
        in_crop, by_hand = Counted().detect(crop)
    expected = (in_crop[0].numpy() - [23.5, 31.5]) / zoom + middle
    np.testing.assert_allclose(joints2d[7], expected, atol=0.01)
    np.testing.assert_allclose(score[7], by_hand[0], rtol=1e-4)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (100, 0), (200, 2)])
def test_batch_size_and_workers_change_no_bit_and_no_key(tmp_path, batch_size, workers):
    usual, other = Store(tmp_path / "usual"), Store(tmp_path / "other")
    detect_sequences(walks(), Counted(), "d", store=usual)
    detect_sequences(walks(), Counted(), "d", store=other, batch_size=batch_size, workers=workers)
    assert content(usual) == content(other)


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_make_the_bytes_that_one_makes(tmp_path, processes):
    alone, together, log = Store(tmp_path / "alone"), Store(tmp_path / "together"), tmp_path / "log"
    detect_sequences(walks(), Counted(log=log), "d", store=alone)
    calls = seen(log)
    want = wanted(walks(), Counted(), "d")
    job = Job(walks(), Counted(log=log), want, 64, 0)
    fabric = Fabric(accelerator="cpu", devices=processes, strategy="ddp_fork")
    detect_jobs([job, job], fabric, together)
    assert content(alone) == content(together)
    assert seen(log) == 2 * calls


def test_processes_that_somebody_else_started_come_together_even_on_a_hit(tmp_path):
    store = Store(tmp_path / "cache")
    detect_sequences(walks(), Counted(), "d", store=store)
    job = Job(walks(), Counted(), wanted(walks(), Counted(), "d"), 64, 0)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def process(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "WORLD_SIZE": "2"}
        os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "1"}
        detect_jobs([job], Fabric(accelerator="cpu", devices=2), store)
        os._exit(0)

    ranks = [forked.Process(target=process, args=(rank,)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]


def test_a_killed_run_goes_on_with_the_pieces_that_are_missing(tmp_path):
    whole, store, log = Store(tmp_path / "whole"), Store(tmp_path / "cache"), tmp_path / "log"
    detect_sequences(walks(), Counted(), "d", store=whole)
    slow = Counted(log=log, pause=0.05)
    run = forked.Process(
        target=detect_sequences, args=(walks(), slow, "d"), kwargs={"store": store}
    )
    run.start()
    while seen(log) < 2 * PIECE // CHUNK:
        time.sleep(0.005)
    os.kill(run.pid, signal.SIGKILL)
    run.join(30)
    shards = store.shards(wanted(walks(), Counted(), "d"))
    assert shards.get("0000000")
    log.unlink()
    detect_sequences(walks(), Counted(log=log), "d", store=store)
    pieces = -(-sum(map(len, walks())) // PIECE)
    assert seen(log) <= (pieces - 1) * PIECE // CHUNK
    assert content(store) == content(whole)


def changed(what: str) -> str:
    """Name of the entry after one thing has changed."""
    people, detector, digest, precision = walks(), Counted(), "d", "32-true"
    match what:
        case "pictures":
            people[1] = dataclasses.replace(people[1], pictures=Blobs(7, 1))
        case "boxes":
            people[1] = dataclasses.replace(people[1], joints2d=people[1].joints2d * 1.5)
        case "name":
            people[1] = dataclasses.replace(people[1], name="run")
        case "weights":
            digest = "e"
        case "input size":
            detector.input_size = (64, 64)
        case "padding":
            detector.padding = 1.1
        case "decode":
            detector.decode = "expectation"
        case "flip test":
            detector.flip_test = True
        case "precision":
            precision = "bf16-mixed"
        case "joint set":
            detector.skeleton = COCO17
        case "one frame less":
            people[1] = sequence("walk 1", 2, 1)
        case "less":
            people = people[:-1]
    return wanted(people, detector, digest, precision=precision).name


KEY = ("pictures", "boxes", "name", "weights", "input size", "padding", "decode", "flip test")
KEY = (*KEY, "precision", "joint set", "one frame less", "less")


def test_everything_that_shapes_detections_is_in_their_key(monkeypatch):
    names = [changed(what) for what in ("nothing", *KEY)]
    monkeypatch.setattr(detections, "VERSION", 2)
    names.append(changed("nothing"))
    assert len(set(names)) == len(KEY) + 2


def test_frames_without_a_box_are_missing(tmp_path):
    people = walks()
    people[2].joints2d[5] = np.nan
    people[2].joints2d[6, 3:] = np.nan
    joints2d, score = detect_sequences(people, Counted(), "d", store=Store(tmp_path)).of("walk 2")
    assert np.isnan(joints2d[5]).all()
    assert (score[5] == 0).all()
    assert np.isfinite(np.delete(joints2d, 5, 0)).all()


def test_a_box_is_tight_around_the_projected_joints():
    joints3d = np.zeros((1, 17, 3), np.float32)
    joints3d[0, :, 2] = 4
    joints3d[0, 1] = (0.2, -0.6, 4)
    joints3d[0, 2] = (0, 0.4, -1)  # behind the camera: no picture
    person = Sequence("s", "s", "a", CAMERA, 50.0, H36M17, joints3d=joints3d)
    np.testing.assert_array_equal(person_boxes(person), [[60, 30, 10, 30]])


def test_joints_are_converted_by_name_and_refused_where_they_do_not_fit(tmp_path):
    detector = Counted()
    detector.skeleton = COCO17
    found = detect_sequences(walks(), detector, "d", store=Store(tmp_path))
    own, _ = found.of("walk 2")
    with pytest.raises(DataError, match="no source for head"):
        found.of("walk 2", H36M17)
    joints2d, converted = found.of("walk 2", H36M17, allow_missing=True)
    hips = (own[:, COCO17.index("left_hip")] + own[:, COCO17.index("right_hip")]) / 2
    np.testing.assert_allclose(joints2d[:, H36M17.root], hips, rtol=1e-6)
    assert np.isnan(joints2d[:, H36M17.index("head")]).all()
    assert (converted[:, H36M17.index("head")] == 0).all()
    with pytest.raises(DataError, match="no detections for sequence run"):
        found.of("run")


def test_sequences_without_pictures_joints_or_names_of_their_own_are_refused():
    blind = dataclasses.replace(walks()[0], pictures=None)
    with pytest.raises(DataError, match="walk 0: has no pictures"):
        wanted([blind], Counted(), "d")
    with pytest.raises(DataError, match="walk 0: has no joints"):
        wanted([dataclasses.replace(walks()[0], joints2d=None)], Counted(), "d")
    with pytest.raises(DataError, match="1 pictures and 63 frames"):
        wanted([dataclasses.replace(walks()[0], pictures=Blobs(0, 1))], Counted(), "d")
    with pytest.raises(DataError, match="same name"):
        wanted([walks()[0], walks()[0]], Counted(), "d")


def test_what_is_exported_comes_in_again(tmp_path):
    people = walks()
    people[2].joints2d[5] = np.nan
    found = detect_sequences(people, Counted(), "d", store=Store(tmp_path / "cache"))
    export(found, tmp_path / "detections.npz")
    back = from_file(tmp_path / "detections.npz", people)
    for person in people:
        for one, other in zip(found.of(person.name), back.of(person.name), strict=True):
            np.testing.assert_array_equal(one, other)
    assert back.skeleton == H36M17


def exported(path: Path, **changes) -> Path:
    arrays = {
        "joints2d": np.ones((5, 16, 2), np.float32),
        "score": np.ones((5, 16), np.float32),
        "joints": np.array(MPII16.joints),
        "names": np.array(["a", "b"]),
        "lengths": np.array([2, 3]),
    }
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": None}, "missing array score"),
        ({"joints2d": np.ones((5, 17, 2))}, "do not fit each other"),
        ({"joints2d": np.ones((5, 16, 2), int)}, "joints2d holds int64"),
        ({"joints": np.array(["nose"] * 16)}, "no known joint set"),
        ({"names": np.array(["a"])}, "do not fit each other"),
        ({"lengths": np.array([2, 2])}, "add up to 4, not to 5"),
        ({"lengths": np.array([6, -1])}, "below zero or add up to 5"),
        ({"names": np.array([{}, {}])}, "Object arrays cannot be loaded"),
    ],
)
def test_files_that_are_no_detections_are_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        from_file(exported(tmp_path / "file.npz", **changes), [])


def test_sequences_that_a_file_lacks_are_named(tmp_path):
    file = exported(tmp_path / "file.npz")
    with pytest.raises(DataError, match="sequence walk 1 is missing; the file holds a, b"):
        from_file(file, [sequence("walk 1", 2, 0)])
    with pytest.raises(DataError, match="sequence a has 2 frames, not 3"):
        from_file(file, [sequence("a", 3, 0)])
    assert len(from_file(file, [sequence("b", 2, 0)]).of("b")[0]) == 2


def test_damaged_files_are_refused(tmp_path):
    file = exported(tmp_path / "file.npz")
    whole = bytearray(file.read_bytes())
    whole[300] ^= 1
    file.write_bytes(whole)
    with pytest.raises(DataError, match=r"fails its CRC|is no file of detections"):
        from_file(file, [])
    file.write_bytes(whole[:200])
    with pytest.raises(DataError, match="is no file of detections"):
        from_file(file, [])
    with pytest.raises(DataError, match="is no file of detections"):
        from_file(tmp_path / "missing.npz", [])
