"""Two rendered people who cross behind each other, against the same people rendered alone.

Usage: python benchmarks/two_people.py [--lifter CHECKPOINT] [--frames 150]

Root-relative MPJPE and error of the root with BlazePose (`heatlift weights get blazepose`), on the
same motion, clothes, camera and background. The focal length and the mean of the heights are given.
Without --lifter, the lifter in the box lifts.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from pipeline import Heatlift
from pipeline.predict.root import measure_height
from pipeline.skeleton import H36M17

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
crossing = importlib.import_module("crossing")  # the renderer of the test


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lifter", type=Path)
    parser.add_argument("--frames", type=int, default=150)
    given = parser.parse_args()
    torch.set_num_threads(1)
    heatlift = Heatlift.load(given.lifter, device="cpu")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        videos = crossing.write_videos(Path(folder), given.frames)
        height = float(np.mean([measure_height(t, H36M17) for t in videos["both"][1]]))
        for name, (path, truths) in videos.items():
            motion = heatlift.predict(path, focal=crossing.FOCAL, height=height)
            print(
                f"{name}: {len(motion.people)} found, {path.stat().st_size / 1e6:.1f} MB of video"
            )
            found[name] = crossing.measure_errors(motion, truths)
    print(
        "| person | video | ids | frames | filled | MPJPE, mm | root across, mm | root depth, mm |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for number, name in enumerate(("first", "second")):
        alone, both = found[name][0], found["both"][number]
        where = ("in front", "behind")[number]
        for label, e in (("alone", alone), ("crossing", both)):
            print(
                f"| {where} | {label} | {e.ids} | {e.frames} | {e.filled} | {e.mpjpe:.0f} | "
                f"{e.across:.0f} | {e.depth:.0f} |"
            )
        ratio = both.mpjpe / alone.mpjpe
        print(f"{where}: crossing / alone {ratio:.2f} (aim: below 1.20)", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
