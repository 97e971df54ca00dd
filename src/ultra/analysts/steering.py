"""Programs for discrete actions: controllers of what the actions were measured to move, linear rules, switches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ultra.analysts.base import Case
from ultra.analysts.posture import Signal, correlation, rate_of
from ultra.collection.effects import Effects, measure, neutral_action
from ultra.programs.records import Assignment, Parameter, Program
from ultra.tasks.spaces import Discrete

MEASURING = 0.1
"""Share of the allowance for measuring what actions do, at most."""
BAND = (0.5, 0.1, 1.0)
"""A controller rests while its error is below this share of what one push moves: where the search begins, and its
range. Half of it is nearest to the aim, but what moves in whole pixels is sensitive to it."""
LEAD = 12.0
"""Most steps by which an aim's movement is looked ahead."""
AIMS = 2
"""Facts toward which a fact is moved: those that it follows most by itself already."""
BEFORE_LOSS = range(2, 11)
"""So many steps before a loss a controller's context is looked for."""
TELLING = 0.9
"""A sign is telling if so large a share of the states before losses have it."""
RARE_LOSS = 0.1
"""Rewards below zero are losses if they come in at most this share of the steps."""
LINEAR_FACTS = 6
"""Most facts in a linear rule."""
QUANTILES = (0.1, 0.5, 0.9)
"""A threshold lies between the outer quantiles of its fact, and the search for it begins at the middle one."""
TRIES = 20
"""Draws in a row that give nothing new before there is nothing more to draw."""


def steering(case: Case) -> Iterator[Program]:
    """Controllers and linear rules, then switches in random order."""
    facts = np.concatenate([episode.facts[:-1] for episode in case.episodes])
    columns = [int(column) for column in case.task.card.matched if facts[:, column].std() > 1e-9]
    found = measure(case.task, case.policy, case.episodes, int(MEASURING * case.allowance))
    if found is not None:
        case.budget.charge("analyse", found.cost)
        yield from _controllers(case, facts, found, columns)
    linear = _linear(case, facts, columns)
    if linear is not None:
        yield linear
    yield from _switches(case, facts, columns)


def _controllers(case: Case, facts: NDArray[np.float64], effects: Effects, columns: list[int]) -> Iterator[Program]:
    """Move a controlled fact toward another one: raise it, lower it, or rest, perhaps in a context only."""
    neutral = neutral_action(case.task)
    card = case.task.card
    moved = {name for effect in effects.effects for name, _ in effect.changes}
    # What one push leaves behind for good.
    pushes = [
        (effect.action, name, change[-1])
        for effect in effects.effects
        if effect.steps == 1
        for name, change in effect.changes
        if change[-1] != 0
    ]
    contexts = ["", *_before_losses(case, [column for column in columns if card.fact_names[column] not in moved])]
    for name in dict.fromkeys(name for _, name, _ in pushes):
        column = card.fact_names.index(name)
        raising = max(((change, action) for action, fact, change in pushes if fact == name))
        lowering = min(((change, action) for action, fact, change in pushes if fact == name))
        if neutral is None or column not in columns or not lowering[0] < 0 < raising[0]:
            continue
        aims = [
            other
            for other in columns
            if card.facts[other].unit == card.facts[column].unit and card.fact_names[other] not in moved
        ]
        aims = sorted(aims, key=lambda other: -correlation(facts[:, column], facts[:, other]))[:AIMS]
        step = (raising[0] - lowering[0]) / 2
        moves = raising[1], lowering[1], card.actions[neutral].name
        for aim in aims:
            for context in reversed(contexts):
                yield _controller(case, column, aim, context, step, moves)


def _controller(case: Case, column: int, aim: int, context: str, step: float, moves: tuple[str, str, str]) -> Program:
    """Move one fact toward another one, which is looked ahead of, with a dead zone and an offset."""
    card = case.task.card
    taken = {*card.fact_names, *(action.name for action in card.actions)}
    band, offset, lead, brake, gap = (
        name if name not in taken else f"{name}_" for name in ("band", "offset", "lead", "brake", "gap")
    )
    parameters = [Parameter(band, *(float(f"{share * step:.3g}") for share in BAND)),
                  Parameter(offset, 0.0, -2 * step, 2 * step)]  # fmt: skip
    ahead, error = rate_of(case.episodes, aim), f"{card.fact_names[aim]} - {card.fact_names[column]} + {offset}"
    if ahead is not None:
        parameters.append(Parameter(lead, 0.0, -1.0, LEAD))
        error += f" + {lead} * {card.fact_names[ahead]}"
    own = rate_of(case.episodes, column)
    if own is not None:
        parameters.append(Parameter(brake, 0.0, -1.0, LEAD / 2))
        error += f" - {brake} * {card.fact_names[own]}"
    within = f"{context} and " if context else ""
    raising, lowering, neutral = moves
    name = f"{card.fact_names[column]}_to_{card.fact_names[aim]}"
    if context:
        name += f"_{context.split(maxsplit=1)[0]}"
    return Program(
        name[:80],
        (
            Assignment(f"{within}{gap} > {band}", action=raising),
            Assignment(f"{within}{gap} < -{band}", action=lowering),
            Assignment(f"{within}abs({gap}) <= {band}", action=neutral),
        ),
        f"moves {card.fact_names[column]} toward {card.fact_names[aim]}" + (f" where {context}" if context else ""),
        tuple(parameters),
        let=((gap, error),),
    )


def _before_losses(case: Case, columns: list[int]) -> list[str]:
    """Signs of facts that nearly all states shortly before losses have, as guards."""
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
                found.append(f"{names[column]} {sign} 0")
    return found


def _linear(case: Case, facts: NDArray[np.float64], columns: list[int]) -> Program | None:
    """Two actions on both sides of a plane, which begins where the agent itself changes from one to the other."""
    space, card = case.task.action_space, case.task.card
    assert isinstance(space, Discrete)
    if space.n != 2 or not columns:
        return None
    observations = np.concatenate([episode.observations[:-1] for episode in case.episodes])
    acted = case.policy.decide(observations, np.zeros((len(observations), space.size), np.float32)).actions
    if acted.min() == acted.max():
        return None
    centre, spread = facts[:, columns].mean(axis=0), facts[:, columns].std(axis=0)
    inputs = np.column_stack([(facts[:, columns] - centre) / spread, np.ones(len(facts))])
    fitted = np.linalg.lstsq(inputs, 2.0 * acted - 1.0, rcond=None)[0]
    largest = np.abs(fitted).max()
    weights, offset = fitted[:-1] / largest, fitted[-1] / largest
    kept = np.argsort(-np.abs(weights), kind="stable")[:LINEAR_FACTS]
    taken = {*card.fact_names, *(action.name for action in card.actions)}
    names = [f"weight_{card.fact_names[columns[k]]}" for k in kept]
    offset_name, score = (
        ("offset" if "offset" not in taken else "offset_"),
        ("score" if "score" not in taken else "score_"),
    )
    parameters = [Parameter(name, float(weights[k]), -2.0, 2.0) for name, k in zip(names, kept, strict=True)]
    parameters.append(Parameter(offset_name, float(offset), -2.0, 2.0))
    terms = [
        f"{name} * ({Signal(card.fact_names[columns[k]], float(centre[k]), float(spread[k]))})"
        for name, k in zip(names, kept, strict=True)
    ]
    return Program(
        "linear_rule",
        (
            Assignment(f"{score} > 0", action=card.actions[1].name),
            Assignment(f"{score} <= 0", action=card.actions[0].name),
        ),
        "a plane between the two actions, fitted to the agent's own",
        tuple(parameters),
        let=((score, " + ".join([offset_name, *terms])),),
    )


def _switches(case: Case, facts: NDArray[np.float64], columns: list[int]) -> Iterator[Program]:
    """One action where a fact lies on one side of a threshold, and the agent's own elsewhere, in random order."""
    card, rng = case.task.card, case.rng
    taken = {*card.fact_names, *(action.name for action in card.actions)}
    edge = "threshold" if "threshold" not in taken else "threshold_"
    seen: set[tuple[int, int, str]] = set()
    misses = 0
    while columns and misses < TRIES:
        action, column, side = (
            int(rng.integers(len(card.actions))),
            int(rng.choice(columns)),
            str(rng.choice((">=", "<"))),
        )
        low, middle, high = (float(f"{x:.4g}") for x in np.quantile(facts[:, column], QUANTILES))
        if (action, column, side) in seen or not low < middle < high:
            misses += 1
            continue
        seen.add((action, column, side))
        misses = 0
        name, fact = card.actions[action].name, card.fact_names[column]
        where = "above" if side == ">=" else "below"
        yield Program(
            f"{name}_{fact}_{where}"[:80],
            (Assignment(f"{fact} {side} {edge}", action=name),),
            f"{name} where {fact} is {where} a threshold",
            (Parameter(edge, middle, low, high),),
        )
