"""What went wrong, as one line for people and an exit code."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import inspect
import re
import traceback
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import jsonargparse
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from pipeline.errors import HeatliftError
from pipeline.training import processes

FULL_OR_CLOSED = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
)
"""What a disk answers that cannot be written."""

MIXED_UP = r"[tT]ype.*\b(BFloat16|Half)\b"
"""What torch says where numbers of two precisions meet, as they do under bf16-true."""


def explain_error(error: BaseException) -> tuple[str, int]:
    """One line for people, and the exit code."""
    for cause in _causes(error):
        if isinstance(cause, HeatliftError):
            return str(cause), cause.exit_code
    if isinstance(error, jsonargparse.ArgumentError):
        return explain_usage_error(str(error)), 2
    if isinstance(error, MisconfigurationException):
        return " ".join(str(error).split()), 2
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of GPU memory; lower --data.batch_size", 5
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "out of memory; lower --data.batch_size or --data.workers", 5
    if isinstance(error, OSError) and error.errno in FULL_OR_CLOSED:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; make room, or choose another --runs folder", 5
    if isinstance(error, OSError) and _raised_in(error) in ("mkdir", "makedirs"):
        return f"{error.filename}: no folder can be made there ({error.strerror}); name another", 5
    if isinstance(error, RuntimeError | TypeError) and re.search(MIXED_UP, str(error)):
        line = " ".join(str(error).split())[:200]
        return f"{line}; if the precision is bf16-true or 16-true, take bf16-mixed", 2
    for cause in _causes(error):  # noticed outside the loader
        if re.search(r"DataLoader worker .*(killed|exited)", str(cause)):
            return "a DataLoader worker was killed (out of memory?); lower the number of workers", 6
    if processes.is_process_loss(error):
        return "lost another process of this run; run the same command again to resume", 6
    line = " ".join(str(error).split())[:400]
    return (
        f"{type(error).__name__}: {line} (a bug, or something unforeseen; --debug shows where)",
        1,
    )


def _raised_in(error: BaseException) -> str:
    """Name of the function that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].name if frames else ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def explain_usage_error(message: str, known: Sequence[str] = ()) -> str:
    """What jsonargparse says, in a line: which key, what is wrong, and which key may be meant."""
    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
    if denied := re.search(r"Importing '([^']+)' is not allowed", message):
        return (
            f"{'.'.join(keys[:1])}: class_path {denied[1]} is not on the allow-list of what a "
            "config may import; classes of your own come in with --import FILE.py"
        )
    unknown = re.search(
        r"option '([^']+)'|Option '([^']+)' is|unrecognized arguments: (\S+)", message
    )
    if unknown:
        word = next(filter(None, unknown.groups())).removeprefix("--")
        near = difflib.get_close_matches(word, known, 1) or [
            name for name in known if name.startswith(word)
        ]
        place = f"{'.'.join(keys)}: " if keys else ""
        return f"{place}unknown key {word}" + (f", did you mean {near[0]}?" if near else "")
    wrong = re.search(r"Expected an? <class '(\w+)'>\. Got value: (.*)", message)
    if wrong and keys:
        return f"{'.'.join(keys)}: {wrong[2]!r} is not of type {wrong[1]}"
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    causes = [line for line in lines if keys and not line.startswith(FRAME)]
    if causes:
        return f"{'.'.join(keys)}: {'; '.join(map(_shorter, causes[:2]))}"
    return "; ".join(
        lines[:1]
        + [line for line in lines[1:] if "rror" in line or "expected" in line.lower()][-2:]
    )


FRAME = (
    "Parser key",
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Problem with given class_path",
    "Expected a <class 'NoneType'>",
)
"""How lines of jsonargparse begin that frame the cause."""


def _shorter(cause: str) -> str:
    """What is wrong with a class that a config names, in fewer words.

    >>> _shorter("Import path own.Lens does not implement protocol ImageSource")
    'own.Lens is no ImageSource: it lacks methods, arguments or types of one'
    >>> _shorter("the following arguments are required: root")
    'needs root'
    """
    cause = re.sub(
        r"Import path (\S+) does not implement protocol (\S+)",
        r"\1 is no \2: it lacks methods, arguments or types of one",
        cause,
    )
    cause = re.sub(
        r"Import path (\S+) does not correspond to a subclass of (\S+)", r"\1 is no \2", cause
    )
    cause = re.sub(
        r"Expected a typing\.Literal\[(.*)\]\. Got value: (.*)", r"\2 is none of \1", cause
    )
    return cause.replace("the following arguments are required: ", "needs ")


def known_keys(parser: LightningArgumentParser, words: Sequence[str]) -> list[str]:
    """Keys that a stage takes, and the arguments of the classes that its configs name."""
    keys = [action.dest for action in parser._actions]
    for given, word in pairwise(words):
        if given in ("-c", "--config"):
            for place in re.findall(r"class_path:\s*(pipeline\.[\w.]+)", Path(word).read_text()):
                module, _, name = place.rpartition(".")
                with contextlib.suppress(ImportError, AttributeError):
                    made = getattr(importlib.import_module(module), name)
                    keys += inspect.signature(made).parameters
    return keys
