"""Distilling: a policy's own network learns to do what a program makes of it, by DAgger.

The teacher is a policy under a program; its labels are free, because the executor says what it would do in every
state that the student visits, with clocks and memory as they would be there. Rounds alternate between visiting states
and supervised regression on all labels so far (Ross, Gordon and Bagnell, AISTATS 2011).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from ultra.common.errors import UltraError
from ultra.policies.policy import Architecture, Params, Policy, actor_critic, create_policy, normalize
from ultra.programs.compiled import Controller
from ultra.programs.executor import Executor
from ultra.tasks.batch import Batch, Observations
from ultra.tasks.spaces import Actions, Continuous, Discrete
from ultra.tasks.task import Task

HELD_OUT = 5
"""Every fifth environment's states are held out."""


@dataclass(frozen=True)
class DistilSettings:
    """How the student is taught.

    Attributes:
        rounds: of visiting states and fitting; the teacher acts in the first, the student in the others.
        environments: most that are stepped together; fewer where the allowance would not last for whole episodes.
        learning_rate: of Adam, where a fit begins; it falls to a tenth before the fit ends.
        minibatch: states for each gradient.
        chunk: gradients between two looks at the held-out loss.
        patience: looks without an improvement after which the learning rate falls, and in the end the fit stops.
        longest: looks after which a fit ends in any case.
    """

    rounds: int = 5
    environments: int = 64
    learning_rate: float = 1e-3
    minibatch: int = 256
    chunk: int = 200
    patience: int = 3
    longest: int = 60


@dataclass(frozen=True)
class DistilRound:
    """What one round gave."""

    steps: int
    """Environment steps taken so far."""
    states: int
    """Labelled states so far."""
    before: float
    """Held-out loss of the student before the fit."""
    after: float
    """Held-out loss after it: the mean squared error in units of half the actions' range, or the cross-entropy."""


@dataclass(frozen=True)
class Distilled:
    """A student and how it learned."""

    policy: Policy
    rounds: tuple[DistilRound, ...]
    steps: int
    """Environment steps used."""


def distil(
    task: Task,
    teacher: Policy,
    controller: Controller,
    student: Policy,
    allowance: int,
    rng: np.random.Generator,
    *,
    settings: DistilSettings | None = None,
    workers: int | None = None,
) -> Distilled:
    """Teach a policy to do what another does under a program.

    The critic is not fitted, the noise and the statistics of the observations stay; layers that actor and critic share
    are fitted. Whether the student is as good as the program is for the caller to find out.

    Args:
        task: where.
        teacher: the policy on top of which the program is followed; it takes its most likely actions.
        controller: the program, with values for its parameters.
        student: begins with these weights: the teacher's own, or `widened` ones.
        allowance: environment steps that may be used; all are, but for a rest.
        rng: draws episodes and minibatches.
        settings: how the student is taught.
        workers: cores for the environments; None for all.

    Raises:
        UltraError: if the allowance is too small for a step in every round.
    """
    settings = settings or DistilSettings()
    size = int(np.clip(allowance // task.time_limit, min(8, settings.environments), settings.environments))
    each = allowance // (size * settings.rounds)
    if each < 1:
        raise UltraError(f"{allowance} steps are too few to distil in {settings.rounds} rounds of {size} environments")
    space = student.architecture.action_space
    collector = _Collector(task.make_batch(size, workers), teacher, controller, rng)
    fit = _Fit(student, each * size * settings.rounds, settings)
    rounds: list[DistilRound] = []
    try:
        for number in range(settings.rounds):
            data = collector.visit(each, fit.policy if number else None)
            held_out = np.tile(np.arange(size) % HELD_OUT == HELD_OUT - 1, each)
            fit.take_in(data[0], space.clip(data[1]), held_out)
            before, after = fit.run(rng)
            rounds.append(DistilRound(each * size * (number + 1), fit.count, before, after))
    finally:
        collector.close()
    return Distilled(fit.policy, tuple(rounds), rounds[-1].steps)


def widened(policy: Policy, hidden: tuple[int, ...], rng: np.random.Generator) -> Policy:
    """A policy whose actor has more units and does exactly what it did: the new ones do not reach the old ones.

    Args:
        policy: what is widened.
        hidden: new widths, none of them smaller.
        rng: draws the new units' weights.

    Raises:
        UltraError: if the number of layers differs, or a layer would become smaller.
    """
    shape = policy.architecture
    if len(hidden) != len(shape.hidden) or any(new < old for new, old in zip(hidden, shape.hidden, strict=True)):
        raise UltraError(f"layers of {hidden} units do not hold those of {shape.hidden}")
    critic = shape.hidden if shape.critic_hidden is None else shape.critic_hidden
    wide = replace(shape, hidden=hidden, critic_hidden=critic)
    fresh, layers = create_policy(wide, rng).params["actor"], []
    for number, (new, old) in enumerate(zip(fresh, policy.params["actor"], strict=True)):
        rows, columns = old["w"].shape
        last = number == len(fresh) - 1
        weights, biases = np.array(new["w"]), np.array(new["b"])
        weights[:rows, :columns], biases[:columns] = old["w"], old["b"]
        weights[rows:, : None if last else columns] = 0.0
        layers.append({"w": jnp.asarray(weights), "b": jnp.asarray(biases)})
    return replace(policy, architecture=wide, params={**policy.params, "actor": layers})


class _Collector:
    """Environments in which states are visited, and the teacher's labels for them. Episodes go on between rounds."""

    def __init__(self, batch: Batch, teacher: Policy, controller: Controller, rng: np.random.Generator) -> None:
        self._batch, self._teacher, self._rng = batch, teacher, rng
        self._space = teacher.architecture.action_space
        self._executor = Executor([controller.program], self._space, batch.size)
        self._executor.assign(slice(None), 0, controller.settings)
        self._quiet = np.zeros((batch.size, self._space.size), np.float32)
        self._observations = self._reset(np.arange(batch.size))

    def visit(self, steps: int, student: Policy | None) -> tuple[Observations, Actions]:
        """Visited states and what the teacher would do there, step by step; the student acts, or else the teacher."""
        seen, labels = [], []
        for _ in range(steps):
            own = self._teacher.decide(self._observations, self._quiet).actions
            label, _ = self._executor.act(self._batch.facts(), own)
            seen.append(self._observations.copy())
            labels.append(label)
            done = label if student is None else student.decide(self._observations, self._quiet).actions
            step = self._batch.step(self._space.clip(done))
            self._observations = step.observations.copy()
            over = np.flatnonzero(step.done)
            if len(over):
                self._observations[over] = self._reset(over)
        return np.concatenate(seen), np.concatenate(labels)

    def _reset(self, environments: NDArray[np.intp]) -> Observations:
        self._executor.begin(environments)
        return self._batch.reset(environments, self._rng.integers(2**31, size=len(environments)).tolist())

    def close(self) -> None:
        """Close the environments."""
        self._batch.close()


class _Fit:
    """Labelled states, and a student that is fitted to them."""

    def __init__(self, student: Policy, capacity: int, settings: DistilSettings) -> None:
        shape = student.architecture
        self.policy, self._settings, self.count = student, settings, 0
        self._seen = np.zeros((capacity, shape.observation_size), shape.dtype)
        discrete = isinstance(shape.action_space, Discrete)
        width = () if discrete else (shape.action_space.size,)
        self._labels = np.zeros((capacity, *width), np.int32 if discrete else np.float32)
        self._held_out = np.zeros(capacity, np.bool_)
        self._step, self._loss = _fit_functions(shape)

    def take_in(self, seen: Observations, labels: Actions, held_out: NDArray[np.bool_]) -> None:
        """Add labelled states."""
        rows = slice(self.count, self.count + len(seen))
        self._seen[rows], self._labels[rows], self._held_out[rows] = seen, labels, held_out
        self.count += len(seen)

    def run(self, rng: np.random.Generator) -> tuple[float, float]:
        """Fit the student until the held-out loss no longer falls; returns that loss before and after."""
        settings, arrays = self._settings, self.policy.normalizer.arrays()
        trained, fixed = _parts(self.policy.params)
        data = jax.device_put((self._seen, self._labels))
        rows = np.flatnonzero(~self._held_out[: self.count])
        judged = np.zeros(len(self._seen), np.float32)
        judged[: self.count] = self._held_out[: self.count]
        optimizer, rate = None, settings.learning_rate
        first = best = float(self._loss(trained, fixed, arrays, data, judged))
        kept, waited = trained, 0
        for _ in range(settings.longest):
            batches = rows[rng.integers(len(rows), size=(settings.chunk, settings.minibatch))]
            trained, optimizer = self._step(trained, optimizer, rate, fixed, arrays, data, batches)
            loss = float(self._loss(trained, fixed, arrays, data, judged))
            waited = 0 if loss < best * (1 - 1e-3) else waited + 1
            if loss < best:
                best, kept = loss, trained
            if waited >= settings.patience:
                if rate < settings.learning_rate / 9:
                    break
                trained, rate, waited = kept, rate / 3, 0
        self.policy = replace(self.policy, params={**self.policy.params, **kept})
        return first, best


def _parts(params: Params) -> tuple[Params, Params]:
    """Weights that are fitted, and those that stay."""
    names = [name for name in ("actor", "shared", "features") if name in params]
    return {name: params[name] for name in names}, {name: params[name] for name in params if name not in names}


@cache
def _fit_functions(shape: Architecture) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Compiled: many gradient steps in one scan, and the loss on weighted states."""
    optimizer = optax.scale_by_adam()
    errors = _errors(shape)

    def mean(trained: Params, fixed: Params, arrays: Any, data: Any, rows: Any) -> jax.Array:
        return errors({**fixed, **trained}, arrays, data[0][rows], data[1][rows]).mean()

    @jax.jit
    def scan(trained: Params, state: Any, rate: float, fixed: Params, arrays: Any, data: Any, batches: Any) -> Any:
        def step(carry: Any, rows: Any) -> Any:
            weights, moments = carry
            gradients = jax.grad(mean)(weights, fixed, arrays, data, rows)
            updates, moments = optimizer.update(gradients, moments)
            return (jax.tree.map(lambda weight, update: weight - rate * update, weights, updates), moments), None

        return jax.lax.scan(step, (trained, state), batches)[0]

    def several(trained: Params, state: Any, *rest: Any) -> Any:
        return scan(trained, optimizer.init(trained) if state is None else state, *rest)

    @jax.jit
    def loss(trained: Params, fixed: Params, arrays: Any, data: Any, weights: Any) -> jax.Array:
        found = errors({**fixed, **trained}, arrays, *data)
        total: jax.Array = (found * weights).sum() / jnp.maximum(weights.sum(), 1.0)
        return total

    return several, loss


def _errors(shape: Architecture) -> Callable[..., jax.Array]:
    """The function (params, normaliser's arrays, observations, labels) -> errors (n,)."""
    space = shape.action_space

    def discrete(params: Params, arrays: Any, seen: Any, labels: Any) -> jax.Array:
        outputs, _ = actor_critic(params, normalize(arrays, seen))
        entropies: jax.Array = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
        return entropies

    def continuous(params: Params, arrays: Any, seen: Any, labels: Any) -> jax.Array:
        assert isinstance(space, Continuous)
        low, high = space.bounds
        means, _ = actor_critic(params, normalize(arrays, seen))
        # Means beyond a bound are clipped there: no error where that is the label, but a gradient where it is not.
        clipped = jnp.where(
            labels >= high, jnp.minimum(means, high), jnp.where(labels <= low, jnp.maximum(means, low), means)
        )
        return jnp.square((clipped - labels) / space.half_range.astype(np.float32)).mean(axis=1)

    return discrete if isinstance(space, Discrete) else continuous
