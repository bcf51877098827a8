"""Every random number of the package is independent of all others that the same sample draws."""

import ast
import inspect
import random
import re
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline import camera, rng
from pipeline.heatmap import crop
from pipeline.heatmap.crop import Augmentation, augment_images, augmented_matrices
from pipeline.integral.data import HalfWithDepthBatches
from pipeline.lift import any_video, corruption
from pipeline.lift.windows import sample_mirrored
from pipeline.mocap import synthetic
from pipeline.mocap.bodies import sample_bone_lengths
from pipeline.mocap.figure import sample_appearance
from pipeline.mocap.motion_capture import _render
from pipeline.skeleton import COCO17, H36M17
from pipeline.sources import Sequence
from pipeline.training.callbacks import SeedEveryBatch
from pipeline.training.loader import SeededSampler

PACKAGE = Path(rng.__file__).parent
DISTRIBUTIONS = ("random_bits", "uniform", "normal", "make_generator", "derive_seed")
MANY, FEW, LANES = 6000, 300, 7
INDEX = np.arange(MANY)
POSE = synthetic.make_motion(0, "S1", "walk", 2)
CAMERA = camera.ring_of_cameras(0, joints3d=POSE)[0]
ONCE = {("make_generator", "noise")}
"""Draws that a process makes once, for all samples."""


class Recorder:
    """Draws by distribution and names in their key, and the lines of code that asked for them."""

    def __init__(self) -> None:
        self.rows, self.places = defaultdict(list), set()

    def wrap(self, distribution):
        draw = getattr(rng, distribution)

        def recorded(*key, **arguments):
            drawn = draw(*key, **arguments)
            names = [k for k in key if isinstance(k, str) and not re.search(r"\d", k)]
            values = draw(*key).random(LANES) if distribution == "make_generator" else drawn
            frame = inspect.currentframe().f_back
            place = (frame.f_code.co_filename, frame.f_lineno)
            self.places.add(place)
            if (distribution, *names) not in ONCE and place[0] != rng.__file__:
                name = f"{distribution} {' '.join(names)} ({Path(place[0]).name}:{place[1]})"
                one_per_sample = np.ndim(values) == 2 and len(values) == MANY
                rows = values if one_per_sample else np.reshape(values, (1, -1))
                self.rows[name].append(rows[:, :LANES])
            return drawn

        return recorded

    def columns(self):
        """Name of a draw -> its first lanes as floats, (samples, lanes)."""
        return {name: np.concatenate(rows).astype(float) for name, rows in self.rows.items()}


@contextmanager
def record():
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        for distribution in DISTRIBUTIONS:
            patch.setattr(rng, distribution, recorder.wrap(distribution))
        yield recorder


def draw_crops():
    joints2d = np.random.default_rng(0).uniform(0, 60, (MANY, 17, 2))
    labelled = np.ones((MANY, 17), bool)
    boxes = np.tile([3.0, 5, 40, 60], (MANY, 1))
    augmented_matrices(
        boxes, joints2d, labelled, (12, 16), skeleton=COCO17, augmentation=Augmentation(),
        padding=1.25, key=(0, 0, INDEX),
    )  # fmt: skip
    varied = Augmentation(patches=0.5, colour=0.3, noise=4)
    images = np.zeros((MANY, 4, 4, 3), np.uint8)
    augment_images(images, augmentation=varied, key=(0, 0, INDEX))


def draw_corruption():
    corruption.sample_pretraining_noise(3, 0, 0, INDEX)
    corruption.sample_pretraining_masks(3, 17, 0, 0, INDEX)
    visible = np.ones((MANY, 3, 17), bool)
    corruption.hide_joints(visible, 0.2, 0, 0, INDEX)
    corruption.drop_frames(visible, 0.2, 0, 0, INDEX)
    for i in range(FEW):
        corruption.add_detection_noise(POSE[..., :2], 50, 0, f"sequence {i}")


def draw_cameras():
    camera.random_cameras(np.tile(POSE[:1], (MANY, 1, 1, 1)), 0, 0, INDEX)
    for i in range(FEW):
        camera.ring_of_cameras(0, f"sequence {i}", joints3d=POSE)


def draw_loading():
    for epoch in range(FEW):
        batches = SeededSampler(4, 2, seed=0, shuffle=True)
        batches.epoch = epoch
        list(batches)
        trainer = SimpleNamespace(current_epoch=epoch, global_rank=0)
        SeedEveryBatch(0).on_train_batch_start(
            trainer, SimpleNamespace(device=torch.device("cpu")), None, 0
        )
        crops = SimpleNamespace(has_depth=lambda: np.array([True, False, True]))
        halves = HalfWithDepthBatches(crops, seed=0)
        halves.crops = {}
        with pytest.raises(TypeError):  # the draws are made; there is nothing to cut
            halves[(epoch, np.array([0]))]
    sample_mirrored(0, 0, INDEX)


def draw_people():
    for i in range(FEW):
        sample_bone_lengths(0, f"{i}")
        sample_appearance(i)
        synthetic.make_body(0, f"sequence {i}")
        synthetic.make_motion(0, f"sequence {i}", "walk", 2)
    source = synthetic.Synthetic(1, 1, 1, actions=("walk",), seconds=0.1, images=MANY)
    images = source.samples("train").images
    matrix = np.array([[0.01, 0, 0], [0, 0.01, 0]])
    recording = SimpleNamespace(name="x")
    for i in range(FEW):
        images.background_seeds[i] = i
        images.crop(i, matrix, (8, 8))
        synthetic.Synthetic(1, 1, 1, actions=("walk",), seconds=0.1, seed=i).sequences("test")
        _render(recording, 0, POSE, CAMERA, SimpleNamespace(seed=i, skeleton=H36M17))


def draw_videos():
    world = np.tile(POSE[:1], (10, 1, 1))
    for i in range(FEW):
        moving = Sequence(
            f"sequence {i}", subject="", action="", camera=CAMERA, fps=25.0, skeleton=H36M17,
            joints3d=world,
        )  # fmt: skip
        any_video.AnyVideo(bodies=False, clean=1.0).record(moving, 0, 0)


SAMPLERS = (draw_videos, draw_crops, draw_corruption, draw_cameras, draw_loading, draw_people)


@pytest.fixture(scope="module")
def recorder():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    crop._noise_bank.cache_clear()
    sample_appearance.cache_clear()
    synthetic.make_motion.cache_clear()
    with record() as recorder:
        for sampler in SAMPLERS:
            sampler()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    return recorder


def calls():
    """Calls of `pipeline.rng` in the package: file, first line, last line."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("rng."):
                yield str(file), node.lineno, node.end_lineno


def standard_scores(columns):
    """Correlations of all pairs of columns in standard errors: name -> matrix."""
    names = sorted(columns)
    for i, first in enumerate(names):
        for second in names[i:]:
            a, b = columns[first], columns[second]
            count = min(len(a), len(b))
            a, b = ((x[:count] - x[:count].mean(0)) / x[:count].std(0) for x in (a, b))
            scores = a.T @ b / count**0.5
            if first == second:
                scores = scores[np.triu_indices(len(scores), 1)]
            yield f"{first} and {second}", np.abs(scores).ravel()


def test_every_call_for_random_numbers_is_measured(recorder):
    missing = [
        f"{Path(file).relative_to(PACKAGE)}:{first}"
        for file, first, last in calls()
        if not any(place[0] == file and first <= place[1] <= last for place in recorder.places)
    ]
    assert not missing, "call these samplers in SAMPLERS"


def test_random_numbers_come_from_rng_alone():
    allowed = {"rng.py", "training/callbacks.py", "files/foreign_torch.py"}
    own = [
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node).startswith(("np.random.", "torch.rand", "random.", "torch.manual_s"))
        and not ast.unparse(node).startswith(("np.random.Generator", "torch.random"))
        and isinstance(node.value, ast.Name | ast.Attribute)
    ]
    # There `random` is a generator of rng, or `generator=` one of torch with its own seed.
    allowed |= {"lift/corruption.py", "lift/any_video.py", "lift/detector_noise.py"}
    assert set(own) <= allowed | {"weights/onnx_export.py"}


@pytest.mark.parametrize("form", [lambda x: x, lambda x: abs(x - x.mean(0))], ids=["value", "size"])
def test_all_pairs_of_draws_of_a_sample_are_uncorrelated(recorder, form):
    columns = {name: form(rows) for name, rows in recorder.columns().items()}
    assert min(map(len, columns.values())) >= FEW
    scores = dict(standard_scores(columns))
    largest = max(scores, key=lambda name: scores[name].max(initial=0))
    together = np.concatenate(list(scores.values()))
    assert len(together) > 10_000
    assert scores[largest].max() < 5.5, largest
    assert (together > 3).mean() < 0.005  # 0.0027 by chance


def test_the_draws_of_crops_are_below_three_standard_errors(recorder):
    columns = {name: rows for name, rows in recorder.columns().items() if " crop " in name}
    assert len(columns) == 2  # uniform and normal
    for form in (lambda x: x, lambda x: abs(x - x.mean(0))):
        scores = standard_scores({name: form(rows) for name, rows in columns.items()})
        assert max(values.max() for _, values in scores) < 3


def test_draws_have_the_quantiles_of_their_distribution(recorder):
    levels = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    normal = np.array([-1.6449, -0.6745, 0, 0.6745, 1.6449])
    density = np.exp(-(normal**2) / 2) / (2 * np.pi) ** 0.5
    for name, rows in recorder.columns().items():
        kind = name.split()[0]
        scale = {"random_bits": 2.0**64, "derive_seed": 2.0**63}.get(kind, 1.0)
        low, high = rows.min(), rows.max()
        if kind == "uniform" and (low < 0 or high > 1):  # drawn in another range
            scale, rows = np.round(high - low, 1), rows - np.round(low, 1)
        found = np.quantile(rows / scale, levels, axis=0).T
        expected = normal if kind == "normal" else levels
        spread = np.sqrt(levels * (1 - levels) / len(rows)) / (density if kind == "normal" else 1)
        assert (abs(found - expected) < 4.5 * spread).all(), name
