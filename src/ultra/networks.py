"""Layers of networks, and the convolutional one for observations that are images.

The latter is that of Mnih et al. (Nature 2015, doi 10.1038/nature14236).
"""

from __future__ import annotations

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


def forward(layers: list[dict[str, Any]], x: jax.Array) -> jax.Array:
    """Features (n, FEATURES) of square images (n, size), flattened, with values from 0 to 255."""
    channels = layers[0]["w"].shape[2]
    side = math.isqrt(x.shape[1] // channels)
    x = x.reshape(-1, side, side, channels) / 255.0
    for layer, (_, stride, _) in zip(layers, KERNELS, strict=False):
        x = jax.lax.conv_general_dilated(
            x, layer["w"], (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + layer["b"])
    last = layers[-1]
    features: jax.Array = jax.nn.relu(x.reshape(x.shape[0], -1) @ last["w"] + last["b"])
    return features
