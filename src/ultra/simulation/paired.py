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
    """A plan from a state, or programs in whole episodes, to be compared with the policy alone."""

    plan: Plan | None = None
    start: Snapshot | None = None
    """State from which branches start; None resets the environment and runs whole episodes."""
    controller: Controller | None = None
    """Programs that are in force together, throughout."""

    @property
    def scalable(self) -> bool:
        """Whether it takes a strength: relative plans do; programs have parameters instead."""
        return self.plan is not None and self.plan.relative

    def branch(self, base: Branch, space: ActionSpace, strength: float = 1.0) -> Branch:
        """The branch in which the candidate acts."""
        plan = None if self.plan is None else Controller.of_plan(self.plan, space, strength)
        return replace(base, controller=plan or self.controller)


@dataclass(frozen=True)
class Trial:
    """A candidate at a strength, with the seeds of its pairs."""

    candidate: Candidate
    strength: float
    seeds: tuple[int, ...]
    """(pairs,): both branches of a pair use common random numbers."""


@dataclass(frozen=True)
class PairedOutcome:
    """Outcome of the pairs of a trial."""

    differences: NDArray[np.float64]
    """(pairs,) with the candidate minus without it: of discounted returns with the critic's value of a last state that
    is not terminal for a plan at a state, of plain returns for whole episodes, in which the critic has no say."""
    steps: int
    """Environment steps taken; branches that trials share are counted once, in the first."""


def run_pairs(
    batch: Batch, policy: Policy, trials: Sequence[Trial], gamma: float, horizon: int, *, sampled: bool = True
) -> list[PairedOutcome]:
    """Run all pairs of all trials as one batch of branches.

    Branches of the policy alone are run once for each start and seed, however many trials share them.

    Args:
        batch: environments; their states are overwritten.
        policy: acts wherever a candidate does not.
        trials: candidates with their seeds.
        gamma: discount.
        horizon: longest branch in steps.
        sampled: sample the policy's actions instead of taking the most likely ones.

    Returns:
        One outcome for each trial.
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
    worth = [
        each.reward if branch.start is None else each.value for branch, each in zip(branches, outcomes, strict=True)
    ]
    return [
        PairedOutcome(
            np.array([worth[a] - worth[b] for a, b in rows]),
            sum(outcomes[index].steps for index in new),
        )
        for rows, new in zip(pairs, fresh, strict=True)
    ]


@dataclass(frozen=True)
class Played:
    """Returns of controllers on common episodes; arrays are (controllers, episodes)."""

    returns: NDArray[np.float64]
    """Undiscounted returns."""
    lengths: NDArray[np.int64]
    """Lengths in steps."""
    terminated: NDArray[np.bool_]
    """Whether the episode ended in a terminal state."""


class PairedEvaluator:
    """Compares candidates with the policy alone, within an allowance of environment steps that it charges.

    Args:
        batch: environments; their states are overwritten.
        policy: acts wherever a candidate does not.
        gamma: discount of the returns.
        horizon: longest branch in steps.
        budget: charged for `purpose`.
        purpose: one of `ultra.simulation.budget.PURPOSES`.
        allowance: most environment steps; less if the budget has less left.
        rng: draws the seeds of pairs.
        sampled: sample the policy's actions instead of taking the most likely ones.

    Attributes:
        horizon: longest branch in steps.
        left: environment steps that are left of the allowance.
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
        """Whether what is left lasts for this number of branches even if none ends early."""
        return branches * self.horizon <= self.left

    def seeds(self, count: int) -> tuple[int, ...]:
        """Fresh seeds, one for each pair."""
        return tuple(self._rng.integers(2**31, size=count).tolist())

    def run(self, trials: Sequence[Trial]) -> list[PairedOutcome]:
        """Run the pairs of all trials and charge their steps."""
        results = run_pairs(self._batch, self._policy, trials, self._gamma, self.horizon, sampled=self._sampled)
        self._charge(sum(paired.steps for paired in results))
        return results

    def play(
        self, controllers: Sequence[Controller | None], seeds: Sequence[int], longest: int | None = None
    ) -> Played:
        """Episodes of each controller (None: the policy alone) with each seed, without the critic; charges the steps.

        The critic's value of a truncated episode's last state is left out: among many candidates, those that it
        overrates would win.

        Args:
            controllers: candidates.
            seeds: (episodes,); all controllers start from the same states.
            longest: steps after which an episode is truncated, if fewer than the horizon.
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
