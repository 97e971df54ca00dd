"""The policies after a training's last updates, and which of them is best in the simulator.

The returns of neighbouring policies, acting by their most likely actions, may differ by a factor of two
(docs/decisions/0010-best-of-the-late-policies.md), so which update comes last is a matter of luck. A contest in whole
episodes, charged to the budget, replaces it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ultra.common.files import write_json
from ultra.policies.io import load_policy, save_policy
from ultra.policies.policy import Policy
from ultra.simulation.branches import Branch, simulate
from ultra.simulation.budget import StepBudget
from ultra.simulation.halving import sequential_halving
from ultra.tasks.task import Task

LAST = 0.2
"""Policies are kept from this last fraction of a training."""
FINALISTS = 3
"""Policies that play again, with what the first half of the steps left."""
CHOSEN = "late.json"
"""In a round's folder: the mean returns of the policies."""
BEFORE = "before training"
"""Name of the policy with which the round began: where training made nothing better, it stays."""


class LatePolicies:
    """Policies that a training passes through near its end, or all along, on disk.

    Args:
        folder: holds a folder for each, named by its training steps.
        most: policies to keep, the last one among them.
        last: the part of training from which they are kept; 1 for all of it.
    """

    def __init__(self, folder: Path, most: int, last: float = LAST) -> None:
        self._folder, self._most, self._last = folder, most, last

    def wants(self, iteration: int, iterations: int) -> bool:
        """Whether the policy after an iteration (counted from 1) is to be kept."""
        stretch = max(1, int(self._last * iterations))
        apart = -(-stretch // self._most)
        left = iterations - iteration
        return left < stretch and left % apart == 0

    def keep(self, steps: int, policy: Policy) -> None:
        """Write a policy; a resumed training writes the same one again."""
        save_policy(policy, self._folder / f"{steps:09d}", {"training_steps": steps})

    def load(self) -> list[tuple[str, Policy]]:
        """Names and policies, the last one first."""
        if not self._folder.is_dir():
            return []
        folders = sorted((path for path in self._folder.iterdir() if path.is_dir()), reverse=True)
        return [(f"after {int(path.name):,} steps", load_policy(path)) for path in folders]


@dataclass
class _Contestant:
    """A policy in the contest, with its mean return in the round that it played last."""

    name: str
    policy: Policy
    mean: float = 0.0


def choose(
    named: list[tuple[str, Policy]],
    task: Task,
    allowance: int,
    budget: StepBudget,
    rng: np.random.Generator,
    *,
    workers: int = 0,
    record: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Policy:
    """The best of some policies: all of them play, then the best few again in longer or more episodes.

    Sequential halving in two rounds, of which the second counts alone.

    Args:
        named: names and policies; where nothing tells them apart the first one is chosen.
        task: the task in which they play.
        allowance: most steps, the same for every policy of a round.
        budget: charged for `choose`.
        rng: draws the episodes' seeds; all policies play the same ones.
        workers: cores for stepping; 0 uses all.
        record: file for the mean returns.
        say: told what was chosen.
    """
    left = min(allowance, budget.remaining)
    rounds: list[dict[str, float]] = []
    batch = task.make_batch(len(named), workers or None)

    def play(alive: list[_Contestant], to_come: int) -> bool:
        nonlocal left
        each = left // to_come // len(alive)
        longest = min(task.time_limit, each)
        if longest < 1:
            return False
        seeds = rng.integers(2**31, size=each // longest).tolist()
        branches = [Branch(seed, longest, reset_seed=seed) for seed in seeds]
        steps = 0
        for contestant in alive:
            played = simulate(batch, contestant.policy, branches, 1.0, deterministic=not task.sampled_evaluation)
            steps += sum(outcome.steps for outcome in played)
            contestant.mean = float(np.mean([outcome.reward for outcome in played]))
        budget.charge("choose", steps)
        left -= steps
        rounds.append({contestant.name: contestant.mean for contestant in alive})
        return True

    try:
        contestants = [_Contestant(name, policy) for name, policy in named]
        best = sequential_halving(contestants, 2, play, lambda one: one.mean, keep=lambda count: FINALISTS)[0]
    finally:
        batch.close()
    if record is not None:
        write_json(record, {"chosen": best.name, "rounds": rounds})
    if rounds:
        say(_words(best.name, named[0][0], len(named), rounds))
    return best.policy


def _words(name: str, last: str, count: int, rounds: list[dict[str, float]]) -> str:
    """What a person is told of the choice: returns of the last round in which both played."""
    found = next(played for played in reversed(rounds) if last in played)
    words = f"choose    of {count} policies the one {name}: {found[name]:.1f} in an episode"
    return words if name == last else f"{words}, the last one {found[last]:.1f}"
