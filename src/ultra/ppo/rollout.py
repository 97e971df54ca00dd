"""Rollouts for learning: all environments for a number of steps, with guidance's hooks."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import DivergedError
from ultra.policies.policy import Policy, log_prob_function
from ultra.ppo.guidance import Guidance
from ultra.programs.compiled import Controller
from ultra.programs.executor import Executor
from ultra.tasks.batch import Batch, Facts, Observations, Snapshot
from ultra.tasks.spaces import Actions

RECENT_EPISODES = 30
"""Finished episodes in the moving average of training returns."""


@dataclass(frozen=True)
class Rollout:
    """T steps of n environments. Arrays are (T, n) unless noted."""

    observations: NDArray[np.float32]
    """(T, n, observation_size), not normalised."""
    actions: NDArray[Any]
    """(T, n) int64 or (T, n, dim) float32: what the network did; where guidance replaced it, what was executed."""
    log_probs: NDArray[np.float32]
    values: NDArray[np.float32]
    next_values: NDArray[np.float32]
    """The critic at the state after the step: 0 where the task ended, of the last state where it was cut off."""
    rewards: NDArray[np.float64]
    """In the task's units, guidance included."""
    done: NDArray[np.bool_]
    replaced: NDArray[np.bool_]
    weights: NDArray[np.float32]
    discounted: NDArray[np.float64]
    """The discounted sum of rewards since the episode began, for the reward scale."""

    @property
    def steps(self) -> int:
        """Environment steps."""
        return self.rewards.size


@dataclass
class Episodes:
    """Running episodes of n environments, and the returns of recently finished ones."""

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    discounted: NDArray[np.float64]
    ordinary: NDArray[np.bool_]
    """(n,): whether the episode began with the task's own reset; only those are counted."""
    recent_returns: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_EPISODES))
    recent_lengths: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT_EPISODES))
    finished: int = 0

    @classmethod
    def none(cls, size: int) -> Episodes:
        """Before the first step."""
        return cls(np.zeros(size), np.zeros(size, np.int64), np.zeros(size), np.ones(size, np.bool_))

    def add(self, rewards: NDArray[np.float64], gamma: float) -> None:
        """Count one step of every environment."""
        self.returns += rewards
        self.lengths += 1
        self.discounted = self.discounted * gamma + rewards

    def finish(self, indices: NDArray[np.intp]) -> None:
        """Record the returns of episodes that ended."""
        for index in indices:
            if self.ordinary[index]:
                self.recent_returns.append(float(self.returns[index]))
                self.recent_lengths.append(int(self.lengths[index]))
            self.finished += 1
        self.returns[indices] = 0.0
        self.lengths[indices] = 0
        self.discounted[indices] = 0.0


class Environments:
    """A batch that keeps running between rollouts: current observations, facts and episodes.

    Args:
        batch: the environments.
        guidance: modulates training.
        rng: draws reset seeds and the policy's noise.
        underneath: programs that are part of the environment to the network (residual policy learning, Silver et
            al., arXiv 1812.06298): PPO learns on the network's own actions, and what the programs make of them is
            executed. Guidance acts after them. Where guidance replaces an action, the network's own is kept in the
            rollout, and there is nothing to imitate: what the network would have to do for it is not known.
    """

    def __init__(
        self, batch: Batch, guidance: Guidance, rng: np.random.Generator, underneath: Sequence[Controller] = ()
    ) -> None:
        self.batch = batch
        self.guidance = guidance
        self.rng = rng
        self.episodes = Episodes.none(batch.size)
        self.observations: Observations = np.zeros((batch.size, 0), np.float32)
        self.facts: Facts | None = None
        self.underneath = [Executor([item.program], item.program.space, batch.size) for item in underneath]
        for executor, controller in zip(self.underneath, underneath, strict=True):
            executor.assign(slice(None), 0, controller.settings)

    def _look(self) -> None:
        """Compute facts, if anything reads them."""
        if self.guidance.needs_facts or self.underneath:
            self.facts = self.batch.facts()

    def begin(self) -> None:
        """Start an episode in every environment."""
        indices = np.arange(self.batch.size)
        seeds = self.rng.integers(2**31, size=len(indices)).tolist()
        self.observations = self.batch.reset(indices, seeds)
        self._move_to_snapshots(indices)
        self._look()

    def resume(self, snapshots: list[Snapshot]) -> None:
        """Restore the states of a checkpoint."""
        self.observations = self.batch.restore(range(self.batch.size), snapshots)
        self._look()

    def _restart(self, indices: NDArray[np.intp]) -> None:
        seeds = self.rng.integers(2**31, size=len(indices)).tolist()
        self.observations[indices] = self.batch.reset(indices, seeds)
        self._move_to_snapshots(indices)

    def _move_to_snapshots(self, indices: NDArray[np.intp]) -> None:
        """Let guidance move some of the starting episodes to its own start states."""
        self.episodes.ordinary[indices] = True
        for executor in self.underneath:
            executor.begin(indices)
        starts = self.guidance.start(indices)
        moved = [(i, start) for i, start in zip(indices, starts, strict=True) if start is not None]
        if moved:
            where = np.array([i for i, _ in moved])
            self.observations[where] = self.batch.restore(where, [start for _, start in moved])
            self.batch.restart_clock(where)
            self.episodes.ordinary[where] = False

    def rollout(self, policy: Policy, steps: int, gamma: float) -> Rollout:
        """Step every environment `steps` times with the policy under guidance.

        Raises:
            DivergedError: if the environment returns a reward or an observation that is not finite.
        """
        noise = policy.draw_noise(self.rng, (steps, self.batch.size))
        space = policy.architecture.action_space
        rows: dict[str, list[Any]] = {name: [] for name in Rollout.__dataclass_fields__ if name != "next_values"}
        cut_off: list[tuple[int, NDArray[np.intp], Observations]] = []
        for t in range(steps):
            observations = self.observations
            actions, log_probs, values = policy.decide(observations, noise[t])
            change = self.guidance.act(observations, self.facts, self._controlled(actions))
            executed = space.clip(change.actions)
            replaced, weights = change.replaced, change.weights
            if self.underneath:
                weights = np.zeros_like(weights)
            elif replaced.any():
                actions = np.where(_like(replaced, actions), executed, actions)
            step = self.batch.step(executed)
            self._check(step.rewards, step.observations, t)
            after = self.batch.facts() if self.guidance.needs_facts else None
            self.guidance.observe(step, after)
            rewards = self.guidance.reward(self.facts, executed, step.rewards)
            self.episodes.add(step.rewards, gamma)
            done = step.done
            for name, value in (
                ("observations", observations), ("actions", actions), ("log_probs", log_probs),
                ("values", values), ("rewards", rewards), ("done", done), ("replaced", replaced),
                ("weights", weights), ("discounted", self.episodes.discounted.copy()),
            ):  # fmt: skip
                rows[name].append(value)
            self.observations = step.observations
            over = done.nonzero()[0]
            if len(over):
                late = np.flatnonzero(step.truncated & ~step.terminated)
                if len(late):
                    cut_off.append((t, late, step.observations.copy()))
                self.episodes.finish(over)
                self._restart(over)
                after = None
            if after is None:
                self._look()
            else:
                self.facts = after
        arrays = {name: np.stack(values) for name, values in rows.items()}
        if arrays["replaced"].any():
            arrays["log_probs"] = _log_probs(policy, arrays)
        return Rollout(**arrays, next_values=self._next_values(policy, arrays, cut_off))

    def _controlled(self, actions: Actions) -> Actions:
        """What the programs underneath make of the network's actions."""
        for executor in self.underneath:
            assert self.facts is not None
            actions, _ = executor.act(self.facts, actions)
        return actions

    def _next_values(
        self,
        policy: Policy,
        arrays: dict[str, Any],
        cut_off: list[tuple[int, NDArray[np.intp], Observations]],
    ) -> NDArray[np.float32]:
        """The critic at the states after each step (T, n); a time limit does not end a state's value."""
        silence = np.zeros((self.batch.size, policy.architecture.action_space.size), np.float32)
        last = policy.decide(self.observations, silence).values
        following = np.concatenate([arrays["values"][1:], last[None]])
        following = np.where(arrays["done"], np.float32(0), following)
        for t, indices, observations in cut_off:
            following[t, indices] = policy.decide(observations, silence).values[indices]
        return following

    def _check(self, rewards: NDArray[np.float64], observations: Observations, t: int) -> None:
        finite = np.isfinite(rewards) & np.isfinite(observations).all(axis=1)
        if not finite.all():
            index = int(np.flatnonzero(~finite)[0])
            raise DivergedError(
                f"environment {index} returned a value that is not finite {t + 1} steps into the rollout "
                f"(reward {rewards[index]}, observation {observations[index].tolist()}): "
                "check the environment; what was saved before is kept"
            )


def _log_probs(policy: Policy, arrays: dict[str, Any]) -> NDArray[np.float32]:
    """The log-probabilities (T, n), those of replaced actions computed all at once."""
    replaced = arrays["replaced"]
    flat = [arrays[name].reshape(-1, *arrays[name].shape[2:]) for name in ("observations", "actions")]
    fresh = np.asarray(log_prob_function()(policy.params, policy.normalizer.arrays(), *flat)).reshape(replaced.shape)
    return np.where(replaced, fresh, arrays["log_probs"])


def _like(mask: NDArray[np.bool_], actions: NDArray[Any]) -> NDArray[np.bool_]:
    """A mask (n,) in a shape that broadcasts with actions (n,) or (n, dim)."""
    return mask[:, None] if actions.ndim == 2 else mask
