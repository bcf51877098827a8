"""Every block of README.md and docs/*.md is run in a copy of the checkout, from top to bottom.

A page is one session: bash blocks run in bash, Python blocks in Python, and a block that begins
with the name of a file becomes that file. Trainings are cut to two batches by the `heatlift` of the
copy (`CUTS`). What is not run has its reason in `pages.NOT_RUN`; `test_readme.py` has the
arguments of `heatlift` and `make` parsed. A `text` block must have been printed by the block before
it, but for its numbers. Three stand-ins: `people.onnx` for BlazePose, whose weights need a network;
exact 2D in `heatlift chain`, where a 2D stage would be trained; fewer people in `data/synthetic`.
"""

from __future__ import annotations

import collections
import doctest
import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import fabricate
import numpy as np
import onnx_files
import pytest
from pages import NOT_RUN, PAGES, ROOT, anchors, read_blocks, reason_not_run
from runs import COMMANDS

from pipeline.camera import project, world_to_camera
from pipeline.mocap.synthetic import Synthetic
from pipeline.skeleton import COCO17, H36M17

CUTS = {
    "fit": (
        *("--trainer.limit_train_batches", "20", "--trainer.max_epochs", "1"),
        *("--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1"),
        *("--data.batch_size", "2"),
    ),
    "test": ("--trainer.limit_test_batches", "1"),
    "predict": ("--trainer.limit_predict_batches", "1"),
}
"""Lightning's command -> options that cut it short; after fewer steps a lifter has people behind
the camera, whom `heatlift predict` leaves out."""

FEWER = [
    f"--data.source.init_args.{name}={value}"
    for name, value in {"train": 2, "val": 1, "test": 1, "seconds": 2.0}.items()
]
"""Options of the embedded people: fewer and shorter."""

HEATLIFT = """#!{python}
import shlex, sys

CUTS, FEWER = {cuts!r}, {fewer!r}

def shortened(words):
    if words[1:2] and words[1] in CUTS:
        fewer = FEWER if "data/synthetic" in words else ()
        return [*words, *CUTS[words[1]], *fewer]
    if words[:1] == ["chain"]:  # 2D of the many embedded people would take an hour
        exact = ["--detections", "exact"] * ("newest" in words)
        also = next((word for word in words if word.startswith("--also=")), "--also=")
        return [*words, *exact, also + " " + shlex.join(CUTS["fit"])]
    if words[:1] == ["predict"]:  # BlazePose's weights need a network
        lifter = ["--lifter", "best.ckpt"] * ("--lifter" not in words)
        return [*words, *lifter, *["--estimator", "people.onnx"] * ("--estimator" not in words)]
    return words

if __name__ == "__main__":
    from pipeline.__main__ import main

    sys.exit(main(shortened(sys.argv[1:])))
"""
"""The program `heatlift` of the copy."""

FROM_H36M17 = [H36M17.joints.index(n) if n in H36M17.joints else 9 for n in COCO17.joints]
"""Index of each joint of COCO17 in H36M17; the nose stands for eyes and ears."""

PREAMBLE = """
import functools
from pipeline import Heatlift
Heatlift.load = functools.partial(Heatlift.load, estimator="people.onnx")
"""
"""What runs before each Python block: BlazePose's weights need a network."""


# ---- the blocks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_stand_in_blocks_that_are_run(page):
    """A block of another language may begin no line with one of our programs."""
    for block in read_blocks(page):
        if block.language not in ("bash", "python"):
            commands = re.findall(
                r"^(?:\.venv/bin/)?(?:heatlift|make|torchrun) .*", block.text, re.MULTILINE
            )
            assert not commands, f"{page.name}:{block.line}: write ```bash for {commands}"


def test_every_command_is_run_or_has_a_reason(record_property):
    counts: collections.Counter = collections.Counter()
    for page in PAGES:
        for block in read_blocks(page):
            counts.update(reason_not_run(command) or "run" for command in block.commands)
    for reason, count in counts.items():
        record_property(reason, count)
    assert counts["run"] > 2 * (counts.total() - counts["run"])


SESSIONS = [
    pytest.param(page, id=page.name)
    for page in PAGES
    if any(block.text.startswith(">>>") for block in read_blocks(page))
]


@pytest.mark.parametrize("page", SESSIONS)
def test_sessions_of_python_print_what_the_page_shows(page):
    names = {}  # the blocks of a page are one session
    for block in read_blocks(page):
        if block.text.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(block.text, {}, page.name, None, block.line)
            test.globs = names
            assert test.examples
            failed = doctest.DocTestRunner().run(test, clear_globs=False).failed
            assert failed == 0, f"{page.name}:{block.line}"


# ---- pages as sessions ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lifter(heatlift_in, tmp_path_factory):
    """A checkpoint of a tiny lifter."""
    folder = tmp_path_factory.mktemp("lifter")
    child = heatlift_in(folder)(*COMMANDS["lift"], "--trainer.max_epochs", "1")
    assert child.wait() == 0, child.stderr
    return folder / "runs/lift/lift/checkpoints/best.ckpt"


@pytest.fixture
def copy(tmp_path):
    """A copy of the checkout with a `heatlift` that cuts trainings short."""
    folder = tmp_path / "heatlift"
    left_out = shutil.ignore_patterns(".*", "runs", "cache", "wandb", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, folder, ignore=left_out, symlinks=True)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "heatlift").write_text(
        HEATLIFT.format(python=sys.executable, cuts=CUTS, fewer=FEWER)
    )
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "torchrun").write_text(
        f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    (folder / ".venv" / ".installed").touch()
    return folder


def write_video(video, estimator):
    """A rendered person as a video of 160 x 160, and an ONNX file that finds them in frame 0."""
    person = Synthetic(1, 1, 1, actions=("wave",), seconds=2.0).sequences("test")[0]
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"mp4v"), 25.0, (160, 160))
    smaller = np.array([[0.16, 0, 0], [0, 0.16, 0]])
    for frame in range(0, 40, 2):
        writer.write(person.images.crop(frame, smaller, (160, 160))[..., ::-1])
    writer.release()
    joints2d = 0.64 * seen_joints(person)[0]  # the input of RTMO is 640 x 640
    box = [*joints2d.min(axis=0) - 20, *joints2d.max(axis=0) + 20, 0.9]
    joints = np.c_[joints2d[FROM_H36M17], np.full(17, 0.9)]
    onnx_files.constants_of(estimator, {"dets": [[box]], "keypoints": joints[None, None]})


def seen_joints(person):
    """Joints of a person in pixels of an image of 1000 x 1000, H36M17, (T, 17, 2)."""
    return project(world_to_camera(person.joints3d, person.camera), person.camera)


def write_recordings(folder):
    """Recordings of three people as npz files of positions in metres, with the names of Mixamo."""
    names = {"thorax": "neck", "head": "HeadEnd", "nose": "Head"}
    joints = [names.get(name, "J_" + name.replace("_", "").replace("wrist", "hand"))
              for name in H36M17.joints]  # fmt: skip
    arrays = folder.parent / "arrays"
    folder.mkdir()
    arrays.mkdir(exist_ok=True)
    for name, seed in (("dance", 1), ("kick", 2), ("walk", 3)):
        action = "walk" if name == "walk" else "kick"
        person = Synthetic(1, 1, 1, actions=(action,), seconds=3.0, seed=seed).sequences("train")[0]
        np.savez(folder / name, positions=person.joints3d, joints=joints, fps=50.0)
        np.save(arrays / name, person.joints3d)


def write_joints(path):
    """2D joints of one person in 40 frames, as AlphaPose writes them."""
    joints2d = seen_joints(Synthetic(1, 1, 1, actions=("wave",), seconds=2.0).sequences("test")[0])
    people = [
        {
            "image_id": f"{frame}.jpg",
            "keypoints": np.c_[joints2d[frame, FROM_H36M17], np.full(17, 0.9)].ravel().tolist(),
            "score": 0.9,
        }
        for frame in range(40)
    ]
    path.write_text(json.dumps(people))


def prepare(folder, lifter):
    """Write the files that the pages name: a reader has their own."""
    shutil.copy(lifter, folder / "best.ckpt")
    write_video(folder / "clip.mp4", folder / "people.onnx")
    write_recordings(folder / "own")
    write_joints(folder / "alphapose.json")
    fabricate.human36m(folder / "human36m")
    fabricate.coco(folder / "photos")
    for given, names in (
        (fabricate.amass(folder / "am"), ("RECORDING.npz", "MODEL.npz")),
        (fabricate.acclaim(folder / "ac"), ("SKELETON.asf", "RECORDING.amc")),
    ):
        for path, name in zip(given, names, strict=True):
            path.rename(folder / name)
    shutil.copytree(folder / "human36m", folder / "folder")
    (folder / "my_lifter.py").write_text(
        "from pipeline.lift import Martinez\n\n\nclass MyLifter(Martinez):\n    pass\n"
    )


def run(folder, *command):
    """Run a program in a copy of the checkout; return what it printed."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "PYTEST"))},
        "PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "HEATLIFT_CACHE": str(folder / "cache"),
        "HEATLIFT_WEIGHTS": str(folder / "weights"),
        "HOME": str(folder),
        "WANDB": "off",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def without_numbers(text):
    """Lines of a text with every number as #, and space as one blank."""
    plain = re.sub(r"\b[0-9a-f]{12,}\b", "#", text)  # digests
    plain = re.sub(r"\d[\d,.]*", "#", plain)
    plain = re.sub(r"in # (s|min|h)\b", "in #", plain)  # durations
    return [" ".join(line.split()) for line in plain.splitlines() if line.strip(" …")]


def run_page(page, folder):
    """Run all blocks of a page from top to bottom."""
    printed = None
    for block in read_blocks(page):
        place = f"{page.name}:{block.line}"
        if block.file:
            (folder / block.file).write_text(block.text)
        elif block.language == "bash":
            script = block.text.replace("\\\n", " ").splitlines()
            kept = [line for line in script if not reason_not_run(line)]
            run(folder, "bash", "-n", "-c", block.text)
            if block.text.startswith("#!"):
                continue  # a script that the reader saves; its commands are parsed
            printed = run(folder, "bash", "-euo", "pipefail", "-c", "\n".join(kept))
        elif block.language == "python" and not block.text.startswith(">>>"):
            printed = run(folder, sys.executable, "-c", PREAMBLE + block.text)
        elif block.language == "text" and printed is not None:
            there = without_numbers(printed)
            for line in without_numbers(block.text):
                assert line in there, f"{place}: not printed: {line}\n{printed}"
            printed = None


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_runs_from_top_to_bottom(page, copy, lifter):
    prepare(copy, lifter)
    run_page(page, copy)


# ---- links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_links_point_to_headings_that_exist(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text()):
        if not target.startswith("http"):
            there = page if not target else page.parent / target
            assert anchor in anchors(there), f"{page.name}: no heading #{anchor} in {there.name}"


def test_the_index_has_a_line_for_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


def test_a_rule_for_what_is_not_run_leaves_the_rest():
    assert reason_not_run("heatlift weights get blazepose") == "needs a network"
    assert reason_not_run("heatlift weights ls") is None
    assert all(NOT_RUN.values())
