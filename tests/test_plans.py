"""Plans: checks that name the value, storage, and what is executed where."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ultra.common.errors import UltraError
from ultra.tasks.plans import MOST_CONTINUOUS_STEPS, MOST_DISCRETE_STEPS, Plan, PlanTable, Segment
from ultra.tasks.spaces import ActionSpace, Continuous, Discrete

BUTTONS = Discrete(3)
TORQUES = Continuous((-1.0, -2.0), (1.0, 2.0))

VALUES = st.floats(-3, 3, width=32)
DISCRETE_SEGMENTS = st.builds(Segment, st.integers(0, 2), st.integers(1, 4))
CONTINUOUS_SEGMENTS = st.builds(Segment, st.tuples(VALUES, VALUES), st.integers(1, 6))
DISCRETE_PLANS = st.builds(Plan, st.lists(DISCRETE_SEGMENTS, min_size=1, max_size=4).map(tuple))
CONTINUOUS_PLANS = st.builds(Plan, st.lists(CONTINUOUS_SEGMENTS, min_size=1, max_size=5).map(tuple), st.booleans())


def space_of(plan: Plan) -> ActionSpace:
    return BUTTONS if isinstance(plan.segments[0].action, int) else TORQUES


@settings(deadline=None)
@given(DISCRETE_PLANS | CONTINUOUS_PLANS)
def test_plans_survive_their_storage(plan: Plan) -> None:
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    plan.check(space_of(plan))


@settings(deadline=None)
@given(DISCRETE_PLANS | CONTINUOUS_PLANS)
def test_a_plan_unrolls_into_one_action_for_each_step(plan: Plan) -> None:
    steps = [segment.action for segment in plan.segments for _ in range(segment.steps)]
    assert len(plan) == len(steps)
    np.testing.assert_array_equal(plan.expand(), steps)
    assert plan.expand().dtype == (np.int64 if space_of(plan) == BUTTONS else np.float32)


@pytest.mark.parametrize(
    ("plan", "space", "says"),
    [
        (Plan((Segment(3),)), BUTTONS, "action 3 is not one of 0 to 2"),
        (Plan((Segment(0, 2), Segment(-1))), BUTTONS, "action -1 is not one of 0 to 2"),
        (Plan((Segment((0.5, 0.5)),)), BUTTONS, r"action \(0\.5, 0\.5\) is not one of 0 to 2"),
        (Plan((Segment(1, 17),)), BUTTONS, "17 steps is too long: at most 16"),
        (Plan((Segment(1, 8), Segment(2, 9))), BUTTONS, "17 steps is too long: at most 16"),
        (Plan((Segment((0.1, 0.2), 31),)), TORQUES, "31 steps is too long: at most 30"),
        (Plan((Segment((0.1,)),)), TORQUES, r"action \(0\.1,\) needs 2 values"),
        (Plan((Segment(1),)), TORQUES, "action 1 needs 2 values"),
        (Plan((Segment((0.0, 0.0)), Segment((0.0, float("nan"))))), TORQUES, "nan.* not finite"),
        (Plan((Segment((float("-inf"), 0.0)),)), TORQUES, "-inf.* not finite"),
    ],
)
def test_a_plan_that_does_not_fit_names_the_value(plan: Plan, space: ActionSpace, says: str) -> None:
    with pytest.raises(UltraError, match=says) as error:
        plan.check(space)
    assert "\n" not in str(error.value)


def test_the_longest_plans_are_allowed() -> None:
    Plan((Segment(0, MOST_DISCRETE_STEPS),)).check(BUTTONS)
    Plan((Segment((5.0, -5.0), MOST_CONTINUOUS_STEPS),), relative=True).check(TORQUES)


@pytest.mark.parametrize("segments", [(), (Segment(1, 0),), (Segment(1, 2), Segment(0, -3))])
def test_a_plan_without_steps_is_an_error(segments: tuple[Segment, ...]) -> None:
    with pytest.raises(UltraError, match="at least one step"):
        Plan(segments)


def test_buttons_cannot_be_added() -> None:
    with pytest.raises(UltraError, match="discrete actions cannot be relative"):
        Plan((Segment(1),), relative=True)


@pytest.mark.parametrize("steps", [1.5, "2", None])
def test_a_duration_that_is_no_whole_number_is_an_error(steps: Any) -> None:
    """As a damaged file or a language model may give it."""
    with pytest.raises((UltraError, TypeError)):
        Plan.from_json({"segments": [{"action": 1, "steps": steps}], "relative": False})


def apply(
    plans: list[Plan], strengths: list[float], space: ActionSpace, row: int, position: int, own: NDArray[Any]
) -> NDArray[Any]:
    table = PlanTable(plans, strengths, space)
    result: NDArray[Any] = table.apply(np.array([row]), np.array([position]), own[None])[0]
    return result


@settings(deadline=None)
@given(plans=st.lists(CONTINUOUS_PLANS, min_size=1, max_size=4), data=st.data())
def test_changes_are_scaled_added_and_kept_inside_the_bounds(plans: list[Plan], data: st.DataObject) -> None:
    strengths = data.draw(st.lists(st.sampled_from([1.0, 0.5, 0.25]), min_size=len(plans), max_size=len(plans)))
    row = data.draw(st.integers(0, len(plans) - 1))
    position = data.draw(st.integers(0, len(plans[row]) - 1))
    own = TORQUES.clip(np.array(data.draw(st.tuples(VALUES, VALUES)), np.float32))
    planned = plans[row].expand()[position].astype(np.float64)
    wanted = own + strengths[row] * planned if plans[row].relative else planned
    found = apply(plans, strengths, TORQUES, row, position, own)
    np.testing.assert_allclose(found, np.clip(wanted, [-1, -2], [1, 2]), rtol=1e-6, atol=1e-6)
    assert found.dtype == np.float32


@settings(deadline=None)
@given(plans=st.lists(DISCRETE_PLANS, min_size=1, max_size=4), data=st.data())
def test_buttons_replace_the_policys_own(plans: list[Plan], data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(plans) - 1))
    position = data.draw(st.integers(0, len(plans[row]) - 1))
    found = apply(plans, [1.0] * len(plans), BUTTONS, row, position, np.array(2))
    assert found == plans[row].expand()[position]


def test_a_strength_is_for_changes_only() -> None:
    """An action that is given outright is executed as it is."""
    outright = Plan((Segment((0.5, 1.0)),))
    np.testing.assert_array_equal(apply([outright], [0.25], TORQUES, 0, 0, np.ones(2, np.float32)), [0.5, 1.0])


@settings(deadline=None)
@given(st.tuples(VALUES, VALUES))
def test_no_change_changes_nothing(values: tuple[float, float]) -> None:
    own = TORQUES.clip(np.array(values, np.float32))
    nothing = Plan((Segment((0.0, 0.0), 3),), relative=True)
    np.testing.assert_array_equal(apply([nothing], [1.0], TORQUES, 0, 2, own), own)
