"""Whether a model can be asked at all, found out before a step is simulated: its key, its server and its name."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ultra.analysts.llm.models import INSTALL, ModelName, find_key, identity, make_model
from ultra.common.errors import LanguageModelError, UltraError
from ultra.common.ledger import Ledger, default_path
from ultra.config import LLMConfig

PATIENCE = 10.0
"""Seconds to wait for a server's list of models."""
STRICT = ("library", "vllm")
"""Owners, as servers of Ollama and vLLM name them: these know no model beside those that they list."""
_ADDRESSES = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
    "google": "https://generativelanguage.googleapis.com",
}


def check_model(name: ModelName, config: LLMConfig) -> None:
    """Check that a model can be asked. It is not asked anything, and nothing is paid.

    Where the ledger holds answers of it already the server need not be there, since no answer is bought twice.

    Raises:
        UltraError: if packages, its key or its address are missing.
        LanguageModelError: if the server cannot be reached, refuses the key, or does not know the model.
    """
    try:
        from ultra.analysts.llm.wire import RecordingClient
    except ImportError as error:
        raise UltraError(f"--analyst llm:{name} needs packages that are not installed: {INSTALL}") from error

    async def make() -> None:
        client = RecordingClient(config.timeout)
        try:
            make_model(name, config, client)
        finally:
            await client.aclose()

    asyncio.run(make())
    if not _answered_before(name, config):
        _look_up(name, config)


def _answered_before(name: ModelName, config: LLMConfig) -> bool:
    path = Path(config.ledger) if config.ledger else default_path()
    if not path.is_file():
        return False
    who = identity(name, config)
    with Ledger(path) as ledger:
        return any(row.state == "answered" and row.fields["who"] == who for row in ledger.rows())


def _look_up(name: ModelName, config: LLMConfig) -> None:
    """Ask for the model, or for the list of models; servers that have neither are believed."""
    import httpx2

    address = (config.base_url or _ADDRESSES.get(name.provider, "")).rstrip("/")
    paths = {"anthropic": f"/v1/models/{name.model}", "google": f"/v1beta/models/{name.model}", "local": "/models"}
    url = address + paths.get(name.provider, f"/models/{name.model}")
    try:
        answer = httpx2.get(url, headers=_headers(name), timeout=min(PATIENCE, config.timeout))
    except httpx2.InvalidURL as error:
        raise LanguageModelError(f"llm:{name}: --base-url {address} is no address: {error}") from error
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LanguageModelError(
            f"llm:{name} cannot be reached at {address} ({reason}): check --base-url, and that the server runs"
        ) from error
    except httpx2.HTTPError:
        return  # slow, or odd: the first question will tell
    if answer.status_code in (401, 403):
        raise LanguageModelError(f"llm:{name}: {address} refuses the key ({answer.status_code}): check the key")
    if name.provider == "local":
        _check_listed(name, address, answer)
    elif answer.status_code == 404 and not config.base_url:
        raise LanguageModelError(f"llm:{name}: {address} does not know this model (404): check its name")


def _headers(name: ModelName) -> dict[str, str]:
    key = find_key(name.provider)
    if key is None:
        return {}
    return {
        "anthropic": {"x-api-key": key, "anthropic-version": "2023-06-01"},
        "google": {"x-goog-api-key": key},
    }.get(name.provider, {"authorization": f"Bearer {key}"})


def _check_listed(name: ModelName, address: str, answer: Any) -> None:
    """Check the list of a server that knows no other models.

    Raises:
        LanguageModelError: naming those that it has.
    """
    try:
        listed = {str(entry["id"]): entry.get("owned_by") for entry in answer.json()["data"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    known = {*listed, *(model.removesuffix(":latest") for model in listed)}
    if listed and name.model not in known and all(owner in STRICT for owner in listed.values()):
        raise LanguageModelError(
            f"llm:{name}: {address} does not know this model; it has {', '.join(sorted(listed)[:10])}"
        )
