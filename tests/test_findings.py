"""What a report says of critical states and programs: everything once, in tables, with its explanation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ultra.advice.records import Advice, CriticalState, Verification, save_advice, save_states
from ultra.config import RefineConfig
from ultra.pipeline.audit import proposals_of_run
from ultra.pipeline.findings import adoption_lines, program_rows, source_rows, state_rows
from ultra.pipeline.program_search import carried, winners
from ultra.pipeline.run import Run
from ultra.tasks.plans import Plan, Segment

STATES = [CriticalState(0, 12, 0.4, "the pole leans <left>"), CriticalState(1, 3, 0.9, "the cart is fast")]
TRIED = Verification(2.5, 1.0, 4.0, 8, 1.0, "helps", 640)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, "refine", RefineConfig("CartPole-v1", method="ultra-a"), {"round-1/verify": {}})


def advice(state: CriticalState, found: Verification | None) -> Advice:
    return Advice(state, Plan((Segment(1, 4),)), 0.5, -0.5, "push right", "search", found)


def entrant(name: str, source: str, turn: int, episodes: int, gain: float | None) -> dict[str, Any]:
    program = {"name": name, "explanation": f"about {name}", "rules": [{"action": "push_left"}]}
    return {
        "program": program, "source": source, "turn": turn, "episodes": episodes, "gain": gain, "gain_in_set": None,
        "tuned": None,
    }  # fmt: skip


def standing(names: list[str], differences: list[float]) -> dict[str, Any]:
    programs = [{"name": name, "rules": [{"action": "push_left"}]} for name in names]
    return {"programs": programs, "differences": differences, "lengths": [1.0] * len(differences), "ended": 0.0}


def with_programs(run: Run) -> None:
    """Two turns: one program of the card is carried over, and verified together with one of the second turn."""
    folder = run.round(1)
    first = [entrant("offset", "search", 0, 20, 5.0), entrant("a", "me", 1, 8, None), entrant("b", "me", 1, 0, None)]
    turns = [
        {"turn": 1, "entrants": first, "standings": [standing(["offset"], [4.0, 6.0])]},
        {"turn": 2, "entrants": [entrant("offset", "search", 0, 10, 6.0), entrant("c", "me", 2, 12, 1.0)],
         "standings": [standing(["offset", "c"], [9.0, 11.0]), standing(["offset"], [5.0, 7.0])]},
    ]  # fmt: skip
    for turn in turns:
        (folder / f"turn-{turn['turn']}.json").write_text(json.dumps(turn))
    both = standing(["offset", "c"], [])["programs"]
    found = vars(Verification(8.0, 6.5, 9.5, 16, 1.0, "helps", 3200))
    (folder / "programs.json").write_text(json.dumps({"verified": [{"programs": both, "verification": found}]}))
    adopted = {"how": "program", "programs": both, "verification": found, "attempts": ["graft: memory"]}
    (folder / "adopted.json").write_text(json.dumps(adopted))


def test_every_program_is_counted_once(run: Run) -> None:
    with_programs(run)
    found = proposals_of_run(run)
    assert found is not None
    assert [item["name"] for item in found["programs"]] == ["offset", "a", "b", "c"]
    assert found["by_source"] == {
        "search": {"proposed": 1, "raced": 1, "tuned": 0, "verified": 1, "helps": 1, "adopted": 1},
        "me": {"proposed": 3, "raced": 2, "tuned": 0, "verified": 1, "helps": 1, "adopted": 1},
    }
    assert source_rows({"proposals": found})[0] == ["source", *found["by_source"]["me"]]


def test_a_program_is_told_with_what_was_found_of_it_alone_and_with_others(run: Run) -> None:
    with_programs(run)
    adopted = json.loads((run.round(1) / "adopted.json").read_text())
    result = {"proposals": proposals_of_run(run), "adopted": adopted}
    rows = {row[0]: row[1:] for row in program_rows(result)}
    assert list(rows) == ["offset", "c", "a", "b"]
    assert rows["offset"] == [
        "about offset", "search", "30", "+6 over 2 common episodes", "+10",
        "helps, +8 [+6.5, +9.5] over 16 pairs, with c", "adopted: acts with it",
    ]  # fmt: skip
    assert rows["c"][1:4] == ["me, turn 2", "12", "+1, first episodes"]
    assert rows["a"][1:] == ["me, turn 1", "8", "-", "-", "-", "lost the race"]
    assert rows["b"][2:] == ["not tried, for lack of steps", "-", "-", "-", "not tried"]
    assert adoption_lines(result) == [
        "Adopted, acts with it: offset",
        "Adopted, acts with it: c",
        "Not by graft: memory",
    ]


def test_critical_states_are_shown_with_and_without_advice(run: Run) -> None:
    save_states(STATES, run.round(1) / "states.jsonl")
    rows = state_rows(run)
    assert [row[2:] for row in rows] == [["the cart is fast", "-", "-"], ["the pole leans <left>", "-", "-"]]
    save_advice([advice(STATES[0], TRIED)], run.round(1) / "verified.jsonl")
    assert state_rows(run) == [
        ["round 1, episode 0, step 12", "0.40", "the pole leans <left>", "push right",
         "helps, +2.50 discounted return [+1.00, +4.00] over 8 paired branches"],
        ["round 1, episode 1, step 3", "0.90", "the cart is fast", "-", "-"],
    ]  # fmt: skip


def test_a_turn_that_could_not_pay_for_whole_episodes_loses_nothing() -> None:
    """What did best in short episodes goes on to the next turn, and is verified if no comparison decided."""
    first = [entrant("lost", "me", 1, 4, -3.0), entrant("good", "me", 1, 4, 12.0), entrant("fair", "me", 1, 4, 2.0)]
    turns: list[dict[str, Any]] = [{"turn": 1, "entrants": first, "standings": []}]
    assert [item.program.name for item in carried(turns)] == ["good", "fair"]
    assert [[each.name for each in programs] for programs in winners(turns)] == [["good"], ["fair"]]

    later = [entrant("good", "me", 1, 9, 12.0), entrant("new", "me", 2, 9, -5.0)]
    turns.append({"turn": 2, "entrants": later, "standings": [standing(["new"], [-5.0])]})
    assert [programs[0].name for programs in winners(turns)] == ["good", "fair"]  # one episode decides nothing
    turns[1]["standings"] = [standing(["good"], [4.0, 6.0, 5.0])]
    assert [programs[0].name for programs in winners(turns)] == ["good"]
    assert [item.program.name for item in carried(turns)] == ["good", "fair"]
    turns = [{"turn": 1, "entrants": later, "standings": [standing(["good"], [-1.0, -2.0, -3.0])]}]
    assert winners(turns) == [] == carried(turns)
