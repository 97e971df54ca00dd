"""Stage 1: collect trajectories of the policy, with sampled actions as in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.collection.trajectories import Trajectory
from ultra.policies.policy import Decision, Policy
from ultra.programs.compiled import Controller
from ultra.simulation.branches import Branch, simulate
from ultra.tasks.batch import Batch, Observations, Snapshot, Step
from ultra.tasks.spaces import Actions
from ultra.tasks.task import Task


class _Recorder:
    """Records every step of every branch."""

    def __init__(self, policy: Policy, jobs: int, every: int, progress: Callable[[int], None]) -> None:
        self._progress = progress
        self._steps = 0
        self._scale = policy.normalizer.reward_scale
        self._every = every
        self.rows: list[dict[str, list[Any]]] = [
            {"observations": [], "facts": [], "actions": [], "rewards": [], "values": [], "log_probs": []}
            for _ in range(jobs)
        ]
        self.ends: list[tuple[bool, Any, Any]] = [(False, None, None)] * jobs
        self.snapshots: list[list[tuple[int, Snapshot]]] = [[] for _ in range(jobs)]
        self._facts: NDArray[np.float64] | None = None

    def before(self, jobs: NDArray[np.int64], clocks: NDArray[np.int64], batch: Batch) -> None:
        due = np.flatnonzero((jobs >= 0) & (clocks % self._every == 0))
        for slot, state in zip(due, batch.snapshots(due), strict=True):
            self.snapshots[jobs[slot]].append((int(clocks[slot]), state))
        self._facts = batch.facts()

    def after(
        self,
        jobs: NDArray[np.int64],
        observations: Observations,
        decision: Decision,
        done: Actions,
        step: Step,
        batch: Batch,
    ) -> None:
        assert self._facts is not None
        facts = batch.facts()
        for slot in np.flatnonzero(jobs >= 0):
            rows = self.rows[jobs[slot]]
            rows["observations"].append(observations[slot])
            rows["facts"].append(self._facts[slot])
            rows["actions"].append(done[slot])
            rows["rewards"].append(step.rewards[slot])
            rows["values"].append(decision.values[slot] * self._scale)
            rows["log_probs"].append(decision.log_probs[slot])
            self.ends[jobs[slot]] = (bool(step.terminated[slot]), step.observations[slot], facts[slot])
            self._steps += 1
        self._progress(self._steps)


def collect_within(
    task: Task,
    policy: Policy,
    rng: np.random.Generator,
    gamma: float,
    allowance: int,
    *,
    most: int,
    workers: int = 0,
    progress: Callable[[int], None] = lambda steps: None,
) -> list[Trajectory]:
    """Play as many whole episodes as fit into an allowance of steps.

    Each wave plays as many as are sure to fit. The last episode may be cut off; none is begun with less than the
    mean length of an episode left.

    Args:
        task: environment to play in.
        policy: acts, with sampled actions.
        rng: draws the episodes' seeds.
        gamma: discount of the value estimates.
        allowance: environment steps.
        most: largest number of episodes.
        workers: cores for stepping; 0 uses all.
        progress: called with the number of steps so far.
    """
    trajectories: list[Trajectory] = []
    spent = 0
    while len(trajectories) < most and allowance - spent >= spent / max(1, len(trajectories)):
        left = max(1, allowance - spent)
        count = min(most - len(trajectories), max(1, left // task.time_limit))
        seeds = rng.integers(2**31, size=count).tolist()

        def tell(steps: int, before: int = spent) -> None:
            progress(before + steps)

        trajectories += collect(task, policy, seeds, gamma, longest=left, workers=workers, progress=tell)
        spent = sum(map(len, trajectories))
    return trajectories


def collect(
    task: Task,
    policy: Policy,
    seeds: list[int],
    gamma: float,
    *,
    longest: int | None = None,
    controller: Controller | None = None,
    deterministic: bool = False,
    workers: int = 0,
    progress: Callable[[int], None] = lambda steps: None,
) -> list[Trajectory]:
    """Play episodes and record everything.

    Every episode is played to its end, so that short ones are not over-represented.

    Args:
        task: environment to play in.
        policy: acts, with sampled actions unless `deterministic`.
        seeds: one for each episode, for the environment's reset and the policy's noise (independent streams).
        gamma: discount of the value estimates.
        longest: largest length of an episode in steps; longer ones are truncated.
        controller: program to follow on top of the policy.
        deterministic: whether the policy takes its most likely actions.
        workers: cores for stepping; 0 uses all.
        progress: called with the number of steps so far.

    Returns:
        The trajectories, in the order of the seeds.
    """
    most = min(task.time_limit, longest or task.time_limit)
    branches = [Branch(noise_seed=seed, steps=most, reset_seed=seed, controller=controller) for seed in seeds]
    batch = task.make_batch(min(len(seeds), 32), workers or None)
    recorder = _Recorder(policy, len(seeds), task.snapshot_every, progress)
    try:
        simulate(batch, policy, branches, gamma, deterministic=deterministic, watcher=recorder)
    finally:
        batch.close()
    trajectories = []
    for seed, rows, (terminated, observation, facts), states in zip(
        seeds, recorder.rows, recorder.ends, recorder.snapshots, strict=True
    ):
        last = 0.0 if terminated else float(policy.values(observation[None])[0])
        trajectories.append(
            Trajectory(
                observations=np.stack([*rows["observations"], observation]),
                facts=np.stack([*rows["facts"], facts]),
                actions=np.stack(rows["actions"]),
                rewards=np.array(rows["rewards"]),
                values=np.array([*rows["values"], last]),
                log_probs=np.array(rows["log_probs"], np.float32),
                terminated=terminated,
                truncated=not terminated,
                seed=seed,
                snapshots=tuple(states),
                most_likely=most_likely_actions(policy, rows["observations"]),
            )
        )
    return trajectories


TOGETHER = 512
"""Observations in one forward pass; images are large."""


def most_likely_actions(policy: Policy, observations: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The policy's most likely actions, (T,) or (T, dim)."""
    parts = []
    for start in range(0, len(observations), TOGETHER):
        part = np.stack(observations[start : start + TOGETHER])
        short = TOGETHER - len(part)  # compiled once, for one shape
        padded = np.concatenate([part, np.repeat(part[-1:], short, axis=0)]) if short else part
        quiet = np.zeros((TOGETHER, policy.architecture.action_space.size), np.float32)
        parts.append(policy.decide(padded, quiet).actions[: len(part)])
    return np.concatenate(parts)
