"""The methods compared with: JSRL, StateMask, RICE and random states, and the pitfalls of published code."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.policies import same

import ultra
from ultra.analysts.fidelity import fidelity, importance_of_states, most_important_window
from ultra.analysts.mask import BLIND, KEEP, BlindedBatch, importance, mask_task, train_mask
from ultra.analysts.statemask import most_important
from ultra.collection.collect import collect, collect_within
from ultra.common.errors import UltraError
from ultra.config import JSRLConfig, PPOConfig, StateMaskConfig
from ultra.finetuning.jsrl import JSRLGuidance
from ultra.finetuning.novelty import Novelty
from ultra.finetuning.rice import RiceGuidance
from ultra.policies.io import load_policy
from ultra.policies.normalizer import Normalizer
from ultra.policies.policy import Architecture, Policy, create_policy
from ultra.ppo.checkpoint import Learner
from ultra.ppo.guidance import Guidance, NoGuidance
from ultra.ppo.rollout import Environments
from ultra.ppo.train import Iteration, improve, optimizer, train
from ultra.tasks import Snapshot, Step, Task, get_task
from ultra.tasks.batch import Facts, Indices, Live, Observations
from ultra.tasks.card import Fact, skeleton_card
from ultra.tasks.spaces import Actions, Discrete

POLICIES = Path(ultra.__file__).parent / "policies" / "shipped"
TINY = PPOConfig(environments=2, rollout_steps=32, minibatch=32, epochs=2)
BUTTONS = Discrete(3)
LIMIT = 6


class Clockwork:
    """A hand-made batch: observations are clock and place; only button 2 at the clock's second tick pays."""

    def __init__(self, size: int, decisive: int = 2) -> None:
        self.clock, self.place = np.zeros(size, np.int64), np.zeros(size)
        self.decisive = decisive

    @property
    def size(self) -> int:
        return len(self.clock)

    def facts(self) -> Facts:
        return np.stack([self.clock, self.place], axis=1).astype(np.float64)

    def observe(self) -> Observations:
        ticks = np.eye(LIMIT + 1, dtype=np.float32)[self.clock]
        return np.concatenate([ticks, self.place[:, None].astype(np.float32)], axis=1)

    def reset(self, indices: Indices, seeds: Sequence[int]) -> Observations:
        self.clock[indices] = 0
        self.place[indices] = [seed % 1000 / 1000 for seed in seeds]
        return self.observe()[indices]

    def step(self, actions: Actions, live: Live = None) -> Step:
        rewards = ((self.clock == self.decisive) & (actions == 2)).astype(np.float64)
        self.clock += 1
        return Step(self.observe(), rewards, np.zeros(self.size, np.bool_), self.clock >= LIMIT)

    def snapshots(self, indices: Indices) -> list[Snapshot]:
        return [np.array([self.clock[i], self.place[i]]).tobytes() for i in indices]

    def restore(self, indices: Indices, snapshots: Sequence[Snapshot]) -> Observations:
        for index, snapshot in zip(indices, snapshots, strict=True):
            clock, self.place[index] = np.frombuffer(snapshot)
            self.clock[index] = int(clock)
        return self.observe()[indices]

    def restart_clock(self, indices: Indices) -> None:
        pass

    def close(self) -> None:
        pass


def clockwork() -> Task:
    return Task(
        name="clockwork",
        card=skeleton_card("clockwork", [Fact("x0", "", ""), Fact("x1", "", "")], BUTTONS),
        observation_size=LIMIT + 2,
        action_space=BUTTONS,
        time_limit=LIMIT,
        make_local_batch=Clockwork,
        make_environment=partial(get_task("CartPole-v1").make_environment),
    )


def some_policy() -> Policy:
    return create_policy(Architecture(LIMIT + 2, BUTTONS, (8,)), np.random.default_rng(0))


def always(button: int) -> Policy:
    """A policy that presses one button."""
    policy = some_policy()
    bias = np.where(np.arange(3) == button, 20.0, -20.0).astype(np.float32)
    last = {**policy.params["actor"][-1], "b": bias}
    return replace(policy, params={**policy.params, "actor": [*policy.params["actor"][:-1], last]})


def jsrl(guide: Policy, environments: int = 4, **options: Any) -> JSRLGuidance:
    length, rng = options.pop("length", 4.0), np.random.default_rng(options.pop("seed", 0))
    return JSRLGuidance(guide, JSRLConfig(**options), environments, length=length, rng=rng)


# Each method at zero is plain PPO, and each resumes


@cache
def real(name: str) -> tuple[Task, Policy, tuple[Snapshot, ...], float]:
    """A shipped policy with start states of its own episodes, and its mean episode length."""
    task, policy = get_task(name), load_policy(POLICIES / name)
    episodes = collect(task, policy, [1, 2], 0.99, longest=40, workers=1)
    return task, policy, tuple(state for e in episodes for _, state in e.snapshots[1:20:4]), 20.0


def guidance_for(name: str, kind: str, **options: Any) -> Guidance:
    _, policy, starts, length = real(name)
    rng = np.random.default_rng(options.pop("seed", 5))
    if kind == "jsrl":
        return JSRLGuidance(policy, JSRLConfig(**options), TINY.environments, length=length, rng=rng)
    if kind == "rice":
        novelty = Novelty(policy.normalizer, 1e-3, rng)
        return RiceGuidance(starts, options.get("probability", 0.5), options.get("bonus", 0.5), novelty, rng)
    return NoGuidance()


def trained(name: str, kind: str, iterations: int = 2, **options: Any) -> Policy:
    """The policy after a tiny training."""
    task, policy, _, _ = real(name)
    run = {key: options.pop(key) for key in ("checkpoint", "observer") if key in options}
    guidance, rng = guidance_for(name, kind, **options), np.random.default_rng(4)
    return train(task, policy, TINY, iterations * TINY.samples, rng, guidance=guidance, workers=1, **run)


plain = cache(partial(trained, kind="ppo"))


@pytest.mark.parametrize("name", ["hopper", "pong"])
def test_at_zero_jsrl_and_rice_are_plain_ppo_bit_for_bit(name: str) -> None:
    assert same(trained(name, "jsrl", guide=0.0), plain(name))
    assert same(trained(name, "rice", probability=0.0, bonus=0.0), plain(name))


def test_above_zero_they_are_not() -> None:
    """Else the test above shows nothing."""
    for kind, options in (
        ("jsrl", {"guide": 1.0}),
        ("jsrl", {"guide": 1.0, "horizon": "random"}),
        ("rice", {"probability": 0.5, "bonus": 0.0}),
        ("rice", {"probability": 0.0, "bonus": 0.5}),
    ):
        assert not same(trained("hopper", kind, **options), plain("hopper"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [("jsrl", {}), ("jsrl", {"horizon": "random"}), ("rice", {}), ("rice", {"probability": 1.0, "bonus": 0.0})],
    ids=["jsrl", "jsrl-random", "rice", "statemask-r"],
)
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    calls = iter(range(100))

    def interrupt(_: Iteration) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt

    whole, path = trained("hopper", kind, 4, **options), tmp_path / "checkpoint.npz"
    with pytest.raises(KeyboardInterrupt):
        trained("hopper", kind, 4, **options, checkpoint=path, observer=interrupt)
    assert same(trained("hopper", kind, 4, **options, checkpoint=path), whole)


# JSRL


def test_the_guide_acts_first_and_its_steps_do_not_train() -> None:
    """h = 4: the guide presses 1; then the explorer, which always presses 2."""
    guidance = jsrl(always(1))
    environments = Environments(Clockwork(4), guidance, np.random.default_rng(0))
    environments.begin()
    rollout = environments.rollout(always(2), 2 * LIMIT, 0.99)
    assert rollout.actions[:, 0].tolist() == [1, 1, 1, 1, 2, 2] * 2
    assert rollout.replaced[:, 0].tolist() == ([True] * 4 + [False] * 2) * 2
    config = PPOConfig(environments=4, rollout_steps=2 * LIMIT, minibatch=8, epochs=2, learning_rate=0.01)

    def update(**changes: Any) -> Policy:
        policy = some_policy()
        learner = Learner(policy, optimizer(config).init(policy.params))
        improve(learner, replace(rollout, **changes), config, np.random.default_rng(0), guidance, 0.01)
        return learner.policy

    guided = rollout.replaced
    other = {"actions": np.where(guided, 0, rollout.actions), "rewards": np.where(guided, 7.0, rollout.rewards)}
    assert same(update(), update(**other))
    assert not same(update(), update(rewards=rollout.rewards + 1.0 * ~guided * (np.arange(12)[:, None] % 2)))
    # Nothing of the explorer's own: nothing is learned, and Adam does not drift.
    assert same(update(replaced=np.ones_like(guided)), some_policy())


def test_figures_are_means_over_the_minibatches_that_teach() -> None:
    """A quarter of the samples is the explorer's, as many as fill one minibatch of four."""
    config = PPOConfig(environments=4, rollout_steps=4, minibatch=4, epochs=1, learning_rate=1e-9)
    environments = Environments(Clockwork(4), NoGuidance(), np.random.default_rng(0))
    environments.begin()
    rollout = environments.rollout(some_policy(), 4, 0.99)
    own = np.arange(4)[:, None] == np.full(4, 3)
    figures = []
    for replaced in (~own, np.zeros_like(own)):
        learner = Learner(some_policy(), optimizer(config).init(some_policy().params))
        rng = np.random.default_rng(0)
        figures.append(improve(learner, replace(rollout, replaced=replaced), config, rng, jsrl(some_policy()), 1e-9))
    assert figures[0]["train/entropy_loss"] == pytest.approx(figures[1]["train/entropy_loss"], rel=0.05)


def judged(guidance: JSRLGuidance, values: Sequence[float], episodes: int = 10) -> list[float]:
    """The guide's steps after each of several rollouts in which so many episodes gave a return."""
    steps = []
    for value in values:
        guidance.start(range(episodes))
        guidance.reward(None, np.zeros(episodes), np.full(episodes, value))
        guidance.start(range(episodes))
        guidance.progress(0.5, always(1))
        steps.append(guidance.metrics()["guidance/guide_steps"])
    return steps


def test_the_guides_steps_fall_as_long_as_the_return_holds_up() -> None:
    guidance = jsrl(always(1), 10, stages=4, window=2, length=8.0)
    # Means of two: 1 (the first to beat), .98, .88 (too low), .9 (too low), 1, 1.5, 1.5: then there is nothing left.
    assert judged(guidance, (1.0, 0.96, 0.8, 1.0, 1.0, 2.0, 1.0)) == [6, 4, 4, 4, 2, 0, 0]


def test_a_negative_return_may_be_a_little_more_negative() -> None:
    guidance = jsrl(always(1), 10, stages=4, window=1, length=8.0)
    assert judged(guidance, (-10.0, -10.6, -10.4)) == [6, 6, 4]


def test_few_episodes_are_not_judged() -> None:
    """Where episodes are long, a rollout ends one or two: the luckiest would be the best for long."""
    guidance = jsrl(always(1), 4, stages=4, window=2, length=8.0)
    assert judged(guidance, (100.0, 1.0, 1.0, 1.0), episodes=4) == [8, 8, 6, 6]


def test_jsrl_random_draws_the_guides_steps_for_every_episode() -> None:
    guidance = jsrl(always(1), environments=2000, horizon="random", length=3.0)
    guidance.start(range(2000))
    counts = np.zeros(2000)
    for _ in range(5):
        counts += guidance.act(np.zeros((2000, LIMIT + 2), np.float32), None, np.zeros(2000, np.int64)).replaced
        guidance.reward(None, np.zeros(2000), np.zeros(2000))
    assert np.bincount(counts.astype(int)).tolist() == pytest.approx([500] * 4, abs=80)


# RICE, StateMask-R and random


def test_each_start_is_used_once_before_any_is_used_again() -> None:
    starts = [bytes([k]) for k in range(5)]
    guidance = RiceGuidance(starts, 1.0, 0.0, None, np.random.default_rng(0))
    for _ in range(3):
        assert sorted(s for s in guidance.start(range(5)) if s) == starts


def test_the_probability_is_that_of_a_critical_start() -> None:
    """RICE's published code has it the other way round."""
    guidance = RiceGuidance([b"s"], 0.25, 0.0, None, np.random.default_rng(0))
    moved = [start is not None for start in guidance.start(range(4000))]
    assert np.mean(moved) == pytest.approx(0.25, abs=0.03)
    assert guidance.metrics()["guidance/moved_starts"] == np.mean(moved)


@pytest.mark.parametrize("name", ["hopper", "walker2d", "halfcheetah", "reacher"])
def test_a_restored_episode_has_a_full_time_limit_and_the_environments_own_observation(name: str) -> None:
    """In published code the clock ran on, and the observation was rebuilt by hand and wrong."""
    task = get_task(name)
    batch = task.make_local_batch(1)
    batch.reset([0], [3])
    rng, size = np.random.default_rng(0), task.action_space.size
    for _ in range(7):
        batch.step(rng.uniform(-1, 1, (1, size)).astype(np.float32))
    snapshot, facts = batch.snapshots([0])[0], batch.facts()[0]
    policy = create_policy(Architecture(task.observation_size, task.action_space, (8,)), rng)
    guidance = RiceGuidance([snapshot], 1.0, 0.0, None, rng)
    environments = Environments(task.make_local_batch(2), guidance, rng)
    environments.begin()
    reference: Any = task.make_environment()
    reference.reset(seed=0)
    if name == "reacher":  # its facts are joints, their velocities, fingertip and target
        qpos, qvel = np.append(facts[:2], facts[6:8]), np.append(facts[2:4], [0.0, 0.0])
    else:
        model = reference.unwrapped.model  # further facts, of ground contact, come after the state
        qpos, qvel = np.split(facts[: model.nq + model.nv], [model.nq])
    reference.unwrapped.set_state(qpos, qvel)
    wanted = reference.unwrapped._get_obs()
    np.testing.assert_allclose(environments.observations, [wanted, wanted], atol=1e-5 if name == "reacher" else 1e-6)
    if name in ("halfcheetah", "reacher"):  # the others fall before their time
        limit = reference.spec.max_episode_steps
        rollout = environments.rollout(policy, limit + 1, 0.99)
        assert np.flatnonzero(rollout.done.any(axis=1)).tolist() == [limit - 1]
    reference.close()


def test_environments_have_seeds_of_their_own_and_the_run_its_own() -> None:
    """In published code all environments shared one sequence, and --seed did nothing."""

    def starts(seed: int) -> list[list[float]]:
        environments = Environments(get_task("hopper").make_local_batch(4), NoGuidance(), np.random.default_rng(seed))
        environments.begin()
        return [list(map(float, row)) for row in environments.observations]

    assert starts(0) == starts(0)
    assert len({tuple(row) for row in starts(0) + starts(1)}) == 8


def test_what_is_new_earns_more_and_the_bonus_decays() -> None:
    novelty = Novelty(Normalizer.identity(3), 1e-3, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    known, new = rng.normal(size=(256, 3)).astype(np.float32), rng.normal(4, 1, (64, 3)).astype(np.float32)
    means = []
    for _ in range(60):
        means.append(novelty.bonus(known).mean())
        novelty.learn()
    assert 0.5 < means[0] < 1.5  # about 1 by its scale
    assert means[-1] < 0.2 * means[0]
    assert novelty.bonus(new).mean() > 3 * means[-1]


def test_the_bonus_is_on_what_a_step_leads_to() -> None:
    """Also where an episode ends there; and it is no part of the return."""
    seen: list[Any] = []

    class Spy(Novelty):
        def bonus(self, observations: Observations) -> Any:
            seen.append(observations.copy())
            return observations[:, LIMIT].astype(np.float64)  # 1 at the end of an episode, else 0

    spy = Spy(Normalizer.identity(LIMIT + 2), 1e-3, np.random.default_rng(0))
    guidance = RiceGuidance([], 0.0, 0.5, spy, np.random.default_rng(0))
    environments = Environments(Clockwork(2), guidance, np.random.default_rng(0))
    environments.begin()
    rollout = environments.rollout(always(0), 2 * LIMIT, 0.99)
    np.testing.assert_array_equal(rollout.rewards, 0.5 * rollout.done)
    np.testing.assert_array_equal(np.stack(seen)[:5], rollout.observations[1:6])
    assert set(environments.episodes.recent_returns) == {0.0}


# StateMask


def test_the_mask_keeps_the_action_that_matters() -> None:
    """The policy presses the button that pays at one moment only."""
    config = PPOConfig(environments=16, rollout_steps=2 * LIMIT, minibatch=48, epochs=5, gamma=0.9)
    mask, steps = train_mask(
        clockwork(),
        always(2),
        StateMaskConfig(alpha=0.05, learning_rate=0.01),
        config,
        10_000,
        np.random.default_rng(0),
    )
    assert steps == 10_000 // config.samples * config.samples
    ticks = np.concatenate([np.eye(LIMIT + 1)[:LIMIT], np.full((LIMIT, 1), 0.5)], axis=1).astype(np.float32)
    found = importance(mask, ticks)
    assert found[2] > 0.9
    assert np.delete(found, 2).max() < 0.5


def test_blinding_replaces_the_policys_action_and_earns_the_bonus() -> None:
    task = mask_task(clockwork(), always(2), alpha=0.25)
    batch = task.make_batch(600, 1)
    batch.reset(range(600), range(600))
    choice = np.where(np.arange(600) < 300, KEEP, BLIND)
    rewards = np.stack([batch.step(choice).rewards for _ in range(3)])
    np.testing.assert_array_equal(rewards[:, :300], [[0.0] * 300] * 2 + [[1.0] * 300])
    np.testing.assert_array_equal(rewards[:2, 300:], np.full((2, 300), 0.25))
    assert np.mean(rewards[2, 300:] - 0.25) == pytest.approx(1 / 3, abs=0.08)


@pytest.mark.parametrize("name", ["hopper", "pong"])
def test_a_blinded_environment_restores_exactly(name: str) -> None:
    task, policy = get_task(name), load_policy(POLICIES / name)
    batch = BlindedBatch(task.make_local_batch(3), policy, 0.1)
    rng = np.random.default_rng(0)
    batch.reset(range(3), [1, 2, 3])
    choices = rng.integers(2, size=(20, 3))
    for row in choices[:8]:
        batch.step(row)
    states = batch.snapshots(range(3))
    first = [batch.step(row) for row in choices[8:]]
    other = BlindedBatch(task.make_local_batch(3), policy, 0.1)
    other.restore([2, 0, 1], states)
    for row, wanted in zip(choices[8:], first, strict=True):
        again = other.step(row[[1, 2, 0]])
        np.testing.assert_array_equal(again.observations[[2, 0, 1]], wanted.observations)
        np.testing.assert_array_equal(again.rewards[[2, 0, 1]], wanted.rewards)


def test_of_every_episode_comes_the_most_important_state() -> None:
    importances = [np.array([0.1, 0.9, 0.2]), np.array([0.3]), np.arange(10) / 10]
    assert most_important(importances, 3) == [(0, 1), (2, 9), (1, 0)]
    assert most_important(importances, 4) == [(0, 1), (2, 9), (2, 5), (1, 0)]
    assert most_important(importances, 99) == [(0, 1), (2, 9), (2, 5), (1, 0), (2, 1)]


def test_too_few_steps_for_a_mask_are_one_clear_error() -> None:
    with pytest.raises(UltraError, match=r"100 steps are too few .* raise --statemask\.share"):
        train_mask(clockwork(), always(2), StateMaskConfig(), PPOConfig(), 100, np.random.default_rng(0))


# Fidelity


def clockwork_fidelity(place: int, **options: Any) -> list[Any]:
    """Scores of an explanation that points at one tick of the clock."""
    task, policy = clockwork(), always(2)
    episodes = collect(task, policy, list(range(60)), 0.99, workers=1)
    importances = [np.eye(LIMIT)[place]] * 60
    return fidelity(task, policy, episodes, importances, np.random.default_rng(0), workers=1, **options)


def test_fidelity_is_higher_for_the_truth() -> None:
    """At the decisive tick random actions cost the whole return two times out of three."""
    right = clockwork_fidelity(2, shares=[1 / 6])[0]
    assert right.change == pytest.approx(2 / 3, abs=0.2)
    assert right.score == pytest.approx(np.log(right.change) - np.log(1 / 6))
    # From the decisive tick both branches play four steps, at the fourth tick two.
    assert right.steps == 60 * 2 * 4
    assert right.low < right.score < right.high
    nothing = clockwork_fidelity(4, shares=[1 / 6])[0]
    assert nothing.score == -np.inf
    assert nothing.as_dict()["score"] is None  # JSON knows no infinity
    assert [f.share for f in clockwork_fidelity(2)] == [0.1, 0.2, 0.3, 0.4]


def test_the_window_is_the_one_of_highest_mean_importance() -> None:
    values = np.array([0.0, 0.5, 0.0, 0.4, 0.4, 0.0])
    assert most_important_window(values, 1) == 1
    assert most_important_window(values, 2) == 3
    assert most_important_window(values, 6) == 0


def test_fidelity_takes_any_analysts_states_and_says_what_it_lacks() -> None:
    task, policy = clockwork(), always(0)  # never earns anything
    episodes = collect(task, policy, [0, 1], 0.99, workers=1)
    states = [ultra.advice.records.CriticalState(1, 3, 0.7, "")]
    values = importance_of_states(states, episodes)
    assert [v.tolist() for v in values] == [[0] * 6, [0, 0, 0, 0.7, 0, 0]]
    score = partial(fidelity, task, policy, episodes, rng=np.random.default_rng(0))
    with pytest.raises(UltraError, match="every episode has return 0"):
        score(values)
    assert score(values, largest=1.0, shares=[0.5])[0].episodes == 2
    with pytest.raises(UltraError, match="episode 1 has 6 steps, but 5 importances"):
        score([values[0], values[1][:5]])


# Collecting within a budget


def test_as_many_whole_episodes_are_played_as_fit() -> None:
    play: Callable[..., Any] = partial(collect_within, clockwork(), some_policy(), np.random.default_rng(0), 0.99)
    assert [len(e) for e in play(33, most=99, workers=1)] == [LIMIT] * 5
    assert [len(e) for e in play(33, most=2, workers=1)] == [LIMIT] * 2
    assert [len(e) for e in play(4, most=9, workers=1)] == [4]
    assert len({e.seed for e in play(60, most=10, workers=1)}) == 10


def test_guidance_states_are_plain_json() -> None:
    for kind in ("jsrl", "rice"):
        guidance, other = guidance_for("hopper", kind), guidance_for("hopper", kind)
        guidance.start([0, 1])
        count = TINY.environments
        over = np.zeros(count, np.bool_)
        guidance.observe(Step(np.ones((count, 11), np.float32), np.zeros(count), over, over), None)
        state = json.loads(json.dumps(guidance.state()))
        assert json.loads(json.dumps(other.state())) != state
        other.load_state(state)
        assert json.loads(json.dumps(other.state())) == state
