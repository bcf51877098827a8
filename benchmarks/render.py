"""Rendered crops per second on one thread; the goal is 1,150 crops of 128 x 128 on two cores."""

from __future__ import annotations

import time

import cv2
import numpy as np

from pipeline.mocap.synthetic import Synthetic
from pipeline.sources import Samples


def crop_around(box: np.ndarray, size: int) -> np.ndarray:
    """Crop matrix of a square a quarter wider than a person's box."""
    scale = size / (1.25 * float(box[2:].max()))
    centre = box[:2] + box[2:] / 2
    shift = (size - 1) / 2 - scale * centre
    return np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])


def measure(samples: Samples, size: int, count: int = 300) -> tuple[float, float]:
    """Milliseconds of CPU time and of wall time per crop."""
    matrices = [crop_around(samples.boxes[i], size) for i in range(count)]
    wall, cpu = time.perf_counter(), time.process_time()
    for i, matrix in enumerate(matrices):
        samples.images.crop(i, matrix, (size, size))
    return (
        1e3 * (time.process_time() - cpu) / count,
        1e3 * (time.perf_counter() - wall) / count,
    )


def main() -> None:
    """Print one row per crop size."""
    cv2.setNumThreads(1)
    source = Synthetic()
    begin = time.perf_counter()
    samples = source.samples("train")
    print(f"{len(samples):,} samples in {time.perf_counter() - begin:.1f} s")
    begin = time.perf_counter()
    print(f"{len(source.sequences('train'))} sequences in {time.perf_counter() - begin:.1f} s")
    for size in (64, 128, 256):
        cpu, wall = measure(samples, size)
        rate = f"{1e3 / cpu:6.0f} a second and core"
        print(f"{size:4d} pixels: {cpu:5.2f} ms of one core, {rate} (wall {wall:.2f} ms)")


if __name__ == "__main__":
    main()
