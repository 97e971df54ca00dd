"""Simulated episodes and branches: many starts, one batch, slots refilled as they finish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import DivergedError
from ultra.common.streams import stream
from ultra.policies.policy import Decision, Policy
from ultra.programs.compiled import Controller
from ultra.programs.executor import Executor
from ultra.tasks.batch import Batch, Facts, Live, Observations, Snapshot, Step
from ultra.tasks.spaces import Actions

NOISE_BLOCK = 64


@dataclass(frozen=True)
class Branch:
    """A simulated rollout from one start: the policy acts, perhaps under a controller."""

    noise_seed: int
    """Seed of the policy's randomness: branches that share it use common random numbers. It may equal `reset_seed`:
    they seed different streams."""
    steps: int
    """Longest duration in steps; a branch that is cut off there is completed by the critic's value."""
    start: Snapshot | None = None
    """State to start from; None resets the environment with `reset_seed`."""
    reset_seed: int = 0
    """Seed of the environment's reset, as in Gymnasium's `reset(seed=...)`."""
    controller: Controller | None = None
    """In force throughout: a plan or programs, which change or replace the policy's actions."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a branch."""

    value: float
    """Discounted return, with the discounted critic's value of the last state if the branch was cut off."""
    reward: float
    """Undiscounted return."""
    steps: int
    """Environment steps taken."""
    terminated: bool
    """Whether a terminal state was reached."""


class Watcher(Protocol):
    """Sees every step of a simulation, for recording; `jobs[slot]` is the branch in a slot, -1 if none."""

    def before(self, jobs: NDArray[np.int64], clocks: NDArray[np.int64], batch: Batch) -> None:
        """Before a step."""
        ...

    def after(
        self,
        jobs: NDArray[np.int64],
        observations: Observations,
        decision: Decision,
        done: Actions,
        step: Step,
        batch: Batch,
    ) -> None:
        """After a step.

        Args:
            jobs: the branch in each slot.
            observations: on which the network made its `decision`.
            decision: the network's own.
            done: (n,) or (n, dim), what programs and controllers made of its actions, not yet clipped.
            step: what came of it.
            batch: in its present state.
        """
        ...


class _Noise:
    """Blocks of noise for each slot, each from its branch's own generator."""

    def __init__(self, policy: Policy, slots: int) -> None:
        self._policy = policy
        self._rngs = [stream("unused")] * slots
        self._blocks = policy.draw_noise(self._rngs[0], (slots, NOISE_BLOCK))
        self._numbers = np.zeros(slots, dtype=np.int64)

    def seed(self, slot: int, seed: int) -> None:
        """Begin a slot's noise anew."""
        self._rngs[slot] = stream(seed, "policy noise")
        self._numbers[slot] = -1

    def at(self, clocks: NDArray[np.int64]) -> NDArray[np.float32]:
        """The noise (slots, size) of each slot at its own step."""
        wanted = clocks // NOISE_BLOCK
        for slot in np.flatnonzero(wanted > self._numbers):
            self._blocks[slot] = self._policy.draw_noise(self._rngs[slot], (NOISE_BLOCK,))
            self._numbers[slot] = wanted[slot]
        noise: NDArray[np.float32] = self._blocks[np.arange(len(clocks)), clocks % NOISE_BLOCK]
        return noise


def simulate(
    batch: Batch,
    policy: Policy,
    branches: Sequence[Branch],
    gamma: float,
    *,
    deterministic: bool = False,
    watcher: Watcher | None = None,
) -> list[Outcome]:
    """Run branches to their ends, as many at once as the batch has environments.

    Args:
        batch: environments; their states are overwritten.
        policy: acts wherever a controller does not.
        branches: rollouts to run.
        gamma: discount.
        deterministic: take the policy's most likely actions instead of sampling.
        watcher: called before and after every step.

    Returns:
        One outcome for each branch, in order. An outcome does not depend on the other branches; in a
        batch of another size it may differ by rounding error.

    Raises:
        DivergedError: if the environment returns a reward that is not finite.
    """
    slots = _Slots(batch, policy, branches, gamma, deterministic)
    while slots.busy:
        decision = slots.finish_expired(slots.decide())
        if not slots.busy:
            break
        if watcher is not None:
            watcher.before(slots.jobs, slots.clocks, batch)
        observations = slots.observations
        done = slots.controlled(decision.actions)
        step = batch.step(policy.architecture.action_space.clip(done), slots.live)
        slots.count(step)
        if watcher is not None:
            watcher.after(slots.jobs, observations, decision, done, step, batch)
        slots.finish_done(step)
    return [outcome for outcome in slots.outcomes if outcome is not None]


class _Slots:
    """The environments of a batch, each working on a branch or idle, refilled as branches end."""

    def __init__(
        self, batch: Batch, policy: Policy, branches: Sequence[Branch], gamma: float, deterministic: bool
    ) -> None:
        size = batch.size
        self._batch, self._policy, self._branches, self._gamma = batch, policy, branches, gamma
        controllers = [branch.controller for branch in branches if branch.controller is not None]
        programs = list(dict.fromkeys(controller.program for controller in controllers))
        self._number = {program: number for number, program in enumerate(programs)}
        space = policy.architecture.action_space
        self._executor = Executor(programs, space, size)
        self._attached = [Executor([controller.program], space, size) for controller in policy.controllers]
        self._facts: Facts | None = None
        self._limits = np.array([branch.steps for branch in branches], dtype=np.int64)
        self._waiting = list(range(len(branches)))[::-1]
        self._deterministic = deterministic
        self._noise = _Noise(policy, size)
        self._quiet = np.zeros((size, policy.architecture.action_space.size), np.float32)
        self._values, self._rewards = np.zeros(size), np.zeros(size)
        self.jobs = np.full(size, -1, dtype=np.int64)
        self.clocks = np.zeros(size, dtype=np.int64)
        self.outcomes: list[Outcome | None] = [None] * len(branches)
        shape = policy.architecture
        self.observations: Observations = np.zeros((size, shape.observation_size), shape.dtype)
        self._fill(np.arange(size))

    @property
    def busy(self) -> bool:
        """Whether any branch is under way."""
        return bool((self.jobs >= 0).any())

    @property
    def live(self) -> Live:
        """Which slots are at work; None if all are."""
        live = self.jobs >= 0
        return None if live.all() else live

    def decide(self) -> Decision:
        """What the policy does in every slot."""
        noise = self._quiet if self._deterministic else self._noise.at(self.clocks)
        return self._policy.decide(self.observations, noise)

    def controlled(self, actions: Actions) -> Actions:
        """The network's actions with what the policy's own programs, then the branches' controllers, make of them."""
        self._facts = None
        for executor in (*self._attached, self._executor):
            if executor.active:
                actions, _ = executor.act(self._seen(), actions)
        return actions

    def _seen(self) -> Facts:
        """The facts of this step, which are computed only where a program needs them."""
        if self._facts is None:
            self._facts = self._batch.facts()
        return self._facts

    def count(self, step: Step) -> None:
        """Add the step's rewards to the branches under way."""
        live = self.jobs >= 0
        if not np.isfinite(step.rewards[live]).all():
            found = step.rewards[live].tolist()
            raise DivergedError(f"the environment returned a reward that is not finite: {found}")
        self._values += np.where(live, self._gamma**self.clocks * step.rewards, 0.0)
        self._rewards += np.where(live, step.rewards, 0.0)
        self.clocks += live
        self.observations = step.observations.copy()

    def finish_expired(self, decision: Decision) -> Decision:
        """End the branches at their limit: the critic has just valued their last states.

        The slots are refilled; returns the policy's choice with that for the new branches.
        """
        over = np.flatnonzero((self.jobs >= 0) & (self.clocks >= self._limits[self.jobs]))
        if not len(over):
            return decision
        self._bootstrap(over, decision)
        self._finish(over, np.zeros(len(self.jobs), np.bool_))
        return self.decide()

    def finish_done(self, step: Step) -> None:
        """End the branches whose episode is over; a time limit does not end a state's value."""
        live = self.jobs >= 0
        over = np.flatnonzero(live & step.done)
        if len(over):
            cut = over[~step.terminated[over]]
            if len(cut):
                self._bootstrap(cut, self._policy.decide(self.observations, self._quiet))
            self._finish(over, step.terminated)

    def _bootstrap(self, slots: NDArray[np.intp], decision: Decision) -> None:
        rest = decision.values[slots] * self._policy.normalizer.reward_scale
        self._values[slots] += self._gamma ** self.clocks[slots] * rest

    def _finish(self, slots: NDArray[np.intp], terminated: NDArray[np.bool_]) -> None:
        for slot in slots:
            self.outcomes[self.jobs[slot]] = Outcome(
                value=float(self._values[slot]),
                reward=float(self._rewards[slot]),
                steps=int(self.clocks[slot]),
                terminated=bool(terminated[slot]),
            )
        self._fill(slots)

    def _fill(self, free: NDArray[np.intp]) -> None:
        """Put waiting branches into free slots."""
        self.jobs[free] = -1
        for executor in (*self._attached, self._executor):
            executor.release(free)
            executor.begin(free)
        self.clocks[free], self._values[free], self._rewards[free] = 0, 0.0, 0.0
        resets: list[int] = []
        restores: list[tuple[int, Snapshot]] = []
        taken = [int(slot) for slot in free[: len(self._waiting)]]
        for slot in taken:
            job = self._waiting.pop()
            branch = self._branches[job]
            self.jobs[slot] = job
            for executor in self._attached:
                executor.assign(slot, 0)
            if branch.controller is not None:
                self._executor.assign(slot, self._number[branch.controller.program], branch.controller.settings)
            self._noise.seed(slot, branch.noise_seed)
            if branch.start is None:
                resets.append(slot)
            else:
                restores.append((slot, branch.start))
        idle = [int(slot) for slot in free[len(taken) :]]
        if resets or idle:
            seeds = [self._branches[self.jobs[slot]].reset_seed for slot in resets] + [0] * len(idle)
            self.observations[resets + idle] = self._batch.reset(resets + idle, seeds)
        if restores:
            where = [slot for slot, _ in restores]
            self.observations[where] = self._batch.restore(where, [start for _, start in restores])
