"""2D joints of people from files of other tools: json, npz and folders, as tracks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.body_checks import starts_with_head
from pipeline.datasets.detection_checks import MIN_INSIDE, MIN_SIZE, box_sizes
from pipeline.datasets.videopose3d import read_videopose3d
from pipeline.detections.exchange import read_exported
from pipeline.detections.formats import clean_joints, read_people
from pipeline.detections.joint_sets import skeleton_by_count
from pipeline.detections.people import FoundPerson, follow_people
from pipeline.errors import DataError, UsageError
from pipeline.files.archive import Npz, check_array
from pipeline.files.digests import file_digest, folder_digest
from pipeline.files.reading import read_start
from pipeline.predict.media import DEFAULT_FPS
from pipeline.predict.tracks import Track, TrackedPeople
from pipeline.skeleton import COCO17, H36M17, MPI3DHP17, Skeleton

FITS_BETTER = 0.75
"""Length of all bones, relative to that of the assumed joint set, from which another set of the
same size fits so much better that the assumption is an error."""

SURE = 0.3
"""Score from which a joint is expected inside of the image."""

_SAME_SIZE = {17: (COCO17, H36M17, MPI3DHP17)}
"""Number of joints -> joint sets of this size that files without names may have."""


def read_tracks(
    path: Path,
    *,
    joints: str | None = None,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    frames: int | None = None,
    first_frame: int | None = None,
    person: str | None = None,
) -> TrackedPeople:
    """Read the 2D joints of all people from a file or folder of another tool.

    Accepted are the json files and folders of AlphaPose, OpenPose, MMPose, RTMPose, Halpe and COCO
    (see `pipeline.detections.formats`), npz files that `heatlift detect` exports, VideoPose3D's 2D
    archives, and Detectron2's npz files of one video.

    Args:
        path: File or folder.
        joints: Name of the joint set, where the file does not name its joints.
        size: Width and height of the image, where the file does not have them.
        fps: Frames per second; 30 are assumed without them.
        frames: Number of frames of the video; without it, it ends at the highest frame of the file.
        first_frame: Number of the first frame in the file; found from the numbers without it.
        person: Name of the sequence to read, in files with several sequences.

    Raises:
        DataError: If the file is damaged, of an unknown format, its joints are unknown or look like
            another set, or they are no pixels of an image of this size.
        UsageError: If the size of the image is not known.
    """
    notes: list[str] = []
    if path.suffix.lower() == ".npz":
        skeleton, tracks, length, kind, found_size = _read_npz(path, joints, person, notes)
        if frames is not None and length > frames:
            notes.append(f"{length - frames} frames after the end of the video are left out")
            tracks = tuple(_cut(track, frames) for track in tracks)
        length = length if frames is None else frames
    else:
        _require_json(path)
        video = read_people(path, skeleton=joints, frames=frames, first_frame=first_frame)
        skeleton, length, kind, found_size = video.skeleton, video.length, "2D file", None
        tracks = tuple(_track(one.name, one.found) for one in video.people)
        notes.append(video.text)
        if frames is None and tracks:
            notes.append("length is that of the highest frame in the file (--frames)")
        if not video.named and tracks:
            check_unnamed(tracks, skeleton, str(path))
            notes.append(f"{len(skeleton)} joints without names are {skeleton.name} (--joints)")
    size = size or found_size
    if size is None:
        raise UsageError(f"{path}: does not have the size of the image; give --size WIDTHxHEIGHT")
    if fps is None:
        notes.append(f"{DEFAULT_FPS:g} frames per second (--fps)")
    notes += [note for track in tracks if (note := _turned_over(track, skeleton))]
    rate = DEFAULT_FPS if fps is None else fps
    check_pixels(tracks, size, str(path))
    digest = folder_digest(path) if path.is_dir() else file_digest(path)
    source = {"name": path.name, "kind": kind, "sha256": digest, "frames": length, "rotation": 0}
    estimator = {"name": f"{kind} {path.name}", "digest": digest, "joints": skeleton.name}
    return TrackedPeople(
        skeleton, tracks, np.arange(length) / rate, rate, size, source, estimator, tuple(notes)
    )


def check_pixels(tracks: tuple[Track, ...], size: tuple[int, int], place: str) -> None:
    """Check that joints are pixels of an image of this size.

    Raises:
        DataError: If the people are too small for that, or most joints are outside of the image.
    """
    if not tracks:
        return
    sides = np.concatenate([box_sizes(track.joints2d) for track in tracks])
    sides = sides[sides > 0]  # of frames with more than one joint
    if len(sides) and (median := float(np.median(sides))) < MIN_SIZE:
        raise DataError(
            f"{place}: people have a size of {median:.2g} px (median), less than {MIN_SIZE:g} px; "
            "give joints in pixels of the whole image, not in shares of it"
        )
    points = np.concatenate([track.joints2d[_sure(track)] for track in tracks])
    inside = ((points >= -0.5) & (points <= np.array(size) - 0.5)).all(-1)
    if len(points) and inside.mean() < MIN_INSIDE:
        raise DataError(
            f"{place}: {100 * inside.mean():.0f} % of the joints are inside the image of "
            f"{size[0]}x{size[1]}, less than {100 * MIN_INSIDE:g} %; check --size"
        )


def _sure(track: Track) -> NDArray[np.bool_]:
    """Which joints are known with a fair score, (N, J); without any such, which are known."""
    known = np.asarray(np.isfinite(track.joints2d).all(-1))
    sure = known & (track.score >= SURE)
    return sure if sure.any() else known


def _require_json(path: Path) -> None:
    """Check that a file which is neither a video nor an image can be one of 2D joints.

    Raises:
        DataError: If it is something else.
    """
    if path.is_file() and read_start(path, 64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in b"[{":
        raise DataError(
            f"{path}: is neither a video, an image nor a file of 2D joints (json, npz); copy a "
            "video again, or convert it to mp4"
        )


def _track(name: str, found: Any) -> Track:
    """Track of a person whose joints are x, y, score in each frame."""
    joints = np.stack([one.joints for one in found])
    seen = joints[..., 2] > 0
    return Track(
        name,
        np.array([one.frame for one in found], np.int64),
        np.where(seen[..., None], joints[..., :2], np.nan).astype(np.float32),
        joints[..., 2].astype(np.float32),
    )


def _cut(track: Track, frames: int) -> Track:
    """A track without the frames after the end of the video."""
    kept = track.frames < frames
    return Track(track.id, track.frames[kept], track.joints2d[kept], track.score[kept])


def _read_npz(
    path: Path, joints: str | None, person: str | None, notes: list[str]
) -> tuple[Skeleton, tuple[Track, ...], int, str, tuple[int, int] | None]:
    """Joint set, tracks, number of frames, format and image size of an npz file."""
    file = Npz(path)
    if "heatlift_motion" in file.names:
        raise DataError(f"{path}: is motion already; give the video or a file of 2D joints")
    if "keypoints" in file.names:
        return _read_detectron2(file, joints, notes)
    sizes: Mapping[str, Any] = {}
    if "positions_2d" in file.names:
        videos, sizes = read_videopose3d(path), _video_sizes(file)
        kind, arrays = "VideoPose3D", {n: (v.joints2d, v.score) for n, v in videos.items()}
        skeleton = next(iter(videos.values())).skeleton
    elif {"joints2d", "names", "lengths"} <= set(file.names):
        kind, (skeleton, arrays) = "heatlift", read_exported(path)
    else:
        raise DataError(
            f"{path}: is no known file of 2D joints (it has {', '.join(file.names) or 'nothing'}); "
            "known are files of heatlift, VideoPose3D (positions_2d) and Detectron2 (keypoints)"
        )
    name = _choose(list(arrays), person, path)
    joints2d, score = arrays[name]
    seen = np.flatnonzero((score > 0).any(axis=1))
    track = Track(name, seen, joints2d[seen].astype(np.float32), score[seen].astype(np.float32))
    size = _image_size(sizes.get(name.partition("/")[0]))
    return skeleton, (track,) if len(seen) else (), len(score), kind, size


def _video_sizes(file: Npz) -> Mapping[str, Any]:
    """Video -> its metadata, in a file that VideoPose3D's script made of own videos."""
    metadata = file.objects("metadata")
    found = metadata.get("video_metadata") if isinstance(metadata, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _choose(names: list[str], person: str | None, path: Path) -> str:
    """The only sequence of a file, or the one that the user names."""
    if person in names:
        return str(person)
    if len(names) == 1 and person is None:
        return names[0]
    listed = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
    raise UsageError(f"{path}: has {len(names)} sequences ({listed}); name one with --person")


def _read_detectron2(
    file: Npz, joints: str | None, notes: list[str]
) -> tuple[Skeleton, tuple[Track, ...], int, str, tuple[int, int] | None]:
    """A video of Detectron2 in the npz format of VideoPose3D's inference script.

    `keypoints` has, for each frame, one entry per class (the second is people): rows x, y, logit,
    probability of each joint, (N, 4, J). `boxes` may be missing, `metadata` may hold w and h.
    """
    place = f"{file.path}: keypoints"
    frames = file.objects("keypoints")
    if isinstance(frames, np.ndarray):
        frames = list(frames)
    if not isinstance(frames, list) or not frames:
        raise DataError(f"{place}: a list with an entry for each frame is expected")
    found, count = [], None
    for number, classes in enumerate(frames):
        people = classes[1] if isinstance(classes, list) and len(classes) == 2 else classes
        if not len(people if isinstance(people, (list, np.ndarray)) else ()):
            continue
        array = check_array(np.asarray(people), (None, 4, None), f"{place}[{number}]", finite=False)
        count = array.shape[2] if count is None else count
        if array.shape[2] != count:
            raise DataError(f"{place}[{number}]: has {array.shape[2]} joints, others {count}")
        people = (clean_joints(person[[0, 1, 3]].T.astype(float)) for person in array)
        found += [FoundPerson(number, person) for person in people if person[:, 2].any()]
    skeleton = skeleton_by_count(count or 17, str(file.path), joints)
    people, how = follow_people(found)
    notes.append(how)
    tracks = tuple(_track(one.name, one.found) for one in people)
    metadata = file.objects("metadata") if "metadata" in file.names else None
    return skeleton, tracks, len(frames), "Detectron2", _image_size(metadata)


def _image_size(metadata: Any) -> tuple[int, int] | None:
    """Width and height in the metadata of a video, as Detectron2 writes them; None without them."""
    if not isinstance(metadata, Mapping) or not {"w", "h"} <= set(metadata):
        return None
    try:
        size = (int(metadata["w"]), int(metadata["h"]))
    except (TypeError, ValueError):
        return None
    return size if min(size) > 0 else None


def check_unnamed(tracks: tuple[Track, ...], skeleton: Skeleton, place: str) -> None:
    """Check that joints without names do not look like another set with as many joints.

    The bones of the right set are short: with joints in another order they cross the body.

    Raises:
        DataError: If the bones of another set are much shorter.
    """
    lengths = {
        other.name: _bone_length(tracks, other)
        for other in _SAME_SIZE.get(len(skeleton), (skeleton,))
    }
    best = min(lengths, key=lambda name: lengths[name])
    if skeleton is COCO17 and starts_with_head(np.concatenate([t.joints2d for t in tracks])):
        return
    if best != skeleton.name and lengths[best] < FITS_BETTER * lengths[skeleton.name]:
        raise DataError(
            f"{place}: its {len(skeleton)} joints have no names and look like {best}, not "
            f"{skeleton.name}; name their set with --joints {best}"
        )


def _bone_length(tracks: tuple[Track, ...], skeleton: Skeleton) -> float:
    """Median over frames of the mean bone length, relative to the size of the person."""
    parents, children = np.array(skeleton.bones).T
    joints2d = np.concatenate([track.joints2d for track in tracks]).astype(np.float64)
    bones = np.linalg.norm(joints2d[:, children] - joints2d[:, parents], axis=-1)
    known = np.isfinite(joints2d)
    extent = np.where(known, joints2d, -np.inf).max(1) - np.where(known, joints2d, np.inf).min(1)
    shown = np.isfinite(bones)
    usable = shown.any(axis=1)
    mean = np.where(shown, bones, 0.0)[usable].sum(axis=1) / shown[usable].sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = mean / extent[usable].max(-1)
    return float(np.nanmedian(share)) if np.isfinite(share).any() else 0.0


def _turned_over(track: Track, skeleton: Skeleton) -> str | None:
    """A warning if a person's shoulders are below his ankles in most frames."""
    names = skeleton.vocabulary
    needed = [f"{side}_{part}" for part in ("shoulder", "ankle") for side in ("left", "right")]
    if any(name not in names for name in needed):
        return None
    y: NDArray[np.float64] = track.joints2d[:, [names[name] for name in needed], 1].astype(float)
    y = y[np.isfinite(y).all(axis=1)]
    below = y[:, :2].mean(axis=1) > y[:, 2:].mean(axis=1)
    if len(below) >= 5 and below.mean() > 0.8:
        return (
            f"person {track.id} stands on the head in {100 * below.mean():.0f} % of the "
            "frames: is y upwards in this file? It must be downwards, in pixels"
        )
    return None
