"""Motion as a GLB file for 3D programs: each person as a body of capsules, skinned and animated."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.export.body_mesh import make_body_mesh, rest_positions
from pipeline.export.inverse_kinematics import BodyMotion, fit_body
from pipeline.export.motion_data import PERSON_COLOURS, MotionData
from pipeline.export.options import ExportOptions
from pipeline.files.writing import write_atomically

_KINDS = {"f4": 5126, "u2": 5123, "u1": 5121}  # numbers of types in glTF
_SHAPES = {(): "SCALAR", (3,): "VEC3", (4,): "VEC4", (4, 4): "MAT4"}
_VERTICES, _INDICES = 34962, 34963  # what a buffer view is for
_JSON, _BINARY = 0x4E4F534A, 0x004E4942  # kinds of chunks


def write_glb(motion: MotionData, path: Path, options: ExportOptions) -> list[Path]:
    """Write one GLB file with all people: glTF 2.0, metres, y up, the front at +Z.

    Each person is a node with the id as its name, the joints below it, and a mesh that is skinned
    to them. The one animation has the true times, from 0 at the first frame, also at an uneven
    rate. A person who is missing has scale 0 in these frames and keeps the last pose. In the
    camera's frame of reference each person stands on the floor at y = 0; see `fit_body`.

    Args:
        motion: The motion, of the joints of H36M17.
        path: Path of the file.
        options: Not used; the axes of the format are fixed.

    Returns:
        The file.

    Raises:
        UsageError: If the motion has other joints.
        StorageError: If the file cannot be written.

    Source: glTF 2.0 Specification, Khronos Group.
    """
    scene = _Scene()
    for number, person in enumerate(motion.people):
        colour = PERSON_COLOURS[number % len(PERSON_COLOURS)]
        body = fit_body(motion, person)
        scene.add_person(person.id, body, person.present, motion.times, colour)
    content = scene.to_bytes()
    write_atomically(path, lambda file: file.write(content))
    return [path]


class _Scene:
    """A glTF document that grows: its JSON lists and the bytes of its buffer."""

    def __init__(self) -> None:
        self.lists: dict[str, list[Any]] = {}
        self.buffer = bytearray()
        self.roots: list[int] = []
        self.samplers: list[dict[str, Any]] = []
        self.channels: list[dict[str, Any]] = []

    def add(self, name: str, entry: dict[str, Any]) -> int:
        """Append to a list of the document; returns the index."""
        self.lists.setdefault(name, []).append(entry)
        return len(self.lists[name]) - 1

    def add_array(self, array: NDArray[Any], kind: str, use: int | None = None) -> int:
        """Append numbers to the buffer; returns the index of their accessor."""
        values = np.ascontiguousarray(array, f"<{kind}")
        view = {"buffer": 0, "byteOffset": len(self.buffer), "byteLength": values.nbytes}
        self.buffer += values.tobytes()
        self.buffer += b"\0" * (-len(self.buffer) % 4)
        accessor = {
            "bufferView": self.add("bufferViews", view if use is None else {**view, "target": use}),
            "componentType": _KINDS[kind],
            "count": len(values),
            "type": _SHAPES[values.shape[1:]],
        }
        if kind == "f4" and values.ndim < 3:  # read back as float32, they are the very bounds
            accessor["min"] = np.atleast_1d(values.min(0)).tolist()
            accessor["max"] = np.atleast_1d(values.max(0)).tolist()
        return self.add("accessors", accessor)

    def add_person(
        self,
        name: str,
        body: BodyMotion,
        present: NDArray[np.bool_],
        times: NDArray[np.float64],
        colour: tuple[int, int, int],
    ) -> None:
        """Add the joints, the mesh and the motion of a person.

        Args:
            name: Id of the person.
            body: Rest pose and motion.
            present: Frames in which the person is there, (T,).
            times: Time of each frame, seconds, (T,).
            colour: RGB, 0 to 255.
        """
        parts = len(body.joints)
        top = self.add("nodes", {"name": name})
        joints = list(range(top + 1, top + 1 + parts))
        for joint, own in enumerate(body.joints):
            below = [joints[child] for child in range(parts) if body.parents[child] == joint]
            node: dict[str, Any] = {"name": own, "translation": body.offsets[joint].tolist()}
            self.add("nodes", {**node, "children": below} if below else node)
        self.lists["nodes"][top]["children"] = [joints[body.parents.index(-1)]]
        self.roots += [top, self._add_body(name, body, joints, colour)]
        self._add_motion(body, present, times, top, joints)

    def _add_body(
        self, name: str, body: BodyMotion, joints: list[int], colour: tuple[int, int, int]
    ) -> int:
        """Add the skinned mesh of a person; returns its node."""
        mesh = make_body_mesh(body)
        influences = np.zeros((len(mesh.joints), 4))
        influences[:, 0] = mesh.joints
        weights = np.tile([255, 0, 0, 0], (len(mesh.joints), 1))
        weight = self.add_array(weights, "u1", _VERTICES)
        self.lists["accessors"][weight]["normalized"] = True
        attributes = {
            "POSITION": self.add_array(mesh.points, "f4", _VERTICES),
            "NORMAL": self.add_array(mesh.normals, "f4", _VERTICES),
            "JOINTS_0": self.add_array(influences, "u1", _VERTICES),
            "WEIGHTS_0": weight,
        }
        surface = {
            "baseColorFactor": [*(round(_linear(c / 255), 4) for c in colour), 1.0],
            "metallicFactor": 0.0,
            "roughnessFactor": 0.7,
        }
        primitive = {
            "attributes": attributes,
            "indices": self.add_array(mesh.triangles.ravel(), "u2", _INDICES),
            "material": self.add("materials", {"name": name, "pbrMetallicRoughness": surface}),
        }
        inverse = np.tile(np.eye(4), (len(joints), 1, 1))
        inverse[:, 3, :3] = -rest_positions(body)  # column-major
        skin = {"joints": joints, "inverseBindMatrices": self.add_array(inverse, "f4")}
        return self.add(
            "nodes",
            {
                "name": f"{name}_body",
                "mesh": self.add("meshes", {"name": f"{name}_body", "primitives": [primitive]}),
                "skin": self.add("skins", {"name": name, **skin}),
            },
        )

    def _add_motion(
        self,
        body: BodyMotion,
        present: NDArray[np.bool_],
        times: NDArray[np.float64],
        top: int,
        joints: list[int],
    ) -> None:
        """Add the channels of a person to the animation: root, rotations, presence."""
        seconds = (times - times[:1]).astype(np.float32)
        later = np.diff(seconds, prepend=-1) > 0  # float32 may not tell two frames apart
        if not later.any():
            return
        clock = self.add_array(seconds[later], "f4")
        self._add_channel(clock, body.root[later], joints[body.parents.index(-1)], "translation")
        rotations = np.roll(body.rotations[later], -1, axis=-1)  # x, y, z, w
        for joint, node in enumerate(joints):
            if (rotations[:, joint] != (0, 0, 0, 1)).any():
                self._add_channel(clock, rotations[:, joint], node, "rotation")
        if not present.all():
            scale = np.repeat(present[later, None], 3, axis=1)
            self._add_channel(clock, scale, top, "scale", "STEP")

    def _add_channel(
        self, clock: int, values: NDArray[Any], node: int, path: str, how: str = "LINEAR"
    ) -> None:
        """Add one animated property of a node."""
        output = self.add_array(values, "f4")
        target = {"node": node, "path": path}
        self.channels.append({"sampler": len(self.samplers), "target": target})
        self.samplers.append({"input": clock, "output": output, "interpolation": how})

    def to_bytes(self) -> bytes:
        """The file: header, chunk of JSON, chunk of the buffer."""
        document: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": "heatlift"},
            "scene": 0,
            "scenes": [{"nodes": self.roots} if self.roots else {}],
            **self.lists,
        }
        if self.channels:
            motion = {"name": "motion", "channels": self.channels, "samplers": self.samplers}
            document["animations"] = [motion]
        if self.buffer:
            document["buffers"] = [{"byteLength": len(self.buffer)}]
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<II", len(text), _JSON) + text
        if self.buffer:
            chunks += struct.pack("<II", len(self.buffer), _BINARY) + self.buffer
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _linear(value: float) -> float:
    """A channel of sRGB, 0 to 1, as intensity of light, 0 to 1 (IEC 61966-2-1)."""
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
