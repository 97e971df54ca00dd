"""Stage 3: try every suggestion in the simulator before anything is trained on it.

From the saved critical state the simulator branches: once with the suggestion and then the policy, once with the
policy alone, with common random numbers (rollout algorithms; TRPO's vine, arXiv 1502.05477). The verdict rests on
the confidence interval of the mean paired difference, at interim analyses after 8, 16, 32, ... pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ultra.advice.records import Advice, Verdict, Verification
from ultra.common.statistics import mean_interval, sign_flip_p_value
from ultra.config import VerifyConfig
from ultra.simulation.paired import Candidate, PairedEvaluator, Trial

STRENGTHS = (1.0, 0.5, 0.25)
"""Factors that are tried for a relative plan: the analyst gives the direction, the simulator the size."""
STRENGTH_PAIRS = 4
"""Pilot pairs for choosing a strength. They do not count towards the verdict."""
FIRST_LOOK = 8
"""Pairs at the first interim analysis. No verdict rests on fewer; each later analysis doubles the number."""
FUTILITY = 0.2
"""Stop for futility if the predictive probability of a clear verdict is below this."""


def interim_analyses(most: int) -> list[int]:
    """Numbers of pairs at which a verdict may be reached: 8, 16, 32, ..., and at last `most` (at least 8)."""
    sizes = [FIRST_LOOK]
    while 2 * sizes[-1] <= most:
        sizes.append(2 * sizes[-1])
    return sizes if sizes[-1] >= most else [*sizes, most]


def interval(differences: NDArray[np.float64], confidence: float, analyses: int) -> tuple[float, float]:
    """Confidence interval of the mean paired difference, Bonferroni-corrected for the number of analyses.

    Student's t. Up to `FIRST_LOOK` pairs the interval leaves zero out only if the exact sign-flip test rejects it at
    the same level as well: with so few pairs that differ by equal amounts, as those of a bet do, t alone errs in 3.5%
    of cases where it promises 2.5%.

    Args:
        differences: (pairs,), at least two.
        confidence: over all analyses together.
        analyses: number of analyses that are planned.
    """
    mean = float(differences.mean())
    spread = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    tail = (1 - confidence) / (2 * analyses)
    width = float(stats.t.ppf(1 - tail, len(differences) - 1)) * spread
    low, high = mean - width, mean + width
    if (
        low <= 0 <= high
        or len(differences) > FIRST_LOOK
        or sign_flip_p_value(math.copysign(1, mean) * differences) <= tail
    ):
        return low, high
    return min(low, 0.0), max(high, 0.0)


def predictive_probability(differences: NDArray[np.float64], most: int, confidence: float, analyses: int) -> float:
    """Probability, given the pairs so far, that the interval of all `most` pairs will leave zero out.

    Spiegelhalter, Freedman and Parmar (1994), with a flat prior: the mean of all pairs has a t distribution about the
    mean of those seen. Stopping for futility where it is small adds no wrong verdict: the verdict stays unclear.
    """
    count = len(differences)
    spread = float(differences.std(ddof=1))
    if spread == 0.0:
        return 1.0  # no estimate of the spread yet
    mean = float(differences.mean()) / spread
    width = float(stats.t.ppf(1 - (1 - confidence) / (2 * analyses), most - 1)) / math.sqrt(most)
    scale = math.sqrt(1 / count - 1 / most)
    return float(sum(stats.t.cdf((side * mean - width) / scale, count - 1) for side in (1, -1)))


def verdict_of(low: float, high: float) -> Verdict:
    """The verdict that a confidence interval gives."""
    return "helps" if low > 0 else "harms" if high < 0 else "unclear"


@dataclass
class _Sequential:
    """A candidate in a group-sequential test, with its pairs so far."""

    candidate: Candidate
    strength: float = 1.0
    steps: int = 0
    differences: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    analyses: int = 0
    """Interim analyses so far."""
    stopped: bool = False
    """A verdict was reached, or it was stopped for futility."""
    found: Verification | None = None

    def analyse(self, sizes: Sequence[int], confidence: float) -> None:
        """The next interim analysis, with all pairs so far."""
        self.analyses += 1
        pairs = len(self.differences)
        low, high = interval(self.differences, confidence, len(sizes))
        verdict = verdict_of(low, high)
        mean = float(self.differences.mean())
        self.found = Verification(mean, low, high, pairs, self.strength, verdict, self.steps)
        futile = (
            pairs < sizes[-1] and predictive_probability(self.differences, sizes[-1], confidence, len(sizes)) < FUTILITY
        )
        self.stopped = verdict != "unclear" or futile or self.analyses == len(sizes)


def verify(
    candidates: Sequence[Candidate],
    evaluator: PairedEvaluator,
    config: VerifyConfig,
    strengths: Sequence[float] | None = None,
) -> list[Verification | None]:
    """Group-sequential tests of candidates, side by side, within the evaluator's allowance.

    A relative plan first gets its strength from a few pilot pairs; the verdict rests on fresh pairs only, so that the
    choice does not flatter it. A candidate is stopped as soon as its verdict is clear, for futility, or when the
    allowance is spent. First analyses take precedence over later ones, and a candidate for whose first analysis the
    allowance does not last is not tried; a later analysis may be of fewer pairs than planned.

    Args:
        candidates: in order of precedence.
        evaluator: runs the pairs.
        config: most pairs, and confidence.
        strengths: of each candidate, if they are known already.

    Returns:
        A verification of each candidate; None for those that were not tried.
    """
    sizes = interim_analyses(config.branches)
    tests = [_Sequential(candidate) for candidate in candidates]
    if strengths is None:
        _choose_strengths(tests, evaluator)
    else:
        for test, strength in zip(tests, strengths, strict=True):
            test.strength = strength
    while planned := _next_pairs(tests, sizes, evaluator):
        trials = [Trial(test.candidate, test.strength, evaluator.seeds(pairs)) for test, pairs in planned]
        for (test, _), paired in zip(planned, evaluator.run(trials), strict=True):
            test.steps += paired.steps
            test.differences = np.concatenate([test.differences, paired.differences])
            test.analyse(sizes, config.confidence)
    return [test.found for test in tests]


def _next_pairs(
    tests: Sequence[_Sequential], sizes: Sequence[int], evaluator: PairedEvaluator
) -> list[tuple[_Sequential, int]]:
    """The tests that go on, with the pairs that each gets before its next analysis."""
    affordable = evaluator.left // (2 * evaluator.horizon)  # pairs, if no branch ends early
    planned = []
    for test in sorted(tests, key=lambda test: test.analyses > 0):
        if test.stopped:
            continue
        pairs = sizes[test.analyses] - len(test.differences)
        if test.analyses > 0:
            pairs = min(pairs, affordable)
        if 0 < pairs <= affordable:
            affordable -= pairs
            planned.append((test, pairs))
    return planned


def _choose_strengths(tests: Sequence[_Sequential], evaluator: PairedEvaluator) -> None:
    """Give each relative plan the strength with the best mean over a few pilot pairs.

    Pilots are run only where the allowance lasts for the first analysis too; otherwise the strength stays 1.
    """
    pilots: list[tuple[_Sequential, tuple[int, ...]]] = []
    planned = 0
    for test in tests:
        planned += 2 * FIRST_LOOK
        branches = STRENGTH_PAIRS * (1 + len(STRENGTHS))
        if test.candidate.scalable and evaluator.affordable(planned + branches):
            planned += branches
            pilots.append((test, evaluator.seeds(STRENGTH_PAIRS)))
    results = iter(
        evaluator.run([Trial(test.candidate, strength, seeds) for test, seeds in pilots for strength in STRENGTHS])
    )
    for test, _ in pilots:
        tried = [next(results) for _ in STRENGTHS]
        test.strength = STRENGTHS[int(np.argmax([paired.differences.mean() for paired in tried]))]
        test.steps += sum(paired.steps for paired in tried)


def audit(advice: Sequence[Advice]) -> dict[str, Any]:
    """How good an analyst's suggestions were: verdicts, mean advantage with its interval, steps per helpful one."""
    return audit_of([item.verification for item in advice])


def suggestions_of(audit: Mapping[str, Any]) -> int:
    """The number of suggestions in an audit; results of earlier versions call it `advices`."""
    return int(audit["suggestions"] if "suggestions" in audit else audit["advices"])


def audit_of(found: Sequence[Verification | None]) -> dict[str, Any]:
    """The same from verifications; None for a suggestion that was not tried."""
    tried = [item for item in found if item is not None]
    counts = {verdict: sum(v.verdict == verdict for v in tried) for verdict in ("helps", "harms", "unclear")}
    steps = sum(v.steps for v in tried)
    advantages = [v.advantage for v in tried]
    mean = mean_interval(advantages) if len(tried) > 1 else None
    return {
        "suggestions": len(found),
        **counts,
        "tried": len(tried),
        "untried": len(found) - len(tried),
        "mean_advantage": float(np.mean(advantages)) if tried else None,
        "ci95": [mean.low, mean.high] if mean else None,
        "verification_steps": steps,
        "steps_per_helpful": math.ceil(steps / counts["helps"]) if counts["helps"] else None,
    }
