"""Masks and noise: of pretraining, of 'detected' 2D, of joints or frames hidden at test."""

from __future__ import annotations

import numpy as np
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
"""Mean of the Gaussian part of a detector's error per joint, normalised 2D, (17, 2).

Source of the three tables: MotionBERT (Zhu et al. 2023), fitted to detections on Human3.6M; H36M17.
"""

NOISE_DEVIATION = np.array([
    (0.0037, 0.0036), (0.0071, 0.0051), (0.0061, 0.0050), (0.0090, 0.0053), (0.0067, 0.0053),
    (0.0070, 0.0049), (0.0095, 0.0056), (0.0066, 0.0050), (0.0055, 0.0053), (0.0053, 0.0049),
    (0.0034, 0.0035), (0.0080, 0.0061), (0.0052, 0.0048), (0.0050, 0.0051), (0.0078, 0.0079),
    (0.0060, 0.0057), (0.0054, 0.0057),
])
"""Standard deviation of the Gaussian part, normalised 2D, (17, 2)."""

NOISE_WEIGHT = np.array([
    0.999, 0.967, 0.890, 0.894, 0.975, 0.877, 0.821, 0.958, 0.918, 0.968, 0.984, 0.891, 0.802,
    0.703, 0.881, 0.825, 0.729,
])
"""How often the error is Gaussian, (17,); else it is uniform."""
# fmt: on

NOISE_UNIFORM = 0.03
"""Half width of the uniform part, normalised 2D."""

NOISE_WHITE = 0.002
"""Standard deviation of what is added to every frame by itself, normalised 2D."""

FRAMES_PER_KEY = 9
"""Frames between two draws of the slow noise: MotionBERT draws 27 times in 243 frames."""

_JOINT_NOISE = {  # name without its side: sigma in pixels, weight of bursts and gaps
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
"""Share of frames in which a detector takes a limb for the other side's: its joints."""


def pretraining_noise(
    frames: int, seed: int, epoch: int, index: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Draw the error of an imagined detector: slow, different for each joint, now and then large.

    At about every ninth frame and for each joint the error is Gaussian or, more rarely, uniform;
    frames between are interpolated linearly, and white noise is added.

    Args:
        frames: T.
        seed: Of the run.
        epoch: Of the run.
        index: Number of each sample, (B,); its noise depends on (seed, epoch, number) alone.

    Returns:
        What to add to normalised 2D in H36M17, (B, T, 17, 2), float32.

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
    smooth = _between(keys, frames) @ slow.reshape(B, keys, J * 2).astype(np.float32)
    noise = smooth.reshape(B, frames, J, 2) + NOISE_WHITE * white.reshape(B, frames, J, 2)
    return noise.astype(np.float32)


def _between(keys: int, frames: int) -> NDArray[np.float32]:
    """Linear interpolation from keys, first and last at the first and last frame, (T, K)."""
    at = np.linspace(0, keys - 1, frames)
    return np.clip(1 - np.abs(at[:, None] - np.arange(keys)), 0, 1).astype(np.float32)


def pretraining_masks(
    T: int,
    J: int,
    seed: int,
    epoch: int,
    index: NDArray[np.integer],
    *,
    joints: float = 0.05,
    frames: float = 0.1,
) -> NDArray[np.bool_]:
    """Draw which joints a lifter in pretraining may see.

    Args:
        T: Frames per sample.
        J: Joints.
        seed: Of the run.
        epoch: Of the run.
        index: Number of each sample, (B,); its mask depends on (seed, epoch, number) alone.
        joints: Probability that one joint in one frame is masked.
        frames: Probability that a whole frame is masked.

    Returns:
        Visible, (B, T, J).

    Source: MotionBERT (Zhu et al. 2023); P-STMO masks 60 to 80 % of the frames.

    Differs from the paper: frames are drawn for each sample; the paper's code draws them once per
    batch.
    """
    index = np.asarray(index)
    single = rng.uniform(seed, "mask joints", epoch, index, lanes=T * J).reshape(-1, T, J)
    whole = rng.uniform(seed, "mask frames", epoch, index, lanes=T)
    return (single >= joints) & (whole[..., None] >= frames)


def confidence(
    noise: NDArray[np.floating], seed: int, epoch: int, index: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Guess the score that a detector would give itself for an error.

    Args:
        noise: Error, normalised 2D, (B, T, J, 2).
        seed: Of the run.
        epoch: Of the run.
        index: Number of each sample, (B,).

    Returns:
        Score from 0 to 1, (B, T, J), float32.

    Source: MotionBERT (Zhu et al. 2023): a / (d + a) + b d + N(m, s) with d the length of the
    error.
    """
    length = np.linalg.norm(noise, axis=-1)
    spread = rng.normal(seed, "confidence", epoch, np.asarray(index), lanes=length[0].size)
    score = 0.028 / (length + 0.028) + 1.1 * length - 0.0046 + 0.143 * spread.reshape(length.shape)
    return np.clip(score, 0, 1).astype(np.float32)


def detection_noise(
    joints2d: NDArray[np.floating], fps: float, *key: int | str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Turn exact 2D of one sequence into 2D as a detector might have found it.

    Errors that stay for the sequence, drift and flicker; bursts of large ones, more often at wrists
    than at hips; legs and arms taken for the other side's; joints not found. Sizes in pixels hold
    for people 330 pixels tall and grow with the median height of the box around the joints;
    lengths in frames hold at 50 Hz.

    Args:
        joints2d: Exact pixels, H36M17, (T, 17, 2).
        fps: Hz.
        key: Whatever names the sequence and its camera; the noise depends on nothing else.

    Returns:
        Pixels, (T, 17, 2), float32, NaN where not found; score, (T, 17), float32, 1 or 0.

    Raises:
        DataError: If these are not 17 joints.

    Source: the open benchmark's definition, fitted to mean errors on Human3.6M of 4.4 pixels
    (HRNet) to 5.4 pixels (CPN).
    """
    T, J, _ = joints2d.shape
    if len(H36M17) != J:
        raise DataError(f"detection noise is known for H36M17, not for {J} joints; convert first")
    exact = np.asarray(joints2d, np.float64)
    rate = fps / 50
    table = [_JOINT_NOISE[_without_side(name)] for name in H36M17.joints]
    sigma, weight = np.array(table).T
    scale = _height(exact) / 330
    random = rng.generator(*key, "detection noise")
    drift = _drift(random.standard_normal((T, J, 2)), 0.85 ** (1 / rate))
    flicker = random.standard_normal((T, J, 2))
    stay = random.standard_normal((J, 2))
    error = sigma[:, None] * (0.8 * drift + 0.35 * flicker + 0.5 * stay)
    error += _outliers(random, 0.02 * weight, 6 * rate, T)
    seen = _swap_limbs(random, exact, 8 * rate)
    missing, _ = _bursts(random, 0.02 * weight, 8 * rate, T)
    noisy = (seen + scale * error).astype(np.float32)
    noisy[missing] = np.nan
    return noisy, (~missing).astype(np.float32)


def _without_side(name: str) -> str:
    return name.removeprefix("left_").removeprefix("right_")


def _height(joints2d: NDArray[np.float64]) -> float:
    """Median height of the box around the joints, pixels."""
    rows = joints2d[np.isfinite(joints2d).all(axis=(1, 2)), :, 1]
    return float(np.median(np.ptp(rows, axis=1))) if len(rows) else 0.0


def _drift(white: NDArray[np.float64], memory: float) -> NDArray[np.float64]:
    """White noise, (T, ...), -> AR(1) noise of the same variance from the first frame on."""
    from scipy.signal import lfilter

    gain = (1 - memory**2) ** 0.5
    return lfilter([gain], [1, -memory], white, axis=0, zi=(1 - gain) * white[:1])[0]


def _bursts(
    random: np.random.Generator, share: NDArray[np.float64], length: float, frames: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Draw stretches of geometric length that cover a share of the frames.

    Args:
        random: Where from.
        share: Share of the frames of each column, (N,).
        length: Mean length, frames.
        frames: T.

    Returns:
        Inside a stretch, (T, N), and the frame at which the latest one began, (T, N).
    """
    length = max(length, 1.0)
    time = np.arange(frames)[:, None]
    begin = share / length / (1 - share + share / length)
    begins = random.random((frames, len(share))) < np.where(time == 0, share, begin)
    lengths = random.geometric(1 / length, begins.shape)
    birth = np.maximum.accumulate(np.where(begins, time, -1), axis=0)
    latest = np.maximum(birth, 0)
    inside = (birth >= 0) & (time - latest < np.take_along_axis(lengths, latest, axis=0))
    return inside, latest


def _outliers(
    random: np.random.Generator, share: NDArray[np.float64], length: float, frames: int
) -> NDArray[np.float64]:
    """Bursts of constant offset: exponential with mean 30, at most 120 pixels, any direction."""
    inside, birth = _bursts(random, share, length, frames)
    size = np.minimum(random.exponential(30.0, inside.shape), 120.0)
    angle = random.uniform(0, 2 * np.pi, inside.shape)
    offset = size[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return np.take_along_axis(offset, birth[..., None], axis=0) * inside[..., None]


def _swap_limbs(
    random: np.random.Generator, joints2d: NDArray[np.float64], length: float
) -> NDArray[np.float64]:
    """Exchange left and right leg, or left and right arm, for stretches of frames."""
    swapped = joints2d.copy()
    inside, _ = _bursts(random, np.array(list(_LIMBS)), length, len(joints2d))
    for column, names in zip(inside.T, _LIMBS.values(), strict=True):
        left = [H36M17.index(f"left_{name}") for name in names]
        right = [H36M17.index(f"right_{name}") for name in names]
        swapped[np.ix_(column, left + right)] = joints2d[np.ix_(column, right + left)]
    return swapped


def hide_joints(visible: NDArray[np.bool_], fraction: float, *key: rng.Key) -> NDArray[np.bool_]:
    """Hide a fraction of the visible joints of each clip, chosen at random.

    Args:
        visible: (..., T, J); not changed.
        fraction: How many to hide; exact to the nearest whole joint in each clip.
        key: Numbers and names, or arrays with one number per clip, (...).

    Returns:
        Visible, (..., T, J).
    """
    flat = visible.reshape(*visible.shape[:-2], -1)
    draw = rng.uniform(*key, "hide joints", lanes=flat.shape[-1])
    return (flat & ~_lowest(draw, flat, fraction)).reshape(visible.shape)


def drop_frames(visible: NDArray[np.bool_], fraction: float, *key: rng.Key) -> NDArray[np.bool_]:
    """Hide all joints of a fraction of the frames of each clip; otherwise like `hide_joints`.

    Args:
        visible: (..., T, J); not changed.
        fraction: How many of the frames that have a visible joint; exact to the nearest whole
            frame.
        key: Numbers and names, or arrays with one number per clip, (...).

    Returns:
        Visible, (..., T, J).
    """
    frames = np.asarray(visible.any(axis=-1))
    draw = rng.uniform(*key, "drop frames", lanes=frames.shape[-1])
    return visible & ~_lowest(draw, frames, fraction)[..., None]


def _lowest(
    draw: NDArray[np.float64], eligible: NDArray[np.bool_], fraction: float
) -> NDArray[np.bool_]:
    """Those of the eligible with the lowest draws, as many as the fraction says, (..., N)."""
    ranks = np.where(eligible, draw, 2.0).argsort(axis=-1).argsort(axis=-1)
    return ranks < np.rint(fraction * eligible.sum(axis=-1, keepdims=True))
