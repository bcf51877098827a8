"""Wheels of the project, built from a copy, so that no files are left in the checkout."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copy_project(folder):
    """Copy into a folder what a wheel is built from; returns the folder."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "heatlift.py"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("pipeline", "configs", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def build(kind, folder):
    """Path of the `wheel` or of the `editable` wheel of a copy of the project."""
    code = f"from setuptools.build_meta import build_{kind} as b; b('.')"
    built = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "absent from the `packages` configuration" not in built.stdout + built.stderr
    return next(folder.glob("*.whl"))
