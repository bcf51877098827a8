"""Tracks of a source: from the cache, or from its frames by an estimator; or from a 2D file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.files.entries import CacheSpecification
from pipeline.files.store import Shards, Store, default_store
from pipeline.predict.estimators import Estimator, PersonFinder, estimator_facts
from pipeline.predict.joined_tracks import join_tracks
from pipeline.predict.media import Media
from pipeline.predict.tracker import Tracker
from pipeline.predict.tracks import Track, TrackedPeople
from pipeline.training.console import count_progress

Stop = Callable[[], bool]
"""Asked after each frame whether the user wants to stop."""


class StoppedEarlyError(Exception):
    """Tracking was stopped by the user; nothing goes into the cache.

    Args:
        people: The tracks so far.
    """

    def __init__(self, people: TrackedPeople) -> None:
        super().__init__("stopped")
        self.people = people


def track_media(
    media: Media,
    estimator: Estimator,
    finder: PersonFinder,
    *,
    max_people: int | None = None,
    store: Store | None = None,
    stop: Stop = lambda: False,
) -> TrackedPeople:
    """Tracks of the people in a video or a folder of images; the networks run once per source.

    The tracks go into the detection cache, under a key of the source's digest, the frames that are
    used, the weights and all settings. A webcam is not cached.

    Args:
        media: The source.
        estimator: Estimator of the 2D joints.
        finder: What finds people.
        max_people: Largest number of people who are followed at a time.
        store: The cache; without it the default cache of this machine.
        stop: Asked after each frame whether to stop.

    Raises:
        DataError: If a frame cannot be read, or there is none.
        StorageError: If the cache cannot be written.
        StoppedEarlyError: If `stop` returned true.
    """
    tracker = Tracker(estimator, finder, max_people=max_people)
    if media.kind == "webcam":
        found, moments = _follow(media, tracker, stop)
        return _people(media, tracker, join_tracks(found, moments), moments)
    store = store or default_store()
    key = {"tracks": 1, "media": media.key(), **tracker.settings()}
    specification = CacheSpecification(f"predict-{Path(media.name).stem}", key)

    def build(shards: Shards) -> dict[str, NDArray[Any]]:
        tracks, times = _follow(media, tracker, stop)
        J = len(estimator.skeleton)
        rows = [np.full(len(track.frames), n) for n, track in enumerate(tracks)]
        return {
            "times": times,
            "notes": np.array(media.notes or [""], "U"),
            "seen": np.array([media.seen]),
            "size": np.array(media.size),
            "row": np.concatenate([np.zeros(0, np.int64), *rows]).astype(np.int64),
            "frame": _joined([t.frames for t in tracks], np.zeros(0, np.int64)),
            "joints2d": _joined([t.joints2d for t in tracks], np.zeros((0, J, 2), np.float32)),
            "score": _joined([t.score for t in tracks], np.zeros((0, J), np.float32)),
            "ids": np.array([t.id for t in tracks] or [""], "U"),
        }

    arrays = store.fetch(specification, build).arrays
    media.seen = int(arrays["seen"][0])
    media.notes = [str(note) for note in arrays["notes"] if note]
    media.times = arrays["times"].tolist()
    ids = [str(identity) for identity in arrays["ids"] if identity]
    rows = np.asarray(arrays["row"])
    tracks = tuple(
        Track(
            identity,
            np.asarray(arrays["frame"])[rows == n],
            np.asarray(arrays["joints2d"])[rows == n],
            np.asarray(arrays["score"])[rows == n],
        )
        for n, identity in enumerate(ids)
    )
    moments = np.asarray(arrays["times"])
    return _people(media, tracker, join_tracks(tracks, moments), moments)


def _joined(parts: list[NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
    """Arrays one after the other; the empty one if there are none."""
    return np.concatenate([empty, *parts])


def _follow(
    media: Media, tracker: Tracker, stop: Stop
) -> tuple[tuple[Track, ...], NDArray[np.float64]]:
    """Follow everybody through the frames of a source."""
    times: list[float] = []
    stopped = False
    with (
        contextlib.closing(iter(media)) as frames,  # type: ignore[type-var]
        count_progress(media.name, media.count, "frames") as advance,
    ):
        for frame in frames:
            tracker.follow(frame)
            times.append(frame.time)
            advance(1)
            if stopped := stop():
                break
    moments = np.array(times)
    found = tracker.tracks(moments)
    if stopped:
        raise StoppedEarlyError(_people(media, tracker, join_tracks(found, moments), moments))
    return found, moments


def _people(
    media: Media, tracker: Tracker, tracks: tuple[Track, ...], times: NDArray[np.float64]
) -> TrackedPeople:
    """The tracks with the facts of their source."""
    estimator, finder = tracker.estimator, tracker.finder
    if media.size is None:
        raise ValueError("the size of a source is known after its first frame")
    return TrackedPeople(
        estimator.skeleton,
        tracks,
        times,
        media.fps,
        media.size,
        media.facts(),
        estimator_facts(estimator),
        (*media.notes, *getattr(estimator, "notes", ()), *getattr(finder, "notes", ())),
    )
