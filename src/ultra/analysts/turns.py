"""What a turn of programs gave, as its author is told: plain records, filled by whoever raced them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import UltraError
from ultra.tuning.entrants import Proposal


@dataclass(frozen=True, eq=False)
class Trace:
    """One recorded episode of T steps.

    Raises:
        UltraError: if lengths disagree; the message names the field.
    """

    facts: NDArray[np.float64]
    """(T+1, n_facts), columns as in the task's card."""
    actions: NDArray[Any]
    """(T,) or (T, dim), as done."""
    rewards: NDArray[np.float64]
    """(T,)"""
    terminated: bool
    """Whether the task itself ended the episode."""
    agent: NDArray[Any] | None = None
    """(T,) or (T, dim): what the agent alone would have done in the same states; None if not recorded."""

    def __post_init__(self) -> None:
        steps = len(self.rewards)
        rows = {"facts": steps + 1, "actions": steps} | ({} if self.agent is None else {"agent": steps})
        for name, wanted in rows.items():
            found = len(getattr(self, name))
            if found != wanted:
                raise UltraError(f"trace.{name} has {found} rows, but {steps} rewards need {wanted}")

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def total_reward(self) -> float:
        """The undiscounted return."""
        return float(self.rewards.sum())


@dataclass(frozen=True)
class Summary:
    """Means over the episodes of one way of acting."""

    episodes: int
    steps: float
    """Mean length."""
    total_reward: float
    """Mean return."""
    ended: float
    """Share of episodes that the task itself ended."""
    facts: tuple[tuple[str, float], ...] = ()
    """Mean of some facts over all steps, by name."""

    @property
    def reward_per_step(self) -> float:
        """Mean reward of a step."""
        return self.total_reward / self.steps if self.steps else 0.0


@dataclass(frozen=True)
class Tried:
    """What became of a program.

    Attributes:
        proposal: the program with its best numbers.
        episodes: that it played in the race, all of its settings together.
        summary: of its episodes in the comparison at the end; None if it did not get so far.
        difference: mean paired difference of the return to the agent alone, on common episodes; None if not played.
        low, high: 95% interval of the difference; None where there is only one pair.
        pairs: episodes behind the difference.
        held: for each rule, the share of steps in which its guard held; empty if not known.
        longer_only: whether the difference comes from longer episodes alone, at no better reward per step.
        verdict: of verification in fresh episodes (`helps`, `harms`, `unclear`); empty if it was not verified.
        problem: why it could not be played; empty if it could.
    """

    proposal: Proposal
    episodes: int
    summary: Summary | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    pairs: int = 0
    held: tuple[float, ...] = ()
    longer_only: bool = False
    verdict: str = ""
    problem: str = ""


@dataclass(frozen=True, eq=False)
class TurnReport:
    """What the simulator found in a turn; the next turn begins with it.

    Attributes:
        turn: that is reported, from 1.
        turns: that there are at most.
        alone: the agent alone, on the common episodes.
        tried: programs of this turn in the order in which they were proposed, then the best of earlier turns.
        steps: environment steps that the turn took.
        left: environment steps that are left for the turns to come and for verification.
        best: an episode of the best program, and its name.
        median: the median episode of that program; None if it is the same.
    """

    turn: int
    turns: int
    alone: Summary
    tried: tuple[Tried, ...]
    steps: int
    left: int
    best: Trace | None = None
    best_name: str = ""
    median: Trace | None = None
