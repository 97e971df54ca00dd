"""The guard language: what it means, what it refuses, and that it never runs anything."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultra.expression import ExpressionError, Guards, parse

NAMES = ("x", "y", "ball_dx")


def holds(text: str, row: tuple[float, ...], before: tuple[float, ...] | None = None) -> bool:
    previous = None if before is None else np.array([before])
    return bool(parse(text, NAMES).evaluate(np.array([row]), previous)[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x > 1", True),
        ("x > 1 and y < 0", True),
        ("not (x > 1)", False),
        ("1 < x <= 2", True),
        ("abs(y) > 2.5 or x == 0", True),
        ("max(x, y, 7) == 7 and min(x, y) == y", True),
        ("sign(y) == -1", True),
        ("x * 2 - y / 3 >= 5", True),
        ("x - prev(x) > 0.5", True),
        ("x / 0 > 0", True),
        ("(x - 2) / 0 > 0", False),
        ("(x - 2) / 0 != 0", False),
    ],
)
def test_what_guards_mean(text: str, expected: bool) -> None:
    assert holds(text, (2.0, -3.0, 0.0), (1.0, 0.0, 0.0)) is expected


@pytest.mark.parametrize(
    "text",
    [
        "", "   ", "x", "x > ", "x >", "1 + 1", "True", "__import__('os').system('true') > 0", "x.real > 0",
        "open('f') > 0", "abs(x, y) > 0", "min(x) > 0", "prev(x + 1) > 0", "prev(prev(x)) > 0", "unknown > 0",
        "x[0] > 0", "(lambda: 1)() > 0", "[i for i in (1,)] > 0", "x ** y > 0", "x // y > 0", "x % 2 > 0", "x in y",
        "x is y", "'a' > x", "x > 1e999", "x > 1e300", "x > 2j", "(z := 1) > 0", "x if y else x", "x > 0 > (y > 0)",
        "abs(x=1) > 0", "f'{x}' > 0", "x > 0; y > 0", "x > 0\ny > 0", "await x", "-" * 400 + "x > 0",
        "(" * 300 + "x" + ")" * 300 + " > 0", "x > 0 " + "and x > 0 " * 100, "\0", "x > 0 #" + "é" * 600, "*x > 0",
        "abs(*x) > 0", "not x", "x and y", "x & y", "~x > 0", "x < True",
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text, NAMES)
    assert "\n" not in str(caught.value)


def test_a_guard_names_its_facts() -> None:
    found = parse("x > 0 and prev(y) < 1", NAMES)
    assert found.facts == {"x", "y"}
    assert found.uses_previous
    with pytest.raises(ExpressionError, match="shapes"):
        found.evaluate(np.zeros((3, 2)))


numbers = st.one_of(
    st.sampled_from(["x", "y", "ball_dx", "prev(x)"]), st.integers(-9, 9).map(str), st.sampled_from(["0.5", "1e3"])
)


def _join(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(children, st.sampled_from("+-*/"), children).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        children.map(lambda c: f"abs({c})"),
        children.map(lambda c: f"-({c})"),
        st.tuples(st.sampled_from(["min", "max"]), children, children).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
    )


terms = st.recursive(numbers, _join, max_leaves=6)
comparisons = st.tuples(terms, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), terms).map(" ".join)
guards = st.recursive(
    comparisons,
    lambda children: st.one_of(
        st.tuples(children, st.sampled_from(["and", "or"]), children).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        children.map(lambda c: f"not ({c})"),
    ),
    max_leaves=4,
)


def _reference(text: str, now: dict[str, float], before: dict[str, float]) -> bool:
    """The same guard by Python itself; only guards that a strategy has built come here."""
    scope: dict[str, object] = {name: np.float64(value) for name, value in now.items()}
    scope |= {"abs": np.abs, "min": np.minimum, "max": np.maximum, "prev": lambda value: value}
    for name, value in before.items():
        text = text.replace(f"prev({name})", f"np_{name}")
        scope[f"np_{name}"] = np.float64(value)
    with np.errstate(all="ignore"):
        return bool(eval(text.replace("1e3", "np1000"), {"__builtins__": {}}, scope | {"np1000": np.float64(1000)}))


values = st.floats(-100, 100, allow_nan=False).map(lambda value: round(value, 2))


@given(guards, st.tuples(values, values, values), st.tuples(values, values, values))
def test_guards_agree_with_python(text: str, now: tuple[float, ...], before: tuple[float, ...]) -> None:
    try:
        expression = parse(text, NAMES)
    except ExpressionError as error:
        assert "too deeply" in str(error) or "too long" in str(error)
        return
    try:
        expected = _reference(text, dict(zip(NAMES, now, strict=True)), dict(zip(NAMES, before, strict=True)))
    except ZeroDivisionError:
        return  # constants alone, which Python divides as its own
    found = expression.evaluate(np.array([now, now]), np.array([before, before]))
    assert found.shape == (2,)
    if not any(math.isnan(v) for v in now) and "/" not in text:
        assert bool(found[0]) == expected


perhaps = st.one_of(values, st.sampled_from([math.nan, math.inf, -math.inf]))


@given(st.lists(guards, min_size=1, max_size=6), st.lists(st.tuples(perhaps, perhaps, perhaps), min_size=2, max_size=5))
def test_guards_together_agree_with_each_alone(texts: list[str], rows: list[tuple[float, ...]]) -> None:
    found = [parse(text, NAMES) for text in texts]
    facts, before = np.array(rows), np.array(rows[::-1])
    alone = np.stack([guard.evaluate(facts, before) for guard in found], axis=1)
    assert np.array_equal(Guards(found).evaluate(facts, before), alone)


def test_guards_that_join_comparisons_are_taken_apart() -> None:
    """Only these can be evaluated fifty at a time."""
    texts = ("x > 1", "1 < x <= 2 and prev(y) != -3", "-1 > x", "x > y and x < prev(x)", "1 < 2")
    assert [len(parse(text, NAMES).tests) for text in texts] == [1, 3, 1, 2, 1]
    for text in ("x > 1 or y > 1", "not x > 1", "abs(x) > 1", "x + 1 > 2", "x > 1 and y < 2 * x"):
        assert parse(text, NAMES).tests == ()


@given(st.text(max_size=60))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    try:
        found = parse(text, NAMES)
    except ExpressionError:
        return
    assert found.evaluate(np.zeros((4, 3))).shape == (4,)


@given(st.text(alphabet="xy01.<>=+-*/() andortminpev,", max_size=40))
def test_near_misses_are_refused_without_a_crash(text: str) -> None:
    try:
        found = parse(text, NAMES)
    except ExpressionError:
        return
    assert found.evaluate(np.ones((2, 3))).dtype == np.bool_
