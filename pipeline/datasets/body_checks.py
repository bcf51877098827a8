"""Checks of bodies, sides, units, cameras and images of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.camera import project, world_to_camera
from pipeline.errors import DataError
from pipeline.mocap.body_facts import (
    body_height,
    share_with_left_on_left,
    share_with_matching_sides,
)
from pipeline.skeleton import COCO17, SKELETONS, Skeleton
from pipeline.sources import Samples, Sequence

HEIGHT_RANGE = (1.0, 2.3)
"""Accepted median height of a body, metres."""

IMAGES_CHECKED = 20
"""Photographs of a split that are checked, unless damaged ones may be left out."""

BETTER_FIT = 0.75
"""Another joint set fits better if its bones are shorter than this part of the assumed set's."""

CORNERS = (0.5, 0.9)
"""Boxes are corners if more than this part of them is wrong as x, y, width, height and at least
this part is right as x1, y1, x2, y2."""


@dataclass(frozen=True)
class Finding:
    """Result of checking one sequence or one set of samples.

    Args:
        name: Name of the sequence or of the split.
        facts: Short descriptions of what is there, for people.
        faults: Short descriptions of what is wrong, for people; empty if nothing is.
        doubts: Short descriptions of what may be wrong, for people.
    """

    name: str
    facts: tuple[str, ...]
    faults: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def line(self) -> str:
        """Report line: name, facts, faults, doubts."""
        line = f"{self.name}: {', '.join(self.facts)}"
        if self.faults:
            line += f" -- WRONG: {'; '.join(self.faults)}"
        if self.doubts:
            line += f" -- CHECK: {'; '.join(self.doubts)}"
        return line


def check_sequence(sequence: Sequence) -> Finding:
    """Check the joints, sides, units and camera of a sequence."""
    facts = [f"{len(sequence)} frames", f"{sequence.fps:g} Hz", sequence.skeleton.name]
    faults: list[str] = []
    joints3d = sequence.joints3d
    if sequence.valid is not None:
        facts[0] += f" ({int(sequence.valid.sum())} of them valid)"
        joints3d = None if joints3d is None else joints3d[sequence.valid]
    if joints3d is not None and len(joints3d):
        check_body(np.asarray(joints3d, np.float64), sequence.skeleton, facts, faults)
        if sequence.joints2d is not None:
            pixels = sequence.joints2d
            pixels = pixels if sequence.valid is None else pixels[sequence.valid]
            _check_projection(joints3d, pixels, sequence, facts, faults)
    _check_images(sequence, facts, faults)
    return Finding(sequence.name, tuple(facts), tuple(faults))


def check_samples(samples: Samples, name: str, *, checked: int = IMAGES_CHECKED) -> Finding:
    """Check the labels, boxes and photographs of a set of samples.

    Args:
        samples: Samples of a split.
        name: Name of the split.
        checked: Number of photographs that are checked, from the first one on.
    """
    share, checked = samples.labelled.mean(), min(len(samples), checked)
    people = f"{len(samples)} people" if len(samples) != 1 else "1 person"
    facts = [people, samples.skeleton.name, f"{100 * share:.0f} % of the joints labelled"]
    facts += samples.remarks.computed
    faults = list(samples.remarks.doubts)
    joints, labelled = samples.joints2d, samples.labelled
    if not np.isfinite(joints[labelled]).all():
        faults.append("some labelled joints are not finite")
    low, size = samples.boxes[:, None, :2], samples.boxes[:, None, 2:]
    with np.errstate(invalid="ignore"):
        near = np.all((joints > low - 0.5 * size) & (joints < low + 1.5 * size), axis=-1)
    if (far := 1 - np.asarray(near)[labelled].mean()) > 0.02:
        faults.append(f"{100 * far:.0f} % of the joints are far from their person's box")
    _check_photographs(samples, checked, facts, faults)
    if samples.joints3d is not None:
        subset = samples.joints3d[:: max(1, len(samples) // 2000)]
        check_body(subset.astype(np.float64), samples.skeleton, facts, faults)
    return Finding(name, tuple(facts), tuple(faults))


def _check_photographs(samples: Samples, checked: int, facts: list[str], faults: list[str]) -> None:
    """Check that the first photographs are there and have their annotated sizes."""
    for index in range(checked):
        try:
            samples.images.size(index)
        except DataError as error:
            faults.append(str(error))
            return
    facts.append("all images found" if checked == len(samples) else f"first {checked} images found")


def check_body(
    joints3d: NDArray[np.float64], skeleton: Skeleton, facts: list[str], faults: list[str]
) -> None:
    """Check the height, sides and bone lengths of a body; append what is found.

    Args:
        joints3d: Metres, (T, J, 3).
        skeleton: Joint set of `joints3d`.
        facts: List that the descriptions are appended to.
        faults: List that the errors are appended to.
    """
    if not np.isfinite(joints3d).all():
        frame, joint = np.argwhere(~np.isfinite(joints3d))[0][:2]
        faults.append(f"not finite, first at frame {frame} {skeleton.joints[joint]}")
        return
    height = float(np.median(body_height(joints3d, skeleton)))
    facts.append(f"height {height:.2f} m")
    if not HEIGHT_RANGE[0] <= height <= HEIGHT_RANGE[1]:
        faults.append(f"a height of {height:.3g} m is not that of a person; are the units metres?")
    on_left = float(share_with_left_on_left(joints3d, skeleton))
    facts.append(f"left hip on the left in {100 * on_left:.0f} % of the frames")
    if on_left < 0.5:
        faults.append("left and right are swapped, or the world is mirrored")
    matching = share_with_matching_sides(joints3d, skeleton)
    if matching < 0.95:
        faults.append(
            f"the left hip and the left shoulder are on different sides in "
            f"{100 * (1 - matching):.0f} % of the frames"
        )
    _check_bones(joints3d, skeleton, facts, faults)


def _check_bones(
    joints3d: NDArray[np.float64], skeleton: Skeleton, facts: list[str], faults: list[str]
) -> None:
    """Check that bones keep their length, and that left and right bones are equally long."""
    bones = np.stack([joints3d[:, b] - joints3d[:, a] for a, b in skeleton.bones], axis=1)
    lengths = np.linalg.norm(bones, axis=-1)
    mean = np.maximum(lengths.mean(axis=0), 1e-9)
    variation = lengths.std(axis=0) / mean
    facts.append(f"bone lengths vary by up to {100 * variation.max():.1f} %")
    if np.median(variation) > 0.15:
        worst = skeleton.joints[skeleton.bones[int(variation.argmax())][1]]
        faults.append(
            f"bones change their length, most at {worst}; are the joints in another order?"
        )
    by_child = dict(zip((child for _, child in skeleton.bones), mean, strict=True))
    uneven = [
        skeleton.joints[left]
        for left, right in zip(skeleton.left, skeleton.right, strict=True)
        if left in by_child
        and right in by_child
        and not 0.75 < by_child[left] / by_child[right] < 1.33
    ]
    if uneven:
        faults.append(f"left and right bones differ at {', '.join(uneven)}")


def _check_projection(
    joints3d: NDArray, pixels: NDArray, sequence: Sequence, facts: list[str], faults: list[str]
) -> None:
    """Check that the projected 3D joints are near the 2D joints."""
    projected = project(world_to_camera(joints3d, sequence.camera), sequence.camera)
    distance = np.linalg.norm(projected - pixels, axis=-1)
    distance = distance[np.isfinite(distance)]
    if not len(distance):
        faults.append("no joint is in front of the camera")
        return
    facts.append(f"2D {np.median(distance):.2f} px from projected 3D (median)")
    if np.median(distance) > 0.02 * max(sequence.camera.size):
        faults.append("2D and 3D do not belong together, or the camera is another one")


def _check_images(sequence: Sequence, facts: list[str], faults: list[str]) -> None:
    """Check the number of the images and the size of the first one."""
    if sequence.images is None:
        return
    if len(sequence.images) != len(sequence):
        faults.append(f"{len(sequence.images)} images for {len(sequence)} frames")
    try:
        size = sequence.images.size(0)
    except DataError as error:
        faults.append(str(error))
        return
    facts.append(f"images {size[0]}x{size[1]}")
    if size != sequence.camera.size:
        width, height = sequence.camera.size
        faults.append(f"the camera has images of {width}x{height}")


def check_box_format(
    boxes: NDArray[np.float64],
    joints2d: NDArray[np.float64],
    sizes: NDArray[np.float64],
    path: Path,
) -> None:
    """Raise `DataError` if the boxes make sense as x1, y1, x2, y2 and not as x, y, width, height.

    A box makes sense if it is inside the image and holds the joints.

    Args:
        boxes: Boxes as in the file, (N, 4).
        joints2d: Joints in pixels, NaN where unlabelled, (N, J, 2).
        sizes: Width and height of the images, (N, 2).
        path: Path of the file, for the message.
    """
    low, high = np.nanmin(joints2d, axis=1), np.nanmax(joints2d, axis=1)
    slack = 2.0 + 0.1 * (high - low)  # labels may lie a little outside of a box

    def fits(first: NDArray[np.float64], last: NDArray[np.float64]) -> NDArray[np.bool_]:
        holds = (first <= low + slack) & (last >= high - slack)
        inside = (first >= -2) & (last <= sizes + 2) & (last > first)
        return np.asarray((holds & inside).all(axis=1))

    wrong = float((~fits(boxes[:, :2], boxes[:, :2] + boxes[:, 2:])).mean())
    right = float(fits(boxes[:, :2], boxes[:, 2:]).mean())
    if len(boxes) > 2 and wrong > CORNERS[0] and right >= CORNERS[1]:
        raise DataError(
            f"{path}: bbox seems to be x1, y1, x2, y2: so {100 * right:.0f} % of the boxes are "
            f"inside the image and hold their joints, and {100 * (1 - wrong):.0f} % as x, y, "
            "width, height, which COCO's format has; convert them"
        )


SMALL_HEAD = 0.25
"""Largest extent of COCO17's first five joints, relative to the person, if they are one head."""


def starts_with_head(joints2d: NDArray[np.floating]) -> bool:
    """Whether the first five joints lie close together, as nose, eyes and ears of COCO17 do.

    In a side view left and right are at one place, so that the bones of other sets are short, too.

    Args:
        joints2d: Joints in pixels, NaN where unlabelled, (N, J, 2).
    """

    def extent(joints: NDArray[np.floating]) -> NDArray[np.floating]:
        known = np.isfinite(joints)
        low, high = np.where(known, joints, np.inf), np.where(known, joints, -np.inf)
        return np.asarray((high.max(axis=1) - low.min(axis=1)).max(axis=-1))

    shown = np.isfinite(joints2d[:, :5]).all(axis=-1).sum(axis=1) > 1
    if not shown.any():
        return False
    head, body = extent(joints2d[shown, :5]), extent(joints2d[shown])
    return bool(np.median(head / np.maximum(body, 1.0)) < SMALL_HEAD)


def check_joint_set(joints2d: NDArray[np.float64], skeleton: Skeleton, path: Path) -> None:
    """Raise `DataError` if the joints form shorter bones in another joint set of the same size."""
    size = (np.nanmax(joints2d, axis=1) - np.nanmin(joints2d, axis=1)).max(axis=-1)
    size = np.maximum(size, 1.0)

    def length(candidate: Skeleton) -> float:
        bones = np.stack([joints2d[:, a] - joints2d[:, b] for a, b in candidate.bones], axis=1)
        lengths = np.linalg.norm(bones, axis=-1) / size[:, None]
        return float(lengths[np.isfinite(lengths)].mean()) if np.isfinite(lengths).any() else np.inf

    best = min((s for s in SKELETONS.values() if len(s) == len(skeleton)), key=length)
    is_coco = skeleton is COCO17 and starts_with_head(joints2d)
    if length(best) < BETTER_FIT * length(skeleton) and not is_coco:
        raise DataError(
            f"{path}: does not name its joints, and their distances fit {best.name}, not "
            f"{skeleton.name}; add `categories` with the names of the joints, or convert them"
        )
