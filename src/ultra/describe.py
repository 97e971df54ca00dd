"""The state interpretation function: trajectories as text within a token budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ultra.spaces import ActionSpace, Discrete
from ultra.tasks.card import Card
from ultra.tasks.task import Task
from ultra.trajectories import Trajectory

CHARACTERS_PER_TOKEN = 2.2
"""Rows of numbers cost about one token for so many characters (a cautious estimate)."""


def count_tokens(text: str) -> int:
    """Estimate the tokens of a text; numbers split into more tokens than words do."""
    return int(np.ceil(len(text) / CHARACTERS_PER_TOKEN))


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


def choose_rows(episode: Trajectory, most: int) -> list[int]:
    """Steps to show, at most `most`: both ends, salient steps, and an even spread over the rest."""
    steps = len(episode)
    if steps <= most:
        return list(range(steps))
    ends = {*range(min(3, most)), *range(max(0, steps - most // 4), steps)}
    chosen = set(sorted(ends)[-most:])
    order = np.argsort(-salience(episode), kind="stable").tolist()
    for t in order[: max(0, (most - len(chosen)) // 2)]:
        chosen.add(t)
    left = most - len(chosen)
    if left > 0:
        chosen |= set(np.linspace(0, steps - 1, left).astype(int).tolist())
    return sorted(chosen)


def _header(card: Card) -> str:
    facts = [f"{fact.name}[{fact.unit}]" if fact.unit else fact.name for fact in card.facts]
    return " | ".join(["t", *facts, "action", "reward", "value"])


def _row(episode: Trajectory, t: int, card: Card, space: ActionSpace) -> str:
    facts = [f"{value:.{fact.decimals}f}" for fact, value in zip(card.facts, episode.facts[t], strict=True)]
    if isinstance(space, Discrete):
        action = card.actions[int(episode.actions[t])].name
    else:
        action = " ".join(f"{x:+.2f}" for x in space.clip(episode.actions[t]))
    return " | ".join([str(t), *facts, action, f"{episode.rewards[t]:.2f}", f"{episode.values[t]:.1f}"])


def describe_episode(task: Task, episode: Trajectory, tokens: int) -> str:
    """An episode as text: what happened in all, then a table of its salient steps.

    Args:
        task: for names, units and decimals.
        episode: what to describe.
        tokens: the text costs at most about so many.
    """
    head = (
        f"The episode lasted {len(episode)} steps with a return of {episode.total_reward:.2f}; {episode.end()}."
        f"\n\n{_header(task.card)}\n"
    )
    sample = _row(episode, len(episode) // 2, task.card, task.action_space)
    room = max(4, (tokens - count_tokens(head) - 40) // count_tokens(sample + "\n"))
    rows = choose_rows(episode, room)
    lines: list[str] = []
    for before, t in zip([-1, *rows], rows, strict=False):
        if t > before + 1:
            left_out = t - before - 1
            lines.append(f"... {left_out} {'step' if left_out == 1 else 'steps'} left out ...")
        lines.append(_row(episode, t, task.card, task.action_space))
    return head + "\n".join(lines)


def describe_window(task: Task, episode: Trajectory, t: int, before: int = 12, after: int = 16) -> str:
    """Every step around one time, as a table; the row of time t is marked."""
    first, last = max(0, t - before), min(len(episode), t + after)
    rows = []
    for step in range(first, last):
        mark = "  <- critical" if step == t else ""
        rows.append(_row(episode, step, task.card, task.action_space) + mark)
    return _header(task.card) + "\n" + "\n".join(rows)


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
