"""The body of a drawn person: a mesh hung on 17 joints, and the clothes, hair and skin it wears."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline import rng
from pipeline.skeleton import H36M17

Array = NDArray[np.float64]

MATERIALS = (
    "skin", "hair", "white", "pupil", "brow", "lips", "shirt", "back", "panel", "logo", "button",
    "collar", "sleeve", "cuff", "hem", "belt", "trousers", "shin", "shoe", "sole", "nose",
)  # fmt: skip
_LEG_FRAMES = ("thigh", "knee", "shank", "foot")
_ARM_FRAMES = ("arm", "elbow", "forearm", "hand")
FRAMES = (
    *("pelvis", "waist", "chest", "head"),
    *(f"{side}_{part}" for side in ("left", "right") for part in _LEG_FRAMES + _ARM_FRAMES),
)
"""Coordinate frames that ride on the joints: forward, left, up along the bone; see `frames`."""

# One loft is a tube: rings from bottom to top, each (frame, along the frame's up in bone lengths,
# radius forward, radius sideways, shift forward, material of the band above it). Metres, set by eye
# on an adult of 1.75 m.
_TORSO = (
    ("pelvis", -0.40, 0.001, 0.001, 0.0, "trousers"),
    ("pelvis", -0.32, 0.085, 0.125, 0.0, "trousers"),
    ("pelvis", 0.0, 0.118, 0.172, -0.008, "trousers"),
    ("pelvis", 0.42, 0.103, 0.150, 0.0, "belt"),
    ("pelvis", 0.55, 0.101, 0.146, 0.0, "shirt"),
    ("waist", 0.0, 0.100, 0.140, 0.0, "shirt"),
    ("chest", -0.68, 0.108, 0.150, 0.004, "shirt"),
    ("chest", -0.42, 0.118, 0.164, 0.008, "shirt"),
    ("chest", -0.20, 0.112, 0.166, 0.004, "shirt"),
    ("chest", -0.05, 0.085, 0.130, 0.0, "shirt"),
    ("chest", 0.06, 0.058, 0.066, 0.005, "collar"),
    ("chest", 0.14, 0.052, 0.054, 0.008, "skin"),
    ("head", -0.72, 0.052, 0.054, 0.005, "skin"),
)
_HEAD = (
    ("head", -0.90, 0.001, 0.001, 0.045, "skin"),
    ("head", -0.86, 0.050, 0.044, 0.035, "skin"),
    ("head", -0.70, 0.082, 0.068, 0.018, "skin"),
    ("head", -0.50, 0.096, 0.076, 0.010, "skin"),
    ("head", -0.32, 0.100, 0.078, 0.006, "skin"),
    ("head", -0.14, 0.092, 0.073, 0.002, "hair"),
    ("head", 0.0, 0.068, 0.054, -0.004, "hair"),
    ("head", 0.07, 0.001, 0.001, -0.01, "hair"),
)
_ARM = (
    ("hand", -0.74, 0.001, 0.001, 0.0, "skin"),
    ("hand", -0.66, 0.016, 0.032, 0.0, "skin"),
    ("hand", -0.36, 0.022, 0.044, 0.0, "skin"),
    ("hand", -0.02, 0.025, 0.030, 0.0, "hem"),
    ("hand", 0.16, 0.030, 0.033, 0.0, "cuff"),
    ("hand", 0.62, 0.042, 0.042, 0.0, "cuff"),
    ("elbow", 0.0, 0.044, 0.044, 0.0, "cuff"),
    ("arm", -0.66, 0.049, 0.049, 0.0, "sleeve"),
    ("arm", -0.30, 0.055, 0.055, 0.0, "sleeve"),
    ("arm", -0.04, 0.064, 0.062, 0.0, "sleeve"),
    ("arm", 0.09, 0.050, 0.048, 0.0, "sleeve"),
    ("arm", 0.14, 0.010, 0.010, 0.0, "sleeve"),
)
_LEG = (
    ("shank", -1.02, 0.040, 0.038, 0.0, "shin"),
    ("shank", -0.80, 0.046, 0.042, -0.004, "shin"),
    ("shank", -0.38, 0.062, 0.056, -0.012, "shin"),
    ("shank", -0.10, 0.060, 0.057, 0.0, "shin"),
    ("knee", 0.0, 0.061, 0.060, 0.004, "trousers"),
    ("thigh", -0.72, 0.072, 0.070, 0.004, "trousers"),
    ("thigh", -0.35, 0.086, 0.082, 0.004, "trousers"),
    ("thigh", -0.04, 0.096, 0.088, 0.0, "trousers"),
    ("thigh", 0.12, 0.070, 0.060, 0.0, "trousers"),
    ("thigh", 0.20, 0.01, 0.01, 0.0, "trousers"),
)
_FOOT = (
    ("foot", -0.085, 0.001, 0.001, 0.045, "shoe"),
    ("foot", -0.075, 0.034, 0.030, 0.040, "shoe"),
    ("foot", 0.0, 0.052, 0.042, 0.022, "shoe"),
    ("foot", 0.09, 0.036, 0.050, 0.044, "shoe"),
    ("foot", 0.17, 0.024, 0.044, 0.056, "shoe"),
    ("foot", 0.205, 0.001, 0.001, 0.060, "shoe"),
)
_Corners = tuple[tuple[float, float, float], ...]


def _patch(
    left: tuple[float, float], up: tuple[float, float], forward: tuple[float, float]
) -> _Corners:
    """Corners (forward, left, along) of a patch; left and forward are (inner, outer)."""
    (inner, outer), (low, high), (near, far) = left, up, forward
    return (far, outer, low), (near, inner, low), (near, inner, high), (far, outer, high)


_NOSE = ((0.104, 0.022, -0.6), (0.14, 0.0, -0.6), (0.108, 0.0, -0.38), (0.108, 0.004, -0.38))
# Patches lie on the left and, mirrored, on the right: (frame, material, corners).
_PATCHES: tuple[tuple[str, str, _Corners], ...] = (
    ("head", "white", _patch((0.014, 0.046), (-0.43, -0.345), (0.105, 0.088))),
    ("head", "pupil", _patch((0.020, 0.038), (-0.425, -0.345), (0.105, 0.095))),
    ("head", "brow", _patch((0.010, 0.052), (-0.315, -0.275), (0.109, 0.088))),
    ("head", "lips", _patch((0.0, 0.030), (-0.73, -0.68), (0.103, 0.097))),
    (
        "head",
        "nose",
        _NOSE,
    ),
    ("chest", "button", _patch((0.0, 0.011), (-0.665, -0.575), (0.128, 0.128))),
    ("chest", "button", _patch((0.0, 0.011), (-0.465, -0.375), (0.128, 0.128))),
    ("chest", "button", _patch((0.0, 0.011), (-0.265, -0.175), (0.128, 0.128))),
    ("chest", "logo", _patch((0.045, 0.105), (-0.46, -0.27), (0.121, 0.117))),
)


@dataclass(frozen=True, eq=False)
class Mesh:
    """Vertices in the frames that carry them, and faces of four corners.

    Args:
        frame: Which of `FRAMES` carries a vertex, (V,).
        local: Metres forward and left, bone lengths up, (V, 3).
        faces: Corners, counter-clockwise seen from outside, (F, 4).
        material: Index into `MATERIALS`, (F,).
        row: Band and column of a face on its tube, for patterns, (F,) each; column 0 looks forward.
        column: See `row`.
        nearer: Metres by which a face is drawn nearer than it is (patches lie on the skin), (F,).
        cloth: Whether a face is part of the trunk, (F,).
    """

    frame: NDArray[np.int64]
    local: Array
    faces: NDArray[np.int64]
    material: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    nearer: Array


def _face_material(loft: str, band: int, column: int, columns: int, named: str) -> str:
    """What a face is made of: fronts and backs differ here and nowhere else."""
    off = min(column, columns - column) / columns  # 0 forward, 0.5 backward
    if loft == "torso" and named == "shirt":
        return "panel" if off < 0.05 else ("shirt" if off <= 0.26 else "back")
    if loft == "head" and named == "skin" and off > (0.22, 0.42, 0.32, 0.28, 0.24)[band]:
        return "hair" if band > 1 else "skin"
    if loft == "foot" and off < 0.1:
        return "sole"
    return named


@functools.cache
def make_mesh() -> Mesh:
    """The one mesh that every person is drawn with."""
    frame: list[int] = []
    local: list[tuple[float, float, float]] = []
    faces: list[tuple[int, int, int, int]] = []
    marks: list[tuple[int, int, int, float]] = []
    lofts = [("torso", "", _TORSO, 12), ("head", "", _HEAD, 10)]
    for side in ("left_", "right_"):
        lofts += [("arm", side, _ARM, 6), ("leg", side, _LEG, 6), ("foot", side, _FOOT, 6)]
    for name, side, rings, columns in lofts:
        for band, (at, along, forward, sideways, shift, named) in enumerate(rings):
            first = len(local)
            for column in range(columns):
                angle = 2 * np.pi * (column - 0.5) / columns
                frame.append(FRAMES.index(side + at))
                local.append((shift + forward * np.cos(angle), sideways * np.sin(angle), along))
                if band + 1 < len(rings):
                    here, beside = first + column, first + (column + 1) % columns
                    faces.append((here, beside, beside + columns, here + columns))
                    kind = _face_material(name, band, column, columns, named)
                    marks.append((MATERIALS.index(kind), band, column, 0.0))
    for at, kind, corners in _PATCHES:
        for mirror in (1, -1):
            first = len(local)
            frame += [FRAMES.index(at)] * 4
            local += [(f, mirror * left, up) for f, left, up in corners]
            # left to right and bottom to top, seen from outside
            ring = (first + 1, first, first + 3, first + 2)
            faces.append(ring if mirror == 1 else ring[::-1])
            marks.append((MATERIALS.index(kind), 0, 0, 0.05))
    material, row, column_of, nearer = zip(*marks, strict=True)
    return Mesh(
        np.array(frame), np.array(local), np.array(faces),
        np.array(material), np.array(row), np.array(column_of), np.array(nearer),
    )  # fmt: skip


def normalise_vectors(vectors: Array) -> Array:
    """Vectors (..., 3) at length 1; zero stays zero."""
    return vectors / np.maximum(np.sqrt((vectors * vectors).sum(-1, keepdims=True)), 1e-9)


def cross(a: Array, b: Array) -> Array:
    """Cross product, (..., 3); several times faster than NumPy's on few vectors."""
    return a[..., [1, 2, 0]] * b[..., [2, 0, 1]] - a[..., [2, 0, 1]] * b[..., [1, 2, 0]]


_CHAINS = (("hip", "knee", "ankle"), ("shoulder", "elbow", "wrist"))
_LIMBS = np.array(
    [
        [H36M17.index(f"{side}_{name}") for name in chain]
        for side in ("left", "right")
        for chain in _CHAINS
    ]
)


def frames(joints: Array) -> tuple[Array, Array, Array]:
    """Frames that ride on the joints of one person.

    Facing comes from hips, shoulders, nose and the planes in which knees and elbows bend; toes are
    where the knee's plane and the floor point.

    Args:
        joints: H36M17, world metres, z up, (17, 3).

    Returns:
        Origins (K, 3), axes forward, left, up (K, 3, 3) and bone lengths (K,) of `FRAMES`.
    """
    limbs = joints[_LIMBS]
    bones = limbs[:, :2] - limbs[:, 1:]
    along = normalise_vectors(bones)
    trunk = joints[[4, 11]] - joints[[1, 14]]
    left = cross(along[:, 0], along[:, 1]) * _BENDS
    left = left + np.tile(normalise_vectors(trunk) * [[0.25], [0.15]], (2, 1))
    up, lefts = np.empty((20, 3)), np.empty((20, 3))
    up[:4] = joints[[7, 8, 8, 10]] - joints[[0, 0, 7, 8]]
    lefts[:3] = trunk[0], trunk[0] + trunk[1], trunk[1]
    lefts[3] = cross(up[3], joints[9] - joints[8]) / 0.21 + 0.008 * normalise_vectors(trunk[1])
    # the foot stands across the shank, and lies flatter than that on the floor
    toes = cross(normalise_vectors(left[::2]), along[::2, 1])
    toes[:, 2] *= 0.4
    up[4:].reshape(4, 4, 3)[:] = bones[:, [0, 0, 1, 1]]
    up[4:].reshape(4, 4, 3)[:, 1] = along.sum(axis=1)
    up[4:].reshape(4, 4, 3)[::2, 3] = toes
    lefts[4:].reshape(4, 4, 3)[:] = left[:, None]
    origins = np.concatenate([joints[[0, 7, 8, 10]], limbs[:, [0, 1, 1, 2]].reshape(16, 3)])
    lengths = np.sqrt((up * up).sum(-1))
    lengths[_METRES] = 1.0
    up = normalise_vectors(up)
    axes = np.empty((20, 3, 3))
    axes[:, 0] = normalise_vectors(cross(lefts, up))
    axes[:, 1] = cross(up, axes[:, 0])
    axes[:, 2] = up
    return origins, axes, lengths


_BENDS = np.array([[1.0], [-1.0], [1.0], [-1.0]])
_METRES = [FRAMES.index(f"{side}_foot") for side in ("left", "right")]


def pose_mesh(joints: Array, build: float) -> Array:
    """Vertices of the mesh on a person's joints.

    Args:
        joints: H36M17, world metres, (17, 3).
        build: How stout: 1 is average.

    Returns:
        World metres, (V, 3).
    """
    body = make_mesh()
    origins, axes, lengths = frames(joints)
    local = body.local * np.array([build, build, 1.0])
    local[:, 2] *= lengths[body.frame]
    return origins[body.frame] + np.einsum("vi,vij->vj", local, axes[body.frame])


SKINS = np.array(
    [
        (244, 210, 186),
        (236, 192, 160),
        (224, 172, 138),
        (198, 134, 94),
        (141, 91, 60),
        (106, 70, 50),
    ]
)
HAIRS = np.array(
    [(28, 22, 20), (74, 48, 32), (120, 78, 40), (190, 150, 80), (120, 120, 122), (140, 60, 30)]
)


@functools.lru_cache(maxsize=64)
def draw_clothes(key: int) -> tuple[Array, float]:
    """What somebody looks like: colours of the mesh's faces, RGB 0-255, (F, 3), and build.

    Clothes are the same on the left and on the right: only the body's front tells them apart.
    """
    draw = rng.uniform(key, "wardrobe", lanes=40)
    body = make_mesh()
    tone = int(draw[0] * len(SKINS))
    skin = SKINS[tone] * (0.92 + 0.16 * draw[1])
    # dark skin goes with dark hair, so that a face never looks like the back of a head
    hair = HAIRS[int(draw[2] * (len(HAIRS) if tone < 3 else 2))] * (0.8 + 0.4 * draw[3])
    grey = 20 + 225 * draw[4:25].reshape(7, 3).mean(axis=1, keepdims=True)
    colours = grey + (0.25 + 0.75 * draw[25]) * (20 + 225 * draw[4:25].reshape(7, 3) - grey)
    shirt, inner, back, trousers, shoe, logo, second = colours
    long_sleeves = draw[31] < 0.55
    palette = {
        "skin": skin,
        "nose": 0.93 * skin,
        "hair": hair,
        "brow": 0.8 * hair,
        "white": np.full(3, 245.0),
        "pupil": np.full(3, 25.0),
        "lips": 0.6 * skin + np.array([60.0, 0, 10]),
        "shirt": shirt,
        "sleeve": shirt,
        "panel": inner if draw[26] < 0.5 else shirt,
        "back": back if draw[27] < 0.25 else shirt * 0.94,
        "logo": logo if draw[28] < 0.6 else shirt,
        "button": logo if draw[29] < 0.7 else shirt,
        "collar": inner if draw[30] < 0.5 else shirt,
        "cuff": shirt if long_sleeves else skin,
        "hem": shirt * 0.8 if long_sleeves else skin,
        "belt": 0.3 * trousers,
        "trousers": trousers,
        "shin": trousers if draw[32] < 0.75 else skin,
        "shoe": shoe,
        "sole": np.full(3, 235.0) * draw[33],
    }
    faces = np.stack([palette[name] for name in MATERIALS])[body.material]
    stripes = (body.row, body.row + body.column, body.column, None, None, None)[int(6 * draw[34])]
    if stripes is not None:
        printed = _PATTERNED[body.material] & (stripes % 2 == 0)
        faces[printed] = 0.35 * faces[printed] + 0.65 * second
    faces.setflags(write=False)
    return faces, 0.88 + 0.3 * float(draw[35])


_PATTERNED = np.array([name in ("shirt", "back", "sleeve") for name in MATERIALS])
