"""What a language model is sent about a run: the very questions that its analyst asks."""

from __future__ import annotations

from pathlib import Path

from ultra.advice.records import CriticalState, load_states
from ultra.analysts.base import Case
from ultra.analysts.conversation import Conversation, Question
from ultra.analysts.questions import advise_question, identify_question, programs_question
from ultra.analysts.reader import brief_of, by_episode, programs_conversations
from ultra.common.errors import UltraError
from ultra.pipeline.audit import finished_rounds
from ultra.pipeline.progress import Reporter
from ultra.pipeline.refinement import Refinement
from ultra.pipeline.run import Run


def questions_of_run(path: Path, number: int = 0) -> dict[int | None, list[Question]]:
    """The questions about every episode of a round, by episode; the one for programs, about all of them, under None.

    Args:
        path: run directory.
        number: round; 0 is the last one that has been collected.

    Raises:
        UltraError: if nothing has been collected yet.
    """
    run = Run.open(path)
    number = _round_of(run, number)
    states_path = run.round(number) / "states.jsonl"
    states = load_states(states_path) if states_path.is_file() else []
    with Refinement(run, Reporter(quiet=True)).case(number, "identify") as case:
        return _questions(case, [state for state in states if state.episode < len(case.episodes)])


def conversations_of_run(path: Path, number: int = 0) -> list[Conversation]:
    """Everything that a round asks, or has asked so far: about episodes, then about programs, turn by turn.

    Args:
        path: run directory.
        number: round; 0 is the last one that has been collected.

    Raises:
        UltraError: if nothing has been collected yet.
    """
    run, found = Run.open(path), questions_of_run(path, number)
    conversations = [Conversation(item) for index, part in found.items() if index is not None for item in part]
    folder = run.round(_round_of(run, number))
    return [*conversations, *(turn for item in found.get(None, []) for turn in programs_conversations(folder, item))]


def _round_of(run: Run, number: int) -> int:
    """The number of a round that has been collected: the last one for 0."""
    run.require("round-1/collect", f"ultra collect {run.path}")
    collected = [int(folder.name.removeprefix("round-")) for folder in finished_rounds(run, "collect")]
    number = number or collected[-1]
    if number not in collected:
        raise UltraError(f"--round is {number}, but {run.path} has collected rounds {collected[0]} to {collected[-1]}")
    return number


def _questions(case: Case, states: list[CriticalState]) -> dict[int | None, list[Question]]:
    brief, by = brief_of(case), by_episode(states)
    questions: dict[int | None, list[Question]] = {}
    for index, episode in enumerate(case.episodes):
        questions[index] = [identify_question(brief, index, episode)]
        if index in by:
            questions[index].append(advise_question(brief, index, episode, by[index]))
    if case.race_steps:  # programs are asked for in this round
        questions[None] = [programs_question(brief, case.episodes, states)]
    return questions


def prompts_of_run(path: Path, episode: int, number: int = 0) -> list[tuple[str, str]]:
    """The prompts for one collected episode of a run, and for programs, with titles.

    Raises:
        UltraError: if there is no such episode; the number of episodes is named.
    """
    questions = questions_of_run(path, number)
    if episode not in questions:
        last = max(index for index in questions if index is not None)
        raise UltraError(f"--episode is {episode}, but {path} holds episodes 0 to {last}")
    asked = [*questions[episode], *questions.get(None, [])]
    return [(question.title, question.text) for question in asked]
