"""The comparison at the end of a race: candidates in whole episodes from common starts, by halving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ultra.programs.compiled import Controller
from ultra.simulation.paired import Played
from ultra.tuning.arena import Arena
from ultra.tuning.entrants import CompilePrograms, Programs

ROUNDS = ((8, 0.4), (4, 0.5), (2, 1.0))
"""Most candidates in each round, and the share of the steps that are left by then."""
MOST_EPISODES = 16
"""Of a candidate in one round."""


@dataclass(frozen=True)
class Standing:
    """A candidate in the comparison at the end.

    Attributes:
        programs: followed together.
        differences: (episodes,) to the agent alone, from common starts.
        lengths: (episodes,) in steps.
        ended: share of episodes that the task itself ended.
    """

    programs: Programs
    differences: NDArray[np.float64]
    lengths: NDArray[np.int64]
    ended: float

    @property
    def gain(self) -> float:
        """Mean difference to the agent alone."""
        return float(self.differences.mean())


def compare(
    candidates: Sequence[Programs], arena: Arena, compile_all: CompilePrograms
) -> tuple[list[Standing], NDArray[np.float64]]:
    """Play whole episodes with what is left of the allowance; in each round the better half goes on.

    Args:
        candidates: the most promising first, which alone play if the steps do not last for all.
        arena: where.
        compile_all: makes instructions of programs that are followed together.

    Returns:
        The candidates that played: first those that came farthest, which have all played the same episodes, and of
        these the best first. And the agent's own returns (episodes,), of which each candidate played the first ones.
    """
    controllers = [Controller.of(compile_all(programs)) for programs in candidates]
    alive = list(range(len(candidates)))
    rounds: list[tuple[list[int], Played]] = []
    for most, share in ROUNDS:
        room = int(share * arena.left) // arena.horizon
        alive = alive[: max(1, min(most, room - 1))]
        episodes = int(np.clip(room // (1 + len(alive)), 1, MOST_EPISODES))
        played = arena.play([None, *(controllers[place] for place in alive)], episodes, arena.horizon)
        if played is None or len(played.returns) <= len(alive):
            break
        rounds.append((alive, played))
        means = {place: _of(rounds, place).returns.mean() for place in alive}
        alive = sorted(alive, key=lambda place: -means[place])
    seen = {place: sum(place in took for took, _ in rounds) for place in range(len(candidates))}
    alone = np.concatenate([played.returns[0] for _, played in rounds]) if rounds else np.zeros(0)
    standings = []
    for place in range(len(candidates)):
        if seen[place]:
            own = _of(rounds, place)
            differences = own.returns - alone[: len(own.returns)]
            standings.append(Standing(candidates[place], differences, own.lengths, float(own.terminated.mean())))
    order = [place for place in range(len(candidates)) if seen[place]]
    ranked = sorted(zip(order, standings, strict=True), key=lambda pair: (-seen[pair[0]], -pair[1].gain))
    return [standing for _, standing in ranked], alone


def _of(rounds: Sequence[tuple[list[int], Played]], place: int) -> Played:
    """What a candidate gave in all rounds in which it played: (episodes,) each."""
    rows = [(played, took.index(place) + 1) for took, played in rounds if place in took]
    return Played(
        np.concatenate([played.returns[row] for played, row in rows]),
        np.concatenate([played.lengths[row] for played, row in rows]),
        np.concatenate([played.terminated[row] for played, row in rows]),
    )
