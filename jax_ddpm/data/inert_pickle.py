"""Read what the Python archive of CIFAR-10 holds from its pickles, without running them.

A pickle is a program: unpickling it can call anything. This reader runs no such program. It walks
over the opcodes, understands the few that Python 2 wrote into these files, and refuses the rest.
"""

import pickletools
from typing import Any

import numpy as np

RECONSTRUCT, NDARRAY, DTYPE, ENCODE = "array", "ndarray", "dtype", "encode"
# The only names that may stand in a file, and what they mean here. Nothing is imported for them.
NAMES = {
    "numpy.core.multiarray _reconstruct": RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": RECONSTRUCT,
    "numpy ndarray": NDARRAY,
    "numpy dtype": DTYPE,
    "_codecs encode": ENCODE,  # how Python 3 writes bytes for Python 2
}
SCALARS = {
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "BININT",
    "BININT1",
    "BININT2",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINUNICODE",
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Any] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Name:
    """A name that the file refers to, as its meaning in NAMES."""

    def __init__(self, meaning: str) -> None:
        self.meaning = meaning


class Built:
    """An array or a dtype: what it was called with, and the state that was set."""

    def __init__(self, meaning: str, args: Any) -> None:
        self.meaning, self.args = meaning, args
        self.state: Any = None


def read_inert(data: bytes) -> Any:
    """Read numbers, texts, lists, tuples, dicts and arrays of bytes from a pickle of protocol 2.

    Texts of Python 2 are decoded as Latin-1. Raises errors of many kinds for anything else.
    """
    reader = Reader()
    for opcode, arg, _ in pickletools.genops(data):
        if opcode.name == "STOP":
            return resolve(reader.stack.pop())
        reader.take(opcode.name, arg)
    raise ValueError("it has no end")


class Reader:
    """The stack and the memo of a pickle while its opcodes are read."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        """The stacks that marks have set aside."""
        self.memo: dict[int, Any] = {}

    def take(self, name: str, arg: Any) -> None:
        """Take one opcode. Raises ValueError for one that these files do not have."""
        stack = self.stack
        match name:
            case "PROTO":
                require(arg == 2, f"it has protocol {arg}")
            case _ if name in SCALARS:
                stack.append(CONSTANTS.get(name, arg))
            case _ if name in EMPTY:
                stack.append(EMPTY[name]())
            case _ if name in TUPLES:
                stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
            case "MARK":
                self.below.append(stack)
                self.stack = []
            case "TUPLE":
                items = self.pop_mark()
                self.stack.append(tuple(items))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[arg])
            case "GLOBAL":
                require(arg in NAMES, f"it refers to {arg}")
                stack.append(Name(NAMES[arg]))
            case _:
                self.combine(name)

    def combine(self, name: str) -> None:
        """Take an opcode that puts values on top of the stack into what lies under them."""
        match name:
            case "APPENDS":
                items = self.pop_mark()
                self.get_top(list).extend(items)
            case "APPEND":
                item = self.stack.pop()
                self.get_top(list).append(item)
            case "SETITEMS":
                items = self.pop_mark()
                for key, value in zip(items[::2], items[1::2], strict=True):
                    self.set_item(key, value)
            case "SETITEM":
                value, key = self.stack.pop(), self.stack.pop()
                self.set_item(key, value)
            case "REDUCE":
                args, called = self.stack.pop(), self.stack.pop()
                require(isinstance(called, Name) and isinstance(args, tuple), "it calls a value")
                text = called.meaning == ENCODE
                self.stack.append(args[0] if text else Built(called.meaning, args))
            case "BUILD":
                state = self.stack.pop()
                self.get_top(Built).state = state
            case _:
                raise ValueError(f"it has the opcode {name}")

    def pop_mark(self) -> list[Any]:
        """The values since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def set_item(self, key: Any, value: Any) -> None:
        """Set an entry of the dict on top of the stack.

        Raises ValueError unless the key is a text: to hash a tuple that holds others many times
        over may take for ever, or overflow the stack.
        """
        require(isinstance(key, str), "it has a key that is no text")
        self.get_top(dict)[key] = value

    def get_top(self, kind: type) -> Any:
        """The value on top of the stack. Raises ValueError unless it is of this kind."""
        require(isinstance(self.stack[-1], kind), f"it changes what is no {kind.__name__}")
        return self.stack[-1]


def resolve(found: Any) -> Any:
    """Replace the arrays that are values of the dict `found`."""
    if not isinstance(found, dict):
        return found
    return {key: make_array(v) if isinstance(v, Built) else v for key, v in found.items()}


def make_array(built: Built) -> np.ndarray:
    """Make an array of bytes. Raises an error of many kinds for any other array."""
    _version, shape, dtype, in_fortran_order, data = built.state
    of_bytes = isinstance(dtype, Built) and dtype.meaning == DTYPE and dtype.args[0] == "u1"
    require(built.meaning == RECONSTRUCT and of_bytes, "its array does not hold bytes")
    order: Any = "F" if in_fortran_order else "C"
    return np.frombuffer(data.encode("latin-1"), np.uint8).reshape(shape, order=order)


def require(ok: bool, reason: str) -> None:
    """Raise ValueError with `reason` unless `ok`."""
    if not ok:
        raise ValueError(reason)
