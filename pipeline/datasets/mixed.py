"""Several sources of images as one, their joints converted by name to one joint set."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence as Many
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.photos import ConcatenatedImages
from pipeline.errors import UsageError
from pipeline.skeleton import SKELETONS, Skeleton, conversion
from pipeline.sources import ImageSource, Samples, Split


def convert_joint_set(samples: Samples, skeleton: Skeleton) -> Samples:
    """Samples with the joints of another set; a joint is labelled if all its sources are.

    Raises:
        DataError: If the two sets share nothing.
    """
    if samples.skeleton is skeleton:
        return samples
    how = conversion(samples.skeleton, skeleton, allow_missing=True)
    labelled = how.score(samples.labelled.astype(np.float32)) > 0
    joints2d = np.where(labelled[..., None], how.joints(samples.joints2d), np.nan)
    return Samples(
        skeleton=skeleton,
        images=samples.images,
        joints2d=joints2d.astype(np.float32),
        labelled=labelled,
        boxes=samples.boxes,
        joints3d=None if samples.joints3d is None else how.joints(samples.joints3d),
        focal=samples.focal,
        principal=samples.principal,
        ids=samples.ids,
        actions=samples.actions,
        truths=samples.truths,
    )


class Mixed:
    """Images of several sources in a row; what only some of them know is NaN in the others.

    Args:
        sources: Whose samples.
        skeleton: Name of the joint set they are converted to.
        root: Folder that the sources' own roots are relative to.

    Raises:
        UsageError: If there is no source or no such joint set.
    """

    def __init__(
        self, sources: Many[ImageSource], *, skeleton: str = "H36M17", root: str = "."
    ) -> None:
        if skeleton not in SKELETONS:
            raise UsageError(
                f"no joint set is called {skeleton!r}; there are {', '.join(SKELETONS)}"
            )
        if not sources:
            raise UsageError("Mixed needs at least one source")
        self.root, self.skeleton = Path(root), SKELETONS[skeleton]
        self.sources = tuple(_below(self.root, source) for source in sources)

    def describe(self) -> str:
        """One line for the first lines of a run."""
        parts = " + ".join(source.describe() for source in self.sources)
        return f"mixed to {self.skeleton.name}: {parts}"

    def samples(self, split: Split) -> Samples:
        """Samples of all sources; see `pipeline.sources.ImageSource`."""
        parts = [convert_joint_set(source.samples(split), self.skeleton) for source in self.sources]
        names = [f"{part}:{index}" for part, s in enumerate(parts) for index in range(len(s))]
        ids = [name for s in parts for name in (s.ids or ("",) * len(s))]
        actions = [name for s in parts for name in (s.actions or ("unknown",) * len(s))]
        return Samples(
            skeleton=self.skeleton,
            images=ConcatenatedImages([part.images for part in parts]),
            joints2d=np.concatenate([part.joints2d for part in parts]),
            labelled=np.concatenate([part.labelled for part in parts]),
            boxes=np.concatenate([part.boxes for part in parts]),
            joints3d=_filled([part.joints3d for part in parts], parts, (len(self.skeleton), 3)),
            focal=_filled([part.focal for part in parts], parts, (2,)),
            principal=_filled([part.principal for part in parts], parts, (2,)),
            ids=tuple(own or name for own, name in zip(ids, names, strict=True)),
            actions=tuple(actions) if any(part.actions for part in parts) else None,
            truths=tuple(
                dataclasses.replace(truth, rows=truth.rows + first)
                for part, first in zip(parts, np.cumsum([0, *map(len, parts[:-1])]), strict=True)
                for truth in part.truths
            ),
        )


def _below(root: Path, source: ImageSource) -> ImageSource:
    """The source with its root below a folder; one that reads no folder as it is."""
    if not isinstance(own := getattr(source, "root", None), Path):
        return source
    moved = copy.copy(source)
    moved.root = root / own  # type: ignore[attr-defined]
    return moved


def _filled(
    arrays: Many[NDArray[np.floating] | None], parts: Many[Samples], shape: tuple[int, ...]
) -> NDArray | None:
    known = [array for array in arrays if array is not None]
    if not known:
        return None
    return np.concatenate(
        [
            np.full((len(part), *shape), np.nan, known[0].dtype) if array is None else array
            for array, part in zip(arrays, parts, strict=True)
        ]
    )
