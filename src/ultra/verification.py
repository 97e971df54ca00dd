"""Stage 3: try every advice in the simulator before anything is trained on it.

From the saved critical state the simulator branches: once following the advice and then the policy,
once the policy alone, with common random numbers (rollout algorithms; TRPO's vine, arXiv
1502.05477). The verdict rests on the confidence interval of the paired difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ultra.advice import Advice, Entry, Rule, Verdict, Verification
from ultra.budget import StepBudget
from ultra.config import VerifyConfig
from ultra.plans import Plan
from ultra.policy import Policy
from ultra.simulate import Branch, Habit, simulate
from ultra.statistics import mean_interval
from ultra.tasks.batch import Batch, Snapshot

STRENGTHS = (1.0, 0.5, 0.25)
"""Factors that are tried for a relative plan: the adviser gives the direction, the simulator the size."""
STRENGTH_PAIRS = 4
"""Pairs for choosing a strength."""
FIRST_LOOK = 8
"""Pairs before the first look at a proposal: fewer agree too easily by chance. Each later look doubles them."""
FUTILE = 0.2
"""What will become clear with a smaller chance than this is tried no longer."""

CHECKS = (0.25, 0.5, 0.75)
"""Advice in use is tried again at these shares of the time in which it is used."""


@dataclass(frozen=True)
class Proposal:
    """What is to be tried: a plan at a state, or rules in whole episodes."""

    plan: Plan | None = None
    start: Snapshot | None = None
    """State from which it is tried; None: whole episodes."""
    habits: tuple[Habit, ...] = ()
    """Rules that are followed together, throughout."""

    @property
    def scalable(self) -> bool:
        """Whether a strength is to be chosen: for a relative plan at a state. Rules are tried as they are given."""
        return self.plan is not None and self.plan.relative

    def branch(self, base: Branch, strength: float) -> Branch:
        """The branch that follows the proposal."""
        return replace(base, plan=self.plan, strength=strength, habits=self.habits)


@dataclass(frozen=True)
class Trial:
    """A proposal with a strength and the seeds of its pairs."""

    proposal: Proposal
    strength: float
    seeds: tuple[int, ...]
    """One for each pair: both branches of a pair draw the same random numbers."""


@dataclass(frozen=True)
class Paired:
    """What the pairs of one trial gave."""

    differences: NDArray[np.float64]
    """(pairs,) with the proposal minus without, of the discounted return."""
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
        proposal, rows, new = trial.proposal, [], []
        for seed in trial.seeds:
            plain = Branch(seed, horizon, proposal.start, reset_seed=seed)
            key = (proposal.start, seed)
            if key not in alone:
                alone[key] = len(branches)
                new.append(len(branches))
                branches.append(plain)
            new.append(len(branches))
            rows.append((len(branches), alone[key]))
            branches.append(proposal.branch(plain, trial.strength))
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


def looks(most: int) -> list[int]:
    """Numbers of pairs after which a verdict may fall: 8, 16, 32, ... up to `most`."""
    sizes = [FIRST_LOOK * 2**k for k in range(int(math.log2(max(most, FIRST_LOOK) / FIRST_LOOK)) + 1)]
    return sizes if sizes[-1] >= most else [*sizes, most]


def interval(differences: NDArray[np.float64], confidence: float, tries: int) -> tuple[float, float]:
    """Student-t interval of the mean paired difference, widened for `tries` looks (Bonferroni)."""
    mean = float(differences.mean())
    spread = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    if spread == 0.0:
        return mean, mean
    width = float(stats.t.ppf(1 - (1 - confidence) / (2 * tries), len(differences) - 1)) * spread
    return mean - width, mean + width


def chance_of_clarity(differences: NDArray[np.float64], most: int, confidence: float, tries: int) -> float:
    """How likely it is that the interval from `most` pairs will leave zero out, after what was seen so far.

    The predictive probability (Spiegelhalter, Freedman and Parmar, 1994): the mean of all pairs is expected
    about the mean of those seen, off by what both the seen and the coming ones leave uncertain. To stop
    where it is small adds no wrong verdict: what is given up stays unclear.
    """
    count = len(differences)
    spread = float(differences.std(ddof=1))
    if spread == 0.0:
        return 1.0  # too alike to tell
    mean = float(differences.mean()) / spread
    width = float(stats.t.ppf(1 - (1 - confidence) / (2 * tries), most - 1)) / math.sqrt(most)
    unsure = math.sqrt(1 / count - 1 / most)
    return float(sum(stats.t.cdf((side * mean - width) / unsure, count - 1) for side in (1, -1)))


def judge(low: float, high: float) -> Verdict:
    """The verdict of a confidence interval."""
    return "helps" if low > 0 else "harms" if high < 0 else "unclear"


class Bench:
    """Runs trials and keeps the account of their steps.

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

    def returns(
        self, proposals: Sequence[Proposal], seeds: Sequence[int], longest: int | None = None
    ) -> NDArray[np.float64]:
        """Rewards that each proposal gets with each seed (proposals, seeds), without a comparison; charges the steps.

        Where many compete the critic's value at a cut is left out: whatever it is wrong about would win.

        Args:
            proposals: what competes.
            seeds: of the episodes.
            longest: of them, if less than the horizon.
        """
        longest = self.horizon if longest is None else longest
        branches = [
            proposal.branch(Branch(seed, longest, proposal.start, reset_seed=seed), 1.0)
            for proposal in proposals
            for seed in seeds
        ]
        outcomes = simulate(self._batch, self._policy, branches, self._gamma, deterministic=not self._sampled)
        self._charge(sum(outcome.steps for outcome in outcomes))
        return np.array([outcome.reward for outcome in outcomes]).reshape(len(proposals), len(seeds))

    def _charge(self, steps: int) -> None:
        self._budget.charge(self._purpose, steps)
        self.left -= steps


def verify(
    proposals: Sequence[Proposal], bench: Bench, config: VerifyConfig, strengths: Sequence[float] | None = None
) -> list[Verification | None]:
    """Try proposals, all at once, until each is clear, will hardly become clear, or the allowance is spent.

    A relative plan first gets its strength from a few pairs; the verdict rests on fresh pairs only,
    so that the choice does not flatter it. Looks double the pairs, and the interval is widened for
    the number of looks.

    Args:
        proposals: what comes first is tried first.
        bench: where, and with how many steps.
        config: pairs and confidence.
        strengths: of each proposal, if they are known already.

    Returns:
        What was found of each; None where the allowance left too few pairs.
    """
    chosen, spent = (
        _choose_strengths(proposals, bench) if strengths is None else (list(strengths), [0] * len(proposals))
    )
    sizes = looks(config.branches)
    found: list[Verification | None] = [None] * len(proposals)
    settled = [False] * len(proposals)
    differences = [np.zeros(0)] * len(proposals)
    for size in sizes:
        rows, trials, planned = [], [], 0
        for row, proposal in enumerate(proposals):
            more = size - len(differences[row])
            if size > FIRST_LOOK:  # a later look makes do with what is left
                more = min(more, bench.left // (2 * bench.horizon) - planned // 2)
            if not settled[row] and more > 0 and bench.affordable(planned + 2 * more):
                planned += 2 * more
                rows.append(row)
                trials.append(Trial(proposal, chosen[row], bench.seeds(more)))
        for row, paired in zip(rows, bench.run(trials), strict=True):
            spent[row] += paired.steps
            differences[row] = np.concatenate([differences[row], paired.differences])
            low, high = interval(differences[row], config.confidence, len(sizes))
            found[row] = Verification(
                advantage=float(differences[row].mean()),
                low=low,
                high=high,
                pairs=len(differences[row]),
                strength=chosen[row],
                verdict=judge(low, high),
                steps=spent[row],
            )
            settled[row] = judge(low, high) != "unclear" or (
                len(differences[row]) < sizes[-1]
                and chance_of_clarity(differences[row], sizes[-1], config.confidence, len(sizes)) < FUTILE
            )
    return found


def _choose_strengths(proposals: Sequence[Proposal], bench: Bench) -> tuple[list[float], list[int]]:
    """For each proposal the strength with the best mean over a few pairs, and the steps that it took."""
    strengths = [1.0] * len(proposals)
    spent = [0] * len(proposals)
    rows, trials, planned = [], [], 0
    for row, proposal in enumerate(proposals):
        branches = STRENGTH_PAIRS * (1 + len(STRENGTHS))
        if proposal.scalable and bench.affordable(planned + branches):
            planned += branches
            seeds = bench.seeds(STRENGTH_PAIRS)
            rows.append(row)
            trials += [Trial(proposal, strength, seeds) for strength in STRENGTHS]
    results = bench.run(trials)
    for place, row in enumerate(rows):
        tried = results[place * len(STRENGTHS) : (place + 1) * len(STRENGTHS)]
        best = int(np.argmax([paired.differences.mean() for paired in tried]))
        strengths[row] = STRENGTHS[best]
        spent[row] = sum(paired.steps for paired in tried)
    return strengths, spent


def verify_rules(
    habits: Mapping[str, Habit], groups: Mapping[str, str], bench: Bench, config: VerifyConfig
) -> dict[str, dict[str, Any]]:
    """Try rules in whole episodes: as they were given, then alone, then together with others.

    Rules that were given as one (`push right when ..., left when ...`) are tried as one first, because a part
    of them may be worth nothing. Of a group that does not help, every rule is tried alone. Then two sets are
    tried: all that helps, and this with all that is unclear. Of everything that helps, what has the largest
    advantage is chosen.

    Args:
        habits: rules by their guards.
        groups: the group of each guard; rules of the group "" do not belong together.
        bench: of whole episodes.
        config: pairs and confidence.

    Returns:
        For each guard `verification`, what was found of it alone, or else of its group (with its part of the
        steps), and `together`, what was found of the chosen set if it belongs to it.
    """
    units = rule_units(groups)
    short = replace(config, branches=FIRST_LOOK) if len(units) > 1 else config  # leaves enough for what follows

    def attempt(sets: Sequence[tuple[str, ...]], settings: VerifyConfig) -> dict[tuple[str, ...], Verification]:
        proposals = [Proposal(habits=tuple(habits[name] for name in names)) for names in sets]
        results = verify(proposals, bench, settings)
        return {names: found for names, found in zip(sets, results, strict=True) if found is not None}

    tried = attempt(units, short)
    failed = [names for names in units if len(names) > 1 and names in tried and tried[names].verdict != "helps"]
    tried |= attempt([(name,) for names in failed for name in names], replace(config, branches=FIRST_LOOK))
    parts = [names for names in tried if names not in failed]
    helping = [names for names in parts if tried[names].verdict == "helps"]
    hopeful = [names for names in parts if tried[names].verdict != "harms"]
    unions = {tuple(name for names in part for name in names) for part in (helping, hopeful) if len(part) > 1}
    tried |= attempt([names for names in sorted(unions) if names not in tried], config)
    good = [names for names, found in tried.items() if found.verdict == "helps"]
    chosen = max(good, key=lambda names: tried[names].advantage, default=())
    of_group = {
        name: replace(tried[names], steps=tried[names].steps // len(names))
        for names in units
        if names in tried
        for name in names
    }
    return {
        name: {
            "verification": tried.get((name,), of_group.get(name)),
            "together": tried[chosen] if name in chosen else None,
        }
        for name in habits
    }


def rule_units(groups: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Which guards are tried as one: those of a group, in their order; the others alone."""
    units: dict[str, list[str]] = {}
    for name, group in groups.items():
        units.setdefault(group or f"alone: {name}", []).append(name)
    return [tuple(names) for names in units.values()]


class Recheck:
    """Tries advice that training uses again, under the policy as it has become.

    Args:
        batch: where.
        entries: the book, before anything was left out of it.
        config: pairs and confidence.
        gamma: discount.
        horizon: longest branch.
        budget: charged `verify` steps.
        allowance: most steps, over all checks.
        seed: of a random generator for each check.
    """

    def __init__(
        self,
        batch: Batch,
        entries: Sequence[Entry],
        config: VerifyConfig,
        gamma: float,
        horizon: int,
        budget: StepBudget,
        allowance: int,
        seed: Sequence[int],
    ) -> None:
        self._batch, self._entries, self._config = batch, entries, config
        self._gamma, self._horizon, self._budget = gamma, horizon, budget
        self._allowance, self._seed = allowance, list(seed)
        self._done = self._spent = 0

    def due(self, fraction: float) -> bool:
        """Whether it is time again, at this share of the time in which advice is used."""
        return self._done < len(CHECKS) and fraction >= CHECKS[self._done]

    def run(self, policy: Policy, rows: Sequence[int]) -> list[Verification | None]:
        """What is found of these entries, the first ones first; None where the allowance did not last."""
        rng = np.random.default_rng([*self._seed, self._done])
        allowance = self._allowance // len(CHECKS)
        bench = Bench(self._batch, policy, self._gamma, self._horizon, self._budget, "verify", allowance, rng)
        advice = [(self._entries[row].advice, self._entries[row].snapshot) for row in rows]
        proposals = [Proposal(item.plan, start) for item, start in advice]
        found = verify(proposals, bench, self._config, [item.strength for item, _ in advice])
        self._done += 1
        self._spent += allowance - bench.left
        return found

    def state(self) -> dict[str, int]:
        """What a checkpoint must hold."""
        return {"done": self._done, "spent": self._spent}

    def load_state(self, state: dict[str, int]) -> None:
        """Inverse of `state`; the steps that were taken are charged again."""
        self._done, self._spent = state["done"], state["spent"]
        self._budget.charge("verify", self._spent)


def audit(advice: Sequence[Advice | Rule]) -> dict[str, Any]:
    """How good an adviser was: verdicts, mean advantage with its interval, steps per helpful advice."""
    return audit_of([item.verification for item in advice])


def audit_of(found: Sequence[Verification | None]) -> dict[str, Any]:
    """The same from what was found; None for what was not tried."""
    tried = [item for item in found if item is not None]
    counts = {verdict: sum(v.verdict == verdict for v in tried) for verdict in ("helps", "harms", "unclear")}
    steps = sum(v.steps for v in tried)
    advantages = [v.advantage for v in tried]
    mean = mean_interval(advantages) if len(tried) > 1 else None
    return {
        "advices": len(found),
        **counts,
        "tried": len(tried),
        "untried": len(found) - len(tried),
        "mean_advantage": float(np.mean(advantages)) if tried else None,
        "ci95": [mean.low, mean.high] if mean else None,
        "verification_steps": steps,
        "steps_per_helpful": math.ceil(steps / counts["helps"]) if counts["helps"] else None,
    }
