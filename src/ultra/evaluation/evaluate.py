"""Evaluation: policies in Gymnasium's own environment, on fresh seeds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ultra.common.statistics import Estimate, mean_interval
from ultra.common.streams import stream
from ultra.policies.policy import Policy, check_fits
from ultra.simulation.branches import Branch, simulate
from ultra.tasks.task import Task

MOST_TOGETHER = 32


def evaluation_seeds(seed: int, episodes: int) -> list[int]:
    """Seeds from a stream that no training or selection uses; fewer episodes get the first of them."""
    return [int(word) for word in stream(seed, "evaluation").integers(2**31, size=episodes)]


def evaluate(
    task: Task, policy: Policy, seeds: list[int], *, workers: int = 0, sampled: bool | None = None
) -> tuple[Estimate, NDArray[np.float64], int]:
    """Play whole episodes with the most likely actions, or sampled ones where the task says so.

    Args:
        task: the task; its Gymnasium environment is used, not the batch engine.
        policy: the policy to evaluate.
        seeds: (episodes,), passed to `reset(seed=...)`.
        workers: processes; 0 uses all cores.
        sampled: sample actions instead of taking the most likely ones; None as the task says.

    Returns:
        The mean return with its 95% interval, the returns (episodes,), and the steps taken.

    Raises:
        PolicyError: if the policy has other observation or action spaces than the task.
    """
    sampled = task.sampled_evaluation if sampled is None else sampled
    check_fits(policy, task.name, task.observation_size, task.action_space, task.card.fact_names)
    branches = [Branch(noise_seed=seed, steps=task.time_limit, reset_seed=seed) for seed in seeds]
    batch = task.make_evaluation_batch(min(len(seeds), MOST_TOGETHER), workers or None)
    try:
        outcomes = simulate(batch, policy, branches, gamma=1.0, deterministic=not sampled)
    finally:
        batch.close()
    returns = np.array([outcome.reward for outcome in outcomes])
    return mean_interval(returns.tolist()), returns, sum(outcome.steps for outcome in outcomes)
