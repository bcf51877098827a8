"""Draws docs/chain.png: a clip of a test person through all stages of a finished demo.

.venv/bin/python docs/drawings/chain.py [--runs runs] [--image docs/chain.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.camera import normalise
from pipeline.dashboard.canvas import GAP, contact_sheet
from pipeline.dashboard.heatmap_images import draw_heatmaps
from pipeline.dashboard.media import write_png
from pipeline.dashboard.skeletons import (
    bounding_square,
    draw_joints2d,
    draw_joints2d_alone,
    draw_views3d,
    view_radius,
)
from pipeline.detections.build import person_boxes
from pipeline.heatmap.crop import apply_affine, crop_matrix
from pipeline.heatmap.image_stage import to_image_pixels
from pipeline.heatmap.module import HeatmapModule
from pipeline.lift.module import LiftModule
from pipeline.lift.sequences import prepare_sequence
from pipeline.mocap.synthetic import Synthetic
from pipeline.sources import Sequence
from pipeline.training.checkpoints import load_module
from pipeline.training.run_folder import newest_finished_run, read_state

SIDE = 250
"""Width and height of an image on the sheet, pixels."""


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--image", type=Path, default=Path(__file__).parents[1] / "chain.png")
    parser.add_argument("--action", default="jumping jack")
    parser.add_argument("--camera", type=int, default=3)
    parser.add_argument("--frames", type=int, nargs="+", default=[6, 22, 38])
    arguments = parser.parse_args()
    paths = [
        newest_finished_run(arguments.runs, stage, lambda settings: True, name=name)
        for stage, name in (("heatmap", "demo"), ("lift", "demo-detected"))
    ]
    if None in paths:
        print(f"{arguments.runs}: no finished demo; run `make demo` first")
        return
    detector, lifter, sequences = load_chain(*paths)
    name = f"{arguments.action} camera{arguments.camera}"
    sequence = next(sequence for sequence in sequences if sequence.name.endswith(name))
    write_png(arguments.image, draw_sheet(sequence, detector, lifter, arguments.frames))


def load_chain(detector: Path, lifter: Path) -> tuple[Any, Any, list[Sequence]]:
    """The modules of two checkpoints, and the test sequences of the lifter's source."""
    state = read_state(lifter.parents[1])
    source_arguments = state["settings"]["data"]["source"]["init_args"]
    return (
        load_module(detector, (HeatmapModule,)),
        load_module(lifter, (LiftModule,)),
        Synthetic(**source_arguments).sequences("test"),
    )


@torch.no_grad()
def draw_sheet(
    sequence: Sequence, detector: Any, lifter: Any, frames: list[int]
) -> NDArray[np.uint8]:
    """One row per frame: image, heatmaps, joints, and 3D from the front and from the side."""
    skeleton = detector.skeleton
    size = detector.input_size
    input_crops = crop_matrix(person_boxes(sequence), size, padding=detector.padding)
    shown_crops = crop_matrix(person_boxes(sequence), (SIDE, SIDE), padding=detector.padding)
    crops = [sequence.images.crop(t, input_crops[t], size) for t in range(len(sequence))]
    images = torch.from_numpy(np.stack(crops))
    crop_joints2d, score = (
        torch.cat(part) for part in zip(*map(detector.detect, images.split(32)), strict=True)
    )
    joints2d = to_image_pixels(crop_joints2d, torch.from_numpy(input_crops)).numpy()
    heatmaps = detector(images[frames]).numpy()
    prepared = prepare_sequence(sequence, lifter.net.skeleton, joints2d, score.numpy())
    lifted = lifter.lift(
        torch.from_numpy(prepared.joints2d), torch.from_numpy(prepared.visible)
    ).numpy()
    radius = view_radius(lifted[frames], prepared.joints3d[frames])
    normalised = normalise(joints2d, sequence.camera.size)
    bounds = bounding_square(normalised[frames])
    tiles = []
    for heat, t in zip(heatmaps, frames, strict=True):
        image = sequence.images.crop(t, shown_crops[t], (SIDE, SIDE))
        shown_joints2d = apply_affine(shown_crops[t], joints2d[t])
        views = draw_views3d(lifted[t], prepared.joints3d[t], skeleton, reach=radius, size=SIDE)
        views = views[-SIDE - GAP : -GAP, GAP:]  # without the captions
        tiles += [
            image,
            draw_heatmaps(image, heat, skeleton, peak=1.3 * heat.max()),
            draw_joints2d(image, shown_joints2d, skeleton, score[t].numpy()),
            draw_joints2d_alone(normalised[t], skeleton, bounds=bounds, size=SIDE),
            *(view[:, :SIDE] for view in np.split(views, 2, axis=1)),
        ]
    captions = ["image", "heatmaps", "joints", "2D clip"]
    captions += ["3D from the front, truth in grey", "3D from the side, truth in grey"]
    return contact_sheet(tiles, 6, captions + [""] * (len(tiles) - 6))


if __name__ == "__main__":
    main()
