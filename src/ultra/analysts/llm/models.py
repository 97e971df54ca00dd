"""From `PROVIDER/MODEL` to a pydantic-ai model. Keys come from the environment only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ultra.common.errors import UltraError
from ultra.config import LLMConfig

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from ultra.analysts.llm.wire import RecordingClient

KEYS = {
    "openai": ("OPENAI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "google": ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
    "local": ("ULTRA_LOCAL_API_KEY",),
}
"""Providers, with the environment variables that may hold their keys."""

INSTALL = 'pip install "ultra-refine[llm]"'


@dataclass(frozen=True)
class ModelName:
    """A provider and its model.

    Raises:
        UltraError: if the provider is unknown or settings do not fit it.
    """

    provider: str
    model: str

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Read `PROVIDER/MODEL`; the model's own name may hold slashes."""
        provider, _, model = text.partition("/")
        if provider not in KEYS or not model:
            raise UltraError(
                f"--analyst llm:{text}: write llm:PROVIDER/MODEL with one of the providers {', '.join(KEYS)} "
                "(`local` is any OpenAI-compatible server, with --base-url)"
            )
        return cls(provider, model)

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


def identity(name: ModelName, config: LLMConfig) -> dict[str, Any]:
    """Who is asked, and how: the part of a ledger key that does not depend on the question."""
    who = {
        "provider": name.provider,
        "model": name.model,
        "base_url": config.base_url,
        "output_mode": config.output_mode,
        "max_tokens": config.max_tokens,
    }
    return who if config.temperature is None else who | {"temperature": config.temperature}


def find_key(provider: str) -> str | None:
    """The key of a provider from the environment; None where a local server needs none.

    Raises:
        UltraError: if it is missing; the variables that may hold it are named.
    """
    found = [os.environ[name] for name in KEYS[provider] if os.environ.get(name)]
    if not found and provider != "local":
        raise UltraError(f"llm:{provider} needs a key: set the environment variable {' or '.join(KEYS[provider])}")
    return found[0] if found else None


def make_model(name: ModelName, config: LLMConfig, client: RecordingClient) -> Model:
    """Make the model of a provider.

    Raises:
        UltraError: if its key is missing, or --base-url is missing or does not fit.
    """
    key, url = find_key(name.provider), config.base_url or None
    try:
        if name.provider == "anthropic":
            from pydantic_ai.models.anthropic import AnthropicModel
            from pydantic_ai.providers.anthropic import AnthropicProvider

            return AnthropicModel(
                name.model, provider=AnthropicProvider(api_key=key or "", base_url=url, http_client=client)
            )
        if name.provider == "google":
            from pydantic_ai.models.google import GoogleModel
            from pydantic_ai.providers.google import GoogleProvider

            return GoogleModel(name.model, provider=GoogleProvider(api_key=key, base_url=url, http_client=client))
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider
        from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider
    except ImportError as error:
        raise UltraError(f"--analyst llm:{name} needs packages that are not installed: {INSTALL}") from error
    if name.provider == "openai":
        if url:
            raise UltraError(
                f"--base-url {url} with llm:openai would send your OpenAI key there: use llm:local/{name.model}"
            )
        return OpenAIChatModel(name.model, provider=OpenAIProvider(api_key=key, http_client=client))
    if not url:
        raise UltraError(f"llm:{name} needs --base-url, for instance --base-url http://127.0.0.1:11434/v1 (Ollama)")
    # Never OpenAIProvider here: it would send the user's OPENAI_API_KEY to that server.
    provider = OpenAICompatibleProvider("local", base_url=url, api_key=key, http_client=client)
    return OpenAIChatModel(name.model, provider=provider)
