"""The cache of 2D detections: keys, equal bytes in all settings, lost processes and signals."""

from __future__ import annotations

import dataclasses
import importlib
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from pipeline.camera import Camera
from pipeline.detections import cache
from pipeline.detections.build import CPU_BATCH_SIZE, PIECE_SIZE, DetectionJob, person_boxes
from pipeline.detections.cache import (
    cache_specification,
    detect,
    detect_jobs,
    detect_sequences,
    load_or_detect,
)
from pipeline.detections.request import DetectionRequest
from pipeline.errors import DataError, UsageError
from pipeline.files.store import Store
from pipeline.heatmap import HeatmapModule, HRNet
from pipeline.lift.data import LiftDataModule
from pipeline.skeleton import COCO17, H36M17
from pipeline.sources import Sequence
from pipeline.training import console
from pipeline.training.checkpoints import weights_digest

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
    """Noise images, a pure function of seed and frame."""

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


class CountingDetector(nn.Module):
    """A small detector with real convolutions that logs the number of images of each call."""

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
    images = Blobs(seed, count)
    return Sequence(name, "s", "a", CAMERA, 50.0, H36M17, joints2d=joints2d, images=images)


def walks() -> list[Sequence]:
    """Sequences whose lengths are not multiples of piece, batch or number of processes."""
    lengths = (PIECE_SIZE - 1, 1, PIECE_SIZE + CPU_BATCH_SIZE + 5, 2)
    return [sequence(f"walk {i}", count, i) for i, count in enumerate(lengths)]


def content(store: Store) -> dict[str, bytes]:
    (entry,) = store.root.glob("[!.]*")
    return {file.name: file.read_bytes() for file in sorted(entry.iterdir())}


def calls_in(log: Path) -> int:
    return len(log.read_text().split()) if log.exists() else 0


def test_a_second_run_does_not_call_the_detector(tmp_path):
    log, store = tmp_path / "log", Store(tmp_path / "cache")
    first = detect_sequences(walks(), CountingDetector(log=log), "d", store=store)
    calls = calls_in(log)
    again = detect_sequences(walks(), CountingDetector(log=log), "d", store=store)
    assert calls_in(log) == calls > 0
    assert isinstance(again.of("walk 2")[0], np.memmap)
    np.testing.assert_array_equal(first.of("walk 2")[0], again.of("walk 2")[0])


def test_detections_are_the_joints_in_the_crop_mapped_to_the_image(tmp_path):
    found = detect_sequences(walks(), CountingDetector(), "d", store=Store(tmp_path))
    one = walks()[2]
    joints2d, score = found.of("walk 2")
    assert joints2d.shape == (len(one), 17, 2)
    x, y, width, height = person_boxes(one)[7]
    shown = max(width, height * 48 / 64) * 1.25
    zoom, middle = 48 / shown, np.array([x + width / 2, y + height / 2])
    matrix = np.array([[zoom, 0, 23.5 - zoom * middle[0]], [0, zoom, 31.5 - zoom * middle[1]]])
    crop = torch.from_numpy(one.images.crop(7, matrix, (48, 64)))[None]
    with torch.inference_mode():
        in_crop, by_hand = CountingDetector().detect(crop)
    expected = (in_crop[0].numpy() - [23.5, 31.5]) / zoom + middle
    np.testing.assert_allclose(joints2d[7], expected, atol=0.01)
    np.testing.assert_allclose(score[7], by_hand[0], rtol=1e-4)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (100, 0), (200, 2)])
def test_batch_size_and_workers_change_no_bit_and_no_key(tmp_path, batch_size, workers):
    usual, other = Store(tmp_path / "usual"), Store(tmp_path / "other")
    detect_sequences(walks(), CountingDetector(), "d", store=usual)
    detect_sequences(
        walks(), CountingDetector(), "d", store=other, batch_size=batch_size, workers=workers
    )
    assert content(usual) == content(other)


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_make_the_same_bytes_as_one(tmp_path, processes):
    alone, together, log = Store(tmp_path / "alone"), Store(tmp_path / "together"), tmp_path / "log"
    detect_sequences(walks(), CountingDetector(log=log), "d", store=alone)
    calls = calls_in(log)
    specification = cache_specification(walks(), CountingDetector(), "d")
    job = DetectionJob(walks(), CountingDetector(log=log), specification, 64, 0)
    fabric = Fabric(accelerator="cpu", devices=processes, strategy="ddp_fork")
    detect_jobs([job, job], fabric, together)
    assert content(alone) == content(together)
    assert calls_in(log) == 2 * calls


def test_processes_started_by_another_program_meet_even_if_no_entry_is_missing(tmp_path):
    store = Store(tmp_path / "cache")
    detect_sequences(walks(), CountingDetector(), "d", store=store)
    job = DetectionJob(
        walks(), CountingDetector(), cache_specification(walks(), CountingDetector(), "d"), 64, 0
    )

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


def test_a_killed_run_resumes_with_the_missing_pieces(tmp_path):
    whole, store, log = Store(tmp_path / "whole"), Store(tmp_path / "cache"), tmp_path / "log"
    detect_sequences(walks(), CountingDetector(), "d", store=whole)
    slow = CountingDetector(log=log, pause=0.05)
    run = forked.Process(
        target=detect_sequences, args=(walks(), slow, "d"), kwargs={"store": store}
    )
    run.start()
    while calls_in(log) < 2 * PIECE_SIZE // CPU_BATCH_SIZE:
        time.sleep(0.005)
    os.kill(run.pid, signal.SIGKILL)
    run.join(30)
    shards = store.shards(cache_specification(walks(), CountingDetector(), "d"))
    assert shards.get("0000000")
    log.unlink()
    detect_sequences(walks(), CountingDetector(log=log), "d", store=store)
    pieces = -(-sum(map(len, walks())) // PIECE_SIZE)
    assert calls_in(log) <= (pieces - 1) * PIECE_SIZE // CPU_BATCH_SIZE
    assert content(store) == content(whole)


def changed(what: str) -> str:
    """Name of the entry after one thing has changed."""
    people, detector, digest, precision = walks(), CountingDetector(), "d", "32-true"
    match what:
        case "images":
            people[1] = dataclasses.replace(people[1], images=Blobs(7, 1))
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
    return cache_specification(people, detector, digest, precision=precision).name


KEY = ("images", "boxes", "name", "weights", "input size", "padding", "decode", "flip test")
KEY = (*KEY, "precision", "joint set", "one frame less", "less")


def test_everything_that_affects_detections_is_in_their_key(monkeypatch):
    names = [changed(what) for what in ("nothing", *KEY)]
    monkeypatch.setattr(cache, "VERSION", 2)
    names.append(changed("nothing"))
    assert len(set(names)) == len(KEY) + 2


def test_the_name_of_an_entry_stays_the_same():
    """With another name, every detection in every cache would be made again."""
    assert changed("nothing") == "detections-df95f4c5203b3f08"


def test_frames_without_a_box_are_missing(tmp_path):
    people = walks()
    people[2].joints2d[5] = np.nan
    people[2].joints2d[6, 3:] = np.nan
    joints2d, score = detect_sequences(people, CountingDetector(), "d", store=Store(tmp_path)).of(
        "walk 2"
    )
    assert np.isnan(joints2d[5]).all()
    assert (score[5] == 0).all()
    assert np.isfinite(np.delete(joints2d, 5, 0)).all()


def test_a_box_is_tight_around_the_projected_joints():
    joints3d = np.zeros((1, 17, 3), np.float32)
    joints3d[0, :, 2] = 4
    joints3d[0, 1] = (0.2, -0.6, 4)
    joints3d[0, 2] = (0, 0.4, -1)  # behind the camera: no image
    person = Sequence("s", "s", "a", CAMERA, 50.0, H36M17, joints3d=joints3d)
    np.testing.assert_array_equal(person_boxes(person), [[60, 30, 10, 30]])


def test_joints_are_converted_by_name_or_raise_an_error(tmp_path):
    detector = CountingDetector()
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


def test_sequences_without_images_joints_or_unique_names_raise_an_error():
    blind = dataclasses.replace(walks()[0], images=None)
    with pytest.raises(DataError, match="walk 0: has no images"):
        cache_specification([blind], CountingDetector(), "d")
    with pytest.raises(DataError, match="walk 0: has no joints"):
        cache_specification(
            [dataclasses.replace(walks()[0], joints2d=None)], CountingDetector(), "d"
        )
    with pytest.raises(DataError, match="1 images and 63 frames"):
        cache_specification(
            [dataclasses.replace(walks()[0], images=Blobs(0, 1))], CountingDetector(), "d"
        )
    with pytest.raises(DataError, match="same name"):
        cache_specification([walks()[0], walks()[0]], CountingDetector(), "d")


class Walks:
    """A data source of the walks."""

    skeleton = H36M17

    def __init__(self, folder: str, people: tuple[int, ...] = (1,)) -> None:
        self.folder, self.people = folder, people

    def sequences(self, split):
        return walks() if split == "test" else [sequence(split, 3, 5)]

    def describe(self) -> str:
        return "walks"


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A checkpoint of the heatmap stage as the command line writes it, and an empty cache."""
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's use of it
    net = {"width": 8, "stem": 8, "planes": 8, "blocks": 1, "modules": [1, 1, 1]}
    torch.manual_seed(0)
    module = HeatmapModule(HRNet(**net), input_size=(32, 32))
    arguments = {
        "net": {"class_path": "pipeline.heatmap.HRNet", "init_args": net},
        "input_size": [32, 32],
        "flip_test": True,
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    }
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": arguments,
        "pytorch-lightning_version": "2.6.6",
        "heatlift": {"stage": "heatmap", "format": 1, "processes": 1, "origin": {}},
    }
    torch.save(content, tmp_path / "detector.ckpt")
    return str(tmp_path / "detector.ckpt")


def test_training_makes_few_detections_itself_and_finds_those_of_the_command(trained, tmp_path):
    detections = load_or_detect(Walks("a"), DetectionRequest.parse(str(trained)), "test")
    entry = content(Store(tmp_path / "cache"))
    assert detections.of("walk 2")[0].shape == (PIECE_SIZE + CPU_BATCH_SIZE + 5, 17, 2)
    detect(Walks("b"), trained, "test", accelerator="cpu", batch_size=7)
    assert content(Store(tmp_path / "cache")) == entry


def test_training_uses_detections_of_another_precision_if_it_is_told(trained, monkeypatch):
    def refuse(*_):
        raise AssertionError("made detections that the cache has")

    detect(Walks("a"), trained, "test", accelerator="cpu", precision="bf16-mixed")
    monkeypatch.setattr(cache, "run_jobs_on_rank_zero", refuse)
    data = LiftDataModule(Walks("a"), trained, detector_precision="bf16-mixed")
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn="test"))
    data.prepare_data()
    other = LiftDataModule(Walks("a"), trained)
    other.trainer = data.trainer
    with pytest.raises(AssertionError, match="made detections"):
        other.prepare_data()


def test_norms_are_folded_and_the_key_tells_it(trained, tmp_path):
    as_trained = cache.load_detector(trained)
    found = load_or_detect(Walks("a"), DetectionRequest.parse(trained), "test")
    digest = weights_digest(as_trained)
    same = detect_sequences(walks(), as_trained, digest, store=Store(tmp_path / "as trained"))
    for one in walks():
        np.testing.assert_allclose(found.of(one.name)[0], same.of(one.name)[0], atol=1e-3)
        np.testing.assert_allclose(found.of(one.name)[1], same.of(one.name)[1], atol=1e-6)
    (path,) = (tmp_path / "cache").glob("walks-test-*")
    key = json.loads((path / "manifest.json").read_text())["key"]
    assert key["detector"] == digest
    assert key["settings"] == {**as_trained.settings(), "norms": "folded"}


OWN = """import torch

class Scaled(torch.nn.Module):
    def __init__(self, gain: float = 1.0):
        super().__init__()
        self.gain, self.weight = gain, torch.nn.Parameter(torch.ones(17, 3, 1, 1))

    def forward(self, images):
        return self.gain * torch.nn.functional.conv2d(images[..., ::4, ::4], self.weight)
"""


def test_the_key_of_an_own_network_has_its_arguments_and_its_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path, settings = tmp_path / "own.ckpt", []
    for number, (gain, code) in enumerate([(1.0, OWN), (-1.0, OWN), (1.0, OWN + "\n")]):
        name = f"scaled{number}"  # a module is imported once
        (tmp_path / f"{name}.py").write_text(code)
        network = importlib.import_module(name).Scaled(gain)
        module = HeatmapModule(network, input_size=(64, 64))
        net = {"class_path": "own.Scaled", "init_args": {"gain": gain}}
        content = {"state_dict": module.state_dict(), "hyper_parameters": {"net": net}}
        torch.save(content | {"pytorch-lightning_version": "2.5"}, path)
        monkeypatch.setattr(cache.checkpoints, "load_module", lambda *_, module=module: module)
        detector = cache.load_detector(path)
        settings.append(cache_specification(walks(), detector, "the same weights").key)
    assert settings[0]["network"]["net"]["init_args"] == {"gain": 1.0}
    assert len({json.dumps(one, sort_keys=True) for one in settings}) == 3


def test_training_does_not_make_many_detections_but_prints_the_command(trained):
    with pytest.raises(UsageError, match="151 images are more than 100") as caught:
        load_or_detect(
            Walks("a b", (3, 4)), DetectionRequest.parse(str(trained)), "test", limit=100
        )
    line = str(caught.value).partition("first run: ")[2]
    name = f"--source={Walks.__module__}.Walks"
    words = ["heatlift", "detect", name, "--source.folder=a b", "--source.people=[3, 4]"]
    assert shlex.split(line) == [*words, f"--detector={trained}", "--split=test"]
    detect(Walks("a b", (3, 4)), trained, "test", accelerator="cpu")
    assert load_or_detect(
        Walks("a b", (3, 4)), DetectionRequest.parse(str(trained)), "test", limit=100
    ).of("walk 1")


def test_the_command_makes_all_splits_on_several_processes(trained, tmp_path, capsys):
    detect(Walks("a"), trained, devices=2, accelerator="cpu", strategy="ddp_fork")
    entries = sorted(path.name.split("-")[1] for path in (tmp_path / "cache").glob("walks-*"))
    assert entries == ["test", "train", "val"]
    assert "walks-test" in capsys.readouterr().err


def test_one_process_of_many_makes_all_pieces_alone(trained, tmp_path):
    load_or_detect(Walks("a"), DetectionRequest.parse(str(trained)), "test")
    alone = content(Store(tmp_path / "cache"))
    shutil.rmtree(tmp_path / "cache")

    def prepare(fabric: Fabric) -> None:
        if fabric.global_rank == 0:
            load_or_detect(Walks("a"), DetectionRequest.parse(str(trained)), "test")
        fabric.barrier()
        assert load_or_detect(Walks("a"), DetectionRequest.parse(str(trained)), "test", limit=0).of(
            "walk 1"
        )

    Fabric(accelerator="cpu", devices=2, strategy="ddp_fork").launch(prepare)
    assert content(Store(tmp_path / "cache")) == alone


def test_the_number_of_threads_changes_no_bit(trained, tmp_path):
    load_or_detect(Walks("a"), DetectionRequest.parse(str(trained)), "test")
    alone = content(Store(tmp_path / "cache"))
    shutil.rmtree(tmp_path / "cache")
    torch.set_num_threads(2)
    load_or_detect(Walks("a"), DetectionRequest.parse(str(trained)), "test")
    assert content(Store(tmp_path / "cache")) == alone


def test_a_long_run_prints_the_remaining_time(tmp_path, capsys, monkeypatch):
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    with console.count_progress("walks", 100, "images") as advance:
        advance(10)
        advance(90)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "walks: 10 of 100 images, about 3 min left"
    assert last == "walks: 100 of 100 images, about 0 s left"


def test_a_terminal_shows_a_progress_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with console.count_progress("walks", 100, "images") as advance:
        advance(100)
    shown = capsys.readouterr().err
    assert "walks" in shown
    assert "100/100" in shown


FAULTY = '''
import os, signal, sys, time
import cv2, numpy as np
from pipeline.camera import Camera
from pipeline.sources import Sequence, Split
from pipeline.errors import DataError
from pipeline.skeleton import H36M17

CAMERA = Camera(
    np.eye(3), np.zeros(3), np.full(2, 200.0), np.full(2, 60.0), (120, 120), np.zeros(5)
)

class Images:
    def __len__(self):
        return 300

    def size(self, index):
        return CAMERA.size

    def fingerprint(self, index):
        return str(index)

    def crop(self, index, matrix, size):
        act, rank = os.environ.get("ACT", ""), os.environ.get("LOCAL_RANK", "0")
        if index >= 128 and rank == os.environ.get("ACT_RANK", rank) and act:
            sys.stdout.write("HERE\\n")
            sys.stdout.flush()
            if act == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if act == "raise":
                raise DataError("walk/7.png: is no image; mend it")
            while act == "hang":
                time.sleep(1)
        image = np.random.default_rng(index).integers(0, 256, (120, 120, 3), np.uint8)
        return cv2.warpAffine(image, matrix, size)

class Faulty:
    """A data source whose images fail from the third piece on."""

    skeleton = H36M17

    def sequences(self, split: Split) -> list[Sequence]:
        joints2d = np.random.default_rng(0).uniform(20, 100, (300, 17, 2)).astype(np.float32)
        images = Images()
        return [
            Sequence("w", "s", "a", CAMERA, 50.0, H36M17, joints2d=joints2d, images=images)
        ]

    def describe(self) -> str:
        return "faulty"
'''


@pytest.fixture
def command(trained, heatlift, tmp_path):
    """Start `heatlift detect` on images that fail."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    words = ("detect", "--import", "faulty.py", "--source=faulty.Faulty", "--split=test")
    words += (f"--detector={trained}", "--accelerator=cpu")
    return lambda *more, **env: heatlift(*words, *more, env=env)


def last(child) -> str:
    """The only error line."""
    (line,) = [line for line in child.stderr.splitlines() if line.startswith("heatlift: error:")]
    assert "Traceback" not in child.stderr
    assert child.stderr.splitlines()[-1] == line
    return line


def test_a_killed_worker_ends_with_6_and_the_same_command_resumes(command, tmp_path):
    child = command("--workers=1", ACT="die")
    assert child.wait(120) == 6
    assert "a DataLoader worker was killed (out of memory?)" in last(child)
    assert "--workers 0; finished pieces are kept" in last(child)
    assert "--data." not in last(child)
    child = command("--workers=1")
    assert child.wait(120) == 0
    broken = content(Store(tmp_path / "cache"))
    shutil.rmtree(tmp_path / "cache")
    assert command().wait(120) == 0
    assert content(Store(tmp_path / "cache")) == broken


def test_a_bad_image_in_a_worker_is_one_line(command):
    child = command("--workers=1", ACT="raise")
    assert child.wait(120) == 4
    assert last(child) == "heatlift: error: walk/7.png: is no image; mend it"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_and_its_stuck_workers(command, number, workers):
    child = command(f"--workers={workers}", ACT="hang")
    child.wait_for("HERE")
    if number == signal.SIGINT:
        os.killpg(child.process.pid, number)  # as a terminal does
    else:
        child.send(number)
    assert child.wait(20) == 128 + number
    assert last(child) == (
        f"heatlift: error: stopped by {number.name}; finished pieces are kept; "
        "the same command goes on from there"
    )
    assert child.orphans() == []


class Stuck(Blobs):
    """Images that never load; the process that waits for one writes its id to a file."""

    def crop(self, index, matrix, size):
        self.note.with_suffix(".part").write_text(f"{os.getpid()}")
        self.note.with_suffix(".part").rename(self.note)
        time.sleep(600)


def test_a_stuck_worker_does_not_outlive_a_killed_command(tmp_path):
    stuck = sequence("walk", 3, 0)
    images = Stuck(0, 3)
    images.note = tmp_path / "process"
    stuck = dataclasses.replace(stuck, images=images)
    settings = {"store": Store(tmp_path / "cache"), "workers": 1, "accelerator": "cpu"}
    run = forked.Process(
        target=detect_sequences, args=([stuck], CountingDetector(), "d"), kwargs=settings
    )
    run.start()
    end = time.monotonic() + 60
    while not images.note.exists() and time.monotonic() < end:
        time.sleep(0.01)
    worker = Path("/proc", images.note.read_text(), "stat")
    run.kill()
    run.join(10)
    end = time.monotonic() + 5
    while worker.exists() and " Z " not in worker.read_text() and time.monotonic() < end:
        time.sleep(0.01)
    assert not worker.exists() or " Z " in worker.read_text()


def test_a_killed_process_of_two_is_named_and_the_same_command_resumes(command, tmp_path):
    assert command().wait(120) == 0
    alone = content(Store(tmp_path / "cache"))
    shutil.rmtree(tmp_path / "cache")
    child = command("--devices=2", ACT="die", ACT_RANK="1")
    assert child.wait(120) == 6
    assert "process 1 died by signal 9, SIGKILL" in last(child)
    assert child.orphans() == []
    assert command("--devices=2").wait(120) == 0
    assert content(Store(tmp_path / "cache")) == alone


def test_a_signal_ends_all_processes_of_two(command):
    child = command("--devices=2", ACT="hang", ACT_RANK="1")
    child.wait_for("HERE")
    child.send(signal.SIGTERM)
    assert child.wait(15) == 143
    assert "stopped by SIGTERM; finished pieces are kept" in last(child)
    assert child.orphans() == []
