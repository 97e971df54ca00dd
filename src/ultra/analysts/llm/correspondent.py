"""The model as a correspondent: first the ledger, then the guarded model."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from ultra.analysts.conversation import Conversation, Reply
from ultra.analysts.llm.budget import Amount, LLMBudget
from ultra.analysts.llm.guarded import ASKED, INTENT, Asked, GuardedModel, text_of
from ultra.analysts.llm.models import ModelName, identity, make_model
from ultra.analysts.llm.wire import RecordingClient
from ultra.common.ledger import Ledger, key_of
from ultra.config import LLMConfig


class ModelCorrespondent:
    """Answers from the ledger, or from the model."""

    def __init__(self, model: GuardedModel, ledger: Ledger, run: str) -> None:
        self._model, self._ledger, self._run = model, ledger, run
        self._config = model.config
        self._who = identity(model.name, model.config)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def reply(self, conversation: Conversation) -> Reply:
        """Answer a conversation; equal ones are bought once."""
        fields = {"who": self._who, "question": conversation.fields(), "draw": self._config.draw}
        key = key_of(fields)
        async with self._locks[key]:
            stored = self._ledger.find(key)
            if stored is not None and stored.answer is not None:
                return Reply(stored.answer, stored.intent)
            ASKED.set(Asked(fields, conversation.title, self._run, stored))
            response = await self._model.request(
                _messages(conversation), self._settings(), self._parameters(conversation)
            )
            return Reply(text_of(response), INTENT.get(), bought=stored is None)

    def judge(self, reply: Reply, problems: Sequence[str]) -> None:
        """Note in the ledger whether an answer was valid."""
        self._ledger.judge(reply.intent, problems)

    def _settings(self) -> ModelSettings:
        settings: ModelSettings = {"max_tokens": self._config.max_tokens}
        if self._config.temperature is not None:
            settings["temperature"] = self._config.temperature
        return settings

    def _parameters(self, conversation: Conversation) -> ModelRequestParameters:
        schema = dict(conversation.question.schema)
        if self._config.output_mode == "native":
            return ModelRequestParameters(
                output_mode="native", output_object=OutputObjectDefinition(json_schema=schema, name="answer")
            )
        if self._config.output_mode == "tool":
            tool = ToolDefinition(
                name="answer", description="Give the answer.", parameters_json_schema=schema, kind="output"
            )
            return ModelRequestParameters(output_mode="tool", output_tools=[tool], allow_text_output=False)
        return ModelRequestParameters(output_mode="text")


def _messages(conversation: Conversation) -> list[ModelMessage]:
    question = conversation.question
    messages: list[ModelMessage] = [
        ModelRequest(parts=[UserPromptPart(question.prompt)], instructions=question.instructions)
    ]
    for answer, objection in conversation.turns:
        messages.append(ModelResponse(parts=[TextPart(answer)]))
        messages.append(ModelRequest(parts=[UserPromptPart(objection)], instructions=question.instructions))
    return messages


@asynccontextmanager
async def open_model(
    name: ModelName, config: LLMConfig, ledger: Ledger, run: str
) -> AsyncIterator[tuple[ModelCorrespondent, GuardedModel]]:
    """A model ready to be asked; its connections are closed afterwards."""
    before = ledger.spending(run)
    spent = Amount(before.input_tokens + before.output_tokens, before.cost)
    budget = LLMBudget(Amount(config.tokens, config.budget), spent)
    client = RecordingClient(config.timeout + 10)
    try:
        guarded = GuardedModel(make_model(name, config, client), name, config, ledger, budget)
        yield ModelCorrespondent(guarded, ledger, run), guarded
    finally:
        await client.aclose()
