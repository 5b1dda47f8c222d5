"""Read pickles of arrays, as Detectron2's and Caffe2's model zoos publish them, without running their code.

A pickle is a program that may call anything. This reader allows a few calls, all of which build arrays. None of them
calls numpy's `dtype` or `ndarray`, which take any state that a pickle gives them without a check.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

DTYPE = re.compile(r"[?biufc]\d{0,2}")  # booleans and numbers: no objects, text or records


class ForbiddenCall(pickle.UnpicklingError):
    """An error: the pickle holds something else than arrays, plain containers and numbers."""


class _Type:
    """A stand-in for `numpy.dtype`."""

    def __init__(self, code: Any, *flags: Any) -> None:
        self.code, self.order = _text(code), "="

    def set(self, state: Any) -> None:
        self.order = _text(state[1])

    def dtype(self) -> np.dtype:
        if not DTYPE.fullmatch(self.code):
            raise ForbiddenCall(f"an array of {self.code}")
        return np.dtype((self.order if self.order in "<>" else "=") + self.code)


class _Array:
    """A stand-in for `numpy.ndarray`, empty until its state is set."""

    def __init__(self, *initial: Any) -> None:
        self.array = np.zeros(0, np.float32)

    def set(self, state: Any) -> None:
        _, shape, kind, is_fortran, raw = state
        self.array = _from_buffer(raw, kind, shape, "F" if is_fortran else "C").array


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any) -> _Array:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 pickles bytes as text
    result = _Array()
    result.array = np.frombuffer(raw, kind.dtype()).reshape(shape, order=_text(order))
    return result


def _scalar(kind: Any, raw: Any) -> Any:
    return _from_buffer(raw, kind, (), "C").array.item()


def _encode(text: Any, encoding: Any) -> bytes:
    if _text(encoding) != "latin1":
        raise ForbiddenCall(f"the encoding {encoding}")
    return _text(text).encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ForbiddenCall(f"a {type(value).__name__} where text belongs")
    return value


class _NdarrayName:
    """A stand-in for the class `numpy.ndarray` as an argument of `_reconstruct`."""


CALLS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
    "numpy.ndarray": _NdarrayName,
    "numpy.dtype": _Type,
}
for _module in ("builtins", "__builtin__"):
    CALLS |= {f"{_module}.set": set, f"{_module}.bytes": _no_bytes}
for _module in ("numpy.core", "numpy._core"):
    CALLS |= {
        f"{_module}.multiarray._reconstruct": _Array,
        f"{_module}.multiarray.scalar": _scalar,
        f"{_module}.numeric._frombuffer": _from_buffer,
    }


# Python's unpickler written in Python: the one in C allocates as much memory as a damaged file asks for.
class _ArrayUnpickler(pickle._Unpickler):  # type: ignore[name-defined]
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in CALLS:
            raise ForbiddenCall(f"{module}.{name}")
        return CALLS[f"{module}.{name}"]

    def load_build(self) -> None:
        """Set the state of our stand-ins; refuse to set the attributes of any other object, as Python's method does."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], (_Array, _Type)):
            raise ForbiddenCall(f"the state of a {type(self.stack[-1]).__name__}")
        self.stack[-1].set(state)

    def load_bytearray8(self) -> None:
        """Read the bytes that are there; Python's method first allocates the size that the file states."""
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    dispatch: dict[int, Callable] = {
        **pickle._Unpickler.dispatch,  # type: ignore[attr-defined]
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


def read_arrays(file: BinaryIO) -> Any:
    """Read one pickle of arrays, plain containers and numbers; text of Python 2 is read as latin1.

    Raises:
        ForbiddenCall: the pickle holds something else, which the message names; it was not called.
        Exception: any other kind, if the pickle is damaged.
    """
    return _plain(_ArrayUnpickler(file, encoding="latin1").load(), {})


def _plain(value: Any, known: dict[int, dict]) -> Any:
    """Replace stand-ins by their arrays, also inside dicts; `known` ends the loop where a dict contains itself."""
    if isinstance(value, _Array):
        return value.array
    if not isinstance(value, dict):
        return value
    if id(value) not in known:
        known[id(value)] = result = {}
        result.update((key, _plain(entry, known)) for key, entry in value.items())
    return known[id(value)]
