"""The zip that Stable-Baselines3 saves: its JSON and its weights, read with care."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import PolicyError, UltraError
from ultra.policies.sb3.inert import Inert, read_inert

LARGEST = {"data": 256 * 2**20, "policy.pth": 1024 * 2**20, "_stable_baselines3_version": 1024}
"""Bytes that the parts of a zip may unpack to."""


@dataclass(frozen=True)
class Archive:
    """What is used of a zip."""

    path: Path
    data: dict[str, Any]
    """Settings of the algorithm; values that are not JSON hold a pickle, which nobody reads."""
    weights: dict[str, NDArray[np.float32]]
    """Arrays of `policy.pth` by name."""
    version: str
    """Of Stable-Baselines3; empty if the zip does not say."""


def _part(archive: zipfile.ZipFile, path: Path, name: str) -> bytes:
    try:
        info = archive.getinfo(name)
    except KeyError:
        # Weights lie in every model, and are all that is found of one that was cut off: then not at the beginning.
        if any(part.filename.endswith("data.pkl") and not part.header_offset for part in archive.infolist()):
            raise PolicyError(
                f"{path} holds weights alone, as torch or `policy.save` writes them: give the zip of `model.save`"
            ) from None
        raise PolicyError(
            f"{path} holds no {name!r}: it is not a model that Stable-Baselines3 saved, or was cut off"
        ) from None
    if info.file_size > LARGEST[name]:
        raise PolicyError(f"{path}: {name!r} unpacks to {info.file_size:,} bytes, more than {LARGEST[name]:,}")
    return archive.read(info)


def read_archive(path: Path) -> Archive:
    """Read a zip: the JSON as JSON, the weights with `weights_only=True`.

    Raises:
        PolicyError: if the file is missing, damaged, too large, not of Stable-Baselines3, or if its
            weights ask for code to be run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            raw, weights = _part(archive, path, "data"), _part(archive, path, "policy.pth")
            known = "_stable_baselines3_version" in archive.namelist()
            version = _part(archive, path, "_stable_baselines3_version").decode() if known else ""
        data = json.loads(raw)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        if _is_statistics(path):
            raise PolicyError(
                f"{path} holds VecNormalize statistics, not a model: give the zip, and this file with --vecnormalize"
            ) from error
        raise PolicyError(f"cannot read {path}: {error}: copy it again") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(f"{path}: its settings are damaged ({error}): copy it again") from error
    if not isinstance(data, dict):
        raise PolicyError(f"{path}: its settings are not a JSON object: it is not of Stable-Baselines3")
    return Archive(path, data, _read_weights(path, weights), version.strip())


def _is_statistics(path: Path) -> bool:
    try:
        found = read_inert(path.read_bytes())
    except (OSError, UltraError):
        return False
    return isinstance(found, Inert) and found.name.endswith("VecNormalize")


def _read_weights(path: Path, content: bytes) -> dict[str, NDArray[np.float32]]:
    """Arrays of `policy.pth`; torch's own loader refuses everything but tensors and plain containers."""
    torch = import_torch("read")
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as inner:
            size = sum(info.file_size for info in inner.infolist())
        if size > LARGEST["policy.pth"]:
            raise PolicyError(f"{path}: its weights unpack to {size:,} bytes, more than {LARGEST['policy.pth']:,}")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can fail anywhere in the loader
        reason = str(error).split("\n")[0].split(". ")[0]
        raise PolicyError(f"{path}: its weights cannot be read safely ({reason}): it is damaged or hostile") from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise PolicyError(f"{path}: its weights are not tensors by name: it is not of Stable-Baselines3")
    return {name: value.to(torch.float32).numpy() for name, value in state.items()}


def import_torch(purpose: str) -> Any:
    """Torch, or an error that says how to get it.

    Raises:
        PolicyError: if torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise PolicyError(
            f"to {purpose} Stable-Baselines3 files, install torch: pip install 'ultra-refine[sb3]' "
            "(in a checkout: make install-sb3)"
        ) from error
    return torch
