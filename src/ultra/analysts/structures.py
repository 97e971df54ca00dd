"""What `search` proposes: small programs around the agent's own action, whose numbers the simulator chooses.

Nothing is known of these programs before they are raced (`ultra.tuning.race`). Where actions are continuous: offsets
of the actuators and gains on the agent's own action, on the posture and on the joints (`ultra.analysts.corrections`),
then single pushes under a guard. Where they are discrete: `ultra.analysts.steering`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from ultra.analysts.base import Case
from ultra.analysts.corrections import OFFSET, Corrections
from ultra.analysts.posture import Body
from ultra.analysts.steering import steering
from ultra.programs.records import MAX_REGISTERS, Assignment, Parameter, Program
from ultra.tasks.spaces import Continuous
from ultra.tuning.entrants import Proposal

SOURCE = "search"
SATURATED = 0.02
"""Share of actions beyond their bounds from which on changes after clipping are worth a program of their own."""
QUANTILES = (0.1, 0.5, 0.9)
"""A threshold lies between the outer quantiles of its fact, and the search for it begins at the middle one."""
FIRST_PUSH = 0.2
"""Size of a push at first, as a share of half the actuator's range."""
TRIES = 20
"""Draws in a row that give nothing new before there is nothing more to draw."""


def search_proposals(case: Case, count: int) -> list[Proposal]:
    """The first proposals, the most sensible first.

    Args:
        case: policy, episodes and card.
        count: most proposals.
    """
    return list(islice(structures(case), count))


def structures(case: Case) -> Iterator[Proposal]:
    """Proposals until there is nothing more to draw, the most sensible first; no name comes twice."""
    programs = _corrections(case) if isinstance(case.task.action_space, Continuous) else steering(case)
    for program in programs:
        yield Proposal(program, SOURCE)


def _corrections(case: Case) -> Iterator[Program]:
    """Programs that change all actuators; then single pushes."""
    body = Body(case)
    write = Corrections(body)
    pitch, height, speed = body.pitch(), body.height(), body.speed()
    turning = None if pitch is None else body.rate(pitch)
    rising = None if height is None else body.rate(height)
    posture = body.signals((pitch, height, speed) if pitch is not None else body.telling(3))
    yield write.own_action(clipped=False)
    if body.saturated >= SATURATED:
        yield write.own_action(clipped=True)
    if posture:
        yield write.feedback("posture", posture[:1])
    yield write.offsets()
    if len(posture) > 1:
        yield write.feedback("posture_gains", posture)
    if turning is not None:
        yield write.feedback("posture_and_turning", body.signals((pitch, turning)))
    phase = rising if rising is not None else turning
    if phase is not None:
        yield write.phases(body.card.fact_names[phase])
    joints = write.joints()
    if joints is not None:
        yield joints
    if len(body.card.actions) <= MAX_REGISTERS:
        yield write.smoothing()
    if not case.ends and len(body.card.actions) > 1:
        yield write.rhythm()
    yield from _pushes(case, body)


def _pushes(case: Case, body: Body) -> Iterator[Program]:
    """One kind of actuator up or down where a fact lies on one side of a threshold, in random order."""
    columns = [int(column) for column in case.task.card.matched if body.signal(int(column)) is not None]
    actions = [action.name for action in case.task.card.actions]
    seen: set[tuple[int, int, str]] = set()
    misses = 0
    while columns and misses < TRIES:
        place, column = int(case.rng.integers(len(body.groups))), int(case.rng.choice(columns))
        side, size = str(case.rng.choice((">=", "<"))), float(case.rng.choice((-FIRST_PUSH, FIRST_PUSH)))
        low, middle, high = (float(f"{x:.4g}") for x in np.quantile(body.facts[:, column], QUANTILES))
        if (place, column, side) in seen or not low < middle < high:
            misses += 1
            continue
        seen.add((place, column, side))
        misses = 0
        group, fact = body.groups[place], case.task.card.fact_names[column]
        taken = {*actions, *case.task.card.fact_names}
        push, edge = (name if name not in taken else f"{name}_" for name in ("push", "threshold"))
        width = OFFSET * group.unit
        yield Program(
            f"push_{group.label}_{fact}_{'above' if side == '>=' else 'below'}"[:80],
            (Assignment(f"{fact} {side} {edge}", add=tuple((actions[k], push) for k in group.columns)),),
            f"pushes {group.label} where {fact} is {'above' if side == '>=' else 'below'} a threshold",
            (Parameter(push, size * group.unit, -width, width), Parameter(edge, middle, low, high)),
        )
