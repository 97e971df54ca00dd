"""The executor of programs: rows are independent of each other and of the past, and states go through JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.test_programs_language import ACTIONS, ARM, FACTS, WAVE, programs

from ultra.programs.compiled import Compiled, Controller, compile_programs
from ultra.programs.executor import Executor
from ultra.programs.records import Program
from ultra.tasks.plans import Plan, PlanTable, Segment
from ultra.tasks.spaces import ActionSpace, Continuous, Discrete

STEPS = 12
OFFSETS = {
    "name": "offsets",
    "memory": {"n": {"start": 0, "update": "n + 1"}},
    "rules": [{"add": {"hip": "0.25 * agent(knee) + 0.1 * n"}}, {"when": "prev(x) > x", "add": {"knee": "start(y)"}}],
}


def compiled(*values: dict[str, Any]) -> Compiled:
    return compile_programs([Program.from_json(value) for value in values], FACTS, ACTIONS, ARM)


def plan_of(rng: np.random.Generator) -> Controller:
    steps = tuple(Segment(tuple(rng.uniform(-3, 3, 2).tolist()), int(rng.integers(1, 4))) for _ in range(3))
    return Controller.of_plan(Plan(steps, relative=bool(rng.random() < 0.5)), ARM, 0.7)


class Script:
    """What happens in one environment: its facts, its own actions, and when it is given or loses a program."""

    def __init__(self, rng: np.random.Generator, controllers: list[Controller]) -> None:
        self.facts = rng.normal(0, 2, (STEPS, 2))
        self.facts[rng.random((STEPS, 2)) < 0.03] = np.nan
        self.actions = rng.normal(0, 1, (STEPS, 2)).astype(np.float32)
        self.events: list[Controller | str | None] = [None] * STEPS
        self.events[0] = controllers[rng.integers(len(controllers))] if rng.random() < 0.8 else "release"
        for step in range(1, STEPS):
            if rng.random() < 0.2:
                kind = rng.integers(3)
                self.events[step] = ("begin", "release", controllers[rng.integers(len(controllers))])[kind]


def play(
    scripts: list[Script],
    controllers: list[Controller],
    size: int,
    slots: list[int],
    *,
    executor: Executor | None = None,
) -> NDArray[Any]:
    """What is done (scripts, STEPS, 2) where each script runs in a slot of a batch."""
    known = list(dict.fromkeys(controller.program for controller in controllers))
    executor = executor or Executor(known, ARM, size)
    done = []
    for step in range(STEPS):
        facts, actions = np.zeros((size, 2)), np.zeros((size, 2), np.float32)
        for script, slot in zip(scripts, slots, strict=True):
            event = script.events[step]
            if step == 0:
                executor.release(slot)
                executor.begin(slot)
            if event == "begin":
                executor.begin(slot)
            elif event == "release":
                executor.release(slot)
            elif isinstance(event, Controller):
                executor.assign(slot, known.index(event.program), event.settings)
            facts[slot], actions[slot] = script.facts[step], script.actions[step]
        done.append(executor.act(facts, actions)[0][slots].copy())
    return np.stack(done, axis=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(programs(), min_size=1, max_size=2), st.integers(0, 2**31))
def test_a_row_depends_on_itself_alone(values: list[dict[str, Any]], seed: int) -> None:
    """Not on the batch's size, not on other rows, not on what ran in its slot before."""
    rng = np.random.default_rng(seed)
    controllers = [Controller.of(compiled(value)) for value in [*values, WAVE, OFFSETS]]
    controllers += [Controller.of(compiled(OFFSETS, WAVE)), plan_of(rng), plan_of(rng)]
    scripts = [Script(rng, controllers) for _ in range(5)]
    alone = np.concatenate([play([script], controllers, 1, [0]) for script in scripts])
    together = play(scripts, controllers, 9, [3, 0, 8, 5, 1])
    assert np.array_equal(alone, together, equal_nan=True)
    known = list(dict.fromkeys(controller.program for controller in controllers))
    used = Executor(known, ARM, 5)
    play([Script(rng, controllers) for _ in range(5)], controllers, 5, [0, 1, 2, 3, 4], executor=used)
    again = play(scripts, controllers, 5, [4, 2, 0, 1, 3], executor=used)
    assert np.array_equal(alone, again, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(programs(), st.integers(0, 2**31), st.integers(0, STEPS - 1))
def test_a_saved_state_goes_on_as_if_nothing_had_happened(value: dict[str, Any], seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    controllers = [Controller.of(compiled(value)), Controller.of(compiled(OFFSETS)), plan_of(rng)]
    known = list(dict.fromkeys(controller.program for controller in controllers))
    executor, other = Executor(known, ARM, 4), Executor(known, ARM, 4)
    for slot in range(3):
        executor.assign(slot, slot, controllers[slot].settings)
    facts = rng.normal(0, 2, (STEPS, 4, 2))
    facts[rng.random(facts.shape) < 0.05] = rng.choice([np.nan, np.inf, -np.inf])
    actions = rng.normal(0, 1, (STEPS, 4, 2)).astype(np.float32)
    other.assign(2, 0)
    other.act(facts[0], actions[0])
    for step in range(STEPS):
        if step == cut:
            executor.begin(1)
            other.load_state(json.loads(json.dumps(executor.state(), allow_nan=False)))
        done, held = executor.act(facts[step], actions[step])
        if step >= cut:
            again, where = other.act(facts[step], actions[step])
            assert np.array_equal(done, again, equal_nan=True)
            assert np.array_equal(held, where)


def test_what_it_is_shown_stays_as_it_is() -> None:
    executor = Executor([compiled(OFFSETS)], ARM, 2)
    executor.assign(slice(None), 0)
    shown = [np.full((2, 2), float(step)) for step in range(4)]
    for facts in shown:
        executor.begin([1])
        actions = np.zeros((2, 2), np.float32)
        executor.act(facts, actions)
        assert not actions.any()
    assert [facts.tolist() for facts in shown] == [[[k, k], [k, k]] for k in range(4)]


def test_it_says_where_a_guard_held_and_whether_anything_is_followed() -> None:
    executor = Executor([compiled({"name": "p", "rules": [{"when": "x > 0", "add": {"hip": "1"}}]})], ARM, 3)
    facts, still = np.array([[1.0, 0], [-1, 0], [1, 0]]), np.zeros((3, 2), np.float32)
    assert not executor.active
    assert executor.act(facts, still)[0] is still
    executor.assign([0, 1], 0)
    assert executor.active
    done, held = executor.act(facts, still)
    assert (done[:, 0].tolist(), held.tolist()) == ([1, 0, 0], [True, False, False])
    executor.release([0, 1])
    assert not executor.active


SPACES: list[ActionSpace] = [Continuous((-1.0, -2.0), (1.0, 2.0)), Discrete(5), Discrete(6, (3, 1))]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SPACES), st.booleans(), st.floats(0, 2), st.integers(0, 2**31))
def test_a_plan_does_what_a_table_of_plans_does(space: ActionSpace, relative: bool, strength: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    segments = []
    for _ in range(rng.integers(1, 5)):
        action = int(rng.integers(space.n)) if isinstance(space, Discrete) else tuple(rng.normal(0, 2, 2).tolist())
        segments.append(Segment(action, int(rng.integers(1, 12))))
    plan = Plan(tuple(segments), relative=relative and isinstance(space, Continuous))
    controller, table = Controller.of_plan(plan, space, strength), PlanTable([plan], [strength], space)
    executor = Executor([controller.program], space, 1)
    executor.assign(0, 0, controller.settings)
    for step in range(len(plan) + 3):
        if isinstance(space, Discrete):
            own: NDArray[Any] = rng.integers(space.n, size=1)
        else:
            own = rng.normal(0, 1, (1, 2)).astype(np.float32)
        done, held = executor.act(np.zeros((1, 1)), own)
        during = step < len(plan)
        rows = np.zeros(1, np.intp)
        expected = table.apply(rows, np.array([step]), own) if during else space.clip(own)
        assert np.array_equal(space.clip(done), expected)
        assert done.dtype == own.dtype
        assert held[0] == during


@pytest.mark.parametrize("value", [0.5, 3.0])
def test_plans_share_one_program_and_differ_in_their_settings(value: float) -> None:
    one, other = (Controller.of_plan(Plan((Segment((value, v), 2),)), ARM) for v in (1.0, 2.0))
    assert one.program is other.program
    executor = Executor([one.program], ARM, 2)
    executor.assign(0, 0, one.settings)
    executor.assign(1, 0, other.settings)
    assert executor.act(np.zeros((2, 2)), np.zeros((2, 2), np.float32))[0].tolist() == [[value, 1], [value, 2]]
