"""Rules on top of rules: hill climbing over small pushes, in whole episodes, from a policy that was trained.

An evolution strategy of one parent (Beyer and Schwefel, Natural Computing 1, 2002): some ideas are tried on top of
what was found so far, the better ones again, and what then adds most is kept. What comes out has been lucky too, so
only `ultra.verification.verdicts`, in fresh episodes, says what all of it together is worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ultra.advice.expression import parse
from ultra.advice.records import Rule
from ultra.analysts.base import Case, whole_episodes
from ultra.analysts.rules.ideas import Idea, ideas, in_words
from ultra.simulation.branches import Habit
from ultra.simulation.paired import Proposal
from ultra.tasks.plans import Plan, Segment

TOGETHER = 8
"""New ideas that are tried in one episode each, on each level."""
FINALISTS, AGAIN = 2, 2
"""So many of them are tried in so many times as many episodes more."""
LEVELS = 8
"""Where the steps would last for more levels, each idea plays more episodes."""
ROOM = 1.5
"""Episodes are not cut shorter than so many times what they usually last."""
PER_ENDING, PER_ENDLESS = 24, 64
"""Episodes are cut such that so many can be played: where some end by themselves, and where all go on."""

_Pushes = dict[str, NDArray[np.float32]]
"""What is added to the action where each guard holds."""


def climb(case: Case, columns: NDArray[np.intp], allowance: int, source: str) -> list[Rule]:
    """Rules, as one group, put on top of each other as long as there were steps.

    Args:
        case: policy, episodes and means to look closer; actions are continuous.
        columns: facts that guards may name.
        allowance: most steps.
        source: who proposes them.
    """
    pool = ideas(case, columns, 0)
    way = _Climb(case, allowance)
    while way.step(pool):
        pass
    case.progress(
        f"tried {way.tried} ideas in episodes of at most {way.horizon} steps: rules under {len(way.pushes)} guards add "
        f"{way.gained:.3g}"
    )
    return [_rule(case, guard, push, source, way.tried) for guard, push in way.pushes.items()]


class _Climb:
    """What was put together so far, and what it seemed to gain.

    Attributes:
        pushes: that are followed.
        tried: ideas.
        gained: sum of the gains when each was taken, in the return of episodes that had not been looked at before.
    """

    def __init__(self, case: Case, allowance: int) -> None:
        self._names, self._allowance = case.task.card.fact_names, allowance
        self._bench = whole_episodes(case, "analyse", allowance, PER_ENDING, PER_ENDLESS)
        self._expression = cache(lambda guard: parse(guard, self._names))
        self._usual = float(np.mean([min(len(episode), self.horizon) for episode in case.episodes]))
        self._taken: list[Idea] = []
        self.pushes: _Pushes = {}
        self.tried, self.gained = 0, 0.0

    @property
    def horizon(self) -> int:
        """Steps of an episode, at most."""
        return self._bench.horizon

    def step(self, pool: Iterator[Idea]) -> bool:
        """Try some ideas on top; returns whether there were ideas and steps for that."""
        ways = 1 + len(self._taken) + TOGETHER + (1 + FINALISTS) * AGAIN
        episodes = max(1, int(self._allowance / (LEVELS * ways * self._usual)))
        # It must fit into the steps that are left even if no episode ends early.
        longest = min(self.horizon, self._bench.left // (ways * episodes))
        if longest < min(self.horizon, ROOM * self._usual):
            return False
        drawn = [*self._taken, *islice(pool, TOGETHER)]  # what was taken last may lead on
        if drawn:
            self.tried += len(drawn)
            self._try(drawn, episodes, longest)
        return bool(drawn)

    def _try(self, drawn: list[Idea], episodes: int, longest: int) -> None:
        ways = [self.pushes, *(_on_top(self.pushes, idea) for idea in drawn)]
        before, self._taken = self._bench.left, []
        first = self._returns(ways, episodes, longest)
        self._usual = (before - self._bench.left) / first.size
        ranks = np.argsort(-first[1:].mean(axis=1), kind="stable")
        best = [0, *(1 + ranks[:FINALISTS]).tolist()]
        if first[best[1]].mean() <= first[0].mean():
            return
        again = self._returns([ways[row] for row in best], AGAIN * episodes, longest)
        means = np.concatenate([first[best], again], axis=1).mean(axis=1)
        winner = int(means.argmax())
        if winner:
            self.pushes, self._taken = ways[best[winner]], [drawn[best[winner] - 1]]
            self.gained += float((again[winner] - again[0]).mean())

    def _returns(self, ways: Sequence[_Pushes], episodes: int, longest: int) -> NDArray[np.float64]:
        """What each way gets (ways, episodes), from the same starts."""
        proposals = [
            Proposal(
                habits=tuple(Habit(self._expression(guard), _plan(push), adds=True) for guard, push in way.items())
            )
            for way in ways
        ]
        return self._bench.returns(proposals, self._bench.seeds(episodes), longest)


def _on_top(found: _Pushes, idea: Idea) -> _Pushes:
    """An idea in addition; pushes under the same guard become one."""
    grown = dict(found)
    for guard, plan in idea.parts:
        push = plan.expand()[0]
        grown[guard] = grown[guard] + push if guard in grown else push
    return grown


def _plan(push: NDArray[np.float32]) -> Plan:
    return Plan((Segment(tuple(float(f"{value:.4g}") for value in push)),), relative=True)


def _rule(case: Case, guard: str, push: NDArray[np.float32], source: str, tried: int) -> Rule:
    plan = _plan(push)
    words = f"{in_words(case, guard, plan)}: put together with others from {tried} ideas, tried in whole episodes"
    return Rule(guard, plan, 0.0, words, source, group="climb")
