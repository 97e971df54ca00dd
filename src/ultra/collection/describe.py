"""The state interpretation function: trajectories as text within a token budget."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ultra.collection.cycles import cycle_of
from ultra.collection.trajectories import Trajectory
from ultra.tasks.card import Card
from ultra.tasks.spaces import Discrete
from ultra.tasks.task import Task

_PIECE = re.compile(r"[^\W\d_]{1,7}|\d{1,3}|[^\w\s]|_|\n")
"""What current tokenizers make of text, roughly: pieces of words, up to three digits, single signs."""

FEWEST_ROWS = 4
"""Steps that are shown however small the budget."""
MOST_EVENTS = 50
"""Rewards that stand out are listed if there are no more than these, and in no more than a fifth of the steps."""
RUN_UP = (0, 4, 8, 12, 18, 24, 32)
"""Steps before a reward that stands out which are shown with it, as far as there is room."""
DIFFER = 0.15
"""A most likely action is told beside the one taken if they differ by more than this share of the range."""
BEFORE, AFTER, THINNED, CLOSEST = 6, 10, 4, 3
"""Around a critical state every step is shown from so many before to so many after; then every fourth; fewer
where that costs too much, but no fewer than the last of these numbers."""


class Episode(Protocol):
    """What is described: a trajectory, or the trace of a program's episode."""

    @property
    def facts(self) -> NDArray[np.float64]:
        """(T+1, n_facts)"""
        ...

    @property
    def actions(self) -> NDArray[Any]:
        """(T,) or (T, dim)"""
        ...

    @property
    def rewards(self) -> NDArray[np.float64]:
        """(T,)"""
        ...

    @property
    def terminated(self) -> bool:
        """Whether the task itself ended it."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Split:
    """Two phases of a task: a fact below a threshold, and not."""

    fact: str
    threshold: float

    def above(self, facts: NDArray[np.float64], names: Sequence[str]) -> NDArray[np.bool_]:
        """Where the fact is at least the threshold; facts are (n, n_facts)."""
        result: NDArray[np.bool_] = facts[:, list(names).index(self.fact)] >= self.threshold
        return result

    @property
    def binary(self) -> bool:
        """Whether the fact is either 0 or 1."""
        return self.threshold == 0.5

    def label(self, above: bool) -> str:
        """A phase in words."""
        if self.binary:
            return f"{self.fact} is {int(above)}"
        return f"{self.fact} {'>=' if above else '<'} {self.threshold:.3g}"


def count_tokens(text: str) -> int:
    """Estimate the tokens of a text.

    A cautious count: tokenizers differ, and most of them join some of these pieces.
    """
    return sum(1 for _ in _PIECE.finditer(text))


def events_of(episode: Episode) -> NDArray[np.intp]:
    """Steps whose reward stands out; none where most rewards differ anyway."""
    events = np.flatnonzero(np.abs(episode.rewards - np.median(episode.rewards)) > 1e-9)
    return events if len(events) <= min(MOST_EVENTS, len(episode) / 5) else events[:0]


@dataclass(frozen=True)
class Rows:
    """Steps to show.

    Attributes:
        times: ascending.
        every: the regular ones lie so many steps apart.
    """

    times: tuple[int, ...]
    every: int
    cycle: tuple[int, int, int] | None = None
    """First and last step of the cycle that is shown, and how many steps its rows lie apart; None if there is none."""
    events: bool = False
    """Whether there are rewards that stand out, which are shown with the way to them."""


def choose_rows(episode: Episode, most: int, card: Card | None = None) -> Rows:
    """Steps to show, at most `most`: both ends, rewards that stand out, one full cycle, and every k-th step."""
    steps = len(episode)
    if steps <= most:
        return Rows(tuple(range(steps)), 1)
    tail = min(8, most // 4) if episode.terminated else 1
    chosen = {0, *range(steps - tail, steps)} if most > 1 else {steps - 1}
    events = events_of(episode)
    for before in RUN_UP:
        for t in events[events >= before] - before:
            if len(chosen) < most * 3 // 5:
                chosen.add(int(t))
    cycle = cycle_of(episode.facts[:-1], card) if card is not None else None
    shown = None
    room = (most - len(chosen)) // 2
    if cycle is not None and room >= FEWEST_ROWS:
        shown = (*cycle, -(-(cycle[1] - cycle[0] + 1) // room))
        chosen |= {*range(*shown), cycle[1]}
    every = max(1, steps // most)
    while every < steps and len(chosen | set(range(0, steps, every))) > most:
        every += 1
    regular = set(range(0, steps, every)) if every < steps else set()
    return Rows(tuple(sorted(chosen | regular)), every, shown, bool(len(events)))


def _number(value: float, decimals: int) -> str:
    """A number with so many decimals; nothing is minus zero."""
    text = f"{value:.{decimals}f}"
    return text if text.strip("-0.") or not text.startswith("-") else text[1:]


class _Table:
    """Rows of an episode: only columns that change, in the card's order.

    Args:
        task: for names and decimals.
        episode: what is shown.
        likely: show the most likely actions alone, not those that were taken.
    """

    def __init__(self, task: Task, episode: Episode, likely: bool = False) -> None:
        self._task, self._episode = task, episode
        self._most_likely: NDArray[Any] | None = getattr(episode, "most_likely", None)
        self._values: NDArray[np.float64] | None = getattr(episode, "values", None)
        self._only_likely = likely and self._most_likely is not None
        facts, card = episode.facts, task.card
        texts = [{_number(value, fact.decimals) for value in facts[:, k]} for k, fact in enumerate(card.facts)]
        self._columns = [k for k, values in enumerate(texts) if len(values) > 1 or len(facts) < 3]
        self.constant = ", ".join(
            f"{card.facts[k].name} {next(iter(values))}" for k, values in enumerate(texts) if k not in self._columns
        )

    @property
    def header(self) -> str:
        card = self._task.card
        discrete = isinstance(self._task.action_space, Discrete)
        actions = ["action"] if discrete else [action.name for action in card.actions]
        value = ["value"] if self._values is not None else []
        return ",".join(["t", *(card.facts[k].name for k in self._columns), *actions, "reward", *value])

    def row(self, t: int) -> str:
        """One step; commas without spaces cost the fewest tokens."""
        card, episode = self._task.card, self._episode
        facts = [_number(episode.facts[t, k], card.facts[k].decimals) for k in self._columns]
        value = [f"{self._values[t]:.1f}"] if self._values is not None else []
        return ",".join([str(t), *facts, *self._action(t), f"{episode.rewards[t]:.3g}", *value])

    def _action(self, t: int) -> list[str]:
        space, taken = self._task.action_space, self._episode.actions[t]
        likely = None if self._most_likely is None else self._most_likely[t]
        if self._only_likely:
            taken, likely = likely, None
        if isinstance(space, Discrete):
            name = self._task.card.actions[int(taken)].name
            other = "" if likely is None or int(likely) == int(taken) else self._task.card.actions[int(likely)].name
            return [f"{name}/{other}" if other else name]
        shown = space.clip(taken)
        if likely is None:
            return [_number(x, 2) for x in shown]
        usual, ranges = space.clip(likely), np.array(space.high) - np.array(space.low)
        return [
            f"{_number(x, 2)}/{_number(m, 2)}" if abs(x - m) > DIFFER * r else _number(x, 2)
            for x, m, r in zip(shown, usual, ranges, strict=True)
        ]

    def rows(self, times: Sequence[int], mark: Callable[[int], str] = lambda t: "") -> str:
        return "\n".join(self.row(t) + mark(t) for t in times)

    @property
    def notes(self) -> list[str]:
        """What has to be known to read the table."""
        notes = [f"Constant: {self.constant}."] if self.constant else []
        if self._most_likely is not None and not self._only_likely:
            notes.append("An action a/b: the agent took a by exploration noise, b was its most likely action.")
        return notes


def describe_outcome(task: Task, episode: Episode, split: Split | None = None) -> str:
    """What happened in all: length, return, how it ended, rewards that stand out, and reward by phase."""
    steps = len(episode)
    total = float(episode.rewards.sum())
    lines = [f"The episode lasted {steps} steps with a return of {total:.2f}; {_end(task, episode)}."]
    if episode.terminated:
        pairs = zip(task.card.facts, episode.facts[-1], strict=True)
        last = ", ".join(f"{fact.name} {_number(value, fact.decimals)}" for fact, value in pairs)
        lines.append(f"After the last step: {last}.")
    events = events_of(episode)
    for reward in sorted(set(episode.rewards[events].round(3).tolist())):
        times = events[np.abs(episode.rewards[events] - reward) < 1e-3]
        lines.append(f"Reward {reward:+g} at t = {', '.join(map(str, times))}.")
    if split is not None and split.binary:
        lines += _by_phase(task, episode, split)
    return "\n".join(lines)


def _end(task: Task, episode: Episode) -> str:
    if episode.terminated:
        return "it was ended by the task's own rule"
    if len(episode) >= task.time_limit:
        return "it reached the task's time limit, which is no failure"
    return (
        f"it was cut off there to save steps, which is no failure: the task itself goes on to {task.time_limit:,} steps"
    )


def _by_phase(task: Task, episode: Episode, split: Split) -> list[str]:
    above = split.above(episode.facts[:-1], task.card.fact_names)
    parts = [
        f"{episode.rewards[where].mean():.3g} where {split.label(side)} ({where.mean():.0%} of the steps)"
        for side, where in ((True, above), (False, ~above))
        if where.any()
    ]
    return [f"Mean reward of a step: {', '.join(parts)}."]


def describe_episode(
    task: Task, episode: Episode, tokens: int, split: Split | None = None, *, likely: bool = False
) -> str:
    """An episode as text: what happened in all, then a table of some of its steps.

    Args:
        task: for names, units and decimals.
        episode: what to describe.
        tokens: the text costs at most so many, as `count_tokens` counts, but shows at least four steps.
        split: phases by which the reward is told.
        likely: show the most likely actions, not those that were taken.
    """
    table = _Table(task, episode, likely)
    outcome = describe_outcome(task, episode, split)
    sample = count_tokens(table.row(len(episode) // 2) + "\n")
    room = max(FEWEST_ROWS, (tokens - count_tokens(outcome + table.header)) // sample)
    while True:
        rows = choose_rows(episode, room, task.card)
        notes = " ".join([_which(rows, len(episode)), *table.notes])
        text = f"{outcome}\n\n{notes}\n{table.header}\n{table.rows(rows.times)}"
        excess = count_tokens(text) - tokens
        if excess <= 0 or room == FEWEST_ROWS:
            return text
        room = max(FEWEST_ROWS, min(room, len(rows.times)) - max(1, excess // sample))


def _which(rows: Rows, steps: int) -> str:
    """Which steps a table shows."""
    if len(rows.times) == steps:
        return "Every step is shown."
    parts = [f"every {_ordinal(rows.every)} step"] if rows.every < steps else []
    if rows.cycle is not None:
        first, last, apart = rows.cycle
        of = f" (every {_ordinal(apart)} step of it)" if apart > 1 else ""
        parts.append(f"one full cycle from t = {first} to {last}{of}")
    if rows.events:
        parts.append("the way to rewards that stand out")
    parts.append("the end")
    return f"Shown: {', '.join(parts)}."


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}" if number > 1 else ""


def describe_windows(task: Task, episode: Episode, times: Sequence[int], plan: int, tokens: int) -> str:
    """The steps around some times, in windows that do not overlap; the rows of these times are marked.

    Every step is shown close to each time, then every fourth one until a plan that begins there would be over; more
    sparsely where that costs too much.

    Args:
        task: for names and decimals.
        episode: what is shown.
        times: of critical states.
        plan: steps of the longest plan.
        tokens: of all windows together, about; what is close to the times is shown in any case.
    """
    table = _Table(task, episode)
    marked = set(times)
    row = count_tokens(table.row(len(episode) // 2) + "\n")
    before, after, thinned = BEFORE, AFTER, THINNED
    while True:
        spans = [_around(time, len(episode), before, after, thinned, plan) for time in times]
        shown = sorted({t for span in spans for t in span})
        if len(shown) * row <= tokens or after <= CLOSEST:
            break
        before, after, thinned = max(CLOSEST, before - 1), after - 1, thinned + 1
    parts: list[str] = []
    last = -thinned - 1
    for t in shown:
        if t > last + thinned:
            parts.append(f"from t = {t}:")
        parts.append(table.row(t) + (" <- critical" if t in marked else ""))
        last = t
    notes = " ".join(table.notes)
    return "\n".join(([notes] if notes else []) + [table.header, *parts])


def _around(time: int, steps: int, before: int, after: int, thinned: int, plan: int) -> list[int]:
    close = range(max(0, time - before), min(steps, time + after + 1))
    late = range(time + after + thinned, min(steps, time + plan + thinned), thinned)
    return [*close, *late]


def largest_facts(card: Card, episodes: Sequence[Trajectory], episode: int, t: int, count: int = 3) -> str:
    """The facts of a state that are most unusual among all states, in words."""
    everything = np.concatenate([e.facts for e in episodes])
    spread = everything.std(axis=0)
    facts = episodes[episode].facts[t]
    unusual = np.abs(facts - everything.mean(axis=0)) / np.where(spread > 1e-9, spread, np.inf)
    ranked = sorted(card.matched.tolist(), key=lambda i: -unusual[i])[:count]
    words = []
    for i in ranked:
        fact = card.facts[i]
        words.append(f"{fact.name} {facts[i]:.{fact.decimals}f}{' ' + fact.unit if fact.unit else ''}")
    return ", ".join(words)
