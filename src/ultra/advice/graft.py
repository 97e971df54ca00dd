"""Rules as part of a policy: a few units more in its network do what the rules say, exactly.

A guard that is an intersection of half-spaces needs one unit of the first hidden layer for each of them,
and one of every later layer; the last one adds the rule's change to the action. So the policy that comes
out is the very one that verification tried, acts without ULTRA, and can be trained on or exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ultra.advice.expression import parse
from ultra.advice.halfspaces import HalfSpace, half_spaces
from ultra.advice.records import Rule
from ultra.common.errors import UltraError
from ultra.policies.policy import Params, Policy
from ultra.tasks.spaces import Continuous

EXACT = 1e-4
"""A fact is part of the observation if it is a linear form of it, up to this share of its deviation."""
MARGIN = {"tanh": 1e-4, "relu": 1e-3}
"""Of the activations that take rules: width of the step at a half-space's border, as a share of the deviation of its
form. A step of ReLU units is a difference, which loses digits where it is narrow."""
OFF = 0.005
"""At most this share of the visited states, for each rule, may lie within a border's step, where the network does
something between."""
STEEP = 10.0
"""A unit's input beyond its step: tanh(10) is 1 in single precision."""
LOGIT = 30.0
"""What is added to the logit of an action that a rule takes: no noise that is drawn overcomes it."""


class GraftError(UltraError):
    """Rules that cannot become part of a network; the message says why."""


@dataclass(frozen=True)
class _Unit:
    """A step: where `weights @ normalised observation + bias` leaves the margin around 0."""

    weights: NDArray[np.float64]
    bias: float


def graft(
    policy: Policy,
    rules: Sequence[Rule],
    names: Sequence[str],
    observations: NDArray[np.float32],
    facts: NDArray[np.float64],
) -> Policy:
    """The policy with rules in its network.

    Args:
        policy: with at least one hidden layer of tanh or ReLU units, two for guards of several comparisons.
        rules: each with a plan of one step. Where several guards hold, changes of continuous actions add up; those of
            discrete actions must exclude each other.
        names: of the facts.
        observations: (n, observation_size) of visited states.
        facts: (n, n_facts) of the same states.

    Raises:
        GraftError: if the rules cannot be expressed, or the result does not do what they say.
    """
    check_takes_rules(policy)
    shape = policy.architecture
    reading = _Reading(policy, observations, facts, names)
    guards = [parse(rule.guard, names) for rule in rules]
    held = np.stack([guard.evaluate(facts) for guard in guards], axis=1)
    if not isinstance(shape.action_space, Continuous) and held.sum(axis=1).max() > 1:
        raise GraftError("two of them hold in the same state")
    params = policy.params
    for rule, guard in zip(rules, guards, strict=True):
        halves = None if guard.uses_previous else half_spaces(guard)
        if halves is None:
            raise GraftError(f"guard {guard.text!r} is not a set of linear comparisons")
        params = _with_step(params, [reading.unit(half) for half in halves], _push(rule, policy), shape.activation)
    widths = tuple(int(layer["b"].shape[0]) for layer in params["actor"][:-1])
    critic = shape.hidden if shape.critic_hidden is None else shape.critic_hidden
    result = replace(policy, architecture=replace(shape, hidden=widths, critic_hidden=critic), params=params)
    _check(policy, result, rules, held, observations)
    return result


def check_takes_rules(policy: Policy) -> None:
    """Check that rules can become part of a policy at all.

    Raises:
        GraftError: if they cannot.
    """
    shape = policy.architecture
    if shape.image is not None or shape.shared or shape.form.parts or shape.activation not in MARGIN:
        raise GraftError("only separate networks of tanh or ReLU units, without images or joint actions, take rules")
    if not shape.hidden:
        raise GraftError("a network without hidden layers takes no rules")


def readable_facts(policy: Policy, observations: NDArray[np.float32], facts: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which facts (n_facts,) rules of a policy's network may name: linear forms of its observation.

    Raises:
        GraftError: if it takes no rules.
    """
    check_takes_rules(policy)
    return _Reading(policy, observations, facts, ()).readable


def _push(rule: Rule, policy: Policy) -> NDArray[np.float32]:
    """What a rule adds to the outputs of the actor."""
    space = policy.architecture.action_space
    if rule.plan is None or len(rule.plan) != 1:
        raise GraftError(f"the rule for {rule.guard!r} is a plan of several steps")
    action = rule.plan.expand()[0]
    if isinstance(space, Continuous):
        if not rule.plan.relative:
            raise GraftError(f"the rule for {rule.guard!r} replaces the action instead of changing it")
        return np.asarray(action, np.float32)
    push = np.zeros(space.outputs, np.float32)
    push[int(action)] = LOGIT
    return push


class _Reading:
    """How facts are read off normalised observations."""

    def __init__(
        self, policy: Policy, observations: NDArray[np.float32], facts: NDArray[np.float64], names: Sequence[str]
    ) -> None:
        self._names, self._margin = names, MARGIN[policy.architecture.activation]
        shift, factor, clip = (np.asarray(array, np.float64) for array in policy.normalizer.arrays())
        seen = np.clip((observations - shift) * factor, -clip, clip)
        self._facts = facts
        design = np.column_stack([seen, np.ones(len(seen))])
        self._weights, *_ = np.linalg.lstsq(design, facts, rcond=None)
        off = np.abs(design @ self._weights - facts).max(axis=0)
        self.readable: NDArray[np.bool_] = off <= EXACT * np.maximum(facts.std(axis=0), 1e-9)
        """Facts (n_facts,) that are linear forms of the observation."""

    def unit(self, half: HalfSpace) -> _Unit:
        """A unit that is at its upper end where the half-space is, and at its lower end outside.

        Raises:
            GraftError: if one of its facts is not a linear form of the observation.
        """
        for column in np.flatnonzero(half.weights).tolist():
            if not self.readable[column]:
                raise GraftError(f"fact {self._names[column]!r} cannot be read off the observation")
        weights = self._weights @ half.weights
        if not half.weights.any():
            holds = half.constant > 0 or (half.closed and half.constant == 0)
            return _Unit(np.zeros(len(weights) - 1), 1.0 if holds else -1.0)
        margin = self._margin * max(float((self._facts @ half.weights).std()), 1e-6)
        bias = weights[-1] + half.constant + (margin if half.closed else -margin)
        return _Unit(weights[:-1] / margin, bias / margin)


def _with_step(params: Params, units: list[_Unit], push: NDArray[np.float32], activation: str) -> Params:
    """Weights with units that add `push` to the outputs where all `units` are at their upper ends.

    A tanh unit steps from -1 to 1. A step from 0 to 1 takes two ReLU units: their difference.
    """
    layers = params["actor"]
    if len(units) > 1 and len(layers) < 3:
        raise GraftError("guards of several comparisons need two hidden layers")
    steps = np.stack([np.append(unit.weights, unit.bias) for unit in units], axis=1)
    if activation == "tanh":
        first = STEEP * steps
        signs = np.ones(len(units))
    else:  # relu(x / 2 + 1 / 2) - relu(x / 2 - 1 / 2) goes from 0 to 1 while x goes from -1 to 1
        shift = np.zeros_like(steps)
        shift[-1] = 0.5
        first = np.concatenate([steps / 2 + shift, steps / 2 - shift], axis=1)
        signs = np.repeat([1.0, -1.0], len(units))
    grown = [_wider(layers[0], first[:-1], first[-1])]
    count = len(units)
    for layer in layers[1:-1]:
        # From what `signs` add up to, -count to count (tanh) or 0 to count (ReLU), to one unit: are all there?
        if activation == "tanh":
            column, bias = STEEP * signs, -STEEP * (count - 1)
        else:
            column, bias = signs, -(count - 1.0)
        grown.append(_wider(layer, _below(layer, column[:, None]), np.array([bias])))
        signs, count = np.ones(1), 1
    last = layers[-1]
    rows, base = (np.outer(signs, push / 2), push / 2) if activation == "tanh" else (np.outer(signs, push), 0.0)
    grown.append({"w": _stack(last["w"], rows), "b": jnp.asarray(np.asarray(last["b"]) + base, jnp.float32)})
    return {**params, "actor": grown}


def _below(layer: dict[str, Any], column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of a new unit that sees only the new units of the layer before."""
    return np.concatenate([np.zeros((layer["w"].shape[0], column.shape[1])), column])


def _wider(layer: dict[str, Any], columns: NDArray[np.float64], biases: NDArray[np.float64]) -> dict[str, Any]:
    """A layer with further units (inputs, k), which also has a row, of zeros, for each further input."""
    old = np.asarray(layer["w"], np.float64)
    old = np.concatenate([old, np.zeros((len(columns) - len(old), old.shape[1]))])
    return {
        "w": jnp.asarray(np.concatenate([old, columns], axis=1), jnp.float32),
        "b": jnp.asarray(np.concatenate([np.asarray(layer["b"]), biases]), jnp.float32),
    }


def _stack(weights: Any, rows: NDArray[np.float64]) -> Any:
    return jnp.asarray(np.concatenate([np.asarray(weights), rows]), jnp.float32)


def _check(
    before: Policy, after: Policy, rules: Sequence[Rule], held: NDArray[np.bool_], observations: NDArray[np.float32]
) -> None:
    """Compare with what the rules say, in the visited states."""
    space = before.architecture.action_space
    quiet = np.zeros((len(observations), space.size), np.float32)
    expected = np.array(before.decide(observations, quiet).actions)
    for rule, where in zip(rules, held.T, strict=True):
        assert rule.plan is not None
        action = rule.plan.expand()[0]
        expected[where] = expected[where] + action if isinstance(space, Continuous) else action
    found = after.decide(observations, quiet).actions
    off = np.abs(found - expected) > 1e-3 if isinstance(space, Continuous) else found != expected
    share = float(off.reshape(len(off), -1).any(axis=1).mean())
    if share > OFF * len(rules):
        raise GraftError(f"in {share:.1%} of the visited states the network would do something else")
