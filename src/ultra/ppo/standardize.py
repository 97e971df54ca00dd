"""Training with standardised observations and rewards where a policy has no statistics of its own.

A network hardly learns from what it hardly sees: MountainCar's velocity is at most 0.07, and beside a
critic of returns of -100 the cap on the gradient's norm leaves little for the actor. So statistics are
taken from the first rollout, and the first layer and the critic's last are changed such that the policy
computes the same as before. After training they are changed back: it keeps the form in which it came.
"""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ultra.policies.normalizer import Normalizer
from ultra.policies.policy import Params, Policy
from ultra.ppo.rollout import Rollout

NO_CLIP = float(np.finfo(np.float32).max)
"""Observations are not cut, because they were not before."""
LEAST_VARIANCE = 1e-8
"""Entries of the observation that vary less are left alone."""


def standardize(policy: Policy, rollout: Rollout) -> tuple[Policy, Rollout]:
    """Give a policy the statistics that it lacks; what it computes stays the same.

    Args:
        policy: statistics that it has are kept. Images are left alone.
        rollout: played by the policy.

    Returns:
        The policy, and the rollout with its values in the policy's new units.
    """
    normalizer, params = policy.normalizer, policy.params
    if not normalizer.count and policy.architecture.image is None:
        seen = rollout.observations.reshape(-1, rollout.observations.shape[-1])
        normalizer = _varying(replace(normalizer.with_observations(seen), clip=NO_CLIP))
        params = _moved(params, *_shift_and_factor(normalizer))
    if not normalizer.reward_count and rollout.discounted.any():
        normalizer = normalizer.with_returns(rollout.discounted)
        scale = np.float32(normalizer.reward_scale)
        params = _scaled(params, 1.0 / normalizer.reward_scale)
        rollout = replace(rollout, values=rollout.values / scale, next_values=rollout.next_values / scale)
    return replace(policy, params=params, normalizer=normalizer), rollout


def unstandardize(policy: Policy, before: Normalizer) -> Policy:
    """Take away the statistics that a policy lacked `before`; what it computes stays the same."""
    params = policy.params
    if policy.normalizer.count and not before.count:
        shift, factor = _shift_and_factor(policy.normalizer)
        params = _moved(params, -shift * factor, 1.0 / factor)
    if policy.normalizer.reward_count and not before.reward_count:
        params = _scaled(params, policy.normalizer.reward_scale)
    return replace(policy, params=params, normalizer=before)


def _varying(normalizer: Normalizer) -> Normalizer:
    """Statistics that leave alone what hardly varies; its scale is not known."""
    varies = normalizer.variance > LEAST_VARIANCE
    mean, variance = np.where(varies, normalizer.mean, 0.0), np.where(varies, normalizer.variance, 1.0)
    return replace(normalizer, mean=mean, variance=variance)


def _shift_and_factor(normalizer: Normalizer) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    shift, factor, _ = normalizer.arrays()
    return shift.astype(np.float64), factor.astype(np.float64)


def _moved(params: Params, shift: NDArray[np.float64], factor: NDArray[np.float64]) -> Params:
    """Weights for inputs (x - shift) * factor that compute what these do for x."""
    moved = dict(params)
    for net in ["shared"] if "shared" in params else ["actor", "critic"]:
        first, *rest = params[net]
        w, b = np.asarray(first["w"], np.float64), np.asarray(first["b"], np.float64)
        layer = {"w": w / factor[:, None], "b": b + shift @ w}
        moved[net] = [{name: jnp.asarray(array.astype(np.float32)) for name, array in layer.items()}, *rest]
    return moved


def _scaled(params: Params, scale: float) -> Params:
    """Weights whose critic gives `scale` times as much."""
    *rest, last = params["critic"]
    return {**params, "critic": [*rest, {name: array * np.float32(scale) for name, array in last.items()}]}
