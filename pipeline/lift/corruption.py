"""Masks and noise: for pretraining, for 2D as a detector would find it, for tests of robustness."""

from __future__ import annotations

import numpy as np
import scipy
from numpy.typing import NDArray

from pipeline import rng
from pipeline.errors import DataError
from pipeline.skeleton import H36M17

# fmt: off
NOISE_MEAN = np.array([
    (0.0008, 0.0002), (-0.0001, 0.0020), (0.0020, -0.0015), (0.0009, 0.0009), (0.0019, -0.0007),
    (0.0019, -0.0052), (0.0009, -0.0019), (0.0025, 0.0023), (0.0021, -0.0065), (0.0017, 0.0017),
    (0.0008, 0.0016), (0.0008, -0.0046), (0.0015, 0.0003), (0.0012, 0.0016), (0.0021, -0.0032),
    (0.0017, -0.0003), (0.0017, 0.0013),
])
"""Mean of the Gaussian part of a detector's error for each joint of H36M17, normalised 2D, (17, 2).

Source of the three tables: MotionBERT (Zhu et al. 2023), fitted to detections on Human3.6M.
"""

NOISE_DEVIATION = np.array([
    (0.0037, 0.0036), (0.0071, 0.0051), (0.0061, 0.0050), (0.0090, 0.0053), (0.0067, 0.0053),
    (0.0070, 0.0049), (0.0095, 0.0056), (0.0066, 0.0050), (0.0055, 0.0053), (0.0053, 0.0049),
    (0.0034, 0.0035), (0.0080, 0.0061), (0.0052, 0.0048), (0.0050, 0.0051), (0.0078, 0.0079),
    (0.0060, 0.0057), (0.0054, 0.0057),
])
"""Standard deviation of the Gaussian part of the error, normalised 2D, (17, 2)."""

NOISE_WEIGHT = np.array([
    0.999, 0.967, 0.890, 0.894, 0.975, 0.877, 0.821, 0.958, 0.918, 0.968, 0.984, 0.891, 0.802,
    0.703, 0.881, 0.825, 0.729,
])
"""Probability that the error is Gaussian, (17,); otherwise it is uniform."""
# fmt: on

NOISE_UNIFORM = 0.03
"""Half width of the uniform part of the error, normalised 2D."""

NOISE_WHITE = 0.002
"""Standard deviation of the noise that is drawn for each frame on its own, normalised 2D."""

FRAMES_PER_KEY = 9
"""Frames between two draws of the slow noise: MotionBERT draws 27 times in 243 frames."""

_JOINT_NOISE = {  # joint without its side: sigma in pixels, weight of outliers and missing joints
    "pelvis": (2.0, 0.2),
    "hip": (2.6, 0.4),
    "knee": (3.2, 1.1),
    "ankle": (4.2, 1.5),
    "spine": (2.4, 0.4),
    "thorax": (2.2, 0.4),
    "nose": (2.4, 0.7),
    "head": (2.6, 0.7),
    "shoulder": (2.8, 0.6),
    "elbow": (3.8, 1.5),
    "wrist": (4.6, 2.2),
}
_LIMBS = {0.004: ("hip", "knee", "ankle"), 0.0024: ("shoulder", "elbow", "wrist")}
"""Share of the frames in which a limb is exchanged with that of the other side -> its joints."""


def sample_pretraining_noise(
    frames: int, seed: int, epoch: int, index: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Draw the 2D errors of a simulated detector for pretraining.

    At about every ninth frame an error is drawn for each joint, Gaussian or, more rarely, uniform.
    The frames between are interpolated linearly, and white noise is added to every frame.

    Args:
        frames: T, number of frames of each sample.
        seed: Seed of the run.
        epoch: Epoch of the run.
        index: Index of each sample, (B,); its noise depends only on seed, epoch and index.

    Returns:
        Errors to add to normalised 2D in H36M17, (B, T, 17, 2), float32.

    Source: MotionBERT (Zhu et al. 2023) and the tables above.

    Differs from the paper: white noise is drawn for each sample; the paper's code draws it once
    per batch.
    """
    index = np.asarray(index)
    B, J = len(index), len(H36M17)
    keys = max(1, round(frames / FRAMES_PER_KEY))
    choice = rng.uniform(seed, "noise choice", epoch, index, lanes=keys * J)
    normal = rng.normal(seed, "noise", epoch, index, lanes=keys * J * 2)
    uniform = rng.uniform(seed, "noise uniform", epoch, index, lanes=keys * J * 2)
    slow = np.where(
        choice.reshape(B, keys, J, 1) < NOISE_WEIGHT[:, None],
        NOISE_MEAN + NOISE_DEVIATION * normal.reshape(B, keys, J, 2),
        NOISE_UNIFORM * (2 * uniform.reshape(B, keys, J, 2) - 1),
    )
    white = rng.normal(seed, "noise white", epoch, index, lanes=frames * J * 2)
    smooth = _interpolation_matrix(keys, frames) @ slow.reshape(B, keys, J * 2).astype(np.float32)
    noise = smooth.reshape(B, frames, J, 2) + NOISE_WHITE * white.reshape(B, frames, J, 2)
    return noise.astype(np.float32)


def _interpolation_matrix(keys: int, frames: int) -> NDArray[np.float32]:
    """Weights of linear interpolation from evenly spaced keys to frames, (T, K)."""
    position = np.linspace(0, keys - 1, frames)
    return np.clip(1 - np.abs(position[:, None] - np.arange(keys)), 0, 1).astype(np.float32)


def sample_pretraining_masks(
    T: int,
    J: int,
    seed: int,
    epoch: int,
    index: NDArray[np.integer],
    *,
    joints: float = 0.05,
    frames: float = 0.1,
) -> NDArray[np.bool_]:
    """Draw which joints are visible in training samples.

    Args:
        T: Number of frames of each sample.
        J: Number of joints.
        seed: Seed of the run.
        epoch: Epoch of the run.
        index: Index of each sample, (B,); its mask depends only on seed, epoch and index.
        joints: Probability that a joint is hidden in a frame, 0 to 1.
        frames: Probability that a whole frame is hidden, 0 to 1.

    Returns:
        Which joints are visible, (B, T, J).

    Source: MotionBERT (Zhu et al. 2023); P-STMO masks 60 to 80 % of the frames.

    Differs from the paper: frames are drawn for each sample; the paper's code draws them once per
    batch.
    """
    index = np.asarray(index)
    single = rng.uniform(seed, "mask joints", epoch, index, lanes=T * J).reshape(-1, T, J)
    whole = rng.uniform(seed, "mask frames", epoch, index, lanes=T)
    return (single >= joints) & (whole[..., None] >= frames)


def add_detection_noise(
    joints2d: NDArray[np.floating], fps: float, *key: int | str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Add a simulated detector's errors to exact 2D joints of one sequence.

    Errors have a part that is constant over the sequence, a slowly drifting part and a part drawn
    for each frame. There are bursts of large errors, more often at wrists than at hips; legs and
    arms that are exchanged with those of the other side; and missing joints. Sizes in pixels hold
    for people 330 pixels tall and grow with the median height of the box around the joints;
    durations in frames hold at 50 Hz.

    Args:
        joints2d: Exact joints in H36M17, pixels, (T, 17, 2).
        fps: Frame rate in Hz.
        key: Key of the sequence and its camera; the errors depend only on it and the input.

    Returns:
        Joints in pixels, (T, 17, 2), float32, NaN where missing; scores, (T, 17), float32, 1 or 0.

    Raises:
        DataError: If there are not 17 joints.

    Source: the definition of the open benchmark, fitted to mean errors on Human3.6M between 4.4
    pixels (HRNet) and 5.4 pixels (CPN).
    """
    T, J, _ = joints2d.shape
    if len(H36M17) != J:
        raise DataError(f"detection noise is known for H36M17, not for {J} joints; convert first")
    exact = np.asarray(joints2d, np.float64)
    rate = fps / 50
    table = [_JOINT_NOISE[_remove_side(name)] for name in H36M17.joints]
    sigma, weight = np.array(table).T
    scale = _box_height(exact) / 330
    random = rng.make_generator(*key, "detection noise")
    drift = autoregressive(random.standard_normal((T, J, 2)), 0.85 ** (1 / rate))
    flicker = random.standard_normal((T, J, 2))
    constant = random.standard_normal((J, 2))
    error = sigma[:, None] * (0.8 * drift + 0.35 * flicker + 0.5 * constant)
    error += _draw_outliers(random, 0.02 * weight, 6 * rate, T)
    swapped = _swap_limbs(random, exact, 8 * rate)
    missing, _ = draw_bursts(random, 0.02 * weight, 8 * rate, T)
    noisy = (swapped + scale * error).astype(np.float32)
    noisy[missing] = np.nan
    return noisy, (~missing).astype(np.float32)


def _remove_side(name: str) -> str:
    return name.removeprefix("left_").removeprefix("right_")


def _box_height(joints2d: NDArray[np.float64]) -> float:
    """Median height of the box around the joints, pixels."""
    rows = joints2d[np.isfinite(joints2d).all(axis=(1, 2)), :, 1]
    return float(np.median(np.ptp(rows, axis=1))) if len(rows) else 0.0


def autoregressive(white: NDArray[np.float64], memory: float) -> NDArray[np.float64]:
    """Turn white noise, (T, ...), into AR(1) noise with the same variance in every frame."""
    gain = (1 - memory**2) ** 0.5
    return scipy.signal.lfilter([gain], [1, -memory], white, axis=0, zi=(1 - gain) * white[:1])[0]


def draw_bursts(
    random: np.random.Generator, share: NDArray[np.float64], length: float, frames: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Draw bursts, runs of frames of geometric length that cover a share of all frames.

    Args:
        random: Random number generator.
        share: Share of the frames that bursts cover, for each column, (N,).
        length: Mean length of a burst in frames.
        frames: T, number of frames.

    Returns:
        Which frames are inside a burst, (T, N), and the first frame of the latest burst, (T, N).
    """
    length = max(length, 1.0)
    time = np.arange(frames)[:, None]
    begin = share / length / (1 - share + share / length)
    begins = random.random((frames, len(share))) < np.where(time == 0, share, begin)
    lengths = random.geometric(1 / length, begins.shape)
    latest_or_none = np.maximum.accumulate(np.where(begins, time, -1), axis=0)
    latest = np.maximum(latest_or_none, 0)
    inside = (latest_or_none >= 0) & (time - latest < np.take_along_axis(lengths, latest, axis=0))
    return inside, latest


def _draw_outliers(
    random: np.random.Generator, share: NDArray[np.float64], length: float, frames: int
) -> NDArray[np.float64]:
    """Draw bursts of constant offset: exponential, mean 30, at most 120 pixels, any direction."""
    inside, first = draw_bursts(random, share, length, frames)
    size = np.minimum(random.exponential(30.0, inside.shape), 120.0)
    angle = random.uniform(0, 2 * np.pi, inside.shape)
    offset = size[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return np.take_along_axis(offset, first[..., None], axis=0) * inside[..., None]


def _swap_limbs(
    random: np.random.Generator, joints2d: NDArray[np.float64], length: float
) -> NDArray[np.float64]:
    """Exchange left and right leg, or left and right arm, in bursts of frames."""
    swapped = joints2d.copy()
    inside, _ = draw_bursts(random, np.array(list(_LIMBS)), length, len(joints2d))
    for column, names in zip(inside.T, _LIMBS.values(), strict=True):
        left = [H36M17.index(f"left_{name}") for name in names]
        right = [H36M17.index(f"right_{name}") for name in names]
        swapped[np.ix_(column, left + right)] = joints2d[np.ix_(column, right + left)]
    return swapped


def hide_joints(visible: NDArray[np.bool_], fraction: float, *key: rng.Key) -> NDArray[np.bool_]:
    """Hide a fraction of the visible joints of each clip, chosen at random.

    Args:
        visible: Visibility of the joints, bool, (..., T, J); not changed.
        fraction: Share of the visible joints of a clip to hide, rounded to whole joints.
        key: Key of the random numbers: numbers, names, or arrays with one number per clip, (...).

    Returns:
        Which joints are visible now, (..., T, J).
    """
    flat = visible.reshape(*visible.shape[:-2], -1)
    draw = rng.uniform(*key, "hide joints", lanes=flat.shape[-1])
    return (flat & ~_select_lowest(draw, flat, fraction)).reshape(visible.shape)


def drop_frames(visible: NDArray[np.bool_], fraction: float, *key: rng.Key) -> NDArray[np.bool_]:
    """Hide all joints of a fraction of the frames of each clip, chosen at random.

    Args:
        visible: Visibility of the joints, bool, (..., T, J); not changed.
        fraction: Share of the frames with a visible joint to hide, rounded to whole frames.
        key: Key of the random numbers: numbers, names, or arrays with one number per clip, (...).

    Returns:
        Which joints are visible now, (..., T, J).
    """
    frames = np.asarray(visible.any(axis=-1))
    draw = rng.uniform(*key, "drop frames", lanes=frames.shape[-1])
    return visible & ~_select_lowest(draw, frames, fraction)[..., None]


def _select_lowest(
    draw: NDArray[np.float64], eligible: NDArray[np.bool_], fraction: float
) -> NDArray[np.bool_]:
    """Select the fraction of the eligible entries with the lowest draws, (..., N)."""
    ranks = np.where(eligible, draw, 2.0).argsort(axis=-1).argsort(axis=-1)
    return ranks < np.rint(fraction * eligible.sum(axis=-1, keepdims=True))
