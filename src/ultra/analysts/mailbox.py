"""The analyst `mailbox:DIR`: each prompt is a file, each answer is a file. Any chat window can be the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from ultra.analysts.base import Case
from ultra.analysts.conversation import Conversation, Correspondent, Reply
from ultra.analysts.reader import ReadingAnalyst
from ultra.common.errors import UltraError
from ultra.common.files import write_atomically
from ultra.common.ledger import Ledger, key_of

LOOK_EVERY = 0.25
"""Seconds between looks for answers."""
SETTLED = 2
"""Looks in a row at which an answer must be unchanged before it is read."""
LARGEST = 16_000_000
"""Bytes of an answer that are read."""

README = """# You are the language model

ULTRA writes questions into this folder and waits for the answers. For each file `NAME.prompt.md`:

1. Open a chat window of any language model. One chat for each file; only files whose name holds
   `turn` or `again` belong into the chat of the file that they continue (the name up to there).
2. Paste the whole content of `NAME.prompt.md` and send it.
3. Copy the whole answer (text around the JSON does no harm) and save it in this folder as
   `NAME.answer.md`: the same name with `answer` in the place of `prompt`. A person may write it too.

ULTRA reads each answer within a second. If something in it cannot be used, a file
`NAME-again-1.prompt.md` appears that says what: paste it into the same chat, and save the answer as
`NAME-again-1.answer.md`. This happens at most twice; then what is valid is used. When programs have
been tried, a file `NAME-turn-2-....prompt.md` reports the results: paste it into the same chat too.

You may stop `ultra` with Ctrl-C and repeat its command later: answered questions stay answered.
If an answer is not valid JSON, ask again rather than repairing it by hand.
"""

WHO = {"provider": "mailbox"}


class Mailbox:
    """Questions and answers as files in a folder; answers are kept in the ledger too."""

    def __init__(self, case: Case, folder: Path, ledger: Ledger) -> None:
        self._case, self._folder, self._ledger = case, folder, ledger
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UltraError(f"cannot make the mailbox {folder} ({error.strerror}): name another folder") from error
        write_atomically(folder / "README.md", README.encode())

    async def reply(self, conversation: Conversation) -> Reply:
        """Write the question and wait for its answer, as long as it takes."""
        fields = {"who": WHO, "question": conversation.fields(), "draw": self._case.llm.draw}
        stored = self._ledger.find(key_of(fields))
        if stored is not None and stored.answer is not None:
            return Reply(stored.answer, stored.intent)
        name = _name(conversation, self._case.llm.draw)
        prompt, answer = self._folder / f"{name}.prompt.md", self._folder / f"{name}.answer.md"
        if not prompt.is_file():
            text = conversation.turns[-1][1] if conversation.turns else conversation.question.text
            write_atomically(prompt, f"{text}\n".encode())
        if not answer.is_file():
            self._case.progress(f"waiting for {answer} (see {self._folder / 'README.md'})")
        raw = await self._wait(answer)
        intent = self._ledger.intend(fields, conversation.title, self._case.run)
        self._ledger.receive(intent, raw, "text/plain")
        text = raw.decode("utf-8", errors="replace")
        self._ledger.settle(intent, "answered", answer=text, model="mailbox", cost=0.0)
        return Reply(text, intent, bought=True)

    async def _wait(self, path: Path) -> bytes:
        """The content of an answer, once it is there and no longer changing."""
        last, same = b"", 0
        while True:
            try:
                with path.open("rb") as file:
                    content = file.read(LARGEST)
            except OSError:
                content = b""
            same = same + 1 if content == last else 0
            last = content
            if content.strip() and same >= SETTLED:
                return content
            await asyncio.sleep(LOOK_EVERY)

    def judge(self, reply: Reply, problems: Sequence[str]) -> None:
        """Note in the ledger whether an answer was valid."""
        self._ledger.judge(reply.intent, problems)


def _name(conversation: Conversation, draw: int) -> str:
    """A file name that tells what it is about; its last part tells questions of different runs apart."""
    title = conversation.question.title.replace(", ", "-").replace(" ", "-")
    first = Conversation(conversation.question).identity(draw)[:8]
    turn = f"-turn-{conversation.reports + 1}" if conversation.reports else ""
    if conversation.reports:  # the same question, after different reports
        told = replace(conversation, turns=conversation.turns[: conversation.reports])
        turn += f"-{told.identity(draw)[:4]}"
    again = f"-again-{conversation.objections}" if conversation.objections else ""
    return f"{title}-{first}{turn}{again}"


def mailbox_analyst(text: str) -> ReadingAnalyst:
    """Make the analyst of a folder.

    Raises:
        UltraError: if no folder is named.
    """
    if not text:
        raise UltraError("which folder? Write --analyst mailbox:DIR")

    @asynccontextmanager
    async def opened(case: Case) -> AsyncIterator[Correspondent]:
        with Ledger(Path(case.llm.ledger) if case.llm.ledger else None) as ledger:
            yield Mailbox(case, Path(text), ledger)

    return ReadingAnalyst(f"mailbox:{text}", opened)
