"""The control: random states, random plans, random rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ultra.advice.records import Advice, CriticalState
from ultra.analysts.base import Case, Proposals
from ultra.analysts.turns import TurnReport
from ultra.tasks.plans import Plan, Segment
from ultra.tasks.spaces import ActionSpace, Discrete


def random_plan(space: ActionSpace, longest: int, rng: np.random.Generator) -> Plan:
    """A plan of one or two random segments, together at most `longest` steps.

    Continuous plans are changes of the policy's own action: a random direction, of random size.
    """
    pieces = 1 if longest < 2 else int(rng.integers(1, 3))
    length = int(rng.integers(pieces, longest + 1))
    cut = int(rng.integers(1, length)) if pieces == 2 else length
    segments = []
    for steps in (cut, length - cut)[:pieces]:
        if isinstance(space, Discrete):
            segments.append(Segment(int(rng.integers(space.n)), steps))
        else:
            half = (np.array(space.high) - np.array(space.low)) / 2
            direction = rng.standard_normal(space.size)
            direction *= rng.random(space.size) < 0.5 if space.size > 1 else 1.0
            if not direction.any():
                direction[rng.integers(space.size)] = rng.choice([-1.0, 1.0])
            change = np.clip(half * direction, -2 * half, 2 * half)
            segments.append(Segment(tuple(round(float(x), 3) for x in change), steps))
    return Plan(tuple(segments), relative=not isinstance(space, Discrete))


class RandomAnalyst:
    """Names uniformly drawn states and suggests random plans."""

    name = "random"

    def identify(self, case: Case) -> list[CriticalState]:
        """Uniformly drawn visited states, none twice."""
        lengths = [len(episode) for episode in case.episodes]
        every = [(e, t) for e, length in enumerate(lengths) for t in range(length)]
        chosen = case.rng.choice(len(every), size=min(case.config.states, len(every)), replace=False)
        drawn = [every[int(i)] for i in chosen]
        return [CriticalState(e, t, float(case.rng.random()), "drawn at random") for e, t in drawn]

    def advise(self, case: Case, states: Sequence[CriticalState]) -> list[Advice]:
        """A random plan with random rewards for each state."""
        return [
            Advice(
                state=state,
                plan=random_plan(case.task.action_space, case.config.plan_steps, case.rng),
                reward_follow=float(case.rng.uniform(-1, 1)),
                reward_taken=float(case.rng.uniform(-1, 1)),
                explanation="a random plan, the control",
                source=self.name,
            )
            for state in states
        ]

    def propose(self, case: Case, states: Sequence[CriticalState], report: TurnReport | None) -> Proposals:
        """Nothing: the control of advice at states."""
        return Proposals()
