"""The pickles that CIFAR's files are, read as data: nothing that a file names is run.

Python's own unpickler would not do, even with classes refused: nine bytes make it fill the memory,
and a key of deep tuples ends the process.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

MOST_OPCODES = 2_000_000
"""CIFAR-100 takes 250,000, or twice as many where Python 3 wrote it for Python 2."""
_VALUES = frozenset(
    {
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
"""Opcodes that are a value of as many bytes as the file has of it."""
_NEW: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = frozenset({"PROTO", "FRAME"})


class Inert:
    """In place of NumPy's array and type: has what it was given, and does nothing with it."""

    def __init__(self) -> None:
        self.state: object = None


class _Latin1:
    """In place of `codecs.encode`, by which Python 3 writes bytes for Python 2."""


class _Array:
    """In place of what makes NumPy's array and type, and of their classes."""


_LATIN1, _ARRAY = _Latin1(), _Array()


def read_pickle(content: bytes) -> object:
    """What a pickle of protocol 2 or above holds: numbers, texts, lists, dictionaries, `Inert`.

    The memory that it takes is a few times the content's, and at most 0.2 GB besides.

    Raises:
        ValueError: another opcode, class or call, or more than `MOST_OPCODES`.
        IndexError, KeyError, OverflowError: a pickle that is none.

    """
    reader = _Reader(len(content))
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if number == MOST_OPCODES:
            raise ValueError(f"it has more than {MOST_OPCODES} parts")
        if opcode.name == "STOP":
            break
        reader.take(opcode.name, argument)
    return reader.stack.pop()


class _Reader:
    """The stack, the marks on it and the memo, as in `pickletools`' description of opcodes."""

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.left = size
        """Letters that may still be encoded: a file that repeats one text would swell."""

    def take(self, name: str, argument: Any) -> None:
        """One opcode and what stands behind it."""
        if name in _VALUES:
            self.stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in _NEW:
            self.stack.append(_NEW[name]())
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "TUPLE" or name in _TUPLES:
            self.stack.append(tuple(self._pop(_TUPLES.get(name))))
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            self._fill(name)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.stack.append(_named(*(self._pop(2) if argument is None else argument.split(" "))))
        elif name == "REDUCE":
            self.stack.append(self._call(*self._pop(2)))
        elif name == "BUILD":
            state = self.stack.pop()
            if not isinstance(self.stack[-1], Inert):
                raise ValueError("it changes what is no array")
            self.stack[-1].state = state
        elif name not in _NOTHING:
            raise ValueError(f"it has a part that no such file has: {name}")

    def _pop(self, number: int | None) -> list[Any]:
        """So many from the top of the stack, or all above the last mark."""
        start = self.marks.pop() if number is None else len(self.stack) - number
        if start < 0:
            raise IndexError("it takes what it has not given")
        found = self.stack[start:]
        del self.stack[start:]
        return found

    def _fill(self, name: str) -> None:
        number = {"APPEND": 1, "SETITEM": 2}.get(name)
        found, target = self._pop(number), self.stack[-1]
        if name.startswith("APPEND"):
            if not isinstance(target, list):
                raise ValueError("it adds to what is no list")
            target.extend(found)
            return
        keys = found[::2]
        if not isinstance(target, dict) or not all(isinstance(key, (str, bytes)) for key in keys):
            raise ValueError("it has a key that is no text, or one of no dictionary")
        target.update(zip(keys, found[1::2], strict=True))

    def _call(self, what: object, given: object) -> object:
        if what is _ARRAY:
            return Inert()
        if what is not _LATIN1 or not isinstance(given, tuple) or len(given) != 2:
            raise ValueError("it calls what is no function")
        text, encoding = given
        if not isinstance(text, str) or encoding != "latin1":
            raise ValueError("it encodes what is no text, or not as latin1")
        self.left -= len(text)
        if self.left < 0:
            raise ValueError("it would swell")
        return text.encode("latin1")


def _named(module: object, name: object) -> object:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("it asks for what has no name")
    if module.split(".")[0] == "numpy" and name in {"_reconstruct", "ndarray", "dtype"}:
        return _ARRAY
    if (module, name) == ("_codecs", "encode"):
        return _LATIN1
    raise ValueError(f"it asks for {module}.{name}")
