"""Pickles executed operation by operation within limits; only listed functions are called."""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

MAX_KEY_COMPARISONS = 2_000_000_000
"""Largest number of comparisons for keys that are no texts; texts have hashes nobody can guess."""

MAX_TUPLE_KEY = 16
"""Longest tuple that may be a key."""

CALL_BYTES, ITEM_BYTES, VALUE_BYTES = 64, 64, 8
"""Memory that is counted for a call, for an item of what it is given, and for a value."""

_SIZED = (str, bytes, bytearray)
_PUSHED = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    )
)
"""Operations whose argument is the value."""


class PickleError(ValueError):
    """A pickle is damaged, would take too much memory or time, or holds what it may not hold."""


class ForeignNameError(PickleError):
    """A pickle names a function or class that it may not use; the text is the name."""


class Function(NamedTuple):
    """A function that a pickle may call.

    Args:
        name: Its name in the pickle, such as `collections.OrderedDict`.
        call: Function that is called in its place.
    """

    name: str
    call: Callable[..., Any]


class StandIn:
    """Base of values whose state a pickle sets after they were made."""

    def set_state(self, state: Any) -> None:
        """Take the state."""
        raise NotImplementedError


class PickleMachine:
    """Executes pickles; memory and time are bounded by the limits and the size of the pickle.

    The limits hold for all pickles that one machine runs.

    Args:
        find: Function that gives the value for a name (mostly a `Function`), or raises
            ForeignNameError.
        operations: Largest number of operations.
        call_bytes: Largest memory of what calls are given, since they may copy it.
        persistent: Function that gives the value for a reference to something outside the pickle;
            by default a pickle may have none.
    """

    def __init__(
        self,
        find: Callable[[str], Any],
        *,
        operations: int,
        call_bytes: int,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.find = find
        self.persistent = persistent
        self.max_operations = operations
        self.operations = 0
        self.call_bytes_left = call_bytes
        self.comparisons_left = MAX_KEY_COMPARISONS
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: Any) -> Any:
        """Execute one pickle and return its value.

        Args:
            stream: The bytes, or an open file.

        Raises:
            ForeignNameError: If it has a name that is not allowed.
            PickleError: If it is damaged, or exceeds a limit.
        """
        try:
            for operation, argument, _ in pickletools.genops(stream):
                self.operations += 1
                if self.operations > self.max_operations:
                    raise PickleError(
                        f"its pickle has more than {self.max_operations:,} operations"
                    )
                if operation.name in _PUSHED:
                    self.stack.append(argument)
                elif action := _ACTIONS.get(operation.name):
                    action(self, argument)
                else:
                    detail = f" ({argument})" if isinstance(argument, str) else ""
                    raise PickleError(
                        f"holds {operation.name}{detail:.60}; rejected, because it may run code"
                    )
            return self.stack.pop()
        except (PickleError, MemoryError):
            raise
        except Exception as error:  # a damaged pickle raises any kind
            reason = (" ".join(str(error).split()) or type(error).__name__)[:100]
            raise PickleError(f"its pickle is damaged ({reason})") from error
        finally:  # the machine may outlive the value in a circle of references
            self.stack, self.marks, self.memo = [], [], {}

    def count_memory(self, value: Any) -> None:
        """Count what a call is given: its size, and the items of its containers."""
        parts = list(value) if isinstance(value, (tuple, list, dict, set, frozenset)) else [value]
        self.call_bytes_left -= CALL_BYTES + ITEM_BYTES * len(parts)
        for part in parts:
            if isinstance(part, _SIZED):
                self.call_bytes_left -= len(part)
            elif isinstance(part, (tuple, list, dict, set, frozenset)):
                self.call_bytes_left -= ITEM_BYTES * len(part)
        if self.call_bytes_left < 0:
            raise PickleError("its pickle would take more memory than it should")

    def check_key(self, key: Any, others: int) -> None:
        """Raise if a key may take long to find among others."""
        if isinstance(key, str):
            return
        parts = key if isinstance(key, tuple) else (key,)
        self.comparisons_left -= others + len(parts)
        if len(parts) > MAX_TUPLE_KEY or self.comparisons_left < 0:
            raise PickleError("has too many keys that are no texts")
        for part in parts:
            if not isinstance(part, (str, int, float, bytes, type(None))):
                raise PickleError("a dict has keys that are neither texts nor numbers")
            if isinstance(part, int) and part.bit_length() > 64:
                raise PickleError("a dict has a key of more than 64 bits")

    def take_marked(self) -> list[Any]:
        """The values above the last mark, taken from the stack."""
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def set_items(self, target: Any, values: list[Any]) -> None:
        """Put alternating keys and values into a dict."""
        if not isinstance(target, dict):
            raise PickleError("sets the items of what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            self.check_key(key, len(target))
            target[key] = value

    def make_set(self, values: Iterable[Any]) -> set[Any]:
        """A set of values that may be keys."""
        found: set[Any] = set()
        for value in values:
            self.check_key(value, len(found))
            found.add(value)
        return found

    def call(self) -> None:
        """Call the function below the top of the stack with the tuple at the top."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise PickleError("calls what is no function")
        self.count_memory(arguments)
        self.stack.append(function.call(*arguments))

    def build(self) -> None:
        """Set the state of the value below the top of the stack."""
        state, target = self.stack.pop(), self.stack[-1]
        self.count_memory(state)
        if isinstance(target, StandIn):
            target.set_state(state)
        elif type(target) is OrderedDict and isinstance(state, dict) and set(state) == _METADATA:
            vars(target).update(state)
        else:
            raise PickleError("changes what has no state")

    def put(self, index: Any) -> None:
        """Remember the top of the stack under a number."""
        if not isinstance(index, int) or not 0 <= index <= self.operations:
            raise PickleError("numbers its values beyond their count")
        self.memo[index] = self.stack[-1]

    def refer(self, reference: Any) -> None:
        """Push what a reference stands for."""
        if self.persistent is None:
            raise PickleError("refers to objects outside of the file")
        self.stack.append(self.persistent(reference))

    def find_name(self, module: Any, name: Any) -> None:
        """Push what a name stands for."""
        self.stack.append(self.find(f"{module}.{name}"))

    def pop(self) -> None:
        """Remove the top of the stack, or the last mark if nothing is above it."""
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def append(self, values: list[Any]) -> None:
        """Append values to the list at the top of the stack."""
        if not isinstance(self.stack[-1], list):
            raise PickleError("appends to what is no list")
        self.stack[-1].extend(values)

    def take(self, count: int) -> list[Any]:
        """The upper values of the stack, taken from it."""
        if count > len(self.stack):
            raise PickleError("its pickle is damaged (a value is missing)")
        start = len(self.stack) - count
        values = self.stack[start:]
        del self.stack[start:]
        return values


_METADATA = {"_metadata"}  # the versions of modules, which a state dict of torch has beside it


def _dict_of(machine: PickleMachine, values: list[Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    machine.set_items(found, values)
    return found


def _add_items(machine: PickleMachine, values: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, set):
        raise PickleError("adds to what is no set")
    for value in values:
        machine.check_key(value, len(target))
        target.add(value)


_ACTIONS: Mapping[str, Callable[[PickleMachine, Any], object]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.take_marked(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "GET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "PUT": PickleMachine.put,
    "BINPUT": PickleMachine.put,
    "LONG_BINPUT": PickleMachine.put,
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "TUPLE1": lambda machine, _: machine.stack.append(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.stack.append(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.stack.append(tuple(machine.take(3))),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.take_marked())),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "LIST": lambda machine, _: machine.stack.append(machine.take_marked()),
    "APPEND": lambda machine, _: machine.append(machine.take(1)),
    "APPENDS": lambda machine, _: machine.append(machine.take_marked()),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "DICT": lambda machine, _: machine.stack.append(_dict_of(machine, machine.take_marked())),
    "SETITEM": lambda machine, _: machine.set_items(machine.stack[-3], machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(
        machine.stack[machine.marks[-1] - 1], machine.take_marked()
    ),
    "EMPTY_SET": lambda machine, _: machine.stack.append(set()),
    "ADDITEMS": lambda machine, _: _add_items(machine, machine.take_marked()),
    "FROZENSET": lambda machine, _: machine.stack.append(
        frozenset(machine.make_set(machine.take_marked()))
    ),
    "GLOBAL": lambda machine, name: machine.find_name(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.find_name(*machine.take(2)),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "PERSID": PickleMachine.refer,
    "BINPERSID": lambda machine, _: machine.refer(machine.stack.pop()),
}
"""Operation -> what it does; all others are rejected."""


def expanded_size(value: Any, own_size: Callable[[Any], int]) -> int:
    """Size of a value if everything in it that is shared were repeated, bytes.

    A few bytes can refer to one list or array many times, and to the list of references many times
    again; whoever walks through the value then takes time and memory for each reference.

    Args:
        value: Nested dicts, lists, tuples and sets.
        own_size: Function that gives the size of any other value in bytes.

    Raises:
        PickleError: If a container holds itself.
    """
    sizes: dict[int, int] = {}
    open_size = -1  # stands for a container whose parts are not all measured
    remaining = [value]
    while remaining:
        container = remaining[-1]
        if not isinstance(container, _CONTAINERS) or sizes.get(id(container), open_size) >= 0:
            remaining.pop()
            continue
        parts: list[Any] = list(container)
        if isinstance(container, dict):
            parts += container.values()
        inner = [part for part in parts if isinstance(part, _CONTAINERS)]
        if id(container) not in sizes:
            sizes[id(container)] = open_size
            waiting = [part for part in inner if id(part) not in sizes]
            remaining += waiting
            if waiting:
                continue
        if any(sizes[id(part)] == open_size for part in inner):
            raise PickleError("holds a container that holds itself")
        sizes[id(container)] = VALUE_BYTES + sum(
            sizes[id(part)] if isinstance(part, _CONTAINERS) else VALUE_BYTES + own_size(part)
            for part in parts
        )
    return sizes.get(id(value), VALUE_BYTES)


_CONTAINERS = (dict, list, tuple, set, frozenset)
