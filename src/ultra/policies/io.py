"""Policies on disk: JSON and safetensors, no pickle; everything is checked when it is read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import PolicyError, UltraError
from ultra.common.files import make_directory, to_json_text, write_atomically
from ultra.policies import networks
from ultra.policies.normalizer import Normalizer
from ultra.policies.policy import Architecture, Policy, flatten, unflatten
from ultra.programs.attached import AttachedPrograms
from ultra.tasks.spaces import Continuous, from_json, to_json

SHIPPED = Path(__file__).parent / "shipped"
"""Sub-optimal policies that come with the package, by task."""
FORMAT = 1
EXTENDED_FORMAT = 2
"""Of policies with what format 1 does not know: activations other than tanh, unlike or shared layers, entries of the
observation that their statistics leave alone."""
PROGRAM_FORMAT = 3
"""Of policies with programs, which earlier versions would silently ignore."""
_STATISTICS = ("count", "reward_variance", "reward_count", "clip")
"""Numbers of a `Normalizer` that `policy.json` holds."""


def save_policy(policy: Policy, directory: Path, about: Mapping[str, Any] | None = None) -> None:
    """Write a policy as `policy.json` and `weights.safetensors`; each file appears whole or not at all.

    Args:
        policy: what to save.
        directory: made if it does not exist.
        about: how the policy was made; kept in `policy.json` under `about`.

    Raises:
        PolicyError: if a weight is not finite.
        UltraError: if the place cannot be written.
    """
    from safetensors.numpy import save

    policy.check_finite("cannot save the policy")
    make_directory(directory)
    architecture, normalizer = policy.architecture, policy.normalizer
    arrays = flatten(policy.params) | {
        "normalizer.mean": normalizer.mean,
        "normalizer.variance": normalizer.variance,
    }
    extension = _extension_to_json(architecture)
    header = {
        "format": PROGRAM_FORMAT if policy.attached else EXTENDED_FORMAT if extension or normalizer.plain else FORMAT,
        "observation_size": architecture.observation_size,
        "action_space": to_json(architecture.action_space),
        "hidden": list(architecture.hidden),
        **extension,
        **({"image": list(architecture.image)} if architecture.image else {}),
        "normalizer": {
            **{name: getattr(normalizer, name) for name in _STATISTICS},
            **({"plain": list(normalizer.plain)} if normalizer.plain else {}),
        },
        **({"attached": policy.attached.to_json()} if policy.attached else {}),
        "about": dict(about or {}),
    }
    write_atomically(directory / "weights.safetensors", save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
    write_atomically(directory / "policy.json", to_json_text(header, "policy.json", "indented").encode() + b"\n")


def _extension_to_json(architecture: Architecture) -> dict[str, Any]:
    """What format 1 does not know of an architecture; empty if that is nothing."""
    plain = replace(architecture, critic_hidden=None, shared=(), activation="tanh")
    if architecture == plain and not architecture.form.parts:
        return {}
    critic = architecture.hidden if architecture.critic_hidden is None else architecture.critic_hidden
    return {
        "critic_hidden": list(critic),
        "shared": list(architecture.shared),
        "activation": architecture.activation,
    }


def load_policy(directory: str | os.PathLike[str]) -> Policy:
    """Read a policy that `save_policy` wrote.

    Raises:
        PolicyError: if a file is missing, damaged, of another format, or holds arrays or numbers that
            do not fit or are not finite.
    """
    from safetensors import SafetensorError

    path = Path(directory)
    if not path.exists():
        raise PolicyError(f"no policy at {path}: give the directory that holds policy.json")
    if not (path / "policy.json").is_file():
        raise PolicyError(f"{path} holds no policy.json: it is not a policy saved by ultra")
    try:
        policy = _read_policy(path)
    except PolicyError:
        raise
    except UltraError as error:
        raise PolicyError(f"{path}: {error}: copy or train it again") from error
    except (OSError, json.JSONDecodeError, SafetensorError, UnicodeDecodeError) as error:
        raise PolicyError(
            f"{path}: the policy is missing a file or damaged ({error}): copy or train it again"
        ) from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PolicyError(f"{path}: the policy's header is damaged ({error!r}): copy or train it again") from error
    policy.check_finite(str(path))
    return policy


def discount_of(directory: Path) -> float | None:
    """The discount with which a policy that can be read was trained, where its `about` says so."""
    about = json.loads((directory / "policy.json").read_text(encoding="utf-8")).get("about")
    if not isinstance(about, Mapping):
        return None
    gamma = about.get("gamma")
    if gamma is None:  # of a version that kept the settings alone
        settings = about.get("config")
        ppo = settings.get("ppo") if isinstance(settings, Mapping) else None
        gamma = ppo.get("gamma") if isinstance(ppo, Mapping) else None
    return float(gamma) if isinstance(gamma, int | float) and 0 <= gamma <= 1 else None


def _read_policy(path: Path) -> Policy:
    """Read a policy's two files and check that they fit each other."""
    from safetensors.numpy import load

    header = json.loads((path / "policy.json").read_text(encoding="utf-8"))
    if header["format"] not in (FORMAT, EXTENDED_FORMAT, PROGRAM_FORMAT):
        raise PolicyError(
            f"{path}: policy format {header['format']!r} is not one of 1 to {PROGRAM_FORMAT}: update ultra"
        )
    size, hidden = index(header["observation_size"]), tuple(map(index, header["hidden"]))
    image = tuple(map(index, header["image"])) if "image" in header else None
    if image is not None and len(image) != 3:
        raise UltraError(f"image is {list(image)}, but should be height, width and channels")
    architecture = Architecture(size, from_json(header["action_space"]), hidden, image)
    if "critic_hidden" in header:
        critic, shared = (tuple(map(index, header[name])) for name in ("critic_hidden", "shared"))
        critic_hidden = None if critic == hidden else critic
        architecture = replace(
            architecture, critic_hidden=critic_hidden, shared=shared, activation=header["activation"]
        )
    arrays = load((path / "weights.safetensors").read_bytes())
    _check_arrays(architecture, arrays)
    mean, variance = (arrays.pop(f"normalizer.{name}").astype(np.float64) for name in ("mean", "variance"))
    statistics = dict(header["normalizer"])
    plain = tuple(map(index, statistics.pop("plain", ())))
    if any(not 0 <= entry < size for entry in plain):
        raise UltraError(f"the normalizer leaves entries {list(plain)} alone, but the observation has 0 to {size - 1}")
    if set(statistics) != set(_STATISTICS):
        raise UltraError(f"the normalizer holds {sorted(statistics)}, but should hold {sorted(_STATISTICS)}")
    normalizer = Normalizer(mean, variance, **statistics, plain=plain)
    _check_statistics(normalizer)
    weights = {k: v.astype(np.float32) for k, v in arrays.items()}
    attached = AttachedPrograms.from_json(header["attached"]) if "attached" in header else None
    if attached is not None and attached.observed is not None and attached.observed.size != size:
        raise UltraError(f"its programs read observations of {attached.observed.size} entries, but it takes {size}")
    policy = Policy(architecture, unflatten(weights, architecture.form), normalizer, attached)
    policy.controllers  # noqa: B018 - compiled here, so that damage shows now
    return policy


def _check_arrays(architecture: Architecture, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Compare names and shapes of the arrays with those that the architecture needs."""
    size, space = architecture.observation_size, architecture.action_space
    wanted: dict[str, tuple[int, ...]] = {"normalizer.mean": (size,), "normalizer.variance": (size,)}
    if architecture.image is not None:
        for i, shape in enumerate(networks.shapes(architecture.image)):
            wanted |= {f"features.{i}.w": shape, f"features.{i}.b": shape[-1:]}
    for net, sizes in architecture.sizes.items():
        for i, (rows, columns) in enumerate(pairwise(sizes)):
            wanted |= {f"{net}.{i}.w": (rows, columns), f"{net}.{i}.b": (columns,)}
    if isinstance(space, Continuous):
        wanted["log_std"] = (space.size,)
    for name in sorted({*wanted, *arrays}):
        found = arrays[name].shape if name in arrays else "missing"
        if found != wanted.get(name, "absent"):
            raise UltraError(f"array {name!r} is {found}, but by policy.json it should be {wanted.get(name, 'absent')}")
        if arrays[name].dtype.kind != "f":
            raise UltraError(f"array {name!r} holds {arrays[name].dtype}, not floating-point numbers")


def _check_statistics(normalizer: Normalizer) -> None:
    """Check that the statistics are numbers by which observations and rewards can be scaled."""
    for name in _STATISTICS:
        value = getattr(normalizer, name)
        if type(value) not in (int, float) or not 0 <= value < np.inf:
            raise UltraError(f"the normalizer's {name} must be a finite number and not negative, not {value!r}")
    for name, array, lowest in (("mean", normalizer.mean, -np.inf), ("variance", normalizer.variance, 0.0)):
        bad = np.flatnonzero(~(np.isfinite(array) & (array >= lowest)))
        if len(bad):
            raise UltraError(f"the normalizer's {name} is {array[bad[0]]} for entry {bad[0]} of the observation")
