"""A race of programs: all play, the better ones are tuned on, and the best are put on top of each other.

It goes in waves: a few settings of every program that is left play from common starts, and so does the agent alone;
every wave has fresh starts. The better part goes on, as in sequential halving (Karnin et al., ICML 2013), first among
programs, then, in whole episodes, among their settings (`ultra.tuning.comparison`). Whoever wins was lucky too: only
`ultra.verification`, in fresh episodes, says what the winner is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ultra.programs.records import Program
from ultra.tuning.arena import Arena, Evaluator
from ultra.tuning.comparison import Standing, compare
from ultra.tuning.entrants import CompilePrograms, Entrant, Programs, Tuner

__all__ = ["Race", "Standing", "first_episodes", "race"]

SCREENING, COMPARING = 0.35, 0.25
"""Shares of the allowance: at most for the first wave, and for the comparison at the end."""
WAVE = 4
"""Settings of each program in a wave; every wave has fresh common starts."""
CUTS = (0.5, 0.5, 1.0, 0.5)
"""Share of the programs that goes on after each of the first waves; those that are left then stay to the end."""
PATIENCE = 4
"""Waves after which programs none of whose settings look better than the agent alone drop out."""
FEWEST_WAVES = 3
"""Where episodes are short, a wave has so many starts that the allowance lasts for so many waves of the best few."""
MOST_STARTS = 16
"""Common starts of a wave."""
ROOM = 2.5
"""Episodes of a wave are cut at so many times what the agent's own, or the better half of the wave before, lasted. Less
would make all survivors alike, and what falls early costs little anyway."""
ENDLESS = 0.25
"""Where the agent's episodes do not end by themselves, at this share of the longest."""
SHORTEST = 50
"""Nor shorter than so many steps."""
STACKED_AFTER, STACK_SPREAD = 3, 0.1
"""After so many cuts the best two programs are put on top of each other, and tuned on together from this spread."""
TOP, STACKS = 4, 2
"""Candidates at the end: so many of the best settings, and so many pairs of programs on top of each other."""


@dataclass(frozen=True)
class Race:
    """What came of a race.

    Attributes:
        entrants: in the order of the proposals, each with the episodes that it played.
        standings: what the comparison at the end found, the best first; those that played in its last round come
            before the others. Empty if nothing looked better than the agent alone, or there were no steps for it.
        alone: (episodes,) returns of the agent alone in that comparison.
        steps: that the race took.
    """

    entrants: tuple[Entrant, ...]
    standings: tuple[Standing, ...]
    alone: NDArray[np.float64]
    steps: int


def race(
    entrants: Sequence[Entrant],
    evaluator: Evaluator,
    allowance: int,
    usual: float | None,
    compile_all: CompilePrograms,
    say: Callable[[str], None] = lambda text: None,
    incumbents: Sequence[Programs] = (),
) -> Race:
    """Play, tune, combine and compare.

    Args:
        entrants: the proposals; those that come first are played first where the steps do not last for all.
        evaluator: plays episodes.
        allowance: most steps.
        usual: steps after which the agent's own episodes usually end; None if they end at the time limit alone.
        compile_all: makes instructions of programs that are followed together.
        say: told in a few words how it stands.
        incumbents: the best of earlier races, which the comparison at the end holds in any case.
    """
    return _Race(entrants, Arena(evaluator, allowance), usual, compile_all, say, incumbents).run()


def first_episodes(usual: float | None, horizon: int) -> tuple[int, float]:
    """The longest episode of the first wave, and how long one is expected to last, in steps.

    Args:
        usual: as in `race`.
        horizon: of a whole episode.
    """
    if usual is None:
        longest = _within(ENDLESS * horizon, horizon)
        return longest, float(longest)
    longest = _within(ROOM * usual, horizon)
    return longest, float(min(longest, usual))


def _within(steps: float, horizon: int) -> int:
    return min(horizon, max(SHORTEST, int(steps)))


class _Race:
    def __init__(
        self,
        entrants: Sequence[Entrant],
        arena: Arena,
        usual: float | None,
        compile_all: CompilePrograms,
        say: Callable[[str], None],
        incumbents: Sequence[Programs],
    ) -> None:
        self._entrants, self._arena, self._incumbents = tuple(entrants), arena, list(incumbents)
        self._compile, self._say = compile_all, say
        self._ends = usual is not None
        self._longest, self._expected = first_episodes(usual, arena.horizon)
        self._waves = 0
        self._stacks: list[Entrant] = []

    def _within(self, steps: float) -> int:
        return _within(steps, self._arena.horizon)

    def run(self) -> Race:
        alive = self._screen()
        number = 0
        while any(entrant.tuner.tunable for entrant in alive):
            alive = self._best(alive, number)
            number += 1
            if number == STACKED_AFTER and len(alive) > 1:
                alive.append(self._stacked(alive[0], alive[1]))
            if not self._tune(alive):
                break
        candidates = self._candidates()
        standings, alone = compare(candidates, self._arena, self._compile)
        self._credit(standings)
        return Race(self._entrants, tuple(standings), alone, self._arena.spent)

    # -- waves ---------------------------------------------------------------------------------------

    def _screen(self) -> list[Entrant]:
        """All play: as many settings of each as their share of the steps lasts for, at least one."""
        if not self._entrants:
            return []
        room = SCREENING * self._arena.allowance / (self._expected * (1 + len(self._entrants)))
        settings = int(np.clip(room, 1, WAVE))
        self._wave(list(self._entrants), settings, int(np.clip(room / settings, 1, MOST_STARTS)))
        played = [entrant for entrant in self._entrants if entrant.tried]
        self._say(f"raced {len(played)} of {len(self._entrants)} programs in {self._arena.spent:,} steps")
        return played

    def _best(self, alive: list[Entrant], number: int) -> list[Entrant]:
        """Who goes on to the next wave."""
        share = CUTS[number] if number < len(CUTS) else 1.0
        most = max(1, int(share * len(alive) + 0.5))
        ranked = sorted(alive, key=lambda entrant: -entrant.score)[:most]
        return ranked if number < PATIENCE else [entrant for entrant in ranked if entrant.gain > 0]

    def _stacked(self, first: Entrant, second: Entrant) -> Entrant:
        """Two programs on top of each other, tuned on together from where each of them did best."""
        programs = first.leading.programs + second.leading.programs
        seed = first.tuner.seed + second.tuner.seed
        stack = Entrant(first.proposal, Tuner(programs, self._compile(programs), seed % 2**31, STACK_SPREAD))
        self._stacks.append(stack)
        return stack

    def _tune(self, alive: list[Entrant]) -> bool:
        """One more wave of the programs that are left; returns whether there were steps for it."""
        left = self._arena.left - COMPARING * self._arena.allowance
        each = self._expected * (1 + WAVE * len(alive))
        starts = int(np.clip(left / (each * FEWEST_WAVES), 1, MOST_STARTS))
        return each * starts <= left and self._wave(alive, WAVE, starts)

    def _wave(self, entrants: list[Entrant], settings: int, starts: int) -> bool:
        """A few settings of each program from common starts; returns whether they were played."""
        points = [entrant.tuner.ask(settings) for entrant in entrants]
        controllers = [e.tuner.controller(point) for e, part in zip(entrants, points, strict=True) for point in part]
        played = self._arena.play([None, *controllers], starts, self._longest)
        if played is None:
            return False
        returns, lengths = played.returns, played.lengths
        row = 1
        for entrant, part in zip(entrants, points, strict=True):
            rows = slice(row, min(row + len(part), len(returns)))
            row += len(part)
            if rows.start < len(returns):
                gains = (returns[rows] - returns[0]).mean(axis=1)
                entrant.told(part[: len(gains)], gains, self._waves, starts)
        self._waves += 1
        if self._ends:
            better = np.sort(lengths.mean(axis=1))[len(lengths) // 2 :]
            self._longest = max(self._longest, self._within(ROOM * float(np.median(better))))
        self._expected = float(lengths.mean())
        return True

    # -- the comparison at the end --------------------------------------------------------------------

    def _candidates(self) -> list[Programs]:
        """What did best, what it was tuned to, and the best of different proposals on top of each other."""
        tried = [entrant for entrant in (*self._entrants, *self._stacks) if entrant.tried]
        promising = sorted((e for e in tried if e.gain > 0), key=lambda entrant: -entrant.score)
        if not promising:
            return self._incumbents
        settings = sorted(
            (setting for entrant in promising for setting in entrant.tuner.settings if setting.difference > 0),
            key=lambda setting: -setting.difference,
        )
        leaders = [entrant.leading.programs for entrant in promising]
        found: list[Programs] = [leaders[0], *self._incumbents, promising[0].tuner.at(promising[0].tuner.centre)]
        found += [setting.programs for setting in settings[:TOP]]
        found += [leaders[0] + other for other in leaders[1 : 1 + STACKS] if _disjoint(leaders[0], other)]
        found += leaders[1:]
        return list(dict.fromkeys(found))

    def _credit(self, standings: Sequence[Standing]) -> None:
        """Tell the entrants what the comparison found; the best standing of each is told last."""
        for standing in reversed(standings):
            forms = [_form(program) for program in standing.programs]
            for entrant in self._entrants:
                if _form(entrant.proposal.program) not in forms:
                    continue
                if len(forms) == 1:
                    entrant.gain, entrant.best = standing.gain, standing.programs[0]
                else:
                    entrant.gain_in_set = standing.gain


def _form(program: Program) -> Program:
    """The program whatever its numbers."""
    return program.with_values([parameter.low for parameter in program.parameters])


def _disjoint(one: Programs, other: Programs) -> bool:
    """Whether two sets of programs have no program in common, whatever its numbers."""
    return not {_form(program) for program in one} & {_form(program) for program in other}
