"""What a study may claim over its tasks: Holm-adjusted tests of its main comparison and of exploratory ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ultra.common.statistics import Difference, holm, welch_difference

Array = NDArray[np.float64]

LEVEL = 0.05
"""Probability, at most, of claiming any difference over a family of tasks where there is none."""


@dataclass(frozen=True)
class TaskTest:
    """A comparison on one task."""

    difference: Difference
    """Of mean returns."""
    adjusted: float
    """The p-value, Holm-adjusted over the tasks of the study."""

    @property
    def finding(self) -> str:
        """What may be claimed of the task, all other tasks considered: "better", "worse" or ""."""
        if self.adjusted > LEVEL:
            return ""
        return "better" if self.difference.estimate.mean > 0 else "worse"


@dataclass(frozen=True)
class Claim:
    """A comparison of two contenders over all tasks of a study."""

    method: str
    against: str
    main: bool
    """Whether the study's plan names it as its main comparison; all others are exploratory."""
    family: int
    """Tasks of the study: those without two seeds of both are in the family, as tests that show nothing."""
    tests: dict[str, TaskTest]
    """By task, where both have two seeds."""
    overall: Difference | None
    """Of normalised scores, as a mean over the tasks that are scored together; None without two seeds of both."""

    def __str__(self) -> str:
        title = "Main comparison" if self.main else "Exploratory"
        parts = []
        for finding in ("better", "worse"):
            found = [
                f"{name} ({p_words(test.adjusted)})" for name, test in self.tests.items() if test.finding == finding
            ]
            parts.append(f"{finding} on {', '.join(found) if found else 'none'}")
        text = (
            f"{title}: {self.method} against {self.against} over {self.family} task{'s' * (self.family > 1)}: "
            f"{' and '.join(parts)}, Holm-adjusted at {LEVEL:.0%}"
        )
        if len(self.tests) < self.family:
            text += f"; {self.family - len(self.tests)} not tested for want of seeds"
        if self.overall is not None:
            mean = self.overall.estimate
            text += (
                f". Mean difference of normalised scores {mean.mean:+.2f} [{mean.low:+.2f}, {mean.high:+.2f}], "
                f"{p_words(self.overall.p_value)}"
            )
        return f"{text}."


def make_claim(
    method: str,
    against: str,
    returns: dict[str, tuple[Array, Array]],
    tasks: Sequence[str],
    scores: tuple[Array, Array],
    *,
    main: bool,
) -> Claim:
    """Compare two contenders on every task and over all of them.

    Args:
        method: the first contender's name.
        against: the second one's.
        returns: (seeds,) of the first and of the second, by task, as far as they are finished.
        tasks: of the study, finished or not: the family.
        scores: (seeds, tasks) of the first and of the second, normalised, of the tasks that are scored together.
        main: whether the study's plan names this comparison as its main one.
    """
    differences = {
        name: welch_difference(*returns[name])
        for name in tasks
        if name in returns and min(map(len, returns[name])) >= 2
    }
    adjusted = holm([differences[name].p_value if name in differences else 1.0 for name in tasks])
    tests = {
        name: TaskTest(differences[name], value)
        for name, value in zip(tasks, adjusted, strict=True)
        if name in differences
    }
    testable = min(map(len, scores)) >= 2 and scores[0].size > 0
    return Claim(method, against, main, len(tasks), tests, welch_difference(*scores) if testable else None)


def p_words(p_value: float) -> str:
    """A p-value with three decimals."""
    return f"p = {p_value:.3f}" if p_value >= 0.001 else "p < 0.001"
