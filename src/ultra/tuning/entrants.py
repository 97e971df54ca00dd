"""Programs in a race: each with an optimiser for its numbers, and with what its episodes gave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.common.streams import stream
from ultra.programs.compiled import Compiled, Controller
from ultra.programs.executor import Executor
from ultra.programs.records import Program

SPREAD = 0.2
"""Standard deviation of the first settings, as a share of each parameter's range."""
POPULATION = 8
"""Settings of a program in one generation."""
BEST_OF = 3
"""An entrant's score is the mean of so many of its best settings: one of them may have been lucky."""
PROBES = 64
"""Random states in which it is looked whether a program changes anything."""

Programs = tuple[Program, ...]
"""Followed together, in order."""
CompilePrograms = Callable[[Sequence[Program]], Compiled]
"""Checks programs against the task and makes instructions of them."""


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


@dataclass(frozen=True, eq=False)
class Setting:
    """Programs with numbers, and how much more they gave than the agent alone.

    Attributes:
        point: the numbers, each scaled to [0, 1].
        programs: with these numbers.
        difference: mean over the common episodes of one wave.
        wave: in which it was played, counted over the whole race.
    """

    point: NDArray[np.float64]
    programs: Programs
    difference: float
    wave: int


class Tuner:
    """Chooses the numbers of one program, or of several that are followed together.

    Each number is scaled to [0, 1] by its range; CMA-ES (Hansen and Ostermeier, Evolutionary Computation 9, 2001)
    chooses the settings of a generation.

    Args:
        programs: followed together; they begin with the values that they have.
        compiled: the same as instructions.
        seed: of the optimiser.
        spread: standard deviation of the first settings, as a share of the ranges.

    Attributes:
        settings: all that were played, in order.
    """

    def __init__(self, programs: Programs, compiled: Compiled, seed: int, spread: float = SPREAD) -> None:
        self.programs, self.compiled, self.seed = programs, compiled, seed
        parameters = [parameter for program in programs for parameter in program.parameters]
        self._low = np.array([parameter.low for parameter in parameters])
        self._range = np.array([parameter.high - parameter.low for parameter in parameters])
        self.given = (compiled.settings - self._low) / self._range if parameters else np.zeros(0)
        self.settings: list[Setting] = []
        self._optimiser: Any = None
        self._untold: list[Setting] = []
        if parameters:
            from cmaes import CMA

            bounds = np.tile([0.0, 1.0], (len(parameters), 1))
            size = POPULATION if len(parameters) > 1 else POPULATION // 2
            self._optimiser = CMA(self.given.copy(), spread, bounds=bounds, seed=seed, population_size=size)
        self._changes_nothing = _changes_nothing(compiled)

    @property
    def tunable(self) -> bool:
        """Whether there are numbers to choose."""
        return self._optimiser is not None

    @property
    def population(self) -> int:
        """Settings of a generation."""
        return self._optimiser.population_size if self.tunable else 1

    @property
    def centre(self) -> NDArray[np.float64]:
        """Around which the optimiser searches now."""
        return np.array(self._optimiser.mean) if self.tunable else self.given

    def ask(self, count: int) -> list[NDArray[np.float64]]:
        """Points to be played next, within a generation; the first one ever is what was given, if it does anything."""
        if not self.tunable:
            return [self.given]
        points = [self._optimiser.ask() for _ in range(min(count, self.population - len(self._untold)))]
        if not self.settings and not self._changes_nothing:
            points[0] = self.given
        return points

    def controller(self, point: NDArray[np.float64]) -> Controller:
        """The programs with the numbers of a point."""
        return Controller(self.compiled, np.clip(self._low + self._range * point, self._low, self._low + self._range))

    def at(self, point: NDArray[np.float64]) -> Programs:
        """The programs with the numbers of a point."""
        values = (self._low + self._range * point).tolist()
        tuned = []
        for program in self.programs:
            tuned.append(program.with_values(values[: len(program.parameters)]))
            values = values[len(program.parameters) :]
        return tuple(tuned)

    def tell(self, points: Sequence[NDArray[np.float64]], differences: NDArray[np.float64], wave: int) -> list[Setting]:
        """What settings gave; when a generation is complete, the search moves.

        Args:
            points: the settings that were played.
            differences: (points,) mean differences to the agent alone on common episodes.
            wave: in which they were played, counted over the whole race.
        """
        played = [
            Setting(point, self.at(point), float(gain), wave) for point, gain in zip(points, differences, strict=True)
        ]
        self.settings += played
        self._untold += played
        if self.tunable and len(self._untold) >= self.population:
            self._optimiser.tell([(setting.point, -setting.difference) for setting in self._untold])
            self._untold = []
        return played


@dataclass(eq=False)
class Entrant:
    """A proposal in a race, and what became of it."""

    proposal: Proposal
    tuner: Tuner
    episodes: int = 0
    """Played with it alone."""
    score: float = -np.inf
    """Mean difference to the agent alone of the best settings of its last generation: what it is ranked by."""
    gain: float = np.nan
    """Mean difference to the agent alone, of its best setting in its last generation, then in the last comparison that
    it was in."""
    gain_in_set: float = np.nan
    """The same for the best set of programs that it was part of."""
    best: Program | None = None
    """With the numbers that did best when it was last played."""

    @property
    def leading(self) -> Setting:
        """The setting that did best in the last generation."""
        return max(self.tuner.settings[-self.tuner.population :], key=lambda setting: setting.difference)

    @property
    def tried(self) -> bool:
        """Whether it has been played at all."""
        return self.episodes > 0

    def told(
        self, points: Sequence[NDArray[np.float64]], differences: NDArray[np.float64], wave: int, episodes: int
    ) -> None:
        """What settings gave in a wave, in so many episodes each."""
        self.tuner.tell(points, differences, wave)
        self.episodes += len(points) * episodes
        ranked = sorted(self.tuner.settings[-self.tuner.population :], key=lambda setting: -setting.difference)
        self.score = float(np.mean([setting.difference for setting in ranked[:BEST_OF]]))
        self.gain = self.leading.difference
        self.best = self.leading.programs[0]


def enter(proposals: Sequence[Proposal], compile_all: CompilePrograms, rng: np.random.Generator) -> list[Entrant]:
    """Entrants of a race; each optimiser draws from a generator of its own."""
    return [
        Entrant(
            proposal,
            Tuner((proposal.program,), compile_all([proposal.program]), int(rng.integers(2**31))),
        )
        for proposal in proposals
    ]


def _changes_nothing(compiled: Compiled) -> bool:
    """Whether programs with the numbers that they begin with do what the agent does, as far as random states tell.

    A correction begins at zero: playing it as it was given would tell nothing.
    """
    rng = stream(0, "probes")
    scale = 10.0 ** rng.uniform(-1, 1, size=(PROBES, 1))
    facts = scale * rng.normal(size=(PROBES, 1 + max(compiled.facts, default=0)))
    noise = rng.normal(size=(PROBES, compiled.space.size)).astype(np.float32)
    actions = noise if hasattr(compiled.space, "low") else noise.argmax(axis=1)
    executor = Executor([compiled], compiled.space, PROBES)
    executor.assign(np.arange(PROBES), 0)
    with np.errstate(all="ignore"):
        for _ in range(2):
            done, held = executor.act(facts, actions)
            if not held.any() or not np.allclose(compiled.space.clip(done), compiled.space.clip(actions)):
                return False
    return True
