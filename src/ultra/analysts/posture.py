"""What a card and a few episodes tell of a body: its posture, its joints, and which actuators are alike.

Facts are found by name, unit and meaning where these say enough, and otherwise by what they correlate with in the
episodes; nothing here knows any task.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ultra.analysts.base import Case
from ultra.collection.trajectories import Trajectory
from ultra.tasks.card import Card, Fact
from ultra.tasks.spaces import Continuous

SIDES = frozenset({"left", "right", "l", "r"})
"""Words of a name that tell two mirrored actuators apart. Front and back legs do different work."""
FILLERS = frozenset({"torque", "motor", "actuator", "control", "joint", "angle", "position", "force"})
"""Words that say what kind of quantity a name stands for, not which part of the body."""
DERIVATIVE = 0.8
"""A fact is the rate of another one if it correlates with its change from step to step by so much."""
JUMPS = 0.02
"""Share of the largest changes, on either side, that do not count: a ball that is served anew has not moved there."""
AHEAD = 24
"""Steps over which a fall of the critic's estimate counts as trouble."""


@dataclass(frozen=True)
class Group:
    """Actuators that share their numbers.

    Attributes:
        label: part of parameter names, for instance `thigh`.
        columns: of the actions.
        unit: half the range of the actuators.
        activity: standard deviation of the agent's most likely action, in units.
    """

    label: str
    columns: tuple[int, ...]
    unit: float
    activity: float


@dataclass(frozen=True)
class Signal:
    """A fact with its usual value and deviation, by which it is standardised."""

    name: str
    mean: float
    spread: float

    def __str__(self) -> str:
        """As an expression without unit."""
        if not self.mean:
            return f"{self.name} / {self.spread:.4g}"
        return f"({self.name} {'-' if self.mean > 0 else '+'} {abs(self.mean):.4g}) / {self.spread:.4g}"


class Body:
    """Posture, joints and actuators of a task with continuous actions, from the card and the episodes.

    Attributes:
        facts: (n, n_facts) of all visited states.
        agent: (n, dim): the agent's most likely actions in them, not clipped.
        groups: of actuators, in the order of the actions.
    """

    def __init__(self, case: Case) -> None:
        space = case.task.action_space
        assert isinstance(space, Continuous)
        self.card, self._space = case.task.card, space
        self._episodes = list(case.episodes)
        self.facts = np.concatenate([episode.facts[:-1] for episode in self._episodes])
        observations = np.concatenate([episode.observations[:-1] for episode in case.episodes])
        quiet = np.zeros((len(observations), space.size), np.float32)
        self.agent = case.policy.decide(observations, quiet).actions
        self.groups = _groups(self.card, space, self.agent)

    def bounds(self, group: Group) -> tuple[float, float]:
        """Lowest and highest value of the actuators of a group."""
        return self._space.low[group.columns[0]], self._space.high[group.columns[0]]

    @property
    def saturated(self) -> float:
        """Share of the agent's most likely actions beyond their bounds."""
        low, high = self._space.bounds
        return float(((self.agent < low) | (self.agent > high)).mean())

    def signal(self, column: int) -> Signal | None:
        """A fact, standardised; None if it never changes."""
        values = self.facts[:, column]
        spread = float(values.std())
        if not np.isfinite(spread) or spread < 1e-6:
            return None
        mean = float(values.mean())
        return Signal(self.card.fact_names[column], 0.0 if abs(mean) < 0.05 * spread else mean, spread)

    def signals(self, columns: Sequence[int | None]) -> list[Signal]:
        """Facts, standardised; those that do not exist or never change are left out."""
        found = [None if column is None else self.signal(column) for column in columns]
        return [signal for signal in found if signal is not None]

    def pitch(self) -> int | None:
        """Column of the lean of the root body."""
        return self._best(("rad",), r"pitch|lean|tilt|root_?y\b|hull_angle|pole_angle|torso_angle", rate=False)

    def height(self) -> int | None:
        """Column of the height of the root body."""
        return self._best(("m",), r"height|(root|torso|body|trunk)_?z\b", rate=False)

    def speed(self) -> int | None:
        """Column of the forward speed."""
        found = self._best(("m/s", ""), r"forward speed|(^|_)x_velocity|rootx_velocity|forward_velocity", rate=True)
        if found is not None:
            return found
        # What is not compared between states is mostly the distance travelled.
        travelled = [k for k, fact in enumerate(self.card.facts) if not fact.match and fact.unit == "m"]
        rates = [self.rate(column) for column in travelled]
        return next((rate for rate in rates if rate is not None), None)

    def rate(self, column: int) -> int | None:
        """Column of the fact that is another one's change per step or second."""
        return rate_of(self._episodes, column)

    def telling(self, count: int) -> list[int]:
        """Columns of the facts that go most with the agent's actions and with falls of the critic's estimate."""
        trouble = np.concatenate([_falls(episode.values) for episode in self._episodes])
        scores = []
        for column in self.card.matched:
            values = self.facts[:, column]
            acted = np.mean([abs(correlation(values, action)) for action in self.agent.T])
            scores.append(acted + abs(correlation(values, trouble)))
        order = np.argsort(-np.array(scores), kind="stable")[:count]
        return [int(self.card.matched[place]) for place in order]

    def joint(self, action: int) -> tuple[int | None, int | None]:
        """Columns of the place and the speed of the joint that an actuator moves."""
        wanted = _words(self.card.actions[action].name) - FILLERS
        place = speed = None
        for column, fact in enumerate(self.card.facts):
            words = _words(fact.name) - FILLERS
            if words == wanted and fact.unit != "rad/s":
                place = column
            elif words - {"velocity", "speed"} == wanted:
                speed = column
        return place, speed

    def _best(self, units: tuple[str, ...], pattern: str, *, rate: bool) -> int | None:
        """The first fact whose name fits, else whose meaning does."""

        def fits(fact: Fact) -> bool:
            moves = bool(re.search("velocity|speed|turning", fact.name)) or fact.unit.endswith("/s")
            return fact.unit in units and moves == rate

        for text in ("name", "meaning"):
            for column, fact in enumerate(self.card.facts):
                if fits(fact) and re.search(pattern, getattr(fact, text)):
                    return column
        return None


def _words(name: str) -> frozenset[str]:
    return frozenset(name.lower().split("_"))


def _groups(card: Card, space: Continuous, agent: NDArray[np.float32]) -> tuple[Group, ...]:
    """Actuators whose names differ in their side alone, and that have the same range, are one group."""
    units = space.half_range
    found: dict[tuple[str, float, float], list[int]] = {}
    for column, action in enumerate(card.actions):
        kept = [word for word in action.name.split("_") if word.lower() not in SIDES]
        found.setdefault(("_".join(kept), space.low[column], space.high[column]), []).append(column)
    spread = np.clip(agent, *space.bounds).std(axis=0) / units
    groups: list[Group] = []
    for (name, _, _), columns in found.items():
        short = "_".join(word for word in name.split("_") if word.lower() not in FILLERS) or name
        label = short if not any(group.label == short for group in groups) else name
        activity = float(spread[columns].mean())
        groups.append(Group(label, tuple(columns), float(units[columns[0]]), activity))
    return tuple(groups)


def _falls(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the critic's estimate falls within the next steps (T,)."""
    steps = len(values) - 1
    later = np.minimum(np.arange(steps) + AHEAD, steps)
    result: NDArray[np.float64] = np.maximum(0.0, values[:steps] - values[later])
    return result


def rate_of(episodes: Sequence[Trajectory], column: int) -> int | None:
    """Column of the fact that is another one's change per step or second."""
    change = np.concatenate([np.diff(episode.facts[:, column]) for episode in episodes])
    change = np.clip(change, *np.quantile(change, (JUMPS, 1 - JUMPS)))
    after = np.concatenate([episode.facts[1:] for episode in episodes])
    middle = after + np.concatenate([episode.facts[:-1] for episode in episodes])
    found = [
        0.0 if other == column else max(correlation(change, after[:, other]), correlation(change, middle[:, other]))
        for other in range(after.shape[1])
    ]
    best = int(np.argmax(found))
    return best if found[best] >= DERIVATIVE else None


def correlation(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Of two series; 0 where one never changes."""
    spread = float(one.std() * other.std())
    return float(((one - one.mean()) * (other - other.mean())).mean()) / spread if spread > 1e-12 else 0.0
