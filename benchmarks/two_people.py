"""Two rendered people who cross behind each other, against the same people rendered alone.

Usage: python benchmarks/two_people.py [--lifter CHECKPOINT] [--frames 150]
       python benchmarks/two_people.py --crossings 24

Root-relative MPJPE and error of the root with BlazePose (`heatlift weights get blazepose`), on the
same motion, clothes, camera and background. The focal length and the mean of the heights are given.
Without --lifter, the lifter in the box lifts.

With --crossings, so many other crossings are rendered (people, clothes, distances, speeds and the
noise of the images are drawn) and only the tracks are looked at: who keeps one id, and whose track
goes on with the other person.
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
from pipeline.errors import DataError
from pipeline.predict.joined_tracks import join_tracks
from pipeline.predict.load_estimator import load_estimator
from pipeline.predict.media import Frame
from pipeline.predict.root import measure_height
from pipeline.predict.tracker import Tracker
from pipeline.skeleton import H36M17

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
crossing = importlib.import_module("crossing")  # the renderer of the test


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lifter", type=Path)
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--crossings", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.crossings:
        count_ids(given.crossings)
        return
    heatlift = Heatlift.load(given.lifter, device="cpu")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        videos = crossing.write_videos(Path(folder), given.frames)
        height = float(np.mean([measure_height(t, H36M17) for t in videos["both"][1]]))
        for name, (path, truths) in videos.items():
            try:
                motion = heatlift.predict(path, focal=crossing.FOCAL, height=height)
            except DataError as error:  # BlazePose is not here
                sys.exit(str(error))
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


def count_ids(count: int) -> None:
    """Print how many people keep their ids in so many crossings."""
    estimator, make_finder = load_estimator("blazepose", "cpu")
    kept = changed = 0
    for number in range(count):
        people, frames = crossing.random_crossing(number)
        tracker = Tracker(estimator, make_finder(0.5))
        for index, image in enumerate(frames):
            tracker.follow(Frame(index, index / crossing.FPS, image))
        times = np.arange(len(people[0])) / crossing.FPS
        tracks = join_tracks(tracker.tracks(times), times)
        found = [crossing.shown_people(track, people) for track in tracks]
        ids = [sum(person in shown for shown in found) for person in range(2)]
        kept += ids.count(1)
        changed += sum(len(shown) > 1 for shown in found)
        print(f"crossing {number}: tracks show {found}", file=sys.stderr)
    print(
        f"{count} crossings: {kept} of {2 * count} people are shown by one track; "
        f"{changed} tracks show both people"
    )


if __name__ == "__main__":
    sys.exit(main())
