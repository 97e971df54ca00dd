"""Where programs compete: common episodes from fresh starts, within an allowance of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ultra.programs.compiled import Controller
from ultra.simulation.paired import Played

TOGETHER = 64
"""Episodes that are played at once."""


class Evaluator(Protocol):
    """Plays episodes and charges their steps: `ultra.simulation.paired.PairedEvaluator`."""

    left: int
    horizon: int

    def seeds(self, count: int) -> tuple[int, ...]:
        """Fresh seeds."""
        ...

    def play(
        self, controllers: Sequence[Controller | None], seeds: Sequence[int], longest: int | None = None
    ) -> Played:
        """Episodes of each controller (None: the agent alone) with each seed."""
        ...


class Arena:
    """An evaluator with an allowance that is never exceeded.

    Attributes:
        allowance: most steps.
        horizon: of a whole episode.
    """

    def __init__(self, evaluator: Evaluator, allowance: int) -> None:
        self.allowance = min(allowance, evaluator.left)
        self.horizon = evaluator.horizon
        self._evaluator, self._before = evaluator, evaluator.left

    @property
    def spent(self) -> int:
        """Steps so far."""
        return self._before - self._evaluator.left

    @property
    def left(self) -> int:
        """Steps that are left."""
        return self.allowance - self.spent

    def play(self, controllers: Sequence[Controller | None], starts: int, longest: int) -> Played | None:
        """Episodes of each controller from common fresh starts.

        Episodes are played in groups, each of which the allowance is sure to last for: where it does not last for
        all, the last controllers are missing. None if it does not last for two, which is nothing to compare.

        Args:
            controllers: what competes; None is the agent alone.
            starts: episodes of each.
            longest: steps after which an episode is cut.
        """
        seeds = self._evaluator.seeds(starts)
        parts: list[Played] = []
        waiting = list(controllers)
        while waiting:
            room = min(max(1, TOGETHER // starts), self.left // (starts * longest))
            if room < (1 if parts else min(2, len(controllers))):
                break
            parts.append(self._evaluator.play(waiting[:room], seeds, longest))
            waiting = waiting[room:]
        if not parts:
            return None
        return Played(
            np.concatenate([part.returns for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.terminated for part in parts]),
        )
