"""Races of programs: with an artificial evaluator whose best numbers are known, and on Hopper itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import ultra
from ultra.common.streams import stream
from ultra.policies.io import load_policy
from ultra.programs.compiled import Compiled, Controller, compile_programs
from ultra.programs.records import Assignment, Parameter, Program
from ultra.simulation.budget import StepBudget
from ultra.simulation.paired import PairedEvaluator, Played
from ultra.tasks import get_task
from ultra.tasks.spaces import Continuous
from ultra.tuning.entrants import Entrant, Proposal, enter
from ultra.tuning.race import Race, race

SPACE = Continuous((-1.0,), (1.0,))


def compile_all(programs: Sequence[Program]) -> Compiled:
    return compile_programs(programs, ["x"], ["push"], SPACE)


def bowl(name: str, parameters: int = 3) -> Program:
    """A program with a few numbers, none of which does anything at first."""
    names = [f"{name}_{number}" for number in range(parameters)]
    added = " + ".join(f"{name} * x" for name in names) or "0.1 * x"
    return Program(
        name, (Assignment(add=(("push", added),)),), parameters=tuple(Parameter(n, 0.0, -1.0, 1.0) for n in names)
    )


@dataclass
class Artificial:
    """Returns are a function of a program's name and numbers, plus what the start is worth, plus noise.

    Attributes:
        worth: (name, numbers) -> what the program adds in an episode of full length.
        left: steps.
        starts: standard deviation of what a start is worth, to all alike.
        noise: of every episode.
        played: (name, numbers or None for the agent alone, seed) of every episode.
    """

    worth: Callable[[str, NDArray[np.float64]], float]
    left: int = 100_000
    horizon: int = 100
    starts: float = 100.0
    noise: float = 0.0
    rng: np.random.Generator = field(default_factory=lambda: stream(1, "artificial"))
    played: list[tuple[str, int]] = field(default_factory=list)

    def seeds(self, count: int) -> tuple[int, ...]:
        return tuple(self.rng.integers(2**31, size=count).tolist())

    def play(
        self, controllers: Sequence[Controller | None], seeds: Sequence[int], longest: int | None = None
    ) -> Played:
        steps = min(longest or self.horizon, self.horizon)
        assert steps * len(controllers) * len(seeds) <= self.left, "more steps than are left could be needed"
        self.left -= steps * len(controllers) * len(seeds)
        returns = np.zeros((len(controllers), len(seeds)))
        for row, controller in enumerate(controllers):
            gain, numbers = 0.0, controller.settings.tolist() if controller is not None else []
            for program in controller.program.programs if controller is not None else ():
                gain += self.worth(program.name, np.array(numbers[: len(program.parameters)]))
                numbers = numbers[len(program.parameters) :]
            for column, seed in enumerate(seeds):
                self.played.append(("+".join(p.name for p in controller.program.programs) if controller else "", seed))
                common, own = stream(seed, "start").normal(), stream(seed, "noise", row).normal()
                returns[row, column] = self.starts * common + self.noise * own + gain
        lengths = np.full(returns.shape, steps, dtype=np.int64)
        return Played(returns, lengths, np.zeros(returns.shape, dtype=np.bool_))


def raced(programs: Sequence[Program], evaluator: Artificial, allowance: int, seed: int = 1) -> Race:
    entrants = enter([Proposal(program, "test") for program in programs], compile_all, stream(seed, "race"))
    return race(entrants, evaluator, allowance, None, compile_all)


OPTIMUM = np.array([0.5, -0.4, 0.2])


def hill(name: str, numbers: NDArray[np.float64]) -> float:
    """The program `good` is worth most at `OPTIMUM`, 10 more than the agent alone; all others harm."""
    if name == "good":
        return float(10 - 20 * np.square(numbers - OPTIMUM).sum())
    return -5.0 - float(np.abs(numbers).sum())


def test_the_best_numbers_of_the_best_program_are_found() -> None:
    found = raced([bowl(name) for name in ("bad", "worse", "good", "worst")], Artificial(hill, noise=1.0), 60_000)
    best = found.standings[0]
    assert [program.name for program in best.programs] == ["good"]
    assert best.gain > 8
    assert np.abs(np.array(best.programs[0].values) - OPTIMUM).max() < 0.25
    assert found.entrants[2].gain == pytest.approx(best.gain)
    assert found.entrants[2].best == best.programs[0]


def test_candidates_are_compared_on_common_episodes() -> None:
    evaluator = Artificial(hill, starts=1e4)  # what a start is worth hides every difference between programs
    found = raced([bowl("bad"), bowl("good")], evaluator, 60_000)
    assert [program.name for program in found.standings[0].programs] == ["good"]
    assert found.standings[0].differences.std() < 1e-6
    assert len(found.alone) >= len(found.standings[0].differences) > 0


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_harmful_programs_do_not_win_and_cost_a_part_of_the_steps(noise: float) -> None:
    found = raced([bowl(f"bad{number}") for number in range(20)], Artificial(hill, noise=noise), 60_000)
    assert all(entrant.tried for entrant in found.entrants)
    assert found.steps <= 0.75 * 60_000
    assert not any(standing.gain > 0 for standing in found.standings)


def test_what_is_worth_something_together_is_put_together() -> None:
    def worth(name: str, numbers: NDArray[np.float64]) -> float:
        return 10.0 - float(np.square(numbers - 0.3).sum())

    found = raced([bowl("one"), bowl("other")], Artificial(worth), 60_000)
    assert {program.name for program in found.standings[0].programs} == {"one", "other"}
    assert found.standings[0].gain > 19
    assert [entrant.gain_in_set for entrant in found.entrants] == pytest.approx([found.standings[0].gain] * 2)
    assert all(9 < entrant.gain <= 10 for entrant in found.entrants)


def test_every_proposal_is_tried_even_if_there_are_steps_for_little_else() -> None:
    evaluator = Artificial(hill, left=70 * 50)
    found = raced([bowl(f"bad{number}") for number in range(60)], evaluator, 70 * 50)
    assert [entrant.episodes >= 1 for entrant in found.entrants] == [True] * 60


def test_programs_without_numbers_and_with_one_take_part() -> None:
    def worth(name: str, numbers: NDArray[np.float64]) -> float:
        return 3.0 if name == "fixed" else 1.0 + float(numbers.sum())

    found = raced([bowl("fixed", 0), bowl("single", 1)], Artificial(worth), 20_000)
    assert found.standings[0].gain > 3


def test_the_same_seed_gives_the_same_race() -> None:
    programs = [bowl(name) for name in ("bad", "good")]
    one, other = (raced(programs, Artificial(hill, noise=1.0), 30_000) for _ in range(2))
    assert [s.programs for s in one.standings] == [s.programs for s in other.standings]
    assert [s.gain for s in one.standings] == [s.gain for s in other.standings]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5_000), st.integers(0, 12), st.integers(1, 300), st.floats(0, 50))
def test_no_race_takes_more_steps_than_it_may(allowance: int, programs: int, horizon: int, noise: float) -> None:
    evaluator = Artificial(hill, left=6_000, horizon=horizon, noise=noise)
    found = raced([bowl(f"p{number}", number % 4) for number in range(programs)], evaluator, allowance)
    assert found.steps == 6_000 - evaluator.left <= allowance
    tried = [entrant.tried for entrant in found.entrants]
    assert tried == sorted(tried, reverse=True)  # those that come first are played first


def test_a_push_that_helps_hopper_is_found_within_the_budget() -> None:
    task, policy = get_task("hopper"), load_policy(Path(ultra.__file__).parent / "policies" / "shipped" / "hopper")
    names = [action.name for action in task.card.actions]

    def compiled(programs: Sequence[Program]) -> Compiled:
        return compile_programs(programs, task.card.fact_names, names, task.action_space)

    offset = Parameter("offset", 0.0, -0.5, 0.5)
    programs = [Program(name, (Assignment(add=((name, "offset"),)),), parameters=(offset,)) for name in names]
    batch = task.make_batch(16, 1)
    budget = StepBudget(15_000)
    evaluator = PairedEvaluator(
        batch, policy, 1.0, task.time_limit, budget, "analyse", 15_000, stream(1, "play"), sampled=False
    )
    entrants: list[Entrant] = enter([Proposal(p, "test") for p in programs], compiled, stream(1, "race"))
    found = race(entrants, evaluator, 15_000, 240.0, compiled)
    batch.close()
    assert budget.used == found.steps <= 15_000
    assert found.standings[0].gain > 20
    assert found.standings[0].lengths.min() > 0
