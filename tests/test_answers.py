"""Reading answers: whatever comes, what is kept fits the episode and the action space."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultra.advice.records import Advice, CriticalState
from ultra.analysts.answers import find_json
from ultra.analysts.schema import advise_schema, identify_schema, read_advice, read_programs, read_states
from ultra.common.errors import UltraError
from ultra.programs.records import Potential, Program
from ultra.tasks import get_task
from ultra.tuning.entrants import Proposal

HOPPER, PONG = get_task("hopper"), get_task("pong")
STATES = [CriticalState(0, 5, 0.5, "a"), CriticalState(0, 9, 0.5, "b")]

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["UP", "t", "x > 0"]),
    st.sampled_from([5, 9, 0.5, -1, 1e308]),
)  # fmt: skip
names = st.sampled_from(
    ["t", "plan", "action", "change", "steps", "hold", "reward_follow", "reward_taken", "explanation", "guard",
     "reward", "importance", "critical_states", "advice", "rules", "thigh_torque", "name", "when", "set", "add",
     "expression", "parameters", "value", "low", "high", "let", "memory", "clocks"]
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=6)),
    max_leaves=12,
)
items = st.lists(st.dictionaries(names, values, max_size=7), max_size=3)


@given(st.one_of(items, values), st.one_of(items, values))
def test_whatever_an_answer_holds_only_what_fits_is_kept(first: Any, second: Any) -> None:
    text = json.dumps({"advice": first, "programs": second, "potentials": first, "critical_states": first})
    for item in read_states(text, 0, 20).items:
        assert 0 <= item.t < 20
    for task in (HOPPER, PONG):
        for item in read_advice(text, task, STATES, "me").items:
            assert isinstance(item, Advice)
            item.plan.check(task.action_space)
            assert item.plan.relative == (task is HOPPER)
        for item in read_programs(text, task, "me", 1).items:
            assert isinstance(item, Proposal | Potential)


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


# -- answers as models really write them -----------------------------------------------------------

STATE = {"t": 5, "importance": 0.5, "explanation": "e"}
DRAFT = {"critical_states": [STATE | {"t": 1}]}
ANSWER = {"reasoning": "r", "critical_states": [STATE]}


def times(text: str) -> list[int]:
    parsed = read_states(text, 0, 20)
    assert not parsed.problems, parsed.problems
    return [state.t for state in parsed.items]


@pytest.mark.parametrize(
    "text",
    [
        f"<think>{json.dumps(DRAFT)}</think>{json.dumps(ANSWER)}",
        f"{json.dumps(DRAFT)} no, wait </think>\n{json.dumps(ANSWER)}",
        f"<think>a {{brace and <think>more</think> {json.dumps(DRAFT)}</THINK> {json.dumps(ANSWER)}",
        f"```json\n{json.dumps(DRAFT)}\n```\nOn reflection:\n```json\n{json.dumps(ANSWER)}\n```\nDone.",
        f"First {json.dumps(DRAFT)}, then {json.dumps(ANSWER)} and {{that is it}}",
        f"<think>{json.dumps(ANSWER)}",
    ],
)
def test_the_last_complete_answer_counts(text: str) -> None:
    assert times(text) == [5]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps({"answer": ANSWER}), "wrapped in 'answer'"),
        (json.dumps({"name": "answer", "arguments": json.dumps(ANSWER)}), "wrapped in 'arguments'"),
        (json.dumps({"result": {"output": ANSWER}}), "wrapped in 'result.output'"),
        (json.dumps([ANSWER]), "wrapped in '[0]'"),
        (json.dumps([STATE]), "bare list"),
        (
            json.dumps({"critical_states": [STATE | {"t": "5", "importance": "0.5"}]}),
            "the text '5' was read as a number",
        ),
        (json.dumps(ANSWER).replace("}]", "},]"), "1 comma before a closing bracket left out"),
        (f'{{"critical_states": [], "critical_states": [{json.dumps(STATE)}]}}', "'critical_states' was given twice"),
    ],
)
def test_what_was_repaired_is_said(text: str, said: str) -> None:
    parsed = read_states(text, 0, 20)
    assert [state.t for state in parsed.items] == [5] and not parsed.problems
    assert any(said in repair for repair in parsed.repaired), parsed.repaired


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (json.dumps(DRAFT) + ' better: {"critical_states": [{"t": 7,', "was it cut off"),
        ('{"critical_states": [{"t": 5, "importance": 0.5, "explanation": "e"} // and two more\n]}', "not valid JSON"),
        (json.dumps({"a": ANSWER, "b": DRAFT}), "holds 'a', 'b', not 'critical_states'"),
        (json.dumps(ANSWER) + "</think>", "empty after its thinking"),
        (json.dumps({"critical_states": [STATE | {"t": "five"}]}), "'five', not a whole number"),
        (json.dumps({"critical_states": [STATE | {"importance": "50%"}]}), "'50%', not a number"),
    ],
)
def test_what_could_mean_something_else_is_a_problem(text: str, problem: str) -> None:
    parsed = read_states(text, 0, 20)
    assert any(problem in found for found in parsed.problems), parsed.problems
    assert 1 not in [state.t for state in parsed.items]  # a draft never stands for the answer


PIECES = ["<think>", "</think>", "```json\n", "```", "{", "}", "[", "]", ",", '"', " x ", "\n"]


@given(
    st.lists(st.sampled_from(PIECES), max_size=12),
    st.sampled_from([json.dumps(ANSWER), json.dumps(DRAFT), json.dumps([STATE]), ""]),
    st.text(max_size=20),
)  # fmt: skip
def test_no_text_breaks_the_reader(parts: list[str], answer: str, tail: str) -> None:
    parsed = read_states("".join(parts) + answer + tail, 0, 20)
    assert parsed.problems or all(0 <= state.t < 20 for state in parsed.items)


@pytest.mark.parametrize(
    "text",
    ["<think>" * 28_000, "{}" * 99_000, '{"a":' * 40_000, '{"' * 90_000, '{"a":1,},' * 20_000, '["a", ,]' * 20_000,
     '{"critical_states"' * 9_000, '"critical_states"   :' * 9_000, "[" * 190_000],
)  # fmt: skip
def test_hostile_texts_are_refused_quickly(text: str) -> None:
    start = time.monotonic()
    assert read_states(text, 0, 20).problems
    assert time.monotonic() - start < 5


# -- programs --------------------------------------------------------------------------------------

PROGRAM = {
    "name": "lean",
    "explanation": "e",
    "parameters": {"g": {"value": 0.5, "low": -1, "high": 1}},
    "rules": [{"when": "torso_pitch > 0.1", "add": {"thigh_torque": "g * torso_pitch"}}],
}
POTENTIAL = {"name": "far", "explanation": "e", "expression": "x_position"}


def test_programs_and_potentials_are_proposals_of_their_author() -> None:
    text = json.dumps({"reasoning": "r", "programs": [PROGRAM], "potentials": [POTENTIAL]})
    parsed = read_programs(text, HOPPER, "me", 2)
    assert parsed.items == (Proposal(Program.from_json(PROGRAM), "me", 2), Potential.from_json(POTENTIAL))
    assert read_programs(json.dumps({"programs": []}), HOPPER, "me", 2).problems == ()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"rules": [{"when": "pitch > 0", "add": {"thigh_torque": "g"}}]},
            "rules[0].when 'pitch > 0': pitch is not a fact",
        ),
        (
            {"rules": [{"when": "true", "add": {"hip": "g"}}]},
            "rules[0].add: 'hip' is not an action: actions are thigh_",
        ),
        ({"parameters": {"g": {"value": 3, "low": -1, "high": 1}}}, "value 3 is not between low -1 and high 1"),
        ({"rules": []}, "needs at least one rule"),
        ({"steps": 5}, "unknown part 'steps'"),
        ({"rules": [{"when": "true", "action": "UP"}]}, "names an action, but actions are numbers"),
    ],
)
def test_a_problem_names_its_place_the_value_and_the_remedy(change: dict[str, Any], problem: str) -> None:
    text = json.dumps({"programs": [PROGRAM, PROGRAM | {"name": "other"} | change]})
    parsed = read_programs(text, HOPPER, "me", 1)
    assert len(parsed.items) == 1  # what is valid is kept
    (found,) = parsed.problems
    assert found.startswith("programs[1]: ") and problem in found


def test_numbers_as_text_are_read_in_programs_too() -> None:
    program = PROGRAM | {"parameters": {"g": {"value": "0.5", "low": "-1", "high": 1}}}
    parsed = read_programs(json.dumps({"programs": [program]}), HOPPER, "me", 1)
    assert parsed.items == (Proposal(Program.from_json(PROGRAM), "me", 1),)
    assert "programs[0].parameters.g.value: the text '0.5' was read as a number" in parsed.repaired


def test_names_are_unique() -> None:
    parsed = read_programs(json.dumps({"programs": [PROGRAM, PROGRAM]}), HOPPER, "me", 1)
    assert len(parsed.items) == 1 and "is used twice" in parsed.problems[0]
