"""Actions of the embedded people, as key poses in joint angles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CENTRAL = ("pitch", "roll", "yaw", "bend", "side", "twist", "nod", "tilt", "look", "hop")
SIDED = ("hip", "splay", "turnout", "knee", "arm", "abduct", "inward", "elbow")
CHANNELS = (*CENTRAL, *(f"{side}_{name}" for side in ("left", "right") for name in SIDED))
"""Names of the joint angles, P of them, in degrees (hop in metres).

Positive angles mean forward, flexed or outward; positive yaw, twist and look turn left.
"""

STANDING_LEGS: dict[str, float] = {"hip": 3, "splay": 3, "turnout": 8, "knee": 5}
HANGING_ARMS: dict[str, float] = {"arm": 2, "abduct": 9, "inward": 15, "elbow": 18}
LIMITS = {
    "bend": (-25, 95),
    "nod": (-40, 45),
    "look": (-70, 70),
    "hop": (0, 1),
    "hip": (-30, 125),
    "splay": (-12, 60),
    "turnout": (-15, 45),
    "knee": (3, 145),
    "arm": (-55, 180),
    "abduct": (2, 170),
    "inward": (-95, 75),
    "elbow": (4, 145),
}
"""Range of each joint angle, degrees (hop in metres); angles without an entry: -180 to 180."""

BOUNDS = np.array(
    [LIMITS.get(c.removeprefix("left_").removeprefix("right_"), (-180, 180)) for c in CHANNELS]
).T
"""Lower and upper limits of the channels, (2, P)."""
_MIRRORED_CHANNELS = [
    CHANNELS.index(c.replace("left_", "#").replace("right_", "left_").replace("#", "right_"))
    for c in CHANNELS
]
_MIRROR_SIGNS = np.array(
    [-1.0 if c in ("roll", "yaw", "side", "twist", "tilt", "look") else 1.0 for c in CHANNELS]
)


def _variation_weight(channel: str) -> float:
    """Weight of random changes of a channel: 1 for arms, less for angles that keep the balance."""
    name = channel.removeprefix("left_").removeprefix("right_")
    balance = {"hop": 0.0, "pitch": 0.15, "roll": 0.15, "yaw": 0.0, "side": 0.5, "splay": 0.35}
    return balance.get(name, 0.45 if name in ("hip", "knee", "bend") else 1.0)


VARIATION_WEIGHTS = np.array([_variation_weight(channel) for channel in CHANNELS])
"""Weight of random changes of each channel, (P,)."""


def make_pose(**angles: float | tuple[float, float]) -> Array:
    """A key pose, (P,): relaxed standing, except for the given angles; a pair is (left, right)."""
    values = dict.fromkeys(CHANNELS, 0.0)
    for name, angle in {**STANDING_LEGS, **HANGING_ARMS, **angles}.items():
        if name in SIDED:
            pair = angle if isinstance(angle, tuple) else (angle, angle)
            values[f"left_{name}"], values[f"right_{name}"] = pair
        else:
            values[name] = float(angle)  # type: ignore[arg-type]
    return np.array([values[name] for name in CHANNELS])


def mirror_poses(poses: Array) -> Array:
    """The same poses (..., P) with left and right exchanged."""
    return poses[..., _MIRRORED_CHANNELS] * _MIRROR_SIGNS


@dataclass(frozen=True, eq=False)
class Choreography:
    """An action as key poses that the body passes through.

    Args:
        keys: Key poses, (K, P).
        interval: Seconds from one key pose to the next.
        variation: Standard deviation of a repetition from its key pose, degrees.
        turn_speed: Mean speed at which the body turns while moving, degrees per second.
        shuffled: Whether the key poses come in random order.
    """

    keys: Array
    interval: float
    variation: float = 6.0
    turn_speed: float = 0.0
    shuffled: bool = False


def _compose(*keys: Array, mirror: bool = False, **settings: float | bool) -> Choreography:
    """A choreography of key poses, followed by their mirror images if `mirror`."""
    poses = np.stack(keys)
    if mirror:
        poses = np.concatenate([poses, mirror_poses(poses)])
    return Choreography(poses, **settings)  # type: ignore[arg-type]


_SITTING: dict[str, float] = {"hip": 88, "knee": 92, "bend": 8, "splay": 7}
_SITTING_STILL = make_pose(**_SITTING, arm=32, elbow=55, inward=25)

ACTIONS = {
    "walk": _compose(
        make_pose(hip=(27, -14), knee=(6, 24), arm=(-20, 22), elbow=(16, 32), twist=7, yaw=-4),
        make_pose(hip=(10, 12), knee=(14, 62), arm=(-4, 6), elbow=(18, 22), roll=-2),
        make_pose(hip=(-6, 32), knee=(8, 34), arm=(14, -12), elbow=(26, 18), twist=-4, yaw=3),
        mirror=True, interval=0.185, variation=2.5, turn_speed=45.0,
    ),
    "run": _compose(
        make_pose(hip=(34, -8), knee=(28, 80), arm=(-42, 38), elbow=(85, 95), twist=12, bend=10,
             pitch=6),
        make_pose(hip=(8, 40), knee=(34, 108), arm=(-8, 6), elbow=95, bend=12, pitch=6),
        make_pose(hip=(-22, 58), knee=(14, 80), arm=(35, -40), elbow=(95, 85), bend=10, pitch=6,
             hop=0.07),
        mirror=True, interval=0.125, variation=3.0, turn_speed=70.0,
    ),
    "wave": _compose(
        make_pose(arm=(2, 0), abduct=(9, 105), inward=(15, -85), elbow=(18, 85), look=-10),
        make_pose(arm=(2, 0), abduct=(9, 100), inward=(15, -88), elbow=(18, 35), side=4),
        make_pose(arm=(2, 10), abduct=(9, 110), inward=(15, -80), elbow=(18, 95)),
        make_pose(arm=(2, 5), abduct=(9, 118), inward=(15, -85), elbow=(18, 30), tilt=6),
        interval=0.32, variation=7.0,
    ),
    "squat": _compose(
        make_pose(),
        make_pose(hip=105, knee=118, bend=22, pitch=12, splay=14, turnout=22, arm=85, elbow=12,
                  nod=-14),
        make_pose(hip=100, knee=112, bend=25, pitch=12, splay=14, turnout=22, arm=80, elbow=20,
                  nod=-14),
        make_pose(hip=8, knee=10, arm=10),
        interval=0.65,
    ),
    "sit": _compose(
        make_pose(),
        make_pose(hip=95, knee=85, bend=35, arm=30, elbow=30),
        _SITTING_STILL,
        make_pose(**_SITTING, arm=(32, 45), elbow=(55, 110), inward=(25, 30), look=15),
        make_pose(**{**_SITTING, "bend": -4}, arm=(20, 25), elbow=(60, 50), inward=35, look=-20),
        make_pose(**{**_SITTING, "bend": 32}, arm=(50, 45), elbow=(75, 85), inward=30, nod=-12),
        _SITTING_STILL,
        make_pose(hip=95, knee=85, bend=38, arm=35, elbow=30),
        interval=0.85,
    ),
    "reach": _compose(
        make_pose(),
        make_pose(arm=(5, 165), abduct=(12, 14), elbow=(20, 10), side=-8, nod=-25, look=-10),
        make_pose(arm=(8, 150), abduct=(12, 25), elbow=(20, 18), bend=-6, nod=-20),
        make_pose(arm=(0, 90), abduct=(9, 50), elbow=(25, 10), bend=16, twist=25, look=-30),
        make_pose(arm=(70, 85), elbow=(15, 12), bend=24, pitch=8, hip=(20, -5), knee=(22, 8)),
        interval=0.7, variation=9.0,
    ),
    "punch": _compose(
        make_pose(arm=(45, 32), elbow=(110, 128), inward=30, hip=(22, -6), knee=(22, 20), yaw=-22,
             bend=8),
        make_pose(arm=(88, 30), elbow=(8, 128), inward=30, hip=(26, -8), knee=(26, 22), yaw=-35,
             twist=-18, bend=10),
        make_pose(arm=(48, 34), elbow=(112, 124), inward=30, hip=(22, -6), knee=(22, 20), yaw=-20,
             bend=8),
        make_pose(arm=(38, 90), elbow=(125, 8), inward=30, hip=(30, -12), knee=(30, 24), yaw=15,
             twist=32, bend=10),
        interval=0.27, variation=7.0, turn_speed=20.0,
    ),
    "turn": _compose(
        make_pose(hip=(16, -4), knee=(16, 10), look=25, twist=10, arm=(6, -4)),
        make_pose(hip=(24, 2), knee=(46, 8), look=30, twist=14, turnout=(24, 4)),
        make_pose(hip=(4, 12), knee=(8, 16), look=20, arm=(-4, 8)),
        make_pose(hip=(0, 26), knee=(8, 48), look=22, turnout=(8, 16)),
        interval=0.3, variation=4.0, turn_speed=120.0,
    ),
    "pick up": _compose(
        make_pose(),
        make_pose(hip=70, knee=75, bend=50, pitch=22, arm=(65, 75), elbow=10, nod=-10),
        make_pose(hip=88, knee=98, bend=60, pitch=26, arm=(60, 66), elbow=8, nod=-5, splay=10),
        make_pose(hip=40, knee=40, bend=40, pitch=14, arm=45, elbow=60),
        make_pose(arm=35, elbow=95, inward=35, bend=-6),
        make_pose(arm=70, elbow=60, inward=20, twist=25, look=25),
        interval=0.65,
    ),
    "jumping jack": _compose(
        make_pose(splay=2),
        make_pose(splay=12, abduct=80, elbow=14, inward=-20, knee=14, hip=10, hop=0.07),
        make_pose(splay=24, abduct=158, elbow=22, inward=-60, knee=10),
        make_pose(splay=12, abduct=85, elbow=14, inward=-20, knee=16, hip=12, hop=0.07),
        interval=0.25, variation=4.0,
    ),
    "kick": _compose(
        make_pose(arm=(20, 25), elbow=60, hip=(4, -18), knee=(12, 30), yaw=-10),
        make_pose(arm=(35, -5), elbow=(55, 40), hip=(6, 70), knee=(16, 105), bend=6),
        make_pose(arm=(50, -30), elbow=(40, 30), hip=(2, 92), knee=(14, 14), bend=-8, pitch=-8),
        make_pose(arm=(30, 10), elbow=60, hip=(6, 60), knee=(14, 90)),
        make_pose(arm=25, elbow=75, knee=10),
        interval=0.3, turn_speed=15.0,
    ),
    "talk": _compose(
        make_pose(look=15, tilt=5),
        make_pose(arm=(20, 35), elbow=(80, 100), inward=(30, -5), look=-12),
        make_pose(arm=30, elbow=85, inward=-15, abduct=18, bend=5, tilt=-5),
        make_pose(arm=(0, 50), elbow=(20, 125), inward=(15, 35), nod=12, look=10),
        make_pose(arm=-14, abduct=38, elbow=85, inward=60, hip=(-2, 8), knee=(4, 16), roll=4),
        make_pose(arm=(35, 30), elbow=(105, 100), inward=65, hip=(8, -2), knee=(16, 4), roll=-4),
        interval=0.6, variation=8.0, shuffled=True,
    ),
    "lunge": _compose(
        make_pose(arm=10, elbow=60, abduct=25),
        make_pose(hip=(80, -18), knee=(86, 58), bend=4, arm=(15, 25), elbow=80, abduct=20),
        make_pose(hip=(76, -20), knee=(84, 54), bend=10, arm=(80, 85), elbow=15),
        make_pose(hip=(10, 5), knee=(20, 15)),
        mirror=True, interval=0.6,
    ),
    "stretch": _compose(
        make_pose(abduct=(160, 20), elbow=(25, 60), inward=(-40, 40), side=22, splay=12),
        make_pose(abduct=88, elbow=8, twist=35, splay=16, look=30),
        make_pose(arm=170, elbow=10, bend=-14, nod=-25),
        make_pose(arm=75, elbow=5, bend=80, pitch=22, hip=12, knee=12, nod=20),
        mirror=True, interval=0.8, variation=8.0,
    ),
}  # fmt: skip
"""Action name -> its choreography; the angles are everyday ranges of motion, set by eye."""
