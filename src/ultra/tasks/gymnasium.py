"""Any Gymnasium environment as a batch, one after the other in one process.

Snapshots are the seed and the actions since the reset; restoring replays them. That is exact for
every environment whose randomness comes from its seed, and slow for late states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

from ultra.spaces import Actions
from ultra.tasks.batch import Facts, Indices, Observations, Snapshot, Step


def make_environment(env_id: str) -> gymnasium.Env[Any, Any]:
    """Make the environment with its observation flattened to one dimension."""
    return gymnasium.wrappers.FlattenObservation(gymnasium.make(env_id))


class GymnasiumBatch:
    """Environments that `make` makes; facts are the entries of the observation."""

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], size: int) -> None:
        self._envs = [make() for _ in range(size)]
        shape = self._envs[0].observation_space.shape
        assert shape is not None
        self._observations = np.zeros((size, *shape), dtype=np.float32)
        self._history: list[tuple[int, list[Any]]] = [(0, []) for _ in range(size)]

    @property
    def size(self) -> int:
        """Number of environments."""
        return len(self._envs)

    def reset(self, indices: Indices, seeds: Sequence[int]) -> Observations:
        """Start new episodes with `reset(seed=...)`."""
        for index, seed in zip(indices, seeds, strict=True):
            self._observations[index] = self._envs[index].reset(seed=int(seed))[0]
            self._history[index] = (int(seed), [])
        return self._observations[indices]

    def step(self, actions: Actions) -> Step:
        """Step every environment once."""
        rewards = np.zeros(self.size)
        terminated = np.zeros(self.size, dtype=np.bool_)
        truncated = np.zeros(self.size, dtype=np.bool_)
        for index, env in enumerate(self._envs):
            action = actions[index]
            self._observations[index], rewards[index], terminated[index], truncated[index], _ = env.step(action)
            self._history[index][1].append(action)
        return Step(self._observations.copy(), rewards, terminated, truncated & ~terminated)

    def facts(self) -> Facts:
        """The entries of the observations."""
        return self._observations.astype(np.float64)

    def snapshots(self, indices: Indices) -> list[Snapshot]:
        """Seed and actions since the reset."""
        return [
            np.array([self._history[i][0], len(self._history[i][1])]).tobytes()
            + np.asarray(self._history[i][1]).tobytes()
            for i in indices
        ]

    def restore(self, indices: Indices, snapshots: Sequence[Snapshot]) -> Observations:
        """Reset with the saved seed and replay the saved actions."""
        for index, snapshot in zip(indices, snapshots, strict=True):
            seed, count = np.frombuffer(snapshot[:16], dtype=np.int64)
            env = self._envs[index]
            self.reset([index], [int(seed)])
            space = env.action_space
            flat = np.frombuffer(snapshot[16:], dtype=space.dtype)
            for action in flat.reshape(int(count), *(space.shape or ())):
                self._observations[index] = env.step(action)[0]
                self._history[index][1].append(action)
        return self._observations[indices]

    def restart_clock(self, indices: Indices) -> None:
        """Give some environments a full time limit again."""
        for index in indices:
            env: Any = self._envs[index]
            while isinstance(env, gymnasium.Wrapper):
                if hasattr(env, "_elapsed_steps"):  # Gymnasium's TimeLimit
                    env._elapsed_steps = 0
                env = env.env

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            env.close()
