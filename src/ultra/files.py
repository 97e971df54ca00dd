"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ultra.errors import UltraError


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
