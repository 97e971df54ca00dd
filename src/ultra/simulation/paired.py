"""The paired evaluator: candidates against the policy alone, in branches with common random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ultra.policies.policy import Policy
from ultra.programs.compiled import Controller
from ultra.simulation.branches import Branch, simulate
from ultra.simulation.budget import StepBudget
from ultra.tasks.batch import Batch, Snapshot
from ultra.tasks.plans import Plan
from ultra.tasks.spaces import ActionSpace


@dataclass(frozen=True)
class Candidate:
    """What is tried: a plan at a state, or programs in whole episodes."""

    plan: Plan | None = None
    start: Snapshot | None = None
    """State from which it is tried; None: whole episodes."""
    controller: Controller | None = None
    """Programs that are followed together, throughout."""

    @property
    def scalable(self) -> bool:
        """Whether a strength is to be chosen: for a relative plan at a state. Programs have parameters for that."""
        return self.plan is not None and self.plan.relative

    def branch(self, base: Branch, space: ActionSpace, strength: float = 1.0) -> Branch:
        """The branch that follows it."""
        plan = None if self.plan is None else Controller.of_plan(self.plan, space, strength)
        return replace(base, controller=plan or self.controller)


@dataclass(frozen=True)
class Trial:
    """A candidate with a strength and the seeds of its pairs."""

    candidate: Candidate
    strength: float
    seeds: tuple[int, ...]
    """One for each pair: both branches of a pair draw the same random numbers."""


@dataclass(frozen=True)
class Paired:
    """What the pairs of one trial gave."""

    differences: NDArray[np.float64]
    """(pairs,) with the candidate minus without, of the discounted return."""
    steps: int
    """Environment steps, shared branches counted once."""


def run_pairs(
    batch: Batch, policy: Policy, trials: Sequence[Trial], gamma: float, horizon: int, *, sampled: bool = True
) -> list[Paired]:
    """Run all pairs of all trials as one batch of branches.

    Branches without a plan are run once for each start and seed, however many trials share them. Actions are
    sampled, or the most likely ones.
    """
    branches: list[Branch] = []
    alone: dict[tuple[Snapshot | None, int], int] = {}
    pairs: list[list[tuple[int, int]]] = []
    fresh: list[list[int]] = []
    for trial in trials:
        candidate, rows, new = trial.candidate, [], []
        for seed in trial.seeds:
            plain = Branch(seed, horizon, candidate.start, reset_seed=seed)
            key = (candidate.start, seed)
            if key not in alone:
                alone[key] = len(branches)
                new.append(len(branches))
                branches.append(plain)
            new.append(len(branches))
            rows.append((len(branches), alone[key]))
            branches.append(candidate.branch(plain, policy.architecture.action_space, trial.strength))
        pairs.append(rows)
        fresh.append(new)
    outcomes = simulate(batch, policy, branches, gamma, deterministic=not sampled)
    return [
        Paired(
            np.array([outcomes[a].value - outcomes[b].value for a, b in rows]),
            sum(outcomes[index].steps for index in new),
        )
        for rows, new in zip(pairs, fresh, strict=True)
    ]


@dataclass(frozen=True)
class Played:
    """What controllers gave on common episodes; arrays are (controllers, episodes)."""

    returns: NDArray[np.float64]
    """Undiscounted."""
    lengths: NDArray[np.int64]
    """In steps."""
    terminated: NDArray[np.bool_]
    """Whether the task itself ended the episode."""


class PairedEvaluator:
    """Runs candidates in pairs or on common episodes, within an allowance of steps, and charges them.

    Args:
        batch: where.
        policy: acts wherever a plan does not.
        gamma: discount of what branches give.
        horizon: longest branch.
        budget: charged for `purpose`.
        purpose: of the steps.
        allowance: most steps.
        rng: draws the seeds.
        sampled: whether the policy's actions are sampled, or the most likely ones.
    """

    def __init__(
        self,
        batch: Batch,
        policy: Policy,
        gamma: float,
        horizon: int,
        budget: StepBudget,
        purpose: str,
        allowance: int,
        rng: np.random.Generator,
        *,
        sampled: bool = True,
    ) -> None:
        self._batch, self._policy, self._sampled = batch, policy, sampled
        self._gamma, self.horizon = gamma, horizon
        self._budget, self._purpose, self._rng = budget, purpose, rng
        self.left = min(allowance, budget.remaining)

    def affordable(self, branches: int) -> bool:
        """Whether so many branches fit into what is left, even if none ends early."""
        return branches * self.horizon <= self.left

    def seeds(self, count: int) -> tuple[int, ...]:
        """Fresh seeds for pairs."""
        return tuple(self._rng.integers(2**31, size=count).tolist())

    def run(self, trials: Sequence[Trial]) -> list[Paired]:
        """Run trials and charge their steps."""
        results = run_pairs(self._batch, self._policy, trials, self._gamma, self.horizon, sampled=self._sampled)
        self._charge(sum(paired.steps for paired in results))
        return results

    def play(
        self, controllers: Sequence[Controller | None], seeds: Sequence[int], longest: int | None = None
    ) -> Played:
        """Episodes of each controller (None: the policy alone) with each seed, without the critic; charges the steps.

        Where many compete the critic's value at a cut is left out: whatever it is wrong about would win.

        Args:
            controllers: what competes.
            seeds: of the episodes; all controllers begin in the same states.
            longest: steps of an episode, if fewer than the horizon.
        """
        longest = self.horizon if longest is None else longest
        branches = [Branch(seed, longest, reset_seed=seed, controller=each) for each in controllers for seed in seeds]
        outcomes = simulate(self._batch, self._policy, branches, self._gamma, deterministic=not self._sampled)
        self._charge(sum(outcome.steps for outcome in outcomes))
        shape = len(controllers), len(seeds)
        return Played(
            np.array([outcome.reward for outcome in outcomes]).reshape(shape),
            np.array([outcome.steps for outcome in outcomes]).reshape(shape),
            np.array([outcome.terminated for outcome in outcomes]).reshape(shape),
        )

    def _charge(self, steps: int) -> None:
        self._budget.charge(self._purpose, steps)
        self.left -= steps
