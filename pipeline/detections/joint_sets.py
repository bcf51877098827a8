"""Joint sets of files of other tools, found by the names of the joints or by their number."""

from __future__ import annotations

from pipeline.errors import DataError
from pipeline.skeleton import (
    BLAZEPOSE33,
    BODY25,
    COCO17,
    DETECTOR_SKELETONS,
    H36M17,
    HALPE26,
    MPI3DHP17,
    MPII16,
    Skeleton,
)


def skeleton_by_count(joints: int, place: str, skeleton: str | None = None) -> Skeleton:
    """Joint set of a tool's output, found by its number of joints if it has no name.

    Args:
        joints: Number of joints in the file.
        place: File and position in it, for messages.
        skeleton: Name of the joint set, if the user gives one.

    Raises:
        DataError: If the named set has another number of joints, or no known set of detectors
            has that many.
    """
    if skeleton is not None:
        if skeleton not in DETECTOR_SKELETONS:
            raise DataError(
                f"{place}: no joint set is called {skeleton!r}; "
                f"known are {', '.join(DETECTOR_SKELETONS)}"
            )
        named = DETECTOR_SKELETONS[skeleton]
        if len(named) != joints:
            raise DataError(
                f"{place}: has {joints} joints, {skeleton} has "
                f"{len(named)}: {', '.join(named.joints)}"
            )
        return named
    usual = {17: COCO17, 25: BODY25, 26: HALPE26, 16: MPII16, 33: BLAZEPOSE33}
    if joints not in usual:
        known = ", ".join(f"{s.name} ({len(s)})" for s in DETECTOR_SKELETONS.values())
        raise DataError(
            f"{place}: {joints} joints without names are not a known set; known are {known}; let "
            "the tool write one of these, or the names of its joints (meta_info: keypoint_id2name)"
        )
    return usual[joints]


_OTHER_NAMES = {"neck": "thorax", "hip": "pelvis", "root": "pelvis", "head_top": "head"}
"""Name of a joint in files of other tools -> our name."""


_MMPOSE_NAMES = {"right_foot": "right_ankle", "left_foot": "left_ankle", "neck_base": "nose"}
"""Name of a joint of Human3.6M in MMPose -> our name."""


def skeleton_by_names(names: list[str]) -> Skeleton | None:
    """Known joint set with these names, ours or other tools', in this order, if there is one."""
    if tuple("pelvis" if name == "root" else name for name in names) == MPI3DHP17.joints:
        return MPI3DHP17
    if tuple(_MMPOSE_NAMES.get(n, _OTHER_NAMES.get(n, n)) for n in names) == H36M17.joints:
        return H36M17
    ours = tuple(_OTHER_NAMES.get(name, name) for name in names)
    for skeleton in DETECTOR_SKELETONS.values():
        if ours in (skeleton.joints, tuple(skeleton.vocabulary)) or tuple(names) == skeleton.joints:
            return skeleton
    return None
