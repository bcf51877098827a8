"""Time to read motion capture, convert it and open it again, against a limit of 60 s.

    .venv/bin/python benchmarks/mocap.py [folder with the CMU recordings]

Without a folder it uses the first that exists of $ROOT, $HEATLIFT_DATA/mocap and
../shared/data/cmu_mocap. Limit: 142 files, 190 MB of text, in at most 60 s on two cores, once;
after that they come from the cache. The cache is a temporary folder, so that every run starts
without it. One process, one core.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.files.reading import read_unpacked
from pipeline.mocap.bvh import MAX_TEXT, read_bvh
from pipeline.mocap.motion_capture import Mocap
from pipeline.mocap.videopose3d_export import export_videopose3d
from pipeline.sources import Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")
FALLBACK_ROOT = Path(__file__).parents[2] / "shared" / "data" / "cmu_mocap"


def main() -> None:
    """Print one line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("root", type=Path, nargs="?", default=default_root())
    root = parser.parse_args().root
    files = sorted(root.rglob("*.bvh.gz"))
    if not files:
        print(f"{root}: no CMU recordings (*.bvh.gz); set ROOT= or HEATLIFT_DATA to have this run")
        return
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HEATLIFT_CACHE"] = cache
        with measured(f"unpack {len(files)} files"):
            size = sum(len(read_unpacked(file, MAX_TEXT)) for file in files)
        with measured(f"read {size / 1e6:.0f} MB of text, all joints by kinematics"):
            for file in files:
                motion = read_bvh(file)
                motion.pose(motion.joints)
        for name in (
            "first pass: read, map, resample, 516 sequences",
            "second pass, from the cache",
        ):
            with measured(name):
                source = Mocap(root, bodies="random_adults")
                for split in SPLITS:
                    source.sequences(split)
        with measured("export in VideoPose3D's format"):
            source = Mocap(root, bodies="random_adults", cameras="human36m")
            export_videopose3d(source, Path(cache, "export"))


def default_root() -> Path:
    """The first existing folder of those in which recordings may be."""
    data = os.environ.get("HEATLIFT_DATA")
    places = [os.environ.get("ROOT"), data and f"{data}/mocap"]
    return next((Path(place) for place in places if place and Path(place).is_dir()), FALLBACK_ROOT)


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print the time of the block, and the peak memory of the process so far."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what:52s} {wall:6.2f} s wall {cpu:6.2f} s CPU   peak {memory:4.0f} MiB")


if __name__ == "__main__":
    main()
