"""Files that appear whole or not at all, and JSON that every reader can read."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ultra.common.errors import UltraError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def make_directory(path: Path) -> None:
    """Make a directory and its parents, if they do not exist.

    Raises:
        UltraError: if a file is in the way or the place cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UltraError(f"cannot make the directory {path}: {error.strerror}; choose another place") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash or a full disk leaves the old one, never half of the new one.

    Raises:
        UltraError: if the disk is full or the place cannot be written; what was there stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # what matters to the user is the first error
            temporary.unlink(missing_ok=True)
        raise UltraError(f"cannot write {path}: {error.strerror}; free some space or choose another --out") from error


def check_finite(value: Any, what: str) -> None:
    """Check that no number in nested lists and mappings is NaN or infinite: no file may hold one.

    Args:
        value: plain values.
        what: what is to be written, for the error.

    Raises:
        UltraError: naming the field.
    """
    if isinstance(value, Real) and not math.isfinite(value):
        raise UltraError(f"{what} is {value:g}, which cannot be written: only finite numbers or null can")
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_finite(item, f"{what}.{name}")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            check_finite(item, f"{what}[{place}]")


Style = Literal["line", "indented", "compact", "canonical"]
"""Of JSON. line: as Python writes it; indented: two spaces a level; compact: no spaces; canonical: compact, with sorted
keys and no escapes, so that equal values give equal text."""

_STYLES: dict[Style, dict[str, Any]] = {
    "line": {},
    "indented": {"indent": 2},
    "compact": {"separators": (",", ":")},
    "canonical": {"separators": (",", ":"), "sort_keys": True, "ensure_ascii": False},
}


def to_json_text(value: Any, what: str = "JSON", style: Style = "line") -> str:
    """Strict JSON: the one way in which this package writes it.

    Args:
        value: plain values.
        what: what is to be written, for the error.
        style: layout of the text.

    Raises:
        UltraError: naming the field that is NaN or infinite.
    """
    try:
        return json.dumps(value, allow_nan=False, **_STYLES[style])
    except ValueError:
        check_finite(value, what)
        raise


def finite_or_none(value: float) -> float | None:
    """A number for JSON, where null stands for one that is not finite."""
    return value if math.isfinite(value) else None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, keys in the order given.

    Raises:
        UltraError: naming the field that is NaN or infinite; what was there stays.
    """
    write_atomically(path, to_json_text(value, path.name, "indented").encode() + b"\n")


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write JSON Lines atomically.

    Raises:
        UltraError: naming the line and the field that is NaN or infinite; what was there stays.
    """
    lines = [to_json_text(value, f"{path.name}, line {number}") for number, value in enumerate(values, start=1)]
    write_atomically(path, "".join(line + "\n" for line in lines).encode())


def pack_bytes(items: list[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Join byte strings into one array and their end offsets (len(items),)."""
    import numpy as np

    ends = np.cumsum([len(item) for item in items], dtype=np.int64)
    return np.frombuffer(b"".join(items), dtype=np.uint8), ends


def unpack_bytes(joined: NDArray[np.uint8], ends: NDArray[np.int64]) -> list[bytes]:
    """Inverse of `pack_bytes`."""
    starts = [0, *ends[:-1].tolist()]
    whole = joined.tobytes()
    return [whole[start:end] for start, end in zip(starts, ends.tolist(), strict=True)]
