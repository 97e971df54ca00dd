"""Generalised state-dependent exploration (gSDE, arXiv 2005.05719) as the constant noise that is trained with here.

There the noise of an action is the features of the actor's last layer times a random matrix, so that its deviation
depends on the state. The most likely action needs no noise, so what a policy scores is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import PolicyError
from ultra.common.streams import stream
from ultra.policies import networks
from ultra.policies.policy import ACTIVATIONS, Architecture
from ultra.policies.sb3.archive import Archive

SAMPLES = 1000
"""Observations, of mean 0 and deviation 1, over which the noise is averaged."""
_EPSILON = 1e-6
"""What Stable-Baselines3 adds to variances."""


def constant_noise(
    archive: Archive, arrays: Mapping[str, NDArray[np.float32]], architecture: Architecture
) -> tuple[NDArray[np.float32], str]:
    """The logarithm of the noise's mean deviation (actions,), and a line about it.

    Args:
        archive: whose `log_std` is (features, actions), or (features, 1) where all actions share it.
        arrays: the policy's weights under our names.
        architecture: of the policy.

    Raises:
        PolicyError: if the features and the noise do not fit each other.
    """
    raw, actions = archive.weights["log_std"].astype(np.float64), architecture.action_space.size
    features = _features(arrays, architecture)
    if raw.shape not in ((features.shape[1], actions), (features.shape[1], 1)):
        raise PolicyError(
            f"{archive.path}: its gSDE noise is {raw.shape}, but its actor has {features.shape[1]} features and "
            f"{actions} actions"
        )
    deviations = np.exp(raw)
    if (archive.data.get("policy_kwargs") or {}).get("use_expln"):
        deviations = np.where(raw <= 0, deviations, np.log1p(np.maximum(raw, 0)) + 1)
    variances = (features**2 @ deviations**2).mean(axis=0) + _EPSILON
    constant = np.sqrt(np.broadcast_to(variances, (actions,)))
    told = ", ".join(f"{value:.2g}" for value in constant)
    return np.log(constant).astype(np.float32), (
        f"it explored with gSDE: its most likely actions are the same, but training explores with constant noise of "
        f"standard deviation {told}"
    )


def _features(arrays: Mapping[str, NDArray[np.float32]], architecture: Architecture) -> NDArray[np.float64]:
    """Outputs (SAMPLES, features) of the actor's last hidden layer."""
    rng = stream("observations for gSDE")
    if architecture.image is None:
        x = rng.standard_normal((SAMPLES, architecture.observation_size))
    else:
        x = np.maximum(rng.standard_normal((SAMPLES, networks.FEATURES)), 0.0)  # what the convolutions give is positive
    activation = ACTIVATIONS[architecture.activation]
    for net, depth in (("shared", len(architecture.shared)), ("actor", len(architecture.hidden))):
        for layer in range(depth):
            x = np.asarray(activation(x @ arrays[f"{net}.{layer}.w"] + arrays[f"{net}.{layer}.b"]), np.float64)
    return x
