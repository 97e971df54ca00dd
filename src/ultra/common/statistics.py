"""Statistics of returns: intervals, differences, and summaries over runs and tasks.

Interquartile mean, stratified bootstrap and probability of improvement follow Agarwal et al.,
"Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ultra.common.errors import UltraError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float
    count: int

    def as_dict(self) -> dict[str, Any]:
        """The figures of `result.json`."""
        return {"mean": self.mean, "ci95": [self.low, self.high], "episodes": self.count}

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


def mean_interval(sample: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean of a sample with its Student-t interval.

    Raises:
        UltraError: for fewer than two values.
    """
    values = np.asarray(sample, dtype=np.float64)
    if len(values) < 2:
        raise UltraError(f"an interval needs at least 2 values, not {len(values)}")
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) / math.sqrt(len(values))
    width = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1)) * spread
    return Estimate(mean, mean - width, mean + width, len(values))


@dataclass(frozen=True)
class Difference:
    """A difference of means, new minus old, with Welch's interval and test."""

    estimate: Estimate
    p_value: float
    """Two-sided, of no difference."""


def welch_difference(new: Array, old: Array, confidence: float = 0.95) -> Difference:
    """Mean over tasks of the difference of means, by Welch's t test with tasks as strata.

    Args:
        new: (runs, tasks); runs of one task, (runs,).
        old: likewise, perhaps another number of runs.
        confidence: of the interval.

    Raises:
        UltraError: for fewer than two runs of either.
    """
    count = len(new)
    if min(count, len(old)) < 2:
        raise UltraError(f"an interval needs at least 2 values of each, not {count} and {len(old)}")
    samples = [np.asarray(sample, dtype=np.float64).reshape(len(sample), -1) for sample in (new, old)]
    tasks = samples[0].shape[1]
    mean = float(np.mean(samples[0].mean(axis=0) - samples[1].mean(axis=0)))
    variances = [sample.var(axis=0, ddof=1) / (len(sample) * tasks**2) for sample in samples]
    variance = float(sum(part.sum() for part in variances))
    if variance**2 == 0.0:  # no spread, or one too small to be squared
        return Difference(Estimate(mean, mean, mean, count), float(mean == 0.0))
    parts = zip(variances, samples, strict=True)
    freedom = variance**2 / sum(float((part**2).sum()) / (len(sample) - 1) for part, sample in parts)
    width = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * math.sqrt(variance)
    p_value = 2 * float(stats.t.sf(abs(mean) / math.sqrt(variance), freedom))
    return Difference(Estimate(mean, mean - width, mean + width, count), p_value)


def difference_interval(new: Sequence[float], old: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Difference of two means, new minus old, with Welch's interval."""
    return welch_difference(np.asarray(new), np.asarray(old), confidence).estimate


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for testing a family of hypotheses (Holm, 1979).

    Rejecting where they are at most 5% rejects any true hypothesis of the family with at most 5% probability, however
    the tests depend on each other.

    Args:
        p_values: of all hypotheses of the family; 1 for one that could not be tested.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


MOST_FLIPPED = 16
"""Differences for which the exact sign-flip test is affordable: 65,536 sign patterns."""


def sign_flip_p_value(differences: Sequence[float] | Array) -> float:
    """One-sided p-value of the exact sign-flip (Fisher randomisation) test that paired differences have mean 0.

    It holds at any sample size where differences are symmetric about their mean under the null hypothesis.

    Args:
        differences: (pairs,), at most `MOST_FLIPPED`; large means speak against the null hypothesis.

    Raises:
        UltraError: for no differences, or too many to try all sign patterns.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not 1 <= len(values) <= MOST_FLIPPED:
        raise UltraError(f"the exact sign-flip test takes 1 to {MOST_FLIPPED} differences, not {len(values)}")
    patterns = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
    sums = (1 - 2 * patterns) @ values
    rounding = 1e-9 * float(np.abs(values).sum())
    return float(np.mean(sums >= values.sum() - rounding))


def interquartile_mean(values: Array) -> float:
    """Mean of the middle half of all values, whatever their shape."""
    ordered = np.sort(np.ravel(values))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def probability_of_improvement(new: Array, old: Array) -> float:
    """How likely a run of `new` beats a run of `old` on a task, averaged over tasks; ties count half.

    Args:
        new: (runs, tasks).
        old: (runs, tasks), perhaps another number of runs.
    """
    wins = [
        float(np.mean((new[:, None, k] > old[None, :, k]) + 0.5 * (new[:, None, k] == old[None, :, k])))
        for k in range(new.shape[1])
    ]
    return float(np.mean(wins))


def normalize(returns: Array, start: float, reference: float) -> Array:
    """Returns as scores: 0 is the starting policy, 1 the reference.

    Raises:
        UltraError: if the reference is not above the start, so that scores would say nothing.
    """
    if not reference > start:
        raise UltraError(f"the reference return {reference:g} must be above the start, {start:g}: give a higher one")
    return (np.asarray(returns, dtype=np.float64) - start) / (reference - start)


def performance_profile(scores: Array, thresholds: Array) -> Array:
    """Share of runs that score above each threshold, averaged over tasks.

    Args:
        scores: (runs, tasks).
        thresholds: (thresholds,).

    Returns:
        Shares, (thresholds,).
    """
    return np.asarray(np.mean(scores[..., None] > thresholds, axis=(0, 1)), dtype=np.float64)


def stratified_bootstrap(
    statistic: Callable[..., float],
    *samples: Array,
    rng: np.random.Generator,
    draws: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """A statistic of score tables with its percentile interval; runs are resampled within each task.

    Args:
        statistic: of the tables.
        samples: (runs, tasks) each.
        rng: source of the resampling.
        draws: resamples.
        confidence: of the interval.
    """
    low, high = _percentiles(statistic, samples, rng, draws, confidence)
    return Estimate(statistic(*samples), float(low), float(high), len(samples[0]))


def bootstrap_band(
    statistic: Callable[[Array], Array],
    table: Array,
    *,
    rng: np.random.Generator,
    draws: int = 2000,
    confidence: float = 0.95,
) -> tuple[Array, Array]:
    """Pointwise percentile intervals of a statistic with many values, such as a profile or a learning curve.

    Args:
        statistic: of the table; returns an array.
        table: (runs, tasks) or, for curves, (runs, tasks, points); runs are resampled within each task.
        rng: source of the resampling.
        draws: resamples.
        confidence: of the intervals.

    Returns:
        Lower and upper ends, shaped as the statistic.
    """
    return _percentiles(statistic, (table,), rng, draws, confidence)


def _percentiles(
    statistic: Callable[..., Any],
    samples: Sequence[Array],
    rng: np.random.Generator,
    draws: int,
    confidence: float,
) -> tuple[Array, Array]:
    def resample(table: Array) -> Array:
        runs, tasks = table.shape[:2]
        return table[rng.integers(runs, size=(runs, tasks)), np.arange(tasks)]

    found = [statistic(*(resample(table) for table in samples)) for _ in range(draws)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail], axis=0)
    return low, high


ENOUGH_RUNS = 5
"""Runs for each task from which on a 95% bootstrap interval covers the truth in about nine of ten cases."""


def interval_remark(runs: int) -> str:
    """A caveat about 95% bootstrap intervals from this number of runs for each task; empty if they are reliable.

    The figures are those of the simulation in the tests (interquartile mean, one task, normal scores).
    """
    if runs < 2:
        return "One seed has no interval: nothing can be said about chance; use 5 seeds or more."
    if runs < ENOUGH_RUNS:
        covered = {2: "half", 3: "three quarters", 4: "nine tenths"}[runs]
        return (
            f"{runs} seeds are too few for 95% intervals: in simulation theirs cover the truth about {covered} of the "
            "time on a single task; read them as a rough guide and use 5 seeds or more (10 for 95%)."
        )
    return ""


def rises(rows: list[list[float]]) -> bool:
    """Whether the second half of a learning curve rises by more than two standard errors of its least-squares slope."""
    late = rows[len(rows) // 2 :]
    if len(late) < 3:
        return False
    steps, returns = np.array([row[:2] for row in late]).T
    spread, rest = steps - steps.mean(), returns - returns.mean()
    scale = float(spread @ spread)
    if scale == 0:
        return False
    slope = float(spread @ rest) / scale
    left = rest - slope * spread
    return slope > 2 * math.sqrt(float(left @ left) / (len(late) - 2) / scale)
