"""The explanation that RICE uses: critical states by a trained mask network, without advice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ultra.advice.records import Advice, CriticalState
from ultra.analysts.base import Case, Proposals
from ultra.analysts.mask import importance, train_mask
from ultra.analysts.turns import TurnReport
from ultra.policies.io import save_policy
from ultra.ppo.train import Iteration

SPACING = 4
"""Critical states of one episode lie at least so many steps apart."""


def most_important(importances: Sequence[NDArray[np.float64]], count: int) -> list[tuple[int, int]]:
    """The places (episode, t) of the most important states, from all episodes alike.

    First the most important state of every episode, then every episode's second, and so on; states of
    one episode lie `SPACING` apart. Of `count` equal to the number of episodes, each gives one.
    """
    left = [np.array(values, dtype=np.float64) for values in importances]
    places: list[tuple[int, int]] = []
    while len(places) < count and any(np.isfinite(values).any() for values in left):
        found = []
        for episode, values in enumerate(left):
            t = int(np.argmax(values))
            if np.isfinite(values[t]):
                found.append((episode, t))
                values[max(0, t - SPACING + 1) : t + SPACING] = -np.inf
        found.sort(key=lambda place: -importances[place[0]][place[1]])
        places += found
    return sorted(places[:count], key=lambda place: -importances[place[0]][place[1]])


class StateMaskAnalyst:
    """Trains a mask network for the policy; its advice is no advice."""

    name = "statemask"

    def identify(self, case: Case) -> list[CriticalState]:
        """The most important states of the episodes; the mask network is kept in the round's folder."""

        def tell(iteration: Iteration) -> None:
            case.progress(f"mask network, {iteration.steps:,} of {iteration.total:,} steps")

        mask, steps = train_mask(
            case.task,
            case.policy,
            case.statemask,
            case.ppo,
            min(case.allowance, case.budget.remaining),
            case.rng,
            observer=tell,
            checkpoint=case.folder / "mask-checkpoint.npz",
            workers=case.workers,
        )
        case.budget.charge("analyse", steps)
        save_policy(mask, case.folder / "mask", {"made_by": "statemask"})
        importances = [importance(mask, episode.observations[:-1]) for episode in case.episodes]
        return [
            CriticalState(e, t, float(importances[e][t]), f"the mask network keeps the action: {importances[e][t]:.3f}")
            for e, t in most_important(importances, case.config.states)
        ]

    def advise(self, case: Case, states: Sequence[CriticalState]) -> list[Advice]:
        """A mask network says where the policy's action matters, not which one would be better."""
        return []

    def propose(self, case: Case, states: Sequence[CriticalState], report: TurnReport | None) -> Proposals:
        """Nothing: a mask network says where actions matter, not what to do."""
        return Proposals()
