"""Joint sets (skeletons): names, parents, left-right pairs, and conversion between sets by name."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, UsageError


@dataclass(frozen=True)
class Skeleton:
    """A set of named joints.

    Args:
        name: Name of the set, as in configs and manifests.
        joints: Joint names in the order of the array axis J.
        parents: Index of each joint's parent, -1 for the root.
        meanings: Own name -> common name of the joints whose two names differ (MPII's
            `upper_neck` is the `thorax` of Human3.6M).
    """

    name: str
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    meanings: dict[str, str] = field(default_factory=dict, hash=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.parents) != len(self.joints) or len(set(self.joints)) != len(self.joints):
            raise ValueError(
                f"{self.name}: {len(self.joints)} joints need as many parents and distinct names"
            )

    def __len__(self) -> int:
        return len(self.joints)

    @functools.cached_property
    def left(self) -> tuple[int, ...]:
        """Indices of the left joints; entry i is the pair of entry i of `right`."""
        return tuple(i for i, name in enumerate(self.joints) if name.startswith("left_"))

    @functools.cached_property
    def right(self) -> tuple[int, ...]:
        """Indices of the right joints; entry i is the pair of entry i of `left`."""
        return tuple(
            self.joints.index("right_" + self.joints[i].removeprefix("left_")) for i in self.left
        )

    @functools.cached_property
    def swap(self) -> tuple[int, ...]:
        """Permutation of the joint axis that swaps left and right; applied twice it is identity."""
        order = list(range(len(self.joints)))
        for left, right in zip(self.left, self.right, strict=True):
            order[left], order[right] = right, left
        return tuple(order)

    @functools.cached_property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """Bones as (parent, child) index pairs."""
        return tuple((parent, child) for child, parent in enumerate(self.parents) if parent >= 0)

    @functools.cached_property
    def root(self) -> int:
        """Index of the joint that root-relative positions are relative to."""
        return self.parents.index(-1)

    def facts(self) -> dict[str, Any]:
        """Name, joints and parents of this set, for files with poses."""
        return {"skeleton": self.name, "joints": self.joints, "parents": self.parents}

    @functools.cached_property
    def vocabulary(self) -> dict[str, int]:
        """Common name of each joint -> its index."""
        return {self.meanings.get(name, name): i for i, name in enumerate(self.joints)}

    def index(self, name: str) -> int:
        """Index of a joint, by the name it has in this set.

        Raises:
            KeyError: If there is no such joint.
        """
        if name not in self.joints:
            raise KeyError(f"{self.name} has no joint {name!r}; it has {', '.join(self.joints)}")
        return self.joints.index(name)


def _sides(*names: str) -> tuple[str, ...]:
    return tuple(f"{side}_{name}" for name in names for side in ("left", "right"))


H36M17 = Skeleton(
    "H36M17",
    (
        "pelvis",
        "right_hip",
        "right_knee",
        "right_ankle",
        "left_hip",
        "left_knee",
        "left_ankle",
        "spine",
        "thorax",
        "nose",
        "head",
        "left_shoulder",
        "left_elbow",
        "left_wrist",
        "right_shoulder",
        "right_elbow",
        "right_wrist",
    ),
    (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15),
)
"""Human3.6M's 17 joints; lifters use them. `thorax`: base of the neck; `head`: top of the head."""

H36M18 = Skeleton("H36M18", (*H36M17.joints, "mid_shoulder"), (*H36M17.parents, 8))
"""H36M17 and the midpoint of the shoulders; Integral and 3DMPPE train on it."""

COCO17 = Skeleton(
    "COCO17",
    ("nose", *_sides("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")),
    (-1, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14),
)

MPII16 = Skeleton(
    "MPII16",
    (
        "right_ankle",
        "right_knee",
        "right_hip",
        "left_hip",
        "left_knee",
        "left_ankle",
        "pelvis",
        "thorax",
        "upper_neck",
        "head_top",
        "right_wrist",
        "right_elbow",
        "right_shoulder",
        "left_shoulder",
        "left_elbow",
        "left_wrist",
    ),
    (1, 2, 6, 6, 3, 4, -1, 6, 7, 8, 11, 12, 7, 7, 13, 14),
    {"thorax": "mid_shoulder", "upper_neck": "thorax", "head_top": "head"},
)

MPI3DHP17 = Skeleton(
    "MPI3DHP17",
    (
        "head_top",
        "neck",
        "right_shoulder",
        "right_elbow",
        "right_wrist",
        "left_shoulder",
        "left_elbow",
        "left_wrist",
        "right_hip",
        "right_knee",
        "right_ankle",
        "left_hip",
        "left_knee",
        "left_ankle",
        "pelvis",
        "spine",
        "head",
    ),
    (16, 15, 1, 2, 3, 1, 5, 6, 14, 8, 9, 14, 11, 12, -1, 14, 1),
    {"head_top": "head", "neck": "thorax", "head": "nose"},
)

_ARMS = tuple(
    f"{side}_{name}" for side in ("right", "left") for name in ("shoulder", "elbow", "wrist")
)
_LEGS = tuple(f"{side}_{name}" for side in ("right", "left") for name in ("hip", "knee", "ankle"))
_FACE = ("right_eye", "left_eye", "right_ear", "left_ear")
_FEET = tuple(
    f"{side}_{name}" for side in ("left", "right") for name in ("big_toe", "small_toe", "heel")
)

BODY25 = Skeleton(
    "BODY25",
    ("nose", "thorax", *_ARMS, "pelvis", *_LEGS, *_FACE, *_FEET),
    (1, 8, 1, 2, 3, 1, 5, 6, -1, 8, 9, 10, 8, 12, 13, 0, 0, 15, 16, 14, 19, 14, 11, 22, 11),
)
"""OpenPose's 25 joints. OpenPose's neck is the midpoint of the shoulders, as is our `thorax`."""

_COCO_PARENTS = (18, 0, 0, 1, 2, 18, 18, 5, 6, 7, 8, 19, 19, 11, 12, 13, 14)

HALPE26 = Skeleton(
    "HALPE26",
    (*COCO17.joints, "head", "thorax", "pelvis", *_sides("big_toe", "small_toe", "heel")),
    (*_COCO_PARENTS, 18, 19, -1, 15, 16, 15, 16, 15, 16),
)
"""Halpe's 26 joints (AlphaPose, RTMPose): COCO17, top of the head, neck, pelvis and feet."""

BLAZEPOSE33 = Skeleton(
    "BLAZEPOSE33",
    (
        "nose",
        *(f"{side}_eye{part}" for side in ("left", "right") for part in ("_inner", "", "_outer")),
        *_sides("ear", "mouth", "shoulder", "elbow", "wrist"),
        *_sides("pinky", "index", "thumb", "hip", "knee", "ankle", "heel", "foot_index"),
    ),
    (
        *(-1, 0, 1, 2, 0, 4, 5, 3, 6, 0, 0),  # head
        *(0, 0, 11, 12, 13, 14, 15, 16, 15, 16, 15, 16),  # arms and hands
        *(11, 12, 23, 24, 25, 26, 27, 28, 29, 30),  # legs and feet
    ),
)
"""BlazePose's 33 joints; `left_foot_index` is the tip of the left foot."""

SKELETONS = {s.name: s for s in (H36M17, H36M18, COCO17, MPII16, MPI3DHP17)}
"""Joint sets that configs and commands accept by name."""

DETECTOR_SKELETONS = {
    s.name: s for s in (COCO17, HALPE26, BODY25, MPII16, H36M17, MPI3DHP17, BLAZEPOSE33)
}
"""Joint sets that files with 2D detections may have; tried in this order."""


def get_skeleton(name: str) -> Skeleton:
    """Look up a joint set of `SKELETONS` by name.

    Raises:
        UsageError: If there is no joint set of this name.
    """
    if name not in SKELETONS:
        raise UsageError(f"no joint set {name!r}; there are {', '.join(SKELETONS)}")
    return SKELETONS[name]


MIDPOINTS = {
    "pelvis": ("left_hip", "right_hip"),
    "mid_shoulder": ("left_shoulder", "right_shoulder"),
    "thorax": ("left_shoulder", "right_shoulder"),
    "spine": ("pelvis", "thorax"),
}
"""Joint -> the two joints whose midpoint replaces it where a joint set lacks it."""

EXTRAPOLATED = {"head": (("left_ear", "right_ear"), ("left_shoulder", "right_shoulder"), 0.55)}
"""Joint -> two pairs of joints and a share: the joint is made up on the line from the midpoint of
the second pair through that of the first one, beyond it by that share of their distance."""

APPROXIMATED = ("thorax", "spine", *EXTRAPOLATED)
"""Joints that are not where they are made up: data sets that have them label other places.
`pelvis` and `mid_shoulder` are midpoints by definition."""


@dataclass(frozen=True)
class Conversion:
    """Mapping of joints from one joint set to another; made by `make_conversion`.

    Args:
        source: Joint set of the input.
        target: Joint set of the output.
        sources: Indices of the source joints whose mean is each target joint, (J, 4), repeated to
            fill the row; -1 where missing.
        made_up: Names of target joints that are made up from several source joints: midpoints,
            and those of `EXTRAPOLATED`.
        missing: Names of target joints that have no source.
        approximate: Whether each target joint is made up and only approximates the joint, (J,).
        weights: Factors of the sources before their mean, (J, 4): 1 for midpoints.
    """

    source: Skeleton
    target: Skeleton
    sources: NDArray[np.int64]
    made_up: tuple[str, ...]
    missing: tuple[str, ...]
    approximate: NDArray[np.bool_]
    weights: NDArray[np.float64]

    def joints(self, joints: NDArray[np.floating]) -> NDArray[np.floating]:
        """Convert joints, (..., J, C), from source to target; missing joints are NaN."""
        self._check(joints.shape[-2])
        gathered = joints[..., self.sources, :]
        if (self.weights != 1).any():
            gathered = gathered * self.weights[..., None].astype(joints.dtype)
        converted = gathered.mean(axis=-2, dtype=joints.dtype)
        converted[..., self.sources[:, 0] < 0, :] = np.nan
        return converted

    def score(self, score: NDArray[np.floating]) -> NDArray[np.floating]:
        """Convert scores, (..., J): the lowest score of a joint's sources, 0 if it has none."""
        self._check(score.shape[-1])
        converted = score[..., self.sources].min(axis=-1)
        converted[..., self.sources[:, 0] < 0] = 0
        return converted

    def _check(self, joints: int) -> None:
        if joints != len(self.source):
            raise DataError(
                f"an array with {joints} joints is not {self.source.name} "
                f"({len(self.source)} joints)"
            )


@functools.lru_cache
def make_conversion(
    source: Skeleton,
    target: Skeleton,
    *,
    allow_missing: bool = False,
    extrapolate: bool | None = None,
) -> Conversion:
    """Map the joints of one set to those of another by name.

    Args:
        source: Joint set of the input.
        target: Joint set of the output.
        allow_missing: Accept target joints that have no source; they become NaN with score 0.
        extrapolate: Make up the joints of `EXTRAPOLATED` that the source lacks; by default only for
            BLAZEPOSE33, whose joints are all estimates. In data sets, which are labelled with the
            others, such a joint stays missing.

    Raises:
        DataError: If a target joint has no source and `allow_missing` is false, or if no joint is
            shared.
    """
    rows = [_sources(meaning, source.vocabulary) for meaning in target.vocabulary]
    weights = np.ones((len(target), 4))
    if source == BLAZEPOSE33 if extrapolate is None else extrapolate:
        for i, meaning in enumerate(target.vocabulary):
            if not rows[i] and meaning in EXTRAPOLATED:
                near, far, share = EXTRAPOLATED[meaning]
                rows[i] = _all_of((*near, *far), source.vocabulary)
                weights[i] = np.repeat([2 * (1 + share), -2 * share], 2)
    missing = tuple(name for name, row in zip(target.joints, rows, strict=True) if not row)
    if len(missing) == len(target) or (missing and not allow_missing):
        raise DataError(
            f"{source.name} cannot become {target.name}: no source for {', '.join(missing)}; "
            f"{source.name} has {', '.join(source.joints)}"
        )
    made_up = tuple(
        name for name, row in zip(target.joints, rows, strict=True) if len(set(row)) > 1
    )
    filled = [(row * 4)[:4] if row else (-1,) * 4 for row in rows]
    approximate = [
        len(set(row)) > 1 and meaning in APPROXIMATED
        for meaning, row in zip(target.vocabulary, rows, strict=True)
    ]
    return Conversion(
        source, target, np.array(filled), made_up, missing, np.array(approximate), weights
    )


def _all_of(names: tuple[str, ...], vocabulary: dict[str, int]) -> tuple[int, ...]:
    """Indices of joints; empty if one of them is not there."""
    return tuple(vocabulary[n] for n in names) if vocabulary.keys() >= {*names} else ()


def _sources(meaning: str, vocabulary: dict[str, int]) -> tuple[int, ...]:
    """Indices of the 1, 2 or 4 source joints whose mean is the joint; empty if there are none."""
    if meaning in vocabulary:
        return (vocabulary[meaning],)
    parts = [_sources(part, vocabulary) for part in MIDPOINTS.get(meaning, ())]
    if not parts or not all(parts):
        return ()
    longest = max(len(part) for part in parts)
    return tuple(i for part in parts for i in part * (longest // len(part)))
