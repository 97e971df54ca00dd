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
    """(n,) or (n, dim): what is executed."""
    replaced: NDArray[np.bool_]
    """(n,): where that is not the policy's own choice."""
    weights: NDArray[np.float32]
    """(n,): how much the executed action is worth imitating, 0 to 1; for the loss term."""

    @classmethod
    def none(cls, actions: Actions) -> Intervention:
        """The policy's own actions, everywhere."""
        return cls(actions, np.zeros(len(actions), np.bool_), np.zeros(len(actions), np.float32))


class Guidance(Protocol):
    """Modulates training. With no guidance the loop is plain PPO, bit for bit."""

    @property
    def needs_facts(self) -> bool:
        """Whether `act`, `observe` and `reward` look at facts; they are not computed otherwise."""
        ...

    @property
    def drops_replaced(self) -> bool:
        """Whether replaced steps are left out of the surrogate and cut the lambda-return."""
        ...

    @property
    def loss(self) -> LossTerm | None:
        """A further term of the loss, or None. The same object throughout a training."""
        ...

    def progress(self, fraction: float, policy: Policy) -> None:
        """Told before each rollout which share of training is over, and the policy as it is."""
        ...

    def start(self, indices: Indices) -> list[Snapshot | None]:
        """Episodes are starting: for each, a snapshot to start from, or None for the task's own start."""
        ...

    def act(self, observations: Observations, facts: Facts | None, actions: Actions) -> Intervention:
        """May replace the policy's actions for these states; they are moved inside their bounds afterwards."""
        ...

    def observe(self, step: Step, facts: Facts | None) -> None:
        """Told what the step led to, before `reward`; where an episode ended, its last state.

        Args:
            step: of all environments, nothing reset yet.
            facts: of the states after the step.
        """
        ...

    def reward(self, facts: Facts | None, actions: Actions, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """May change the rewards of the step; `facts` are those of the states before it."""
        ...

    def metrics(self) -> dict[str, float]:
        """Figures since the last call, for the logs; names start with `guidance/`."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold to resume: plain JSON values."""
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
        """Nothing to learn from it."""

    def reward(self, facts: Facts | None, actions: Actions, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """The task's own rewards."""
        return rewards

    def metrics(self) -> dict[str, float]:
        """Nothing to tell."""
        return {}

    def state(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
