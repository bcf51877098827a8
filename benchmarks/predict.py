"""Costs of `heatlift predict` beside its 2D network: decoding, tracking, lifting, drawing, memory.

Usage: python benchmarks/predict.py [--frames 3000]

CPU time of one thread. The 2D network is BlazePose (`heatlift weights get blazepose`).
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from pipeline.dashboard.media import write_video
from pipeline.errors import DataError
from pipeline.lift import CentredLifter, LiftModule, MixSTE
from pipeline.mocap.render import RenderedSequence
from pipeline.mocap.synthetic import Synthetic
from pipeline.predict.live import LiveLifter
from pipeline.predict.load_estimator import load_estimator
from pipeline.predict.media import open_media
from pipeline.predict.motion_maker import make_motion
from pipeline.predict.options import LiftOptions
from pipeline.predict.tracker import Tracker
from pipeline.predict.tracks import TrackedPeople

FPS = 30.0


class Timed:
    """Counts the CPU time of some methods of an object; passes everything else on."""

    def __init__(self, inner: Any, *names: str) -> None:
        self.inner, self.names, self.seconds = inner, names, 0.0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        return self.timed(value) if name in self.names else value

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose CPU time is counted."""

        def run(*arguments: Any) -> Any:
            start = time.process_time()
            try:
                return call(*arguments)
            finally:
                self.seconds += time.process_time() - start

        return run


def resident() -> float:
    """Memory of this process now, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def write_walk(path: Path, frames: int) -> None:
    """A video of a rendered person, forwards and backwards in turn."""
    sequence = Synthetic(seconds=2.0).sequences("test")[0]
    images = RenderedSequence(
        sequence.joints3d, sequence.camera, appearance_seed=1, background_seed=2
    )
    size = sequence.camera.size
    whole = np.array([[1.0, 0, 0], [0, 1, 0]])
    drawn = [images.crop(n, whole, size)[..., ::-1] for n in range(0, len(images), 3)]
    there_and_back = [*drawn, *drawn[-2:0:-1]]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, size)
    for number in range(frames):
        writer.write(np.ascontiguousarray(there_and_back[number % len(there_and_back)]))
    writer.release()


def milliseconds(run: Callable[[], object], count: int) -> float:
    """CPU time of a call divided by a count, ms."""
    start = time.process_time()
    run()
    return 1000 * (time.process_time() - start) / count


def main() -> None:
    """Print all measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=3000)
    count = parser.parse_args().frames
    torch.set_num_threads(1)
    torch.manual_seed(0)  # costs do not depend on the weights
    module = LiftModule(CentredLifter(MixSTE(frames=27, dim=64, depth=4, heads=4))).eval()
    try:
        loaded, make_finder = load_estimator(None, "cpu")
    except DataError as error:  # BlazePose is not here
        sys.exit(str(error))
    estimator, finder = Timed(loaded, "estimate"), Timed(make_finder(0.5), "find")
    tracker, memory = Tracker(estimator, finder), []
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_walk(clip, count)
        media = open_media(clip)
        start = time.process_time()
        for frame in media:
            tracker.follow(frame)
            if frame.index % max(1, count // 6) == 0:
                memory.append(resident())
        network = 1000 * (estimator.seconds + finder.seconds) / count
        tracking = 1000 * (time.process_time() - start) / count - network
        images = [frame.image for frame in open_media(clip, time=(0, 1))][:20]
        encoding = {
            codec: milliseconds(
                lambda codec=codec: write_video(  # type: ignore[misc]
                    Path(folder) / "x.webm", images, FPS, codec=codec
                ),
                len(images),
            )
            for codec in ("VP80", "VP90")
        }
    times = np.array(media.times)
    tracks = tracker.tracks(times)[:1]
    people = TrackedPeople(loaded.skeleton, tracks, times, FPS, media.size)  # type: ignore[arg-type]
    making = milliseconds(lambda: make_motion(people, module, LiftOptions(), {}), count)
    lifted_memory = resident()
    live = LiveLifter(module, loaded, make_finder(0.5), LiftOptions())
    spent = [
        milliseconds(
            lambda n=n: live.lift_pose(  # type: ignore[misc]
                0, tracks[0].joints2d[n], tracks[0].score[n], float(times[n]), media.size
            ),
            1,
        )
        for n in range(min(100, len(tracks[0].frames)))
    ]
    share = 100 * (tracking + making) / network
    print(f"{count} frames of {media.size}, {loaded.name}, a lifter of 27 frames and 64 channels")
    print(f"2D network and person detector   {network:7.1f} ms/frame")
    print(f"decoding and tracking            {tracking:7.1f} ms/frame")
    print(f"lifting, root, smoothing         {making:7.1f} ms/frame, {1000 / making:.0f} frames/s")
    print(f"all of these but the 2D network  {share:7.1f} % of its time (aim: below 15)")
    print(f"live, without the 2D network     {np.median(spent):7.1f} ms/frame (aim: below 20)")
    vp8, vp9 = encoding["VP80"], encoding["VP90"]
    print(f"encoding VP8 and VP9             {vp8:7.1f}, {vp9:.1f} ms/frame, ratio {vp9 / vp8:.1f}")
    print(f"memory, every sixth of the clip  {', '.join(f'{m:.0f}' for m in memory)} MB")
    third = memory[len(memory) // 3]
    print(
        f"growth, whole and after a third  {memory[-1] - memory[0]:7.0f}, {memory[-1] - third:.0f} "
        f"MB (aim: below 300, 10); {lifted_memory - memory[-1]:.0f} MB more to lift the whole clip"
    )


if __name__ == "__main__":
    sys.exit(main())
