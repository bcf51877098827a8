"""The data source of the open benchmark: from class_path and init_args, and a part of its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.cli.configs import plain_values
from pipeline.mocap.recordings import SHIPPED
from pipeline.sources import MotionSource


def make_source(source: Mapping[str, Any]) -> MotionSource:
    """Make a data source from its class_path and init_args."""
    parser = _source_parser()
    return parser.instantiate(parser.parse_object({"source": dict(source)})).source


def complete_source(source: Mapping[str, Any]) -> dict[str, Any]:
    """The class_path and all init_args of a data source, also those with their default.

    A config of a row may set init_args of the same class; those that are left out here would keep
    the row's value in training, and have the default in the tests.
    """
    return plain_values(_source_parser().parse_object({"source": dict(source)}))["source"]


def _source_parser() -> Any:
    """Parser of a data source."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=MotionSource)
    return parser


def select_splits(names: Sequence[str]) -> str:
    """Text of the benchmark's table of splits, with these recordings only."""
    head, *lines = (SHIPPED / "splits.csv").read_text("utf-8").splitlines()
    selected = [line for line in lines if line.split(",")[0] in names]
    return "\n".join([head, *selected]) + "\n"
