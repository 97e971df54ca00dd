"""The guarded model: bounded concurrency, retries, a deadline for each try, a budget, and the ledger.

The only place where requests are sent. For each try: reserve, note the intent, send, keep the raw
response (`wire`), settle usage and price, and only then look at the answer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelConnectionError,
    ModelHTTPError,
    ModelRateLimitError,
    ModelRequestTimeout,
    ModelServerError,
    ModelUnavailableError,
    UnexpectedModelBehavior,
)
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from ultra.analysts.conversation import NoAnswer
from ultra.analysts.llm.budget import Amount, LLMBudget
from ultra.analysts.llm.models import KEYS, ModelName
from ultra.analysts.llm.prices import price, price_of
from ultra.analysts.llm.secret import redact
from ultra.analysts.llm.wire import ATTEMPT, Attempt
from ultra.collection.describe import count_tokens
from ultra.common.errors import LanguageModelError, UltraError
from ultra.common.ledger import Ledger, Stored
from ultra.common.locks import Permits
from ultra.config import LLMConfig

RETRIED = (
    ModelRateLimitError, ModelUnavailableError, ModelServerError, ModelConnectionError, ModelRequestTimeout,
    TimeoutError,
)  # fmt: skip
"""Errors after which the same request may succeed. An exhausted quota is none of them."""
GARBAGE_TRIES = 2
"""An empty answer or an error page with status 200 may have been paid for: it is asked again once."""
MARGIN = 1.3
"""Input tokens are estimated with this factor when they are reserved."""


@dataclass(frozen=True)
class Asked:
    """What the current request is about."""

    fields: Mapping[str, Any]
    title: str
    run: str
    stored: Stored | None = None
    """A raw response that was bought but not read, because the process ended: nothing is sent."""


ASKED: ContextVar[Asked] = ContextVar("asked")
INTENT: ContextVar[int] = ContextVar("intent", default=0)
"""The ledger's number of the answer that the current task was given last."""


class GuardedModel(WrapperModel):
    """A model behind the guard. Requests under way share its slots and its budget."""

    def __init__(
        self,
        wrapped: Model,
        name: ModelName,
        config: LLMConfig,
        ledger: Ledger,
        budget: LLMBudget,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(wrapped)
        self.name, self.config, self.ledger, self.budget = name, config, ledger, budget
        self._slots = asyncio.Semaphore(config.concurrency)
        self._permits = Permits(Path(config.permits) if config.permits else None)
        self._sleep = sleep
        self._given_up: UltraError | None = None

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Send a request until it is answered.

        Raises:
            NoAnswer: if what came is no answer.
            LanguageModelError: if the model cannot be reached; every further request then fails at once.
            LLMBudgetError: if the request does not fit into the budget.
        """
        settings: ModelSettings = {**(model_settings or {}), "max_retries": 0}
        garbage = 0
        for number in range(1, self.config.attempts + 1):
            if self._given_up is not None:
                raise self._given_up
            try:
                async with self._slots, self._permits.hold():
                    return await self._try(messages, settings, model_request_parameters)
            except NoAnswer:
                garbage += 1
                if garbage == GARBAGE_TRIES or number == self.config.attempts:
                    raise
                wait = 0.0
            except RETRIED as error:
                asked = getattr(error, "retry_after", None)
                wait = asked if asked is not None else min(2.0**number, 30.0) * random.uniform(0.5, 1.0)
                if number == self.config.attempts or wait > self.config.longest_wait:
                    raise self._give_up(error, number) from None
            except ModelAPIError as error:
                raise self._give_up(error, number) from None
            await self._sleep(wait)
        raise AssertionError("unreachable")

    async def _try(
        self, messages: list[ModelMessage], settings: ModelSettings, parameters: ModelRequestParameters
    ) -> ModelResponse:
        asked = ASKED.get()
        if asked.stored is not None:
            attempt = Attempt(self.ledger, asked.stored.intent, asked.stored)
            return await self._call(attempt, messages, settings, parameters)
        tokens = int(MARGIN * estimate(messages)) + 50
        worst = self._amount(tokens, self.config.max_tokens)
        await self.budget.reserve(worst)
        spent = Amount()
        try:
            if self._given_up is not None:
                raise self._given_up
            attempt = Attempt(self.ledger, self.ledger.intend(asked.fields, asked.title, asked.run))
            try:
                response = await self._call(attempt, messages, settings, parameters)
            except NoAnswer:
                spent = self._amount(tokens, 0)
                raise
            except RETRIED:
                spent = self._amount(tokens, 0) if attempt.sent else spent
                raise
            usage = response.usage
            spent = Amount(usage.input_tokens + usage.output_tokens, price_of(response, self.name, self.config) or 0.0)
            return response
        finally:
            await self.budget.settle(worst, spent)

    async def _call(
        self,
        attempt: Attempt,
        messages: list[ModelMessage],
        settings: ModelSettings,
        parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """One try: what comes of it is in the ledger before this returns or raises."""
        ATTEMPT.set(attempt)
        INTENT.set(attempt.intent)
        try:
            async with asyncio.timeout(self.config.timeout):
                response = await self.wrapped.request(messages, settings, parameters)
        except UnexpectedModelBehavior as error:
            reason = f"what came is no answer: {_short(error)}"
            self.ledger.settle(attempt.intent, "unusable", note=reason)
            raise NoAnswer(reason) from None
        except Exception as error:
            if attempt.received:
                reason = f"what came cannot be read: {_short(error)}"
                self.ledger.settle(attempt.intent, "unusable", note=reason)
                raise NoAnswer(reason) from None
            billed = attempt.sent and not isinstance(error, ModelHTTPError)
            self.ledger.settle(attempt.intent, "lost" if billed else "rejected", note=_short(error))
            if not isinstance(error, ModelAPIError | TimeoutError):
                raise self._give_up(error, 1) from None
            attempt.sent = billed
            raise
        self._settle(attempt.intent, response)
        return response

    def _settle(self, intent: int, response: ModelResponse) -> None:
        answer = text_of(response)
        usage = (response.usage.input_tokens, response.usage.output_tokens)
        cost = price_of(response, self.name, self.config)
        reason = ""
        if response.finish_reason == "content_filter":
            reason = "the model refused to answer"
        elif not answer.strip():
            reason = "the answer is empty"
        self.ledger.settle(
            intent, "unusable" if reason else "answered", answer=answer, model=response.model_name or "",
            usage=usage, cost=cost, note=reason,
        )  # fmt: skip
        if reason:
            raise NoAnswer(reason)

    def _amount(self, tokens_in: int, tokens_out: int) -> Amount:
        return Amount(tokens_in + tokens_out, price(self.name, self.config, tokens_in, tokens_out) or 0.0)

    def _give_up(self, error: Exception, tries: int) -> UltraError:
        """The error as one line with a remedy; it ends all other requests too."""
        if self._given_up is None:
            self._given_up = LanguageModelError(f"llm:{self.name}: {self._explain(error, tries)}")
        return self._given_up

    def _explain(self, error: Exception, tries: int) -> str:
        status = getattr(error, "status_code", 0)
        where = self.wrapped.base_url or self.name.provider
        if isinstance(error, ModelRateLimitError) or status == 429:
            return f"its limit is reached ({_short(error)}); repeat the command later, what was bought is kept"
        if status in (401, 403):
            names = " or ".join(KEYS[self.name.provider])
            return f"the key was refused ({status}): check {names}"
        if status == 404:
            return f"{where} does not know this model (404): check its name and --base-url"
        if status in (400, 422):
            return f"the request was rejected ({_short(error)}); try another --output-mode (native, tool, prompted)"
        after = f"after {tries} tries" if tries > 1 else "at once"
        return f"cannot be reached at {where} ({_short(error)}, {after}); repeat the command, what was bought is kept"


def text_of(response: ModelResponse) -> str:
    """The answer: its text, or the arguments of its tool call as JSON."""
    calls = [part.args_as_json_str() for part in response.parts if isinstance(part, ToolCallPart)]
    texts = [part.content for part in response.parts if isinstance(part, TextPart)]
    return redact(calls[0] if calls else "".join(texts))


def estimate(messages: list[ModelMessage]) -> int:
    """Tokens of a request, roughly."""
    total = 0
    for message in messages:
        if isinstance(message, ModelRequest) and message.instructions:
            total += count_tokens(message.instructions)
        total += sum(count_tokens(str(getattr(part, "content", ""))) for part in message.parts)
    return total


def _short(error: BaseException) -> str:
    """An error of a provider on one line, without keys."""
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer within the time limit"
    text = " ".join(redact(str(error)).split()) or type(error).__name__
    return text if len(text) <= 240 else f"{text[:237]}..."
