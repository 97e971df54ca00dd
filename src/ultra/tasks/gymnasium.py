"""Any Gymnasium environment as a batch, one after the other in one process.

Snapshots are the seed and the actions since the reset; restoring replays them. That is exact for
every environment whose randomness comes from its seed, and slow for late states.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ultra.errors import UltraError
from ultra.spaces import Actions
from ultra.tasks.batch import Facts, Indices, Observations, Snapshot, Step

TIME_LIMIT = 10_000
"""Steps after which episodes are truncated where the environment sets no limit of its own."""

_HEAD = struct.Struct("<3q")
"""What a snapshot begins with: seed, number of actions, step at which the clock last restarted."""


def is_registered(env_id: str) -> bool:
    """Whether Gymnasium knows an id; `module:id` imports the module first, as Gymnasium does.

    Raises:
        UltraError: if the module cannot be imported.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except (ImportError, TypeError, ValueError) as error:
            raise UltraError(f"cannot import {module!r}, which should register {name!r}: {error}") from error
    return name in gymnasium.registry


def make_environment(env_id: str) -> gymnasium.Env[Any, Any]:
    """Make the environment with its observation flattened to one dimension, and a time limit in any case.

    Raises:
        UltraError: if the environment cannot be made; the message gives its own reason and remedy.
    """
    try:
        env = gymnasium.make(env_id)
    except Exception as error:  # the environment's own code may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UltraError(f"cannot make {env_id}: {reason}") from error
    if env.spec is None or env.spec.max_episode_steps is None:
        env = gymnasium.wrappers.TimeLimit(env, TIME_LIMIT)
    return gymnasium.wrappers.FlattenObservation(env)


@dataclass
class _Episode:
    """What an episode is replayed from."""

    seed: int = 0
    actions: list[Any] = field(default_factory=list)
    restarted: int = 0
    """Step at which the clock was last given a full time limit again."""


class GymnasiumBatch:
    """Environments that `make` makes; facts are the entries of the observation."""

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], size: int) -> None:
        self._envs = [make() for _ in range(size)]
        self._space = self._envs[0].action_space
        shape = self._envs[0].observation_space.shape
        assert shape is not None
        self._observations = np.zeros((size, *shape), dtype=np.float32)
        self._episodes = [_Episode() for _ in range(size)]

    @property
    def size(self) -> int:
        """Number of environments."""
        return len(self._envs)

    def reset(self, indices: Indices, seeds: Sequence[int]) -> Observations:
        """Start new episodes with `reset(seed=...)`."""
        for index, seed in zip(indices, seeds, strict=True):
            self._observations[index] = self._envs[index].reset(seed=int(seed))[0]
            self._episodes[index] = _Episode(int(seed))
        return self._observations[indices]

    def step(self, actions: Actions) -> Step:
        """Step every environment once."""
        rewards = np.zeros(self.size)
        terminated = np.zeros(self.size, dtype=np.bool_)
        truncated = np.zeros(self.size, dtype=np.bool_)
        for index, action in enumerate(self._own(actions)):
            rewards[index], terminated[index], truncated[index] = self._act(index, action)
        return Step(self._observations.copy(), rewards, terminated, truncated & ~terminated)

    def _own(self, actions: Actions) -> NDArray[Any]:
        """Actions as the environments' own type, in an array of their own: the caller's may change later."""
        own = np.array(actions, dtype=self._space.dtype)
        if isinstance(self._space, gymnasium.spaces.Box):
            # Bounds rounded to single precision may lie just outside those in double precision.
            np.clip(own, self._space.low, self._space.high, out=own)
        return own

    def _act(self, index: int, action: Any) -> tuple[float, bool, bool]:
        """Step one environment; returns reward, terminated and truncated."""
        self._episodes[index].actions.append(action)
        # A copy, because an environment may write into the action that it is given.
        self._observations[index], reward, terminated, truncated, _ = self._envs[index].step(action.copy())
        return float(reward), terminated, truncated

    def facts(self) -> Facts:
        """The entries of the observations."""
        return self._observations.astype(np.float64)

    def snapshots(self, indices: Indices) -> list[Snapshot]:
        """Seed, actions since the reset, and when the clock restarted."""
        episodes = [self._episodes[index] for index in indices]
        return [
            _HEAD.pack(episode.seed, len(episode.actions), episode.restarted) + np.array(episode.actions).tobytes()
            for episode in episodes
        ]

    def restore(self, indices: Indices, snapshots: Sequence[Snapshot]) -> Observations:
        """Reset with the saved seed and replay the saved actions."""
        for index, snapshot in zip(indices, snapshots, strict=True):
            seed, count, restarted = _HEAD.unpack_from(snapshot)
            self.reset([index], [seed])
            flat = np.frombuffer(snapshot, self._space.dtype, offset=_HEAD.size)
            actions = flat.reshape(count, *(self._space.shape or ()))
            for action in actions[:restarted]:
                self._act(index, action)
            self.restart_clock([index])
            for action in actions[restarted:]:
                self._act(index, action)
        return self._observations[indices]

    def restart_clock(self, indices: Indices) -> None:
        """Give some environments a full time limit again."""
        for index in indices:
            self._episodes[index].restarted = len(self._episodes[index].actions)
            env: Any = self._envs[index]
            while isinstance(env, gymnasium.Wrapper):
                if hasattr(env, "_elapsed_steps"):  # Gymnasium's TimeLimit
                    env._elapsed_steps = 0
                env = env.env

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            env.close()
