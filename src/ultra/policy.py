"""Actor-critic policies: Gaussian or categorical networks in JAX, saved as JSON and safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ultra import networks
from ultra.errors import PolicyError, UltraError
from ultra.files import make_directory, write_atomically
from ultra.networks import Image
from ultra.spaces import Actions, ActionSpace, Continuous, Discrete, from_json, mixing, to_json
from ultra.tasks.batch import Observations
from ultra.xla import keep_compiled_code

keep_compiled_code()

Params = dict[str, Any]
"""Weights as a tree of arrays: `actor` and `critic` are lists of {w, b}; `log_std` for continuous actions;
`shared`, a list like them, where both begin with the same layers, and `features` likewise for images;
`form` where the network is not the usual one."""

FORMAT = 1
EXTENDED_FORMAT = 2
"""Of policies with what format 1 does not know: activations other than tanh, unlike or shared layers."""
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "silu": jax.nn.silu,
    "leaky_relu": jax.nn.leaky_relu,
}
"""What may stand between the layers."""
_STATISTICS = ("count", "reward_variance", "reward_count", "clip")
"""Numbers of a `Normalizer` that `policy.json` holds."""
_LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True)
class Architecture:
    """Shape of a policy: actor and critic MLPs with an activation between the layers.

    Where observations are images, both look at the features of one convolutional network.

    Attributes:
        observation_size: entries of an observation.
        action_space: what the actor chooses from.
        hidden: widths of the actor's hidden layers.
        image: height, width and channels where observations are images.
        critic_hidden: widths of the critic's layers; None for the same as the actor's.
        shared: widths of the layers with which both begin.
        activation: one of `ACTIVATIONS`.

    Raises:
        UltraError: if the activation is unknown, or the image does not fit.
    """

    observation_size: int
    action_space: ActionSpace
    hidden: tuple[int, ...] = (64, 64)
    image: Image | None = None
    critic_hidden: tuple[int, ...] | None = None
    shared: tuple[int, ...] = ()
    activation: str = "tanh"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise PolicyError(f"unknown activation {self.activation!r}: known are {', '.join(ACTIVATIONS)}")
        if self.image is None:
            return
        height, width, channels = self.image
        if height != width or height < 36 or height * width * channels != self.observation_size:
            raise UltraError(
                f"images of {height} x {width} x {channels} in observations of {self.observation_size} entries do "
                "not fit: square ones of at least 36 x 36 are needed"
            )

    @property
    def dtype(self) -> type[np.uint8] | type[np.float32]:
        """Kind of numbers in observations: bytes for images."""
        return np.float32 if self.image is None else np.uint8

    @property
    def inputs(self) -> int:
        """Inputs of the first fully connected layer."""
        return self.observation_size if self.image is None else networks.FEATURES

    @property
    def sizes(self) -> dict[str, list[int]]:
        """Inputs, widths and outputs of each fully connected network by its name in the weights."""
        trunk = [self.inputs, *self.shared]
        critic = self.hidden if self.critic_hidden is None else self.critic_hidden
        heads = {
            "actor": [trunk[-1], *self.hidden, self.action_space.outputs],
            "critic": [trunk[-1], *critic, 1],
        }
        return heads | ({"shared": trunk} if self.shared else {})

    @property
    def form(self) -> Form:
        """What the weights alone do not say."""
        parts = self.action_space.parts if isinstance(self.action_space, Discrete) else ()
        return Form(self.activation, parts)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Form:
    """What weights alone do not say of a network; it travels with them as a constant of compiled functions."""

    activation: str = "tanh"
    parts: tuple[int, ...] = ()
    """Outputs for each part of an action of several choices."""

    def entry(self) -> Params:
        """The entry of the weights' tree that holds this; none for the usual form."""
        return {} if self == Form() else {"form": self}


@dataclass(frozen=True)
class Normalizer:
    """Statistics by which observations are centred and rewards scaled.

    Attributes:
        mean, variance: (observation_size,) float64, of the observations seen.
        count: observations seen; 0 leaves observations as they are.
        reward_variance: mean square of the discounted return; rewards are divided by its root.
        reward_count: returns seen; 0 leaves rewards as they are.
        clip: normalised observations are cut to [-clip, clip].
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    count: float = 0.0
    reward_variance: float = 1.0
    reward_count: float = 0.0
    clip: float = 10.0

    @classmethod
    def identity(cls, size: int) -> Normalizer:
        """Statistics that change nothing."""
        return cls(np.zeros(size), np.ones(size))

    @property
    def reward_scale(self) -> float:
        """What rewards are divided by before learning; the critic predicts returns in these units."""
        return float(np.sqrt(self.reward_variance + 1e-8)) if self.reward_count else 1.0

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Shift, factor (observation_size,) and clip () as float32, for compiled functions."""
        if not self.count:
            shift, factor, clip = np.zeros_like(self.mean), np.ones_like(self.mean), np.inf
        else:
            shift, factor, clip = self.mean, 1.0 / np.sqrt(self.variance + 1e-8), self.clip
        return shift.astype(np.float32), factor.astype(np.float32), np.float32(clip)  # type: ignore[return-value]

    def with_observations(self, observations: NDArray[Any]) -> Normalizer:
        """Take in observations (k, observation_size)."""
        sample = observations.mean(axis=0, dtype=np.float64), observations.var(axis=0, dtype=np.float64)
        mean, variance, count = _merge((self.mean, self.variance, self.count), (*sample, len(observations)))
        return replace(self, mean=mean, variance=variance, count=count)

    def with_returns(self, returns: NDArray[Any]) -> Normalizer:
        """Take in discounted returns since the beginning of episodes, of any shape."""
        old = (0.0, self.reward_variance, self.reward_count)
        _, variance, count = _merge(old, (0.0, float(np.square(returns).mean()), returns.size))
        return replace(self, reward_variance=float(variance), reward_count=float(count))


def _merge(a: tuple[Any, Any, float], b: tuple[Any, Any, float]) -> tuple[Any, Any, float]:
    """Mean, variance and count of two samples together (Chan et al., 1979)."""
    total = a[2] + b[2]
    gap = b[0] - a[0]
    mean = a[0] + gap * b[2] / total
    variance = (a[1] * a[2] + b[1] * b[2] + gap**2 * a[2] * b[2] / total) / total
    return mean, variance, total


class Decision(NamedTuple):
    """What a policy does with observations (n, observation_size)."""

    actions: Actions
    """(n,) int64, or (n, dim) float32 not yet clipped to the bounds."""
    log_probs: NDArray[np.float32]
    """(n,) of these actions."""
    values: NDArray[np.float32]
    """(n,) the critic's estimate, in units of the reward scale."""


@dataclass(frozen=True)
class Policy:
    """An actor-critic with its normalisation. Immutable: training returns new ones."""

    architecture: Architecture
    params: Params
    normalizer: Normalizer

    def decide(self, observations: Observations, noise: NDArray[np.float32]) -> Decision:
        """Choose actions.

        Args:
            observations: (n, observation_size).
            noise: (n, size) from `draw_noise`; zeros give the most likely action. The same noise at
                two states is what makes paired branches use common random numbers.
        """
        actions, log_probs, values = decide_function(self.architecture)(
            self.params, self.normalizer.arrays(), observations, noise
        )
        kind = np.int64 if isinstance(self.architecture.action_space, Discrete) else np.float32
        return Decision(np.asarray(actions).astype(kind, copy=False), np.asarray(log_probs), np.asarray(values))

    def draw_noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Noise (*shape, size) for `decide`: normal, or Gumbel for discrete actions."""
        space = self.architecture.action_space
        full = (*shape, space.size)
        if isinstance(space, Discrete):
            waits = np.maximum(rng.standard_exponential(full, dtype=np.float32), np.finfo(np.float32).tiny)
            return (-np.log(waits)).astype(np.float32)
        return rng.standard_normal(full, dtype=np.float32)

    def values(self, observations: Observations) -> NDArray[np.float64]:
        """The critic's estimate (n,) of the discounted return, in units of the task's reward."""
        noise = np.zeros((len(observations), self.architecture.action_space.size), np.float32)
        return self.decide(observations, noise).values.astype(np.float64) * self.normalizer.reward_scale

    def check_finite(self, where: str) -> None:
        """Raise a PolicyError that names the array if any weight is not finite."""
        for name, array in flatten(self.params).items():
            if not np.isfinite(array).all():
                bad = int((~np.isfinite(array)).sum())
                raise PolicyError(
                    f"{where}: {bad} of {array.size} weights of {name!r} are not finite (NaN or infinite)"
                )


def create_policy(architecture: Architecture, rng: np.random.Generator) -> Policy:
    """A fresh policy with orthogonal weights, as Stable-Baselines3 draws them."""
    space = architecture.action_space
    gains = {"actor": 0.01, "critic": 1.0, "shared": float(np.sqrt(2))}
    params: Params = {name: _layers(rng, sizes, gains[name]) for name, sizes in architecture.sizes.items()}
    params |= architecture.form.entry()
    if isinstance(space, Continuous):
        params["log_std"] = jnp.asarray(np.zeros(space.size, np.float32))
    if architecture.image is not None:
        params["features"] = networks.create(architecture.image, rng)
    return Policy(architecture, params, Normalizer.identity(architecture.observation_size))


def _layers(rng: np.random.Generator, sizes: list[int], last_gain: float) -> list[Params]:
    gains = [float(np.sqrt(2))] * (len(sizes) - 2) + [last_gain]
    return [networks.orthogonal(rng, shape, gain) for shape, gain in zip(pairwise(sizes), gains, strict=True)]


def _mlp(layers: list[Params], x: jax.Array, activation: Callable[[Any], Any]) -> jax.Array:
    for layer in layers[:-1]:
        x = activation(x @ layer["w"] + layer["b"])
    outputs: jax.Array = x @ layers[-1]["w"] + layers[-1]["b"]
    return outputs


def normalize(arrays: tuple[Any, Any, Any], observations: jax.Array) -> jax.Array:
    """Centre, scale and cut observations (inside compiled functions)."""
    shift, factor, clip = arrays
    return jnp.clip((observations - shift) * factor, -clip, clip)


def actor_critic(params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Outputs of the actor (n, size) and of the critic (n,) for normalised observations."""
    form: Form = params.get("form", Form())
    activation = ACTIVATIONS[form.activation]
    if "features" in params:
        x = networks.forward(params["features"], x)
    if "shared" in params:
        x = activation(_mlp(params["shared"], x, activation))
    outputs = _mlp(params["actor"], x, activation)
    if form.parts:
        outputs = outputs @ mixing(form.parts)
    return outputs, _mlp(params["critic"], x, activation)[:, 0]


def log_prob(params: Params, outputs: jax.Array, actions: jax.Array) -> jax.Array:
    """Log-probabilities (n,) of actions under the actor's outputs (n, size)."""
    if "log_std" not in params:
        choice: jax.Array = jnp.take_along_axis(jax.nn.log_softmax(outputs), actions[:, None].astype(int), axis=1)
        return choice[:, 0]
    deviations = (actions - outputs) * jnp.exp(-params["log_std"])
    density: jax.Array = (-0.5 * deviations**2 - params["log_std"] - 0.5 * _LOG_2PI).sum(axis=1)
    return density


def entropy(params: Params, outputs: jax.Array) -> jax.Array:
    """Entropies (n,) of the action distributions."""
    if "log_std" not in params:
        logs = jax.nn.log_softmax(outputs)
        result: jax.Array = -(jnp.exp(logs) * logs).sum(axis=1)
        return result
    total = (params["log_std"] + 0.5 * (1 + _LOG_2PI)).sum()
    return jnp.broadcast_to(total, outputs.shape[:1])


@cache
def decide_function(architecture: Architecture) -> Any:
    """The compiled forward pass: (params, normalizer arrays, observations, noise) -> Decision."""
    discrete = isinstance(architecture.action_space, Discrete)

    @jax.jit
    def decide(params: Params, arrays: Any, observations: Any, noise: Any) -> tuple[Any, Any, Any]:
        outputs, values = actor_critic(params, normalize(arrays, observations))
        actions = jnp.argmax(outputs + noise, axis=1) if discrete else outputs + jnp.exp(params["log_std"]) * noise
        return actions, log_prob(params, outputs, actions), values

    return decide


@cache
def log_prob_function() -> Any:
    """Compiled: (params, normalizer arrays, observations, actions) -> log-probabilities (n,)."""

    @jax.jit
    def function(params: Params, arrays: Any, observations: Any, actions: Any) -> Any:
        outputs, _ = actor_critic(params, normalize(arrays, observations))
        return log_prob(params, outputs, actions)

    return function


def flatten(params: Params, prefix: str = "") -> dict[str, NDArray[Any]]:
    """A tree of arrays as one dictionary: `actor.0.w`, `critic.1.b`, ..."""
    flat: dict[str, NDArray[Any]] = {}
    items = params.items() if isinstance(params, dict) else enumerate(params)
    for key, value in items:
        if isinstance(value, dict | list):
            flat |= flatten(value, f"{prefix}{key}.")  # type: ignore[arg-type]
        elif not isinstance(value, Form):
            flat[f"{prefix}{key}"] = np.asarray(value)
    return flat


def unflatten(flat: Mapping[str, NDArray[Any]], form: Form | None = None) -> Params:
    """Inverse of `flatten` for the parameters of a policy; `form` where it is not the usual one."""
    params: Params = (form or Form()).entry()
    for net in ("features", "actor", "critic", "shared"):
        depth = sum(key.startswith(f"{net}.") and key.endswith(".w") for key in flat)
        if depth:
            params[net] = [{part: jnp.asarray(flat[f"{net}.{i}.{part}"]) for part in ("w", "b")} for i in range(depth)]
    if "log_std" in flat:
        params["log_std"] = jnp.asarray(flat["log_std"])
    return params


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
        "format": EXTENDED_FORMAT if extension else FORMAT,
        "observation_size": architecture.observation_size,
        "action_space": to_json(architecture.action_space),
        "hidden": list(architecture.hidden),
        **extension,
        **({"image": list(architecture.image)} if architecture.image else {}),
        "normalizer": {name: getattr(normalizer, name) for name in _STATISTICS},
        "about": dict(about or {}),
    }
    write_atomically(directory / "weights.safetensors", save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
    write_atomically(directory / "policy.json", json.dumps(header, indent=2).encode() + b"\n")


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


def _read_policy(path: Path) -> Policy:
    """Read a policy's two files and check that they fit each other."""
    from safetensors.numpy import load

    header = json.loads((path / "policy.json").read_text(encoding="utf-8"))
    if header["format"] not in (FORMAT, EXTENDED_FORMAT):
        raise PolicyError(
            f"{path}: policy format {header['format']!r} is not {FORMAT} or {EXTENDED_FORMAT}: update ultra"
        )
    size, hidden = index(header["observation_size"]), tuple(map(index, header["hidden"]))
    image = tuple(map(index, header["image"])) if "image" in header else None
    if image is not None and len(image) != 3:
        raise UltraError(f"image is {list(image)}, but should be height, width and channels")
    architecture = Architecture(size, from_json(header["action_space"]), hidden, image)
    if header["format"] == EXTENDED_FORMAT:
        critic, shared = (tuple(map(index, header[name])) for name in ("critic_hidden", "shared"))
        critic_hidden = None if critic == hidden else critic
        architecture = replace(
            architecture, critic_hidden=critic_hidden, shared=shared, activation=header["activation"]
        )
    arrays = load((path / "weights.safetensors").read_bytes())
    _check_arrays(architecture, arrays)
    mean, variance = (arrays.pop(f"normalizer.{name}").astype(np.float64) for name in ("mean", "variance"))
    statistics = header["normalizer"]
    if set(statistics) != set(_STATISTICS):
        raise UltraError(f"the normalizer holds {sorted(statistics)}, but should hold {sorted(_STATISTICS)}")
    normalizer = Normalizer(mean, variance, **statistics)
    _check_statistics(normalizer)
    weights = {k: v.astype(np.float32) for k, v in arrays.items()}
    return Policy(architecture, unflatten(weights, architecture.form), normalizer)


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


def check_fits(policy: Policy, name: str, observation_size: int, space: ActionSpace) -> None:
    """Check that a policy can act in a task.

    Raises:
        PolicyError: naming the shapes of both, if they differ.
    """
    own = policy.architecture
    if own.observation_size != observation_size:
        raise PolicyError(
            f"the policy takes observations of shape ({own.observation_size},), but {name} gives "
            f"({observation_size},): was it trained on another task?"
        )
    if own.action_space != space:
        raise PolicyError(
            f"the policy has actions {own.action_space}, but {name} takes {space}: was it trained on another task?"
        )
