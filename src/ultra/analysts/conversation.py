"""Questions to a language model, whoever it is, and conversations of an answer and objections to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ultra.common.ledger import canonical, key_of

REASKS = 2
"""How often an answer that is not valid is asked for again."""
QUOTED = 6000
"""Characters of an answer that are repeated to its author when it is objected to."""
NAMED = 8
"""Problems that an objection names."""


@dataclass(frozen=True)
class Question:
    """One question, complete: any chat window can be given it.

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
    """A question, with the answers given so far and what was said of each."""

    question: Question
    turns: tuple[tuple[str, str], ...] = ()
    """(answer, what was said of it), in order: the report of a turn of programs, or an objection."""
    reports: int = 0
    """How many of them, the first ones, are reports; the others are objections to answers that were not valid."""

    def fields(self) -> dict[str, Any]:
        """What identifies the question, whoever is asked."""
        return {
            "version": self.question.version,
            "instructions": self.question.instructions,
            "prompt": self.question.prompt,
            "schema": canonical(self.question.schema),
            "turns": [list(turn) for turn in self.turns],
        }

    def identity(self, draw: int) -> str:
        """A hash of the question and the draw, whoever is asked."""
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
        """The conversation with an answer that is not valid, and why."""
        return replace(self, turns=(*self.turns, (answer, objection)))


@dataclass(frozen=True)
class Reply:
    """An answer as text, and its number in the ledger (0 if it has none)."""

    text: str
    intent: int = 0
    bought: bool = False
    """Whether it was asked for now, not found."""


class NoAnswer(Exception):
    """A model gave nothing that can be read: a refusal, an empty answer, an error page."""


class Correspondent(Protocol):
    """Whoever answers questions: a model, a person at a mailbox, a recording."""

    async def reply(self, conversation: Conversation) -> Reply:
        """Answer; raises NoAnswer if there is none, LanguageModelError if nobody can be reached."""
        ...

    def judge(self, reply: Reply, problems: Sequence[str]) -> None:
        """Told whether an answer was valid."""
        ...


@dataclass(frozen=True)
class Parsed:
    """What an answer holds that is valid, and the problems of the rest."""

    items: tuple[Any, ...]
    problems: tuple[str, ...]
    repaired: tuple[str, ...] = ()
    """What was read although it was not written as asked; said to the user."""


@dataclass(frozen=True)
class Exchange:
    """What came of a question."""

    title: str
    items: tuple[Any, ...]
    dropped: tuple[str, ...]
    """Why parts of the answer, or all of it, were not used."""
    reasked: int
    bought: int
    reused: int
    repaired: tuple[str, ...] = ()
    """What of the answer was read although it was not written as asked."""
    answer: str = ""
    """The text from which the items were read."""


async def ask(
    correspondent: Correspondent, question: Question | Conversation, read: Callable[[str], Parsed]
) -> Exchange:
    """Ask, and ask again with the precise problems at most twice; then keep what is valid.

    Args:
        correspondent: who answers.
        question: a question, or a conversation whose last report is to be answered.
        read: what is valid in an answer, and what is wrong with the rest.

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
