"""Cycles of a gait: when a foot comes down again, or else when all facts repeat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ultra.tasks.card import Card

SHORTEST, LONGEST = 4, 80
"""Steps of a cycle."""
ALIKE = 0.4
"""Mean autocorrelation of the facts from which on they repeat."""


def cycle_of(facts: NDArray[np.float64], card: Card) -> tuple[int, int] | None:
    """First and last step of one cycle near the middle of an episode; None if there is none.

    Args:
        facts: (T, n_facts).
        card: names of the facts; contacts end with `_contact`.
    """
    contacts = [k for k, name in enumerate(card.fact_names) if name.endswith("_contact")]
    found = [cycle for cycle in (_of_contact(facts[:, k] > 0.5) for k in contacts) if cycle is not None]
    if found:
        return min(found, key=lambda cycle: cycle[1] - cycle[0])
    return _of_repetition(facts[:, card.matched]) if len(card.matched) else None


def _of_contact(touches: NDArray[np.bool_]) -> tuple[int, int] | None:
    """From one touch-down to the next."""
    downs = np.flatnonzero(touches[1:] & ~touches[:-1]) + 1
    downs = downs[np.diff(downs, prepend=-SHORTEST) >= SHORTEST]  # a foot that bounces comes down once
    gaps = np.diff(downs)
    if len(gaps) < 2:
        return None
    usual = float(np.median(gaps))
    regular = np.flatnonzero((np.abs(gaps - usual) <= 0.25 * usual) & (gaps <= LONGEST))
    if len(regular) < 2:
        return None
    place = regular[np.argmin(np.abs(downs[regular] - len(touches) / 2))]
    return int(downs[place]), int(downs[place + 1])


def _of_repetition(facts: NDArray[np.float64]) -> tuple[int, int] | None:
    middle = facts[max(0, len(facts) // 2 - 128) : len(facts) // 2 + 128]
    spread = middle.std(axis=0)
    middle = (middle - middle.mean(axis=0))[:, spread > 1e-9] / spread[spread > 1e-9]
    longest = min(LONGEST, len(middle) // 3)
    if longest <= SHORTEST or not middle.shape[1]:
        return None
    alike = np.array([np.mean(middle[lag:] * middle[:-lag]) for lag in range(1, longest + 1)])
    for lag in range(SHORTEST, longest):
        peak = alike[lag - 1] >= alike[lag] and alike[lag - 1] >= alike[lag - 2]
        if peak and alike[lag - 1] > ALIKE and alike[: lag - 1].min() < alike[lag - 1] - 0.2:
            start = len(facts) // 2 - lag // 2
            return start, start + lag
    return None
