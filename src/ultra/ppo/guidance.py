"""The protocol of guidance: what a method may change in the one training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from numpy.typing import NDArray

from ultra.policies.policy import Params, Policy
from ultra.tasks.batch import Facts, Indices, Observations, Snapshot, Step
from ultra.tasks.spaces import Actions

LossTerm = Callable[[Params, Mapping[str, jax.Array]], jax.Array]
"""(params, minibatch) -> a scalar that is added to PPO's loss. The minibatch holds `observations`
(normalised), `actions`, `outputs` of the actor, `replaced` and `weights`, each with a leading axis, and the
columns of what the update is held to (`ultra.ppo.anchor`)."""


@dataclass(frozen=True)
class Intervention:
    """What guidance did to the actions of one step."""

    actions: Actions
    """(n,) or (n, dim): the executed actions."""
    replaced: NDArray[np.bool_]
    """(n,): where the policy's own action was overridden."""
    weights: NDArray[np.float32]
    """(n,): imitation weight of the executed action in [0, 1], for the loss term."""

    @classmethod
    def none(cls, actions: Actions) -> Intervention:
        """The policy's own actions, everywhere."""
        return cls(actions, np.zeros(len(actions), np.bool_), np.zeros(len(actions), np.float32))


class Guidance(Protocol):
    """Modulates training. With no guidance the loop is plain PPO, bit for bit."""

    @property
    def needs_facts(self) -> bool:
        """Whether `act`, `observe` and `reward` read facts; otherwise they are not computed."""
        ...

    @property
    def drops_replaced(self) -> bool:
        """Whether overridden steps are masked out of the surrogate and cut the lambda-return."""
        ...

    @property
    def loss(self) -> LossTerm | None:
        """An additional term of the loss, or None; the same object throughout training."""
        ...

    def progress(self, fraction: float, policy: Policy) -> None:
        """Called before each rollout with training progress in [0, 1] and the current policy."""
        ...

    def start(self, indices: Indices) -> list[Snapshot | None]:
        """Called when episodes start: for each, a snapshot to start from, or None for the task's own reset."""
        ...

    def act(self, observations: Observations, facts: Facts | None, actions: Actions) -> Intervention:
        """May override the policy's actions in these states; the result is clipped to the bounds afterwards."""
        ...

    def observe(self, step: Step, facts: Facts | None) -> None:
        """Called with the result of each step, before `reward`; where an episode ended, with its last state.

        Args:
            step: result for all environments, before any reset.
            facts: (n, n_facts) of the states after the step, or None.
        """
        ...

    def reward(self, facts: Facts | None, actions: Actions, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """May change the step's rewards; `facts` are of the states before it."""
        ...

    def metrics(self) -> dict[str, float]:
        """Metrics since the last call, for the logs; names start with `guidance/`."""
        ...

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, as plain JSON values."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        ...


class NoGuidance:
    """Changes nothing: plain PPO."""

    needs_facts = False
    drops_replaced = False
    loss: LossTerm | None = None

    def progress(self, fraction: float, policy: Policy) -> None:
        """Nothing to anneal."""

    def start(self, indices: Indices) -> list[Snapshot | None]:
        """The task's own starts."""
        return [None] * len(indices)

    def act(self, observations: Observations, facts: Facts | None, actions: Actions) -> Intervention:
        """The policy's own actions."""
        return Intervention.none(actions)

    def observe(self, step: Step, facts: Facts | None) -> None:
        """Ignored."""

    def reward(self, facts: Facts | None, actions: Actions, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """The task's own rewards."""
        return rewards

    def metrics(self) -> dict[str, float]:
        """No metrics."""
        return {}

    def state(self) -> dict[str, Any]:
        """No state."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
