"""Policies that act on observations alone: in a game, on a robot, in anybody's loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ultra.common.errors import PolicyError
from ultra.programs.executor import Executor
from ultra.programs.tape import PREVIOUS, START
from ultra.tasks.spaces import Actions, Discrete

if TYPE_CHECKING:
    from ultra.policies.policy import Policy


class Actor:
    """A policy in n environments, whose episodes its programs follow.

        actor = policy.actor()
        observation, _ = env.reset()
        actor.reset()
        while ...:
            observation, reward, terminated, truncated, _ = env.step(actor.act(observation))

    Args:
        policy: perhaps with programs.
        size: number of environments n.
    """

    def __init__(self, policy: Policy, size: int = 1) -> None:
        self.policy, self.size = policy, size
        space = policy.architecture.action_space
        self._layers = [Executor([controller.program], space, size) for controller in policy.controllers]
        for layer in self._layers:
            layer.assign(slice(None), 0)

    def reset(self, environments: Sequence[int] | None = None) -> None:
        """Begin new episodes, in all environments or in these: clocks and memory start anew."""
        which: Any = slice(None) if environments is None else np.asarray(environments, np.intp)
        for layer in self._layers:
            layer.begin(which)

    def act(
        self,
        observations: ArrayLike,
        *,
        sampled: bool = False,
        rng: np.random.Generator | None = None,
        facts: ArrayLike | None = None,
    ) -> Actions:
        """One step of all environments.

        Args:
            observations: (n, observation_size), flat as `gymnasium.wrappers.FlattenObservation` gives them, or
                (n, height, width, channels); of a single environment also one observation alone.
            sampled: draw actions instead of taking the most likely ones.
            rng: source of sampled actions.
            facts: (n, n_facts) of the states, for programs that read what the observation does not hold.

        Returns:
            Actions as the environment takes them, one for each observation: whole numbers (n,) or (n, parts) of
            discrete actions, (n, dim) inside the bounds of continuous ones; without n for one observation alone.

        Raises:
            PolicyError: if observations or facts do not fit, or facts are needed that are not in the observation.
        """
        rows, single = batched(self.policy, observations)
        if len(rows) != self.size:
            raise PolicyError(f"{len(rows)} observations for an actor of {self.size} environments: give one for each")
        done = self.policy.decide(rows, _noise(self.policy, len(rows), sampled, rng)).actions
        if self._layers:
            seen = self._facts(rows, facts)
            for layer in self._layers:
                done, _ = layer.act(seen, done)
        space = self.policy.architecture.action_space
        done = space.clip(done)
        if isinstance(space, Discrete) and space.parts:
            done = space.split(done)
        return done[0] if single else done

    def _facts(self, rows: NDArray[Any], given: ArrayLike | None) -> NDArray[np.float64]:
        attached = self.policy.attached
        assert attached is not None
        if given is not None:
            facts = np.atleast_2d(np.asarray(given, np.float64))
            if facts.shape != (len(rows), len(attached.facts)):
                raise PolicyError(
                    f"facts have shape {facts.shape}, but {len(rows)} observations need "
                    f"({len(rows)}, {len(attached.facts)}): {', '.join(attached.facts)}"
                )
            return facts
        check_observed(self.policy)
        if attached.observed is None:  # no fact is needed
            return np.full((len(rows), len(attached.facts)), np.nan)
        return attached.observed.read(attached.facts, rows)


def check_observed(policy: Policy) -> None:
    """Check that a policy's programs read nothing that is not in the observation.

    Raises:
        PolicyError: naming the facts, and what to do.
    """
    missing = missing_facts(policy)
    if not missing:
        return
    if policy.attached is not None and policy.attached.observed is None:
        raise PolicyError(
            f"it was not saved with the policy how {', '.join(missing)} are read off the observation, as its programs "
            "need: `ultra.observe_facts(policy, task)` finds out"
        )
    raise PolicyError(
        f"the policy's programs read facts that are not in the observation: {', '.join(missing)}; teach them to the "
        "network (`ultra refine --programs.adopt distil`), let the policy act within ULTRA's tasks (`ultra evaluate`), "
        "or give the facts"
    )


def missing_facts(policy: Policy) -> list[str]:
    """Facts that a policy's programs read and that cannot be read off the observation."""
    if policy.attached is None:
        return []
    columns = sorted({column for controller in policy.controllers for column in controller.program.facts})
    needed = [policy.attached.facts[column] for column in columns]
    return needed if policy.attached.observed is None else policy.attached.observed.missing(needed)


def act(policy: Policy, observations: ArrayLike, *, sampled: bool, rng: np.random.Generator | None) -> Actions:
    """Actions for states that stand by themselves: `Policy.act`.

    Raises:
        PolicyError: as `Actor.act` does, and for programs that need to know what came before.
    """
    for controller in policy.controllers:
        program = controller.program
        if program.clocks or program.memory or program.reads(PREVIOUS) or program.reads(START):
            names = ", ".join(item.name for item in program.programs)
            raise PolicyError(
                f"the policy's programs ({names}) have clocks or memory, or look back: make an actor for each episode, "
                "`actor = policy.actor()`, `actor.reset()`, `actor.act(observation)`"
            )
    rows, single = batched(policy, observations)
    actions = Actor(policy, len(rows)).act(rows, sampled=sampled, rng=rng)
    return actions[0] if single else actions


def batched(policy: Policy, observations: ArrayLike) -> tuple[NDArray[Any], bool]:
    """Observations as rows (n, observation_size), and whether there was one alone.

    Raises:
        PolicyError: naming both shapes, if they do not fit.
    """
    shape = policy.architecture
    rows = np.asarray(observations, shape.dtype)
    for one in ((shape.observation_size,), *([shape.image] if shape.image else [])):
        if rows.shape == one:
            return rows.reshape(1, -1), True
        if rows.ndim == len(one) + 1 and rows.shape[1:] == one:
            return rows.reshape(len(rows), -1), False
    raise PolicyError(
        f"observations have shape {rows.shape}, but the policy takes ({shape.observation_size},), or "
        f"(n, {shape.observation_size}) for n of them"
    )


def _noise(policy: Policy, count: int, sampled: bool, rng: np.random.Generator | None) -> NDArray[np.float32]:
    if not sampled:
        return np.zeros((count, policy.architecture.action_space.size), np.float32)
    if rng is None:
        raise PolicyError("to sample actions, give their source: rng=np.random.default_rng(SEED)")
    return policy.draw_noise(rng, (count,))
