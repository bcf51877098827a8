"""The image of the demo's page: one clip of a test person through all stages, side by side."""

from __future__ import annotations

from collections.abc import Sequence as Many
from pathlib import Path

import numpy as np
import torch

from pipeline.camera import normalise
from pipeline.dashboard.canvas import GAP, Image, contact_sheet
from pipeline.dashboard.heatmap_images import draw_heatmaps
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
from pipeline.training.run_folder import read_state

SIDE = 250
"""Width and height of an image on the sheet, pixels."""

FRAMES = (6, 22, 38)
"""Frames of the clip, a row each."""

CLIP = "jumping jack camera3"
"""End of the name of the clip; without such a clip the first one is drawn."""


def draw_chain(
    detector: Path, lifter: Path, *, clip: str = CLIP, frames: Many[int] = FRAMES
) -> Image:
    """Draw a clip of an embedded person through a 2D stage and a lifter.

    Args:
        detector: Checkpoint of the 2D stage.
        lifter: Checkpoint of the lifter, in its run folder, trained on embedded people.
        clip: End of the name of the clip.
        frames: Frames of the clip.
    """
    state = read_state(lifter.parents[1]) or {}
    people = Synthetic(**state["settings"]["data"]["source"]["init_args"]).sequences("test")
    sequence = next((one for one in people if one.name.endswith(clip)), people[0])
    modules = load_module(detector, (HeatmapModule,)), load_module(lifter, (LiftModule,))
    return draw_sheet(sequence, *modules, frames=[min(t, len(sequence) - 1) for t in frames])


@torch.no_grad()
def draw_sheet(
    sequence: Sequence, detector: HeatmapModule, lifter: LiftModule, *, frames: Many[int]
) -> Image:
    """One row per frame: image, heatmaps, joints, and 3D from the front and from the side."""
    assert sequence.images is not None
    assert sequence.camera is not None
    skeleton, size, frames = detector.skeleton, detector.input_size, list(frames)
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
    assert prepared.joints3d is not None
    lifted = lifter.lift(
        torch.from_numpy(prepared.joints2d), torch.from_numpy(prepared.visible)
    ).numpy()
    radius = view_radius(lifted[frames], prepared.joints3d[frames])
    normalised = normalise(joints2d, sequence.camera.size)
    bounds = bounding_square(normalised[frames])
    tiles: list[Image] = []
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
