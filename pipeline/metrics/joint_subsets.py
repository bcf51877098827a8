"""Subsets of joints that benchmarks evaluate, as indices into a joint set."""

from __future__ import annotations

from pipeline.errors import DataError
from pipeline.skeleton import MPI3DHP17, Skeleton

LIMB_JOINTS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
"""Joints that a person has on both sides."""

SIDES = ("left", "right")

JOINTS_OF_3DPCK = (
    *("head", "thorax"),
    *(f"{side}_{joint}" for joint in LIMB_JOINTS for side in SIDES),
)
"""The 14 joints of MPI-INF-3DHP's 3DPCK: head, neck and limbs."""


def joints_3dpck(skeleton: Skeleton = MPI3DHP17) -> tuple[int, ...]:
    """Indices of the 14 joints that MPI-INF-3DHP evaluates: top of the head, neck and the limbs.

    Raises:
        DataError: If the joint set lacks one.
    """
    missing = [name for name in JOINTS_OF_3DPCK if name not in skeleton.vocabulary]
    if missing:
        raise DataError(f"{skeleton.name} has no {', '.join(missing)}; 3DPCK counts them")
    return tuple(skeleton.vocabulary[name] for name in JOINTS_OF_3DPCK)


def evaluated_joints(skeleton: Skeleton, count: int = 17, *, root: bool = True) -> tuple[int, ...]:
    """Indices of the evaluated joints: those that an error is a mean over.

    Args:
        skeleton: The joint set.
        count: 17 for all of a set, 16 without the nose, 14 without pelvis, spine and nose.
        root: Whether the root, whose error is zero in root-relative poses, is evaluated.

    Raises:
        DataError: If the joint set does not have that many.

    >>> [len(evaluated_joints(MPI3DHP17, count, root=False)) for count in (17, 16, 14)]
    [16, 15, 14]
    """
    dropped: tuple[str, ...] = {17: (), 16: ("nose",), 14: ("pelvis", "spine", "nose")}[count]
    kept = [index for name, index in skeleton.vocabulary.items() if name not in dropped]
    if dropped and len(kept) != count:
        raise DataError(f"{skeleton.name} has {len(kept)} of the {count} joints to be evaluated")
    return tuple(index for index in kept if root or index != skeleton.root)
