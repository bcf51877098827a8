"""Draws docs/chain.png: a clip of a test person through all stages of a finished demo.

.venv/bin/python docs/drawings/chain.py [--runs runs] [--image docs/chain.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.dashboard.media import write_png
from pipeline.experiments.demo_image import CLIP, FRAMES, draw_chain
from pipeline.training.run_folder import newest_finished_run


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--image", type=Path, default=Path(__file__).parents[1] / "chain.png")
    parser.add_argument("--clip", default=CLIP)
    parser.add_argument("--frames", type=int, nargs="+", default=FRAMES)
    arguments = parser.parse_args()
    detector, lifter = (
        newest_finished_run(arguments.runs, stage, lambda settings: True, name=name)
        for stage, name in (("heatmap", "demo"), ("lift", "demo-detected"))
    )
    if detector is None or lifter is None:
        print(f"{arguments.runs}: no finished demo; run `make demo` first")
        return
    frames = arguments.frames
    write_png(arguments.image, draw_chain(detector, lifter, clip=arguments.clip, frames=frames))


if __name__ == "__main__":
    main()
