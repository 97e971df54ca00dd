"""Stage 3: try every advice in the simulator before anything is trained on it.

From the saved critical state the simulator branches: once following the advice and then the policy,
once the policy alone, with common random numbers (rollout algorithms; TRPO's vine, arXiv
1502.05477). The verdict rests on the confidence interval of the paired difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ultra.advice import Advice, Entry, Verdict, Verification
from ultra.budget import StepBudget
from ultra.config import VerifyConfig
from ultra.plans import Plan
from ultra.policy import Policy
from ultra.simulate import Branch, simulate
from ultra.tasks.batch import Batch, Snapshot

STRENGTHS = (1.0, 0.5, 0.25)
"""Factors that are tried for a relative plan: the adviser gives the direction, the simulator the size."""
FIRST_PAIRS = 4
"""Pairs for choosing a strength, and for the first look at an advice; each later look doubles them."""


@dataclass(frozen=True)
class Trial:
    """A plan to be tried from a state."""

    start: Snapshot
    plan: Plan
    strength: float
    seeds: tuple[int, ...]
    """One for each pair: both branches of a pair draw the same random numbers."""


@dataclass(frozen=True)
class Paired:
    """What the pairs of one trial gave."""

    differences: NDArray[np.float64]
    """(pairs,) with the plan minus without, of the discounted return."""
    steps: int
    """Environment steps, shared branches counted once."""


def run_pairs(batch: Batch, policy: Policy, trials: Sequence[Trial], gamma: float, horizon: int) -> list[Paired]:
    """Run all pairs of all trials as one batch of branches.

    Branches without a plan are run once for each state and seed, however many trials share them.
    """
    branches: list[Branch] = []
    alone: dict[tuple[Snapshot, int], int] = {}
    pairs: list[list[tuple[int, int]]] = []
    fresh: list[list[int]] = []
    for trial in trials:
        rows, new = [], []
        for seed in trial.seeds:
            key = (trial.start, seed)
            if key not in alone:
                alone[key] = len(branches)
                new.append(len(branches))
                branches.append(Branch(seed, horizon, trial.start))
            new.append(len(branches))
            rows.append((len(branches), alone[key]))
            branches.append(Branch(seed, horizon, trial.start, plan=trial.plan, strength=trial.strength))
        pairs.append(rows)
        fresh.append(new)
    outcomes = simulate(batch, policy, branches, gamma)
    return [
        Paired(
            np.array([outcomes[a].value - outcomes[b].value for a, b in rows]),
            sum(outcomes[index].steps for index in new),
        )
        for rows, new in zip(pairs, fresh, strict=True)
    ]


def looks(most: int) -> list[int]:
    """Numbers of pairs after which a verdict may fall: 4, 8, 16, ... up to `most`."""
    sizes = [FIRST_PAIRS * 2**k for k in range(max(1, int(math.log2(max(most, FIRST_PAIRS) / FIRST_PAIRS)) + 1))]
    return sizes if sizes[-1] == most else [*sizes, most]


def interval(differences: NDArray[np.float64], confidence: float, tries: int) -> tuple[float, float]:
    """Student-t interval of the mean paired difference, widened for `tries` looks (Bonferroni)."""
    mean = float(differences.mean())
    spread = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    if spread == 0.0:
        return mean, mean
    width = float(stats.t.ppf(1 - (1 - confidence) / (2 * tries), len(differences) - 1)) * spread
    return mean - width, mean + width


def judge(low: float, high: float) -> Verdict:
    """The verdict of a confidence interval."""
    return "helps" if low > 0 else "harms" if high < 0 else "unclear"


class Bench:
    """Runs trials and keeps the account of their steps."""

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
    ) -> None:
        self._batch, self._policy = batch, policy
        self._gamma, self._horizon = gamma, horizon
        self._budget, self._purpose, self._rng = budget, purpose, rng
        self.left = min(allowance, budget.remaining)

    def affordable(self, branches: int) -> bool:
        """Whether so many branches fit into what is left, even if none ends early."""
        return branches * self._horizon <= self.left

    def seeds(self, count: int) -> tuple[int, ...]:
        """Fresh seeds for pairs."""
        return tuple(self._rng.integers(2**31, size=count).tolist())

    def run(self, trials: Sequence[Trial]) -> list[Paired]:
        """Run trials and charge their steps."""
        results = run_pairs(self._batch, self._policy, trials, self._gamma, self._horizon)
        steps = sum(paired.steps for paired in results)
        self._budget.charge(self._purpose, steps)
        self.left -= steps
        return results


def verify(entries: Sequence[Entry], bench: Bench, config: VerifyConfig) -> list[Entry]:
    """Try advice, all entries at once, until each is clear or the allowance is spent.

    A relative plan first gets its strength from a few pairs; the verdict rests on fresh pairs only,
    so that the choice does not flatter it. Looks double the pairs, and the interval is widened for
    the number of looks.

    Args:
        entries: advice with snapshots of its states; what comes first is tried first.
        bench: where, and with how many steps.
        config: pairs and confidence.

    Returns:
        The entries with their verification; those for which the allowance left too few pairs stay
        unverified.
    """
    strengths, spent = _choose_strengths(entries, bench)
    sizes = looks(config.branches)
    found: list[Verification | None] = [None] * len(entries)
    differences = [np.zeros(0)] * len(entries)
    for size in sizes:
        rows, trials, planned = [], [], 0
        for row, entry in enumerate(entries):
            more = size - len(differences[row])
            verification = found[row]
            settled = verification is not None and verification.verdict != "unclear"
            if not settled and bench.affordable(planned + 2 * more):
                planned += 2 * more
                rows.append(row)
                trials.append(Trial(entry.snapshot, entry.advice.plan, strengths[row], bench.seeds(more)))
        for row, paired in zip(rows, bench.run(trials), strict=True):
            spent[row] += paired.steps
            differences[row] = np.concatenate([differences[row], paired.differences])
            low, high = interval(differences[row], config.confidence, len(sizes))
            found[row] = Verification(
                advantage=float(differences[row].mean()),
                low=low,
                high=high,
                pairs=len(differences[row]),
                strength=strengths[row],
                verdict=judge(low, high),
                steps=spent[row],
            )
    return [
        replace(entry, advice=replace(entry.advice, verification=verification))
        for entry, verification in zip(entries, found, strict=True)
    ]


def _choose_strengths(entries: Sequence[Entry], bench: Bench) -> tuple[list[float], list[int]]:
    """For each entry the strength with the best mean over a few pairs, and the steps that it took."""
    strengths = [1.0] * len(entries)
    spent = [0] * len(entries)
    rows, trials, planned = [], [], 0
    for row, entry in enumerate(entries):
        branches = FIRST_PAIRS * (1 + len(STRENGTHS))
        if entry.advice.plan.relative and bench.affordable(planned + branches):
            planned += branches
            seeds = bench.seeds(FIRST_PAIRS)
            rows.append(row)
            trials += [Trial(entry.snapshot, entry.advice.plan, strength, seeds) for strength in STRENGTHS]
    results = bench.run(trials)
    for place, row in enumerate(rows):
        tried = results[place * len(STRENGTHS) : (place + 1) * len(STRENGTHS)]
        best = int(np.argmax([paired.differences.mean() for paired in tried]))
        strengths[row] = STRENGTHS[best]
        spent[row] = sum(paired.steps for paired in tried)
    return strengths, spent


def audit(advice: Sequence[Advice]) -> dict[str, Any]:
    """How good an adviser was: verdicts, mean advantage, steps per helpful advice."""
    tried = [item.verification for item in advice if item.verification is not None]
    counts = {verdict: sum(v.verdict == verdict for v in tried) for verdict in ("helps", "harms", "unclear")}
    steps = sum(v.steps for v in tried)
    return {
        "advices": len(advice),
        **counts,
        "untried": len(advice) - len(tried),
        "mean_advantage": float(np.mean([v.advantage for v in tried])) if tried else None,
        "verification_steps": steps,
        "steps_per_helpful": math.ceil(steps / counts["helps"]) if counts["helps"] else None,
    }
