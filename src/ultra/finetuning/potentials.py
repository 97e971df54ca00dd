"""Potential-based shaping: what a potential phi(s) adds to the reward cannot change which policy is best.

    r'(t) = r(t) + gamma * phi_{t+1}(s_{t+1}) - phi_t(s_t),   phi_t(s) = beta_t * scale * phi(s)

With phi = 0 after a terminal state, the return from any state changes by phi of that state alone (Ng, Harada and
Russell, ICML 1999), and it still does while the strength beta falls, if each state's potential is taken once, when
the state is reached (Devlin and Kudenko, AAMAS 2012). At a time limit the potential of the last state counts in
full: PPO's target goes on with the critic's value there, which holds -phi of that state like any other's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.policies.policy import Policy
from ultra.ppo.guidance import Guidance, Intervention, LossTerm
from ultra.programs.compiled import CompiledPotential
from ultra.programs.tape import Frame
from ultra.tasks.batch import Facts, Indices, Observations, Snapshot, Step
from ultra.tasks.spaces import Actions

SMALLEST = 1e-9
"""Spreads below this, relative to the magnitude of what spreads, count as none."""


@dataclass(frozen=True, eq=False)
class ScaledPotential:
    """A potential in units of the task's rewards.

    Attributes:
        potential: checked against the task.
        factor: what its values are multiplied by.
        low, high: its values are cut to this range, so that a state unlike any visited one cannot upset the critic.
    """

    potential: CompiledPotential
    factor: float
    low: float
    high: float

    def __call__(self, facts: Facts) -> NDArray[np.float64]:
        """phi (n,) of states with these facts (n, n_facts); where it is no number, its lowest value."""
        values = evaluate(self.potential, facts)
        within: NDArray[np.float64] = np.clip(np.where(np.isnan(values), self.low, values), self.low, self.high)
        return self.factor * within


@dataclass(frozen=True)
class Potentials:
    """A sum of potentials."""

    parts: tuple[ScaledPotential, ...]

    def __call__(self, facts: Facts) -> NDArray[np.float64]:
        """phi (n,) of states with these facts (n, n_facts)."""
        total: NDArray[np.float64] = np.sum([part(facts) for part in self.parts], axis=0)
        return total


def evaluate(potential: CompiledPotential, facts: Facts) -> NDArray[np.float64]:
    """The potential's own values (n,) for facts (n, n_facts), in its own units, perhaps not finite."""
    none = np.zeros((len(facts), 0))
    values = potential.tape.run(Frame(facts, facts, facts, none, none, none, none))[potential.place]
    return np.broadcast_to(np.asarray(values, np.float64), len(facts))


def scaled(
    potentials: Sequence[CompiledPotential],
    episodes: Sequence[tuple[Facts, NDArray[np.float64]]],
    gamma: float,
    reject: Callable[[str, str], None] = lambda name, reason: None,
) -> Potentials | None:
    """The potentials that are of use in visited states, scaled to the rewards there.

    What a potential adds to the rewards, gamma * phi(s') - phi(s) less its mean, gets the spread of the rewards. Where
    they are constant, it gets their size; where there are none at all, phi itself gets a spread of 1. Several
    potentials share that. Values are cut to the visited range, widened by its own width on both sides.

    Args:
        potentials: checked against the task.
        episodes: facts (T+1, n_facts) and rewards (T,) of each.
        gamma: discount.
        reject: called with the name of each unusable potential and the reason.

    Returns:
        Their sum; None if none is of use.
    """
    rewards = np.concatenate([rewards for _, rewards in episodes])
    size = _spread(rewards) or float(np.abs(rewards).mean())
    useful: list[ScaledPotential] = []
    for potential in potentials:
        values = [evaluate(potential, facts) for facts, _ in episodes]
        together = np.concatenate(values)
        if not np.isfinite(together).all():
            bad = int((~np.isfinite(together)).sum())
            reject(potential.potential.name, f"it is not finite in {bad} of {len(together)} visited states")
            continue
        changes = np.concatenate([gamma * row[1:] - row[:-1] for row in values])
        spread = _spread(changes) if size else _spread(together)
        if not _spread(together) or not spread:
            reject(potential.potential.name, "it is the same in all visited states")
            continue
        low, high = float(together.min()), float(together.max())
        room = high - low
        useful.append(ScaledPotential(potential, (size or 1.0) / spread, low - room, high + room))
    shares = [replace(item, factor=item.factor / len(useful)) for item in useful]
    return Potentials(tuple(shares)) if shares else None


def _spread(values: NDArray[np.float64]) -> float:
    """The standard deviation; exactly 0 where it is rounding alone."""
    found = float(values.std())
    return found if found > SMALLEST * float(np.abs(values).max(initial=0.0)) else 0.0


class ShapedGuidance:
    """Adds potential-based shaping to what another guidance does.

    Args:
        inner: guidance to add shaping to.
        potentials: sum of potentials, in units of the task's rewards.
        gamma: PPO's discount, on which the invariance rests.
        environments: number of parallel environments.
        strength: beta at the start of training.
        anneal_until: training progress at which beta reaches zero, linearly.
    """

    def __init__(
        self,
        inner: Guidance,
        potentials: Potentials,
        gamma: float,
        environments: int,
        *,
        strength: float = 1.0,
        anneal_until: float = 1.0,
    ) -> None:
        self._inner, self._potentials, self._gamma = inner, potentials, gamma
        self._strength, self._anneal_until = strength, anneal_until
        self._beta = strength
        self._held = np.zeros(environments)
        self._fresh = np.ones(environments, np.bool_)
        self._shaping = np.zeros(environments)
        self._counts = np.zeros(2)

    @property
    def needs_facts(self) -> bool:
        """As long as anything is held of a potential, or the other guidance needs them."""
        return self._beta > 0 or bool(self._held.any()) or self._inner.needs_facts

    @property
    def drops_replaced(self) -> bool:
        """As the other guidance."""
        return self._inner.drops_replaced

    @property
    def loss(self) -> LossTerm | None:
        """As the other guidance."""
        return self._inner.loss

    def progress(self, fraction: float, policy: Policy) -> None:
        """Anneal beta; what states hold of their potentials stays until they are left."""
        self._beta = self._strength * max(0.0, 1.0 - fraction / self._anneal_until)
        self._inner.progress(fraction, policy)

    def start(self, indices: Indices) -> list[Snapshot | None]:
        """Episodes begin: the potential of their first state is taken when its facts are known."""
        self._fresh[indices] = True
        return self._inner.start(indices)

    def act(self, observations: Observations, facts: Facts | None, actions: Actions) -> Intervention:
        """As the other guidance."""
        if facts is not None and self._fresh.any():
            self._held[self._fresh] = self._beta * self._potentials(facts[self._fresh])
        elif facts is None:
            self._held[self._fresh] = 0.0
        self._fresh[:] = False
        return self._inner.act(observations, facts, actions)

    def observe(self, step: Step, facts: Facts | None) -> None:
        """Take the potentials of the states that the step led to: 0 where the task ended, not at a time limit."""
        reached = np.zeros_like(self._held)
        if facts is not None and self._beta > 0:
            reached = np.where(step.terminated, 0.0, self._beta * self._potentials(facts))
        self._shaping = self._gamma * reached - self._held
        self._held = reached
        self._inner.observe(step, facts)

    def reward(self, facts: Facts | None, actions: Actions, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """The other guidance's rewards, and the change of the potentials."""
        self._counts += (len(rewards), np.abs(self._shaping).sum())
        return self._inner.reward(facts, actions, rewards) + self._shaping

    def metrics(self) -> dict[str, float]:
        """The other guidance's, beta, and the mean size of what is added to a step's reward."""
        steps, added = self._counts
        self._counts = np.zeros(2)
        own = {"guidance/potential_strength": self._beta, "guidance/shaping": added / steps if steps else 0.0}
        return self._inner.metrics() | own

    def state(self) -> dict[str, Any]:
        """What the present states hold of their potentials."""
        return {"held": self._held.tolist(), "fresh": self._fresh.tolist(), "inner": self._inner.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self._held[:], self._fresh[:] = state["held"], state["fresh"]
        self._inner.load_state(state["inner"])
