"""Training on from a good policy without forgetting it.

Plain PPO loses a policy that was tuned rather than trained: its critic still values the policy from before, its
exploration noise is larger than what was tuned stands, and nothing holds it back. So the critic is fitted before the
actor moves, noise may start lower, and a penalty on the divergence from the policy with which training begins, the
reference, is annealed to a floor. What holds how well was measured (docs/results/training-on.md). It slows forgetting
and does not rule it out: the best policy on the way is chosen in whole episodes, the reference among them
(`ultra.evaluation.late_policies`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ultra.config import AnchorConfig
from ultra.policies.policy import Params, Policy, actor_critic, normalize
from ultra.ppo.guidance import LossTerm
from ultra.ppo.rollout import Rollout
from ultra.tasks.spaces import Continuous


@dataclass(frozen=True)
class Hold:
    """Constraints on one update; the default is plain PPO's."""

    critic_only: bool = False
    """Whether only the critic is fitted, with its own optimiser state."""
    loss: LossTerm | None = None
    """An additional term of the loss."""
    columns: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """(T, n, ...) by name: additional arrays that the term reads."""
    figures: dict[str, float] = field(default_factory=dict)
    """Metrics for the logs; names start with `keep/`."""


FREE = Hold()


class Anchor:
    """Anchors training to its initial policy.

    Args:
        policy: the initial policy; with its noise lowered, the reference of the penalty.
        config: strength of the anchor.
    """

    def __init__(self, policy: Policy, config: AnchorConfig) -> None:
        self.policy = with_less_noise(policy, config.noise)
        self._config = config
        self._reference = self.policy

    def weight(self, fraction: float) -> float:
        """Weight of the penalty at training progress `fraction` in [0, 1]."""
        config = self._config
        return config.weight * (config.floor + (1 - config.floor) * max(0.0, 1 - fraction / config.anneal_until))

    def hold(self, policy: Policy, rollout: Rollout, iteration: int, iterations: int) -> Hold:
        """The constraints on an update.

        Args:
            policy: before the update.
            rollout: samples of the update.
            iteration: number of the update, from 0.
            iterations: number of updates in all.
        """
        if iteration < self._config.critic_rollouts:
            return Hold(critic_only=True)
        weight = self.weight(iteration / iterations)
        if weight == 0:
            return FREE
        seen = rollout.observations.reshape(-1, rollout.observations.shape[-1])
        shape = rollout.rewards.shape
        reference, now = (_distribution(one, seen) for one in (self._reference, policy))
        columns = {f"reference_{name}": array.reshape(*shape, -1) for name, array in reference.items()}
        columns["anchor"] = np.full(shape, weight, np.float32)
        divergence = float(np.mean(_divergence(self._config.direction)(reference, now)))
        loss = penalty(self._config.direction)
        return Hold(loss=loss, columns=columns, figures={"keep/weight": weight, "keep/divergence": divergence})


def with_less_noise(policy: Policy, most: float) -> Policy:
    """The policy with a standard deviation of at most `most` half ranges in each continuous action.

    Its most likely actions stay the same. Discrete actions keep their probabilities.
    """
    space = policy.architecture.action_space
    if not isinstance(space, Continuous):
        return policy
    highest = np.log(most * space.half_range).astype(np.float32)
    log_std = np.minimum(np.asarray(policy.params["log_std"]), highest)
    return replace(policy, params={**policy.params, "log_std": jnp.asarray(log_std)})


def kl_divergence(p: Mapping[str, jax.Array], q: Mapping[str, jax.Array]) -> jax.Array:
    """KL(p || q) (k,) of action distributions, each given by its `outputs` (k, size) and, if Gaussian, `log_std`."""
    if "log_std" not in p:
        ours, theirs = jax.nn.log_softmax(p["outputs"]), jax.nn.log_softmax(q["outputs"])
        result: jax.Array = (jnp.exp(ours) * (ours - theirs)).sum(axis=-1)
        return result
    gap = p["outputs"] - q["outputs"]
    spread = jnp.exp(2 * p["log_std"]) + gap**2
    terms = q["log_std"] - p["log_std"] + 0.5 * spread * jnp.exp(-2 * q["log_std"]) - 0.5
    total: jax.Array = terms.sum(axis=-1)
    return total


@cache
def penalty(direction: str) -> LossTerm:
    """The weighted divergence between the reference and the policy that learns, averaged over a minibatch."""

    def loss(params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        ours = {"outputs": batch["outputs"]}
        if "log_std" in params:
            ours["log_std"] = params["log_std"]
        reference = {name: batch[f"reference_{name}"] for name in ours}
        pair = (reference, ours) if direction == "reference" else (ours, reference)
        return jnp.mean(batch["anchor"] * kl_divergence(*pair))

    return loss


@cache
def _divergence(direction: str) -> Any:
    return jax.jit(kl_divergence if direction == "reference" else lambda p, q: kl_divergence(q, p))


@cache
def _outputs_function() -> Any:
    return jax.jit(lambda params, arrays, observations: actor_critic(params, normalize(arrays, observations))[0])


def _distribution(policy: Policy, observations: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    """A policy's action distributions at observations (k, observation_size), as `kl_divergence` takes them."""
    outputs = np.asarray(_outputs_function()(policy.params, policy.normalizer.arrays(), observations))
    if "log_std" not in policy.params:
        return {"outputs": outputs}
    log_std = np.asarray(policy.params["log_std"])
    return {"outputs": outputs, "log_std": np.broadcast_to(log_std, (len(outputs), len(log_std)))}


@cache
def both(first: LossTerm | None, second: LossTerm | None) -> LossTerm | None:
    """The sum of two terms of the loss; the same object for the same terms, because each is compiled."""
    if first is None or second is None:
        return first or second
    return lambda params, batch: first(params, batch) + second(params, batch)
