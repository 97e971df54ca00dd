"""The analyst `recorded:FILE`: answers from a ledger export, without a key and without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from ultra.analysts.base import Case
from ultra.analysts.conversation import Conversation, Correspondent, Reply
from ultra.analysts.reader import ReadingAnalyst
from ultra.common.errors import UltraError
from ultra.common.ledger import key_of, read_export


class Recording:
    """Answers by question.

    Raises:
        UltraError: if the file is missing or damaged, or holds several answers to one question.
    """

    def __init__(self, path: Path, draw: int) -> None:
        self._path, self._draw = path, draw
        self._answers: dict[str, str] = {}
        models: set[str] = set()
        try:
            with path.open(encoding="utf-8") as lines:
                for record in read_export(lines, str(path)):
                    fields = record["fields"]
                    identity = key_of({"question": fields["question"], "draw": fields["draw"]})
                    models.add(str(fields["who"].get("model") or fields["who"].get("provider")))
                    if self._answers.setdefault(identity, record["answer"]) != record["answer"]:
                        raise UltraError(
                            f"{path} holds different answers to {record['title']!r}, of {', '.join(sorted(models))}: "
                            "export one model, `ultra ledger export --model MODEL`"
                        )
        except (OSError, UnicodeDecodeError) as error:
            raise UltraError(f"cannot read the recording {path} ({error}): `ultra ledger export` makes one") from error

    async def reply(self, conversation: Conversation) -> Reply:
        """The recorded answer."""
        found = self._answers.get(conversation.identity(self._draw))
        if found is None:
            raise UltraError(
                f"{self._path} holds no answer to the question {conversation.title!r}: `ultra ledger why-miss RUN "
                f"--against {self._path}` says what differs"
            )
        return Reply(found)

    def judge(self, reply: Reply, problems: Sequence[str]) -> None:
        """A recording keeps nothing."""


def recorded_analyst(text: str) -> ReadingAnalyst:
    """Make the analyst of an export."""

    @asynccontextmanager
    async def opened(case: Case) -> AsyncIterator[Correspondent]:
        yield Recording(Path(text), case.llm.draw)

    return ReadingAnalyst(f"recorded:{text}", opened)
