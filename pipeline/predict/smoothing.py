"""Smoothing in Hz and metres: filters over time that keep fast details, and constant bones."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import signal

from pipeline.errors import UsageError
from pipeline.metrics.functional import MILLIMETRES
from pipeline.predict.options import CUTOFFS, Filter
from pipeline.skeleton import Skeleton

DETAIL = 3.0
"""Deviations of the noise from which a difference from the filter's output is motion, not noise."""

LEAST_GAIN = 0.5
"""Least gain of a Savitzky-Golay filter at its cut-off."""

ONE_EURO_BETA = 3.0
"""Rise of One-Euro's cut-off with speed, Hz per (m/s)."""


class OneEuro:
    """One-Euro filter: a causal low-pass whose cut-off rises with speed.

    Args:
        cutoff: Cut-off frequency at rest, Hz.
        beta: Rise of the cut-off with speed, Hz per unit/s.
        derivative_cutoff: Cut-off frequency of the speed, Hz.

    Source: Casiez, Roussel, Vogel: 1 Euro Filter, CHI 2012.
    Differs from the paper: the first value has speed 0; values that are missing (NaN) start the
    filter of their coordinate again.
    """

    def __init__(
        self, cutoff: float = 1.0, beta: float = ONE_EURO_BETA, *, derivative_cutoff: float = 1.0
    ) -> None:
        self.cutoff, self.beta, self.derivative_cutoff = cutoff, beta, derivative_cutoff
        self._time = 0.0
        self._value: NDArray[np.float64] | None = None
        self._speed: NDArray[np.float64] | None = None

    def __call__(self, value: ArrayLike, time: float) -> NDArray[np.float64]:
        """Filter the next value.

        Args:
            value: Any shape, the same in every call.
            time: Seconds, increasing from call to call.
        """
        new = np.asarray(value, np.float64)
        if self._value is None or self._speed is None:
            self._time, self._value, self._speed = time, new, np.zeros_like(new)
            return new
        step = time - self._time
        if not step > 0:
            raise ValueError(f"time {time} does not come after {self._time}")
        started = np.isfinite(self._value)
        raw = np.where(started & np.isfinite(new), (new - self._value) / step, 0.0)
        share = _exponential_share(self.derivative_cutoff, step)
        self._speed = share * raw + (1 - share) * self._speed
        share = _exponential_share(self.cutoff + self.beta * np.abs(self._speed), step)
        filtered = np.where(started, share * new + (1 - share) * self._value, new)
        self._time, self._value = time, filtered
        return filtered


def _exponential_share(cutoff: ArrayLike, step: float) -> NDArray[np.float64]:
    """Weight of the newest value in an exponential low-pass with this cut-off."""
    turn = 2 * np.pi * np.asarray(cutoff) * step
    return np.asarray(turn / (turn + 1))


def filter_motion(
    values: NDArray[np.floating], rate: float, kind: Filter, cutoff: float | None = None
) -> NDArray[np.float64]:
    """Smooth an uninterrupted part of a motion.

    Butterworth (second order, run forwards and backwards, so that half of a motion at the cut-off
    stays) and Savitzky-Golay (cubic) smooth without
    delay and keep details: a difference from the input that is far above the noise is motion, so it
    stays. A clap of two frames stays a clap. One-Euro is causal.
    A motion stays as it is where Butterworth has fewer than 4 frames or Savitzky-Golay fewer than
    its window, or where its rate is at most twice their cut-off.

    Args:
        values: Metres, (T, ...), without missing values, evenly spaced in time.
        rate: Frames per second.
        kind: Filter.
        cutoff: Cut-off frequency, Hz, for One-Euro that at rest; that of `CUTOFFS` by default.

    Raises:
        UsageError: If the cut-off is not above 0.
    """
    motion: NDArray[np.float64] = values.astype(np.float64)
    if kind == "none":
        return motion
    cutoff = CUTOFFS[kind] if cutoff is None else cutoff
    if not cutoff > 0:
        raise UsageError(f"cutoff is {cutoff:g} Hz; give a frequency above 0")
    if kind == "one-euro":
        euro = OneEuro(cutoff)
        return np.stack([euro(value, frame / rate) for frame, value in enumerate(motion)])
    if cutoff >= rate / 2:  # a slow video holds nothing above the cut-off
        return motion
    if kind == "butterworth":
        if len(motion) < 4:
            return motion
        sections = signal.butter(2, cutoff, fs=rate, output="sos")
        pad = min(len(motion) - 1, int(3 * rate / cutoff))
        smooth = signal.sosfiltfilt(sections, motion, axis=0, padlen=pad)
    else:
        window = savgol_window(rate, cutoff)
        if len(motion) < window or window < 5:
            return motion
        smooth = signal.savgol_filter(motion, window, 3, axis=0, mode="interp")
    return _keep_details(motion, smooth)


def savgol_window(rate: float, cutoff: float) -> int:
    """Length of the cubic Savitzky-Golay window whose gain at the cut-off is nearest to -3 dB.

    Longer windows can have that gain again, in a side lobe; they are not taken.

    >>> savgol_window(50.0, 5.0)
    11

    Args:
        rate: Frames per second.
        cutoff: Cut-off frequency, Hz, below half of the rate.

    Returns:
        An odd number of frames, at least 5; 1 if even that one takes most of the cut-off's motion.
    """
    turn = 2 * np.pi * cutoff / rate

    def gain(half: int) -> float:
        weights = signal.savgol_coeffs(2 * half + 1, 3)
        return float((weights * np.cos(turn * np.arange(-half, half + 1))).sum())

    wanted, half = np.sqrt(0.5), 2
    if gain(half) < LEAST_GAIN:
        return 1
    while gain(half + 1) > wanted:
        half += 1
    nearest = min((half, half + 1), key=lambda h: abs(gain(h) - wanted))
    return 2 * nearest + 1


def _keep_details(values: NDArray[np.float64], smooth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put back differences from the smooth motion that are far above the noise.

    The noise of each joint is the median size of its differences over time. A joint's difference is
    shrunk by `DETAIL` deviations of the noise (the soft threshold of wavelet denoising), so that
    noise goes and fast motion loses little.
    """
    rest = values - smooth
    size = np.linalg.norm(rest, axis=-1, keepdims=True)
    noise = np.median(size, axis=0) / 1.538  # the median length of a 3D Gaussian of deviation 1
    kept = np.maximum(0.0, 1 - (DETAIL * noise / np.maximum(size, 1e-12)) ** 2)
    return smooth + kept * rest


def bone_lengths(joints3d: NDArray[np.floating], skeleton: Skeleton) -> NDArray[np.float64]:
    """Lengths of the bones of one person: medians over time, equal for left and right.

    Args:
        joints3d: Metres, (T, J, 3); NaN where missing.
        skeleton: The joint set.

    Returns:
        Metres, one per bone of `skeleton.bones`.
    """
    parents, children = np.array(skeleton.bones).T
    lengths = np.nanmedian(
        np.linalg.norm(joints3d[:, children] - joints3d[:, parents], axis=-1), axis=0
    )
    place = {child: bone for bone, child in enumerate(children.tolist())}
    for left, right in zip(skeleton.left, skeleton.right, strict=True):
        if left in place and right in place:
            both = [place[left], place[right]]
            lengths[both] = lengths[both].mean()
    return np.asarray(lengths)


def hold_bone_lengths(
    joints3d: NDArray[np.floating],
    skeleton: Skeleton,
    lengths: NDArray[np.floating],
    *,
    contact: float = 0.03,
    rounds: int = 40,
) -> NDArray[np.float64]:
    """Move joints as little as possible so that every bone has its length.

    In each round the two ends of every bone move by half of its error; hands that touch stay
    together in the same way. At last each joint is put at its exact distance from its parent. The
    root moves, too.

    Args:
        joints3d: Metres, (T, J, 3), without missing values.
        skeleton: The joint set.
        lengths: Metres, one per bone of `skeleton.bones`.
        contact: Wrists closer than this, metres, keep their distance.
        rounds: Number of rounds.

    Source: position-based dynamics (Müller et al. 2007) with constraints on distances.
    """
    joints = np.array(joints3d, np.float64)
    wrists = [skeleton.joints.index(f"{side}_wrist") for side in ("left", "right")]
    gap = joints[:, wrists[1]] - joints[:, wrists[0]]
    touching = np.linalg.norm(gap, axis=1) < contact
    for _ in range(rounds):
        for (parent, child), length in zip(skeleton.bones, lengths, strict=True):
            bone = joints[:, child] - joints[:, parent]
            now = np.linalg.norm(bone, axis=1, keepdims=True)
            move = bone * ((now - length) / np.maximum(2 * now, 1e-9))
            joints[:, parent] += move
            joints[:, child] -= move
        wrong = (joints[:, wrists[1]] - joints[:, wrists[0]] - gap)[touching] / 2
        joints[touching, wrists[0]] += wrong
        joints[touching, wrists[1]] -= wrong
    exact = np.empty_like(joints)
    exact[:, skeleton.root] = joints[:, skeleton.root]
    known = dict(zip(skeleton.bones, lengths.tolist(), strict=True))
    for parent, child in _root_first(skeleton):
        bone = joints[:, child] - joints[:, parent]
        now = np.maximum(np.linalg.norm(bone, axis=1, keepdims=True), 1e-9)
        exact[:, child] = exact[:, parent] + bone * (known[parent, child] / now)
    return exact


def _root_first(skeleton: Skeleton) -> list[tuple[int, int]]:
    """Bones in an order in which a parent is placed before its children."""
    placed, ordered = {skeleton.root}, []
    rest = list(skeleton.bones)
    while rest:
        ready = [bone for bone in rest if bone[0] in placed]
        ordered += ready
        placed |= {child for _, child in ready}
        rest = [bone for bone in rest if bone not in ready]
    return ordered


def mean_acceleration(joints3d: NDArray[np.floating]) -> float:
    """Jitter: mean length of the second difference over time, mm per frame²; NaN frames left out.

    Args:
        joints3d: Metres, (T, J, 3).
    """
    second = joints3d[2:] - 2 * joints3d[1:-1] + joints3d[:-2]
    length = np.linalg.norm(second, axis=-1)
    return MILLIMETRES * float(np.nanmean(length)) if np.isfinite(length).any() else 0.0


def bone_variation(joints3d: NDArray[np.floating], skeleton: Skeleton) -> float:
    """How much bones change: the 90 % quantile of |length / median length - 1|.

    Args:
        joints3d: Metres, (T, J, 3); NaN where missing.
        skeleton: The joint set.
    """
    parents, children = np.array(skeleton.bones).T
    length = np.linalg.norm(joints3d[:, children] - joints3d[:, parents], axis=-1)
    if not np.isfinite(length).any():
        return 0.0
    median = np.nanmedian(length, axis=0)
    known = median > 0  # two joints that are never seen may be lifted to one place
    if not known.any():
        return 0.0
    change = np.abs(length[:, known] / median[known] - 1)
    return float(np.nanquantile(change, 0.9))
