"""A race of programs: all play, the better ones are tuned on, and the best are put on top of each other.

Every comparison is on common episodes: all entrants of a round, all their settings and the agent alone start from
the same states. Halving as in Karnin et al. (ICML 2013), so that a dozen ideas cost little more than one. Whoever
wins was lucky too: only `ultra.verification`, in fresh episodes, says what the winner is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ultra.programs.compiled import Controller
from ultra.programs.records import Program
from ultra.simulation.paired import PairedEvaluator
from ultra.tuning.entrants import POPULATION, CompilePrograms, Entrant

CUTS = (3, 2, 1)
"""Entrants that go on after the first round, the second, and all later ones."""
FIRST_ROUND, LAST_EPISODES = 0.4, 0.15
"""Shares of the allowance: at most for the first round, and for the comparison at the end."""
STARTS = 2
"""Common starts of a generation, where the allowance lasts for at least `GENERATIONS` generations of that."""
GENERATIONS = 6
ROOM = 1.5
"""Where the agent's episodes end by themselves, episodes are not cut shorter than so many times what they last."""
ENDLESS = 0.2
"""Where they do not, not shorter than this share of the longest."""
SHORTEST = 50
"""Nor shorter than so many steps."""
FINAL_EPISODES = (4, 12)
"""Fewest and most common episodes in the comparison at the end."""


@dataclass(frozen=True)
class Standing:
    """A candidate in the comparison at the end.

    Attributes:
        programs: followed together.
        differences: (episodes,) to the agent alone, from common starts.
        lengths: (episodes,) in steps.
        ended: share of episodes that the task itself ended.
    """

    programs: tuple[Program, ...]
    differences: NDArray[np.float64]
    lengths: NDArray[np.int64]
    ended: float

    @property
    def gain(self) -> float:
        """Mean difference to the agent alone."""
        return float(self.differences.mean())


@dataclass(frozen=True)
class Race:
    """What came of a race.

    Attributes:
        entrants: in the order of the proposals, each with the episodes that it played.
        standings: what the comparison at the end found, the best first; empty if there were no steps for it.
        alone: (episodes,) returns of the agent alone in that comparison.
        steps: that the race took.
    """

    entrants: tuple[Entrant, ...]
    standings: tuple[Standing, ...]
    alone: NDArray[np.float64]
    steps: int


def race(
    entrants: Sequence[Entrant],
    evaluator: PairedEvaluator,
    allowance: int,
    usual: float | None,
    compile_all: CompilePrograms,
    say: Callable[[str], None] = lambda text: None,
) -> Race:
    """Play, tune, combine and compare.

    Args:
        entrants: the proposals; those that come first are played first where the steps do not last for all.
        evaluator: plays episodes.
        allowance: most steps.
        usual: steps after which the agent's own episodes usually end; None if they end at the time limit alone.
        compile_all: makes instructions of programs that are followed together.
        say: told in a few words how it stands.
    """
    return _Race(entrants, evaluator, min(allowance, evaluator.left), usual, compile_all, say).run()


class _Race:
    def __init__(
        self,
        entrants: Sequence[Entrant],
        evaluator: PairedEvaluator,
        allowance: int,
        usual: float | None,
        compile_all: CompilePrograms,
        say: Callable[[str], None],
    ) -> None:
        self._entrants, self._evaluator = tuple(entrants), evaluator
        self._compile, self._say = compile_all, say
        self._allowance, self._before = allowance, evaluator.left
        enough = ROOM * usual if usual is not None else ENDLESS * evaluator.horizon
        self._shortest = min(evaluator.horizon, max(SHORTEST, int(enough)))

    @property
    def _spent(self) -> int:
        return self._before - self._evaluator.left

    def run(self) -> Race:
        for_tuning = int((1 - LAST_EPISODES) * self._allowance)
        alive = self._first_round(int(FIRST_ROUND * self._allowance))
        number = 0
        while alive:
            keep = CUTS[min(number, len(CUTS) - 1)]
            alive = sorted(alive, key=lambda entrant: -entrant.score)[:keep]
            number += 1
            if not any(entrant.tunable for entrant in alive) or not self._round(alive, for_tuning - self._spent):
                break
        ranked = sorted(self._entrants, key=lambda entrant: -np.nan_to_num(entrant.gain, nan=-np.inf))
        standings, alone = self._compare([e for e in ranked if np.isfinite(e.gain)])
        return Race(self._entrants, tuple(standings), alone, self._spent)

    def _first_round(self, allowance: int) -> list[Entrant]:
        """All play: a generation of each where the steps last for it, else each once as it was given."""
        tunable = sum(entrant.tunable for entrant in self._entrants)
        whole = 1 + len(self._entrants) + tunable * (POPULATION - 1)
        settings = POPULATION if allowance // max(1, whole) >= self._shortest else 1
        room = max(1, allowance // self._shortest - 1)
        entrants = list(self._entrants) if settings > 1 else list(self._entrants[:room])
        if not entrants or not self._generation(entrants, settings, 1, allowance):
            return []
        late = list(self._entrants[len(entrants) :])
        while late and settings == 1:  # what was saved by episodes that ended early lasts for more
            room = (allowance - self._spent) // self._shortest - 1
            if room < 1 or not self._generation(late[:room], 1, 1, allowance - self._spent):
                break
            late = late[room:]
        played = [entrant for entrant in self._entrants if entrant.episodes]
        self._say(f"raced {len(played)} of {len(self._entrants)} programs in {self._spent:,} steps")
        return played

    def _round(self, alive: list[Entrant], allowance: int) -> bool:
        """One more generation of each; returns whether there were steps for it."""
        one = (1 + POPULATION * len(alive)) * self._shortest
        starts = STARTS if allowance >= GENERATIONS * STARTS * one else 1
        return self._generation(alive, POPULATION, starts, allowance)

    def _generation(self, entrants: list[Entrant], settings: int, starts: int, allowance: int) -> bool:
        points = [entrant.generation(settings) for entrant in entrants]
        count = starts * (1 + sum(len(part) for part in points))
        longest = min(self._evaluator.horizon, min(allowance, self._evaluator.left) // count)
        if longest < min(self._shortest, self._evaluator.horizon):
            return False
        controllers = [
            entrant.controller(point) for entrant, part in zip(entrants, points, strict=True) for point in part
        ]
        played = self._evaluator.play([None, *controllers], self._evaluator.seeds(starts), longest).returns
        row = 1
        for entrant, part in zip(entrants, points, strict=True):
            entrant.told(part, played[row : row + len(part)], played[0])
            row += len(part)
        return True

    def _compare(self, ranked: list[Entrant]) -> tuple[list[Standing], NDArray[np.float64]]:
        """The best few as given, as tuned, as they did best, and on top of each other, on common fresh episodes."""
        if not ranked:
            return [], np.zeros(0)
        candidates: list[tuple[Program, ...]] = [(program,) for e in ranked[: CUTS[0]] for program in e.finalists]
        leader = ranked[0].best or ranked[0].centre
        candidates += [(leader, other.best or other.centre) for other in ranked[1 : 1 + CUTS[0]] if other.gain > 0]
        candidates = list(dict.fromkeys(candidates))
        left = min(self._allowance - self._spent, self._evaluator.left)
        least, most = FINAL_EPISODES
        longest = self._evaluator.horizon
        while len(candidates) > 1 and left // (least * (1 + len(candidates))) < min(longest, 2 * self._shortest):
            candidates.pop()
        episodes = int(np.clip(left // (longest * (1 + len(candidates))), least, most))
        longest = min(longest, left // (episodes * (1 + len(candidates))))
        if longest < min(self._shortest, self._evaluator.horizon):
            return [], np.zeros(0)
        controllers = [Controller.of(self._compile(programs)) for programs in candidates]
        played = self._evaluator.play([None, *controllers], self._evaluator.seeds(episodes), longest)
        standings = [
            Standing(
                programs,
                played.returns[row] - played.returns[0],
                played.lengths[row],
                float(played.terminated[row].mean()),
            )
            for row, programs in enumerate(candidates, start=1)
        ]
        return sorted(standings, key=lambda standing: -standing.gain), played.returns[0]
