"""StateMask (Cheng et al., NeurIPS 2023) as RICE trains it (arXiv 2405.03064): which steps matter?

A mask network chooses at every step to keep the policy's action or to blind it: a random action takes
its place. It is trained by plain PPO to keep the return high while blinding as often as it can,

    R'(t) = R(t) + alpha if the step is blinded, else R(t).

The importance of a state is the probability with which the trained network keeps the action there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import UltraError
from ultra.common.streams import stream
from ultra.config import PPOConfig, StateMaskConfig
from ultra.policies.policy import Policy, create_policy, log_prob_function
from ultra.ppo.train import Iteration, train
from ultra.simulation.budget import StepBudget
from ultra.tasks.batch import Batch, Facts, Indices, Live, Observations, Snapshot, Step
from ultra.tasks.spaces import Actions, ActionSpace, Continuous, Discrete
from ultra.tasks.task import Task

KEEP, BLIND = 0, 1
"""The mask network's two actions."""


def random_action(space: ActionSpace, rng: np.random.Generator) -> Actions:
    """An action () or (dim,) drawn uniformly from its space."""
    if isinstance(space, Continuous):
        return rng.uniform(space.low, space.high).astype(np.float32)
    return np.asarray(rng.integers(space.n))


class BlindedBatch:
    """A policy at work in environments whose actions say whether it is blinded.

    The random actions follow from the episode's seed and the number of the step, so that snapshots
    restore exactly.

    Args:
        batch: where the policy acts.
        policy: who; it takes its most likely actions.
        alpha: bonus for each blinded step.
    """

    _HEAD = struct.Struct("<2q")

    def __init__(self, batch: Batch, policy: Policy, alpha: float) -> None:
        self._batch, self._policy, self._alpha = batch, policy, alpha
        self._space = policy.architecture.action_space
        self._quiet = np.zeros((batch.size, self._space.size), np.float32)
        self._observations: Observations | None = None
        self._seeds = np.zeros(batch.size, dtype=np.int64)
        self._steps = np.zeros(batch.size, dtype=np.int64)

    @property
    def size(self) -> int:
        """Number of environments."""
        return self._batch.size

    def _note(self, indices: Indices, observations: Observations) -> Observations:
        if self._observations is None:
            self._observations = np.zeros((self.size, observations.shape[1]), observations.dtype)
        self._observations[indices] = observations
        return observations

    def reset(self, indices: Indices, seeds: Sequence[int]) -> Observations:
        """Start new episodes."""
        self._seeds[indices], self._steps[indices] = seeds, 0
        return self._note(indices, self._batch.reset(indices, seeds))

    def step(self, actions: Actions, live: Live = None) -> Step:
        """Step the environments with the policy's actions, or random ones where `actions` are `BLIND`."""
        assert self._observations is not None
        executed = self._space.clip(self._policy.decide(self._observations, self._quiet).actions).copy()
        blind = actions == BLIND
        for index in np.flatnonzero(blind):
            rng = stream(int(self._seeds[index]), "blinded actions", int(self._steps[index]))
            executed[index] = random_action(self._space, rng)
        step = self._batch.step(executed, live)
        self._steps += 1
        self._observations = step.observations.copy()
        return replace(step, rewards=step.rewards + self._alpha * blind)

    def facts(self) -> Facts:
        """The named quantities of the current states."""
        return self._batch.facts()

    def snapshots(self, indices: Indices) -> list[Snapshot]:
        """Seed and step, then the environment's own snapshot."""
        inner = self._batch.snapshots(indices)
        return [self._HEAD.pack(self._seeds[i], self._steps[i]) + s for i, s in zip(indices, inner, strict=True)]

    def restore(self, indices: Indices, snapshots: Sequence[Snapshot]) -> Observations:
        """Put saved states back."""
        for index, snapshot in zip(indices, snapshots, strict=True):
            self._seeds[index], self._steps[index] = self._HEAD.unpack_from(snapshot)
        return self._note(indices, self._batch.restore(indices, [s[self._HEAD.size :] for s in snapshots]))

    def restart_clock(self, indices: Indices) -> None:
        """Give some environments a full time limit again."""
        self._batch.restart_clock(indices)

    def close(self) -> None:
        """Free threads and processes."""
        self._batch.close()


def mask_task(task: Task, policy: Policy, alpha: float) -> Task:
    """The task of the mask network: to keep or to blind the policy's actions in `task`."""
    return replace(
        task,
        name=f"{task.name}, blinded",
        action_space=Discrete(2),
        make_local_batch=lambda size: BlindedBatch(task.make_local_batch(size), policy, alpha),
        make_threaded_batch=lambda size, workers: BlindedBatch(task.make_batch(size, workers), policy, alpha),
        in_workers=False,  # the policy stays in this process, `task.make_batch` sees to the workers
        target="",
    )


def check_mask_steps(steps: int, ppo: PPOConfig) -> None:
    """Check that a mask network can be trained with so many steps.

    Raises:
        UltraError: if not even one rollout fits in.
    """
    if steps < ppo.samples:
        raise UltraError(
            f"{steps} steps are too few to train the mask network, whose rollouts take {ppo.samples}: "
            "raise --statemask.share or --steps, or lower --ppo.rollout-steps"
        )


def train_mask(
    task: Task,
    policy: Policy,
    config: StateMaskConfig,
    ppo: PPOConfig,
    steps: int,
    rng: np.random.Generator,
    *,
    observer: Callable[[Iteration], None] = lambda iteration: None,
    checkpoint: Path | None = None,
    workers: int = 0,
) -> tuple[Policy, int]:
    """Train a mask network for a policy.

    Args:
        task: where the policy acts.
        policy: whose steps are judged; it stays as it is, and so does its normalisation.
        config: bonus and learning rate.
        ppo: the other settings of PPO.
        steps: environment steps; whole rollouts that fit in are taken.
        rng: source of everything random.
        observer: called after every iteration.
        checkpoint: file from which to resume if it exists, and to write.
        workers: cores for stepping; 0 uses all.

    Returns:
        The mask network as a policy with the actions `KEEP` and `BLIND`, and the steps taken.

    Raises:
        UltraError: if not even one rollout fits into `steps`.
    """
    check_mask_steps(steps, ppo)
    fresh = create_policy(replace(policy.architecture, action_space=Discrete(2)), rng)
    budget = StepBudget(steps)
    mask = train(
        mask_task(task, policy, config.alpha),
        replace(fresh, normalizer=policy.normalizer),
        replace(ppo, learning_rate=config.learning_rate),
        steps,
        rng,
        budget=budget,
        observer=observer,
        checkpoint=checkpoint,
        workers=workers,
    )
    return mask, budget.used


def importance(mask: Policy, observations: Observations) -> NDArray[np.float64]:
    """The probability (T,), 0 to 1, with which a mask network keeps the policy's action."""
    keep = np.full(len(observations), KEEP, dtype=np.int64)
    logs = log_prob_function()(mask.params, mask.normalizer.arrays(), observations, keep)
    return np.clip(np.exp(np.asarray(logs, np.float64)), 0.0, 1.0)
