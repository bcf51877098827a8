"""Drawing primitives: colours, lines, discs, text, contact sheets."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.skeleton import Skeleton

Image = NDArray[np.uint8]
"""RGB, (H, W, 3)."""


Colour = tuple[int, int, int]


# Orange and blue stay apart in every common kind of colour blindness (Okabe and Ito 2008).
LEFT: Colour = (238, 128, 20)


RIGHT: Colour = (30, 112, 206)


CENTRE: Colour = (92, 99, 112)


TRUTH: Colour = (140, 147, 158)


PAPER: Colour = (255, 255, 255)


INK: Colour = (34, 39, 48)


FAINT: Colour = (228, 231, 236)


GAP = 10


_SUBPIXEL = 4


_FAR = 1e5


def side_colours(skeleton: Skeleton) -> tuple[Colour, ...]:
    """Colour of each joint, (J,): orange on the body's left, blue on its right, grey between."""
    left, right = set(skeleton.left), set(skeleton.right)
    return tuple(
        LEFT if i in left else RIGHT if i in right else CENTRE for i in range(len(skeleton))
    )


def contact_sheet(
    images: Sequence[Image], columns: int, captions: Sequence[str] | None = None
) -> Image:
    """Images in a grid on white paper, captions above them.

    Args:
        images: RGB images, not necessarily of one size; smaller ones are centred in their cell.
        columns: Images in a row.
        captions: One per image, or none; a caption that is too wide is cut.

    Returns:
        RGB.

    Raises:
        ValueError: If there is no image, or not one caption per image.
    """
    if not images or (captions is not None and len(captions) != len(images)):
        raise ValueError(f"{len(images)} images and {len(captions or [])} captions make no sheet")
    columns = min(columns, len(images))
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    heads = [
        22 if captions and any(captions[start : start + columns]) else 0
        for start in range(0, len(images), columns)
    ]
    tops = np.cumsum([GAP] + [height + head + GAP for head in heads])
    sheet = blank_canvas(int(tops[-1]), columns * (width + GAP) + GAP)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        x, y = GAP + column * (width + GAP), int(tops[row])
        if captions and captions[i]:
            draw_text(sheet, captions[i], (x, y + 15), size=13, width=width)
        y += heads[row] + (height - image.shape[0]) // 2
        x += (width - image.shape[1]) // 2
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def place_side_by_side(*images: Image) -> Image:
    """Images in one row, top edges aligned, on white paper."""
    height = max(image.shape[0] for image in images)
    row = [
        np.pad(
            image,
            ((0, height - image.shape[0]), (0, 0), (0, 0)),
            mode="constant",
            constant_values=255,
        )
        for image in images
    ]
    return np.concatenate(row, axis=1)


def add_title(image: Image, title: str) -> Image:
    """An image with a bold line of text above it."""
    head = blank_canvas(30, image.shape[1])
    draw_text(head, title, (GAP, 21), size=15, bold=True, width=image.shape[1] - 2 * GAP)
    return np.concatenate([head, image])


def enlarge(image: Image, height: int) -> Image:
    """An image at another height, its proportions kept; always a new array."""
    rows, columns = image.shape[:2]
    width = max(1, round(columns * height / rows))
    how = cv2.INTER_CUBIC if height > rows else cv2.INTER_AREA
    resized = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=how)
    return np.asarray(resized, np.uint8)


def blank_canvas(height: int, width: int) -> Image:
    return np.full((height, width, 3), PAPER, np.uint8)


def draw_line(
    canvas: Image, start: NDArray[np.float64], end: NDArray[np.float64], colour: Colour, width: int
) -> None:
    first, second = _fixed(start), _fixed(end)
    if first is not None and second is not None:
        cv2.line(canvas, first, second, colour, width, cv2.LINE_AA, _SUBPIXEL)


def draw_disc(canvas: Image, point: NDArray[np.float64], radius: float, colour: Colour) -> None:
    centre = _fixed(point)
    if centre is not None:
        fixed = round(radius * 2**_SUBPIXEL)
        cv2.circle(canvas, centre, fixed, colour, cv2.FILLED, cv2.LINE_AA, _SUBPIXEL)


@functools.lru_cache(maxsize=64)
def _font(size: int, bold: bool) -> Any:
    import matplotlib as mpl  # carries the font, so that text looks the same on every machine
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), size)


@functools.lru_cache(maxsize=512)
def _lettering(text: str, size: int, bold: bool, width: int | None) -> NDArray[np.float32]:
    """Opacity of a line of text, (h, w); its baseline is `size` below its top."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    font = _font(size, bold)
    while width is not None and len(text) > 1 and font.getlength(text) > width:
        text = text.rstrip("…")[:-1] + "…"
    sheet = Pillow.new("L", (int(font.getlength(text)) + 2, size * 3 // 2))
    ImageDraw.Draw(sheet).text((1, size), text, font=font, fill=255, anchor="ls")
    return np.asarray(sheet, np.float32) / np.float32(255)


def draw_text(
    canvas: Image,
    text: str,
    at: Sequence[float],
    *,
    size: int = 13,
    bold: bool = False,
    colour: Colour = INK,
    anchor: str = "ls",
    width: int | None = None,
) -> None:
    """Write one line; `at` is the left (`ls`) or the middle (`ms`) of its baseline."""
    ink = _lettering(text, size, bold, width)
    x, y = round(at[0]), round(at[1]) - size
    if anchor == "ms":
        x -= ink.shape[1] // 2
    top, left = max(-y, 0), max(-x, 0)
    target = canvas[max(y, 0) : max(y + ink.shape[0], 0), max(x, 0) : max(x + ink.shape[1], 0)]
    shade = ink[top : top + target.shape[0], left : left + target.shape[1], None]
    target += (
        ((np.array(colour, np.float32) - target) * shade).round().astype(np.int16).astype(np.uint8)
    )


def _fixed(point: NDArray[np.float64]) -> tuple[int, int] | None:
    """Fixed-point pixels as OpenCV takes them; none where there is nothing to draw."""
    if not np.isfinite(point).all() or np.abs(point).max() > _FAR:
        return None
    x, y = np.round(point * 2**_SUBPIXEL).astype(int).tolist()
    return x, y
