"""Grafting: a program becomes part of a policy's network, exactly or nearly so.

- Gains on the agent's own action and constants are a scale and a bias of the last layer: exact.
- Gains on facts that are linear in the observation are units in the linear part of tanh (nearly exact), or pairs of
  ReLU units (exact).
- Constants that are added where a guard holds, an intersection of half-spaces, take one unit of the first hidden layer
  for each half-space, and one of every later layer. Discrete actions are taken by their logits.

So the policy that comes out is the very one that verification tried; it acts without ULTRA, and can be trained on or
exported. Which facts can be read off the observation, and whether the network does what the program says, is judged in
visited states that nothing was fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ultra.adoption.reading import OFF, Reading, ReadingError
from ultra.adoption.units import ACTIVATIONS, Line, Step, with_line, with_outputs, with_steps
from ultra.common.errors import UltraError
from ultra.policies.policy import Params, Policy
from ultra.programs.affine import Affine, Form, HalfSpace, NotAffineError
from ultra.programs.compiled import Controller, Effect
from ultra.programs.executor import Executor
from ultra.programs.tape import frame
from ultra.tasks.batch import Facts, Observations
from ultra.tasks.spaces import Continuous, Discrete

MARGIN = {"tanh": 1e-4, "relu": 1e-3}
"""Width of the step at a half-space's border, as a share of the deviation of its form. A step of ReLU units is a
difference, which loses digits where it is narrow."""
LOGIT = 30.0
"""What is added to the logit of an action that a rule takes: no noise that is drawn overcomes it. Twice that where an
earlier rule holds in the same state, and so on."""
MOST_OVERLAPPING = 8
"""Rules of discrete actions that may hold in the same state."""
AGREE = 1e-3
"""Continuous actions agree if they differ by at most this share of half their range."""


class GraftError(UltraError):
    """A program that cannot become part of a network; the message says what stands in the way."""


@dataclass(frozen=True, eq=False)
class _Push:
    """What is added to the actor's outputs where all half-spaces hold."""

    halves: list[HalfSpace]
    amount: NDArray[np.float64]


def graft(
    policy: Policy,
    controller: Controller,
    names: Sequence[str],
    observations: Observations,
    facts: Facts,
    episodes: NDArray[np.int64] | None = None,
) -> Policy:
    """The policy with a program in its network.

    Args:
        policy: what the program was followed on top of.
        controller: the program, with values for its parameters.
        names: of the facts.
        observations: (n, observation_size) of visited states.
        facts: (n, n_facts) of the same states.
        episodes: (n,) the number of each state's episode, so that whole episodes are held out.

    Raises:
        GraftError: if the program cannot be expressed, there are too few states to judge by, or the result does not do
            in the states held out what the program says.
    """
    space = policy.architecture.action_space
    try:
        if isinstance(space, Continuous):
            outputs, pushes = _continuous(controller, facts.shape[1], space)
        else:
            outputs, pushes = [], _discrete(controller, facts, space)
    except NotAffineError as error:
        raise GraftError(f"the program cannot be part of a network: {error}") from None
    params = policy.params
    if outputs:
        matrix = np.stack([form.gains for form in outputs])
        params = with_outputs(params, matrix, np.array([form.constant for form in outputs]))
    for push in pushes:
        if not push.halves:
            params = with_outputs(params, np.eye(space.outputs), push.amount)
    lines = [column for column, form in enumerate(outputs) if form.weights.any()]
    guarded = [push for push in pushes if push.halves]
    judged = np.ones(len(observations), dtype=np.bool_)  # where nothing is fitted, nothing is held out
    if lines or guarded:
        check_takes_units(policy, only_lines=not guarded)
        try:
            reading = _reading(policy, names, observations, facts, episodes)
            for column in lines:
                line = _line(reading, outputs[column], facts)
                params = with_line(params, line, np.eye(space.outputs)[column], policy.architecture.activation)
            for push in guarded:
                params = _with_push(params, policy, reading, push, facts)
        except ReadingError as error:
            raise GraftError(str(error)) from None
        judged = reading.held_out
    result = _of(policy, params)
    _check(policy, result, controller, observations[judged], facts[judged], len(guarded))
    return result


def check_takes_units(policy: Policy, only_lines: bool = False) -> None:
    """Check that guards and gains on facts can become part of a policy's network at all.

    Args:
        policy: the policy.
        only_lines: whether there are gains on facts alone, which a network without hidden layers takes as well.

    Raises:
        GraftError: if they cannot.
    """
    shape = policy.architecture
    if shape.image is not None or shape.shared:
        raise GraftError("networks for images, and those that share layers with the critic, take no further units")
    if not shape.hidden:
        if only_lines:
            return
        raise GraftError("a network without hidden layers takes no rules with guards")
    if shape.activation not in ACTIVATIONS:
        raise GraftError(f"networks of {shape.activation} units take no further units, those of tanh and ReLU do")


def readable_facts(
    policy: Policy, observations: Observations, facts: Facts, episodes: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """Which facts (n_facts,) a policy's network can read: affine forms of its observation.

    Raises:
        GraftError: if it takes no units, or there are too few states to tell.
    """
    check_takes_units(policy)
    try:
        return _reading(policy, [str(k) for k in range(facts.shape[1])], observations, facts, episodes).readable
    except ReadingError as error:
        raise GraftError(str(error)) from None


def _reading(
    policy: Policy, names: Sequence[str], observations: Observations, facts: Facts, episodes: NDArray[np.int64] | None
) -> Reading:
    """How facts are read off what the first layer sees."""
    shift, factor, clip = (np.asarray(array, np.float64) for array in policy.normalizer.arrays())
    return Reading(np.clip((observations - shift) * factor, -clip, clip), facts, names, episodes)


def _continuous(controller: Controller, facts: int, space: Continuous) -> tuple[list[Form], list[_Push]]:
    """What each output becomes everywhere, and what is added to the outputs where guards hold."""
    affine, program = Affine(controller, facts, space.size), controller.program
    outputs = [Form(np.zeros(facts), gains, 0.0) for gains in np.eye(space.size)]
    pushes: dict[int, _Push] = {}
    for effect in program.effects:
        column = effect.column
        halves = affine.half_spaces(effect.when)
        if halves is None:
            continue
        value = affine.form(effect.value)
        if np.isnan(value.constant):
            continue
        if not np.isfinite([value.constant, *value.weights, *value.gains]).all():
            raise NotAffineError(f"what action {column} is given is infinite")
        if not halves:
            outputs[column] = outputs[column].plus(value) if effect.adds else value
            for push in [] if effect.adds else pushes.values():
                push.amount[column] = 0.0  # what stood there is replaced
            continue
        change = value if effect.adds else value.plus(outputs[column], -1.0)
        if not effect.adds and any(push.amount[column] for push in pushes.values()):
            raise NotAffineError(
                f"where a guard holds, action {column} replaces what an earlier guarded rule made of it"
            )
        if not change.is_constant:
            done = "adds facts or actions to" if effect.adds else "replaces"
            raise NotAffineError(f"where a guard holds, it {done} action {column} instead of adding a constant")
        push = pushes.setdefault(effect.when, _Push(halves, np.zeros(space.size)))
        push.amount[column] += change.constant
    return outputs, [push for push in pushes.values() if push.amount.any()]


def _discrete(controller: Controller, facts: Facts, space: Discrete) -> list[_Push]:
    """What is added to the logits where guards hold; later rules are stronger where both hold."""
    program, affine = controller.program, Affine(controller, facts.shape[1], space.n)
    settings = np.broadcast_to(controller.settings, (len(facts), len(controller.settings)))
    values = program.rules.run(frame(facts)._replace(settings=settings))
    pushes: list[_Push] = []
    earlier: list[tuple[NDArray[np.bool_], Effect, int]] = []
    for effect in program.effects:
        halves = affine.half_spaces(effect.when)
        if halves is None:
            continue
        held = np.broadcast_to(values[effect.when], len(facts))
        ranks = [rank for where, other, rank in earlier if _competes(effect, other) and (where & held).any()]
        rank = max(ranks, default=-1) + 1
        if rank >= MOST_OVERLAPPING:
            raise NotAffineError(f"more than {MOST_OVERLAPPING} rules for the same action hold in the same state")
        earlier.append((held, effect, rank))
        pushes.append(
            _Push(halves, LOGIT * 2.0**rank * _direction(effect, int(affine.form(effect.value).constant), space))
        )
    return pushes


def _competes(effect: Effect, other: Effect) -> bool:
    """Whether two effects choose the same part of an action, or one of them the whole action."""
    return effect.column == other.column or min(effect.column, other.column) < 0


def _direction(effect: Effect, choice: int, space: Discrete) -> NDArray[np.float64]:
    """Which logits (outputs,) a choice raises (or, for a switch that is off, lowers)."""
    direction = np.zeros(space.outputs)
    if not space.parts:
        direction[choice] = 1.0
        return direction
    chosen = enumerate(space.split(np.array([choice]))[0].tolist()) if effect.column < 0 else [(effect.column, choice)]
    for part, option in chosen:
        first, size = sum(space.parts[:part]), space.parts[part]
        direction[first + (option if size > 1 else 0)] = 1.0 if size > 1 or option else -1.0
    return direction


def _line(reading: Reading, form: Form, facts: Facts) -> Line:
    weights, bias = reading.form(form.weights)
    visited = _along(facts, form.weights)[~reading.held_out]
    low, high = float(visited.min()), float(visited.max())
    return Line(weights, bias, (low + high) / 2, max((high - low) / 2, 1e-6))


def _along(facts: Facts, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values (n,) of a form, whatever the facts that it does not name."""
    named = np.flatnonzero(weights)
    values: NDArray[np.float64] = facts[:, named] @ weights[named]
    return values


def _with_push(params: Params, policy: Policy, reading: Reading, push: _Push, facts: Facts) -> Params:
    """The network with a guarded push."""
    activation = policy.architecture.activation
    if len(push.halves) > 1 and len(params["actor"]) < 3:
        raise GraftError("guards of several comparisons need two hidden layers")
    steps = []
    for half in push.halves:
        weights, bias = reading.form(half.weights)
        margin = MARGIN[activation] * max(float(_along(facts, half.weights).std()), 1e-6)
        bias += half.constant + (margin if half.closed else -margin)
        steps.append(Step(weights / margin, bias / margin))
    return with_steps(params, steps, push.amount, activation)


def _of(policy: Policy, params: Params) -> Policy:
    """A policy with other weights, whose hidden layers may have become wider."""
    shape = policy.architecture
    widths = tuple(int(layer["b"].shape[0]) for layer in params["actor"][:-1])
    if widths == shape.hidden:
        return replace(policy, params=params)
    critic = shape.hidden if shape.critic_hidden is None else shape.critic_hidden
    return replace(policy, architecture=replace(shape, hidden=widths, critic_hidden=critic), params=params)


def _check(
    before: Policy,
    after: Policy,
    controller: Controller,
    observations: Observations,
    facts: Facts,
    guards: int,
) -> None:
    """Compare with what the program does, in states to which nothing was fitted."""
    space = before.architecture.action_space
    quiet = np.zeros((len(observations), space.size), np.float32)
    executor = Executor([controller.program], space, len(observations))
    executor.assign(slice(None), 0, controller.settings)
    expected = space.clip(executor.act(facts, before.decide(observations, quiet).actions)[0])
    found = space.clip(after.decide(observations, quiet).actions)
    if isinstance(space, Continuous):
        off = (np.abs(found - expected) > AGREE * space.half_range).any(axis=1)
    else:
        off = found != expected
    share = float(off.mean())
    if share > OFF * max(1, guards):
        raise GraftError(f"in {share:.1%} of the {len(off):,} states held out the network would do something else")
