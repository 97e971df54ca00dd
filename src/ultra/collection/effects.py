"""Measured action effects: what each action changes, found by trying it, not written by hand.

From a few visited snapshots each action (each actuator, up and down) is applied for one and for
three steps. What is reported is the mean difference to branches without it, which do nothing where
the task has an action for that, and otherwise follow the policy. The steps count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.collection.trajectories import Trajectory
from ultra.policies.policy import Policy
from ultra.tasks.batch import Batch, Snapshot
from ultra.tasks.spaces import Actions, Continuous, Discrete
from ultra.tasks.task import Task

HOLDS = (1, 3)
"""Steps for which an action is applied."""
LOOKS = (1, 2, 4, 8)
"""Steps after which the facts are compared."""
MOST_STATES, FEWEST_STATES = 24, 4
AFFORDED = 1000
"""About so many environment steps are spent, unless there are many actuators."""
SHOWN = 3
"""Facts shown for each action: those that change most."""
NEUTRAL = ("stay", "noop", "none", "nothing", "wait", "idle")
"""Names of actions that do nothing."""


@dataclass(frozen=True)
class Effect:
    """What one action, held for some steps, changed."""

    action: str
    steps: int
    changes: tuple[tuple[str, tuple[float, ...]], ...]
    """(fact, mean difference after 1, 2, 4 and 8 steps), what changed most first."""


@dataclass(frozen=True)
class Effects:
    """The measured effects of all actions."""

    baseline: str
    """What the compared branches did, in words."""
    states: int
    cost: int
    """Environment steps that it took."""
    effects: tuple[Effect, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Effects:
        """Inverse of `to_json`."""
        effects = tuple(
            Effect(e["action"], e["steps"], tuple((name, tuple(change)) for name, change in e["changes"]))
            for e in value["effects"]
        )
        return cls(value["baseline"], value["states"], value["cost"], effects)


def measure(task: Task, policy: Policy, episodes: Sequence[Trajectory], allowance: int) -> Effects | None:
    """Measure what each action changes.

    Args:
        task: where.
        policy: whose action is changed where actions are continuous.
        episodes: the states come from these, evenly.
        allowance: most environment steps.

    Returns:
        The effects, or None if the allowance is too small for them.
    """
    variants = _variants(task)
    longest = max(LOOKS)
    each = (len(variants) + 1) * longest
    count = min(MOST_STATES, allowance // each, max(FEWEST_STATES + 2, AFFORDED // each))
    if count < FEWEST_STATES:
        return None
    starts = _visited(episodes, count, longest)
    batch = task.make_local_batch(len(starts))
    try:
        bench = _Bench(task, policy, batch, starts)
        without, lived = bench.run(lambda t, own: own)
        spread = np.concatenate([episode.facts for episode in episodes]).std(axis=0)
        spread = np.where(spread > 1e-9, spread, np.inf)
        effects = []
        for name, steps, change in variants:
            facts, alive = bench.run(_held(change, steps))
            effects.append(_compare(task, name, steps, facts - without, alive & lived, spread))
        return Effects(bench.baseline, len(starts), bench.cost, tuple(effects))
    finally:
        batch.close()


Change = Callable[[Actions], Actions]


def _held(change: Change, steps: int) -> Callable[[int, Actions], Actions]:
    return lambda t, own: change(own) if t < steps else own


def _replace(number: int) -> Change:
    return lambda own: np.full_like(own, number)


def _add(delta: NDArray[np.float32], space: Continuous) -> Change:
    return lambda own: space.clip(own + delta)


def _variants(task: Task) -> list[tuple[str, int, Change]]:
    """(name, steps, how it changes the actions) of everything that is tried."""
    space, card = task.action_space, task.card
    result: list[tuple[str, int, Change]] = []
    for steps in HOLDS:
        if isinstance(space, Discrete):
            for number in range(space.n):
                if number != neutral_action(task):
                    result.append((card.actions[number].name, steps, _replace(number)))
            continue
        half = (np.array(space.high, np.float32) - np.array(space.low, np.float32)) / 2
        for number in range(space.size):
            for sign in (1, -1):
                delta = np.zeros(space.size, np.float32)
                delta[number] = sign * half[number]
                name = f"{card.actions[number].name} {delta[number]:+g}"
                result.append((name, steps, _add(delta, space)))
    return result


def neutral_action(task: Task) -> int | None:
    """The action that does nothing, or None."""
    if isinstance(task.action_space, Continuous):
        return None
    names = [action.name.lower() for action in task.card.actions]
    return next((names.index(name) for name in NEUTRAL if name in names), None)


def _visited(episodes: Sequence[Trajectory], count: int, margin: int) -> list[Snapshot]:
    """Snapshots spread evenly over all episodes, not at their very ends where there is a choice."""
    every = [(len(e) - t >= margin, state) for e in episodes for t, state in e.snapshots if t < len(e)]
    pool = [state for inside, state in every if inside] or [state for _, state in every]
    places = np.linspace(0, len(pool) - 1, min(count, len(pool))).round().astype(int)
    return [pool[i] for i in sorted(set(places.tolist()))]


class _Bench:
    """Runs all snapshots side by side under a rule for actions."""

    def __init__(self, task: Task, policy: Policy, batch: Batch, starts: list[Snapshot]) -> None:
        self._policy, self._batch, self._starts = policy, batch, starts
        self._space = task.action_space
        self._neutral = neutral_action(task)
        self._quiet = np.zeros((len(starts), self._space.size), np.float32)
        self.cost = 0
        if self._neutral is not None:
            self.baseline = f"{task.card.actions[self._neutral].name} throughout"
        else:
            self.baseline = "the agent's own action"

    def run(self, choose: Callable[[int, Actions], Actions]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Facts (looks, n, n_facts) and whether the episode was still under way (looks, n)."""
        indices = range(len(self._starts))
        observations = self._batch.restore(indices, self._starts)
        alive = np.ones(len(self._starts), np.bool_)
        facts, lived = [], []
        for t in range(max(LOOKS)):
            own = self._space.clip(self._policy.decide(observations, self._quiet).actions)
            if self._neutral is not None:
                own = np.full_like(own, self._neutral)
            step = self._batch.step(choose(t, own))
            self.cost += int(alive.sum())
            now = self._batch.facts()
            if t + 1 in LOOKS:
                facts.append(now.copy())
                lived.append(alive.copy())
            observations = step.observations.copy()
            alive &= ~step.done
            over = np.flatnonzero(step.done)
            if len(over):  # an episode that is over must not be stepped: it goes back and counts no more
                observations[over] = self._batch.restore(over, [self._starts[i] for i in over])
        return np.stack(facts), np.stack(lived)


def _compare(
    task: Task, name: str, steps: int, gap: NDArray[np.float64], alive: NDArray[np.bool_], spread: NDArray[np.float64]
) -> Effect:
    count = np.maximum(1, alive.sum(axis=1))[:, None]
    mean = np.where(alive[:, :, None], gap, 0.0).sum(axis=1) / count
    size = np.abs(mean / spread).max(axis=0)
    changes = []
    for column in np.argsort(-size, kind="stable")[:SHOWN]:
        fact = task.card.facts[column]
        values = tuple(round(float(value), fact.decimals) + 0.0 for value in mean[:, column])
        if any(values):
            changes.append((fact.name, values))
    return Effect(name, steps, tuple(changes))


def describe_effects(effects: Effects | None) -> str:
    """The effects as a small table for a prompt."""
    if effects is None:
        return "Not measured: the step budget is too small."
    looks = ", ".join(map(str, LOOKS))
    relative = effects.baseline.startswith("the agent")
    lines = [
        f"Mean change after {looks} steps from {effects.states} visited states, compared with {effects.baseline} "
        f"({'added to it' if relative and any('+' in e.action for e in effects.effects) else 'instead of it'} "
        "for the steps named, then the same again):"
    ]
    for effect in effects.effects:
        changes = "; ".join(f"{name} {' '.join(f'{v:+g}' for v in values)}" for name, values in effect.changes)
        lines.append(f"- {effect.action} for {effect.steps}: {changes or 'nothing worth naming'}")
    return "\n".join(lines)
