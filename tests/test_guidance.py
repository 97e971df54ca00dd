"""ULTRA's guidance: equations 1 and 2, annealing, restarts, both estimators, and that strength 0 is plain PPO."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.policies import same

import ultra
from ultra.advice.records import Advice, AdviceBook, CriticalState, Entry, Verdict, Verification, calibrate
from ultra.analysts.random import random_plan
from ultra.collection.collect import collect
from ultra.config import GuidanceConfig, PPOConfig, VerifyConfig
from ultra.finetuning.implicit import similarity
from ultra.finetuning.nearest import Nearest
from ultra.finetuning.ultra import UltraGuidance
from ultra.policies.io import load_policy
from ultra.policies.policy import (
    Architecture,
    Policy,
    actor_critic,
    create_policy,
    flatten,
    log_prob,
    log_prob_function,
)
from ultra.ppo.checkpoint import Learner
from ultra.ppo.rollout import Environments, Rollout
from ultra.ppo.train import NO_GUIDANCE, Iteration, improve, optimizer, surrogate, train
from ultra.simulation.budget import StepBudget
from ultra.tasks import Snapshot, Step, Task, get_task
from ultra.tasks.batch import Facts, Indices, Live, Observations
from ultra.tasks.card import Fact, skeleton_card
from ultra.tasks.plans import Plan, Segment
from ultra.tasks.spaces import Actions, ActionSpace, Continuous, Discrete
from ultra.verification.recheck import Recheck

POLICIES = Path(ultra.__file__).parent / "policies" / "shipped"
BUTTONS, FORCE = Discrete(3), Continuous((-1.0, -1.0), (1.0, 3.0))
TINY = PPOConfig(environments=2, rollout_steps=32, minibatch=32, epochs=2)
SIZE = 4
"""Environments of the guidance in tests of its methods."""


# A book by hand: critical states at x = 0, 10, 20, ...


def some_entry(
    place: float,
    plan: Plan,
    taken: Sequence[Any],
    *,
    verdict: Verdict | None = "helps",
    advantage: float = 1.0,
    strength: float = 1.0,
    follow: float = 0.8,
    repeat: float = -0.4,
) -> Entry:
    found = Verification(advantage, 0.0, 0.0, 8, strength, verdict, 0) if verdict else None
    advice = Advice(CriticalState(0, 0, 1.0, ""), plan, follow, repeat, "", "test", found)
    snapshot = np.array([place, 3.0]).tobytes()
    return Entry(advice, np.array([place, 0.0]), snapshot, np.array(taken))


def book_of(*entries: Entry) -> AdviceBook:
    return AdviceBook(entries, np.array([0]), np.array([2.0]), radius=0.5)  # within 1 in units of x


def guidance_of(
    book: AdviceBook,
    space: ActionSpace,
    *,
    method: str = "ultra-ra",
    seed: int = 0,
    environments: int = SIZE,
    recheck: Recheck | None = None,
    **settings: Any,
) -> UltraGuidance:
    guidance = UltraGuidance(
        book,
        space,
        GuidanceConfig(**{"restart": 0.0, **settings}),
        environments,
        on_actions=method in ("ultra-a", "ultra-ra"),
        on_rewards=method in ("ultra-r", "ultra-ra"),
        rng=np.random.default_rng(seed),
        recheck=recheck,
    )
    guidance.progress(0.0, NOBODY)
    return guidance


def at(*places: float) -> Facts:
    """Facts of environments at these places; the second fact does not count."""
    return np.array([[place, 77.0] for place in places])


def act(guidance: UltraGuidance, facts: Facts, actions: Actions) -> tuple[Actions, NDArray[np.bool_]]:
    """One step of a rollout, without its reward."""
    change = guidance.act(facts.astype(np.float32), facts, actions)
    return change.actions, change.replaced


NOBODY: Any = None
"""The policy is looked at only when advice is tried again."""
PRESS = Plan((Segment(2, 2), Segment(0, 1)))
PUSH = Plan((Segment((0.5, -0.5), 1), Segment((0.2, 4.0), 1)), relative=True)


# Equation 1


def test_at_a_critical_state_the_advised_action_is_executed() -> None:
    guidance = guidance_of(book_of(some_entry(0, PRESS, [1, 1, 1]), some_entry(10, Plan((Segment(0),)), [2])), BUTTONS)
    own = np.array([1, 1, 1, 1])
    actions, replaced = act(guidance, at(0.3, 5, 10.9, 11.1), own)
    assert actions.tolist() == [2, 1, 0, 1]
    assert replaced.tolist() == [True, False, True, False]
    assert own.tolist() == [1, 1, 1, 1]


def test_a_plan_is_followed_to_its_end_wherever_it_leads() -> None:
    """Then the policy acts again, until the next critical state."""
    guidance = guidance_of(book_of(some_entry(0, PRESS, [1, 1, 1])), BUTTONS, environments=1)
    executed = []
    for place in (0, 500, 500, 500, 0.5, 500):
        actions, _ = act(guidance, at(place), np.array([1]))
        executed.append(int(actions[0]))
        guidance.reward(at(place), actions, np.zeros(1))
    assert executed == [2, 2, 0, 1, 2, 2]


def test_a_change_is_added_at_its_strength_and_kept_inside_the_bounds() -> None:
    guidance = guidance_of(book_of(some_entry(0, PUSH, [[0.0, 0.0]] * 2, strength=0.5)), FORCE, environments=2)
    own = np.array([[0.1, 0.2], [0.1, 0.2]], np.float32)
    first, _ = act(guidance, at(0, 5), own)
    np.testing.assert_allclose(first, [[0.35, -0.05], [0.1, 0.2]], rtol=1e-6)
    guidance.reward(at(0, 5), first, np.zeros(2))
    own = np.array([[-0.5, 2.0], [0.1, 0.2]], np.float32)
    second, replaced = act(guidance, at(5, 5), own)
    np.testing.assert_allclose(FORCE.clip(second), [[-0.4, 3.0], [0.1, 0.2]], rtol=1e-6)
    assert replaced.tolist() == [True, False]


def test_the_nearest_of_several_states_counts() -> None:
    near = [some_entry(x, Plan((Segment(button),)), [1]) for x, button in ((0.0, 0), (0.8, 2))]
    guidance = guidance_of(book_of(*near), BUTTONS, environments=2)
    assert act(guidance, at(0.3, 0.5), np.array([1, 1]))[0].tolist() == [0, 2]


@pytest.mark.parametrize("entries", [1, 7, 3000])
def test_the_nearest_of_a_table_is_found_by_the_facts_that_count(entries: int) -> None:
    """Also where the table is looked through in parts, states lie far from zero, and other facts are no numbers."""
    rng = np.random.default_rng(entries)
    columns, scale = np.array([3, 0, 2]), np.array([0.1, 2.0, 30.0])
    facts = rng.normal(size=(entries, 5)) + 1e4
    advice = some_entry(0, Plan((Segment(0),)), [1]).advice
    book = AdviceBook(tuple(Entry(advice, row, b"", np.zeros(1)) for row in facts), columns, scale, 0.2)
    states = np.concatenate([facts[rng.integers(entries, size=40)], rng.normal(size=(40, 5)) + 1e4])
    states[:, 1], states[-1, 0] = math.nan, math.nan
    states[:, columns] += 0.05 * scale * rng.normal(size=(80, 3))
    with np.errstate(invalid="ignore"):
        distances = np.linalg.norm((states[:, None, columns] - facts[None, :, columns]) / scale, axis=2)
    rows = np.arange(0, 80, 2)
    wanted = [row for row in rows if distances[row].min() < 0.2]
    assert 0 < len(wanted) < len(rows)
    near, found = Nearest(book).of(states, rows)
    np.testing.assert_array_equal(near, wanted)
    np.testing.assert_array_equal(found, distances[wanted].argmin(axis=1))


VERDICTS: list[Verdict | None] = ["helps", "harms", "unclear", None]


@pytest.mark.parametrize(("trust", "executed"), [("helps", [True, False, False, False]), ("all", [True] * 4)])
@pytest.mark.parametrize("method", ["ultra-a", "ultra-ra"])
def test_advice_that_is_not_known_to_help_is_never_executed(
    trust: Literal["helps", "all"], executed: list[bool], method: str
) -> None:
    """Unless everything is trusted, as in the paper."""
    entries = [some_entry(10 * k, Plan((Segment(2),)), [1], verdict=verdict) for k, verdict in enumerate(VERDICTS)]
    guidance = guidance_of(book_of(*entries), BUTTONS, method=method, trust=trust)
    for _ in range(30):
        actions, replaced = act(guidance, at(0, 10, 20, 30), np.array([1, 1, 1, 1]))
        assert replaced.tolist() == executed
        assert (actions == 2).tolist() == executed
        guidance.reward(at(0, 10, 20, 30), actions, np.zeros(4))


def test_advice_that_harms_is_not_rehearsed_either() -> None:
    entries = [some_entry(10 * k, Plan((Segment(2),)), [1], verdict=verdict) for k, verdict in enumerate(VERDICTS)]
    guidance = guidance_of(book_of(*entries), BUTTONS, restart=1.0)
    starts = {start for _ in range(50) for start in guidance.start(range(SIZE))}
    assert starts == {entries[0].snapshot, entries[2].snapshot}


@pytest.mark.parametrize(("method", "actions", "rewards"), [("a", True, False), ("r", False, True), ("ra", True, True)])
def test_each_variant_changes_what_its_name_says(method: str, actions: bool, rewards: bool) -> None:
    guidance = guidance_of(book_of(some_entry(0, PRESS, [1, 1, 1])), BUTTONS, method=f"ultra-{method}")
    own = np.array([1, 1, 1, 1])
    executed, replaced = act(guidance, at(0, 0, 5, 5), own)
    assert replaced.tolist() == [actions, actions, False, False]
    changed = guidance.reward(at(0, 0, 5, 5), executed, np.zeros(4))
    assert (changed != 0).tolist() == [rewards, rewards, False, False]


def test_executed_advice_is_weighted_by_its_measured_advantage() -> None:
    entries = [some_entry(10 * k, Plan((Segment(2),)), [1], advantage=a) for k, a in enumerate((4.0, 1.0, 2.0))]
    guidance = guidance_of(book_of(*entries), BUTTONS)
    change = guidance.act(at(0, 10, 20, 99).astype(np.float32), at(0, 10, 20, 99), np.array([1, 1, 1, 1]))
    np.testing.assert_allclose(change.weights, [1, 0.25, 0.5, 0])
    fading = guidance_of(book_of(*entries), BUTTONS, strength=0.5)
    states = at(0, 10, 20, 99)
    weights = fading.act(states.astype(np.float32), states, np.ones(4, np.int64)).weights
    assert set(weights.tolist()) <= {0.5, 0.125, 0.25, 0.0}
    assert weights.any()


# Equation 2

LAMBDA, BETA = 2.0, 0.75


def rewarded(
    plan: Plan, taken: Sequence[Any], space: ActionSpace, steps: Sequence[Any], method: str = "ultra-r"
) -> list[float]:
    """What a task's reward of 1 becomes in the steps of a plan in which the policy does `steps`."""
    entry = some_entry(0, plan, taken)
    guidance = guidance_of(book_of(entry), space, method=method, lam=LAMBDA, strength=BETA, environments=1)
    rewards = []
    for step in steps:
        executed, _ = act(guidance, at(0), np.array([step], None if isinstance(space, Discrete) else np.float32))
        rewards.append(float(guidance.reward(at(0), executed, np.ones(1))[0]))
    return rewards


@settings(deadline=None)
@given(steps=st.tuples(*[st.integers(0, 2)] * 3), taken=st.lists(st.integers(0, 2), min_size=3, max_size=5))
def test_buttons_are_rewarded_when_they_are_the_advised_or_the_taken_ones(
    steps: tuple[int, ...], taken: list[int]
) -> None:
    """r + lambda beta (0.8 if advised - 0.4 if taken) / steps of the plan."""
    advised = [2, 2, 0]
    wanted = [
        1 + LAMBDA * BETA * (0.8 * (step == good) - 0.4 * (step == bad)) / 3
        for step, good, bad in zip(steps, advised, taken[:3], strict=True)
    ]
    assert rewarded(PRESS, taken, BUTTONS, steps) == pytest.approx(wanted)


VALUES = st.tuples(st.floats(-1, 1), st.floats(-1, 3))


@settings(deadline=None)
@given(steps=st.tuples(VALUES, VALUES), taken=st.tuples(VALUES, VALUES), relative=st.booleans())
def test_forces_are_rewarded_by_their_likeness(
    steps: tuple[tuple[float, float], ...], taken: tuple[tuple[float, float], ...], relative: bool
) -> None:
    """A Gaussian kernel of width 1/2 on forces scaled to [-1, 1]; changes are added to what was taken."""
    plan = replace(PUSH, relative=relative)
    wanted = []
    for step, before, change in zip(steps, taken, plan.expand().tolist(), strict=True):
        advised = np.clip(np.array(before) * relative + change, [-1, -1], [1, 3])
        gaps = [(np.array(step) - other) / [1, 2] for other in (advised, np.array(before))]
        likeness = [np.exp(-np.mean(gap**2) / (2 * 0.5**2)) for gap in gaps]
        wanted.append(1 + LAMBDA * BETA * (0.8 * likeness[0] - 0.4 * likeness[1]) / 2)
    assert rewarded(plan, taken, FORCE, steps) == pytest.approx(wanted, rel=1e-5)


def test_an_executed_plan_earns_its_whole_reward() -> None:
    """Spread over its steps; the last one is also what the policy had done there."""
    guidance = guidance_of(book_of(some_entry(0, PRESS, [1, 1, 0])), BUTTONS, environments=1, lam=LAMBDA)
    gained = []
    for _ in range(3):
        executed, replaced = act(guidance, at(0), np.array([1]))
        assert replaced.all()
        gained.append(float(guidance.reward(at(0), executed, np.ones(1))[0]) - 1)
    assert gained == pytest.approx([LAMBDA * 0.8 / 3, LAMBDA * 0.8 / 3, LAMBDA * (0.8 - 0.4) / 3])


def test_an_executed_change_is_followed_whatever_the_policy_did() -> None:
    """Here the policy is about to do something else than at the critical state."""
    entry = some_entry(0, Plan((Segment((0.1, 0.1)),), relative=True), [[1.0, 3.0]], repeat=0.0)
    guidance = guidance_of(book_of(entry), FORCE, environments=1, lam=LAMBDA)
    executed, _ = act(guidance, at(0), np.array([[-1.0, -1.0]], np.float32))
    assert guidance.reward(at(0), executed, np.zeros(1))[0] == pytest.approx(LAMBDA * 0.8)


def test_where_the_episode_had_ended_nothing_counts_as_repeated() -> None:
    gained = np.array(rewarded(PRESS, [1], BUTTONS, [1, 1, 1])) - 1
    assert gained == pytest.approx([LAMBDA * BETA * -0.4 / 3, 0, 0])


def test_rewards_elsewhere_stay_as_they_are() -> None:
    guidance = guidance_of(book_of(some_entry(0, PRESS, [1, 1, 1])), BUTTONS, method="ultra-r")
    rewards = np.array([1.5, -2.0, 0.0, 7.0])
    executed, _ = act(guidance, at(5, 6, 7, 1.01), np.array([2, 2, 2, 2]))
    np.testing.assert_array_equal(guidance.reward(at(5, 6, 7, 1.01), executed, rewards), [1.5, -2.0, 0.0, 7.0])


FORCES = st.tuples(st.floats(-1, 1), st.floats(-1, 3))


@settings(deadline=None)
@given(FORCES, FORCES)
def test_likeness_is_one_for_equal_actions_and_falls_with_distance(
    one: tuple[float, float], other: tuple[float, float]
) -> None:
    a, b = np.array([one]), np.array([other])
    assert similarity(FORCE, a, a)[0] == 1
    assert similarity(FORCE, a, b)[0] == similarity(FORCE, b, a)[0]
    halfway = (a + b) / 2
    assert 0 < similarity(FORCE, a, b)[0] <= similarity(FORCE, a, halfway)[0] <= 1


def test_likeness_of_worked_examples() -> None:
    """A quarter of each range apart is half a unit on [-1, 1]."""
    forces = similarity(FORCE, np.array([[0.0, 0.0]]), np.array([[0.5, 1.0]]))
    assert forces == pytest.approx([np.exp(-0.5)])
    assert similarity(BUTTONS, np.array([1, 2]), np.array([1, 1])).tolist() == [1, 0]


# Annealing and restarts


@settings(deadline=None)
@given(fraction=st.floats(0, 1), until=st.floats(0.05, 1), strength=st.floats(0, 1))
def test_the_strength_falls_linearly_to_zero(fraction: float, until: float, strength: float) -> None:
    guidance = guidance_of(book_of(), BUTTONS, strength=strength, anneal_until=until)
    guidance.progress(fraction, NOBODY)
    wanted = strength * max(0.0, (until - fraction) / until)
    assert guidance.metrics()["guidance/strength"] == pytest.approx(wanted, abs=1e-9)


def test_after_annealing_training_is_plain() -> None:
    """Also in the middle of a plan."""
    guidance = guidance_of(book_of(some_entry(0, PRESS, [1, 1, 1])), BUTTONS, restart=1.0, anneal_until=0.6)
    own, here = np.array([1, 1, 1, 1]), at(0, 0, 0, 0)
    assert act(guidance, here, own)[1].all()
    guidance.reward(here, own, np.ones(4))
    guidance.progress(0.6, NOBODY)
    executed, replaced = act(guidance, here, own)
    assert executed.tolist() == own.tolist()
    assert not replaced.any()
    assert guidance.reward(here, own, np.ones(4)).tolist() == [1, 1, 1, 1]
    assert guidance.start(range(SIZE)) == [None] * SIZE


def test_half_way_half_of_the_advice_is_followed() -> None:
    guidance = guidance_of(book_of(some_entry(0, Plan((Segment(2),)), [1])), BUTTONS, environments=100)
    guidance.progress(0.3, NOBODY)
    here = at(*[0] * 100)
    shares = []
    for _ in range(20):
        executed, replaced = act(guidance, here, np.ones(100, np.int64))
        guidance.reward(here, executed, np.zeros(100))
        shares.append(replaced.mean())
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
    assert guidance.metrics()["guidance/replaced_share"] == pytest.approx(np.mean(shares))


def test_some_episodes_begin_at_critical_states_and_follow_the_plan_from_there() -> None:
    entries = [some_entry(10, PRESS, [1, 1, 1]), some_entry(20, Plan((Segment(0),)), [1])]
    guidance = guidance_of(book_of(*entries), BUTTONS, restart=0.3, environments=1000)
    starts = guidance.start(range(1000))
    share = np.mean([start is not None for start in starts])
    assert share == pytest.approx(0.3, abs=0.05)
    assert {start for start in starts if start is not None} == {entry.snapshot for entry in entries}
    # Their facts need not match: the plan is known from the snapshot.
    executed, replaced = act(guidance, at(*[500] * 1000), np.ones(1000, np.int64))
    wanted = {None: 1, entries[0].snapshot: 2, entries[1].snapshot: 0}
    assert executed.tolist() == [wanted[start] for start in starts]
    assert replaced.tolist() == [start is not None for start in starts]


def test_a_new_episode_ends_the_plan() -> None:
    guidance = guidance_of(book_of(some_entry(0, PRESS, [1, 1, 1])), BUTTONS)
    own = np.array([1, 1, 1, 1])
    guidance.reward(at(0, 0, 0, 0), act(guidance, at(0, 0, 0, 0), own)[0], np.zeros(4))
    assert guidance.start([1, 3]) == [None, None]
    assert act(guidance, at(9, 9, 9, 9), own)[0].tolist() == [2, 1, 2, 1]


# Resuming


def test_guidance_goes_on_from_its_state() -> None:
    """Through JSON, in the middle of plans, with the same random numbers."""
    book = book_of(some_entry(0, PRESS, [1, 1, 1]), some_entry(10, Plan((Segment(0, 5),)), [1] * 5))
    one, other = (guidance_of(book, BUTTONS, restart=0.5, seed=seed) for seed in (1, 2))
    rng = np.random.default_rng(0)

    def go(guidance: UltraGuidance, facts: Facts, own: Actions) -> tuple[list[Any], ...]:
        guidance.progress(0.2, NOBODY)
        starts = guidance.start([int(facts[0, 0]) % SIZE])
        executed, replaced = act(guidance, facts, own)
        return starts, executed.tolist(), replaced.tolist(), guidance.reward(facts, executed, np.ones(SIZE)).tolist()

    steps = [(at(*rng.choice([0, 5, 10], SIZE)), rng.integers(0, 3, SIZE)) for _ in range(40)]
    for facts, own in steps[:20]:
        go(one, facts, own)
    other.load_state(json.loads(json.dumps(one.state())))
    for facts, own in steps[20:]:
        assert go(one, facts, own) == go(other, facts, own)


# Trying again


class Doubts:
    """Stands for `Recheck`: finds a given advantage for each row, at every check."""

    def __init__(self, advantages: list[float]) -> None:
        self.advantages = advantages
        self.asked: list[list[int]] = []

    def due(self, fraction: float) -> bool:
        return fraction >= 0.5

    def run(self, policy: Any, rows: Any) -> list[Verification | None]:
        self.asked.append(list(rows))
        return [Verification(self.advantages[row], 0, 0, 8, 1.0, "unclear", 0) for row in rows]


def test_what_helps_no_more_is_not_executed_any_longer() -> None:
    """What is used most is tried first; the harmful third entry is not in use and not tried."""
    step = Plan((Segment(2),))
    entries = [some_entry(0, step, [1]), some_entry(10, step, [1]), some_entry(20, step, [1], verdict="harms")]
    doubts: Any = Doubts([-0.1, 0.7, 9.0])
    guidance = guidance_of(book_of(*entries), BUTTONS, recheck=doubts, anneal_until=0.9, strength=1.0)
    own = np.array([1, 1, 1, 1])
    for _ in range(3):
        executed, replaced = act(guidance, at(0, 10, 10, 20), own)
        assert replaced.tolist() == [True, True, True, False]
        guidance.reward(at(0, 10, 10, 20), executed, np.zeros(4))
    guidance.progress(0.1, NOBODY)
    assert not doubts.asked
    guidance.progress(0.46, NOBODY)
    assert doubts.asked == [[1, 0]]
    followed = np.zeros(4)
    for _ in range(30):
        executed, replaced = act(guidance, at(0, 10, 10, 20), own)
        followed += replaced
        guidance.reward(at(0, 10, 10, 20), executed, np.zeros(4))
    assert followed[0] == followed[3] == 0
    assert followed[1] > 0


# In the training loop


class Line:
    """A hand-made batch: a point moves by its action; facts are place and clock; episodes last five steps."""

    def __init__(self, size: int) -> None:
        self.place, self.clock = np.zeros(size), np.zeros(size, np.int64)

    @property
    def size(self) -> int:
        return len(self.place)

    def facts(self) -> Facts:
        return np.stack([self.place, self.clock], axis=1)

    def observe(self) -> Observations:
        return np.stack([self.place, np.ones(self.size)], axis=1).astype(np.float32)

    def reset(self, indices: Indices, seeds: Sequence[int]) -> Observations:
        self.place[indices] = [seed % 3 - 101 for seed in seeds]
        self.clock[indices] = 0
        return self.observe()[indices]

    def step(self, actions: Actions, live: Live = None) -> Step:
        self.place += actions - 1
        self.clock += 1
        rewards = self.place * 0.1
        return Step(self.observe(), rewards, np.zeros(self.size, np.bool_), self.clock >= 5)

    def snapshots(self, indices: Indices) -> list[Snapshot]:
        return [np.array([self.place[i], self.clock[i]]).tobytes() for i in indices]

    def restore(self, indices: Indices, snapshots: Sequence[Snapshot]) -> Observations:
        for index, snapshot in zip(indices, snapshots, strict=True):
            self.place[index], self.clock[index] = np.frombuffer(snapshot)
        return self.observe()[indices]

    def restart_clock(self, indices: Indices) -> None:
        self.clock[indices] = 0

    def close(self) -> None:
        pass


def line_task() -> Task:
    return Task(
        name="line",
        card=skeleton_card("line", [Fact("x0", "", ""), Fact("x1", "", "")], BUTTONS),
        observation_size=2,
        action_space=BUTTONS,
        time_limit=5,
        make_local_batch=Line,
        make_environment=partial(get_task("CartPole-v1").make_environment),
    )


def line_policy() -> Policy:
    return create_policy(Architecture(2, BUTTONS, (8,)), np.random.default_rng(0))


def line_rollout(guidance: UltraGuidance, steps: int = 20) -> tuple[Rollout, Environments]:
    environments = Environments(Line(SIZE), guidance, np.random.default_rng(3))
    environments.begin()
    return environments.rollout(line_policy(), steps, 0.99), environments


def test_restarted_episodes_have_their_whole_time_and_do_not_count_as_returns() -> None:
    """The snapshot was taken at clock 3 of 5."""
    rollout, environments = line_rollout(guidance_of(book_of(some_entry(10, PRESS, [1, 1, 1])), BUTTONS, restart=1.0))
    np.testing.assert_array_equal(rollout.observations[0], [[10, 1]] * SIZE)
    assert rollout.done[4].all()
    assert rollout.done.sum() == 4 * SIZE
    np.testing.assert_array_equal(rollout.actions[:3], [[2] * SIZE, [2] * SIZE, [0] * SIZE])
    np.testing.assert_array_equal(rollout.replaced[:5, 0], [True, True, True, False, False])
    np.testing.assert_array_equal(rollout.observations[5], [[10, 1]] * SIZE)
    assert environments.episodes.finished == 4 * SIZE
    assert not environments.episodes.recent_returns


def test_a_rollout_records_what_was_executed() -> None:
    """With the probability that the policy gave it, and the episode's return without guidance's rewards."""
    book = book_of(some_entry(-100, PRESS, [1, 1, 1]))
    rollout, environments = line_rollout(guidance_of(book, BUTTONS, lam=3.0))
    assert 0 < rollout.replaced.mean() < 1
    places = rollout.observations[..., 0]
    moved = np.diff(places, axis=0) + 1
    inside = ~rollout.done[:-1]
    np.testing.assert_array_equal(moved[inside], rollout.actions[:-1][inside])
    policy = line_policy()
    flat = rollout.observations.reshape(-1, 2)
    wanted = log_prob_function()(policy.params, policy.normalizer.arrays(), flat, rollout.actions.reshape(-1))
    np.testing.assert_allclose(rollout.log_probs.reshape(-1), wanted, rtol=1e-5)
    true = np.add.reduceat(0.1 * (places + rollout.actions - 1), np.arange(0, 20, 5), axis=0)
    np.testing.assert_allclose(sorted(environments.episodes.recent_returns), sorted(true.reshape(-1)))
    assert (rollout.rewards - 0.1 * (places + rollout.actions - 1)).max() == pytest.approx(3.0 * 0.8 / 3)


def reference_advantages(rollout: Rollout, cut: NDArray[np.bool_], config: PPOConfig) -> NDArray[np.float64]:
    """Discounted errors, step by step, up to the first cut."""
    errors = rollout.rewards + config.discount * rollout.next_values - rollout.values
    result = np.zeros(errors.shape)
    for t, i in np.ndindex(errors.shape):
        for later in range(t, len(errors)):
            result[t, i] += (config.discount * config.gae_lambda) ** (later - t) * errors[later, i]
            if cut[later, i]:
                break
    return result


def test_the_corrected_update_from_overwritten_steps_is_the_one_by_hand() -> None:
    """Only the policy's own steps enter the surrogate, no lambda-return reaches into advice, and advice is imitated."""
    config = PPOConfig(environments=SIZE, rollout_steps=20, minibatch=80, epochs=1, learning_rate=0.01, entropy=0.02)
    book = book_of(
        some_entry(-100, PRESS, [1, 1, 1], advantage=2.0), some_entry(-98, Plan((Segment(0),)), [1], advantage=1.0)
    )
    guidance = guidance_of(book, BUTTONS, estimator="corrected", imitation=0.3)
    rollout, _ = line_rollout(guidance)
    assert set(np.unique(rollout.weights).tolist()) == {0.0, 0.5, 1.0}
    policy = line_policy()
    learner = Learner(policy, optimizer(config).init(policy.params))
    improve(learner, rollout, config, np.random.default_rng(0), guidance, config.learning_rate)

    cut = rollout.done.copy()
    cut[:-1] |= rollout.replaced[1:]
    advantage = reference_advantages(rollout, cut, config)
    everything = {
        "observations": rollout.observations,
        "actions": rollout.actions,
        "log_probs": rollout.log_probs,
        "advantages": advantage,
        "returns": advantage + rollout.values,
        "weights": rollout.weights,
    }
    flat = {name: jnp.asarray(array.reshape(80, *array.shape[2:])) for name, array in everything.items()}
    own = ~rollout.replaced.reshape(80)
    kept = {name: array[own] for name, array in flat.items()} | {"kept": jnp.ones(int(own.sum()))}

    def loss(params: dict[str, Any]) -> jax.Array:
        value, _ = surrogate(params, kept, config, None)
        outputs, _ = actor_critic(params, flat["observations"])
        imitated = (flat["weights"] * log_prob(params, outputs, flat["actions"])).sum() / 80
        return value - 0.3 * imitated

    @jax.jit
    def step(params: dict[str, Any]) -> Any:
        changes, _ = optimizer(config).update(jax.grad(loss)(params), optimizer(config).init(params))
        return optax.apply_updates(params, jax.tree.map(lambda change: config.learning_rate * change, changes))

    for name, array in flatten(step(policy.params)).items():
        found = flatten(learner.policy.params)[name]
        np.testing.assert_allclose(found, array, rtol=0, atol=0.02 * config.learning_rate, err_msg=name)


def test_the_papers_update_takes_overwritten_steps_as_the_policys_own() -> None:
    task, policy, book = real_book("hopper")
    guidance = guidance_of(book, task.action_space, environments=TINY.environments, restart=1.0, estimator="paper")
    environments = Environments(task.make_batch(2, 1), guidance, np.random.default_rng(0))
    environments.begin()
    rollout = environments.rollout(policy, TINY.rollout_steps, TINY.discount)
    assert 0 < rollout.replaced.mean() < 1
    learners = []
    for judge in (guidance, NO_GUIDANCE):
        learner = Learner(policy, optimizer(TINY).init(policy.params))
        improve(learner, rollout, TINY, np.random.default_rng(0), judge, TINY.learning_rate)
        learners.append(learner)
    assert same(learners[0].policy, learners[1].policy)


def test_imitation_leaves_the_exploration_noise_alone() -> None:
    guidance = guidance_of(book_of(some_entry(0, PUSH, [[0.0, 0.0]] * 2)), FORCE)
    loss = guidance.loss
    assert loss is not None
    outputs = jnp.ones((3, 2))
    batch = {"outputs": outputs, "actions": jnp.zeros((3, 2)), "weights": jnp.ones(3), "replaced": jnp.ones(3)}
    gradient = jax.grad(lambda log_std: loss({"log_std": log_std}, batch))(jnp.zeros(2))
    assert not gradient.any()


@pytest.mark.parametrize(
    ("options", "verdict"),
    [({"estimator": "paper"}, "helps"), ({"imitation": 0.0}, "helps"), ({"strength": 0.0}, "helps"), ({}, "unclear")],
)
def test_without_anything_to_imitate_the_loss_is_ppos(options: dict[str, Any], verdict: Verdict) -> None:
    book = book_of(some_entry(0, PRESS, [1, 1, 1], verdict=verdict))
    assert guidance_of(book, BUTTONS, **options).loss is None


# On real tasks, with a book of real states


@cache
def real_book(name: str) -> tuple[Task, Policy, AdviceBook]:
    """Random plans at states that the shipped policy visited; every other one is said to help."""
    task, policy = get_task(name), load_policy(POLICIES / name)
    episodes = collect(task, policy, [1, 2], 0.99, longest=48, workers=1)
    rng = np.random.default_rng(0)
    entries = []
    for number in range(6):
        episode, t = episodes[number % 2], 16 * (number // 2)
        plan = random_plan(task.action_space, 8, rng)
        verdict: Verdict = "helps" if number % 2 else "unclear"
        found = Verification(1.0 + number, 0.5, 9.0, 8, 0.5 if plan.relative else 1.0, verdict, 100)
        advice = Advice(CriticalState(number % 2, t, 1.0, ""), plan, 0.7, -0.7, "", "test", found)
        snapshot = dict(episode.snapshots)[t]
        entries.append(Entry(advice, episode.facts[t], snapshot, episode.actions[t : t + len(plan)]))
    columns = task.card.matched
    return task, policy, AdviceBook(tuple(entries), columns, *calibrate([e.facts for e in episodes], columns))


def trained(name: str, method: str, iterations: int = 2, **options: Any) -> Policy:
    """The policy after a tiny training under guidance, or plainly."""
    task, policy, book = real_book(name)
    run = {key: options.pop(key) for key in ("checkpoint", "observer") if key in options}
    guidance = NO_GUIDANCE if method == "ppo" else guidance_of(
        book, task.action_space, method=method, environments=TINY.environments, **options
    )  # fmt: skip
    rng = np.random.default_rng(4)
    return train(task, policy, TINY, iterations * TINY.samples, rng, guidance=guidance, workers=1, **run)


plain = cache(partial(trained, method="ppo"))


@pytest.mark.parametrize("estimator", ["corrected", "paper"])
@pytest.mark.parametrize("method", ["ultra-a", "ultra-r", "ultra-ra"])
@pytest.mark.parametrize("name", ["hopper", "pong"])
def test_guidance_of_strength_zero_is_plain_ppo_bit_for_bit(name: str, method: str, estimator: str) -> None:
    assert same(trained(name, method, strength=0.0, restart=0.5, estimator=estimator), plain(name))


@pytest.mark.parametrize("name", ["hopper", "pong"])
def test_guidance_of_any_strength_is_not(name: str) -> None:
    """Else the test above shows nothing."""
    for method in ("ultra-a", "ultra-r"):
        assert not same(trained(name, method, restart=0.9, imitation=0.0), plain(name))


def test_an_interrupted_guided_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"restart": 0.5, "imitation": 0.0, "iterations": 4, "anneal_until": 1.0}
    calls = iter(range(100))

    def interrupt(_: Iteration) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt

    whole = trained("hopper", "ultra-ra", **options)
    path = tmp_path / "checkpoint.npz"
    with pytest.raises(KeyboardInterrupt):
        trained("hopper", "ultra-ra", **options, checkpoint=path, observer=interrupt)
    assert path.exists()
    assert same(trained("hopper", "ultra-ra", **options, checkpoint=path, seed=99), whole)


def test_a_resumed_training_does_not_repeat_a_recheck(tmp_path: Path) -> None:
    """Rollouts are long here, so that a further check is due at once after each: resuming must not do it early."""
    task, policy, book = real_book("hopper")
    calls = iter(range(100))

    def interrupt(_: Iteration) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt

    def checks(**options: Any) -> dict[str, int]:
        budget = StepBudget(100_000)
        config = VerifyConfig(branches=8)
        batch = task.make_batch(8, 1)
        try:
            recheck = Recheck(batch, book.entries, config, 0.99, 20, budget, 9000, [7])
            guidance = guidance_of(
                book, task.action_space, environments=TINY.environments, recheck=recheck, restart=0.9, strength=1.0,
                imitation=0.0,
            )  # fmt: skip
            rng = np.random.default_rng(4)
            train(task, policy, TINY, 4 * TINY.samples, rng, guidance=guidance, budget=budget, workers=1, **options)
        finally:
            batch.close()
        assert recheck.state()["spent"] == budget.spent["verify"]
        return recheck.state()

    whole, path = checks(), tmp_path / "checkpoint.npz"
    assert whole["done"] == 2
    assert whole["spent"] > 0
    with pytest.raises(KeyboardInterrupt):
        checks(checkpoint=path, observer=interrupt)
    assert checks(checkpoint=path) == whole
