"""Several image sources combined, with their joints converted to one joint set."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence as Many
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.photos import ConcatenatedImages
from pipeline.errors import UsageError
from pipeline.skeleton import SKELETONS, Skeleton, make_conversion
from pipeline.sources import ImageSource, Remarks, Samples, Split


def convert_joint_set(samples: Samples, skeleton: Skeleton) -> Samples:
    """Convert samples to another joint set; a joint is labelled if all its source joints are.

    Raises:
        DataError: If the two sets have no joint in common.
    """
    if samples.skeleton is skeleton:
        return samples
    joint_map = make_conversion(samples.skeleton, skeleton, allow_missing=True)
    labelled = joint_map.score(samples.labelled.astype(np.float32)) > 0
    approximate = labelled & joint_map.approximate
    if samples.approximate is not None:
        exact = joint_map.score(1 - samples.approximate.astype(np.float32)) > 0
        approximate |= labelled & ~exact
    joints2d = np.where(labelled[..., None], joint_map.joints(samples.joints2d), np.nan)
    joints3d = None if samples.joints3d is None else joint_map.joints(samples.joints3d)
    return dataclasses.replace(
        samples,
        skeleton=skeleton,
        joints2d=joints2d.astype(np.float32),
        labelled=labelled,
        joints3d=joints3d,
        approximate=approximate,
    )


class MixedSource:
    """Samples of several image sources, one source after the other.

    An array that only some sources have is NaN for the others.

    Args:
        sources: Image sources that are combined.
        skeleton: Name of the joint set that all samples are converted to.
        root: Folder that the roots of the sources are relative to.

    Raises:
        UsageError: If there is no source or the joint set is unknown.
    """

    def __init__(
        self, sources: Many[ImageSource], *, skeleton: str = "H36M17", root: str = "."
    ) -> None:
        if skeleton not in SKELETONS:
            raise UsageError(
                f"no joint set is called {skeleton!r}; known are {', '.join(SKELETONS)}"
            )
        if not sources:
            raise UsageError("MixedSource needs at least one source")
        self.root, self.skeleton = Path(root), SKELETONS[skeleton]
        self.sources = tuple(_with_root_below(self.root, source) for source in sources)

    @property
    def val_is_test(self) -> bool:
        """Whether the validation split of a source is its test split."""
        return any(getattr(source, "val_is_test", False) for source in self.sources)

    def describe(self) -> str:
        """Describe the source in one line, for the output of a run."""
        parts = " + ".join(source.describe() for source in self.sources)
        return f"mixed to {self.skeleton.name}: {parts}"

    def samples(self, split: Split) -> Samples:
        """Samples of a split of all sources; see `pipeline.sources.ImageSource`."""
        parts = [convert_joint_set(source.samples(split), self.skeleton) for source in self.sources]
        numbered = [f"{part}:{index}" for part, s in enumerate(parts) for index in range(len(s))]
        ids = [name for s in parts for name in (s.ids or ("",) * len(s))]
        actions = [name for s in parts for name in (s.actions or ("unknown",) * len(s))]
        names, index = _number_sources(self.sources, parts)
        return Samples(
            skeleton=self.skeleton,
            images=ConcatenatedImages([part.images for part in parts]),
            joints2d=np.concatenate([part.joints2d for part in parts]),
            labelled=np.concatenate([part.labelled for part in parts]),
            boxes=np.concatenate([part.boxes for part in parts]),
            joints3d=_concatenate_filled(
                [part.joints3d for part in parts], parts, (len(self.skeleton), 3)
            ),
            focal=_concatenate_filled([part.focal for part in parts], parts, (2,)),
            principal=_concatenate_filled([part.principal for part in parts], parts, (2,)),
            ids=tuple(name or number for name, number in zip(ids, numbered, strict=True)),
            actions=tuple(actions) if any(part.actions for part in parts) else None,
            truths=tuple(
                dataclasses.replace(truth, rows=truth.rows + first)
                for part, first in zip(parts, np.cumsum([0, *map(len, parts[:-1])]), strict=True)
                for truth in part.truths
            ),
            remarks=sum((part.remarks for part in parts), Remarks()),
            source_names=names,
            source_index=index,
            approximate=np.concatenate(
                [
                    np.zeros_like(part.labelled) if part.approximate is None else part.approximate
                    for part in parts
                ]
            ),
        )


def _number_sources(
    sources: Many[ImageSource], parts: Many[Samples]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Distinct names of the sources, class and folder, and the index of each sample's, (N,)."""
    names: list[str] = []
    indices = []
    for source, samples in zip(sources, parts, strict=True):
        root = getattr(source, "root", None)
        name = type(source).__name__ + (f" {root.name}" if isinstance(root, Path) else "")
        inner = samples.source_index
        own = np.zeros(len(samples), np.int64) if inner is None else inner
        indices.append(own + len(names))
        for base in samples.source_names or (name,):
            same = sum(other == base or other.startswith(f"{base} #") for other in names)
            names.append(f"{base} #{same + 1}" if same else base)
    return tuple(names), np.concatenate(indices)


def _with_root_below(root: Path, source: ImageSource) -> ImageSource:
    """Copy of a source with its root relative to a folder; a source without root is unchanged."""
    source_root = getattr(source, "root", None)
    if not isinstance(source_root, Path):
        return source
    moved = copy.copy(source)
    moved.root = root / source_root  # type: ignore[attr-defined]
    return moved


def _concatenate_filled(
    arrays: Many[NDArray[np.floating] | None], parts: Many[Samples], shape: tuple[int, ...]
) -> NDArray | None:
    """Arrays of the parts, NaN for parts that have none; None if no part has one."""
    present = [array for array in arrays if array is not None]
    if not present:
        return None
    return np.concatenate(
        [
            np.full((len(part), *shape), np.nan, present[0].dtype) if array is None else array
            for array, part in zip(arrays, parts, strict=True)
        ]
    )
