"""RICE (Cheng et al., arXiv 2405.03064): episodes from critical states, and a bonus for new ones.

With probability 1 and no bonus it is StateMask-R; with states drawn at random, its control.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.finetuning.novelty import Novelty
from ultra.policies.policy import Policy
from ultra.ppo.guidance import NoGuidance
from ultra.tasks.batch import Facts, Indices, Snapshot, Step
from ultra.tasks.spaces import Actions


class RiceGuidance(NoGuidance):
    """Lets episodes start from given states and adds an exploration bonus.

    Args:
        starts: snapshots to start from.
        probability: that an episode starts from one of them; with 0 and no bonus it is plain PPO.
        bonus: scale of the bonus on the observation after each step.
        novelty: computes the bonus; None is fine for a scale of 0.
        rng: source of the guidance's randomness, apart from training's.
    """

    def __init__(
        self,
        starts: Sequence[Snapshot],
        probability: float,
        bonus: float,
        novelty: Novelty | None,
        rng: np.random.Generator,
    ) -> None:
        self._starts, self._probability, self._rng = list(starts), probability, rng
        self._scale = bonus
        self._novelty = novelty if bonus > 0 else None
        self._queue: list[int] = []
        self._bonus: NDArray[np.float64] = np.zeros(1)
        self._counts = np.zeros(4)

    def progress(self, fraction: float, policy: Policy) -> None:
        """Train the predictor on the observations of the last rollout."""
        if self._novelty is not None:
            self._novelty.learn()

    def start(self, indices: Indices) -> list[Snapshot | None]:
        """Each episode starts from the next of the states, in random order, or from the task's own start."""
        starts: list[Snapshot | None] = []
        for _ in indices:
            moved = bool(self._starts) and self._rng.random() < self._probability
            if moved and not self._queue:
                self._queue = self._rng.permutation(len(self._starts)).tolist()
            starts.append(self._starts[self._queue.pop()] if moved else None)
        self._counts[:2] += (len(starts), sum(start is not None for start in starts))
        return starts

    def observe(self, step: Step, facts: Facts | None) -> None:
        """Compute the bonus of the observations after the step."""
        if self._novelty is not None:
            self._bonus = self._novelty.bonus(step.observations)
            self._counts[2:] += (len(self._bonus), self._bonus.sum())

    def reward(self, facts: Facts | None, actions: Actions, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """The task's rewards plus the bonus."""
        return rewards if self._novelty is None else rewards + self._scale * self._bonus

    def metrics(self) -> dict[str, float]:
        """The share of episodes that started elsewhere, and the mean bonus before scaling."""
        episodes, moved, steps, bonus = self._counts
        self._counts = np.zeros(4)
        return {
            "guidance/moved_starts": moved / episodes if episodes else 0.0,
            "guidance/bonus": bonus / steps if steps else 0.0,
        }

    def state(self) -> dict[str, Any]:
        """The states still to come, the random generator, and the novelty's networks."""
        return {
            "queue": self._queue,
            "rng": self._rng.bit_generator.state,
            "novelty": self._novelty.state() if self._novelty is not None else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self._queue = list(state["queue"])
        self._rng.bit_generator.state = state["rng"]
        if self._novelty is not None:
            self._novelty.load_state(state["novelty"])
