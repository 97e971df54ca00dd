"""The analyst that reads: it describes episodes in words, asks a correspondent, and checks the answers.

Language models, people at a mailbox and recordings differ only in who answers. Episodes are asked
about together; all critical states of one episode go into one request for advice.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ultra.advice.records import Advice, CriticalState
from ultra.analysts.base import Case, Proposals
from ultra.analysts.conversation import Conversation, Correspondent, Exchange, Parsed, Question, ask
from ultra.analysts.questions import LATER, Brief, advise_question, identify_question, programs_question
from ultra.analysts.schema import read_advice, read_programs, read_states
from ultra.analysts.turns import TurnReport, turn_text
from ultra.collection.effects import Effects, measure
from ultra.common.errors import RunDirectoryError, UltraError
from ultra.common.files import write_json
from ultra.programs.records import Potential
from ultra.tuning.entrants import Proposal

EFFECTS = "effects.json"
CONVERSATION = "conversation.json"
"""In the round's folder: the answers that proposed programs, and the report on each."""
REMIND_EVERY = 60.0
"""Seconds between two lines that say who is being waited for."""

Result = TypeVar("Result")
Job = tuple[Question | Conversation, Callable[[str], Parsed]]
Open = Callable[[Case], AbstractAsyncContextManager[Correspondent]]


class ReadingAnalyst:
    """Asks a correspondent about episodes.

    Args:
        name: as on the command line.
        open_correspondent: makes who answers; closed when a stage ends.
    """

    def __init__(self, name: str, open_correspondent: Open) -> None:
        self.name = name
        self._open = open_correspondent

    def identify(self, case: Case) -> list[CriticalState]:
        """Ask for the critical states of every episode; the most important ones are kept."""
        brief = brief_of(case)
        if brief.effects is not None:
            case.budget.charge("analyse", brief.effects.cost)
        jobs: list[Job] = []
        for index, episode in enumerate(case.episodes):
            question = identify_question(brief, index, episode)
            jobs.append((question, partial(read_states, index=index, steps=len(episode))))
        exchanges = self._ask_all(case, jobs)
        _note(case, "identify", exchanges)
        states = [item for exchange in exchanges for item in exchange.items]
        states.sort(key=lambda state: (-state.importance, state.episode, state.t))
        return states[: case.config.states]

    def advise(self, case: Case, states: Sequence[CriticalState]) -> list[Advice]:
        """Ask for advice at all states of each episode."""
        brief = brief_of(case)
        jobs: list[Job] = []
        for index, here in by_episode(states).items():
            question = advise_question(brief, index, case.episodes[index], here)
            jobs.append((question, partial(read_advice, task=case.task, states=here, source=self.name)))
        exchanges = self._ask_all(case, jobs)
        _note(case, "advise", exchanges)
        return [item for exchange in exchanges for item in exchange.items]

    def propose(self, case: Case, states: Sequence[CriticalState], report: TurnReport | None) -> Proposals:
        """Ask for programs and potentials: one conversation over all turns, each of which knows those before."""
        measured = (case.folder / EFFECTS).is_file()
        brief = brief_of(case)
        if brief.effects is not None and not measured:  # nobody was asked for critical states
            case.budget.charge("analyse", brief.effects.cost)
        conversation = Conversation(programs_question(brief, case.episodes, states))
        turn, path = 1, case.folder / CONVERSATION
        if report is not None:
            turn = report.turn + 1
            conversation = _continued(conversation, path, report, turn_text(brief.task, report, brief.tokens, LATER))
        _remember(path, conversation)  # before asking, so that an unanswered question can be looked up
        read = partial(read_programs, task=case.task, source=self.name, turn=turn)
        (exchange,) = self._ask_all(case, [(conversation, read)], needed=report is None)
        _note(case, f"propose-{turn}", [exchange])
        _remember(path, conversation, exchange.answer)
        programs = tuple(item for item in exchange.items if isinstance(item, Proposal))
        potentials = tuple(item for item in exchange.items if isinstance(item, Potential))
        return Proposals(programs, potentials)

    def _ask_all(self, case: Case, jobs: Sequence[Job], *, needed: bool = True) -> list[Exchange]:
        done = 0

        async def one(
            correspondent: Correspondent, question: Question | Conversation, read: Callable[[str], Parsed]
        ) -> Exchange:
            nonlocal done
            exchange = await ask(correspondent, question, read)
            done += 1
            case.progress(f"{done} of {len(jobs)} answered ({exchange.title})")
            return exchange

        async def every() -> list[Exchange]:
            async with (
                self._open(case) as correspondent,
                reminding(case.progress, lambda: f"{self.name}: {done} of {len(jobs)} answered"),
            ):
                return await gather([one(correspondent, question, read) for question, read in jobs])

        exchanges = asyncio.run(every())
        dropped = sum(len(exchange.dropped) for exchange in exchanges)
        for exchange in exchanges:
            for repair in exchange.repaired[:3]:
                case.progress(f"repaired, {exchange.title}: {repair[:160]}")
            for problem in exchange.dropped[:3]:
                case.progress(f"dropped, {exchange.title}: {problem[:160]}")
        if needed and dropped and not any(exchange.items for exchange in exchanges):
            first = next(exchange for exchange in exchanges if exchange.dropped)
            raise UltraError(
                f"no answer of {self.name} could be used ({first.title}: {first.dropped[0][:200]}): "
                "try another model, or --output-mode tool or prompted; the answers are in the ledger"
            )
        return exchanges


def _continued(conversation: Conversation, path: Path, report: TurnReport, text: str) -> Conversation:
    """The conversation after the reports of all turns so far; the last one is `text`.

    Raises:
        RunDirectoryError: if an earlier turn is not there.
    """
    turns = [(turn["answer"], turn["report"]) for turn in _remembered(path)][: report.turn]
    if len(turns) < report.turn:
        raise RunDirectoryError(f"{path} holds {len(turns)} turns, but turn {report.turn} is reported: advise anew")
    turns[-1] = (turns[-1][0], text)
    return replace(conversation, turns=tuple(turns), reports=len(turns))


def programs_conversations(folder: Path, question: Question) -> list[Conversation]:
    """The conversations about programs that a round has had so far, turn by turn; the first one if it had none."""
    turns = [(turn["answer"], turn["report"]) for turn in _remembered(folder / CONVERSATION) if turn["report"]]
    return [Conversation(question, tuple(turns[:k]), k) for k in range(len(turns) + 1)]


def _remember(path: Path, conversation: Conversation, answer: str | None = None) -> None:
    """Keep the answers so far, each with what was said of it; the last one has no report yet."""
    turns = [{"answer": given, "report": report} for given, report in conversation.turns]
    write_json(path, turns if answer is None else [*turns, {"answer": answer, "report": ""}])


def _remembered(path: Path) -> list[dict[str, str]]:
    try:
        turns: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path} is damaged ({error}): advise anew") from error
    return turns


@asynccontextmanager
async def reminding(say: Callable[[str], None], what: Callable[[], str]) -> AsyncIterator[None]:
    """Say at once, and then every minute, what is being waited for and since when."""
    since = f"{datetime.now():%H:%M:%S}"

    async def remind() -> None:
        while True:
            await asyncio.sleep(REMIND_EVERY)
            say(f"still waiting, since {since}, for {what()}")

    say(f"waiting since {since} for {what()}")
    reminder = asyncio.create_task(remind())
    try:
        yield
    finally:
        reminder.cancel()


async def gather(jobs: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Run all, to their ends, and then raise the first error: what the others bought is kept."""
    results = await asyncio.gather(*jobs, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


def by_episode(states: Sequence[CriticalState]) -> dict[int, list[CriticalState]]:
    """States by their episode, both in ascending order."""
    found: dict[int, list[CriticalState]] = {}
    for state in sorted(states, key=lambda state: (state.episode, state.t)):
        found.setdefault(state.episode, []).append(state)
    return found


def brief_of(case: Case) -> Brief:
    """What the questions of a round share. Effects are measured once and kept in the round's folder."""
    path = case.folder / EFFECTS
    if not path.is_file():
        measured = measure(case.task, case.policy, case.episodes, case.allowance)
        write_json(path, measured.to_json() if measured else None)
    raw = json.loads(path.read_text(encoding="utf-8"))
    return Brief(
        task=case.task,
        effects=Effects.from_json(raw) if raw else None,
        states=case.config.states,
        episodes=len(case.episodes),
        tokens=case.llm.episode_tokens,
        failed=tuple(case.failed),
        verified=tuple(case.verified),
        stuck=case.stuck,
        turns=case.turns,
        race_steps=case.race_steps,
        verify_steps=case.verify_steps,
    )


def _note(case: Case, stage: str, exchanges: Sequence[Exchange]) -> None:
    """Keep what became of the questions, for the report."""
    write_json(
        case.folder / f"asked-{stage}.json",
        {
            "questions": len(exchanges),
            "bought": sum(exchange.bought for exchange in exchanges),
            "reused": sum(exchange.reused for exchange in exchanges),
            "reasked": sum(exchange.reasked for exchange in exchanges),
            "repaired": [f"{exchange.title}: {repair}" for exchange in exchanges for repair in exchange.repaired],
            "dropped": [f"{exchange.title}: {problem}" for exchange in exchanges for problem in exchange.dropped],
        },
    )
