"""Operations of the heatmap stage against the published order of operations.

Run as `python benchmarks/heatmap.py [rounds]`; the Makefile sets the allocator. One thread; the
variants alternate, so that other load on the machine slows all of them; medians of CPU time. The
baselines are written here from what papers describe: one joint at a time, one image at a time,
images in floats.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import rng
from pipeline.datasets.photos import Photographs, with_reduced_decoding
from pipeline.heatmap import HRNet, targets
from pipeline.heatmap.crop import Augmentation, apply_affine, augmented_matrices, invert_affine
from pipeline.heatmap.data import Crops
from pipeline.heatmap.image_input import DEVIATION, MEAN, ImageNormaliser
from pipeline.heatmap.resnet import fold_norms
from pipeline.skeleton import COCO17
from pipeline.sources import Samples

B, J, SIZE, CROP = 32, 17, (48, 64), (192, 256)
IMAGE = (640, 480)
SIGMA = 2.0
PHOTOGRAPHS = ((640, 480), (1000, 1000), (4032, 3024))
"""Sizes of photographs: about those of COCO, of Human3.6M and of a telephone."""

Timed = tuple[str, Callable[[], Any]]


def compare(
    title: str, variants: list[Timed], rounds: int, goals: tuple[float, ...], *, repeats: int = 5
) -> list[Any]:
    """Time variants alternately and print how much faster each is than the first, the baseline.

    Args:
        title: Name of the operation, for the printed lines.
        variants: Names and functions.
        rounds: Number of measured rounds.
        goals: Wanted ratio of the baseline's time to each other variant's time.
        repeats: Number of calls in a round.

    Returns:
        Last result of each variant.
    """
    seconds: list[list[float]] = [[] for _ in variants]
    results: list[Any] = [None] * len(variants)
    for round_ in range(rounds + 1):
        order = range(len(variants))
        for k in order if round_ % 2 else reversed(order):
            start = time.process_time()
            for _ in range(repeats):
                results[k] = variants[k][1]()
            if round_:  # the first round warms up
                seconds[k].append((time.process_time() - start) / repeats)
    times = [statistics.median(taken) for taken in seconds]
    print(f"{title}: {variants[0][0]} {1e3 * times[0]:.1f} ms")
    for (name, _), taken, goal in zip(variants[1:], times[1:], goals, strict=True):
        print(f"  {name}: {1e3 * taken:.1f} ms, ratio {times[0] / taken:.2f} (goal {goal})")
    return results


def targets_by_joint(cells: NDArray[np.floating]) -> NDArray[np.float32]:
    """Baseline: one patch of a Gaussian per joint, pasted where it fits."""
    reach = int(3 * SIGMA)
    maps = np.zeros((len(cells), J, SIZE[1], SIZE[0]), np.float32)
    for i, person in enumerate(cells):
        for j, (x, y) in enumerate(person):
            column, row = int(x + 0.5), int(y + 0.5)
            left, top = max(column - reach, 0), max(row - reach, 0)
            right, low = min(column + reach + 1, SIZE[0]), min(row + reach + 1, SIZE[1])
            if left >= right or top >= low:
                continue
            across = np.arange(2 * reach + 1, dtype=np.float32)
            down = across[:, None]
            bell = np.exp(-((across - reach) ** 2 + (down - reach) ** 2) / (2 * SIGMA**2))
            maps[i, j, top:low, left:right] = bell[
                top - row + reach : low - row + reach,
                left - column + reach : right - column + reach,
            ]
    return maps


def decode_by_joint(
    heatmaps: NDArray[np.float32], matrices: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Baseline: all peaks at once, then refined and mapped to the image one joint at a time."""
    flat = heatmaps.reshape(len(heatmaps), J, -1)
    best = flat.argmax(2)
    cells = np.stack([best % SIZE[0], best // SIZE[0]], axis=2).astype(np.float32)
    joints2d = np.zeros((*cells.shape[:2], 2))
    for i in range(len(heatmaps)):
        back = np.linalg.inv(np.vstack([matrices[i], [0, 0, 1]]))
        for j in range(J):
            heat, (x, y) = heatmaps[i, j], cells[i, j].astype(int)
            if 0 < x < SIZE[0] - 1 and 0 < y < SIZE[1] - 1:
                slope = np.array([heat[y, x + 1] - heat[y, x - 1], heat[y + 1, x] - heat[y - 1, x]])
                cells[i, j] += np.sign(slope) * 0.25
            pixel = 4 * cells[i, j] + 1.5
            joints2d[i, j] = (back @ np.array([pixel[0], pixel[1], 1.0]))[:2]
    return joints2d


def decode_batched(heatmaps: Tensor, matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Joints in image pixels as the heatmap stage decodes them."""
    cells, _ = targets.decode_quarter(heatmaps)
    return apply_affine(invert_affine(matrices), targets.to_pixels(cells).numpy())


def crop_by_image(
    images: list[NDArray[np.uint8]], boxes: NDArray[np.float64], joints2d: NDArray[np.float64]
) -> Tensor:
    """Baseline: mirror the image, fit the affine map to three points, warp, normalise in floats."""
    crops = []
    draw = np.random.default_rng(0)
    for whole, box, joints in zip(images, boxes, joints2d, strict=True):
        moved = joints.copy()
        x, y, w, h = box
        centre = np.array([x + w / 2, y + h / 2])
        if draw.random() < 0.5:
            whole = whole[:, ::-1, :]
            moved[:, 0] = whole.shape[1] - 1 - moved[:, 0]
            moved = moved[list(COCO17.swap)]
            centre[0] = whole.shape[1] - 1 - centre[0]
        shown = max(w, h * CROP[0] / CROP[1]) * 1.25 * (1 + 0.35 * np.clip(draw.normal(), -1, 1))
        angle = np.deg2rad(45 * np.clip(draw.normal(), -2, 2)) if draw.random() < 0.6 else 0.0
        arm = shown / 2 * np.array([np.sin(angle), -np.cos(angle)])
        side = np.array([arm[1], -arm[0]])
        source = np.stack([centre, centre + arm, centre + side]).astype(np.float32)
        middle = np.array(CROP) / 2
        target = np.stack([middle, middle - [0, middle[0]], middle - [middle[0], 0]])
        matrix = cv2.getAffineTransform(source, target.astype(np.float32))
        warped = cv2.warpAffine(whole, matrix, CROP, flags=cv2.INTER_LINEAR)
        pixels = torch.from_numpy(warped).permute(2, 0, 1).contiguous().float().div(255)
        pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[
            :, None, None
        ]
        for j in range(J):
            moved[j] = matrix @ np.array([moved[j, 0], moved[j, 1], 1.0])
        crops.append(pixels)
    return torch.stack(crops)


def crop_batched(
    images: list[NDArray[np.uint8]], boxes: NDArray[np.float64], joints2d: NDArray[np.float64]
) -> Tensor:
    """Crops as the heatmap data module makes them: all matrices at once, uint8 output."""
    matrices, _ = augmented_matrices(
        boxes,
        joints2d,
        np.ones(joints2d.shape[:2], bool),
        CROP,
        skeleton=COCO17,
        augmentation=Augmentation(half_body=0),
        padding=1.25,
        key=(0, 0, np.arange(len(boxes))),
    )
    apply_affine(matrices, joints2d)
    crops = np.empty((len(boxes), CROP[1], CROP[0], 3), np.uint8)
    for i, (whole, matrix) in enumerate(zip(images, matrices, strict=True)):
        crops[i] = cv2.warpAffine(whole, matrix, CROP, flags=cv2.INTER_LINEAR)
    return torch.from_numpy(crops)


def loss_by_joint(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Baseline: mean over joints of half the mean square error, one joint at a time."""
    total = torch.zeros(())
    for j in range(J):
        w = weight[:, j, None]
        total = total + 0.5 * torch.nn.functional.mse_loss(
            predicted[:, j].flatten(1) * w, target[:, j].flatten(1) * w
        )
    return total / J


def compare_operations(rounds: int) -> None:
    """Compare targets, decoding, crops and the loss."""
    unit = rng.uniform("heatmap benchmark", np.arange(B * J), lanes=2).reshape(B, J, 2)
    cells = unit * (np.array(SIZE) - 1)
    tensor = torch.from_numpy(cells).float()
    slow, fast, _ = compare(
        f"targets, {B} people",
        [
            ("joint by joint", lambda: targets_by_joint(cells)),
            ("separable", lambda: targets.encode_heatmaps_rounded(tensor, SIZE, sigma=SIGMA)),
            ("exact centre", lambda: targets.encode_heatmaps(tensor, SIZE, sigma=SIGMA)),
        ],
        rounds,
        (5, 5),
    )
    assert np.abs(slow - fast.numpy()).max() < 1e-6

    maps = targets.encode_heatmaps(tensor, SIZE) + 0.05 * torch.randn(B, J, SIZE[1], SIZE[0])
    boxes = np.concatenate([200 * unit[:, 0], 100 + 200 * unit[:, 1]], axis=1)
    joints2d = boxes[:, None, :2] + unit * boxes[:, None, 2:]
    matrices, _ = augmented_matrices(
        boxes,
        joints2d,
        np.ones((B, J), bool),
        CROP,
        skeleton=COCO17,
        augmentation=Augmentation(half_body=0),
        padding=1.25,
        key=(0, 0, np.arange(B)),
    )
    slow, fast = compare(
        f"decoding, {B} people",
        [
            ("joint by joint", lambda: decode_by_joint(maps.numpy(), matrices)),
            ("gathered", lambda: decode_batched(maps, matrices)),
        ],
        rounds,
        (8,),
    )
    # At the border the published rule refines no coordinate of a peak; Heatlift refines the other.
    inner = np.abs(slow - fast).max(-1) < 1e-4
    assert inner.mean() > 0.9

    noise = rng.make_generator("heatmap benchmark")
    normalise = ImageNormaliser()
    # One image many times: in training an image is in the CPU cache, as it was just decoded.
    images = [noise.integers(0, 256, (*IMAGE[::-1], 3), dtype=np.uint8)] * B
    compare(
        f"crop and augment, {B} images of {IMAGE[0]} x {IMAGE[1]}",
        [
            ("in floats", lambda: crop_by_image(images, boxes, joints2d)),
            ("in bytes", lambda: crop_batched(images, boxes, joints2d)),
            ("and normalised", lambda: normalise(crop_batched(images, boxes, joints2d))),
        ],
        rounds,
        (5, 3),
    )

    target, weight = targets.encode_heatmaps(tensor, SIZE), torch.ones(B, J)
    predicted = maps.clone().requires_grad_()

    def step(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
        value = loss(predicted, target, weight)
        value.backward()
        predicted.grad = None
        return float(value.detach())

    slow, fast = compare(
        f"loss and gradient, {B} people",
        [
            ("joint by joint", lambda: step(loss_by_joint)),
            ("own gradient", lambda: step(targets.heatmap_loss)),
        ],
        rounds,
        (2,),
    )
    assert abs(slow - fast) < 1e-5 * abs(slow)


def samples_by_image(
    paths: list[Path],
    matrices: NDArray[np.float64],
    mirrored: NDArray[np.bool_],
    joints2d: NDArray[np.float64],
) -> tuple[Tensor, NDArray[np.float32]]:
    """Baseline: decode, mirror, warp and normalise whole images, then joints one at a time.

    Args:
        paths: JPEG files.
        matrices: From pixels of the image to pixels of the crop, (B, 2, 3).
        mirrored: Whether a crop is mirrored, (B,).
        joints2d: Pixels of the image, (B, J, 2).

    Returns:
        Normalised crops, (B, 3, H, W), and targets, (B, J, H/4, W/4).
    """
    crops, maps = [], []
    corners = np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    for path, matrix, flip, joints in zip(paths, matrices, mirrored, joints2d, strict=True):
        whole = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        whole = cv2.cvtColor(whole, cv2.COLOR_BGR2RGB)
        moved, source = joints.copy(), corners.copy()
        target = apply_affine(matrix, corners)
        if flip:
            whole = whole[:, ::-1, :]
            moved[:, 0] = whole.shape[1] - 1 - moved[:, 0]
            moved = moved[list(COCO17.swap)]
            source[:, 0] = whole.shape[1] - 1 - source[:, 0]
        affine = cv2.getAffineTransform(source.astype(np.float32), target.astype(np.float32))
        warped = cv2.warpAffine(whole, affine, CROP, flags=cv2.INTER_LINEAR)
        pixels = torch.from_numpy(warped).permute(2, 0, 1).contiguous().float().div(255)
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        crops.append((pixels - mean) / deviation)
        for j in range(J):
            moved[j] = affine @ np.array([moved[j, 0], moved[j, 1], 1.0])
        maps.append(targets_by_joint((moved[None] - targets.EXACT_CELLS) / targets.STRIDE)[0])
    return torch.stack(crops), np.stack(maps)


def make_photographs(folder: Path, size: tuple[int, int]) -> tuple[Samples, list[Path]]:
    """Equal JPEG files with grain, each with one person of 0.55 to 0.75 of the height."""
    width, height = size
    draw = np.random.default_rng(4)
    grain = draw.normal(0, 40, (height // 8, width // 8, 3))
    image = 128 + cv2.resize(grain, size, interpolation=cv2.INTER_CUBIC)
    image = np.clip(image + draw.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
    cv2.imwrite(str(folder / "0.jpg"), image)
    paths = [folder / f"{i}.jpg" for i in range(B)]
    for path in paths[1:]:
        path.hardlink_to(paths[0])
    sides = height * draw.uniform((0.25, 0.55), (0.4, 0.75), (B, 2))
    boxes = np.c_[draw.uniform(0, 1, (B, 2)) * (np.array(size) - sides), sides]
    joints2d = boxes[:, None, :2] + draw.uniform(0.05, 0.95, (B, J, 2)) * boxes[:, None, 2:]
    samples = Samples(
        COCO17,
        Photographs(paths),
        joints2d.astype(np.float32),
        np.ones((B, J), bool),
        boxes.astype(np.float32),
    )
    return samples, paths


def compare_photographs(size: tuple[int, int], rounds: int) -> None:
    """Compare training samples from JPEG files: decoded, cut, augmented, normalised, targets.

    Args:
        size: Width and height of the photographs in pixels.
        rounds: Number of measured rounds.
    """
    normalise, augmentation = ImageNormaliser(), Augmentation(half_body=0)

    def make_batch(samples: Samples) -> tuple[Tensor, NDArray[np.float32]]:
        crops = Crops(samples, COCO17, CROP, augmentation=augmentation)
        batch = crops[(0, np.arange(B))]
        cells = targets.to_cells(torch.from_numpy(batch["joints2d"]))
        maps = targets.encode_heatmaps_rounded(cells, SIZE, sigma=SIGMA)
        return normalise(torch.from_numpy(batch["image"])), maps.numpy()

    with tempfile.TemporaryDirectory() as folder:
        samples, paths = make_photographs(Path(folder), size)
        small = dataclasses.replace(samples, images=with_reduced_decoding(samples.images))
        joints2d = samples.joints2d.astype(np.float64)
        matrices, mirrored = augmented_matrices(
            samples.boxes.astype(np.float64),
            joints2d,
            samples.labelled,
            CROP,
            skeleton=COCO17,
            augmentation=augmentation,
            padding=1.25,
            key=(0, 0, np.arange(B)),
        )
        slow, fast, reduced = compare(
            f"JPEG to crop, augmentation and target, {B} images of {size[0]} x {size[1]}",
            [
                ("one by one", lambda: samples_by_image(paths, matrices, mirrored, joints2d)),
                ("batched", lambda: make_batch(samples)),
                ("at a reduced scale", lambda: make_batch(small)),
            ],
            rounds,
            (1.5, 2.5),
            repeats=1,
        )
    grey = 255 * torch.tensor(DEVIATION)[:, None, None]
    for name, (crops, maps) in (("batched", fast), ("reduced", reduced)):
        levels = float(((crops - slow[0]) * grey).abs().mean())
        equal = float((np.abs(slow[1] - maps).max((2, 3)) < 1e-5).mean())
        print(f"  {name}: mean difference {levels:.2f} grey levels, {equal:.1%} of targets equal")
        assert equal > 0.95  # others: centres between two cells, and just outside of the heatmap
    assert float(((fast[0] - slow[0]) * grey).abs().mean()) < 1


def compare_network(rounds: int) -> None:
    """Compare HRNet-W32 on two crops as trained and as prepared for inference."""
    plain = HRNet().eval()
    last_plain = HRNet().eval().to(memory_format=torch.channels_last)
    last_plain.load_state_dict(plain.state_dict())
    prepared = fold_norms(last_plain)
    x = torch.randn(2, 3, CROP[1], CROP[0])
    last = x.contiguous(memory_format=torch.channels_last)

    def in_bf16() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return prepared(last)

    with torch.inference_mode():
        outputs = compare(
            "HRNet-W32, 2 crops",
            [
                ("as published", lambda: plain(x)),
                ("channels last", lambda: last_plain(last)),
                ("and folded, as in detection", lambda: prepared(last)),
                ("and bf16", in_bf16),
            ],
            rounds,
            (1.03, 1.08, 1.95),
            repeats=1,
        )
    span = float(outputs[0].abs().max())
    for output in outputs[1:]:
        print(f"  largest difference {float((output - outputs[0]).abs().max()) / span:.1e} of it")


def main() -> None:
    """Print one block per operation."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    compare_operations(rounds)
    for size in PHOTOGRAPHS:
        compare_photographs(size, rounds)
    compare_network(rounds)


if __name__ == "__main__":
    main()
