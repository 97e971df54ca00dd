"""Programs in a race: each with an optimiser for its numbers, and with what its episodes gave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.programs.compiled import Compiled, Controller
from ultra.programs.records import Program

SPREAD = 0.25
"""Standard deviation of the first settings, as a share of each parameter's range."""
POPULATION = 8
"""Settings of a program in one generation."""


@dataclass(frozen=True)
class Proposal:
    """A program that somebody proposed.

    Attributes:
        program: with the values that were proposed, or those to which it was tuned.
        source: who proposed it: `search`, an analyst's name, a file.
        turn: of the conversation in which it came; 0 for what was there before.
    """

    program: Program
    source: str
    turn: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"program": self.program.to_json(), "source": self.source, "turn": self.turn}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Proposal:
        """Inverse of `to_json`."""
        return cls(Program.from_json(value["program"]), value["source"], value["turn"])


@dataclass
class Entrant:
    """A proposal in a race. Its parameters are tuned by CMA-ES (Hansen and Ostermeier, 2001), each scaled to [0, 1]."""

    proposal: Proposal
    compiled: Compiled
    seed: int
    episodes: int = 0
    """Played so far."""
    score: float = -np.inf
    """Mean of its best settings in its last generation."""
    gain: float = np.nan
    """Mean difference to the agent alone, on common episodes, of its best settings when it was last played."""
    best: Program | None = None
    """With the settings that did best in its last generation."""
    _optimiser: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        program = self.proposal.program
        self._low = np.array([p.low for p in program.parameters])
        self._range = np.array([p.high - p.low for p in program.parameters])
        self._given = (np.array(program.values) - self._low) / self._range if program.parameters else np.zeros(0)
        if program.parameters:
            from cmaes import CMA

            bounds = np.tile([0.0, 1.0], (len(self._given), 1))
            self._optimiser = CMA(self._given, SPREAD, bounds=bounds, seed=self.seed, population_size=POPULATION)

    @property
    def tunable(self) -> bool:
        """Whether it has numbers to choose."""
        return self._optimiser is not None

    def program_at(self, point: NDArray[np.float64]) -> Program:
        """The program with the settings at a point of [0, 1]^n."""
        return self.proposal.program.with_values(self._low + self._range * point)

    def generation(self, count: int) -> list[NDArray[np.float64]]:
        """Points to be played next; the first one ever is the proposal as it was given."""
        if not self.tunable:
            return [self._given]
        points = [self._optimiser.ask() for _ in range(count)]
        if self.episodes == 0:
            points[0] = self._given
        return points

    def controller(self, point: NDArray[np.float64]) -> Controller:
        """The program with the settings at a point."""
        return Controller(self.compiled, np.clip(self._low + self._range * point, self._low, self._low + self._range))

    def told(
        self, points: Sequence[NDArray[np.float64]], returns: NDArray[np.float64], alone: NDArray[np.float64]
    ) -> None:
        """What a generation gave.

        Args:
            points: its settings.
            returns: (points, episodes) on common starts.
            alone: (episodes,) of the agent alone, from the same starts.
        """
        means = returns.mean(axis=1)
        order = np.argsort(-means, kind="stable")
        self.episodes += returns.size
        self.score = float(means[order[:BEST_OF]].mean())
        self.gain = float((returns[order[0]] - alone).mean())
        self.best = self.program_at(points[order[0]])
        if self.tunable and len(points) == POPULATION:
            self._optimiser.tell([(point, -float(mean)) for point, mean in zip(points, means, strict=True)])

    @property
    def centre(self) -> Program:
        """The program with the settings around which the optimiser searches now."""
        return self.program_at(self._optimiser.mean) if self.tunable else self.proposal.program

    @property
    def finalists(self) -> list[Program]:
        """The program as it was given, as it was tuned, and as it did best; none twice."""
        candidates = [self.centre, self.best or self.centre, self.proposal.program]
        return list(dict.fromkeys(candidates))


BEST_OF = 3
"""An entrant's score is the mean of so many of its best settings: one of them may have been lucky."""

CompilePrograms = Callable[[Sequence[Program]], Compiled]


def enter(proposals: Sequence[Proposal], compile_all: CompilePrograms, rng: np.random.Generator) -> list[Entrant]:
    """Entrants of a race; each optimiser draws from a generator of its own."""
    return [Entrant(proposal, compile_all([proposal.program]), int(rng.integers(2**31))) for proposal in proposals]


def renamed(program: Program, name: str) -> Program:
    """The same program under another name."""
    return replace(program, name=name)
