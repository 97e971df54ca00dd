"""Any Gymnasium environment as a batch, one after the other in one process.

Snapshots are the environment's state where that can be had, otherwise the seed and the actions since
the reset, which restoring replays: exact for every environment whose randomness comes from its seed,
and slow for late states.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import UltraError
from ultra.tasks.batch import Facts, Indices, Live, Observations, Snapshot, Step
from ultra.tasks.faults import Checked, check_finite
from ultra.tasks.physics import log_warnings
from ultra.tasks.sources import Reader
from ultra.tasks.spaces import Actions, Discrete, from_gymnasium
from ultra.tasks.states import put, take

TIME_LIMIT = 10_000
"""Steps after which episodes are truncated where the environment sets no limit of its own."""

_HOMES = {"ALE/": "ale_py", "MiniGrid-": "minigrid", "BabyAI-": "minigrid"}
"""Packages that register environments when they are imported, by the beginning of the ids."""

_HEAD = struct.Struct("<3q")
"""What a snapshot begins with: seed, number of actions, step at which the clock last restarted."""


def import_module(name: str, env_id: str) -> None:
    """Import the module, or the .py file, that registers an environment; the working directory counts.

    Raises:
        UltraError: if it cannot be imported.
    """
    path = Path(name)
    folder, module = (path.parent.resolve(), path.stem) if path.suffix == ".py" else (Path.cwd(), name)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # the module's own code may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UltraError(f"cannot import {name!r}, which should register {env_id!r}: {reason}") from error


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
    else:
        home = next((package for prefix, package in _HOMES.items() if name.startswith(prefix)), None)
        if home is not None:
            with contextlib.suppress(ImportError):  # then the id is unknown
                importlib.import_module(home)
    return name in gymnasium.registry


def similar_ids(name: str) -> list[str]:
    """Registered ids that may be meant by an unknown one: its other versions, or one that is written nearly so."""
    stem = name.rpartition("-v")[0] or name
    versions = [known for known in gymnasium.registry if known.rpartition("-v")[0].lower() == stem.lower()]
    return versions[-1:] or difflib.get_close_matches(name, gymnasium.registry, n=2, cutoff=0.8)


def make_environment(env_id: str, kwargs: Mapping[str, Any] | None = None) -> gymnasium.Env[Any, Any]:
    """Make the environment with its observation flattened to one dimension, and a time limit in any case.

    Parts of a Dict observation that are no numbers (texts) are left out.

    Args:
        env_id: as Gymnasium knows it.
        kwargs: arguments of the environment.

    Raises:
        UltraError: if the environment cannot be made; the message gives its own reason and remedy.
    """
    log_warnings()
    try:
        # Gymnasium's own checks warn in many lines; `Checked` looks for the same.
        checked = Checked(gymnasium.make(env_id, disable_env_checker=True, **(kwargs or {})))
    except (Exception, SystemExit) as error:  # the environment's own code may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UltraError(f"cannot make {env_id}: {reason}") from error
    env: gymnasium.Env[Any, Any] = checked
    if env.spec is None or env.spec.max_episode_steps is None:
        env = gymnasium.wrappers.TimeLimit(env, TIME_LIMIT)
    space = env.observation_space
    if isinstance(space, gymnasium.spaces.Dict):
        numeric = [key for key, part in space.spaces.items() if _is_numeric(part)]
        if numeric and len(numeric) < len(space.spaces):
            env = gymnasium.wrappers.FilterObservation(env, numeric)
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1:
        return env
    return gymnasium.wrappers.FlattenObservation(env)


def action_kind(space: gymnasium.Space[Any]) -> np.dtype[Any]:
    """The kind of numbers in the actions that an environment is given.

    A policy's actions in a `Box` are real numbers, also where the space says that they are whole: cut towards zero
    they would be other actions than those it was trained with (Stable-Baselines3 does not cut them either).
    """
    return np.result_type(np.float32, space.dtype) if isinstance(space, gymnasium.spaces.Box) else np.dtype(space.dtype)


def _is_numeric(space: gymnasium.Space[Any]) -> bool:
    """Whether values of a space can be flattened to numbers of a fixed count."""
    try:
        return not isinstance(space, gymnasium.spaces.Text) and gymnasium.spaces.flatdim(space) >= 0
    except (NotImplementedError, ValueError):
        return False


@dataclass
class _Episode:
    """What an episode is replayed from."""

    seed: int = 0
    actions: list[Any] = field(default_factory=list)
    restarted: int = 0
    """Step at which the clock was last given a full time limit again."""


class GymnasiumBatch:
    """Environments that `make` makes.

    Args:
        make: makes one.
        size: how many.
        readers: of the facts; none for the entries of the observation.
        snapshots: whether snapshots hold the environment's `state` or the actions that led to it (`replay`);
            `remake` also makes a new environment for each episode, for those whose resets leave traces.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env[Any, Any]],
        size: int,
        readers: Sequence[Reader] = (),
        snapshots: Literal["state", "replay", "remake"] = "replay",
    ) -> None:
        self._make, self._envs = make, [make() for _ in range(size)]
        self._readers, self._by_state, self._remade = readers, snapshots == "state", snapshots == "remake"
        self._space = self._envs[0].action_space
        self._kind = action_kind(self._space)
        known = from_gymnasium(self._space)
        self._parts = known if isinstance(known, Discrete) and known.parts else None
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
            if self._remade:
                self._envs[index].close()
                self._envs[index] = self._make()
            self._observations[index] = self._envs[index].reset(seed=int(seed))[0]
            check_finite(self._envs[index], "reset", self._observations[index])
            self._episodes[index] = _Episode(int(seed))
        return self._observations[indices]

    def step(self, actions: Actions, live: Live = None) -> Step:
        """Step the environments once."""
        rewards = np.zeros(self.size)
        terminated = np.zeros(self.size, dtype=np.bool_)
        truncated = np.zeros(self.size, dtype=np.bool_)
        own = self._own(actions)
        for index in range(self.size) if live is None else np.flatnonzero(live).tolist():
            action = own[index]
            rewards[index], terminated[index], truncated[index] = self._act(index, action)
        if not np.isfinite(self._observations).all():
            for env, observation in zip(self._envs, self._observations, strict=True):
                check_finite(env, "step", observation)
        return Step(self._observations.copy(), rewards, terminated, truncated & ~terminated)

    def _own(self, actions: Actions) -> NDArray[Any]:
        """Actions as the environments' own type, in an array of their own: the caller's may change later."""
        own = np.array(self._parts.split(actions) if self._parts else actions, dtype=self._kind)
        if isinstance(self._space, gymnasium.spaces.Box):
            # Bounds rounded to single precision may lie just outside those in double precision.
            np.clip(own, self._space.low, self._space.high, out=own)
        return own

    def _act(self, index: int, action: Any) -> tuple[float, bool, bool]:
        """Step one environment; returns reward, terminated and truncated."""
        if not self._by_state:
            self._episodes[index].actions.append(action)
        # A copy, because an environment may write into the action that it is given.
        self._observations[index], reward, terminated, truncated, _ = self._envs[index].step(action.copy())
        return float(reward), terminated, truncated

    def facts(self) -> Facts:
        """What the readers find, or the entries of the observations."""
        if not self._readers:
            return self._observations.astype(np.float64)
        return np.column_stack([reader(self._envs, self._observations) for reader in self._readers])

    def snapshots(self, indices: Indices) -> list[Snapshot]:
        """Observation and state; or seed, actions since the reset, and when the clock restarted."""
        if self._by_state:
            return [self._observations[index].tobytes() + take(self._envs[index]) for index in indices]
        episodes = [self._episodes[index] for index in indices]
        return [
            _HEAD.pack(episode.seed, len(episode.actions), episode.restarted) + np.array(episode.actions).tobytes()
            for episode in episodes
        ]

    def restore(self, indices: Indices, snapshots: Sequence[Snapshot]) -> Observations:
        """Put the saved state back; or reset with the saved seed and replay the saved actions."""
        if self._by_state:
            width = self._observations[0].nbytes
            for index, snapshot in zip(indices, snapshots, strict=True):
                self._observations[index] = np.frombuffer(snapshot[:width], np.float32)
                put(self._envs[index], snapshot[width:])
            return self._observations[indices]
        for index, snapshot in zip(indices, snapshots, strict=True):
            seed, count, restarted = _HEAD.unpack_from(snapshot)
            self.reset([index], [seed])
            flat = np.frombuffer(snapshot, self._kind, offset=_HEAD.size)
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
            with contextlib.suppress(Exception):  # nothing depends on it any more
                env.close()
