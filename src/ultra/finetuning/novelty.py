"""Random network distillation (Burda et al., arXiv 1810.12894), with the networks of RICE.

A network is trained to predict what a fixed random network makes of an observation. Where it fails,
the observation is new: its error is the bonus.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from ultra.policies.networks import Image, orthogonal
from ultra.policies.normalizer import Normalizer
from ultra.policies.policy import Params, normalize
from ultra.tasks.batch import Observations

TARGET = (128, 64)
PREDICTOR = (128, 128, 64)
"""Widths of the layers after the input (RICE, appendix C)."""
COARSE = 4
"""Factor by which images are downscaled for these networks, in each direction."""
MINIBATCH = 256
"""Observations in a gradient step of the predictor."""


def _network(rng: np.random.Generator, sizes: tuple[int, ...]) -> list[Params]:
    return [orthogonal(rng, shape, float(np.sqrt(2))) for shape in pairwise(sizes)]


def _forward(layers: list[Params], x: jax.Array) -> jax.Array:
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    outputs: jax.Array = x @ layers[-1]["w"] + layers[-1]["b"]
    return outputs


class Novelty:
    """The bonus of random network distillation.

    Args:
        normalizer: centres and scales observations; not updated.
        learning_rate: Adam's step size.
        rng: draws both networks, and the order of the observations in training.
        image: of observations that are images; the networks see the last channel, `COARSE` times smaller.
    """

    def __init__(
        self, normalizer: Normalizer, learning_rate: float, rng: np.random.Generator, image: Image | None = None
    ) -> None:
        if image is not None:
            normalizer = Normalizer.identity((image[0] // COARSE) * (image[1] // COARSE))
        size = len(normalizer.mean)
        self._rng, self._image = rng, image
        self._arrays = normalizer.arrays()
        self._target = _network(rng, (size, *TARGET))
        self._predictor = _network(rng, (size, *PREDICTOR))
        optimizer = optax.adam(learning_rate)
        self._adam: Any = optimizer.init(self._predictor)
        self._scale = Normalizer.identity(1)  # its mean square is that of the errors seen
        self._waiting: list[Observations] = []

        def errors(predictor: Any, target: Any, arrays: Any, observations: jax.Array) -> jax.Array:
            x = normalize(arrays, observations)
            return jnp.square(_forward(predictor, x) - _forward(target, x)).mean(axis=1)

        def learn(predictor: Any, adam: Any, target: Any, arrays: Any, minibatches: jax.Array) -> Any:
            def step(carry: Any, observations: jax.Array) -> Any:
                predictor, adam = carry
                gradient = jax.grad(lambda p: errors(p, target, arrays, observations).mean())(predictor)
                changes, adam = optimizer.update(gradient, adam)
                return (optax.apply_updates(predictor, changes), adam), None

            return jax.lax.scan(step, (predictor, adam), minibatches)[0]

        self._errors, self._learn = jax.jit(errors), jax.jit(learn)

    def bonus(self, observations: Observations) -> NDArray[np.float64]:
        """How new observations are (n,): errors divided by the root of their running mean square.

        The mean square runs over all errors so far, so that the bonus decays as the errors do.
        """
        observations = self._view(observations)
        self._waiting.append(observations)
        errors = np.asarray(self._errors(self._predictor, self._target, self._arrays, observations), np.float64)
        self._scale = self._scale.with_returns(errors)
        return errors / self._scale.reward_scale

    def _view(self, observations: Observations) -> Observations:
        """What the networks see of observations (n, ...): all of it, or of images a coarse copy in [0, 1]."""
        if self._image is None:
            return observations.copy()
        height, width, channels = self._image
        newest = observations.reshape(-1, height, width, channels)[..., -1].astype(np.float32) / 255
        rows, columns = height // COARSE, width // COARSE
        blocks = newest[:, : rows * COARSE, : columns * COARSE].reshape(-1, rows, COARSE, columns, COARSE)
        view: Observations = blocks.mean(axis=(2, 4)).reshape(len(observations), -1)
        return view

    def learn(self) -> None:
        """Train the predictor once on every observation since the last time."""
        if not self._waiting:
            return
        seen = np.concatenate(self._waiting)
        self._waiting = []
        size = min(MINIBATCH, len(seen))
        order = self._rng.permutation(len(seen))[: len(seen) // size * size].reshape(-1, size)
        self._predictor, self._adam = self._learn(self._predictor, self._adam, self._target, self._arrays, seen[order])

    def state(self) -> dict[str, Any]:
        """Predictor, optimiser, scale, what is still to be learned and random generator.

        The target follows from the seed.
        """
        leaves = jax.tree.leaves((self._predictor, self._adam))
        return {
            "leaves": [b64encode(np.asarray(leaf).tobytes()).decode() for leaf in leaves],
            "scale": [self._scale.reward_variance, self._scale.reward_count],
            "waiting": [b64encode(seen.astype(np.float32).tobytes()).decode() for seen in self._waiting],
            "rng": self._rng.bit_generator.state,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`, for a `Novelty` that was made with the same seed."""
        leaves, tree = jax.tree.flatten((self._predictor, self._adam))
        packed = zip(state["leaves"], leaves, strict=True)
        loaded = [jnp.asarray(np.frombuffer(b64decode(text), leaf.dtype).reshape(leaf.shape)) for text, leaf in packed]
        self._predictor, self._adam = jax.tree.unflatten(tree, loaded)
        variance, count = state["scale"]
        self._scale = Normalizer(np.zeros(1), np.ones(1), reward_variance=variance, reward_count=count)
        size = len(self._target[0]["w"])
        self._waiting = [np.frombuffer(b64decode(text), np.float32).reshape(-1, size) for text in state["waiting"]]
        self._rng.bit_generator.state = state["rng"]
