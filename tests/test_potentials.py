"""Potential-based shaping: the best policy stays the best, and PPO's targets change by the potential alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.policies import same

from ultra.config import PPOConfig
from ultra.finetuning.potentials import Potentials, ScaledPotential, ShapedGuidance, scaled
from ultra.policies.policy import Architecture, Policy, create_policy
from ultra.ppo.guidance import Guidance, NoGuidance
from ultra.ppo.rollout import Environments, Rollout
from ultra.ppo.train import Iteration, advantages, train
from ultra.programs.compiled import CompiledPotential, compile_potential
from ultra.programs.records import Potential
from ultra.tasks import get_task
from ultra.tasks.batch import Facts, Indices, Live, Observations, Snapshot, Step
from ultra.tasks.spaces import Actions, Discrete

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Process:
    """A Markov decision process that value iteration solves; entering a terminal state ends an episode."""

    chances: Array
    """(states, actions, states)"""
    rewards: Array
    """(states, actions, states)"""
    terminal: NDArray[np.bool_]
    gamma: float
    phi: Array
    """(states,)"""

    @property
    def states(self) -> int:
        return len(self.phi)

    def facts(self, states: NDArray[np.int64]) -> Facts:
        return np.eye(self.states)[states]

    def potentials(self) -> Potentials:
        expression = " + ".join(f"({value!r}) * s{state}" for state, value in enumerate(self.phi.tolist()))
        compiled = compile_potential(Potential("phi", expression), [f"s{state}" for state in range(self.states)])
        return Potentials((ScaledPotential(compiled, 1.0, -1e9, 1e9),))

    def values(self, rewards: Array) -> Array:
        """The best action values (states, actions) for rewards like `rewards`."""
        q = np.zeros(self.chances.shape[:2])
        for _ in range(2000):
            following = np.where(self.terminal, 0.0, q.max(axis=1))
            q = (self.chances * (rewards + self.gamma * following)).sum(axis=2)
        return q


@st.composite
def processes(draw: st.DrawFn) -> Process:
    states, actions = draw(st.integers(2, 5)), draw(st.integers(2, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chances = rng.dirichlet(np.full(states, 0.5), size=(states, actions))
    terminal = rng.random(states) < draw(st.sampled_from([0.0, 0.4]))
    terminal[0] = False
    size = draw(st.sampled_from([0.1, 1.0, 10.0]))
    rewards = rng.normal(size=(states, actions, states))
    return Process(chances, rewards, terminal, draw(st.floats(0.3, 0.95)), size * rng.normal(size=states))


def steps(process: Process, states: NDArray[np.int64], *, truncated: bool) -> Step:
    observations = process.facts(states).astype(np.float32)
    cut = np.full(len(states), truncated)
    return Step(observations, np.zeros(len(states)), process.terminal[states], cut)


@settings(deadline=None, max_examples=50)
@given(process=processes(), truncated=st.booleans(), strength=st.floats(0, 2))
def test_the_best_policy_stays_the_best(process: Process, truncated: bool, strength: float) -> None:
    """What is added between every two states changes all action values of a state by its potential.

    Terminal states end an episode; a time limit does not end a state's value, so that it must not change what a step
    earns.
    """
    before, after = (places.ravel() for places in np.indices((process.states, process.states)))
    guidance = ShapedGuidance(NoGuidance(), process.potentials(), process.gamma, len(before), strength=strength)
    observations = process.facts(before).astype(np.float32)
    guidance.start(range(len(before)))
    guidance.act(observations, process.facts(before), np.zeros(len(before), np.int64))
    guidance.observe(steps(process, after, truncated=truncated), process.facts(after))
    added = guidance.reward(process.facts(before), np.zeros(len(before)), np.zeros(len(before)))
    shaping = added.reshape(process.states, 1, process.states)
    plain, shaped = process.values(process.rewards), process.values(process.rewards + shaping)
    np.testing.assert_allclose(
        shaped, plain - strength * process.phi[:, None], atol=1e-6 * max(1, abs(process.phi).max())
    )
    best = plain >= plain.max(axis=1, keepdims=True) - 1e-9
    assert (shaped[best] >= np.broadcast_to(shaped.max(axis=1, keepdims=True), shaped.shape)[best] - 1e-5).all()


class Chain:
    """A batch of a process. Episodes are cut after `limit` steps.

    Args:
        size: environments.
        process: where they move.
        limit: steps of an episode.
        seed: of what happens.
    """

    def __init__(self, size: int, process: Process, limit: int, seed: int) -> None:
        self.process, self.limit = process, limit
        self.rng = np.random.default_rng(seed)
        self.state, self.clock = np.zeros(size, np.int64), np.zeros(size, np.int64)

    @property
    def size(self) -> int:
        return len(self.state)

    def facts(self) -> Facts:
        return self.process.facts(self.state)

    def observe(self) -> Observations:
        return self.facts().astype(np.float32)

    def reset(self, indices: Indices, seeds: Sequence[int]) -> Observations:
        self.state[indices], self.clock[indices] = 0, 0
        return self.observe()[indices]

    def step(self, actions: Actions, live: Live = None) -> Step:
        draws = self.rng.random(self.size)[:, None]
        chances = self.process.chances[self.state, actions]
        following = np.minimum((chances.cumsum(axis=1) < draws).sum(axis=1), self.process.states - 1)
        rewards = self.process.rewards[self.state, actions, following]
        self.state, self.clock = following, self.clock + 1
        return Step(self.observe(), rewards, self.process.terminal[following], self.clock >= self.limit)

    def snapshots(self, indices: Indices) -> list[Snapshot]:
        raise NotImplementedError

    def restore(self, indices: Indices, snapshots: Sequence[Snapshot]) -> Observations:
        raise NotImplementedError

    def restart_clock(self, indices: Indices) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def tabular(process: Process, critic: Array) -> Policy:
    """A policy that draws actions evenly, with a critic that gives each state its value."""
    policy = create_policy(
        Architecture(process.states, Discrete(process.chances.shape[1]), ()), np.random.default_rng(0)
    )
    layer = {"w": jnp.asarray(critic[:, None].astype(np.float32)), "b": jnp.zeros(1)}
    return replace(policy, params={**policy.params, "critic": [layer]})


def played(process: Process, guidance: Guidance, critics: Sequence[Array], limit: int) -> list[Rollout]:
    """Rollouts of 7 steps, one with each critic; training is over after them."""
    environments = Environments(Chain(3, process, limit, 5), guidance, np.random.default_rng(0))
    environments.begin()
    rollouts = []
    for number, critic in enumerate(critics):
        policy = tabular(process, critic)
        guidance.progress(number / len(critics), policy)
        rollouts.append(environments.rollout(policy, 7, process.gamma))
    return rollouts


def estimated(rollout: Rollout, gamma: float, lam: float) -> tuple[Array, Array]:
    """PPO's advantages and the critic's targets (T, n)."""
    rows = {"rewards": rollout.rewards, "values": rollout.values, "next_values": rollout.next_values}
    arrays = {name: jnp.asarray(array, jnp.float32) for name, array in (rows | {"cut": rollout.done}).items()}
    found = np.asarray(advantages(arrays, gamma, lam), np.float64)
    return found, found + rollout.values


@settings(deadline=None, max_examples=30)
@given(process=processes(), limit=st.integers(1, 9), lam=st.sampled_from([0.0, 0.9, 1.0]), seed=st.integers(0, 99))
def test_ppos_targets_change_by_the_potential_of_the_state_alone(
    process: Process, limit: int, lam: float, seed: int
) -> None:
    """Advantages stay as they are, through ends, time limits and the end of a rollout."""
    critic = np.random.default_rng(seed).normal(size=process.states)
    beta = 0.5
    guidance = ShapedGuidance(NoGuidance(), process.potentials(), process.gamma, 3, strength=beta, anneal_until=1e12)
    (plain,), (shaped,) = (
        played(process, NoGuidance(), [critic], limit),
        played(process, guidance, [critic - beta * process.phi], limit),
    )
    np.testing.assert_array_equal(plain.actions, shaped.actions)
    np.testing.assert_array_equal(plain.done, shaped.done)
    tolerance = 1e-4 * max(1.0, np.abs(process.phi).max())
    (advantage, target), (other, moved) = (estimated(rollout, process.gamma, lam) for rollout in (plain, shaped))
    np.testing.assert_allclose(other, advantage, atol=tolerance)
    phi = beta * process.phi[plain.observations.argmax(axis=2)]
    np.testing.assert_allclose(moved, target - phi, atol=tolerance)


@settings(deadline=None, max_examples=30)
@given(process=processes(), limit=st.integers(1, 20))
def test_annealing_leaves_returns_as_they_are_but_for_the_first_potential(process: Process, limit: int) -> None:
    """Over whole episodes that span rollouts with other strengths: the sum differs by phi of the first state."""
    nothing = [np.zeros(process.states)] * 4
    guidance = ShapedGuidance(NoGuidance(), process.potentials(), process.gamma, 3, strength=2.0, anneal_until=0.6)
    plain, shaped = played(process, NoGuidance(), nothing, limit), played(process, guidance, nothing, limit)
    added = np.concatenate([s.rewards - p.rewards for s, p in zip(shaped, plain, strict=True)])
    done = np.concatenate([rollout.done for rollout in plain])
    strengths = np.repeat([2.0 * max(0.0, 1 - k / 4 / 0.6) for k in range(4)], 7)
    reached = np.concatenate([rollout.observations for rollout in plain]).argmax(axis=2)
    for environment in range(3):
        start = 0
        for end in np.flatnonzero(done[:, environment]).tolist():
            length = end - start + 1
            total = (process.gamma ** np.arange(length) * added[start : end + 1, environment]).sum()
            total += strengths[start] * process.phi[reached[start, environment]]  # phi of the first state
            # What is left is that of the last one: nothing after an end, all of it at a time limit.
            possible = [0.0, *(process.gamma**length * strengths[end] * process.phi)]
            gaps = np.abs(np.array(possible) - total)
            assert gaps.min() < 1e-6 * max(1.0, np.abs(process.phi).max())
            assert length == limit or gaps[0] < 1e-6 * max(1.0, np.abs(process.phi).max())
            start = end + 1
    assert not guidance.needs_facts  # beta has fallen to zero


FACTS = ("x", "y")


def compiled(expression: str, name: str = "phi") -> CompiledPotential:
    return compile_potential(Potential(name, expression), FACTS)


def some_episodes(rng: np.random.Generator, reward: float = 3.0) -> list[tuple[Facts, Array]]:
    return [(rng.normal(size=(51, 2)), rng.normal(0, reward, 50)) for _ in range(4)]


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_what_is_added_has_the_size_of_the_rewards(factor: float) -> None:
    episodes = some_episodes(np.random.default_rng(0))
    potentials = scaled([compiled(f"{factor} * x")], episodes, 0.9)
    assert potentials is not None
    added = np.concatenate([0.9 * potentials(facts)[1:] - potentials(facts)[:-1] for facts, _ in episodes])
    assert added.std() == pytest.approx(np.concatenate([rewards for _, rewards in episodes]).std())


@pytest.mark.parametrize(("reward", "size"), [(-2.0, 2.0), (0.0, None)])
def test_rewards_that_do_not_vary_or_never_come_give_a_scale_too(reward: float, size: float | None) -> None:
    episodes = [(facts, np.full(50, reward)) for facts, _ in some_episodes(np.random.default_rng(0))]
    potentials = scaled([compiled("x")], episodes, 0.9)
    assert potentials is not None
    values = [potentials(facts) for facts, _ in episodes]
    if size is None:
        assert np.concatenate(values).std() == pytest.approx(1.0)
    else:
        assert np.concatenate([0.9 * row[1:] - row[:-1] for row in values]).std() == pytest.approx(size)


def test_a_potential_that_is_of_no_use_is_rejected_with_the_reason() -> None:
    reasons: dict[str, str] = {}
    episodes = some_episodes(np.random.default_rng(0))
    texts = {"x": "x", "y": "y", "flat": "0 * x + 3", "not finite": "log(x)", "constant": "0.1 + 0.2"}
    given = [compiled(text, name) for name, text in texts.items()]
    potentials = scaled(given, episodes, 0.9, lambda name, reason: reasons.update({name: reason}))
    assert potentials is not None
    assert [part.potential.potential.name for part in potentials.parts] == ["x", "y"]
    assert reasons.keys() == {"flat", "not finite", "constant"}
    assert "not finite in" in reasons["not finite"]
    assert scaled(given[2:], episodes, 0.9) is None


def test_a_state_unlike_any_visited_one_is_worth_no_more_than_those_nearby() -> None:
    episodes = some_episodes(np.random.default_rng(0))
    potentials = scaled([compiled("x / y")], episodes, 0.9)
    assert potentials is not None
    wild = potentials(np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1e-12], [-1.0, 0.0]]))
    seen = np.concatenate([potentials(facts) for facts, _ in episodes])
    assert np.isfinite(wild).all()
    assert np.abs(wild).max() <= 1.0001 * (np.abs(seen).max() + np.ptp(seen))


TINY = PPOConfig(environments=4, rollout_steps=32, minibatch=64, epochs=2, learning_rate=0.001)


def run(strength: float | None, **options: Any) -> Policy:
    task = get_task("CartPole-v1")
    policy = create_policy(Architecture(task.observation_size, task.action_space, (16,)), np.random.default_rng(0))
    if strength is not None:
        names = [fact.name for fact in task.card.facts]
        part = ScaledPotential(compile_potential(Potential("lean", f"-abs({names[2]})"), names), 10.0, -1.0, 0.0)
        options["guidance"] = ShapedGuidance(
            NoGuidance(), Potentials((part,)), TINY.discount, 4, strength=strength, anneal_until=0.6
        )
    return train(task, policy, TINY, 4 * TINY.samples, np.random.default_rng(1), workers=1, **options)


def test_without_strength_training_is_plain_ppo_and_an_interrupted_one_resumes_to_the_same(tmp_path: Path) -> None:
    plain = run(None)
    assert same(run(0.0), plain)
    whole = run(1.0)
    assert not same(whole, plain)

    def interrupt(iteration: Iteration) -> None:
        if iteration.steps == 2 * TINY.samples:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(1.0, checkpoint=tmp_path / "checkpoint.npz", observer=interrupt)
    assert same(run(1.0, checkpoint=tmp_path / "checkpoint.npz"), whole)
