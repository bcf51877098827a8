"""Joints of a body found by the names that capture tools give them, or by the tree of bones."""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Sequence as Many

import numpy as np
from numpy.typing import NDArray

SIDES = {"left": "left", "l": "left", "lft": "left", "right": "right", "r": "right", "rgt": "right"}
LIMBS = {
    "hip": ("upleg", "upperleg", "thigh", "hip"),
    "knee": ("knee", "lowerleg", "lowleg", "leg", "shin", "calf"),
    "ankle": ("ankle", "foot"),
    "shoulder": ("upperarm", "uparm", "uarm", "arm", "shldr", "shoulder"),
    "elbow": ("elbow", "forearm", "farm", "lowerarm", "lowarm"),
    "wrist": ("wrist", "hand"),
}
"""Joint of a limb -> names, the first one that exists wins. The joint of a BVH file is at the near
end of the bone that it names: `Arm` is the shoulder, and `Shoulder` beside it the collar bone."""
TRUNK = {
    "neck": ("neck", "upperneck"),
    "skull": ("head", "skull"),
    "top": ("headend", "headtop", "headtopend", "headnub", "headsite", "skullend", "headtip"),
}
_BACK = ("spine", "chest", "abdomen", "torso", "back", "waist", "thorax", "belly")
_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")


def split_name(name: str, prefix: str = "") -> tuple[str, str]:
    """Side (`left`, `right` or empty) and part of the body, in small letters, in a joint's name.

    >>> split_name("mixamorig:LeftUpLeg"), split_name("rForeArm"), split_name("Thigh_L")
    (('left', 'upleg'), ('right', 'forearm'), ('left', 'thigh'))
    """
    words = [w.lower() for w in _WORDS.findall(name.removeprefix(prefix).rpartition(":")[2])]
    words = [word for word in words if not word.isdigit() and word != "j"]
    side = next((SIDES[word] for word in words if word in SIDES), "")
    part = "".join(word for word in words if word not in SIDES)
    for whole in ("left", "right"):
        if not side and part.startswith(whole):
            side, part = whole, part.removeprefix(whole)
    known = {part for parts in LIMBS.values() for part in parts}
    if not side and part[:1] in ("l", "r") and part[1:] in known:
        return SIDES[part[0]], part[1:]
    return side, part


def find_by_name(joints: Many[str]) -> dict[str, tuple[str, str]]:
    """Joints of limbs, neck, `skull` and `top` of the head -> joint of the file, and the reason."""
    first, last = min(joints), max(joints)  # what these two begin with, all begin with
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    prefix = first[: max(first[:same].rfind(c) for c in ":_ .") + 1]
    parts: dict[tuple[str, str], str] = {}
    for joint in joints:
        parts.setdefault(split_name(joint, prefix), joint)
    found = {}
    for target, names in LIMBS.items():
        for side in ("left", "right"):
            if part := next((name for name in names if (side, name) in parts), ""):
                found[f"{side}_{target}"] = (parts[side, part], f"name: {side} {part}")
    for target, names in TRUNK.items():
        if part := next((name for name in names if ("", name) in parts), ""):
            found[target] = (parts["", part], f"name: {part}")
    return found


def back_joints(joints: Many[str]) -> list[str]:
    """Joints whose names are those of the spine."""
    return [joint for joint in joints if any(word in split_name(joint)[1] for word in _BACK)]


def find_by_tree(
    joints: Many[str], parents: Many[int], positions: NDArray[np.float64]
) -> dict[str, tuple[str, str]]:
    """The same as `find_by_name`, by the lengths and the symmetry of the bones.

    The two pairs of equal chains with the longest bones are the legs and the arms; the legs are
    the pair that is nearer to the root. Left is where the hip is on the left of knees that bend
    ahead, which needs right-handed axes.

    Args:
        joints: Names of the joints, each after its parent.
        parents: Index of each joint's parent, -1 for the root.
        positions: Positions in some frames, any units and axes, (T, N, 3).
    """
    length = np.zeros(len(joints))
    for joint, parent in enumerate(parents):
        if parent >= 0:
            steps = positions[:, joint] - positions[:, parent]
            length[joint] = np.median(np.linalg.norm(steps, axis=-1))
    pairs = _equal_chains(parents, length)
    if len(pairs) < 2:
        return {}
    pairs = sorted(pairs, key=lambda pair: -sum(length[list(pair[0])]))[:2]
    legs, arms = sorted(pairs, key=lambda pair: (_depth(parents, pair[0][0]), -_size(length, pair)))
    limbs = {"leg": _three_joints(legs, length), "arm": _three_joints(arms, length)}
    head = _head_chain(parents, length, arms)
    if not head:
        return {}
    found: dict[str, tuple[str, str]] = {}
    across = _to_left(positions, limbs["leg"], head[0])
    for limb, targets in (
        ("leg", ("hip", "knee", "ankle")),
        ("arm", ("shoulder", "elbow", "wrist")),
    ):
        one, other = limbs[limb]
        between = positions[:, one[0]] - positions[:, other[0]]
        if np.einsum("ti,ti->t", between, across).mean() < 0:
            one, other = other, one
        for side, chain in (("left", one), ("right", other)):
            for target, joint in zip(targets, chain, strict=True):
                found[f"{side}_{target}"] = (joints[joint], f"tree: the {side} {limb}")
    found["neck"] = (joints[head[0]], "tree: where the chain of the head begins")
    found["skull"] = (joints[head[min(1, len(head) - 1)]], "tree: on the chain of the head")
    if len(head) == 3 and len(_children(parents, head[1])) == 1:
        found["top"] = (joints[head[2]], "tree: end of the chain of the head")
    return found


def _children(parents: Many[int], joint: int) -> list[int]:
    return [child for child, parent in enumerate(parents) if parent == joint]


def _depth(parents: Many[int], joint: int) -> int:
    """Number of joints above a joint."""
    depth = 0
    while (joint := parents[joint]) >= 0:
        depth += 1
    return depth


def _size(length: NDArray[np.float64], pair: tuple[list[int], list[int]]) -> float:
    return float(sum(length[pair[0]]))


def _chain(parents: Many[int], length: NDArray[np.float64], joint: int) -> list[int]:
    """The longest way from a joint to an end of the tree."""
    ways = [_chain(parents, length, child) for child in _children(parents, joint)]
    return [joint, *max(ways, key=lambda way: sum(length[way]), default=[])]


def _equal_chains(
    parents: Many[int], length: NDArray[np.float64]
) -> list[tuple[list[int], list[int]]]:
    """Pairs of chains of three or more joints, of equal lengths, that begin at the same joint."""
    pairs = []
    for joint in range(len(parents)):
        chains = [_chain(parents, length, child) for child in _children(parents, joint)]
        chains = [chain for chain in chains if len(chain) >= 3]
        for i, one in enumerate(chains):
            for other in chains[i + 1 :]:
                a, b = sum(length[one[1:]]), sum(length[other[1:]])
                if len(one) == len(other) and abs(a - b) < 0.1 * max(a, b):
                    pairs.append((one, other))
    return pairs


def _three_joints(
    pair: tuple[list[int], list[int]], length: NDArray[np.float64]
) -> tuple[list[int], list[int]]:
    """The three joints in a row of each chain with the two longest bones."""
    first = pair[0]
    start = max(range(len(first) - 2), key=lambda k: length[first[k + 1]] + length[first[k + 2]])
    return pair[0][start : start + 3], pair[1][start : start + 3]


def _head_chain(
    parents: Many[int], length: NDArray[np.float64], arms: tuple[list[int], list[int]]
) -> list[int]:
    """The longest chain beside the arms, from the joint that they begin at."""
    beside = [
        _chain(parents, length, child)
        for child in _children(parents, parents[arms[0][0]])
        if child not in (arms[0][0], arms[1][0])
    ]
    return max(beside, key=lambda chain: sum(length[chain]), default=[])


def _to_left(
    positions: NDArray[np.float64], legs: tuple[Iterable[int], Iterable[int]], neck: int
) -> NDArray[np.float64]:
    """Vector to the left of the body in each frame, from knees that bend ahead, (T, 3)."""
    one, other = ([positions[:, joint] for joint in leg] for leg in legs)
    ahead = sum(knee - 0.5 * (hip + ankle) for hip, knee, ankle in (one, other))
    up = positions[:, neck] - 0.5 * (one[0] + other[0])
    return np.cross(up, np.asarray(ahead))
