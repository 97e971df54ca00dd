"""What requests cost: the price table that ships with pydantic-ai, or the user's own figures."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from ultra.analysts.llm.models import ModelName
from ultra.config import LLMConfig

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse


def price(name: ModelName, config: LLMConfig, tokens_in: int, tokens_out: int) -> float | None:
    """US dollars for so many tokens, or None if the model's price is not known."""
    if config.price_input >= 0:
        return (tokens_in * config.price_input + tokens_out * config.price_output) / 1e6
    if name.provider == "local":
        return None
    from genai_prices import Usage, calc_price

    try:
        usage = Usage(input_tokens=tokens_in, output_tokens=tokens_out)
        found: Decimal = calc_price(usage, model_ref=name.model, provider_id=name.provider).total_price
    except LookupError:
        return None
    return float(found)


def price_of(response: ModelResponse, name: ModelName, config: LLMConfig) -> float | None:
    """US dollars for an answer, cached tokens at their own price; None if the price is not known."""
    usage = response.usage
    if config.price_input >= 0 or name.provider == "local":
        return price(name, config, usage.input_tokens, usage.output_tokens)
    try:
        return float(response.cost().total_price)
    except (LookupError, ValueError):
        return price(name, config, usage.input_tokens, usage.output_tokens)
