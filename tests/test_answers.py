"""Reading answers: whatever comes, what is kept fits the episode and the action space."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultra.advice.records import Advice, CriticalState, Rule
from ultra.analysts.schema import advise_schema, find_json, identify_schema, read_advice, read_states
from ultra.common.errors import UltraError
from ultra.tasks import get_task

HOPPER, PONG = get_task("hopper"), get_task("pong")
STATES = [CriticalState(0, 5, 0.5, "a"), CriticalState(0, 9, 0.5, "b")]

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["UP", "t", "x > 0"]),
    st.sampled_from([5, 9, 0.5, -1, 1e308]),
)  # fmt: skip
names = st.sampled_from(
    ["t", "plan", "action", "change", "steps", "hold", "reward_follow", "reward_taken", "explanation", "guard",
     "reward", "importance", "critical_states", "advice", "rules", "thigh_torque"]
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=6)),
    max_leaves=12,
)
items = st.lists(st.dictionaries(names, values, max_size=7), max_size=3)


@given(st.one_of(items, values), st.one_of(items, values))
def test_whatever_an_answer_holds_only_what_fits_is_kept(first: Any, second: Any) -> None:
    text = json.dumps({"advice": first, "rules": second, "critical_states": first})
    for item in read_states(text, 0, 20).items:
        assert 0 <= item.t < 20
    for task in (HOPPER, PONG):
        for item in read_advice(text, task, STATES, "me").items:
            assert isinstance(item, Advice | Rule)
            if item.plan is not None:
                item.plan.check(task.action_space)
                assert item.plan.relative == (task is HOPPER)


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    parsed = read_states(text, 0, 20)
    assert parsed.problems or parsed.items == ()


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ([{"action": "UP", "steps": 3}, {"action": "STAY", "steps": 2}], [(1, 3), (0, 2)]),
        ({"action": "up", "hold": 6}, [(1, 6)]),
        ("DOWN", [(2, 1)]),
        (["UP", "UP", 2], [(1, 1), (1, 1), (2, 1)]),
    ],
)
def test_forms_of_discrete_plans(plan: Any, expected: list[tuple[int, int]]) -> None:
    item = {"t": 5, "plan": plan, "reward_follow": 1, "reward_taken": 0, "explanation": "e"}
    (advice,) = read_advice(json.dumps({"advice": [item]}), PONG, STATES, "me").items
    assert [(segment.action, segment.steps) for segment in advice.plan.segments] == expected


def test_continuous_plans_are_changes_by_name_or_in_order() -> None:
    for change in ({"thigh_torque": 0.2, "foot_torque": -0.1}, [0.2, 0, -0.1]):
        plan = [{"change": change, "steps": 30}]
        item = {"t": 5, "plan": plan, "reward_follow": 1, "reward_taken": 0, "explanation": "e"}
        (advice,) = read_advice(json.dumps({"advice": [item]}), HOPPER, STATES, "me").items
        assert advice.plan.segments[0].action == (0.2, 0.0, -0.1)
    for bad in (31, 10**30):
        plan = [{"change": [0.1, 0, 0], "steps": bad}]
        item = {"t": 5, "plan": plan, "reward_follow": 1, "reward_taken": 0, "explanation": "e"}
        assert read_advice(json.dumps({"advice": [item]}), HOPPER, STATES, "me").problems


def test_a_rule_must_suggest_something() -> None:
    rule = {"guard": "height < 0.9", "plan": [], "reward": 0, "explanation": "e"}
    parsed = read_advice(json.dumps({"advice": [], "rules": [rule]}), HOPPER, STATES, "me")
    assert "suggests nothing" in parsed.problems[0]


@pytest.mark.parametrize("text", ["", "[1]", "no", "{", "[" * 100_000, "{" * 1000, '{"a": ' + "9" * 5000 + "}"])
def test_what_is_no_object_is_said(text: str) -> None:
    with pytest.raises(UltraError):
        find_json(text)


def test_schemas_ask_for_every_field() -> None:
    for schema in (identify_schema(), advise_schema(PONG), advise_schema(HOPPER)):
        stack = [schema]
        while stack:
            part = stack.pop()
            if part.get("type") == "object":
                assert part["required"] == list(part["properties"])
                assert part["additionalProperties"] is False
                stack += part["properties"].values()
            elif part.get("type") == "array":
                stack.append(part["items"])
