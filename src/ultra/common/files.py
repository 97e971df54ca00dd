"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, keys in the order given."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False).encode() + b"\n")


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
