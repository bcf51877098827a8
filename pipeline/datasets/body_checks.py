"""Checks of bodies, sides, units, cameras and detections of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.camera import project, world_to_camera
from pipeline.datasets.human36m import Human36M
from pipeline.errors import DataError
from pipeline.skeleton import Skeleton, conversion
from pipeline.sources import Samples, Sequence, Split, VideoDetections

HEIGHTS = (1.0, 2.3)
"""Metres between which the median height of a body lies."""


LOOKED = 20
"""So many photographs of a set are looked at unless damaged ones may be left out."""


@dataclass(frozen=True)
class Finding:
    """What was found in one sequence or one set of samples.

    Args:
        name: Of the sequence, or of the split.
        facts: What there is, for people.
        faults: What is wrong, for people; empty if nothing is.
    """

    name: str
    facts: tuple[str, ...]
    faults: tuple[str, ...] = ()

    def line(self) -> str:
        """One line: name, facts, faults."""
        faults = "; ".join(self.faults)
        return f"{self.name}: {', '.join(self.facts)}" + (f" -- WRONG: {faults}" if faults else "")


def check_sequence(sequence: Sequence) -> Finding:
    """Check joints, sides, units and cameras of a sequence."""
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


def check_samples(
    samples: Samples,
    name: str,
    *,
    looked: int = LOOKED,
    sizes: Mapping[str, tuple[float, float]] | None = None,
) -> Finding:
    """Check labels, boxes and photographs of a set of samples.

    Args:
        samples: Of a split.
        name: Of the split.
        looked: How many photographs are looked at.
        sizes: File -> width and height in pixels that its photograph is said to have.
    """
    share, looked = samples.labelled.mean(), min(len(samples), looked)
    people = f"{len(samples)} people" if len(samples) != 1 else "1 person"
    facts = [people, samples.skeleton.name, f"{100 * share:.0f} % of the joints labelled"]
    facts.append(f"images of {'all' if looked == len(samples) else f'the first {looked}'} found")
    faults = []
    joints, labelled = samples.joints2d, samples.labelled
    if not np.isfinite(joints[labelled]).all():
        faults.append("labelled joints that are not finite")
    low, size = samples.boxes[:, None, :2], samples.boxes[:, None, 2:]
    with np.errstate(invalid="ignore"):
        near = np.all((joints > low - 0.5 * size) & (joints < low + 1.5 * size), axis=-1)
    if (away := 1 - np.asarray(near)[labelled].mean()) > 0.02:
        faults.append(f"{100 * away:.0f} % of the joints lie far from their person's box")
    for index in range(looked):
        try:
            own = samples.images.size(index)
        except DataError as error:
            faults.append(str(error))
            facts.pop()
            break
        file = samples.ids[index].rpartition("#")[0] if samples.ids else ""
        said = (sizes or {}).get(file, own)
        if said != own:
            size_said = f"{said[0]:g}x{said[1]:g}"
            faults.append(f"{file} is {own[0]}x{own[1]}, but the annotations say {size_said}")
            break
    if samples.joints3d is not None:
        check_body(samples.joints3d[:: max(1, len(samples) // 2000)].astype(np.float64),
                    samples.skeleton, facts, faults)  # fmt: skip
    return Finding(name, tuple(facts), tuple(faults))


def check_body(
    joints3d: NDArray[np.float64], skeleton: Skeleton, facts: list[str], faults: list[str]
) -> None:
    if not np.isfinite(joints3d).all():
        frame, joint = np.argwhere(~np.isfinite(joints3d))[0][:2]
        faults.append(f"not finite, first at frame {frame} {skeleton.joints[joint]}")
        return
    height = float(np.median(body_height(joints3d, skeleton)))
    facts.append(f"height {height:.2f} m")
    if not HEIGHTS[0] <= height <= HEIGHTS[1]:
        faults.append(f"a height of {height:.3g} m is none of a person in metres")
    facing = float(facing_share(joints3d, skeleton))
    facts.append(f"left is left in {100 * facing:.0f} % of the frames")
    if facing < 0.5:
        faults.append("left and right are swapped, or the world is mirrored")
    aligned = _aligned_share(joints3d, skeleton)
    if aligned < 0.95:
        share = f"{100 * (1 - aligned):.0f} % of the frames"
        faults.append(f"hips and shoulders disagree about left in {share}")
    lengths = np.stack([joints3d[:, b] - joints3d[:, a] for a, b in skeleton.bones], axis=1)
    lengths = np.linalg.norm(lengths, axis=-1)
    mean = np.maximum(lengths.mean(axis=0), 1e-9)
    wobble = lengths.std(axis=0) / mean
    facts.append(f"bone lengths vary by up to {100 * wobble.max():.1f} %")
    if np.median(wobble) > 0.15:
        worst = skeleton.joints[skeleton.bones[int(wobble.argmax())][1]]
        faults.append(f"bones change their length, most at {worst}; is this the joint order?")
    by_child = dict(zip((child for _, child in skeleton.bones), mean, strict=True))
    pairs = [(by_child[a], by_child[b], a)
             for a, b in zip(skeleton.left, skeleton.right, strict=True)
             if a in by_child and b in by_child]  # fmt: skip
    uneven = [skeleton.joints[a] for one, other, a in pairs if not 0.75 < one / other < 1.33]
    if uneven:
        faults.append(f"left and right bones differ at {', '.join(uneven)}")


_MIDDLE = ("pelvis", "thorax", "head", "nose")


_PAIRS = ("hip", "knee", "ankle", "shoulder")


_NAMED = Skeleton(
    "CHECKED",
    (*_MIDDLE, *(f"{side}_{name}" for name in _PAIRS for side in ("left", "right"))),
    (-1, 0, 1, 1, 0, 0, 4, 5, 6, 7, 1, 1),
)


def _by_name(joints3d: NDArray[np.float64], skeleton: Skeleton) -> dict[str, NDArray]:
    joints = conversion(skeleton, _NAMED, allow_missing=True).joints(joints3d)
    return {name: joints[..., i, :] for i, name in enumerate(_NAMED.joints)}


def body_height(joints3d: NDArray[np.float64], skeleton: Skeleton) -> NDArray[np.float64]:
    """Height of a body stretched out, ankles to head, metres, (T,): whatever the pose.

    Args:
        joints3d: Metres, (T, J, 3).
        skeleton: The joint set; where it has no head the neck ends the body.
    """
    at = _by_name(joints3d, skeleton)

    def far(one: str, other: str) -> NDArray[np.float64]:
        return np.linalg.norm(at[one] - at[other], axis=-1)

    legs = [
        far(f"{s}_hip", f"{s}_knee") + far(f"{s}_knee", f"{s}_ankle") for s in ("left", "right")
    ]
    head = far("thorax", "head") if np.isfinite(at["head"]).all() else 0.0
    return np.mean(legs, axis=0) + far("pelvis", "thorax") + head


def facing_share(joints3d: NDArray[np.float64], skeleton: Skeleton) -> float:
    """Share of frames in which the left hip is on the left of a body that looks ahead.

    Ahead is where the nose stands out from the line of neck and head, and where the knees bend to.
    """
    at = _by_name(joints3d, skeleton)
    ahead = np.zeros_like(at["pelvis"])
    if np.isfinite(at["nose"]).all():
        top = at["head"] if np.isfinite(at["head"]).all() else at["thorax"]
        ahead += at["nose"] - 0.5 * (at["thorax"] + top)
    for side in ("left", "right"):
        ahead += at[f"{side}_knee"] - 0.5 * (at[f"{side}_hip"] + at[f"{side}_ankle"])
    left, up = at["left_hip"] - at["right_hip"], at["thorax"] - at["pelvis"]
    return float((np.einsum("ti,ti->t", np.cross(left, up), ahead) > 0).mean())


def _aligned_share(joints3d: NDArray[np.float64], skeleton: Skeleton) -> float:
    at = _by_name(joints3d, skeleton)
    hips, arms = (at[f"left_{name}"] - at[f"right_{name}"] for name in ("hip", "shoulder"))
    return float((np.einsum("ti,ti->t", hips, arms) > 0).mean())


def _check_projection(
    joints3d: NDArray, pixels: NDArray, sequence: Sequence, facts: list[str], faults: list[str]
) -> None:
    seen = project(world_to_camera(joints3d, sequence.camera), sequence.camera)
    gap = np.linalg.norm(seen - pixels, axis=-1)
    gap = gap[np.isfinite(gap)]
    if not len(gap):
        faults.append("no joint is in front of the camera")
        return
    facts.append(f"2D {np.median(gap):.2f} px from projected 3D (median)")
    if np.median(gap) > 0.02 * max(sequence.camera.size):
        faults.append("2D and 3D do not belong together, or the camera is another")


def _check_images(sequence: Sequence, facts: list[str], faults: list[str]) -> None:
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
        faults.append(f"the camera is made for {sequence.camera.size[0]}x{sequence.camera.size[1]}")


def check_detections(source: Human36M, path: Path) -> list[Finding]:
    splits: tuple[Literal["train", "test"], ...] = ("train", "test")
    truth = {sequence.name: sequence for split in splits for sequence in _or_none(source, split)}
    name = path.stem.removeprefix("data_2d_h36m_")
    found = {key: d for key, d in source.detections(name).items() if key in truth}
    gap = np.concatenate([_gaps(found[key], truth[key]) for key in found])
    middle = float(np.median(gap[np.isfinite(gap)]))
    joints = next(iter(found.values())).skeleton.name
    facts = (f"{len(found)} videos", joints, f"2D {middle:.2f} px from projected 3D (median)")
    wrong = ("2D and 3D do not belong together",) if middle > 40 else ()
    return [Finding(f"detections {name}", facts, wrong)]


def _gaps(found: VideoDetections, sequence: Sequence) -> NDArray[np.float64]:
    """Pixels between detections and projected joints in about a hundred frames."""
    thin = slice(None, None, max(1, len(sequence) // 100))
    joints3d = np.asarray(sequence.joints3d)[thin]
    exact = project(world_to_camera(joints3d, sequence.camera), sequence.camera)
    mine = conversion(found.skeleton, sequence.skeleton, allow_missing=True)
    return np.linalg.norm(mine.joints(found.joints2d[thin]) - exact, axis=-1).ravel()


def _or_none(source: Human36M, split: Split) -> list[Sequence]:
    try:
        return source.sequences(split)
    except DataError:  # an archive with one split only
        return []
