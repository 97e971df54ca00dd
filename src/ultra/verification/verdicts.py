"""Stage 3: try every advice in the simulator before anything is trained on it.

From the saved critical state the simulator branches: once following the advice and then the policy,
once the policy alone, with common random numbers (rollout algorithms; TRPO's vine, arXiv
1502.05477). The verdict rests on the confidence interval of the paired difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ultra.advice.records import Advice, Verdict, Verification
from ultra.common.statistics import mean_interval
from ultra.config import VerifyConfig
from ultra.simulation.paired import Candidate, PairedEvaluator, Trial

STRENGTHS = (1.0, 0.5, 0.25)
"""Factors that are tried for a relative plan: the adviser gives the direction, the simulator the size."""
STRENGTH_PAIRS = 4
"""Pairs for choosing a strength."""
FIRST_LOOK = 8
"""Pairs before the first look at a candidate: fewer agree too easily by chance. Each later look doubles them."""
FUTILE = 0.2
"""What will become clear with a smaller chance than this is tried no longer."""


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


def verify(
    candidates: Sequence[Candidate], evaluator: PairedEvaluator, config: VerifyConfig, strengths: Sequence[float] | None = None
) -> list[Verification | None]:
    """Try candidates, all at once, until each is clear, will hardly become clear, or the allowance is spent.

    A relative plan first gets its strength from a few pairs; the verdict rests on fresh pairs only,
    so that the choice does not flatter it. Looks double the pairs, and the interval is widened for
    the number of looks.

    Args:
        candidates: what comes first is tried first.
        evaluator: where, and with how many steps.
        config: pairs and confidence.
        strengths: of each candidate, if they are known already.

    Returns:
        What was found of each; None where the allowance left too few pairs.
    """
    chosen, spent = (
        _choose_strengths(candidates, evaluator) if strengths is None else (list(strengths), [0] * len(candidates))
    )
    sizes = looks(config.branches)
    found: list[Verification | None] = [None] * len(candidates)
    settled = [False] * len(candidates)
    differences = [np.zeros(0)] * len(candidates)
    for size in sizes:
        rows, trials, planned = [], [], 0
        for row, candidate in enumerate(candidates):
            more = size - len(differences[row])
            if size > FIRST_LOOK:  # a later look makes do with what is left
                more = min(more, evaluator.left // (2 * evaluator.horizon) - planned // 2)
            if not settled[row] and more > 0 and evaluator.affordable(planned + 2 * more):
                planned += 2 * more
                rows.append(row)
                trials.append(Trial(candidate, chosen[row], evaluator.seeds(more)))
        for row, paired in zip(rows, evaluator.run(trials), strict=True):
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


def _choose_strengths(candidates: Sequence[Candidate], evaluator: PairedEvaluator) -> tuple[list[float], list[int]]:
    """For each candidate the strength with the best mean over a few pairs, and the steps that it took."""
    strengths = [1.0] * len(candidates)
    spent = [0] * len(candidates)
    rows, trials, planned = [], [], 0
    for row, candidate in enumerate(candidates):
        branches = STRENGTH_PAIRS * (1 + len(STRENGTHS))
        if candidate.scalable and evaluator.affordable(planned + branches):
            planned += branches
            seeds = evaluator.seeds(STRENGTH_PAIRS)
            rows.append(row)
            trials += [Trial(candidate, strength, seeds) for strength in STRENGTHS]
    results = evaluator.run(trials)
    for place, row in enumerate(rows):
        tried = results[place * len(STRENGTHS) : (place + 1) * len(STRENGTHS)]
        best = int(np.argmax([paired.differences.mean() for paired in tried]))
        strengths[row] = STRENGTHS[best]
        spent[row] = sum(paired.steps for paired in tried)
    return strengths, spent


def audit(advice: Sequence[Advice]) -> dict[str, Any]:
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
