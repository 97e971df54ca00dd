"""The language of programs: what it means, what it refuses, and that it never runs anything."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ultra.common.errors import UltraError
from ultra.programs.compiled import Controller, compile_potential, compile_programs
from ultra.programs.executor import Executor
from ultra.programs.expression import ExpressionError, Reader, parse
from ultra.programs.records import LIMITS, MAX_INSTRUCTIONS, Potential, Program, ProgramError
from ultra.programs.tape import Tape, frame
from ultra.tasks.spaces import ActionSpace, Continuous, Discrete

NAMES = ("x", "y", "ball_dx")
ARM = Continuous((-5.0, -5.0), (5.0, 5.0))
FACTS = ("x", "y")
ACTIONS = ("hip", "knee")
ROWS = np.array(
    [[2.0, -3.0, 0.0], [0.5, 0.25, -0.75], [-1.5, 4.0, 1.0], [0.0, 0.0, 0.0], [math.nan, 1.0, math.inf], [1e9, -1e9, 7]]
)
WAVE: dict[str, Any] = {
    "name": "wave",
    "explanation": "a travelling wave",
    "parameters": {
        "a": {"value": 1.0, "low": 0.5, "high": 1.5},
        "w": {"value": 0.25, "low": 0.0, "high": 1.0},
    },
    "clocks": {"c": "w"},
    "memory": {"fast": {"start": 0.5, "update": "0.9 * fast + 0.1 * y"}},
    "let": {"head": "x + 0.5 * y", "b": "clip(0.4 * head, -0.6, 0.6)"},
    "rules": [
        {"when": "true", "set": {"hip": "a * sin(c) + b", "knee": "fast"}},
        {"when": "x > 1", "add": {"hip": "0.5"}},
    ],
}


def number(text: str, rows: NDArray[np.float64] = ROWS) -> NDArray[Any]:
    tape = Tape()
    place = Reader(tape, NAMES).number(text)
    return np.broadcast_to(tape.run(frame(rows, rows - 1, rows + 1))[place], len(rows))


def followed(value: dict[str, Any], facts: Any, actions: Any = None, space: ActionSpace = ARM) -> NDArray[Any]:
    """What one environment does under a program, step by step, the agent itself doing nothing or `actions`."""
    names = ACTIONS if isinstance(space, Continuous) else ("LEFT", "STAY", "RIGHT")
    executor = Executor([compile_programs([Program.from_json(value)], FACTS, names, space)], space, 1)
    executor.assign(0, 0)
    still = np.zeros((len(facts), 2), np.float32) if isinstance(space, Continuous) else np.ones(len(facts), np.int64)
    chosen = still if actions is None else np.asarray(actions)
    steps = [executor.act(np.array([row], np.float64), own[None])[0][0] for row, own in zip(facts, chosen, strict=True)]
    return np.array(steps)


def simple(**parts: Any) -> dict[str, Any]:
    return {"name": "p", **parts}


# What expressions mean


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("x + y", lambda x, y: x + y),
        ("x - y", lambda x, y: x - y),
        ("x * y", lambda x, y: x * y),
        ("x / y", lambda x, y: x / y),
        ("x % y", np.mod),
        ("x ** y", np.power),
        ("-x", lambda x, y: -x),
        ("+x", lambda x, y: x),
        ("abs(x)", lambda x, y: np.abs(x)),
        ("sign(y)", lambda x, y: np.sign(y)),
        ("min(x, y, 1)", lambda x, y: np.minimum(np.minimum(x, y), 1)),
        ("max(x, y)", np.maximum),
        ("clip(x, -1, 1)", lambda x, y: np.clip(x, -1, 1)),
        ("sin(x)", lambda x, y: np.sin(x)),
        ("cos(x)", lambda x, y: np.cos(x)),
        ("tan(x)", lambda x, y: np.tan(x)),
        ("atan2(y, x)", lambda x, y: np.arctan2(y, x)),
        ("sqrt(x)", lambda x, y: np.sqrt(x)),
        ("exp(y)", lambda x, y: np.exp(y)),
        ("log(x)", lambda x, y: np.log(x)),
        ("tanh(x)", lambda x, y: np.tanh(x)),
        ("floor(y)", lambda x, y: np.floor(y)),
        ("wrap(3 * x)", lambda x, y: np.mod(3 * x + np.pi, 2 * np.pi) - np.pi),
        ("pick(y, 7, x)", lambda x, y: np.where((y >= 0) & (y < 1), 7, np.where((y >= 1) & (y < 2), x, np.nan))),
        ("x if y > 0 else -x", lambda x, y: np.where(y > 0, x, -x)),
        ("x > y", lambda x, y: (x > y) * 1.0),
        ("1 + (x > 0 and not y <= 0)", lambda x, y: 1 + ((x > 0) & ~(y <= 0)) * 1.0),
        ("2 * (x == 0 or y != 0)", lambda x, y: 2 * ((x == 0) | (y != 0))),
        ("prev(x) + start(y)", lambda x, y: (x - 1) + (y + 1)),
        ("pi", lambda x, y: np.full(len(x), np.pi)),
        ("true + false", lambda x, y: np.ones(len(x))),
        ("2 ** 3 ** 0.5 % 1.5", lambda x, y: np.full(len(x), np.mod(2**3**0.5, 1.5))),
    ],
)
def test_each_operation_is_that_of_numpy(text: str, reference: Callable[..., Any]) -> None:
    with np.errstate(all="ignore"):
        assert np.array_equal(number(text), reference(ROWS[:, 0], ROWS[:, 1]), equal_nan=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x > 1", True),
        ("not (x > 1)", False),
        ("1 < x <= 2", True),
        ("abs(y) > 2.5 or x == 0", True),
        ("max(x, y, 7) == 7 and min(x, y) == y", True),
        ("x - prev(x) > 0.5", True),
        ("x / 0 > 0", True),
        ("(x - 2) / 0 > 0", False),
        ("(x - 2) / 0 != 0", False),
        ("not ((x - 2) / 0 > 0)", True),
        ("x > 0 > (y > 0) - 1", True),
        ("false or true", True),
    ],
)
def test_what_guards_mean(text: str, expected: bool) -> None:
    now, before = np.array([[2.0, -3.0, 0.0]]), np.array([[1.0, 0.0, 0.0]])
    assert bool(parse(text, NAMES).evaluate(now, before)[0]) is expected


def test_both_branches_of_a_choice_are_computed_and_the_other_ones_nan_does_not_count() -> None:
    assert number("sqrt(x) if x >= 0 else 0")[2] == 0.0
    assert number("x if x / 0 > 0 else 5")[3] == 5.0  # 0 / 0 is no number, and compares with nothing


def test_a_constant_does_not_depend_on_what_was_read_before() -> None:
    tape = Tape()
    first = Reader(tape, NAMES).number("0 * 1")
    assert Reader(tape, NAMES).number("-0.0") == first


# What it refuses


@pytest.mark.parametrize(
    "text",
    [
        "", "   ", "x", "x > ", "1 + 1", "True", "__import__('os').system('true') > 0", "x.real > 0",
        "open('f') > 0", "abs(x, y) > 0", "min(x) > 0", "prev(x + 1) > 0", "prev(prev(x)) > 0", "unknown > 0",
        "x[0] > 0", "(lambda: 1)() > 0", "[i for i in (1,)] > 0", "x // y > 0", "x in y", "x is y", "'a' > x",
        "x > 1e999", "x > 1e300", "x > 2j", "(z := 1) > 0", "x if y else x", "abs(x=1) > 0", "f'{x}' > 0",
        "x > 0; y > 0", "x > 0\ny > 0", "await x", "-" * 400 + "x > 0", "(" * 300 + "x" + ")" * 300 + " > 0",
        "x > 0 " + "and x > 0 " * 100, "\0", "x > 0 #" + "é" * 600, "*x > 0", "abs(*x) > 0", "not x", "x and y",
        "x & y", "~x > 0", "x < True", "x > 0 if true else x", "agent(x) > 0", "x > '\x1b[31m'", "\ud800 > 0",
        "x > 9" + "9" * 500, "abs > 0", "sin() > 0", "pick(x) > 0", "x @ y > 0", "{x} > 0", "... > 0", "yield",
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text, NAMES)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rules": [{"set": {"hip": "1"}}, {"set": {"hip": "spin(x)"}}]}, r"program 'wave', rules\[1\].set.hip 'spin"),
        ({"rules": [{"when": "x", "set": {"hip": "1"}}]}, r"program 'wave', rules\[0\].when 'x': x is not a condition"),
        ({"rules": [{"set": {"ankle": "1"}}]}, r"rules\[0\].set: 'ankle' is not an action: actions are hip, knee"),
        ({"rules": [{"set": {"hip": "knee"}}]}, r"what the agent itself does is agent\(knee\)"),
        ({"rules": [{"add": {"hip": "[1]"}}]}, r"rules\[0\].add.hip '\[1\]': \[1\] is not allowed"),
        ({"rules": [{"action": "hip"}]}, r"rules\[0\] names an action, but actions are numbers"),
        ({"rules": [{"when": "x > 0"}]}, r"rules\[0\] does nothing"),
        ({"rules": []}, "rules is empty"),
        ({"rules": {}}, "rules is {}, not a list"),
        ({"rules": [{"set": {"hip": "1"}, "on": 1}]}, r"rules\[0\] has an unknown part 'on'"),
        ({"rules": [{"set": {"hip": None}}]}, r"rules\[0\].set.hip is None, not a text"),
        ({"rules": [{"set": {"hip": 10**400}}]}, r"rules\[0\].set.hip is a whole number of 1329 bits, not a text"),
        ({"clocks": {"c": "later"}}, r"program 'wave', clocks.c 'later': later is not a fact or a known name"),
        ({"memory": {"m": {"start": "0", "update": "m"}}}, "memory.m.start is '0', not a number"),
        ({"memory": {"m": {"start": 10**400, "update": "m"}}}, "memory.m.start is a whole number of 1329 bits"),
        ({"let": {"late": "b", "b": "1"}}, "program 'wave', let.late 'b': b is not a fact or a known name"),
        ({"let": {"x": "1"}}, "let.x has the name of a fact"),
        ({"let": {"sin": "1"}}, "'sin' means something"),
        ({"let": {"a": "1"}}, "'a' is used twice"),
        ({"let": {"1a": "1"}}, "'1a' is not a letter followed by"),
        ({"let": {"unused": "("}}, "program 'wave', let.unused"),
        ({"parameters": {"a": {"value": 3, "low": 0, "high": 2}}}, "parameters.a: value 3 is not between low 0"),
        ({"parameters": {"a": {"value": 1, "low": 1, "high": 1}}}, "low 1 must be below high 1"),
        ({"parameters": {"a": 1}}, "parameters.a is 1, not an object"),
        ({"parameters": {f"p{k}": {"value": 0, "low": 0, "high": 1} for k in range(9)}}, "parameters has 9 entries"),
        ({"let": {f"l{k}": "1" for k in range(41)}}, "let has 41 entries: at most 40"),
        ({"rules": [{"set": {"hip": "1"}}] * 25}, "rules has 25 entries: at most 24"),
        ({"rules": [{"set": {"hip": "x" + "+ 1" * 300}}]}, "has 901 characters: at most 600 are allowed"),
        ({"rules": [{"set": {"hip": "-" * 30 + "x"}}]}, "nested too deeply: at most 24 levels"),
        ({"name": ""}, "name is '', not a text"),
        ({"name": "<b>"}, "name '<b>' is not 1 to 80 letters"),
        ({"extra": 1}, "unknown part 'extra': known are clocks, explanation, let, memory, name"),
    ],
)
def test_errors_name_the_place_and_the_value(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ProgramError, match=complaint):
        compile_programs([Program.from_json(WAVE | change)], FACTS, ACTIONS, ARM)


def test_values_of_any_size_and_depth_are_shown_in_short() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for hostile in (deep, {"a": deep}, ["x"] * 1_000_000, "y" * 1_000_000, 10**100_000, {"\x1b[31m": 1}):
        for value in (
            hostile,
            WAVE | {"rules": hostile},
            WAVE | {"rules": [{"set": hostile}]},
            WAVE | {"let": hostile},
        ):
            with pytest.raises(ProgramError) as caught:
                compile_programs([Program.from_json(value)], FACTS, ACTIONS, ARM)
            assert len(str(caught.value)) < 2_000
            assert str(caught.value).isprintable()
    while deep:  # taken apart here: freeing it at once would nest as deeply
        deep = deep.pop()


def test_a_chain_of_lets_may_be_as_long_and_deep_as_the_limits_allow() -> None:
    chain = {"b0": "-" * 20 + "x"} | {f"b{k}": "-" * 20 + f"b{k - 1}" for k in range(1, 40)}
    assert followed(simple(let=chain, rules=[{"set": {"hip": "b39"}}]), [[2.0, 0.0]])[0, 0] == 2.0
    wide = {f"b{k}": "-" * 20 + f"\uff42{k - 1}" for k in range(1, 40)}  # names that Python's parser normalises
    value = simple(let={"b0": "x", **wide}, rules=[{"set": {"hip": "b39"}}])
    assert followed(value, [[2.0, 0.0]])[0, 0] == 2.0


def test_a_program_of_too_many_operations_is_refused() -> None:
    terms = [" * ".join(f"(x + {20 * k + j})" for j in range(20)) for k in range(40)]
    value = simple(let={f"l{k}": term for k, term in enumerate(terms)}, rules=[
        {"set": {"hip": " + ".join(f"l{k}" for k in range(20)), "knee": " + ".join(f"l{k}" for k in range(20, 40))}}
    ])  # fmt: skip
    with pytest.raises(ProgramError, match=f"more than {MAX_INSTRUCTIONS} operations"):
        compile_programs([Program.from_json(value)], FACTS, ACTIONS, ARM)
    assert "8 parameters" in LIMITS


def test_potentials_read_the_present_only() -> None:
    assert compile_potential(Potential("height", "x - 0.5 * y"), FACTS).place >= 0
    for text, complaint in (("prev(x)", "looks back"), ("start(x)", "looks back"), ("agent(hip)", "none here")):
        with pytest.raises(ProgramError, match=f"potential 'height', .*{complaint}"):
            compile_potential(Potential("height", text), FACTS)


# What programs do, step by step


def test_clocks_and_memory_hold_their_start_in_the_first_step_and_are_then_advanced_at_the_beginning_of_each() -> None:
    facts = [[0.0, 1.0], [0.0, 2.0], [2.0, 4.0]]
    clock, fast, expected = 0.0, 0.5, []
    for step, (x, y) in enumerate(facts):
        if step:
            clock, fast = clock + 0.25, 0.9 * fast + 0.1 * y
        b = np.clip(0.4 * (x + 0.5 * y), -0.6, 0.6)
        expected.append([np.sin(clock) + b + (0.5 if x > 1 else 0.0), fast])
    assert np.allclose(followed(WAVE, facts), expected, atol=1e-6)


def test_registers_see_each_other_as_they_were_in_the_step_before() -> None:
    memory = {"m": {"start": 1, "update": "m + n"}, "n": {"start": 2, "update": "m"}}
    value = simple(memory=memory, rules=[{"set": {"hip": "m", "knee": "n"}}])
    assert followed(value, [[0, 0]] * 3).tolist() == [[1, 2], [3, 1], [4, 3]]


def test_a_register_or_clock_keeps_its_value_where_its_update_is_no_number() -> None:
    memory = {"m": {"start": 1, "update": "m + 1 / x"}}
    value = simple(memory=memory, clocks={"c": "log(x)"}, rules=[{"set": {"hip": "m", "knee": "c"}}])
    assert followed(value, [[1, 0], [0, 0], [-1, 0]])[:, 0].tolist() == [1, 1, 0]
    assert followed(value, [[1, 0], [0, 0], [-1, 0]])[:, 1].tolist() == [0, 0, 0]


def test_prev_is_the_state_itself_in_the_first_step_and_start_stays() -> None:
    value = simple(rules=[{"set": {"hip": "x - prev(x)", "knee": "start(y)"}}])
    assert followed(value, [[1, 4], [3, 5], [4, 2]]).tolist() == [[0, 4], [2, 4], [1, 4]]


def test_agent_is_what_the_agent_does_and_add_goes_on_top_of_earlier_rules() -> None:
    rules = [
        {"add": {"hip": "1"}},
        {"set": {"hip": "2 * agent(hip)"}},
        {"when": "x > 0", "add": {"hip": "agent(knee)"}},
    ]
    found = followed(simple(rules=rules), [[0, 0], [1, 0]], np.array([[0.5, 0.25], [0.5, 0.25]], np.float32))
    assert found.tolist() == [[1.0, 0.25], [1.25, 0.25]]


def test_what_is_no_number_is_not_done_and_what_is_infinite_goes_to_the_bound() -> None:
    value = simple(rules=[{"set": {"hip": "1 / x", "knee": "exp(y)"}}, {"add": {"hip": "-1 / abs(x)"}}])
    found = followed(value, [[0, 900], [1, 0]], np.array([[3, 3], [3, 3]], np.float32))
    assert found[1].tolist() == [0, 1]
    assert ARM.clip(found[0]).tolist() == [5, 5]  # infinity less infinity is no number: it stays at infinity


def test_discrete_actions_are_taken_by_name_and_of_several_parts_by_part() -> None:
    rules = [{"when": "x > 0", "action": "right"}, {"when": "agent(STAY) > 0 and y > 0", "action": "LEFT"}]
    found = followed(simple(rules=rules), [[0, 0], [1, 0], [1, 1], [1, 1]], [1, 1, 1, 0], Discrete(3))
    assert found.tolist() == [1, 2, 0, 2]
    space = Discrete(6, (3, 1))
    names = [f"a{k}" for k in range(6)]
    value = simple(rules=[{"when": "x > 0", "action": {"choice0": 2}}, {"when": "y > 0", "action": {"choice1": 0}}])
    executor = Executor([compile_programs([Program.from_json(value)], FACTS, names, space)], space, 3)
    executor.assign(slice(None), 0)
    done, held = executor.act(np.array([[0.0, 0], [1, 0], [1, 1]]), np.array([1, 1, 1]))
    assert (done.tolist(), held.tolist()) == ([1, 5, 4], [False, True, True])
    for choice, complaint in ((3, "is 3, not one of 0 to 2"), (1.5, "is 1.5, not a whole number")):
        with pytest.raises(ProgramError, match=complaint):
            hostile = simple(rules=[{"action": {"choice0": choice}}])
            compile_programs([Program.from_json(hostile)], FACTS, names, space)


def test_settings_stand_for_the_parameters_row_by_row() -> None:
    compiled = compile_programs([Program.from_json(WAVE)], FACTS, ACTIONS, ARM)
    executor = Executor([compiled], ARM, 3)
    executor.assign(np.arange(3), 0, np.array([[0.5, 0.0], [1.0, 0.5], [1.5, 1.0]]))
    facts, still = np.zeros((3, 2)), np.zeros((3, 2), np.float32)
    executor.act(facts, still)
    assert np.allclose(executor.act(facts, still)[0][:, 0], [0, math.sin(0.5), 1.5 * math.sin(1)])
    assert Controller.of(compiled).settings.tolist() == [1.0, 0.25]


# JSON


@st.composite
def programs(draw: st.DrawFn) -> dict[str, Any]:
    """Well-formed programs."""
    numbers = st.floats(-5, 5).map(lambda value: round(value, 3))
    atoms = ["x", "y", "prev(x)", "start(y)", "agent(hip)", "0.5", "-2", "pi"]
    value: dict[str, Any] = {"name": draw(st.from_regex(r"[a-z][a-z0-9_ ]{0,10}[a-z]", fullmatch=True))}
    if draw(st.booleans()):
        value["parameters"] = {"gain": {"value": draw(numbers), "low": -5.0, "high": 5.0}}
        atoms.append("gain")
    if draw(st.booleans()):
        value["clocks"] = {"c": draw(st.sampled_from(["0.3", "0.1 * abs(x)", "y"]))}
        atoms += ["c", "sin(c)"]
    if draw(st.booleans()):
        update = draw(st.sampled_from(["m + 1", "0.9 * m + x", "max(m, y)", "x / y"]))
        value["memory"] = {"m": {"start": draw(numbers), "update": update}}
        atoms.append("m")
    terms = st.recursive(st.sampled_from(atoms), _larger, max_leaves=5)
    if draw(st.booleans()):
        value["let"] = {"l": draw(terms), "held": f"{draw(terms)} > {draw(terms)}"}
        atoms.append("l")
    guards = st.one_of(st.just("true"), st.tuples(terms, st.sampled_from(["<", ">="]), terms).map(" ".join))
    part = st.dictionaries(st.sampled_from(ACTIONS), terms, min_size=1, max_size=2)
    rule = st.fixed_dictionaries({"when": guards, draw(st.sampled_from(["set", "add"])): part})
    value["rules"] = draw(st.lists(rule, min_size=1, max_size=4))
    return value


def _larger(terms: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(terms, st.sampled_from(["+", "-", "*", "/"]), terms).map(lambda t: f"({' '.join(t)})"),
        st.tuples(st.sampled_from(["sin", "tanh", "abs", "exp", "sqrt"]), terms).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(terms, terms, terms).map(lambda t: f"({t[0]} if {t[1]} > 0 else {t[2]})"),
    )


@settings(deadline=None)
@given(programs())
def test_programs_go_through_json_and_back(value: dict[str, Any]) -> None:
    program = Program.from_json(value)
    plain = json.loads(json.dumps(program.to_json(), allow_nan=False))
    assert Program.from_json(plain) == program
    assert Program.from_json(plain).to_json() == plain
    potential = Potential.from_json({"name": "p", "expression": "x"})
    assert Potential.from_json(potential.to_json()) == potential


def test_tuned_values_stay_in_their_ranges() -> None:
    tuned = Program.from_json(WAVE).with_values([9.0, 0.5])
    assert tuned.values == (1.5, 0.5)
    with pytest.raises(ValueError, match="shorter"):
        tuned.with_values([1.0])


# Random and hostile texts

_PIECES = [
    "x", "y", "ball_dx", "prev(x)", "start(", "agent(hip)", "0", "1", "1e9", "1e308", ".5", "pi", "true", "false",
    "None", "__import__('os')", ".__class__", "lambda: 0", "[", "]", "{", "}", "(", ")", ",", ":", ":=", "'", '"',
    "\\", "#", "\n", "\0", "\ud800", "é", "ｘ", "\x1b[2J", "if", "else", "for", "in", "and", "or", "not", "is",
    "await", "yield", "**", "*", "//", "/", "%", "+", "-", "~", "&", "|", "<<", "@", "=", "==", "!=", "<", ">=",
    "abs(", "min(", "max(x, ", "clip(", "sin(", "log(", "pick(", "exp(exp(", "9" * 40, "(" * 50, ")" * 50, "-" * 90,
    "not " * 90, "f'{x}'", "...", "$", "\t", "x" * 99,
]  # fmt: skip


def hostile_text(rng: np.random.Generator) -> str:
    kind = rng.integers(4)
    if kind == 0:
        return "".join(map(chr, rng.integers(0, 0x3000 if rng.random() < 0.5 else 128, rng.integers(0, 60))))
    pieces = [_PIECES[k] for k in rng.integers(0, 40 if kind == 1 else len(_PIECES), rng.integers(1, 15))]
    text = (" " if rng.random() < 0.7 else "").join(pieces)
    return text if kind < 3 else f"{text} {'><+-'[rng.integers(4)]} {pieces[0]}"


_VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 1e308, math.nan, math.inf, 10**400, "", "x", "x > 0", "sin(", "true", [], {}, [[]],
    {"a": 1}, {"set": {"hip": "1"}}, [{"set": {"hip": "x"}}] * 30, {"value": 1, "low": 0, "high": 2}, "\ud800",
    "x" * 10_000, b"x", {1: 2}, {"hip": "__import__('os').abort()"}, {"start": 0, "update": "1 / 0"}, (),
    {"c": "c + c"},
]  # fmt: skip


def hostile_program(rng: np.random.Generator) -> Any:
    """The wave with a few of its parts replaced, renamed, doubled or removed."""
    value = copy.deepcopy(WAVE)
    for _ in range(rng.integers(1, 4)):
        parent: Any = value
        while True:
            keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
            if not keys:
                break
            key = keys[rng.integers(len(keys))]
            if isinstance(parent[key], dict | list) and rng.random() < 0.7:
                parent = parent[key]
                continue
            choice = rng.integers(4)
            new = _VALUES[rng.integers(len(_VALUES))] if choice < 2 else hostile_text(rng)
            if choice == 3 and isinstance(parent, dict):
                parent[new if isinstance(new, str) else "z"] = parent.pop(key)
            else:
                parent[key] = new
            break
    return value if rng.random() < 0.98 else _VALUES[rng.integers(len(_VALUES))]


def _try_expression(text: str) -> None:
    start = time.thread_time()
    try:
        found = parse(text, NAMES)
        assert found.evaluate(np.zeros((4, 3))).shape == (4,)
    except ExpressionError as error:
        assert str(error).isprintable()
    assert time.thread_time() - start < 1.0, text


def _try_program(value: Any) -> bool:
    start = time.thread_time()
    accepted = True
    try:
        program = Program.from_json(value)
        compiled = compile_programs([program], FACTS, ACTIONS, ARM)
        assert Program.from_json(json.loads(json.dumps(program.to_json(), allow_nan=False))) == program
        executor = Executor([compiled], ARM, 2)
        executor.assign(slice(None), 0)
        for _ in range(2):
            done, _ = executor.act(np.zeros((2, 2)), np.zeros((2, 2), np.float32))
            assert not np.isnan(done).any()
        json.dumps(executor.state(), allow_nan=False)
    except UltraError as error:
        assert str(error).isprintable()
        assert len(str(error)) <= 4_000
        accepted = False
    assert time.thread_time() - start < 1.0, value
    return accepted


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a text could execute fails the test."""
    np.ma.array(np.random.default_rng(0).random(1))  # both are imported when they are first used

    def caught(*_: Any, **__: Any) -> None:
        raise AssertionError("something was executed")

    for name in ("eval", "exec", "open", "input", "breakpoint"):
        monkeypatch.setattr(f"builtins.{name}", caught)
    monkeypatch.setattr("os.system", caught)
    monkeypatch.setattr("os.abort", caught)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("count", [1_500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_random_and_hostile_texts_are_read_or_refused(count: int) -> None:
    rng = np.random.default_rng(11)
    for _ in range(count):
        _try_expression(hostile_text(rng))


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("count", [800, pytest.param(100_000, marks=pytest.mark.slow)])
def test_random_and_hostile_programs_are_read_or_refused(count: int) -> None:
    rng = np.random.default_rng(12)
    accepted = sum(_try_program(hostile_program(rng)) for _ in range(count))
    assert 0.01 < accepted / count < 0.9


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    _try_expression(text)


@settings(deadline=None)
@given(st.text(alphabet="xy01.<>=+-*/%() andortifelsepv,", max_size=40))
def test_near_misses_are_refused_without_a_crash(text: str) -> None:
    _try_expression(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([None, *WAVE]), _JSON)
def test_any_json_is_a_program_or_is_refused(part: str | None, value: Any) -> None:
    _try_program(value if part is None else WAVE | {part: value})
