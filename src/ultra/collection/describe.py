"""The state interpretation function: trajectories as text within a token budget."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ultra.collection.trajectories import Trajectory
from ultra.tasks.card import Card
from ultra.tasks.spaces import ActionSpace, Discrete
from ultra.tasks.task import Task

_PIECE = re.compile(r"[^\W\d_]{1,7}|\d{1,3}|[^\w\s]|_|\n")
"""What current tokenizers make of text, roughly: pieces of words, up to three digits, single signs."""

FEWEST_ROWS = 4
"""Steps that are shown however small the budget."""
MOST_EVENTS = 50
"""Rewards that stand out are listed if there are no more than these."""


def count_tokens(text: str) -> int:
    """Estimate the tokens of a text.

    A cautious count: tokenizers differ, and most of them join some of these pieces.
    """
    return sum(1 for _ in _PIECE.finditer(text))


def salience(episode: Trajectory) -> NDArray[np.float64]:
    """How much each step (T,) is worth showing: reward events, falls of the value, sharp changes."""
    spread = episode.facts.std(axis=0)
    moved = np.abs(np.diff(episode.facts, axis=0)) / np.where(spread > 1e-9, spread, 1.0)
    sharp = np.zeros(len(episode))
    sharp[1:] = np.abs(np.diff(moved, axis=0)).max(axis=1)
    unusual = np.abs(episode.rewards - np.median(episode.rewards))
    drop = np.maximum(0.0, episode.values[:-1] - episode.values[1:])
    parts = [part / part.max() if part.max() > 0 else part for part in (sharp, 2 * unusual, drop)]
    result: NDArray[np.float64] = np.sum(parts, axis=0)
    return result


RUN_UP = (0, 4, 8, 12, 18, 24, 32)
"""Steps before a reward that stands out which are shown with it, as far as there is room."""


def choose_rows(episode: Trajectory, most: int) -> list[int]:
    """Steps to show, at most `most`: both ends, the way to rewards that stand out, salient steps, an even spread."""
    steps = len(episode)
    if steps <= most:
        return list(range(steps))
    tail = most // 4 if episode.terminated else min(3, most)
    ends = {*range(min(3, most)), *range(max(0, steps - tail), steps)}
    chosen = set(sorted(ends)[-most:])
    events = np.flatnonzero(np.abs(episode.rewards - np.median(episode.rewards)) > 1e-9)
    if 0 < len(events) <= MOST_EVENTS:
        for before in RUN_UP:
            for t in events[events >= before] - before:
                if len(chosen) < most * 3 // 4:
                    chosen.add(int(t))
    order = np.argsort(-salience(episode), kind="stable").tolist()
    for t in order[: max(0, (most - len(chosen)) // 2)]:
        chosen.add(t)
    left = most - len(chosen)
    if left > 0:
        chosen |= set(np.linspace(0, steps - 1, left).astype(int).tolist())
    return sorted(chosen)


def _header(card: Card, space: ActionSpace) -> str:
    actions = ["action"] if isinstance(space, Discrete) else [action.name for action in card.actions]
    return ",".join(["t", *card.fact_names, *actions, "reward", "value"])


def _row(episode: Trajectory, t: int, card: Card, space: ActionSpace) -> str:
    """One step; commas without spaces cost the fewest tokens."""
    facts = [f"{value:.{fact.decimals}f}" for fact, value in zip(card.facts, episode.facts[t], strict=True)]
    if isinstance(space, Discrete):
        actions = [card.actions[int(episode.actions[t])].name]
    else:
        actions = [f"{x:.2f}" for x in space.clip(episode.actions[t])]
    return ",".join([str(t), *facts, *actions, f"{episode.rewards[t]:.3g}", f"{episode.values[t]:.1f}"])


def describe_outcome(task: Task, episode: Trajectory) -> str:
    """What happened in all: length, return, how it ended, and the rewards that stand out, if they are few."""
    last = ", ".join(
        f"{fact.name} {value:.{fact.decimals}f}" for fact, value in zip(task.card.facts, episode.facts[-1], strict=True)
    )
    lines = [
        f"The episode lasted {len(episode)} steps with a return of {episode.total_reward:.2f}; {episode.end()}.",
        f"After the last step: {last}.",
    ]
    events = np.flatnonzero(np.abs(episode.rewards - np.median(episode.rewards)) > 1e-9)
    if 0 < len(events) <= MOST_EVENTS:
        for reward in sorted(set(episode.rewards[events].round(3).tolist())):
            times = events[np.abs(episode.rewards[events] - reward) < 1e-3]
            lines.append(f"Reward {reward:+g} at t = {', '.join(map(str, times))}.")
    return "\n".join(lines)


def _left_out(steps: int) -> str:
    return f"... {steps} left out\n"


def describe_episode(task: Task, episode: Trajectory, tokens: int) -> str:
    """An episode as text: what happened in all, then a table of its salient steps.

    Args:
        task: for names, units and decimals.
        episode: what to describe.
        tokens: the text costs at most so many, as `count_tokens` counts, but shows at least four steps.
    """
    head = f"{describe_outcome(task, episode)}\n\n{_header(task.card, task.action_space)}\n"
    sample = _row(episode, len(episode) // 2, task.card, task.action_space) + "\n"
    room = (tokens - count_tokens(head)) // count_tokens(sample)
    if room < len(episode):  # then most rows are followed by a remark on what is left out
        sample += _left_out(100)
        room = (tokens - count_tokens(head)) // count_tokens(sample)
    while True:
        room = max(FEWEST_ROWS, room)
        text = head + _table(task, episode, choose_rows(episode, room))
        excess = count_tokens(text) - tokens
        if excess <= 0 or room == FEWEST_ROWS:
            return text
        room -= max(1, excess // count_tokens(sample))


def _table(task: Task, episode: Trajectory, rows: list[int]) -> str:
    """The rows of some steps, and how many were left out between them."""
    lines: list[str] = []
    for before, t in zip([-1, *rows], rows, strict=False):
        if t > before + 1:
            lines.append(_left_out(t - before - 1).rstrip())
        lines.append(_row(episode, t, task.card, task.action_space))
    return "\n".join(lines)


def describe_window(task: Task, episode: Trajectory, t: int, before: int = 12, after: int = 16) -> str:
    """Every step around one time, as a table; the row of time t is marked."""
    first, last = max(0, t - before), min(len(episode), t + after)
    rows = []
    for step in range(first, last):
        mark = " <- critical" if step == t else ""
        rows.append(_row(episode, step, task.card, task.action_space) + mark)
    return _header(task.card, task.action_space) + "\n" + "\n".join(rows)


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
