"""Questions to any correspondent, and conversations of answers and objections to invalid ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ultra.common.ledger import canonical, key_of

REASKS = 2
"""Most repeats of a question after invalid responses."""
QUOTED = 6000
"""Characters of an invalid response that are quoted back."""
NAMED = 8
"""Problems listed in an objection."""


@dataclass(frozen=True)
class Question:
    """One self-contained question, which can be pasted into any chat window.

    Attributes:
        title: what it is about, for people; not part of its identity.
        version: of the prompt's file.
        instructions: the part that is equal for all episodes.
        prompt: the part about this episode.
        schema: JSON schema of the answer.
    """

    title: str
    version: str
    instructions: str
    prompt: str
    schema: Mapping[str, Any]

    @property
    def text(self) -> str:
        """Both parts."""
        return f"{self.instructions}\n\n{self.prompt}"


@dataclass(frozen=True)
class Conversation:
    """A question, with the answers so far and the response to each."""

    question: Question
    turns: tuple[tuple[str, str], ...] = ()
    """(answer, response), in order; a response is the report of a turn of programs, or an objection."""
    reports: int = 0
    """Number of turns answered by reports, which come first; the others were answered by objections."""

    def fields(self) -> dict[str, Any]:
        """What identifies the conversation, regardless of the correspondent."""
        return {
            "version": self.question.version,
            "instructions": self.question.instructions,
            "prompt": self.question.prompt,
            "schema": canonical(self.question.schema),
            "turns": [list(turn) for turn in self.turns],
        }

    def identity(self, draw: int) -> str:
        """A hash of the conversation and the draw, regardless of the correspondent."""
        return key_of({"question": self.fields(), "draw": draw})

    @property
    def title(self) -> str:
        """The question's title, with the number of the turn and of the objection."""
        turn = f", turn {self.reports + 1}" if self.reports else ""
        return self.question.title + turn + (f" (asked again, {self.objections})" if self.objections else "")

    @property
    def objections(self) -> int:
        """How often the present turn's answer was asked for again."""
        return len(self.turns) - self.reports

    def objected(self, answer: str, objection: str) -> Conversation:
        """The conversation continued by an invalid answer and the objection to it."""
        return replace(self, turns=(*self.turns, (answer, objection)))


@dataclass(frozen=True)
class Reply:
    """An answer as text, and its number in the ledger (0 if it has none)."""

    text: str
    intent: int = 0
    bought: bool = False
    """Whether it was requested now, not found in the ledger."""


class NoAnswer(Exception):
    """Invalid response as a whole: a refusal, an empty answer, an error page."""


class Correspondent(Protocol):
    """Answers questions: a model, a person at a mailbox, a recording."""

    async def reply(self, conversation: Conversation) -> Reply:
        """Answer; raises NoAnswer if there is none, LanguageModelError if nobody can be reached."""
        ...

    def judge(self, reply: Reply, problems: Sequence[str]) -> None:
        """Called with the problems of an answer; none if it was valid."""
        ...


@dataclass(frozen=True)
class Parsed:
    """The valid items of an answer, and the problems of the rest."""

    items: tuple[Any, ...]
    problems: tuple[str, ...]
    repaired: tuple[str, ...] = ()
    """Deviations from the required form that were repaired; reported to the user."""


@dataclass(frozen=True)
class Exchange:
    """The outcome of a question."""

    title: str
    items: tuple[Any, ...]
    dropped: tuple[str, ...]
    """Why parts of the answer, or all of it, were not used."""
    reasked: int
    bought: int
    reused: int
    repaired: tuple[str, ...] = ()
    """Deviations from the required form that were repaired."""
    answer: str = ""
    """The text from which the items were read."""


async def ask(
    correspondent: Correspondent, question: Question | Conversation, read: Callable[[str], Parsed]
) -> Exchange:
    """Ask, and ask again with the precise problems at most twice; then keep what is valid.

    Args:
        correspondent: answers.
        question: a question, or a conversation whose last report is to be answered.
        read: parses an answer.

    Raises:
        LanguageModelError: if nobody can be reached.
    """
    conversation = question if isinstance(question, Conversation) else Conversation(question)
    title = conversation.title
    best, text = Parsed((), ()), ""
    bought = reused = 0
    while True:
        try:
            reply = await correspondent.reply(conversation)
        except NoAnswer as silence:
            problems = (*best.problems, str(silence))
            return Exchange(title, best.items, problems, conversation.objections, bought, reused, best.repaired, text)
        bought, reused = bought + reply.bought, reused + (not reply.bought)
        parsed = read(reply.text)
        correspondent.judge(reply, parsed.problems)
        if not parsed.problems or len(parsed.items) > len(best.items) or not best.items:
            best, text = parsed, reply.text
        if not parsed.problems or conversation.objections == REASKS:
            return Exchange(
                title, best.items, best.problems, conversation.objections, bought, reused, best.repaired, text
            )
        conversation = conversation.objected(_quote(reply.text), _objection(parsed.problems))


def _quote(text: str) -> str:
    if len(text) <= QUOTED:
        return text
    return f"{text[:QUOTED]}\n[... {len(text) - QUOTED} more characters]"


def _objection(problems: Sequence[str]) -> str:
    named = "\n".join(f"- {problem}" for problem in problems[:NAMED])
    more = f"\n- and {len(problems) - NAMED} more of this kind" if len(problems) > NAMED else ""
    return (
        f"Your answer cannot be used as it is:\n{named}{more}\n"
        "Answer again with the whole corrected JSON object and nothing else."
    )
