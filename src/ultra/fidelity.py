"""The fidelity score of an explanation (StateMask, NeurIPS 2023; RICE, arXiv 2405.03064).

If a stretch of an episode is as important as an explanation says, random actions there must change the
return much. For a window of l of an episode's L steps, with the mean change d of the return,

    score = log(d / d_max) - log(l / L);

higher is better. Any importance can be scored, a language model's as well as a mask network's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ultra.advice import CriticalState
from ultra.errors import UltraError
from ultra.plans import Plan, Segment
from ultra.policy import Policy
from ultra.simulate import Branch, simulate
from ultra.spaces import ActionSpace, Discrete
from ultra.statemask import random_action
from ultra.tasks.batch import Snapshot
from ultra.tasks.task import Task
from ultra.trajectories import Trajectory

SHARES = (0.1, 0.2, 0.3, 0.4)
"""Lengths of the windows, as shares of the episode."""
MOST_TOGETHER = 32


@dataclass(frozen=True)
class Fidelity:
    """What random actions in the most important windows of a length did."""

    share: float
    """Length of the windows, as a share of the episodes."""
    score: float
    """Higher is better; minus infinity if the return never changed."""
    change: float
    """Mean absolute change of the return, d."""
    largest: float
    """The change to which it is compared, d_max."""
    episodes: int
    steps: int
    """Environment steps that it took."""


def importance_of_states(states: Sequence[CriticalState], episodes: Sequence[Trajectory]) -> list[NDArray[np.float64]]:
    """The importance (T,) of every step of each episode by a list of critical states: 0 where none is named."""
    importances = [np.zeros(len(episode)) for episode in episodes]
    for state in states:
        importances[state.episode][min(state.t, len(importances[state.episode]) - 1)] = state.importance
    return importances


def most_important_window(importance: NDArray[np.float64], length: int) -> int:
    """Where the window of `length` steps with the highest mean importance begins; the first of equals."""
    sums = np.cumsum(np.concatenate([[0.0], importance]))
    return int(np.argmax(np.round(sums[length:] - sums[:-length], 9)))


def fidelity(
    task: Task,
    policy: Policy,
    episodes: Sequence[Trajectory],
    importances: Sequence[NDArray[np.float64]],
    rng: np.random.Generator,
    *,
    shares: Sequence[float] = SHARES,
    largest: float | None = None,
    workers: int = 0,
) -> list[Fidelity]:
    """Score an explanation of a policy's episodes.

    From the beginning of each episode's window the simulator branches: random actions through the
    window and then the policy, and the policy alone, with common random numbers.

    Args:
        task: where.
        policy: whose episodes they are; it samples its actions, as it did in them.
        episodes: to be explained.
        importances: (T,) of each episode's steps.
        rng: source of the random actions and the policy's randomness.
        shares: lengths of the windows, between 0 and 1.
        largest: d_max; by default the largest absolute return of the episodes.
        workers: cores for stepping; 0 uses all.

    Returns:
        One score for each share.

    Raises:
        UltraError: if an importance does not fit its episode, or there is nothing to compare changes with.
    """
    for number, (episode, values) in enumerate(zip(episodes, importances, strict=True)):
        if len(values) != len(episode):
            raise UltraError(f"episode {number} has {len(episode)} steps, but {len(values)} importances")
    largest = max(abs(episode.total_reward) for episode in episodes) if largest is None else largest
    if largest <= 0:
        raise UltraError("every episode has return 0: say with `largest` which change of the return is large")
    batch, replay = task.make_batch(min(MOST_TOGETHER, 2 * len(episodes)), workers or None), task.make_local_batch(1)
    results = []
    try:
        for share in shares:
            branches, relative, replayed = [], [], 0
            for episode, values in zip(episodes, importances, strict=True):
                length = max(1, round(share * len(episode)))
                begin = most_important_window(values, length)
                start, steps = episode.snapshot(begin, replay, task.action_space)
                relative.append(length / len(episode))
                branches += _pair(task, start, begin, length, rng)
                replayed += steps
            outcomes = simulate(batch, policy, branches, gamma=1.0)
            changes = [abs(a.reward - b.reward) for a, b in zip(outcomes[::2], outcomes[1::2], strict=True)]
            change = float(np.mean(changes))
            score = math.log(change / largest) - math.log(float(np.mean(relative))) if change > 0 else -math.inf
            spent = replayed + sum(outcome.steps for outcome in outcomes)
            results.append(Fidelity(share, score, change, largest, len(episodes), spent))
    finally:
        batch.close()
        replay.close()
    return results


def _pair(task: Task, start: Snapshot, begin: int, length: int, rng: np.random.Generator) -> list[Branch]:
    """The branch with random actions through the window, and the one without."""
    seed, rest = int(rng.integers(2**31)), max(1, task.time_limit - begin)
    plan = _random_actions(task.action_space, min(length, rest), rng)
    return [Branch(seed, rest, start, plan=plan), Branch(seed, rest, start)]


def _random_actions(space: ActionSpace, length: int, rng: np.random.Generator) -> Plan:
    """A fresh random action at every step."""
    actions = (random_action(space, rng) for _ in range(length))
    if isinstance(space, Discrete):
        return Plan(tuple(Segment(int(action)) for action in actions))
    return Plan(tuple(Segment(tuple(map(float, action))) for action in actions))
