"""Policies wherever they come from: the package, our own directories, and zips of Stable-Baselines3."""

from __future__ import annotations

import os
from pathlib import Path

from ultra.common.errors import PolicyError
from ultra.common.records import closest
from ultra.policies.io import SHIPPED, discount_of, load_policy
from ultra.policies.sb3 import Imported, import_policy

SHIPPED_PREFIX = "shipped:"
"""Before the name of a policy that comes with the package."""


def shipped(name: str) -> Path:
    """Where a policy lies that comes with the package.

    Raises:
        PolicyError: if none has this name.
    """
    known = [path.parent.name for path in SHIPPED.glob("*/policy.json")]
    if name not in known:
        raise PolicyError(f"no policy ships for {name!r} ({closest(name, known)})")
    return SHIPPED / name


def open_policy(path: str | os.PathLike[str], statistics: str = "", *, trust_pickle: bool = False) -> Imported:
    """Read a policy that `ultra` or Stable-Baselines3 saved.

    Args:
        path: a directory of ours, a zip (its ending may be left out, as in Stable-Baselines3), or `shipped:NAME`.
        statistics: the zip's VecNormalize file; by default it is looked for beside the zip.
        trust_pickle: run the pickle of the statistics if it cannot be read without running it.

    Raises:
        PolicyError: if there is no policy, or it cannot be read.
    """
    named = os.fspath(path)
    place = shipped(named.removeprefix(SHIPPED_PREFIX)) if named.startswith(SHIPPED_PREFIX) else Path(path)
    with_ending = place.with_name(f"{place.name}.zip")
    if with_ending.is_file() and not place.is_file() and not (place / "policy.json").is_file():
        place = with_ending
    if place.is_file():
        return import_policy(place, Path(statistics) if statistics else None, trust_pickle=trust_pickle)
    if statistics:
        raise PolicyError(f"--vecnormalize {statistics} is for zips of Stable-Baselines3, but {place} is none")
    if place.suffix == ".zip" and not place.exists():
        raise PolicyError(f"there is no file {place}: give a zip of Stable-Baselines3, or a directory of ours")
    return Imported(load_policy(place), gamma=discount_of(place))
