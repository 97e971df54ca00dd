"""Critical states and advice: storage, damage, and the book in which states are looked up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ultra.advice.records import (
    Advice,
    AdviceBook,
    CriticalState,
    Entry,
    Verdict,
    Verification,
    calibrate,
    load_advice,
    load_states,
    save_advice,
    save_states,
)
from ultra.common.errors import RunDirectoryError, UltraError
from ultra.tasks.plans import Plan, Segment

UNIT, SIGNED = st.floats(0, 1), st.floats(-1, 1)
NUMBERS = st.floats(-1e9, 1e9)
STATES = st.builds(CriticalState, st.integers(0, 99), st.integers(0, 9999), UNIT, st.text())
PLANS = st.builds(
    Plan,
    st.lists(st.builds(Segment, st.tuples(SIGNED, SIGNED), st.integers(1, 5)), min_size=1).map(tuple),
    st.booleans(),
) | st.builds(Plan, st.lists(st.builds(Segment, st.integers(0, 5), st.integers(1, 5)), min_size=1).map(tuple))
VERIFICATIONS = st.builds(
    Verification,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.integers(4, 64),
    st.sampled_from([1.0, 0.5, 0.25]),
    st.sampled_from(["helps", "harms", "unclear"]),
    st.integers(0, 10**6),
)
ADVICE = st.builds(Advice, STATES, PLANS, SIGNED, SIGNED, st.text(), st.text(), st.none() | VERIFICATIONS)

USUAL = settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def some_advice(verdict: Verdict | None = None) -> Advice:
    found = Verification(1.0, -0.5, 2.5, 8, 0.5, verdict, 900) if verdict else None
    return Advice(CriticalState(1, 7, 0.5, "why"), Plan((Segment(1, 3),)), 0.5, -0.5, "what", "someone", found)


# Storage


@USUAL
@given(st.lists(ADVICE, max_size=4))
def test_advice_survives_its_storage(tmp_path: Path, advice: list[Advice]) -> None:
    """Texts with line breaks of any kind included."""
    save_advice(advice, tmp_path / "advice.jsonl")
    assert load_advice(tmp_path / "advice.jsonl") == advice


@USUAL
@given(st.lists(STATES, max_size=4))
def test_states_survive_their_storage(tmp_path: Path, states: list[CriticalState]) -> None:
    save_states(states, tmp_path / "states.jsonl")
    assert load_states(tmp_path / "states.jsonl") == states


@pytest.mark.parametrize("importance", [-0.01, 1.5, float("nan")])
def test_an_importance_outside_its_range_is_named(importance: float) -> None:
    with pytest.raises(UltraError, match=rf"importance of episode 3, t = 14 is {importance}, not in \[0, 1\]"):
        CriticalState(3, 14, importance, "")


@pytest.mark.parametrize("name", ["reward_follow", "reward_taken"])
@pytest.mark.parametrize("value", [-1.01, 2.0, float("nan")])
def test_a_reward_outside_its_range_is_named(name: str, value: float) -> None:
    with pytest.raises(UltraError, match=rf"{name} of episode 1, t = 7 is {value}, not in \[-1, 1\]"):
        replace(some_advice(), **{name: value})  # type: ignore[arg-type]


def change(line: str, **changes: Any) -> str:
    return json.dumps(json.loads(line) | changes)


DAMAGES: list[Callable[[str], str]] = [
    lambda line: line[: len(line) // 2],
    lambda line: "",
    lambda line: "3",
    lambda line: "[]",
    lambda line: '"text"',
    lambda line: "null",
    lambda line: change(line, unknown=1),
    lambda line: change(line, state=None),
    lambda line: change(line, state={"episode": 0}),
    lambda line: change(line, plan={}),
    lambda line: change(line, plan={"segments": [], "relative": False}),
    lambda line: change(line, plan={"segments": [{"action": 1}], "relative": False}),
    lambda line: change(line, plan={"segments": [{"action": None, "steps": 1}], "relative": False}),
    lambda line: change(line, reward_follow=2),
    lambda line: change(line, reward_taken="high"),
    lambda line: change(line, verification={"verdict": "helps"}),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_advice_names_its_line(damage: Callable[[str], str], tmp_path: Path) -> None:
    path = tmp_path / "advice.jsonl"
    save_advice([some_advice("helps"), some_advice(), some_advice("harms")], path)
    lines = path.read_text().splitlines()
    lines[1] = damage(lines[1])
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(RunDirectoryError, match=r"advice\.jsonl, line 2 is damaged") as error:
        load_advice(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "damage", ["[]", "3", "{", '{"episode": 0}', '{"episode":0,"t":0,"importance":2,"explanation":""}']
)
def test_damaged_states_name_their_line(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "states.jsonl"
    save_states([CriticalState(0, t, 0.5, "why") for t in range(3)], path)
    lines = path.read_text().splitlines()
    lines[1] = damage
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(RunDirectoryError, match=r"states\.jsonl") as error:
        load_states(path)
    assert "line 2" in str(error.value)


@pytest.mark.parametrize("load", [load_advice, load_states])
def test_a_file_that_is_no_text_is_an_error(load: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunDirectoryError, match=r"file\.jsonl"):
        load(path)


@pytest.mark.parametrize(("load", "verb"), [(load_advice, "advise"), (load_states, "identify")])
def test_a_missing_file_says_which_stage_writes_it(load: Callable[[Path], object], verb: str, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=f"run `ultra {verb}` first"):
        load(tmp_path / "missing.jsonl")


# What verification found


def test_advice_takes_its_strength_from_verification() -> None:
    assert (some_advice().verdict, some_advice().strength) == (None, 1.0)
    assert (some_advice("unclear").verdict, some_advice("unclear").strength) == ("unclear", 0.5)


# The book


def book_of(verdicts: list[Verdict | None], facts: NDArray[np.float64] | None = None) -> AdviceBook:
    rows = np.arange(3.0 * len(verdicts)).reshape(-1, 3) if facts is None else facts
    entries = [Entry(some_advice(v), row, b"", np.zeros(3, np.int64)) for v, row in zip(verdicts, rows, strict=True)]
    return AdviceBook(tuple(entries), np.array([0, 2]), np.array([1.0, 10.0]), 0.5)


def test_only_what_may_help_is_trusted() -> None:
    """Advice that harms, and advice that was never tried, is left out, unless everything is trusted."""
    book = book_of(["helps", "harms", "unclear", None])
    trusted = book.trusted("helps")
    assert [entry.advice.verdict for entry in trusted.entries] == ["helps", "unclear"]
    assert (trusted.radius, trusted.scale.tolist(), trusted.columns.tolist()) == (0.5, [1.0, 10.0], [0, 2])
    assert book.trusted("all") == book
    assert len(book) == 4


def test_calibration_of_a_worked_example() -> None:
    """Two episodes that move by 2 and by 4 units a step; the middle column does not count."""
    columns = np.array([0, 2])
    slow = np.stack([2.0 * np.arange(4), 99.0 * np.arange(4) ** 2, np.zeros(4)], axis=1)
    fast = np.stack([4.0 * np.arange(3), 77.0 * np.arange(3), np.zeros(3)], axis=1)
    scale, radius = calibrate([slow, fast], columns)
    deviation = np.std([0, 2, 4, 6, 0, 4, 8])
    np.testing.assert_allclose(scale, np.array([deviation, 1.0]))  # a fact that never changes keeps its unit
    assert radius == pytest.approx(2 / deviation)  # median of 2, 2, 2, 4, 4


@USUAL
@given(seed=st.integers(0, 1000), factors=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)))
def test_matching_does_not_depend_on_units(seed: int, factors: tuple[float, float]) -> None:
    rng = np.random.default_rng(seed)
    episodes = [rng.normal(size=(length, 2)).cumsum(axis=0) for length in (20, 5)]
    columns = np.array([0, 1])
    scale, radius = calibrate(episodes, columns)
    other_scale, other_radius = calibrate([episode * np.array(factors) for episode in episodes], columns)
    np.testing.assert_allclose(other_scale, scale * np.array(factors))
    assert other_radius == pytest.approx(radius)


def test_the_jump_between_episodes_is_no_step() -> None:
    near, far = np.arange(5.0)[:, None], 1000 + np.arange(5.0)[:, None]
    scale, radius = calibrate([near, far], np.array([0]))
    assert radius * scale[0] == pytest.approx(1.0)
