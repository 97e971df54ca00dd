"""A reader of pickles that runs nothing: numbers, texts, containers and arrays come out, all else is inert.

Python's unpickler calls whatever a file names. This one is given stand-ins instead: arrays, data
types and scalars of NumPy are rebuilt here from their bytes, classes of the packages that such
files speak of become `Inert` records that only keep what was stored, and any other name is refused.
Nothing is imported, and no code of the file or of the named packages is called.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from typing import Any

import numpy as np

from ultra.common.errors import UltraError

LARGEST = 256 * 2**20
"""Bytes of the largest file worth reading."""

_KEPT = ("gym.", "gymnasium.", "stable_baselines3.", "numpy.random.")
"""Packages whose objects become inert records."""
_NUMERIC = re.compile(r"[<>=|]?([biufc])(\d{1,2})")


class UnsafePickleError(UltraError):
    """A pickle that names what plain data do not need."""


class DamagedPickleError(UnsafePickleError):
    """Bytes that are no pickle, or were cut off: running them would not help."""


class Inert:
    """An object of a class that was not imported: its name and what was stored in it."""

    name = ""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # of slots
            state = {**(state[0] or {}), **state[1]}
        if isinstance(state, dict):
            self.__dict__.update({key: value for key, value in state.items() if isinstance(key, str)})


class _DataType:
    """Stands in for `numpy.dtype`: numbers only, no objects, no fields."""

    def __init__(self, code: object, *_: object) -> None:
        match = _NUMERIC.fullmatch(code) if isinstance(code, str) else None
        if match is None:
            raise UnsafePickleError(f"an array holds {code!r}, not numbers")
        self.kind, self.order = match.group(1) + match.group(2), "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def real(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.kind)


def _filled(data: object, kind: _DataType, shape: tuple[int, ...], order: str) -> np.ndarray[Any, Any]:
    content = data if isinstance(data, bytes | bytearray | memoryview) else bytes(str(data), "latin1")
    real = kind.real()
    if math.prod(shape) * real.itemsize != len(content):
        raise UnsafePickleError(f"an array of shape {shape} has {len(content)} bytes")
    return np.frombuffer(content, real).reshape(shape, order="F" if order == "F" else "C").copy()


class _Array:
    """Stands in for an array between its construction and its state."""

    def __init__(self, *_: object) -> None:
        self.value: np.ndarray[Any, Any] = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        self.value = _filled(data, kind, shape, "F" if fortran else "C")


def _scalar(kind: _DataType, data: object) -> Any:
    return _filled(data, kind, (), "C")[()]


def _frombuffer(data: object, kind: _DataType, shape: tuple[int, ...], order: str = "C") -> np.ndarray[Any, Any]:
    return _filled(data, kind, shape, order)


def _encode(text: str, *_: object) -> bytes:
    return text.encode("latin1")


_REBUILT: dict[str, Any] = {
    "numpy.dtype": _DataType,
    "numpy.ndarray": _Array,
    "_codecs.encode": _encode,
    "collections.OrderedDict": dict,
    "builtins.slice": Inert,
} | {
    f"numpy.{core}.{name}": stand_in
    for core in ("core", "_core")
    for name, stand_in in (
        ("multiarray._reconstruct", _Array),
        ("multiarray.scalar", _scalar),
        ("numeric._frombuffer", _frombuffer),
    )
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _REBUILT:
            return _REBUILT[full]
        if module.startswith(_KEPT):
            return type("Inert", (Inert,), {"name": full})
        raise UnsafePickleError(f"it asks for {full!r}, which plain data do not need")

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError("it refers to objects outside itself")


def _bare(value: Any) -> Any:
    """Arrays in place of their stand-ins, one level deep in records and dictionaries."""
    return value.value if isinstance(value, _Array) else value


def attributes(record: Inert) -> dict[str, Any]:
    """What was stored in an inert record."""
    return {name: _bare(value) for name, value in vars(record).items()}


def read_inert(content: bytes) -> Any:
    """Read a pickle without running anything.

    Raises:
        UnsafePickleError: if the pickle names what plain data do not need.
        DamagedPickleError: if it is damaged.
    """
    if len(content) > LARGEST:
        raise UnsafePickleError(f"it has {len(content):,} bytes, more than {LARGEST:,}")
    try:
        return _Reader(io.BytesIO(content)).load()
    except UnsafePickleError:
        raise
    except Exception as error:  # a damaged pickle can fail anywhere
        kind = UnsafePickleError if _is_whole(content) else DamagedPickleError
        raise kind(f"it is damaged ({' '.join(str(error).split()) or type(error).__name__})") from error


def _is_whole(content: bytes) -> bool:
    """Whether bytes are a pickle from its beginning to its end, whatever it says."""
    try:
        return any(operation.name == "STOP" for operation, _, _ in pickletools.genops(content))
    except Exception:  # as above
        return False
