"""MuJoCo tasks in batches on `mujoco.rollout`: states are arrays, snapshots are their rows.

Observation, reward and termination follow Gymnasium's v5 environments and are tested against them
step by step. `rollout` starts every call from zero warm start, so that a step depends on the state
alone; Gymnasium carries the solver's warm start over, which makes single steps differ within the
solver's tolerance. Final evaluation always runs in Gymnasium's own environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

from ultra.tasks.batch import Facts, Indices, Live, Observations, Snapshot, Step
from ultra.tasks.ground import PlanarFeet, feet_of
from ultra.tasks.physics import log_warnings
from ultra.tasks.simulators import Simulators
from ultra.tasks.spaces import Actions

Array = NDArray[np.float64]

log_warnings()


@dataclass(frozen=True)
class Physics:
    """One Gymnasium MuJoCo environment as vectorised functions; n is the number of environments."""

    env_id: str
    observe: Callable[[Array, Array], Array]
    """(qpos (n, nq), qvel (n, nv)) -> observations (n, observation_size)."""
    reward: Callable[[Array, Array, Array, float], Array]
    """(qpos before, qpos after, actions, seconds per step) -> rewards (n,), without `alive`."""
    healthy: Callable[[Array, Array], NDArray[np.bool_]] | None
    """(qpos, qvel) -> (n,), or None if the task never terminates."""
    alive: float
    """Reward for each healthy step."""
    start: Callable[[np.random.Generator, Array, Array], tuple[Array, Array]]
    """(rng, initial qpos, initial qvel) -> the state that Gymnasium's reset draws from this generator."""
    facts: Callable[[Array, Array], Array]
    """(qpos, qvel) -> (n, n_facts)."""

    def environment_facts(self, environments: Sequence[gymnasium.Env[Any, Any]], observations: Observations) -> Facts:
        """Facts (n, n_facts) of Gymnasium's own environments."""
        data: list[Any] = [env.unwrapped.data for env in environments]  # type: ignore[attr-defined]
        return self.facts(np.stack([item.qpos for item in data]), np.stack([item.qvel for item in data]))


class MujocoBatch:
    """Environments of one MuJoCo task, stepped on `threads` threads."""

    def __init__(self, physics: Physics, size: int, threads: int | None = None) -> None:
        env = gymnasium.make(physics.env_id)
        base = env.unwrapped
        assert isinstance(base, MujocoEnv)
        assert env.spec is not None and env.spec.max_episode_steps is not None
        self._physics = physics
        self._model = base.model
        self._frame_skip = base.frame_skip
        self._seconds = float(base.dt)
        self._time_limit = env.spec.max_episode_steps
        self._initial = (base.init_qpos.copy(), base.init_qvel.copy())
        env.close()
        self._simulators = Simulators(self._model, min(size, threads or os.cpu_count() or 1))
        full = mujoco.mjtState.mjSTATE_FULLPHYSICS
        self._states = np.zeros((size, mujoco.mj_stateSize(self._model, full)))
        self._qpos = self._states[:, 1 : 1 + self._model.nq]
        self._qvel = self._states[:, 1 + self._model.nq : 1 + self._model.nq + self._model.nv]
        self._trace = np.zeros((size, self._frame_skip, self._states.shape[1]))
        self._control = np.zeros((size, self._frame_skip, self._model.nu))
        self._clock = np.zeros(size, dtype=np.int64)

    @property
    def size(self) -> int:
        """Number of environments."""
        return len(self._states)

    def _observe(self, indices: Indices | slice = slice(None)) -> Observations:
        observations = self._physics.observe(self._qpos[indices], self._qvel[indices])
        return observations.astype(np.float32)

    def reset(self, indices: Indices, seeds: Sequence[int]) -> Observations:
        """Start new episodes in the states that Gymnasium's `reset(seed=...)` gives."""
        self._states[indices] = 0.0
        self._clock[indices] = 0
        for index, seed in zip(indices, seeds, strict=True):
            generator = np.random.default_rng(seed)  # the one that Gymnasium seeds, not a stream of ours
            self._qpos[index], self._qvel[index] = self._physics.start(generator, *self._initial)
        return self._observe(indices)

    def step(self, actions: Actions, live: Live = None) -> Step:
        """Step the environments by `frame_skip` physics steps."""
        before = self._qpos.copy()
        rows = slice(None) if live is None or live.all() else np.flatnonzero(live)
        states = self._states[rows]
        control, trace = self._control[: len(states)], self._trace[: len(states)]
        control[:] = actions[rows, None, :]
        self._simulators.step(states, control, trace)
        self._states[rows] = trace[:, -1]
        self._clock[rows] += 1
        qpos, qvel = self._qpos, self._qvel
        rewards = self._physics.reward(before, qpos, np.asarray(actions, np.float64), self._seconds)
        terminated = np.zeros(self.size, dtype=np.bool_)
        if self._physics.healthy is not None:
            healthy = self._physics.healthy(qpos, qvel)
            rewards = rewards + self._physics.alive * healthy
            terminated = ~healthy
        return Step(self._observe(), rewards, terminated, self._clock >= self._time_limit)

    def facts(self) -> Facts:
        """The named quantities of the current states, computed from positions and velocities."""
        return self._physics.facts(self._qpos, self._qvel)

    def snapshots(self, indices: Indices) -> list[Snapshot]:
        """Full physics states, each followed by its time-limit counter."""
        return [np.append(self._states[i], float(self._clock[i])).tobytes() for i in indices]

    def restore(self, indices: Indices, snapshots: Sequence[Snapshot]) -> Observations:
        """Put saved physics states and counters back."""
        if len(snapshots):
            rows = np.frombuffer(b"".join(snapshots)).reshape(len(snapshots), -1)
            self._states[indices] = rows[:, :-1]
            self._clock[indices] = rows[:, -1].astype(np.int64)
        return self._observe(indices)

    def restart_clock(self, indices: Indices) -> None:
        """Give some environments a full time limit again."""
        self._clock[indices] = 0

    def close(self) -> None:
        """Stop the threads."""
        self._simulators.close()


@cache
def _feet(env_id: str) -> PlanarFeet:
    """Where the feet of a walker are."""
    env = gymnasium.make(env_id)
    base = env.unwrapped
    assert isinstance(base, MujocoEnv)
    found = PlanarFeet(base.model, feet_of(base.model))
    env.close()
    return found


def _walker_facts(env_id: str) -> Callable[[Array, Array], Array]:
    """Positions, velocities, and the feet's heights and contacts."""

    def facts(qpos: Array, qvel: Array) -> Array:
        return np.concatenate([qpos, qvel, _feet(env_id).facts(qpos)], axis=1)

    return facts


def _forward_reward(control_cost: float) -> Callable[[Array, Array, Array, float], Array]:
    def reward(before: Array, after: Array, actions: Array, seconds: float) -> Array:
        velocity = (after[:, 0] - before[:, 0]) / seconds
        result: Array = velocity - control_cost * np.square(actions).sum(axis=1)
        return result

    return reward


def _uniform_start(noise: float) -> Callable[[np.random.Generator, Array, Array], tuple[Array, Array]]:
    def start(rng: np.random.Generator, qpos: Array, qvel: Array) -> tuple[Array, Array]:
        position = qpos + rng.uniform(-noise, noise, size=len(qpos))
        return position, qvel + rng.uniform(-noise, noise, size=len(qvel))

    return start


def _walker_observation(qpos: Array, qvel: Array) -> Array:
    return np.concatenate([qpos[:, 1:], np.minimum(np.maximum(qvel, -10), 10)], axis=1)


def _hopper_healthy(qpos: Array, qvel: Array) -> NDArray[np.bool_]:
    rest = np.concatenate([qpos[:, 2:], qvel], axis=1)
    inside = (np.abs(rest) < 100.0).all(axis=1)
    result: NDArray[np.bool_] = inside & (qpos[:, 1] > 0.7) & (np.abs(qpos[:, 2]) < 0.2)
    return result


HOPPER = Physics(
    env_id="Hopper-v5",
    observe=_walker_observation,
    reward=_forward_reward(1e-3),
    healthy=_hopper_healthy,
    alive=1.0,
    start=_uniform_start(5e-3),
    facts=_walker_facts("Hopper-v5"),
)


def _walker2d_healthy(qpos: Array, qvel: Array) -> NDArray[np.bool_]:
    height, pitch = qpos[:, 1], qpos[:, 2]
    result: NDArray[np.bool_] = (height > 0.8) & (height < 2.0) & (np.abs(pitch) < 1.0)
    return result


WALKER2D = Physics(
    env_id="Walker2d-v5",
    observe=_walker_observation,
    reward=_forward_reward(1e-3),
    healthy=_walker2d_healthy,
    alive=1.0,
    start=_uniform_start(5e-3),
    facts=_walker_facts("Walker2d-v5"),
)


def _halfcheetah_observation(qpos: Array, qvel: Array) -> Array:
    return np.concatenate([qpos[:, 1:], qvel], axis=1)


def _halfcheetah_start(rng: np.random.Generator, qpos: Array, qvel: Array) -> tuple[Array, Array]:
    position = qpos + rng.uniform(-0.1, 0.1, size=len(qpos))
    return position, qvel + 0.1 * rng.standard_normal(len(qvel))


HALFCHEETAH = Physics(
    env_id="HalfCheetah-v5",
    observe=_halfcheetah_observation,
    reward=_forward_reward(0.1),
    healthy=None,
    alive=0.0,
    start=_halfcheetah_start,
    facts=_walker_facts("HalfCheetah-v5"),
)

# Lengths of Reacher's links in metres: from the base to the elbow, from the elbow to the fingertip.
_UPPER, _LOWER = 0.1, 0.11


def _fingertip(qpos: Array) -> Array:
    """Fingertip positions (n, 2) in metres.

    Gymnasium reads them from the integrator's last stage, a state that no snapshot holds. Computed
    from the state itself they differ by less than 1e-5 m, but where the elbow runs into its stop
    (within 0.1 rad of it) by up to 1.3 cm.
    """
    first, both = qpos[:, 0], qpos[:, 0] + qpos[:, 1]
    x = _UPPER * np.cos(first) + _LOWER * np.cos(both)
    y = _UPPER * np.sin(first) + _LOWER * np.sin(both)
    return np.stack([x, y], axis=1)


def _reacher_observation(qpos: Array, qvel: Array) -> Array:
    angles, target = qpos[:, :2], qpos[:, 2:]
    gap = _fingertip(qpos) - target
    return np.concatenate([np.cos(angles), np.sin(angles), target, qvel[:, :2], gap], axis=1)


def _reacher_reward(before: Array, after: Array, actions: Array, seconds: float) -> Array:
    gap = np.linalg.norm(_fingertip(after) - after[:, 2:], axis=1)
    result: Array = -gap - np.square(actions).sum(axis=1)
    return result


def _reacher_start(rng: np.random.Generator, qpos: Array, qvel: Array) -> tuple[Array, Array]:
    position = rng.uniform(-0.1, 0.1, size=len(qpos)) + qpos
    goal = rng.uniform(-0.2, 0.2, size=2)
    while np.linalg.norm(goal) >= 0.2:
        goal = rng.uniform(-0.2, 0.2, size=2)
    position[-2:] = goal
    velocity = qvel + rng.uniform(-0.005, 0.005, size=len(qvel))
    velocity[-2:] = 0.0
    return position, velocity


def _reacher_facts(qpos: Array, qvel: Array) -> Array:
    tip, target = _fingertip(qpos), qpos[:, 2:]
    distance = np.linalg.norm(tip - target, axis=1, keepdims=True)
    return np.concatenate([qpos[:, :2], qvel[:, :2], tip, target, distance], axis=1)


REACHER = Physics(
    env_id="Reacher-v5",
    observe=_reacher_observation,
    reward=_reacher_reward,
    healthy=None,
    alive=0.0,
    start=_reacher_start,
    facts=_reacher_facts,
)
