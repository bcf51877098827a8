"""Errors of BlazePose on rendered people, fitted as the noise that lifters are trained with.

Usage: python benchmarks/detector_noise.py [--root FOLDER] [--clips 24] [--seconds 2] [-o FILE]

Renders people of the training split (CMU motion with --root, embedded people), runs the network of
`heatlift weights get blazepose` on every frame as `heatlift predict` does, and writes the table
pipeline/lift/detector_noise.yaml.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from pipeline.experiments.detection_errors import find_swaps
from pipeline.experiments.rendered_people import find_on_renders
from pipeline.files.writing import write_atomically
from pipeline.lift.any_video import AnyVideo, VideoPart
from pipeline.lift.corruption import NOISE_DEVIATION, NOISE_WHITE
from pipeline.lift.crop_camera import CROP_SCALE
from pipeline.lift.detector_noise import LIMBS, WITH_EARS, add_ears, joint_axes
from pipeline.mocap import Mocap, Synthetic
from pipeline.predict.blazepose import BlazePose, load_blazepose
from pipeline.skeleton import BLAZEPOSE33, H36M17, make_conversion
from pipeline.weights.catalogue import find_weights

TABLE = Path(__file__).parents[1] / "pipeline/lift/detector_noise.yaml"
THRESHOLD = 0.3
"""Score below which `heatlift predict` does not use a joint."""
SWAP = 0.12
"""Mean error of a limb from which it may be exchanged with the other side, metres."""
LAGS = 10
"""Frames over which the correlation of the errors is fitted."""
MADE_UP = {"pelvis": "hip", "spine": "hip", "thorax": "shoulder", "head": "nose"}
"""Joint that BlazePose lacks -> joint whose spread it gets in the table, without bias."""


@dataclass(frozen=True, eq=False)
class FoundClip:
    """What the network found in a rendered clip, as metres at the depth of each joint.

    Args:
        error: Error in x and y, (T, 19, 2).
        exact: True x and y, (T, 19, 2).
        axes: Axes of `joint_axes`, (T, 19, 3, 3).
        seen: Whether the score is at least `THRESHOLD`, (T, 19).
        inside: Whether the joint lies inside the image, (T, 19).
    """

    error: NDArray[np.float64]
    exact: NDArray[np.float64]
    axes: NDArray[np.float64]
    seen: NDArray[np.bool_]
    inside: NDArray[np.bool_]


def record_clips(root: str | None, count: int, seconds: float) -> list[VideoPart]:
    """Clips of training people, seen by cameras of any kind, without noise."""
    video = AnyVideo(seconds=seconds, height=(0.35, 0.9), aim=0.3, clean=1.0, hidden=0.0,
                     joint_sets=("H36M17",))  # fmt: skip
    sources: list[Any] = [Synthetic(seconds=4.0)]
    sources += [Mocap(root, bodies="random_adults", fps=25)] if root else []
    pools = [source.sequences("train")[::4] for source in sources]
    clips: list[VideoPart] = []
    for number in range(count):
        pool = pools[number % len(pools)]
        sequence = pool[(number // len(pools)) * 7919 % len(pool)]
        parts = video.record(sequence, 0, number)
        clips.append(parts[len(parts) // 2])
    return clips


def find_joints(part: VideoPart, network: BlazePose, number: int) -> FoundClip:
    """Run the network on a rendered clip, from crop to crop."""
    camera = part.camera
    in_camera = add_ears(part.joints3d)
    exact = in_camera[..., :2] / in_camera[..., 2:] * camera.focal + camera.principal
    detected = find_on_renders(part, network, number)
    convert = make_conversion(BLAZEPOSE33, WITH_EARS, allow_missing=True, extrapolate=True)
    found, score = convert.joints(detected.joints2d), convert.score(detected.score)
    return FoundClip(
        (found - exact) * in_camera[..., 2:] / camera.focal,
        in_camera[..., :2],
        joint_axes(in_camera),
        (score >= THRESHOLD) & np.isfinite(found).all(-1),
        ((exact >= 0) & (exact <= np.array(camera.size) - 1)).all(-1),
    )


def burst_length(inside: list[NDArray[np.bool_]]) -> float:
    """Mean length of the runs of frames, frames."""
    starts = sum(int((np.diff(np.r_[False, part].astype(int)) == 1).sum()) for part in inside)
    return sum(int(part.sum()) for part in inside) / max(starts, 1)


def fit_joint(
    errors: list[NDArray[np.float64]], axes: list[NDArray[np.float64]]
) -> tuple[dict[str, Any], list[NDArray[np.float64]]]:
    """Bias, spread and outliers of one kind of joint; and its errors that follow the model."""
    error, frame = np.concatenate(errors), np.concatenate(axes)[..., :2]
    known = np.isfinite(error).all(-1)
    bias = np.zeros(3)
    for _ in range(4):
        rest = error - np.einsum("nax,a->nx", frame, bias)
        spread = 1.4826 * np.nanmedian(np.abs(rest[known]), axis=0).mean()
        known = np.isfinite(error).all(-1) & (np.linalg.norm(rest, axis=-1) < 5 * spread)
        matrix = frame[known].transpose(0, 2, 1).reshape(-1, 3)
        bias = np.linalg.lstsq(matrix, error[known].reshape(-1), rcond=None)[0]
    rest = [e - np.einsum("nax,a->nx", a[..., :2], bias) for e, a in zip(errors, axes, strict=True)]
    far = [np.linalg.norm(r, axis=-1) >= 5 * spread for r in rest]
    seen = [np.isfinite(r).all(-1) for r in rest]
    kept = [np.where((s & ~f)[:, None], r, np.nan) for r, s, f in zip(rest, seen, far, strict=True)]
    kept = [r for r in kept if np.isfinite(r).all(-1).sum() >= 10]
    means = np.array([np.nanmean(r, axis=0) for r in kept])
    share = sum(int((s & f).sum()) for s, f in zip(seen, far, strict=True))
    row = {"bias": bias.tolist(), "constant": float(np.sqrt(np.mean(means**2)))}
    row["outlier"] = share / max(sum(int(s.sum()) for s in seen), 1)
    return row, [r - mean for r, mean in zip(kept, means, strict=True)]


def autocovariance(rests: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Mean product of errors 0 to `LAGS` frames apart."""
    result = []
    for lag in range(LAGS + 1):
        products = [r[lag:] * r[: len(r) - lag] for r in rests]
        result.append(np.nanmean(np.concatenate(products)))
    return np.array(result)


def fit_table(clips: list[FoundClip], rate: float) -> dict[str, Any]:
    """The table of all joints."""
    swaps = {
        limb: [
            find_swaps(clip.exact + clip.error, clip.exact, WITH_EARS, names, SWAP)
            for clip in clips
        ]
        for limb, names in LIMBS.items()
    }
    kinds = list(dict.fromkeys(name.split("_")[-1] for name in WITH_EARS.joints))
    rows: dict[str, dict[str, Any]] = {}
    curves, gone = {}, []
    for kind in kinds:
        if kind in MADE_UP:
            continue
        errors, axes, unseen = [], [], []
        limb = next((limb for limb, names in LIMBS.items() if kind in names), None)
        for n, clip in enumerate(clips):
            for j in (j for j, name in enumerate(WITH_EARS.joints) if name.split("_")[-1] == kind):
                good = clip.seen[:, j] & clip.inside[:, j]
                good &= ~swaps[limb][n] if limb else True
                errors.append(np.where(good[:, None], clip.error[:, j], np.nan))
                axes.append(clip.axes[:, j])
                unseen.append((~clip.seen[:, j])[clip.inside[:, j]])
        rows[kind], rests = fit_joint(errors, axes)
        rows[kind]["missing"] = float(np.concatenate(unseen).mean())
        gone += unseen
        curves[kind] = autocovariance(rests)
    shape = np.mean([curve / curve[0] for curve in curves.values()], axis=0)
    lags = np.arange(1, LAGS + 1)
    kept = shape[1:] > 0.05
    slope = np.polyfit(lags[kept], np.log(shape[1:][kept]), 1)[0]
    memory = float(-1 / slope)
    for kind, curve in curves.items():
        slow = float(np.mean(curve[1:4] * np.exp(np.arange(1, 4) / memory)))
        slow = min(max(slow, 0.0), float(curve[0]))
        rows[kind]["drift"], rows[kind]["flicker"] = slow**0.5, float(curve[0] - slow) ** 0.5
    for kind, like in MADE_UP.items():
        rows[kind] = {**rows[like], "bias": [0.0, 0.0, 0.0]}
    swap = {limb: float(np.concatenate(parts).mean()) for limb, parts in swaps.items()}
    both = [part for parts in swaps.values() for part in parts]
    swap["seconds"] = max(burst_length(both), 1.0) / rate
    return {
        "memory": memory / rate,
        "burst_seconds": max(burst_length(gone), 1.0) / rate,
        "swap": swap,
        "joints": {kind: rows[kind] for kind in kinds},
        "least": {kind: least_of(kind) for kind in kinds},
    }


def least_of(kind: str) -> dict[str, float]:
    """Least spread of a joint on real images: that of MotionBERT's noise, fitted to Human3.6M."""
    like = "nose" if kind == "ear" else kind
    columns = [j for j, name in enumerate(H36M17.joints) if name.split("_")[-1] == like]
    spread = float(NOISE_DEVIATION[columns].mean()) / CROP_SCALE
    shares = {"outlier": 0.01, "missing": 0.01}
    return {"constant": spread / 2, "drift": spread, "flicker": NOISE_WHITE / CROP_SCALE, **shares}


def rounded(value: Any) -> Any:
    """The same table with at most four decimals."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(float(value), 4)


def main() -> str | None:
    """Measure, fit, write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="folder of the CMU recordings")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("-o", "--out", type=Path, help=f"usually {TABLE.name}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    weights = find_weights("blazepose-full")
    if weights is None:
        return "no weights of blazepose-full; run heatlift weights get blazepose"
    network = load_blazepose(weights)
    parts = record_clips(options.root, options.clips, options.seconds)
    clips = []
    for number, part in enumerate(parts):
        clips.append(find_joints(part, network, number))
        error = np.linalg.norm(clips[-1].error, axis=-1)[clips[-1].seen & clips[-1].inside]
        print(f"clip {number + 1} of {len(parts)}: {part.name}, {len(part.joints3d)} frames, "
              f"median error {1000 * np.median(error):.0f} mm", flush=True)  # fmt: skip
    table = rounded(fit_table(clips, parts[0].rate))
    frames = sum(len(part.joints3d) for part in parts)
    head = (
        f"# Errors of blazepose-full on {frames} frames of {len(parts)} rendered clips, metres "
        "of the person. Written by\n# python benchmarks/detector_noise.py"
        f"{' --root FOLDER' if options.root else ''} --clips {options.clips} --seconds "
        f"{options.seconds:g}\n# least: spread on real images (MotionBERT's table), because "
        "rendered people are easier than photographs.\n"
    )
    text = head + yaml.safe_dump(table, sort_keys=False, default_flow_style=None, width=120)
    print(text)
    if options.out is not None:
        write_atomically(options.out, lambda file: file.write(text.encode()))
    return None


if __name__ == "__main__":
    sys.exit(main())
