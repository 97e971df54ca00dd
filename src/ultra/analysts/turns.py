"""What a turn of programs gave, as its author is told: plain records, filled by whoever raced them, and their text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.collection.describe import describe_episode
from ultra.common.errors import UltraError
from ultra.programs.records import Parameter
from ultra.tasks.task import Task
from ultra.tuning.entrants import Proposal

_PROMPT = Path(__file__).parent / "prompts" / "programs_turn.md"
BETTER_STEPS = 0.02
"""A program earns more in a step if its reward per step is larger by this share; else it gains by longer episodes."""
AT_END = 0.02
"""A parameter is at an end of its range within this share of it."""
FACTS = 4
"""Facts whose means are told: those that differ most from the agent's."""
TRACES = {"best": 0.5, "median": 0.4}
"""Length of the traces, as shares of an episode's text."""


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
        tuned: whether its numbers are others than those that were proposed.
        held: for each rule, the share of steps in which its guard held; empty if not known.
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
    tuned: bool = True
    held: tuple[float, ...] = ()
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


def longer_only(summary: Summary, alone: Summary) -> bool:
    """Whether a program gains by longer episodes alone, at no better reward per step."""
    gain = summary.total_reward > alone.total_reward and summary.steps > alone.steps
    better = summary.reward_per_step - alone.reward_per_step
    return gain and better <= BETTER_STEPS * abs(alone.reward_per_step)


def turn_text(task: Task, report: TurnReport, tokens: int, programs: str) -> str:
    """The report of a turn, as its author gets it. Equal reports give equal texts, byte for byte.

    Args:
        task: of the programs.
        report: what the simulator found.
        tokens: of an episode's text.
        programs: how many are asked for, in words.
    """
    left = report.turns - report.turn
    values = {
        "turn": str(report.turn),
        "spent": f"{report.steps:,}",
        "left": f"{report.left:,}",
        "alone": _summary(report.alone) + ".",
        "tried": _all_tried(report),
        "traces": _traces(task, report, tokens),
        "left_turns": (
            f"There {'is one more turn' if left == 1 else f'are {left} more turns'}."
            if left > 0
            else "This is the last."
        ),
        "programs": programs,
    }
    _, text = _PROMPT.read_text(encoding="utf-8").split("\n", 1)
    return Template(text).substitute(values).strip()


def _summary(summary: Summary) -> str:
    if not summary.steps:
        return f"return {summary.total_reward:.4g}"
    return (
        f"return {summary.total_reward:.4g} in {summary.steps:.0f} steps ({summary.reward_per_step:.3g} a step), "
        f"{summary.ended:.0%} of {summary.episodes} episode{'s' * (summary.episodes > 1)} ended by the task's own rule"
    )


def _all_tried(report: TurnReport) -> str:
    """What became of every program; the simulator's own ones that did not help share a line."""
    hopeless = [not item.proposal.turn and (item.difference or 0.0) <= 0 for item in report.tried]
    failed = [item for item, said in zip(report.tried, hopeless, strict=True) if said]
    told = [item for item, said in zip(report.tried, hopeless, strict=True) if not said]
    parts = [_tried(number, item, report) for number, item in enumerate(told, 1)]
    if failed:
        names = (
            f"{item.proposal.program.name} {'not played' if item.difference is None else f'{item.difference:+.3g}'}"
            for item in failed
        )
        parts.append(f"The simulator's own programs that did not help: {', '.join(names)}.")
    return "\n\n".join(parts)


def _tried(number: int, item: Tried, report: TurnReport) -> str:
    program = item.proposal.program
    of = f"turn {item.proposal.turn}" if item.proposal.turn else "the simulator's own"
    lines = [f"{number}. {program.name} ({of}): {_found(item)}"]
    if item.summary is not None:
        lines.append(f"{_summary(item.summary)}{_facts(item.summary, report.alone)}.")
        if longer_only(item.summary, report.alone):
            lines.append("Its gain lies in longer episodes alone: it earns no more in a step than the agent.")
    if program.parameters:
        numbers = ", ".join(map(_parameter, program.parameters))
        lines.append(f"{'Tuned' if item.tuned else 'Numbers as given, not tuned yet'}: {numbers}.")
    if item.held:
        lines.append(f"Its rules held in {', '.join(f'{share:.0%}' for share in item.held)} of the steps.")
    return "\n   ".join(lines)


def _found(item: Tried) -> str:
    if item.problem:
        return f"not played: {item.problem}"
    if not item.episodes or item.difference is None or not math.isfinite(item.difference):
        return "not played, for lack of steps"
    interval = ""
    if item.low is not None and item.high is not None and math.isfinite(item.low + item.high):
        interval = f" [{item.low:+.3g}, {item.high:+.3g}]"
    over = f" over {item.pairs} common episode{'s' * (item.pairs > 1)}" if item.pairs else " in short episodes"
    verdict = f"; verified in fresh episodes: {item.verdict}" if item.verdict else ""
    return f"{item.difference:+.3g}{interval} to the agent alone{over} ({item.episodes} played to tune it){verdict}."


def _parameter(parameter: Parameter) -> str:
    room = AT_END * (parameter.high - parameter.low)
    end = ""
    if parameter.value <= parameter.low + room:
        end = " (the low end of its range)"
    elif parameter.value >= parameter.high - room:
        end = " (the high end of its range)"
    return f"{parameter.name} {parameter.value:.3g}{end}"


def _facts(summary: Summary, alone: Summary) -> str:
    """Means of the facts that differ most from the agent's."""
    usual = dict(alone.facts)

    def differs(pair: tuple[str, float]) -> float:
        name, value = pair
        return abs(value - usual[name]) / (abs(value) + abs(usual[name]) + 1e-6)

    known = [(name, value) for name, value in summary.facts if name in usual]
    chosen = sorted(known, key=lambda pair: (-differs(pair), pair[0]))[:FACTS]
    parts = [f"{name} {value:.3g} (alone {usual[name]:.3g})" for name, value in chosen]
    return f"; means: {', '.join(parts)}" if parts else ""


def _traces(task: Task, report: TurnReport, tokens: int) -> str:
    parts = []
    for kind, trace in (("best", report.best), ("median", report.median)):
        if trace is not None:
            text = describe_episode(task, trace, int(TRACES[kind] * tokens))
            name = f" of {report.best_name}" if report.best_name else ""
            parts.append(f"## {'An' if kind == 'best' else 'The median'} episode{name}\n\n{text}")
    return "\n\n".join(parts)
