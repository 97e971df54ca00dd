"""Units that are added to an actor's network: steps at half-spaces, and linear ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ultra.policies.policy import Params

Array = NDArray[np.float64]

STEEP = 10.0
"""A unit's input beyond its step: tanh(10) is 1 in single precision."""
LINEAR = 0.01
"""Largest input of a linear tanh unit in the visited states, where it is off by a share of LINEAR^2 / 3 in each layer.
Smaller ones lose digits to single precision."""
ACTIVATIONS = ("tanh", "relu")
"""Of networks that take units."""


@dataclass(frozen=True)
class Step:
    """Where `inputs @ weights + bias` passes from -1 or less (outside) to 1 or more (inside)."""

    weights: Array
    """(inputs,)"""
    bias: float


@dataclass(frozen=True)
class Line:
    """`inputs @ weights + bias`, and what lies in the middle of the visited values, and how far they go from it."""

    weights: Array
    """(inputs,)"""
    bias: float
    middle: float
    reach: float


def with_outputs(params: Params, matrix: Array, constants: Array) -> Params:
    """The network whose outputs are `matrix @ outputs + constants`; noise is scaled with them.

    Args:
        params: weights.
        matrix: (outputs, outputs).
        constants: (outputs,).
    """
    last = params["actor"][-1]
    layer = {
        "w": jnp.asarray(np.asarray(last["w"], np.float64) @ matrix.T, jnp.float32),
        "b": jnp.asarray(np.asarray(last["b"], np.float64) @ matrix.T + constants, jnp.float32),
    }
    result = {**params, "actor": [*params["actor"][:-1], layer]}
    if "log_std" in params:
        old = np.asarray(params["log_std"], np.float64)
        deviation = np.sqrt(np.square(matrix) @ np.exp(2 * old))
        # An output that no longer depends on the network keeps its noise: without any, it could not be trained.
        result["log_std"] = jnp.asarray(np.where(deviation > 0, np.log(np.maximum(deviation, 1e-30)), old), jnp.float32)
    return result


def with_line(params: Params, line: Line, push: Array, activation: str) -> Params:
    """The network with units that add `push` (outputs,) times the line's value to the outputs.

    A tanh unit does so in its linear part, nearly exactly; two ReLU units do so exactly, as a difference.
    """
    layers = params["actor"]
    if len(layers) == 1:
        last = layers[-1]
        weights = np.asarray(last["w"], np.float64) + np.outer(line.weights, push)
        return {**params, "actor": [_layer(weights, np.asarray(last["b"]) + line.bias * push)]}
    column = np.append(line.weights, line.bias - line.middle) / line.reach
    if activation == "tanh":
        first, signs = LINEAR * column[:, None], np.ones(1)
    else:
        first, signs = np.stack([column, -column], axis=1), np.array([1.0, -1.0])
    grown = [_wider(layers[0], first[:-1], first[-1])]
    for layer in layers[1:-1]:
        grown.append(_wider(layer, _below(layer, np.eye(len(signs))), np.zeros(len(signs))))
    size = line.reach / (LINEAR if activation == "tanh" else 1.0)
    grown.append(_with_rows(layers[-1], np.outer(signs, size * push), line.middle * push))
    return {**params, "actor": grown}


def with_steps(params: Params, steps: Sequence[Step], push: Array, activation: str) -> Params:
    """The network with units that add `push` (outputs,) to the outputs where all steps are at their upper ends.

    A tanh unit steps from -1 to 1. A step from 0 to 1 takes two ReLU units: their difference.

    Args:
        params: weights; of two hidden layers at least where there are several steps.
        steps: units of the first layer.
        push: what is added.
        activation: of the hidden layers.
    """
    layers = params["actor"]
    columns = np.stack([np.append(step.weights, step.bias) for step in steps], axis=1)
    if activation == "tanh":
        first, signs = STEEP * columns, np.ones(len(steps))
    else:  # relu(x / 2 + 1 / 2) - relu(x / 2 - 1 / 2) goes from 0 to 1 while x goes from -1 to 1
        shift = np.zeros_like(columns)
        shift[-1] = 0.5
        first = np.concatenate([columns / 2 + shift, columns / 2 - shift], axis=1)
        signs = np.repeat([1.0, -1.0], len(steps))
    grown = [_wider(layers[0], first[:-1], first[-1])]
    count = len(steps)
    for layer in layers[1:-1]:
        # From what `signs` add up to, -count to count (tanh) or 0 to count (ReLU), to one unit: are all there?
        if activation == "tanh":
            column, bias = STEEP * signs, -STEEP * (count - 1)
        else:
            column, bias = signs, -(count - 1.0)
        grown.append(_wider(layer, _below(layer, column[:, None]), np.array([bias])))
        signs, count = np.ones(1), 1
    half = push / 2
    rows, base = (np.outer(signs, half), half) if activation == "tanh" else (np.outer(signs, push), 0 * push)
    grown.append(_with_rows(layers[-1], rows, base))
    return {**params, "actor": grown}


def _layer(weights: Array, biases: Array) -> dict[str, Any]:
    return {"w": jnp.asarray(weights, jnp.float32), "b": jnp.asarray(biases, jnp.float32)}


def _below(layer: dict[str, Any], columns: Array) -> Array:
    """Weights of new units that see only the new units of the layer before."""
    return np.concatenate([np.zeros((layer["w"].shape[0], columns.shape[1])), columns])


def _wider(layer: dict[str, Any], columns: Array, biases: Array) -> dict[str, Any]:
    """A layer with further units (inputs, k), which also has a row, of zeros, for each further input."""
    old = np.asarray(layer["w"], np.float64)
    old = np.concatenate([old, np.zeros((len(columns) - len(old), old.shape[1]))])
    return _layer(np.concatenate([old, columns], axis=1), np.concatenate([np.asarray(layer["b"]), biases]))


def _with_rows(layer: dict[str, Any], rows: Array, base: Array) -> dict[str, Any]:
    """The last layer with rows for further inputs, and something added to its biases."""
    weights = np.concatenate([np.asarray(layer["w"], np.float64), rows])
    return _layer(weights, np.asarray(layer["b"], np.float64) + base)
