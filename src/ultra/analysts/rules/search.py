"""Rules that the simulator finds: many ideas race in whole episodes, and the best goes to verification.

Sequential halving (Karnin et al., ICML 2013) with few rounds: every idea plays one episode, the better ones
play more. Whoever wins was lucky too, so only `ultra.verification.verdicts`, in fresh episodes, says what it is worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ultra.advice.graft import readable_facts
from ultra.advice.records import Rule
from ultra.analysts.base import Case, whole_episodes
from ultra.analysts.rules.climb import climb
from ultra.analysts.rules.ideas import Idea, ideas
from ultra.collection.trajectories import visited
from ultra.simulation.paired import Proposal
from ultra.tasks.spaces import Continuous

TOGETHER = 8
"""Ideas that play their first episode at once."""
SCREENING = 0.6
"""Share of the steps for first episodes."""
SEMIFINAL, FINAL = 5, 2
"""Then so many of the best ideas play two more episodes, and so many four by four as long as there are steps."""
PER_ENDING, PER_ENDLESS = 24, 32
"""Episodes are cut such that so many can be played: where some end by themselves, and where all go on."""
MEASURING = 0.1
"""Share of the steps for measuring what discrete actions do, at most."""


@dataclass(frozen=True, eq=False)
class _Racer:
    """An idea with what its episodes gave."""

    idea: Idea
    returns: NDArray[np.float64]


def search_rules(case: Case, allowance: int, sign: float, source: str, kept: int = 1) -> list[Rule]:
    """The rules of the ideas that won, each idea a group of its own.

    Args:
        case: policy, episodes and means to look closer.
        allowance: most steps.
        sign: 1 looks for rules that help, -1 for those that harm, and these are praised with rewards.
        source: who proposes them.
        kept: ideas at most.
    """
    columns = case.task.card.matched
    if case.finishing:
        columns = columns[readable_facts(case.policy, *visited(case.episodes))[columns]]
        if sign > 0 and isinstance(case.task.action_space, Continuous):
            return climb(case, columns, allowance, source)
    used = case.budget.used
    pool = ideas(case, columns, int(MEASURING * allowance), controllers=sign > 0)
    first = list(islice(pool, TOGETHER))  # measures what actions do
    race = _Race(case, allowance - (case.budget.used - used), sign)
    race.screen(first, pool)
    compared = len(race.racers)
    if compared:
        case.progress(f"compared {compared} ideas for rules in episodes of at most {race.longest} steps")
    race.play(max(SEMIFINAL, kept), 2)
    while race.play(max(FINAL, kept), 4):
        pass
    winners: list[_Racer] = []
    for racer in race.racers:  # rules are known by their guards
        if len(winners) < kept and not any(racer.idea.guards & other.idea.guards for other in winners):
            winners.append(racer)
    return [
        Rule(
            guard=guard,
            plan=plan,
            reward=1.0 if sign < 0 else 0.0,
            explanation=f"{racer.idea.words}: the best of {compared} ideas that were compared in whole episodes",
            source=source,
            group=f"idea {number}",
        )
        for number, racer in enumerate(winners, 1)
        for guard, plan in racer.idea.parts
    ]


class _Race:
    """Ideas in the order of what their episodes gave so far, the best first."""

    def __init__(self, case: Case, allowance: int, sign: float) -> None:
        self._names, self._sign, self._allowance = case.task.card.fact_names, sign, allowance
        self._bench = whole_episodes(case, "analyse", allowance, PER_ENDING, PER_ENDLESS)
        self.longest = self._bench.horizon
        self.racers: list[_Racer] = []

    def screen(self, first: list[Idea], pool: Iterator[Idea]) -> None:
        """One episode of each idea, all from the same start, as long as the share for that lasts."""
        seeds = self._bench.seeds(1)
        while first and self._bench.left > (1 - SCREENING) * self._allowance and self._bench.affordable(len(first)):
            self._play([_Racer(idea, np.zeros(0)) for idea in first], seeds)
            first = list(islice(pool, TOGETHER))

    def play(self, best: int, episodes: int) -> bool:
        """More episodes of the best ideas, from the same starts, if there are as many steps; returns whether."""
        racers = self.racers[:best]
        affordable = bool(racers) and self._bench.affordable(episodes * len(racers))
        if affordable:
            self._play(racers, self._bench.seeds(episodes))
        return affordable

    def _play(self, racers: list[_Racer], seeds: tuple[int, ...]) -> None:
        found = self._bench.returns([Proposal(habits=racer.idea.habits(self._names)) for racer in racers], seeds)
        played = [
            _Racer(racer.idea, np.append(racer.returns, self._sign * returns))
            for racer, returns in zip(racers, found, strict=True)
        ]
        others = [racer for racer in self.racers if racer not in racers]
        # What played more is ahead of what did not: one lucky episode is not held against several.
        self.racers = sorted([*others, *played], key=lambda racer: (-len(racer.returns), -racer.returns.mean()))
