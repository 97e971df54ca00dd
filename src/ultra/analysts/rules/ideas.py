"""Rules that may be worth a try, before anything is known of them.

Where actions are continuous: a small push of one actuator wherever a fact lies beyond a threshold, or
everywhere. Where they are discrete: actions on both sides of a threshold; and controllers, which move a
fact that the actions control toward another one of the same unit, for what they control is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ultra.advice.expression import parse
from ultra.analysts.base import Case
from ultra.collection.effects import Effects, measure, neutral_action
from ultra.simulation.branches import Habit
from ultra.tasks.plans import Plan, Segment
from ultra.tasks.spaces import Continuous, Discrete

QUANTILES = (0.25, 0.5, 0.75)
"""Thresholds of a fact: these quantiles of its values."""
SIZES = (0.1, 0.2, 0.3)
"""Sizes of a push, as shares of half the actuator's range."""
RAREST = 0.05
"""A guard that holds in a smaller share of states is left out: whatever it does, it is little."""
BANDS = (0.5, 0.4, 0.45, 0.6)
"""A controller rests while its error is below this share of what one push moves: half of it is nearest to the aim, but
what moves in whole pixels is sensitive to it."""
HAIR, CROWDED = 1e-3, 0.005
"""A threshold must not have more than the second share of states nearer than the first one of the fact's deviation, and
not upon it: a joint that rests at its limit is on both sides of it, and no network draws so fine a line."""
AIMS = 2
"""Facts toward which a fact is moved: those that it follows most by itself already."""
BEFORE_LOSS = range(2, 11)
"""So many steps before a loss a controller's context is looked for."""
TELLING = 0.9
"""A sign is telling if so large a share of the states before losses have it."""
RARE_LOSS = 0.1
"""Rewards below zero are losses if they come in at most this share of the steps."""
EVERYWHERE = "1 > 0"
"""A guard that always holds."""
TRIES = 20
"""Draws in a row that give nothing new before there is nothing more to draw."""


@dataclass(frozen=True)
class Idea:
    """Rules that are tried as one: guards, which exclude each other, with plans of one step."""

    parts: tuple[tuple[str, Plan], ...]
    words: str

    @property
    def guards(self) -> frozenset[str]:
        """Of all its rules."""
        return frozenset(guard for guard, _ in self.parts)

    def habits(self, names: tuple[str, ...]) -> tuple[Habit, ...]:
        """As the simulator follows them."""
        return tuple(Habit(parse(guard, names), plan) for guard, plan in self.parts)


def ideas(case: Case, columns: Iterable[int], allowance: int, *, controllers: bool = True) -> Iterator[Idea]:
    """Ideas without end, or until there are no more, the most sensible first; none comes twice.

    Args:
        case: whose episodes show where facts lie.
        columns: facts that guards may name.
        allowance: most steps for measuring what actions do.
        controllers: whether controllers are wanted where they can be made; an adversary has no use for them.
    """
    columns = list(columns)
    if not columns:
        return
    facts = np.concatenate([episode.facts[:-1] for episode in case.episodes])
    seen: set[tuple[tuple[str, Plan], ...]] = set()
    if controllers and isinstance(case.task.action_space, Discrete):
        found = measure(case.task, case.policy, case.episodes, allowance)
        if found is not None:
            case.budget.charge("analyse", found.cost)
            steering = list(_controllers(case, facts, found, columns))
            yield from steering
            if steering:  # of many switches at random some look better for a few episodes
                return
    draw = _push if isinstance(case.task.action_space, Continuous) else _switch
    tries = 0
    while tries < TRIES:
        tries += 1
        idea = draw(case, facts, columns)
        if idea is not None and idea.parts not in seen:
            seen.add(idea.parts)
            tries = 0
            yield idea


def _push(case: Case, facts: NDArray[np.float64], columns: list[int]) -> Idea | None:
    """One actuator a little up or down: above a threshold, below it, against the fact on both sides, or always."""
    space, rng = case.task.action_space, case.rng
    assert isinstance(space, Continuous)
    actuator = int(rng.integers(space.size))
    half = (space.high[actuator] - space.low[actuator]) / 2
    size = float(rng.choice(SIZES) * rng.choice((-1, 1))) * half
    there, opposite = _change(space, actuator, size), _change(space, actuator, -size)
    if rng.random() < 0.25:
        return _idea(case, [(EVERYWHERE, there)])
    sides = _sides(case, facts, columns)
    return None if sides is None else _idea(case, _drawn(sides, there, opposite, rng))


def _switch(case: Case, facts: NDArray[np.float64], columns: list[int]) -> Idea | None:
    """One action above a threshold, and another one or the policy's own below it."""
    space, rng = case.task.action_space, case.rng
    assert isinstance(space, Discrete)
    first, second = (int(action) for action in rng.choice(space.n, size=2, replace=False))
    sides = _sides(case, facts, columns)
    there, elsewhere = Plan((Segment(first),)), Plan((Segment(second),))
    return None if sides is None else _idea(case, _drawn(sides, there, elsewhere, rng))


def _drawn(sides: tuple[str, str], there: Plan, elsewhere: Plan, rng: np.random.Generator) -> list[tuple[str, Plan]]:
    """One plan on one side of a threshold, or both plans."""
    above, below = sides
    options = [[(above, there)], [(below, there)], [(above, there), (below, elsewhere)]]
    return options[int(rng.integers(len(options)))]


def _sides(case: Case, facts: NDArray[np.float64], columns: list[int]) -> tuple[str, str] | None:
    """Guards above and below a threshold that is drawn; None if one hardly ever holds, or states crowd between them."""
    column = int(case.rng.choice(columns))
    values, name = facts[:, column], case.task.card.fact_names[column]
    thresholds = [float(f"{threshold:.4g}") for threshold in np.quantile(values, QUANTILES)]
    if values.min() < 0 < values.max():
        thresholds.append(0.0)
    threshold = float(case.rng.choice(thresholds))
    if not RAREST <= (values >= threshold).mean() <= 1 - RAREST:
        return None
    crowd = (np.abs(values - threshold) <= HAIR * values.std()) & (values != threshold)
    if crowd.mean() > CROWDED:
        return None
    return f"{name} >= {threshold:g}", f"{name} < {threshold:g}"


def _change(space: Continuous, actuator: int, size: float) -> Plan:
    """A relative change of one actuator for one step."""
    change = np.zeros(space.size)
    change[actuator] = size
    return Plan((Segment(tuple(change.tolist())),), relative=True)


def _idea(case: Case, parts: list[tuple[str, Plan]]) -> Idea:
    return Idea(tuple(parts), "; ".join(in_words(case, guard, plan) for guard, plan in parts))


def in_words(case: Case, guard: str, plan: Plan) -> str:
    """A rule whose plan is one step long, for a person."""
    action = case.task.card.describe_action(plan.segments[0].action, case.task.action_space)
    return f"{'add ' if plan.relative else ''}{action} {'always' if guard == EVERYWHERE else f'where {guard}'}"


def _controllers(case: Case, facts: NDArray[np.float64], effects: Effects, columns: list[int]) -> Iterator[Idea]:
    """Rules that move a controlled fact toward another one: raise it, lower it, or rest, perhaps in a context only."""
    neutral = neutral_action(case.task)
    if neutral is None:
        return
    card = case.task.card
    numbers = {action.name: number for number, action in enumerate(card.actions)}
    moved = {name for effect in effects.effects for name, _ in effect.changes}
    # What one push leaves behind for good.
    pushes = [
        (numbers[effect.action], name, change[-1])
        for effect in effects.effects
        if effect.steps == 1
        for name, change in effect.changes
        if change[-1] != 0
    ]
    contexts = ["", *_before_losses(case, [column for column in columns if card.fact_names[column] not in moved])]
    for name in dict.fromkeys(name for _, name, _ in pushes):
        column = card.fact_names.index(name)
        raising = max(((change, action) for action, fact, change in pushes if fact == name), default=(0.0, 0))
        lowering = min(((change, action) for action, fact, change in pushes if fact == name), default=(0.0, 0))
        if column not in columns or not lowering[0] < 0 < raising[0]:
            continue
        aims = [
            other
            for other in columns
            if card.facts[other].unit == card.facts[column].unit and card.fact_names[other] not in moved
        ]
        aims = sorted(aims, key=lambda other: -_correlation(facts[:, column], facts[:, other]))[:AIMS]
        for aim in (card.fact_names[other] for other in aims):
            for context in contexts:
                for band in BANDS:
                    rest = float(f"{band * (raising[0] - lowering[0]) / 2:.3g}")
                    error = f"{context}{aim} - {name}"
                    yield _idea(
                        case,
                        [
                            (f"{error} > {rest:g}", Plan((Segment(raising[1]),))),
                            (f"{error} < {-rest:g}", Plan((Segment(lowering[1]),))),
                            (f"{context}abs({aim} - {name}) <= {rest:g}", Plan((Segment(neutral),))),
                        ],
                    )


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Of two facts over the visited states; 0 where one never changes."""
    spread = float(one.std() * other.std())
    return float(((one - one.mean()) * (other - other.mean())).mean()) / spread if spread else 0.0


def _before_losses(case: Case, columns: list[int]) -> list[str]:
    """Signs of facts that nearly all states shortly before losses have, as the beginnings of guards."""
    names = case.task.card.fact_names
    rows = []
    for episode in case.episodes:
        losses = np.flatnonzero(episode.rewards < 0)
        if len(losses) <= RARE_LOSS * len(episode):
            rows += [episode.facts[t - back] for t in losses.tolist() for back in BEFORE_LOSS if t >= back]
    if not rows:
        return []
    before = np.stack(rows)
    everywhere = np.concatenate([episode.facts for episode in case.episodes])
    found = []
    for column in columns:
        for sign, holds in ((">", np.greater), ("<", np.less)):
            usual = holds(everywhere[:, column], 0).mean()
            if holds(before[:, column], 0).mean() >= TELLING > usual:
                found.append(f"{names[column]} {sign} 0 and ")
    return found
