"""Measured action effects: what each action changes, found by trying it, not written by hand.

From a few visited snapshots each action (each actuator, up and down) is applied for some steps. What is reported is
the mean difference to branches without it, which do nothing where the task has an action for that, and otherwise
follow the policy. Means over unlike states say little, so they are split into two phases: by whether a foot is on the
ground where that is known, else by the fact whose split makes the effects within each half most alike. The steps count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.collection.describe import Split
from ultra.collection.trajectories import Trajectory
from ultra.policies.policy import Policy
from ultra.tasks.batch import Batch, Snapshot
from ultra.tasks.spaces import Actions, Continuous, Discrete
from ultra.tasks.task import Task

HOLDS = (1, 3)
"""Steps for which a discrete action is applied; a continuous one for the last of them."""
LOOKS = (1, 3, 8)
"""Steps after which the facts are compared."""
MOST_STATES, FEWEST_STATES = 24, 4
AFFORDED = 2000
"""Approximate limit on environment steps, unless there are many actuators."""
FEWEST_IN_PHASE = 4
"""States of a phase."""
ALIKE = 0.9
"""A split by a median must bring the variance of the effects within its halves down to this share."""
SHOWN = 3
"""Facts shown for each action: those that change most."""
MANY = 4
"""Where a phase has more effects than these, one fact less is shown for each."""
NEUTRAL = ("stay", "noop", "none", "nothing", "wait", "idle")
"""Names of actions that do nothing."""


@dataclass(frozen=True)
class Effect:
    """What one action, held for some steps, changed."""

    action: str
    steps: int
    changes: tuple[tuple[str, tuple[float, ...]], ...]
    """(fact, mean difference after the steps of `LOOKS`), what changed most first."""
    reward: float = 0.0
    """Mean difference of the summed reward after the last of them."""


@dataclass(frozen=True)
class Phase:
    """Effects in a part of the states."""

    label: str
    """For instance `foot_contact is 1`; empty for all states."""
    states: int
    effects: tuple[Effect, ...]
    """Where actions are continuous, one for each actuator: half the difference between up and down."""


@dataclass(frozen=True)
class Effects:
    """The measured effects of all actions."""

    baseline: str
    """What the compared branches did, in words."""
    states: int
    cost: int
    """Environment steps that it took."""
    effects: tuple[Effect, ...]
    """Over all states."""
    phases: tuple[Phase, ...] = ()
    """The same in each of two phases; over all states if no split tells them apart."""
    split: Split | None = None
    """What tells the phases apart."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Effects:
        """Inverse of `to_json`."""
        phases = tuple(Phase(p["label"], p["states"], _effects(p["effects"])) for p in value["phases"])
        split = Split(**value["split"]) if value["split"] else None
        return cls(value["baseline"], value["states"], value["cost"], _effects(value["effects"]), phases, split)


def _effects(items: Sequence[dict[str, Any]]) -> tuple[Effect, ...]:
    return tuple(
        Effect(e["action"], e["steps"], tuple((name, tuple(change)) for name, change in e["changes"]), e["reward"])
        for e in items
    )


@dataclass(frozen=True, eq=False)
class _Tried:
    """What trying one action gave, state by state."""

    name: str
    steps: int
    gap: NDArray[np.float64]
    """(looks, states, facts + 1): differences of the facts, and last of the summed reward."""
    alive: NDArray[np.bool_]
    """(looks, states): whether both branches were still under way."""

    def mean(self, where: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(looks, facts + 1) over some of the states."""
        alive = self.alive & where
        count = np.maximum(1, alive.sum(axis=1))[:, None]
        result: NDArray[np.float64] = np.where(alive[:, :, None], self.gap, 0.0).sum(axis=1) / count
        return result


def measure(task: Task, policy: Policy, episodes: Sequence[Trajectory], allowance: int) -> Effects | None:
    """Measure what each action changes.

    Args:
        task: environment to measure in.
        policy: acts otherwise; continuous actions are changes of its own.
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
        tried = []
        for name, steps, change in variants:
            found, alive = bench.run(_held(change, steps))
            tried.append(_Tried(name, steps, found - without, alive & lived))
    finally:
        batch.close()
    spread = np.concatenate([episode.facts for episode in episodes]).std(axis=0)
    spread = np.where(spread > 1e-9, spread, np.inf)
    every = np.ones(len(starts), np.bool_)
    effects = tuple(_effect(task, item.name, item.steps, item.mean(every), spread) for item in tried)
    split = _split(task, bench.begun, tried, spread)
    phases = [(every, "")]
    if split is not None:
        above = split.above(bench.begun, task.card.fact_names)
        phases = [(above, split.label(True)), (~above, split.label(False))]
    return Effects(
        bench.baseline,
        len(starts),
        bench.cost,
        effects,
        tuple(Phase(label, int(where.sum()), _of_phase(task, tried, where, spread)) for where, label in phases),
        split,
    )


def _split(
    task: Task, begun: NDArray[np.float64], tried: Sequence[_Tried], spread: NDArray[np.float64]
) -> Split | None:
    """What tells two phases apart: a fact of two values if there is one, else one at its median; None if nothing does.

    Among several, the one within whose halves the effects differ least.
    """

    def within(where: NDArray[np.bool_]) -> float:
        total = 0.0
        for item in tried:
            gap = item.gap[:, :, :-1] / spread
            for part in (where, ~where):
                alive = (item.alive & part)[:, :, None]
                rest = np.where(alive, gap - item.mean(part)[:, None, :-1] / spread, 0.0)
                total += float(np.minimum(np.square(rest), 100.0).sum())
        return total

    names = task.card.fact_names
    binary, medians = [], []
    for column in range(begun.shape[1]):
        values = begun[:, column]
        if set(np.unique(values)) == {0.0, 1.0}:
            binary.append(Split(names[column], 0.5))
        elif column in task.card.matched and np.ptp(values) > 1e-9:
            medians.append(Split(names[column], float(np.median(values))))

    def big_enough(split: Split) -> bool:
        above = split.above(begun, names)
        return min(int(above.sum()), int((~above).sum())) >= FEWEST_IN_PHASE

    for candidates, needed in ((binary, np.inf), (medians, ALIKE * within(np.ones(len(begun), np.bool_)))):
        scores = [(within(split.above(begun, names)), split) for split in candidates if big_enough(split)]
        if scores:
            best = min(scores, key=lambda pair: pair[0])
            return best[1] if best[0] <= needed else None
    return None


def _of_phase(
    task: Task, tried: Sequence[_Tried], where: NDArray[np.bool_], spread: NDArray[np.float64]
) -> tuple[Effect, ...]:
    if isinstance(task.action_space, Discrete):
        return tuple(_effect(task, item.name, item.steps, item.mean(where), spread) for item in tried)
    effects = []
    for up, down in zip(tried[::2], tried[1::2], strict=True):
        effects.append(_effect(task, up.name, up.steps, (up.mean(where) - down.mean(where)) / 2, spread))
    return tuple(effects)


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
    for steps in HOLDS if isinstance(space, Discrete) else HOLDS[-1:]:
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
        batch.restore(range(len(starts)), starts)
        self.begun = batch.facts().copy()
        """(n, n_facts) of the snapshots."""
        if self._neutral is not None:
            self.baseline = f"{task.card.actions[self._neutral].name} throughout"
        else:
            self.baseline = "the agent's own action"

    def run(self, choose: Callable[[int, Actions], Actions]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Facts with the summed reward (looks, n, n_facts + 1), and whether the episode was under way (looks, n)."""
        indices = range(len(self._starts))
        observations = self._batch.restore(indices, self._starts)
        alive = np.ones(len(self._starts), np.bool_)
        facts, lived, summed = [], [], np.zeros(len(self._starts))
        for t in range(max(LOOKS)):
            own = self._space.clip(self._policy.decide(observations, self._quiet).actions)
            if self._neutral is not None:
                own = np.full_like(own, self._neutral)
            step = self._batch.step(choose(t, own))
            self.cost += int(alive.sum())
            summed += np.where(alive, step.rewards, 0.0)
            if t + 1 in LOOKS:
                facts.append(np.concatenate([self._batch.facts(), summed[:, None]], axis=1))
                lived.append(alive.copy())
            observations = step.observations.copy()
            alive &= ~step.done
            over = np.flatnonzero(step.done)
            if len(over):  # an episode that is over must not be stepped: it goes back and counts no more
                observations[over] = self._batch.restore(over, [self._starts[i] for i in over])
        return np.stack(facts), np.stack(lived)


def _effect(task: Task, name: str, steps: int, mean: NDArray[np.float64], spread: NDArray[np.float64]) -> Effect:
    size = np.abs(mean[:, :-1] / spread).max(axis=0)
    changes = []
    for column in np.argsort(-size, kind="stable")[:SHOWN]:
        fact = task.card.facts[column]
        values = tuple(round(float(value), fact.decimals) + 0.0 for value in mean[:, column])
        if any(values):
            changes.append((fact.name, values))
    return Effect(name, steps, tuple(changes), round(float(mean[-1, -1]), 3) + 0.0)


def describe_effects(effects: Effects | None) -> str:
    """The effects as a small table for a prompt."""
    if effects is None:
        return "Not measured: the step budget is too small."
    looks = f"{', '.join(map(str, LOOKS[:-1]))} and {LOOKS[-1]}"
    if effects.baseline.startswith("the agent") and any("+" in effect.action for effect in effects.effects):
        how = (
            f"Mean change {looks} steps later when the amount named is added to the agent's own action for "
            f"{HOLDS[-1]} steps (its negative has the opposite effect on average)"
        )
    else:
        how = f"Mean change {looks} steps later when an action is held for some steps, instead of {effects.baseline}"
    lines = [f"{how}. `reward` is the change of the reward summed over {LOOKS[-1]} steps."]
    for phase in effects.phases or (Phase("", effects.states, effects.effects),):
        where = f"Where {phase.label}" if phase.label else "Over all"
        lines.append(f"{where} ({phase.states} states tried):")
        for effect in phase.effects:
            changes = effect.changes[: SHOWN if len(phase.effects) <= MANY else SHOWN - 1]
            parts = [f"{name} {' '.join(f'{value:+g}' for value in values)}" for name, values in changes]
            parts += [f"reward {effect.reward:+.2g}"] if effect.reward else []
            held = f" for {effect.steps}" if _holds_differ(effects) else ""
            lines.append(f"- {effect.action}{held}: {'; '.join(parts) or 'nothing worth naming'}")
    return "\n".join(lines)


def _holds_differ(effects: Effects) -> bool:
    """Whether actions were held for different numbers of steps, which must then be told."""
    return len({effect.steps for effect in effects.effects}) > 1
