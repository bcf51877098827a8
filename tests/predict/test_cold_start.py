"""The wheel in an empty environment and an empty folder: weights, then a real video to motion."""

import os
import shutil
import subprocess
import sys
import sysconfig

import cv2
import numpy as np
import pytest
from wheels import build, copy_project

from pipeline import Motion

SECONDS = 2.0


def run(*command, cwd, environment):
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


@pytest.mark.slow
def test_from_an_empty_folder_to_the_motion_of_a_real_video(shared, tmp_path, uninterrupted):
    """torch and the other packages are those of this environment: the wheel alone is new."""
    uninterrupted("lift")
    lifter = uninterrupted.folders["lift",] / "checkpoints" / "best.ckpt"
    hidden = ("HEATLIFT", "PYTHONPATH", "XDG", "VIRTUAL_ENV", "DISPLAY")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    environment["HOME"] = str(tmp_path / "home")
    empty, source = tmp_path / "empty", tmp_path / "source"
    empty.mkdir()
    source.mkdir()
    wheel = build("wheel", copy_project(source))
    made = run(sys.executable, "-m", "venv", "v", cwd=tmp_path, environment=environment)
    assert made.returncode == 0, made.stderr
    python, heatlift = tmp_path / "v" / "bin" / "python", tmp_path / "v" / "bin" / "heatlift"
    options = ("install", "--quiet", "--no-deps", "--no-index", wheel)
    installed = run(python, "-m", "pip", *options, cwd=empty, environment=environment)
    assert installed.returncode == 0, installed.stderr
    packages = next((tmp_path / "v").glob("lib/python*/site-packages"))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    code = "import pipeline; print(pipeline.__file__)"
    where = run(python, "-c", code, cwd=empty, environment=environment).stdout
    assert where.startswith(str(packages))

    got = run(heatlift, "weights", "get", "blazepose", cwd=empty, environment=environment)
    if "pip cannot download it" in got.stderr:
        pytest.skip(f"no package index: {got.stderr.strip()[:200]}")
    assert got.returncode == 0, got.stderr
    stored = tmp_path / "home" / ".cache" / "heatlift" / "weights"
    assert (stored / "pose_landmark_full.tflite.LICENSE").exists()

    shutil.copy(shared / "data" / "video" / "walk.mp4", empty)
    command = [heatlift, "predict", "walk.mp4", "-o", "out", "--lifter", lifter]
    command += ["--time", "0", SECONDS, "--export", "npz,csv"]
    done = run(*command, cwd=empty, environment=environment)
    assert done.returncode == 0, done.stderr
    for name in ("motion.npz", "motion.csv", "overlay.webm", "side_by_side.webm"):
        assert (empty / "out" / name).stat().st_size > 1000
    motion = Motion.load(empty / "out" / "motion.npz")
    assert len(motion) == round(SECONDS * 30) + 1
    assert any(person.present.all() for person in motion.people)
    assert all(np.isfinite(p.positions[p.present]).all() for p in motion.people)
    assert motion.facts["weights"]["estimator"]["licence"] == "Apache-2.0"
    overlay = cv2.VideoCapture(str(empty / "out" / "overlay.webm"))
    assert overlay.get(cv2.CAP_PROP_FRAME_COUNT) == len(motion)
    overlay.release()
    for words in ("walk.mp4", "blazepose-full", "resampled to", "out/motion.npz"):
        assert words in done.stdout
    again = run(*command, cwd=empty, environment=environment)
    assert again.returncode == 5
    assert "--overwrite" in again.stderr
    assert {path.name for path in empty.iterdir()} == {"walk.mp4", "out", "cache"}
