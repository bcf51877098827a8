"""Files with people's boxes for `--boxes`: csv or json."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.files.digests import bytes_digest
from pipeline.files.json_documents import expect_number, expect_type, read_json
from pipeline.files.reading import read_bytes
from pipeline.predict.estimators import BoxesOfFile

COLUMNS = ("frame", "x", "y", "width", "height")
"""Columns of the csv file and keys of the json file; frame counts from 0, the rest is in pixels."""

SMALLEST = 2.0
"""Smallest larger side of a box, pixels."""


def read_boxes(path: Path) -> BoxesOfFile:
    """Read the boxes of people.

    A csv file has a header with the columns `frame,x,y,width,height`; a json file is a list of
    objects with these keys. Further columns are ignored.

    Raises:
        DataError: If the file is damaged, a column is missing, or a value makes no sense.
    """
    rows = _read_json(path) if path.suffix.lower() == ".json" else _read_csv(path)
    boxes: dict[int, list[list[float]]] = defaultdict(list)
    for number, row in enumerate(rows, start=1):
        values = [_number(row, name, f"{path}: box {number}") for name in COLUMNS]
        frame, *box = values
        if frame < 0 or frame != int(frame) or min(box[2:]) <= 0:
            raise DataError(
                f"{path}: box {number}: frame {frame:g}, width {box[2]:g} and height {box[3]:g}; "
                "frames count from 0, and sides are above 0"
            )
        if max(box[2:]) < SMALLEST:
            raise DataError(
                f"{path}: box {number}: width {box[2]:g} and height {box[3]:g}; boxes are pixels "
                f"of the image, not shares of it, and at least {SMALLEST:g} pixels large"
            )
        boxes[int(frame)].append(box)
    if not boxes:
        raise DataError(f"{path}: has no box")
    return BoxesOfFile({f: np.array(b) for f, b in boxes.items()}, bytes_digest(read_bytes(path)))


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        text = read_bytes(path).decode("utf-8-sig")
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is no csv file ({error}); see `heatlift docs predict`") from None
    return rows


def _read_json(path: Path) -> list[dict[str, Any]]:
    return [
        expect_type(row, dict, f"{path}: [{number}]")
        for number, row in enumerate(expect_type(read_json(path), list, str(path)))
    ]


def _number(row: dict[str, Any], name: str, place: str) -> float:
    value = row.get(name)
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            raise DataError(f"{place}: {name} is {value[:30]!r}, not a number") from None
        if not np.isfinite(number):
            raise DataError(f"{place}: {name} is {value[:30]!r}, not a finite number")
        return number
    if value is None:
        raise DataError(f"{place}: has no {name}; columns are {', '.join(COLUMNS)}")
    return expect_number(row, name, place)
