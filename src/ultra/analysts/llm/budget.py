"""The budget of a run in money and tokens: reserved before a request is sent, settled after it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ultra.common.errors import UltraError


@dataclass(frozen=True)
class Amount:
    """Tokens and US dollars."""

    tokens: int = 0
    money: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.tokens + other.tokens, self.money + other.money)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.tokens - other.tokens, self.money - other.money)


class LLMBudgetError(UltraError):
    """The next request does not fit into what the run may spend; what was bought is kept."""


class LLMBudget:
    """Reserves the worst case of every request, so that requests under way together cannot overspend.

    Args:
        limit: what may be spent; 0 is no limit.
        spent: what has been spent before.
    """

    def __init__(self, limit: Amount, spent: Amount) -> None:
        self._limit = limit
        self.spent = spent
        self.reserved = Amount()
        self._changed = asyncio.Condition()

    def _fits(self, amount: Amount) -> bool:
        total = self.spent + amount
        tokens = not self._limit.tokens or total.tokens <= self._limit.tokens
        return tokens and (not self._limit.money or total.money <= self._limit.money)

    async def reserve(self, amount: Amount) -> None:
        """Set an amount aside; waits while requests under way hold what would be needed.

        Raises:
            LLMBudgetError: if it does not fit even when they have been settled.
        """
        async with self._changed:
            while not self._fits(self.reserved + amount):
                if self.reserved.tokens == 0:
                    raise self._exceeded(amount)
                await self._changed.wait()
            self.reserved += amount

    async def settle(self, reserved: Amount, spent: Amount) -> None:
        """Give a reservation back and count what the request has cost."""
        async with self._changed:
            self.reserved -= reserved
            self.spent += spent
            self._changed.notify_all()

    def _exceeded(self, amount: Amount) -> LLMBudgetError:
        money = self._limit.money and self.spent.money + amount.money > self._limit.money
        if money:
            return LLMBudgetError(
                f"the next request may cost ${amount.money:.4f}, but ${self.spent.money:.4f} of --llm-budget "
                f"{self._limit.money:g} are spent: raise it and repeat the command; what was bought is kept"
            )
        return LLMBudgetError(
            f"the next request may take {amount.tokens:,} tokens, but {self.spent.tokens:,} of --llm-tokens "
            f"{self._limit.tokens:,} are spent: raise it and repeat the command; what was bought is kept"
        )
