"""The body mesh of a rendered person on 17 joints, and the colours of clothes, hair and skin."""

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
JOINT_FRAMES = (
    *("pelvis", "waist", "chest", "head"),
    *(f"{side}_{part}" for side in ("left", "right") for part in _LEG_FRAMES + _ARM_FRAMES),
)
"""Coordinate frames fixed to the joints: forward, left, up along the bone; see `joint_frames`."""

# Tubes of the mesh: rings from bottom to top, each (frame, position along the frame's up axis in
# bone lengths, radius forward, radius sideways, shift forward, material of the band above it).
# Metres, set by eye on an adult of 1.75 m.
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
    """Corners (forward, left, up) of a patch from ranges; left and forward are (inner, outer)."""
    (inner, outer), (low, high), (near, far) = left, up, forward
    return (far, outer, low), (near, inner, low), (near, inner, high), (far, outer, high)


_NOSE = ((0.104, 0.022, -0.6), (0.14, 0.0, -0.6), (0.108, 0.0, -0.38), (0.108, 0.004, -0.38))
# Patches on the left of the body, repeated mirrored on the right: (frame, material, corners).
_PATCHES: tuple[tuple[str, str, _Corners], ...] = (
    ("head", "white", _patch((0.014, 0.046), (-0.43, -0.345), (0.105, 0.088))),
    ("head", "pupil", _patch((0.020, 0.038), (-0.425, -0.345), (0.105, 0.095))),
    ("head", "brow", _patch((0.010, 0.052), (-0.315, -0.275), (0.109, 0.088))),
    ("head", "lips", _patch((0.0, 0.030), (-0.73, -0.68), (0.103, 0.097))),
    ("head", "nose", _NOSE),
    ("chest", "button", _patch((0.0, 0.011), (-0.665, -0.575), (0.128, 0.128))),
    ("chest", "button", _patch((0.0, 0.011), (-0.465, -0.375), (0.128, 0.128))),
    ("chest", "button", _patch((0.0, 0.011), (-0.265, -0.175), (0.128, 0.128))),
    ("chest", "logo", _patch((0.045, 0.105), (-0.46, -0.27), (0.121, 0.117))),
)


@dataclass(frozen=True, eq=False)
class Mesh:
    """Vertices in the coordinate frames of the joints, and faces of four corners.

    Args:
        frame: Index into `JOINT_FRAMES` of the frame that a vertex moves with, (V,).
        local: Position of a vertex in its frame: metres forward and left, bone lengths up, (V, 3).
        faces: Indices of a face's corners, counter-clockwise seen from outside, (F, 4).
        material: Index into `MATERIALS` of a face, (F,).
        row: Band of a face on its tube, for stripes, (F,).
        column: Column of a face on its tube, for stripes, (F,); column 0 is in front.
        depth_bias: Metres by which a face is sorted nearer to the camera than it is, (F,); patches
            lie on the skin and are drawn after it.
    """

    frame: NDArray[np.int64]
    local: Array
    faces: NDArray[np.int64]
    material: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    depth_bias: Array


def _face_material(tube: str, band: int, column: int, columns: int, material: str) -> str:
    """Material of a face: that of its band, except where the front differs from the back."""
    from_front = min(column, columns - column) / columns  # 0 is the front, 0.5 the back
    if tube == "torso" and material == "shirt":
        if from_front < 0.05:
            return "panel"
        return "shirt" if from_front <= 0.26 else "back"
    if tube == "head" and material == "skin" and band > 1:
        hairline = {2: 0.32, 3: 0.28, 4: 0.24}[band]
        return "hair" if from_front > hairline else "skin"
    if tube == "foot" and from_front < 0.1:
        return "sole"
    return material


@functools.cache
def make_mesh() -> Mesh:
    """The one mesh that every person is drawn with."""
    frame: list[int] = []
    local: list[tuple[float, float, float]] = []
    faces: list[tuple[int, int, int, int]] = []
    attributes: list[tuple[int, int, int, float]] = []  # material, row, column, depth bias
    tubes = [("torso", "", _TORSO, 12), ("head", "", _HEAD, 10)]
    for side in ("left_", "right_"):
        tubes += [("arm", side, _ARM, 6), ("leg", side, _LEG, 6), ("foot", side, _FOOT, 6)]
    for tube, side, rings, columns in tubes:
        for band, (part, up, forward, sideways, shift, band_material) in enumerate(rings):
            first = len(local)
            for column in range(columns):
                angle = 2 * np.pi * (column - 0.5) / columns
                frame.append(JOINT_FRAMES.index(side + part))
                local.append((shift + forward * np.cos(angle), sideways * np.sin(angle), up))
                if band + 1 < len(rings):
                    here, beside = first + column, first + (column + 1) % columns
                    faces.append((here, beside, beside + columns, here + columns))
                    material = _face_material(tube, band, column, columns, band_material)
                    attributes.append((MATERIALS.index(material), band, column, 0.0))
    for part, material, corners in _PATCHES:
        for mirror in (1, -1):
            first = len(local)
            frame += [JOINT_FRAMES.index(part)] * 4
            local += [(forward, mirror * left, up) for forward, left, up in corners]
            # left to right and bottom to top, seen from outside
            ring = (first + 1, first, first + 3, first + 2)
            faces.append(ring if mirror == 1 else ring[::-1])
            attributes.append((MATERIALS.index(material), 0, 0, 0.05))
    materials, rows, column_of, depth_bias = zip(*attributes, strict=True)
    return Mesh(
        np.array(frame), np.array(local), np.array(faces),
        np.array(materials), np.array(rows), np.array(column_of), np.array(depth_bias),
    )  # fmt: skip


def normalise_vectors(vectors: Array) -> Array:
    """Vectors (..., 3) scaled to length 1; zero vectors stay zero."""
    return vectors / np.maximum(np.sqrt((vectors * vectors).sum(-1, keepdims=True)), 1e-9)


def cross(a: Array, b: Array) -> Array:
    """Cross product, (..., 3); several times faster than NumPy's for few vectors."""
    return a[..., [1, 2, 0]] * b[..., [2, 0, 1]] - a[..., [2, 0, 1]] * b[..., [1, 2, 0]]


_LIMB_JOINTS = (("hip", "knee", "ankle"), ("shoulder", "elbow", "wrist"))
_LIMB_INDICES = np.array(
    [
        [H36M17.index(f"{side}_{name}") for name in chain]
        for side in ("left", "right")
        for chain in _LIMB_JOINTS
    ]
)


def joint_frames(joints: Array) -> tuple[Array, Array, Array]:
    """Coordinate frames fixed to the joints of one person.

    The direction that a part faces comes from hips, shoulders, nose and the planes in which knees
    and elbows bend; the toes point along the plane of the knee and nearly along the floor.

    Args:
        joints: H36M17, world metres, z up, (17, 3).

    Returns:
        Origins (K, 3), axes forward, left, up (K, 3, 3) and bone lengths (K,) of `JOINT_FRAMES`.
    """
    limbs = joints[_LIMB_INDICES]
    bones = limbs[:, :2] - limbs[:, 1:]
    along = normalise_vectors(bones)
    trunk = joints[[4, 11]] - joints[[1, 14]]
    limb_left = cross(along[:, 0], along[:, 1]) * _BEND_SIGNS
    limb_left = limb_left + np.tile(normalise_vectors(trunk) * [[0.25], [0.15]], (2, 1))
    up, left = np.empty((20, 3)), np.empty((20, 3))
    up[:4] = joints[[7, 8, 8, 10]] - joints[[0, 0, 7, 8]]
    left[:3] = trunk[0], trunk[0] + trunk[1], trunk[1]
    left[3] = cross(up[3], joints[9] - joints[8]) / 0.21 + 0.008 * normalise_vectors(trunk[1])
    # the foot is at right angles to the shank, then turned towards the floor
    toes = cross(normalise_vectors(limb_left[::2]), along[::2, 1])
    toes[:, 2] *= 0.4
    limb_up = up[4:].reshape(4, 4, 3)  # a view: limb, frame of the limb, coordinate
    limb_up[:] = bones[:, [0, 0, 1, 1]]
    limb_up[:, 1] = along.sum(axis=1)
    limb_up[::2, 3] = toes
    left[4:].reshape(4, 4, 3)[:] = limb_left[:, None]
    origins = np.concatenate([joints[[0, 7, 8, 10]], limbs[:, [0, 1, 1, 2]].reshape(16, 3)])
    lengths = np.sqrt((up * up).sum(-1))
    lengths[_FOOT_FRAMES] = 1.0
    up = normalise_vectors(up)
    axes = np.empty((20, 3, 3))
    axes[:, 0] = normalise_vectors(cross(left, up))
    axes[:, 1] = cross(up, axes[:, 0])
    axes[:, 2] = up
    return origins, axes, lengths


_BEND_SIGNS = np.array([[1.0], [-1.0], [1.0], [-1.0]])
_FOOT_FRAMES = [JOINT_FRAMES.index(f"{side}_foot") for side in ("left", "right")]


def pose_mesh(joints: Array, build: float) -> Array:
    """Vertices of the mesh, placed on a person's joints.

    Args:
        joints: H36M17, world metres, (17, 3).
        build: Factor on the width of the body; 1 is average.

    Returns:
        World metres, (V, 3).
    """
    body = make_mesh()
    origins, axes, lengths = joint_frames(joints)
    local = body.local * np.array([build, build, 1.0])
    local[:, 2] *= lengths[body.frame]
    return origins[body.frame] + np.einsum("vi,vij->vj", local, axes[body.frame])


SKIN_COLOURS = np.array(
    [
        (244, 210, 186),
        (236, 192, 160),
        (224, 172, 138),
        (198, 134, 94),
        (141, 91, 60),
        (106, 70, 50),
    ]
)
HAIR_COLOURS = np.array(
    [(28, 22, 20), (74, 48, 32), (120, 78, 40), (190, 150, 80), (120, 120, 122), (140, 60, 30)]
)


@functools.lru_cache(maxsize=64)
def sample_appearance(seed: int) -> tuple[Array, float]:
    """Random looks of a person: colours of the mesh's faces, RGB 0-255, (F, 3), and build.

    Clothes are equal on the left and on the right, so that an image shows the sides of a body only
    by its front.
    """
    draw = rng.uniform(seed, "wardrobe", lanes=40)
    body = make_mesh()
    skin_tone = int(draw[0] * len(SKIN_COLOURS))
    skin = SKIN_COLOURS[skin_tone] * (0.92 + 0.16 * draw[1])
    # dark skin has dark hair, so that a face never looks like the back of a head
    hair_colours = HAIR_COLOURS if skin_tone < 3 else HAIR_COLOURS[:2]
    hair = hair_colours[int(draw[2] * len(hair_colours))] * (0.8 + 0.4 * draw[3])
    grey = 20 + 225 * draw[4:25].reshape(7, 3).mean(axis=1, keepdims=True)
    saturation = 0.25 + 0.75 * draw[25]
    colours = grey + saturation * (20 + 225 * draw[4:25].reshape(7, 3) - grey)
    shirt, undershirt, back, trousers, shoe, logo, stripe = colours
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
        "panel": undershirt if draw[26] < 0.5 else shirt,
        "back": back if draw[27] < 0.25 else shirt * 0.94,
        "logo": logo if draw[28] < 0.6 else shirt,
        "button": logo if draw[29] < 0.7 else shirt,
        "collar": undershirt if draw[30] < 0.5 else shirt,
        "cuff": shirt if long_sleeves else skin,
        "hem": shirt * 0.8 if long_sleeves else skin,
        "belt": 0.3 * trousers,
        "trousers": trousers,
        "shin": trousers if draw[32] < 0.75 else skin,
        "shoe": shoe,
        "sole": np.full(3, 235.0) * draw[33],
    }
    faces = np.stack([palette[name] for name in MATERIALS])[body.material]
    # rings, diagonals or lengthwise stripes; half of the people have none
    patterns = (body.row, body.row + body.column, body.column, None, None, None)
    pattern = patterns[int(6 * draw[34])]
    if pattern is not None:
        striped = _CAN_BE_STRIPED[body.material] & (pattern % 2 == 0)
        faces[striped] = 0.35 * faces[striped] + 0.65 * stripe
    faces.setflags(write=False)
    build = 0.88 + 0.3 * float(draw[35])
    return faces, build


_CAN_BE_STRIPED = np.array([name in ("shirt", "back", "sleeve") for name in MATERIALS])
