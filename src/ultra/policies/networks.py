"""Layers of networks, and the convolutional one for observations that are images.

The latter is that of Mnih et al. (Nature 2015, doi 10.1038/nature14236).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Image = tuple[int, int, int]
"""Height, width and channels of an image; observations hold it flattened, row by row, as bytes."""

KERNELS = ((8, 4, 32), (4, 2, 64), (3, 1, 64))
"""Size, stride and filters of each layer."""
FEATURES = 512
"""Outputs of the last layer, from which actor and critic take theirs."""


def shapes(image: Image) -> list[tuple[int, ...]]:
    """Shapes of the weights: (size, size, inputs, filters) of each convolution, then (inputs, FEATURES)."""
    height, width, inputs = image
    result: list[tuple[int, ...]] = []
    for size, stride, filters in KERNELS:
        result.append((size, size, inputs, filters))
        height, width, inputs = (height - size) // stride + 1, (width - size) // stride + 1, filters
    return [*result, (height * width * inputs, FEATURES)]


def orthogonal(rng: np.random.Generator, shape: tuple[int, ...], gain: float) -> dict[str, jax.Array]:
    """A layer {w, b} with weights (..., outputs) that are orthogonal where inputs are joined, and no bias."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    tall = rng.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(tall)
    q = q * np.sign(np.diag(r))
    weight = q if rows >= columns else q.T
    # Made by NumPy: JAX would compile a program for each shape.
    arrays = {"w": (gain * weight).reshape(shape).astype(np.float32), "b": np.zeros(columns, np.float32)}
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def create(image: Image, rng: np.random.Generator) -> list[dict[str, jax.Array]]:
    """Fresh layers, with weights as Stable-Baselines3 draws them."""
    return [orthogonal(rng, shape, math.sqrt(2)) for shape in shapes(image)]


def convolve(x: jax.Array, weight: jax.Array, stride: int) -> jax.Array:
    """Square images (n, side, side, inputs) through filters (size, size, inputs, filters), size a multiple of stride.

    A sum of matrix products. XLA has an operation for it, but on a CPU that takes thirty times as long inside a
    loop that is compiled as a whole, as PPO's update is.
    """
    size, _, inputs, filters = weight.shape
    count, side, blocks = len(x), (x.shape[1] - size) // stride + 1, size // stride
    cells, depth = side + blocks - 1, stride * stride * inputs
    # Of `stride` x `stride` pixels one cell: then filters of `blocks` x `blocks` cells move cell by cell.
    x = x[:, : cells * stride, : cells * stride].reshape(count, cells, stride, cells, stride, inputs)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(count, cells, cells, depth)
    weight = weight.reshape(blocks, stride, blocks, stride, inputs, filters)
    weight = weight.transpose(0, 2, 1, 3, 4, 5).reshape(blocks, blocks, depth, filters)
    parts = (x[:, i : i + side, j : j + side] @ weight[i, j] for i, j in np.ndindex(blocks, blocks))
    return functools.reduce(jnp.add, parts)


def forward(layers: list[dict[str, Any]], x: jax.Array) -> jax.Array:
    """Features (n, FEATURES) of square images (n, size), flattened, with values from 0 to 255."""
    channels = layers[0]["w"].shape[2]
    side = math.isqrt(x.shape[1] // channels)
    x = x.reshape(-1, side, side, channels) / 255.0
    for layer, (_, stride, _) in zip(layers, KERNELS, strict=False):
        x = jax.nn.relu(convolve(x, layer["w"], stride) + layer["b"])
    last = layers[-1]
    features: jax.Array = jax.nn.relu(x.reshape(x.shape[0], -1) @ last["w"] + last["b"])
    return features
