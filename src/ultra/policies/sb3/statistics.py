"""VecNormalize statistics: where they lie, and how they are read without running anything."""

from __future__ import annotations

import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import PolicyError
from ultra.policies.normalizer import Normalizer
from ultra.policies.sb3.inert import DamagedPickleError, Inert, UnsafePickleError, attributes, read_inert

_EPSILON = 1e-8
"""What `Normalizer` adds to variances."""


def usual_places(path: Path) -> list[Path]:
    """Where the statistics of a policy usually lie, the most specific first.

    Checkpoints `NAME_N_steps.zip` have theirs in `NAME_vecnormalize_N_steps.pkl`; RL Baselines3 Zoo
    keeps them in a folder named like the zip.
    """
    folder, stem = path.parent, path.stem
    names = [f"{stem}_vecnormalize.pkl", f"{stem}_vec_normalize.pkl"]
    checkpoint = re.fullmatch(r"(.+)_(\d+)_steps", stem)
    if checkpoint:
        names.insert(0, f"{checkpoint[1]}_vecnormalize_{checkpoint[2]}_steps.pkl")
    names += [f"{stem}/vecnormalize.pkl", "vecnormalize.pkl", "vec_normalize.pkl"]
    return [folder / name for name in names]


def find_statistics(path: Path) -> Path | None:
    """The statistics that lie in one of the usual places of a policy."""
    return next((place for place in usual_places(path) if place.is_file()), None)


def read_statistics(path: Path, *, trust_pickle: bool = False) -> Normalizer:
    """Read a VecNormalize file.

    Args:
        path: the pickle that `VecNormalize.save` wrote.
        trust_pickle: run the pickle, with whatever code it holds, if it cannot be read without.

    Raises:
        PolicyError: if the file is missing, holds no statistics, or needs `trust_pickle`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PolicyError(f"cannot read the statistics {path}: {error.strerror}") from error
    if zipfile.is_zipfile(path):
        raise PolicyError(
            f"{path} is a model, not statistics: give the file that `VecNormalize.save` wrote with --vecnormalize FILE"
        )
    try:
        value = read_inert(content)
        stored = attributes(value) if isinstance(value, Inert) else {}
    except UnsafePickleError as error:
        if isinstance(error, DamagedPickleError):
            raise PolicyError(f"statistics {path} were not read: {error}: copy the file again") from error
        if not trust_pickle:
            raise PolicyError(
                f"statistics {path} were not read: {error}; if you trust whoever made them, add --trust-pickle"
            ) from error
        stored = _run_pickle(path, content)
    try:
        return _normalizer(path, stored)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(f"{path} holds no VecNormalize statistics ({error!r})") from error


def _run_pickle(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return dict(vars(pickle.loads(content)))
    except Exception as error:  # the pickle's own code may raise anything
        raise PolicyError(f"statistics {path} cannot be unpickled: {' '.join(str(error).split())}") from error


def _moments(record: Any) -> tuple[Any, Any, float]:
    stored = _stored(record)
    return stored["mean"], stored["var"], float(stored["count"])


@dataclass(frozen=True)
class _Joined:
    """Statistics of a whole observation; those of a Dict's parts one after the other."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    count: float
    plain: tuple[int, ...] = ()
    """Entries that `norm_obs_keys` leaves out: VecNormalize passes them on as they are."""


def _joined(path: Path, stored: dict[str, Any]) -> _Joined:
    rms = stored["obs_rms"]
    if not isinstance(rms, dict):
        mean, variance, count = _moments(rms)
        return _Joined(np.ravel(mean).astype(np.float64), np.ravel(variance).astype(np.float64), count)
    space = _stored(stored["observation_space"]) if stored.get("observation_space") is not None else {}
    parts = space.get("spaces", dict.fromkeys(rms))
    means: list[NDArray[np.float64]] = []
    variances: list[NDArray[np.float64]] = []
    plain: list[int] = []
    count = 0.0
    for key, part in parts.items():
        if key in rms:
            mean, variance, count = _moments(rms[key])
        else:
            width = _width(path, key, part)
            mean, variance = np.zeros(width), np.ones(width)
            start = sum(len(one) for one in means)
            plain += range(start, start + width)
        means.append(np.ravel(mean).astype(np.float64))
        variances.append(np.ravel(variance).astype(np.float64))
    return _Joined(np.concatenate(means), np.concatenate(variances), count, tuple(plain))


def _stored(record: Any) -> dict[str, Any]:
    return attributes(record) if isinstance(record, Inert) else vars(record)


def _width(path: Path, key: str, space: Any) -> int:
    """Entries of a part of an observation when it is flattened.

    Raises:
        PolicyError: if its kind is not known.
    """
    known = _stored(space)
    kind = (space.name if isinstance(space, Inert) else type(space).__name__).rpartition(".")[2]
    if kind == "Discrete":
        return int(known["n"])
    if kind == "MultiDiscrete":
        return int(np.sum(known["nvec"]))
    if kind in ("Box", "MultiBinary"):
        shape: Any = known.get("_shape", known.get("shape", known.get("n")))
        return int(np.prod(shape))
    raise PolicyError(f"statistics {path} leave out the observation's {key!r}, a {kind}, whose size is not known")


def _normalizer(path: Path, stored: dict[str, Any]) -> Normalizer:
    returns = _moments(stored["ret_rms"])
    scaled = bool(stored.get("norm_reward", True))
    extra = float(stored.get("epsilon", _EPSILON)) - _EPSILON
    found = _joined(path, stored) if stored.get("norm_obs", True) else _Joined(np.zeros(0), np.ones(0), 0.0)
    mean, variance = found.mean, found.variance
    normalizer = Normalizer(
        mean=mean,
        variance=variance + extra,
        count=found.count,
        reward_variance=float(returns[1]) + extra,
        reward_count=returns[2] if scaled else 0.0,
        clip=float(stored.get("clip_obs", 10.0)),
        plain=found.plain,
    )
    numbers = [*mean, *variance, normalizer.count, normalizer.reward_variance, normalizer.reward_count]
    if not np.isfinite(numbers).all() or (variance < 0).any():
        raise PolicyError(f"statistics {path} hold numbers that are not finite, or negative variances")
    return normalizer
