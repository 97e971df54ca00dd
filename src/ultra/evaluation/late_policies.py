"""The policies after a training's last updates, and which of them is best in the simulator.

The most likely actions of neighbouring policies may be worth half or twice as much (docs/method-notes.md), so which
update happens to come last is a matter of luck. A contest in whole episodes, paid for from the budget, replaces it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ultra.common.files import write_json
from ultra.policies.io import load_policy, save_policy
from ultra.policies.policy import Policy
from ultra.simulation.branches import Branch, simulate
from ultra.simulation.budget import StepBudget
from ultra.tasks.task import Task

LAST = 0.2
"""Policies are kept from this last part of a training."""
FINALISTS = 3
"""So many of the best play again, with what the first half of the steps left."""
CHOSEN = "late.json"
"""In a round's folder: what the policies gave."""
BEFORE = "before training"
"""Name of the policy with which the round began: where training made nothing better, it stays."""


class LatePolicies:
    """Policies that a training passes through near its end, or all along, on disk.

    Args:
        folder: where they lie, each in a folder named by its training steps.
        most: how many are kept, the last one among them.
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
        """Write a policy; one that a resumed training comes to again is the same."""
        save_policy(policy, self._folder / f"{steps:09d}", {"training_steps": steps})

    def load(self) -> list[tuple[str, Policy]]:
        """Names and policies, the last one first."""
        if not self._folder.is_dir():
            return []
        folders = sorted((path for path in self._folder.iterdir() if path.is_dir()), reverse=True)
        return [(f"after {int(path.name):,} steps", load_policy(path)) for path in folders]


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

    Sequential halving (Karnin et al., ICML 2013) in two rounds.

    Args:
        named: names and policies; where nothing tells them apart the first one is chosen.
        task: where.
        allowance: most steps; every policy gets as many.
        budget: charged `collect` steps.
        rng: draws the episodes' seeds; all policies play the same ones.
        workers: cores for stepping; 0 uses all.
        record: where to write what they gave.
        say: told what was chosen.
    """
    places = list(range(len(named)))
    left = min(allowance, budget.remaining)
    rounds: list[dict[str, float]] = []
    batch = task.make_batch(len(named), workers or None)
    try:
        for part in (0.5, 1.0):
            each = int(part * left) // len(places)
            longest = min(task.time_limit, each)
            if longest < 1:
                break
            seeds = rng.integers(2**31, size=each // longest).tolist()
            outcomes = [
                simulate(
                    batch,
                    named[place][1],
                    [Branch(seed, longest, reset_seed=seed) for seed in seeds],
                    1.0,
                    deterministic=not task.sampled_evaluation,
                )
                for place in places
            ]
            steps = sum(outcome.steps for played in outcomes for outcome in played)
            budget.charge("collect", steps)
            left -= steps
            means = np.array([np.mean([outcome.reward for outcome in played]) for played in outcomes])
            rounds.append({named[place][0]: float(mean) for place, mean in zip(places, means, strict=True)})
            places = _best(places, means)[:FINALISTS]
    finally:
        batch.close()
    name, chosen = named[places[0]]
    if record is not None:
        write_json(record, {"chosen": name, "rounds": rounds})
    if rounds:
        say(_words(name, named[0][0], len(named), rounds))
    return chosen


def _best(places: list[int], means: NDArray[np.float64]) -> list[int]:
    return [places[row] for row in np.argsort(-means, kind="stable")]


def _words(name: str, last: str, count: int, rounds: list[dict[str, float]]) -> str:
    """What a person is told of the choice: returns of the last round in which both played."""
    found = next(played for played in reversed(rounds) if last in played)
    words = f"choose    of {count} policies the one {name}: {found[name]:.1f} in an episode"
    return words if name == last else f"{words}, the last one {found[last]:.1f}"
