"""Jump-start reinforcement learning (Uchendu et al., arXiv 2204.02372).

The guide is the policy to be refined, the explorer the copy that trains. In each episode the guide acts for the
first h steps, then the explorer; a curriculum lowers h as long as the return holds up.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.config import JSRLConfig
from ultra.policies.policy import Policy
from ultra.ppo.guidance import Intervention, NoGuidance
from ultra.tasks.batch import Facts, Indices, Observations, Snapshot
from ultra.tasks.spaces import Actions

EPISODES = 10
"""Fewest finished episodes in an evaluation of the return: with fewer, the best so far would be luck."""


class JSRLGuidance(NoGuidance):
    """Lets the guide act first. Its steps count against the budget and are masked out of PPO's update.

    Args:
        guide: policy that acts first, with sampled actions.
        config: settings; `guide` 0 gives plain PPO, bit for bit.
        environments: number of parallel environments.
        length: the guide's mean episode length in steps.
        rng: source of the guide's randomness, apart from training's.
    """

    drops_replaced = True

    def __init__(
        self,
        guide: Policy,
        config: JSRLConfig,
        environments: int,
        *,
        length: float,
        rng: np.random.Generator,
    ) -> None:
        self._guide, self._config, self._rng = guide, config, rng
        self._most = config.guide * length
        self._parts = config.stages
        self._best: float | None = None
        self._window: deque[float] = deque(maxlen=config.window)
        self._finished: list[float] = []
        self._limits = np.zeros(environments, dtype=np.int64)
        self._ages = np.zeros(environments, dtype=np.int64)
        self._returns = np.zeros(environments)
        self._counts = np.zeros(2)

    @property
    def _horizon(self) -> float:
        """The current curriculum's h in steps, before rounding."""
        return self._most * self._parts / self._config.stages

    def progress(self, fraction: float, policy: Policy) -> None:
        """Go on to the next curriculum stage if the moving average of returns holds up."""
        if len(self._finished) < EPISODES:
            return
        self._window.append(float(np.mean(self._finished)))
        self._finished = []
        average = float(np.mean(self._window))
        best = average if self._best is None else self._best
        if self._parts > 0 and average >= best - self._config.tolerance * abs(best):
            self._parts -= 1
        self._best = max(best, average)

    def start(self, indices: Indices) -> list[Snapshot | None]:
        """Record the returns of finished episodes; new ones begin with the task's own reset."""
        for index in indices:
            if self._ages[index]:
                self._finished.append(float(self._returns[index]))
            self._ages[index], self._returns[index] = 0, 0.0
            if self._config.horizon == "random":
                self._limits[index] = self._rng.integers(round(self._most) + 1)
            else:
                self._limits[index] = round(self._horizon)
        return [None] * len(indices)

    def act(self, observations: Observations, facts: Facts | None, actions: Actions) -> Intervention:
        """The guide's actions in the first h steps of each episode."""
        guided = self._ages < self._limits
        self._counts += (len(actions), guided.sum())
        if guided.any():
            noise = self._guide.draw_noise(self._rng, (len(actions),))
            own = self._guide.architecture.action_space.clip(self._guide.decide(observations, noise).actions)
            actions = np.where(guided.reshape(-1, *[1] * (actions.ndim - 1)), own, actions)
        return Intervention(actions, guided, np.zeros(len(actions), np.float32))

    def reward(self, facts: Facts | None, actions: Actions, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """The task's own rewards, summed up to returns."""
        self._ages += 1
        self._returns += rewards
        return rewards

    def metrics(self) -> dict[str, float]:
        """The guide's steps h, and the share of steps that it took."""
        steps, guided = self._counts
        self._counts = np.zeros(2)
        return {
            "guidance/guide_steps": self._horizon if self._config.horizon == "curriculum" else self._most / 2,
            "guidance/guided_share": guided / steps if steps else 0.0,
        }

    def state(self) -> dict[str, Any]:
        """The curriculum, episodes under way and the random generator."""
        return {
            "parts": self._parts,
            "best": self._best,
            "window": list(self._window),
            "finished": self._finished,
            "limits": self._limits.tolist(),
            "ages": self._ages.tolist(),
            "returns": self._returns.tolist(),
            "rng": self._rng.bit_generator.state,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self._parts, self._best = state["parts"], state["best"]
        self._window = deque(state["window"], maxlen=self._config.window)
        self._finished = list(state["finished"])
        self._limits[:] = state["limits"]
        self._ages[:] = state["ages"]
        self._returns[:] = state["returns"]
        self._rng.bit_generator.state = state["rng"]
