"""Hostile archives and pickles; each creates a file (the canary) if a reader runs its code."""

import os
import pickle
import struct
import zipfile

import numpy as np

JOINTS = np.arange(24, dtype=np.float32).reshape(2, 4, 3)


def poses():
    return {"S1": {"Walking 1": JOINTS, "Eating": [JOINTS[:1], JOINTS[1:]]}, "S11": {}}


def save_objects(path, value):
    wrapped = np.empty((), object)
    wrapped[()] = value
    np.savez_compressed(path, positions_3d=wrapped)
    return path


def npy(payload, shape="()"):
    """An npy file of objects with any pickle in it."""
    header = f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + payload


def zipped(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


class Gadget:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def gadgets(canary):
    """Hostile pickles by name; a pickle whose code runs creates the canary."""
    command = f"touch {canary}"
    write = f"open({str(canary)!r}, 'w')"
    import builtins
    import importlib
    import subprocess

    called = {
        "system": Gadget(os.system, command),
        "popen": Gadget(os.popen, command),
        "Popen": Gadget(subprocess.Popen, ["touch", str(canary)]),
        "eval": Gadget(builtins.eval, write),
        "exec": Gadget(builtins.exec, write),
        "open": Gadget(builtins.open, str(canary), "w"),
        "import": Gadget(importlib.import_module, "antigravity"),
        "getattr": Gadget(builtins.getattr, os, "system"),
        "numpy load": Gadget(np.load, str(canary)),
        "fromfile": Gadget(np.fromfile, str(canary)),
        "memmap": Gadget(np.memmap, str(canary), "f4", "w+", 0, (3,)),
        "mkdir": Gadget(os.mkdir, str(canary)),
    }
    found = {}
    for name, gadget in called.items():
        try:
            found[name] = pickle.dumps({"S1": gadget}, protocol=2)
        except (pickle.PicklingError, TypeError):  # a module cannot be pickled by name
            found[name] = b"cos\nsystem\n(S'" + command.encode() + b"'\ntR."
    text = command.encode()
    found["instance"] = b"(S'" + text + b"'\nios\nsystem\n."
    found["object"] = b"(cos\nsystem\nS'" + text + b"'\no."
    found["persistent"] = b"Pcanary\n."
    found["extension"] = b"\x82\x01."
    found["dotted"] = b"\x80\x04\x8c\x05numpy\x8c\x0bf2py.os.sys\x93."
    found["codec"] = b"c_codecs\nencode\n(Vabc\nVrot13\ntR."
    found["changed function"] = b"c_codecs\nencode\n}S'x'\nI1\nsb."
    found["new object"] = b"\x80\x02cnumpy\nndarray\n)\x81."
    found["ndarray called"] = b"cnumpy\nndarray\n((I200000\nI200000\ntS'f8'\ntR."
    found["reconstruct big"] = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I200000\nI200000\ntS'b'\ntR."
    )
    found["memo bomb"] = b"\x80\x02K\x01r\xff\xff\xff\x7f."
    found["text memo bomb"] = b"I1\np99999999999\n."
    found["long bomb"] = b"\x80\x02\x8b\xff\xff\xff\x7f."
    found["bytes bomb"] = b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\x00\x00."
    nested = b"]" * 200 + b"a" * 199 + b"."
    found["deep"] = nested
    found["itself"] = b"\x80\x02]q\x00h\x00a."
    found["doubling"] = (
        b"\x80\x02]q\x00"
        + b"".join(
            b"]"
            + b"h"
            + bytes([i])
            + b"a"
            + (b"h" + bytes([i]) + b"a") * 99
            + b"q"
            + bytes([i + 1])
            for i in range(9)
        )
        + b"."
    )
    return found
