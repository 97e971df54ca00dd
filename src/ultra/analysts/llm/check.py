"""`ultra llm check`: one tiny structured request, and what works."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ultra.analysts.answers import find_json
from ultra.analysts.conversation import Conversation, NoAnswer, Question
from ultra.analysts.llm.models import INSTALL, ModelName
from ultra.analysts.llm.prices import price
from ultra.common.errors import LanguageModelError, UltraError
from ultra.common.ledger import Ledger
from ultra.config import LLMConfig

QUESTION = Question(
    title="check",
    version="check-1",
    instructions='Answer with one JSON object and nothing else: {"sum": the sum, "word": "ok"}.',
    prompt="What is 19 + 23?",
    schema={
        "type": "object",
        "properties": {"sum": {"type": "integer"}, "word": {"type": "string"}},
        "required": ["sum", "word"],
        "additionalProperties": False,
    },
)


SUM = 42


def check(text: str, options: LLMConfig) -> Iterator[str]:
    """Ask a model; lines that say what works.

    Raises:
        UltraError: if it is misnamed, has no key, or cannot be reached.
    """
    name = ModelName.parse(text)
    config = replace(options, draw=time.time_ns() // 1000)  # each check asks anew, whatever the ledger holds
    try:
        from ultra.analysts.llm import correspondent
    except ImportError as error:
        raise UltraError(f"llm:{name} needs packages that are not installed: {INSTALL}") from error

    async def one() -> tuple[str, float, tuple[int, int], float | None]:
        with Ledger(Path(config.ledger) if config.ledger else None) as ledger:
            async with correspondent.open_model(name, config, ledger, f"check-{config.draw}") as (asked, _):
                start = time.monotonic()
                reply = await asked.reply(Conversation(QUESTION))
                elapsed = time.monotonic() - start
            row = next(row for row in ledger.rows(f"check-{config.draw}") if row.id == reply.intent)
            return reply.text, elapsed, (row.input_tokens, row.output_tokens), row.cost

    yield f"asking        {name}, at most {config.timeout:g} s for each try"
    try:
        answer, elapsed, usage, cost = asyncio.run(one())
    except NoAnswer as silence:
        raise LanguageModelError(f"llm:{name} was reached, but {silence}: try another --output-mode") from None
    found = _found(answer)
    yield f"model         {name} answered in {elapsed:.1f} s"
    works = "works"
    if found is None:
        works = f"does not work: the answer was {answer[:80]!r}; try --output-mode tool or prompted"
    yield f"output mode   {config.output_mode} {works}"
    if found is not None and found != SUM:
        yield f"answer        wrong: {QUESTION.prompt} {SUM}, not {found}; advice of this model may be worth little"
    yield f"tokens        {usage[0]} in, {usage[1]} out" + ("" if any(usage) else " (the server does not count them)")
    if cost is None:
        yield "price         not known: give --llm.price-input and --llm.price-output, or rely on --llm-tokens"
    else:
        thousand = price(name, config, 1_000_000, 0), price(name, config, 0, 1_000_000)
        known = [f"${value:g}" for value in thousand if value is not None]
        yield f"price         ${cost:.6f} for this request; {' and '.join(known)} for a million tokens in and out"


def _found(answer: str) -> int | None:
    """The sum that an answer gives in the format that was asked for; None if it does not keep to it."""
    try:
        content = find_json(answer, ["sum", "word"]).value
    except UltraError:
        return None
    number = content.get("sum")
    return number if isinstance(number, int) and isinstance(content.get("word"), str) else None
