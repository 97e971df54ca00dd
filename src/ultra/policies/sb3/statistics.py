"""VecNormalize statistics: where they lie, and how they are read without running anything."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import PolicyError
from ultra.policies.normalizer import Normalizer
from ultra.policies.sb3.inert import Inert, UnsafePickleError, attributes, read_inert

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
    try:
        value = read_inert(content)
        stored = attributes(value) if isinstance(value, Inert) else {}
    except UnsafePickleError as error:
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
    stored = attributes(record) if isinstance(record, Inert) else vars(record)
    return stored["mean"], stored["var"], float(stored["count"])


def _joined(path: Path, stored: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Mean, variance and count of observations; those of a Dict observation one after the other."""
    rms = stored["obs_rms"]
    if not isinstance(rms, dict):
        mean, variance, count = _moments(rms)
        return np.ravel(mean).astype(np.float64), np.ravel(variance).astype(np.float64), count
    space = stored.get("observation_space")
    keys = list((attributes(space) if isinstance(space, Inert) else vars(space)).get("spaces", rms))
    missing = [key for key in keys if key not in rms]
    if missing:
        raise PolicyError(f"statistics {path} leave out the observation's {missing[0]!r}: all parts are needed")
    moments = [_moments(rms[key]) for key in keys]
    mean, variance = (np.concatenate([np.ravel(m[k]) for m in moments]).astype(np.float64) for k in (0, 1))
    return mean, variance, moments[0][2]


def _normalizer(path: Path, stored: dict[str, Any]) -> Normalizer:
    returns = _moments(stored["ret_rms"])
    scaled = bool(stored.get("norm_reward", True))
    extra = float(stored.get("epsilon", _EPSILON)) - _EPSILON
    if stored.get("norm_obs", True):
        mean, variance, count = _joined(path, stored)
    else:
        mean, variance, count = np.zeros(0), np.ones(0), 0.0
    normalizer = Normalizer(
        mean=mean,
        variance=variance + extra,
        count=count,
        reward_variance=float(returns[1]) + extra,
        reward_count=returns[2] if scaled else 0.0,
        clip=float(stored.get("clip_obs", 10.0)),
    )
    numbers = [*mean, *variance, normalizer.count, normalizer.reward_variance, normalizer.reward_count]
    if not np.isfinite(numbers).all() or (variance < 0).any():
        raise PolicyError(f"statistics {path} hold numbers that are not finite, or negative variances")
    return normalizer
