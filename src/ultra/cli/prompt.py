"""What a language model is sent about a run: the very questions that its analyst asks."""

from __future__ import annotations

from pathlib import Path

from ultra.advice.records import CriticalState, load_states
from ultra.analysts.base import Case
from ultra.analysts.conversation import Conversation, Question
from ultra.analysts.questions import advise_question, identify_question
from ultra.analysts.reader import brief_of, by_episode, programs_conversations
from ultra.common.errors import UltraError
from ultra.pipeline.audit import finished_rounds
from ultra.pipeline.progress import Reporter
from ultra.pipeline.refinement import Refinement
from ultra.pipeline.run import Run


def questions_of_run(path: Path, number: int = 0) -> dict[int, list[Question]]:
    """The questions about every episode of a round, by episode.

    Args:
        path: run directory.
        number: round; 0 is the last one that has been collected.

    Raises:
        UltraError: if nothing has been collected yet.
    """
    run = Run.open(path)
    number = _round_of(run, number)
    states = by_episode(_states(run, number))
    with Refinement(run, Reporter(quiet=True)).case(number, "identify") as case:
        return _questions(case, {index: found for index, found in states.items() if index < len(case.episodes)})


def conversations_of_run(path: Path, number: int = 0) -> list[Conversation]:
    """Everything that a round asks, or has asked so far: about episodes, then about programs, turn by turn.

    Args:
        path: run directory.
        number: round; 0 is the last one that has been collected.

    Raises:
        UltraError: if nothing has been collected yet.
    """
    conversations = [Conversation(item) for part in questions_of_run(path, number).values() for item in part]
    run = Run.open(path)
    number = _round_of(run, number)
    refinement = Refinement(run, Reporter(quiet=True))
    if not refinement.rounds[number - 1].programs or not run.finished(f"round-{number}/advise"):
        return conversations
    with refinement.case(number, "verify") as case:
        return [*conversations, *programs_conversations(case, _states(run, number))]


def _round_of(run: Run, number: int) -> int:
    """The number of a round that has been collected: the last one for 0."""
    run.require("round-1/collect", f"ultra collect {run.path}")
    collected = [int(folder.name.removeprefix("round-")) for folder in finished_rounds(run, "collect")]
    number = number or collected[-1]
    if number not in collected:
        raise UltraError(f"--round is {number}, but {run.path} has collected rounds {collected[0]} to {collected[-1]}")
    return number


def _states(run: Run, number: int) -> list[CriticalState]:
    path = run.round(number) / "states.jsonl"
    return load_states(path) if path.is_file() else []


def _questions(case: Case, states: dict[int, list[CriticalState]]) -> dict[int, list[Question]]:
    brief = brief_of(case)
    questions = {}
    for index, episode in enumerate(case.episodes):
        questions[index] = [identify_question(brief, index, episode)]
        if index in states:
            questions[index].append(advise_question(brief, index, episode, states[index]))
    return questions


def prompts_of_run(path: Path, episode: int, number: int = 0) -> list[tuple[str, str]]:
    """The prompts for one collected episode of a run, with titles.

    Raises:
        UltraError: if there is no such episode; the number of episodes is named.
    """
    questions = questions_of_run(path, number)
    if episode not in questions:
        raise UltraError(f"--episode is {episode}, but {path} holds episodes 0 to {len(questions) - 1}")
    return [(question.title, question.text) for question in questions[episode]]
