"""A policy that Stable-Baselines3 saved, as one of ours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import PolicyError, UltraError
from ultra.policies.normalizer import Normalizer
from ultra.policies.policy import Architecture, Policy, unflatten
from ultra.policies.sb3.archive import Archive, read_archive
from ultra.policies.sb3.images import flattened_image, has_extractor, read_features, read_image, rows_first
from ultra.policies.sb3.noise import constant_noise
from ultra.policies.sb3.statistics import find_statistics, read_statistics, usual_places
from ultra.tasks.spaces import ActionSpace, Continuous, Discrete

ACTIVATIONS = {"Tanh": "tanh", "ReLU": "relu", "ELU": "elu", "SiLU": "silu", "LeakyReLU": "leaky_relu"}
"""Our names of torch's activations."""
_NETS = {"shared_net": "shared", "policy_net": "actor", "value_net": "critic"}
_STOCK = ("ActorCriticPolicy", "MultiInputActorCriticPolicy", "ActorCriticCnnPolicy")


@dataclass(frozen=True)
class Imported:
    """A policy, and what its owner should know about how it was read."""

    policy: Policy
    notes: tuple[str, ...] = ()
    """What was found, one line each."""
    warnings: tuple[str, ...] = ()
    """What may be wrong, one line each."""
    gamma: float | None = None
    """The discount with which the policy was trained, where that is known."""


def import_policy(path: Path, statistics: Path | None = None, *, trust_pickle: bool = False) -> Imported:
    """Read a zip of PPO or A2C, of Stable-Baselines3 1.x or 2.x, with its VecNormalize statistics.

    Args:
        path: the zip.
        statistics: the VecNormalize file; by default it is looked for in the usual places.
        trust_pickle: run the statistics' pickle if it cannot be read without running it.

    Raises:
        PolicyError: if the zip or the statistics cannot be read, are of another algorithm, or do not fit
            each other.
    """
    archive = read_archive(path)
    architecture = _architecture(archive)
    arrays = _arrays(archive, architecture)
    notes, warnings = _remarks(archive)
    if archive.data.get("use_sde"):
        arrays["log_std"], about_noise = constant_noise(archive, arrays, architecture)
        notes.append(about_noise)
    normalizer, about, doubt = _statistics(archive, architecture.observation_size, statistics, trust_pickle)
    policy = Policy(architecture, unflatten(arrays, architecture.form), normalizer)
    policy.check_finite(str(path))
    gamma = archive.data.get("gamma")
    discount = float(gamma) if isinstance(gamma, int | float) and 0 <= gamma <= 1 else None
    return Imported(policy, (*notes, *about), (*warnings, *doubt), discount)


# -- shapes ----------------------------------------------------------------------------------------


def _architecture(archive: Archive) -> Architecture:
    """Read the shape of the networks off the weights, and the rest off the settings."""
    _check_algorithm(archive)
    widths = {ours: _widths(archive.weights, theirs) for theirs, ours in _NETS.items()}
    space = _action_space(archive)
    action_net = archive.weights["action_net.weight"]
    if action_net.shape[0] != space.outputs:
        raise PolicyError(
            f"{archive.path}: its action net has {action_net.shape[0]} outputs, but {space} needs {space.outputs}"
        )
    size = next((layers[0][1] for layers in widths.values() if layers), action_net.shape[1])
    actor, critic, shared = (tuple(rows for rows, _ in widths[net]) for net in ("actor", "critic", "shared"))
    image = read_image(archive.path, archive.data) if has_extractor(archive.weights) else None
    if image is not None:
        size = math.prod(image)
    else:
        _check_observations(archive, size)
    try:
        return Architecture(
            size, space, actor, image, critic_hidden=None if critic == actor else critic, shared=shared,
            activation=_activation(archive),
        )  # fmt: skip
    except UltraError as error:
        raise PolicyError(str(error) if isinstance(error, PolicyError) else f"{archive.path}: {error}") from error


def _widths(weights: Mapping[str, NDArray[Any]], net: str) -> list[tuple[int, int]]:
    """Shapes (outputs, inputs) of the layers of one of the extractor's networks, in their order."""
    pattern = re.compile(rf"mlp_extractor\.{net}\.(\d+)\.weight")
    found = sorted((int(match[1]), name) for name in weights if (match := pattern.fullmatch(name)))
    return [(weights[name].shape[0], weights[name].shape[1]) for _, name in found]


def _check_algorithm(archive: Archive) -> None:
    """Check that the weights are those of an actor-critic with plain layers.

    Raises:
        PolicyError: naming the algorithm or the part that is not supported.
    """
    names = list(archive.weights)
    for prefix, algorithm in {
        "q_net": "DQN", "actor.latent_pi": "SAC", "actor.mu": "TD3 or DDPG", "lstm": "RecurrentPPO",
    }.items():  # fmt: skip
        if any(name.startswith(prefix) for name in names):
            raise PolicyError(f"{archive.path} was saved by {algorithm}: only PPO and A2C can be refined")
    if has_extractor(archive.weights) and not any(name.startswith("features_extractor.cnn.") for name in names):
        raise PolicyError(f"{archive.path} has a features extractor of its own: only NatureCNN can be read")
    needed = ("action_net.weight", "action_net.bias", "value_net.weight", "value_net.bias")
    missing = [name for name in needed if name not in names]
    if missing:
        raise PolicyError(f"{archive.path}: its weights have no {missing[0]!r}: only PPO and A2C can be refined")
    if (archive.data.get("policy_kwargs") or {}).get("squash_output"):
        raise PolicyError(f"{archive.path} squashes its actions (squash_output=True), which is not supported")


def _activation(archive: Archive) -> str:
    kwargs = archive.data.get("policy_kwargs") or {}
    text = str(kwargs.get("activation_fn", "Tanh"))
    name = re.sub(r"\W+$", "", text).rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise PolicyError(f"{archive.path}: activation {text} is not supported: known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _kind(space: Mapping[str, Any]) -> str:
    """`Box`, `Discrete`, ... of a space in the settings."""
    return re.sub(r"\W+$", "", str(space.get(":type:", ""))).rpartition(".")[2]


def _numbers(text: Any, kind: Any) -> tuple[float, ...]:
    """The numbers of an array that was printed; single precision is rounded as the array itself was."""
    dtype = np.float32 if kind == "float32" else np.float64
    return tuple(float(dtype(word)) for word in re.sub(r"[\[\],]", " ", str(text)).split())


def _action_space(archive: Archive) -> ActionSpace:
    space = archive.data.get("action_space")
    try:
        assert isinstance(space, Mapping)
        kind = _kind(space)
        if kind == "Box":
            low, high = (_numbers(space[name], space.get("dtype")) for name in ("low", "high"))
            return Continuous(low, high)
        if kind == "Discrete":
            return Discrete(int(space["n"]))
        if kind == "MultiDiscrete":
            parts = tuple(int(number) for number in _numbers(space["nvec"], None))
            return Discrete(math.prod(parts), parts)
        if kind == "MultiBinary":
            switches = int(_numbers(space["n"], None)[0])
            return Discrete(2**switches, (1,) * switches)
    except UltraError as error:
        raise PolicyError(f"{archive.path}: {error}") from error
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise PolicyError(f"{archive.path}: its action space cannot be read ({error!r})") from error
    raise PolicyError(f"{archive.path}: actions of {kind or space!r} are not supported")


def _check_observations(archive: Archive, size: int) -> None:
    space = archive.data.get("observation_space")
    if isinstance(space, Mapping) and _kind(space) == "Box" and math.prod(space.get("_shape") or (size,)) != size:
        raise PolicyError(
            f"{archive.path}: its networks take {size} inputs, but its observations are of shape {space['_shape']}"
        )


# -- weights ---------------------------------------------------------------------------------------


def _arrays(archive: Archive, architecture: Architecture) -> dict[str, NDArray[np.float32]]:
    """Weights under our names; torch keeps matrices (outputs, inputs), we keep (inputs, outputs)."""
    arrays: dict[str, NDArray[np.float32]] = {}
    places = {"actor": "action_net", "critic": "value_net"}
    for theirs, ours in _NETS.items():
        numbers = sorted(
            int(name.split(".")[2]) for name in archive.weights
            if name.startswith(f"mlp_extractor.{theirs}.") and name.endswith(".weight")
        )  # fmt: skip
        sources = [f"mlp_extractor.{theirs}.{number}" for number in numbers]
        for i, source in enumerate([*sources, *([places[ours]] if ours in places else [])]):
            arrays[f"{ours}.{i}.w"] = np.ascontiguousarray(archive.weights[f"{source}.weight"].T)
            arrays[f"{ours}.{i}.b"] = archive.weights[f"{source}.bias"]
    if architecture.image is None and (flat := flattened_image(archive.data)):
        for net in ("shared",) if architecture.shared else ("actor", "critic"):
            arrays[f"{net}.0.w"] = rows_first(arrays[f"{net}.0.w"], *flat)
    if isinstance(architecture.action_space, Continuous):
        arrays["log_std"] = archive.weights["log_std"]
        if not archive.data.get("use_sde") and arrays["log_std"].shape != (architecture.action_space.size,):
            raise PolicyError(
                f"{archive.path}: log_std is {arrays['log_std'].shape}, not ({architecture.action_space.size},)"
            )
    if architecture.image is not None:
        arrays |= read_features(archive.path, archive.weights, architecture.image)
    copies = sum(has_extractor([name]) for name in archive.weights)  # an extractor may be there several times
    known = sum(not name.startswith("features.") for name in arrays) + copies
    known += "log_std" in archive.weights and "log_std" not in arrays
    if known != len(archive.weights):
        raise PolicyError(
            f"{archive.path} has {len(archive.weights)} arrays, {known} of which belong to a plain actor-critic: "
            "custom policy classes cannot be read"
        )
    for name, sizes in architecture.sizes.items():
        for i, shape in enumerate(pairwise(sizes)):
            if arrays[f"{name}.{i}.w"].shape != shape:
                raise PolicyError(
                    f"{archive.path}: layer {i} of the {name} is {arrays[f'{name}.{i}.w'].shape}, not {shape}"
                )
    return arrays


# -- what its owner should know --------------------------------------------------------------------


def _remarks(archive: Archive) -> tuple[list[str], list[str]]:
    data = archive.data
    notes = [f"{archive.path.name}: Stable-Baselines3 {archive.version or '(version unknown)'}"]
    steps = data.get("num_timesteps")
    if isinstance(steps, int) and steps:
        notes[0] += f", {steps:,} steps of training, gamma {data.get('gamma')}"
    warnings = []
    kind = data.get("policy_class")
    made_by = str(kind.get("__init__", "")) if isinstance(kind, Mapping) else ""
    own = re.match(r"<function (\w+)\.", made_by)
    if own and own[1] not in _STOCK:
        warnings.append(f"the policy is of class {own[1]}, read as if it were Stable-Baselines3's own")
    return notes, warnings


def _statistics(
    archive: Archive, size: int, given: Path | None, trust_pickle: bool
) -> tuple[Normalizer, list[str], list[str]]:
    """The statistics with notes and warnings about them."""
    path = given or find_statistics(archive.path)
    if path is None:
        warning = []
        if archive.data.get("_last_original_obs") is not None:
            names = ", ".join(str(place.relative_to(archive.path.parent)) for place in usual_places(archive.path))
            warning = [
                "the policy was trained with VecNormalize statistics, which are missing: it will act wrongly. "
                f"Give --vecnormalize FILE; looked in {archive.path.parent} for {names}"
            ]
        return Normalizer.identity(size), [], warning
    normalizer = read_statistics(path, trust_pickle=trust_pickle)
    if not normalizer.count:  # statistics of rewards alone
        normalizer = replace(normalizer, mean=np.zeros(size), variance=np.ones(size))
    if normalizer.mean.shape != (size,):
        raise PolicyError(
            f"statistics {path} are of observations of shape {normalizer.mean.shape}, but the policy takes ({size},): "
            "give the right ones with --vecnormalize FILE"
        )
    return normalizer, [f"{path.name}: VecNormalize statistics of {normalizer.count:,.0f} observations"], []
