"""Programs asked of a reader: one conversation over turns, the same for the same run, replayed from a recording."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ultra.advice.records import CriticalState
from ultra.analysts.base import Case
from ultra.analysts.conversation import Conversation, Correspondent, Reply
from ultra.analysts.mailbox import _name
from ultra.analysts.questions import Brief, programs_question
from ultra.analysts.reader import ReadingAnalyst
from ultra.analysts.recorded import recorded_analyst
from ultra.analysts.turns import Summary, Trace, Tried, TurnReport, longer_only, turn_text
from ultra.collection.collect import collect
from ultra.common.errors import RunDirectoryError, UltraError
from ultra.common.ledger import Ledger
from ultra.config import AnalyseConfig, LLMConfig
from ultra.policies.io import SHIPPED, load_policy
from ultra.programs.expression import SYNTAX
from ultra.programs.records import LIMITS, Program
from ultra.simulation.budget import StepBudget
from ultra.tasks import get_task
from ultra.tuning.entrants import Proposal

HOPPER = get_task("hopper")
STATES = [CriticalState(0, 20, 0.5, "it leaned")]


def program(name: str, gain: float = 0.5) -> dict[str, Any]:
    return {
        "name": name,
        "parameters": {"g": {"value": gain, "low": -1, "high": 1}},
        "rules": [{"when": "foot_contact > 0.5", "add": {"thigh_torque": "g * torso_pitch"}}],
    }


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    policy = load_policy(SHIPPED / "hopper")
    folder = tmp_path_factory.mktemp("round")
    return Case(
        task=HOPPER,
        policy=policy,
        episodes=collect(HOPPER, policy, [1, 2, 3], 0.99, workers=1),
        config=AnalyseConfig(),
        gamma=0.99,
        batch=HOPPER.make_local_batch(2),
        replay=HOPPER.make_local_batch(1),
        budget=StepBudget(100_000),
        allowance=10_000,
        rng=np.random.default_rng(0),
        folder=folder,
        llm=LLMConfig(ledger=str(folder / "ledger.sqlite")),
        turns=3,
        race_steps=20_000,
        verify_steps=10_000,
    )


def report(turn: int = 1, **changes: Any) -> TurnReport:
    alone = Summary(8, 200.0, 600.0, 1.0, (("height", 1.2), ("x_velocity", 2.0)))
    better = Summary(8, 300.0, 930.0, 0.75, (("height", 1.1), ("x_velocity", 3.0)))
    tried = Tried(
        Proposal(Program.from_json(program("lean", 0.99)), "me", turn), 40, better, 330.0, 210.0, 450.0, 8, held=(0.52,)
    )
    facts = np.tile(np.array(HOPPER.make_local_batch(1).facts()), (6, 1)) + np.arange(6)[:, None] * 0.1
    trace = Trace(facts, np.zeros((5, 3), np.float32), np.arange(5.0), True)
    return replace(TurnReport(turn, 3, alone, (tried,), 12_345, 40_000, trace, "lean", trace), **changes)


class Answers:
    """A correspondent that answers in order and keeps what it was asked; answers go into the ledger."""

    def __init__(self, answers: Sequence[str], ledger: Path) -> None:
        self.answers, self.asked = list(answers), list[Conversation]()
        self._ledger = Ledger(ledger)

    async def reply(self, conversation: Conversation) -> Reply:
        self.asked.append(conversation)
        text = self.answers[len(self.asked) - 1]
        fields = {"who": {"provider": "test"}, "question": conversation.fields(), "draw": 0}
        intent = self._ledger.intend(fields, conversation.title, "run")
        self._ledger.receive(intent, text.encode(), "text/plain")
        self._ledger.settle(intent, "answered", answer=text, model="test", cost=0.0)
        return Reply(text, intent, bought=True)

    def judge(self, reply: Reply, problems: Sequence[str]) -> None:
        self._ledger.judge(reply.intent, problems)


def reader(answers: Answers) -> ReadingAnalyst:
    @asynccontextmanager
    async def opened(case: Case) -> AsyncIterator[Correspondent]:
        yield answers

    return ReadingAnalyst("me", opened)


def answer(*names: str) -> str:
    return json.dumps({"reasoning": "r", "programs": [program(name) for name in names], "potentials": []})


def test_a_conversation_over_turns_holds_all_before_it_and_can_be_replayed(case: Case, tmp_path: Path) -> None:
    case = replace(case, folder=tmp_path / "a")
    case.folder.mkdir()
    good = answer("c")
    answers = Answers([answer("a", "b"), "no JSON", good, answer()], tmp_path / "ledger.sqlite")
    analyst = reader(answers)
    first = analyst.propose(case, STATES, None)
    second = analyst.propose(case, STATES, report(1))
    third = analyst.propose(case, STATES, report(2))
    assert [[p.program.name for p in turn.programs] for turn in (first, second, third)] == [["a", "b"], ["c"], []]
    assert [p.turn for p in (*first.programs, *second.programs)] == [1, 1, 2]
    one, two, again, three = answers.asked
    assert one.turns == () and two.question == one.question and three.question == one.question
    assert [said for said, _ in two.turns] == [answer("a", "b")] and "# Turn 1: what became" in two.turns[0][1]
    assert again.objections == 1 and "not" in again.turns[-1][1] and again.title == "programs, turn 2 (asked again, 1)"
    assert [said for said, _ in three.turns] == [answer("a", "b"), good]  # objections are forgotten
    assert three.turns[0] == two.turns[0] and "# Turn 2: what became" in three.turns[1][1]
    assert len({_name(conversation, 0) for conversation in answers.asked}) == 4

    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        (tmp_path / "export.jsonl").write_text("".join(f"{line}\n" for line in ledger.export()))
    replayed = replace(case, folder=tmp_path / "b")
    replayed.folder.mkdir()
    recorded = recorded_analyst(str(tmp_path / "export.jsonl"))
    for turn, found in ((None, first), (report(1), second), (report(2), third)):
        names = [p.program for p in recorded.propose(replayed, STATES, turn).programs]
        assert names == [p.program for p in found.programs]
    with pytest.raises(UltraError, match="holds no answer to the question 'programs, turn 2'"):
        recorded.propose(replayed, STATES, report(1, steps=99))


def test_a_turn_whose_programs_are_all_wrong_ends_the_conversation_without_an_error(case: Case, tmp_path: Path) -> None:
    case = replace(case, folder=tmp_path)
    analyst = reader(Answers([answer("a"), *["{}"] * 3], tmp_path / "ledger.sqlite"))
    analyst.propose(case, STATES, None)
    assert analyst.propose(case, STATES, report(1)).programs == ()
    with pytest.raises(UltraError, match="no answer of me could be used"):
        reader(Answers(["{}"] * 3, tmp_path / "ledger2.sqlite")).propose(case, STATES, None)
    (tmp_path / "other").mkdir()
    with pytest.raises(RunDirectoryError, match="holds 0 turns, but turn 1 is reported"):
        analyst.propose(replace(case, folder=tmp_path / "other"), STATES, report(1))


@pytest.mark.parametrize("name", ["hopper", "pong"])
def test_the_question_holds_the_language_as_the_parser_has_it(name: str, case: Case) -> None:
    task = get_task(name)
    policy = load_policy(SHIPPED / name)
    episodes = collect(task, policy, [1, 2, 3], 0.99, longest=300, workers=1)
    brief = Brief(task, None, 12, 3, 2400, turns=3, race_steps=20_000, verify_steps=9_000)
    question = programs_question(brief, episodes, STATES)
    assert SYNTAX in question.instructions and LIMITS in question.instructions
    assert "20,000 environment steps, as many as " in question.instructions
    assert "9,000 to verify" in question.instructions
    assert ("`set` replaces" in question.instructions) == (name == "hopper")
    for kind in ("median", "best", "worst"):
        assert f"the {kind} one" in question.prompt
    stuck = programs_question(replace(brief, stuck=True), episodes, STATES)
    assert "The agent is stuck" in stuck.instructions and "The agent does part" in question.instructions


def test_the_report_of_a_turn_says_what_a_reader_needs() -> None:
    text = turn_text(HOPPER, report(), 2400, "6 to 10")
    assert text == turn_text(HOPPER, report(), 2400, "6 to 10")
    for part in (
        "12,345 steps; 40,000 are left",
        "1. lean (turn 1): +330 [+210, +450] to the agent alone over 8 common episodes",
        "return 930 in 300 steps (3.1 a step), 75% of 8 episodes ended by the task's own rule",
        "x_velocity 3 (alone 2)", "Tuned: g 0.99 (the high end of its range).", "Its rules held in 52% of the steps.",
        "## An episode of lean", "There are 2 more turns.", "$",
    )[:-1]:  # fmt: skip
        assert part in text, part
    assert "$" not in text and "no more in a step" not in text


def test_numbers_that_were_not_tuned_are_not_called_tuned_and_failures_of_the_simulator_share_a_line() -> None:
    proposal = report().tried[0].proposal
    own = [Proposal(replace(proposal.program, name=name), "search", 0) for name in ("push", "brake", "lift")]
    tried = (
        Tried(proposal, 1, difference=7.0, tuned=False),
        Tried(own[0], 1, difference=-5.0),
        Tried(own[1], 0),
        Tried(own[2], 1, difference=2.0),
    )
    text = turn_text(HOPPER, report(tried=tried), 2400, "6")
    assert "1. lean (turn 1): +7 to the agent alone in short episodes (1 played" in text
    assert "Numbers as given, not tuned yet: g 0.99" in text
    assert "2. lift (the simulator's own): +2" in text
    assert "The simulator's own programs that did not help: push -5, brake not played." in text


def test_a_gain_that_lies_in_the_time_limit_alone_is_said() -> None:
    alone = Summary(8, 200.0, 600.0, 1.0)
    standing = Summary(8, 700.0, 1400.0, 0.0)  # 2 a step instead of 3
    assert longer_only(standing, alone) and not longer_only(Summary(8, 250.0, 900.0, 1.0), alone)
    tried = replace(report().tried[0], summary=standing)
    text = turn_text(HOPPER, report(tried=(tried,)), 2400, "6")
    assert "Its gain lies in longer episodes alone" in text


def test_unknown_intervals_and_programs_without_steps_are_not_numbers() -> None:
    proposal = report().tried[0].proposal
    tried = (
        Tried(proposal, 1, difference=5.0, low=float("nan"), high=float("nan"), pairs=1),
        Tried(proposal, 0),
        Tried(proposal, 0, problem="it diverged"),
    )
    text = turn_text(HOPPER, report(tried=tried, best=None, median=None), 2400, "6")
    assert "+5 to the agent alone over 1 common episode (" in text and "nan" not in text
    assert "not played, for lack of steps" in text and "not played: it diverged" in text
