"""Verification, on a game whose true advantages are known: verdicts, intervals and the account of steps.

The game lasts two steps. The first action earns what the state says it is worth; the second one's
reward is random, because the policy is, and depends on the first. So every advice has a noisy
outcome with a known mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ultra.advice import Advice, CriticalState, Verification
from ultra.budget import StepBudget
from ultra.config import VerifyConfig
from ultra.plans import Plan, Segment
from ultra.policy import Architecture, Policy, create_policy, flatten, unflatten
from ultra.spaces import Actions, ActionSpace, Continuous, Discrete
from ultra.tasks import Snapshot, Step
from ultra.tasks.batch import Facts, Indices, Live, Observations
from ultra.verification import (
    FIRST_LOOK,
    Bench,
    Proposal,
    Trial,
    audit,
    chance_of_clarity,
    interval,
    judge,
    looks,
    run_pairs,
    verify,
)

Array = NDArray[np.float64]

FORCE, CARDS = Continuous((-100.0,), (100.0,)), Discrete(3)
STEPS = 2
"""Steps of a game."""


class Game:
    """The game as a batch. A state is (clock, first action, worth of the first action).

    Args:
        size: games.
        first: (worth, action) -> reward of the first step.
        second: (first action, action) -> reward of the second step.
    """

    def __init__(
        self,
        size: int = 32,
        *,
        first: Callable[[Array, Array], Array] = lambda worth, action: worth * action,
        second: Callable[[Array, Array], Array] = lambda before, action: before * action,
    ) -> None:
        self.state = np.zeros((size, 3))
        self.first, self.second = first, second
        self.steps = 0

    @property
    def size(self) -> int:
        return len(self.state)

    def observe(self, indices: Indices) -> Observations:
        return self.state[indices].astype(np.float32)

    def reset(self, indices: Indices, seeds: Sequence[int]) -> Observations:
        self.state[indices] = 0.0
        return self.observe(indices)

    def step(self, actions: Actions, live: Live = None) -> Step:
        action = actions.reshape(self.size).astype(np.float64)
        clock, before, worth = self.state.T.copy()
        rewards = np.where(clock == 0, self.first(worth, action), self.second(before, action))
        self.state[:, 0] += 1
        self.state[:, 1] = action
        over = self.state[:, 0] >= STEPS
        return Step(self.observe(np.arange(self.size)), rewards, over, np.zeros(self.size, np.bool_))

    def facts(self) -> Facts:
        return self.state.copy()

    def snapshots(self, indices: Indices) -> list[Snapshot]:
        return [self.state[i].tobytes() for i in indices]

    def restore(self, indices: Indices, snapshots: Sequence[Snapshot]) -> Observations:
        for index, snapshot in zip(indices, snapshots, strict=True):
            self.state[index] = np.frombuffer(snapshot)
        return self.observe(indices)

    def restart_clock(self, indices: Indices) -> None:
        pass

    def close(self) -> None:
        pass


def player(space: ActionSpace, *logits: float) -> Policy:
    """A policy that is blind: standard normal forces, or cards with the given logits."""
    policy = create_policy(Architecture(3, space, (4,)), np.random.default_rng(0))
    flat = {name: np.zeros_like(array) for name, array in flatten(policy.params).items()}
    if logits:
        flat["actor.1.b"] = np.array(logits, np.float32)
    return replace(policy, params=unflatten(flat))


def proposal(plan: Plan, worth: float = 0.0) -> Proposal:
    return Proposal(plan, np.array([0.0, 0.0, worth]).tobytes())


def bench_of(
    game: Game, policy: Policy, *, allowance: int = 10**9, total: int = 10**9, seed: int = 0, horizon: int = 5
) -> tuple[Bench, StepBudget]:
    budget = StepBudget(total)
    rng = np.random.default_rng(seed)
    return Bench(game, policy, 1.0, horizon, budget, "verify", allowance, rng), budget


def verify_all(
    entries: list[Proposal], game: Game, policy: Policy, branches: int = 16, seed: int = 0
) -> list[Verification]:
    bench, _ = bench_of(game, policy, seed=seed)
    found = verify(entries, bench, VerifyConfig(branches=branches))
    assert all(found)
    return [v for v in found if v is not None]


PUSH = Plan((Segment((2.0,)),), relative=True)
SET = Plan((Segment((2.0,)),))
PLAY = Plan((Segment(2),))


# Verdicts


def share(found: list[Verification], verdict: str) -> float:
    return float(np.mean([v.verdict == verdict for v in found]))


CASES = [
    # Pushing adds 2 x (second action), a normal variable, at whatever strength.
    pytest.param(PUSH, FORCE, (), Game, id="a change"),
    # Setting the force trades (first action) x (second action) for 2 x (second action).
    pytest.param(SET, FORCE, (), Game, id="a force outright"),
    # The third card, which the player never plays, bets one point on the second card.
    pytest.param(
        PLAY, CARDS, (0.0, 0.0, -100.0), lambda: Game(second=lambda before, card: (before == 2) * (2 * card - 1)),
        id="a fair bet",
    ),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "space", "logits", "game"), CASES)
@pytest.mark.parametrize("branches", [8, 64])
def test_worthless_advice_rarely_helps(
    plan: Plan, space: ActionSpace, logits: tuple[float, ...], game: Callable[[], Game], branches: int
) -> None:
    """The interval's confidence is 95% over all looks: 2.5% err on either side."""
    count = 400
    found = verify_all([proposal(plan)] * count, game(), player(space, *logits), branches=branches)
    slack = 3 * math.sqrt(0.025 * 0.975 / count)
    assert share(found, "helps") < 0.025 + slack
    assert share(found, "harms") < 0.025 + slack
    assert abs(np.mean([v.advantage for v in found])) < 0.25


@pytest.mark.parametrize(("worth", "verdict"), [(20.0, "helps"), (-20.0, "harms")])
def test_clear_advice_is_recognised_at_once(worth: float, verdict: str) -> None:
    found = verify_all([proposal(PUSH, worth), proposal(SET, worth)] * 20, Game(), player(FORCE))
    assert {v.verdict for v in found} == {verdict}
    assert {v.pairs for v in found[::2]} == {FIRST_LOOK}
    assert {v.pairs for v in found[1::2]} <= {8, 16}  # the policy's own first action adds noise
    # The loss is smallest at a quarter of the change, the gain largest at all of it.
    assert {v.strength for v in found[::2]} == {1.0 if verdict == "helps" else 0.25}
    assert {v.strength for v in found[1::2]} == {1.0}


def test_doubtful_advice_is_looked_at_longer() -> None:
    """An advantage of a deviation: 8 pairs hardly show it, 64 do."""
    found = verify_all([proposal(PUSH, 1.0)] * 40, Game(), player(FORCE), branches=64)
    assert share(found, "helps") > 0.9
    assert np.mean([v.pairs > FIRST_LOOK for v in found]) > 0.5


def test_what_will_hardly_become_clear_is_given_up() -> None:
    """Half the pairs are saved on worthless advice, and hardly any good advice is missed."""
    worthless = verify_all([proposal(PUSH)] * 100, Game(), player(FORCE), branches=64)
    assert np.mean([v.pairs for v in worthless]) < 45
    assert {v.verdict for v in worthless if 8 < v.pairs < 64} >= {"unclear"}
    good = verify_all([proposal(PUSH, 1.0)] * 100, Game(), player(FORCE), branches=64)
    assert np.mean([v.verdict == "unclear" and v.pairs < 64 for v in good]) < 0.1


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=8, max_size=32), st.sampled_from([64, 128]))
def test_the_chance_of_clarity(differences: list[float], most: int) -> None:
    """It is a probability, the same for losses as for gains, and larger for what is further from zero."""
    values = np.array(differences)
    chance = chance_of_clarity(values, most, 0.95, 4)
    assert 0 <= chance <= 1
    assert chance == pytest.approx(chance_of_clarity(-values, most, 0.95, 4))
    if values.std() > 1e-6:
        assert chance_of_clarity(values + math.copysign(5.0, values.mean()), most, 0.95, 4) >= chance - 1e-9


@pytest.mark.parametrize("worth", [-1.0, 0.0, 0.6])
def test_intervals_hold_the_true_advantage(worth: float) -> None:
    """Whenever the verdict falls."""
    count = 200
    found = verify_all([proposal(PUSH, worth)] * count, Game(), player(FORCE), branches=16)
    held = np.mean([v.low <= 2 * worth * v.strength <= v.high for v in found])
    assert held > 0.95 - 3 * math.sqrt(0.05 * 0.95 / count)
    for v in found:
        assert v.low <= v.advantage <= v.high
        assert v.verdict == judge(v.low, v.high)


def test_the_strength_is_chosen_by_what_it_gives() -> None:
    """Worth 1 and cost action squared / 2 with a push of 2: the gain is 0 in full, 1/2 at half, 3/8 at a quarter."""
    game = Game(first=lambda worth, force: worth * force - force**2 / 2, second=lambda before, force: 0.0 * force)
    quiet = player(FORCE)
    quiet = replace(quiet, params=unflatten(flatten(quiet.params) | {"log_std": np.full(1, -4, np.float32)}))
    found = verify_all([proposal(PUSH, 1.0)] * 10, game, quiet)
    assert {v.strength for v in found} == {0.5}
    assert {v.verdict for v in found} == {"helps"}
    assert found[0].advantage == pytest.approx(0.5, abs=0.1)


def test_choosing_a_strength_does_not_flatter_it() -> None:
    """The best of three strengths looks good on the pairs that chose it; others judge."""
    found = verify_all([proposal(PUSH)] * 200, Game(), player(FORCE), branches=8)
    means = np.array([v.advantage for v in found])
    assert abs(means.mean()) < 4 * means.std() / math.sqrt(len(means))


def test_a_verdict_does_not_depend_on_the_batch() -> None:
    entries = [proposal(PUSH, 1.0), proposal(SET, -1.0), proposal(PUSH)]
    found = [verify_all(entries, Game(size), player(FORCE)) for size in (8, 32)]
    assert found[0] == found[1]


# The account of steps


def test_every_step_is_charged_once() -> None:
    """A change is tried at three strengths against one run without it; each look adds fresh pairs."""
    bench, budget = bench_of(Game(), player(FORCE))
    verified = verify([proposal(PUSH, 20.0), proposal(SET, 20.0), proposal(PUSH)], bench, VerifyConfig(branches=16))
    found = [v for v in verified if v is not None]
    assert [v.steps for v in found] == [
        STEPS * (4 * 4 + 2 * found[0].pairs),
        STEPS * 2 * found[1].pairs,
        STEPS * (4 * 4 + 2 * found[2].pairs),
    ]
    assert budget.spent["verify"] == budget.used == sum(v.steps for v in found)
    assert bench.left == 10**9 - budget.used


def test_runs_without_a_plan_are_shared_by_the_plans_at_a_state() -> None:
    game, policy = Game(), player(FORCE)
    trials = [
        Trial(proposal(SET), 1.0, (1, 2)),
        Trial(proposal(PUSH), 0.5, (1, 2)),
        Trial(proposal(SET, 3.0), 1.0, (1, 2)),
    ]
    results = run_pairs(game, policy, trials, 1.0, 5)
    assert [paired.steps for paired in results] == [STEPS * 4, STEPS * 2, STEPS * 4]
    apart = [run_pairs(game, policy, [trial], 1.0, 5)[0] for trial in trials]
    for one, two in zip(results, apart, strict=True):
        np.testing.assert_array_equal(one.differences, two.differences)


def test_a_long_branch_is_cut_at_the_horizon() -> None:
    bench, budget = bench_of(Game(), player(FORCE), horizon=1)
    bench.run([Trial(proposal(SET), 1.0, (1, 2, 3))])
    assert budget.used == 6


@settings(deadline=None)
@given(allowance=st.integers(0, 400), total=st.integers(1, 400), entries=st.integers(0, 6), relative=st.booleans())
def test_the_allowance_is_never_exceeded(allowance: int, total: int, entries: int, relative: bool) -> None:
    """What comes first is tried first; what is left over stays unverified."""
    bench, budget = bench_of(Game(), player(FORCE), allowance=allowance, total=total)
    plan = PUSH if relative else SET
    verified = verify([proposal(plan)] * entries, bench, VerifyConfig(branches=8))
    assert budget.used <= min(allowance, total)
    tried = [found is not None for found in verified]
    assert tried == sorted(tried, reverse=True)
    if not any(tried) and entries:
        assert min(allowance, total) < 5 * (32 if relative else 16)


# The parts of a verdict


@settings(deadline=None)
@given(st.integers(FIRST_LOOK, 300))
def test_looks_double_up_to_the_most(most: int) -> None:
    sizes = looks(most)
    assert sizes[0] == FIRST_LOOK
    assert sizes[-1] == most
    assert all(size < later <= 2 * size for size, later in pairwise(sizes))
    assert len(sizes) <= 1 + math.ceil(math.log2(most / FIRST_LOOK))


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=4, max_size=20), st.integers(1, 6))
def test_more_looks_take_a_wider_interval(differences: list[float], tries: int) -> None:
    values = np.array(differences)
    low, high = interval(values, 0.95, tries)
    wide = interval(values, 0.95, tries + 1)
    assert wide[0] <= low <= values.mean() + 1e-9
    assert wide[1] >= high >= values.mean() - 1e-9


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 2, "helps"), (-2, -0.1, "harms"), (-1, 1, "unclear"), (0, 1, "unclear"), (-1, 0, "unclear")],
)  # fmt: skip
def test_a_verdict_needs_the_whole_interval_on_one_side(low: float, high: float, verdict: str) -> None:
    assert judge(low, high) == verdict


def test_the_audit_counts_verdicts_and_their_cost() -> None:
    nothing = Advice(CriticalState(0, 0, 1.0, ""), SET, 0.5, -0.5, "", "test")

    def tried(verdict: Any, advantage: float, steps: int) -> Advice:
        return replace(nothing, verification=Verification(advantage, 0, 0, 4, 1.0, verdict, steps))

    advice = [tried("helps", 3, 100), tried("harms", -1, 50), tried("helps", 2, 51), tried("unclear", 0, 200)]
    found = audit([*advice, nothing])
    low, high = found.pop("ci95")
    assert low < 1.0 < high
    assert found == {
        "advices": 5,
        "helps": 2,
        "harms": 1,
        "unclear": 1,
        "tried": 4,
        "untried": 1,
        "mean_advantage": 1.0,
        "verification_steps": 401,
        "steps_per_helpful": 201,
    }
    assert audit([])["mean_advantage"] is None
    assert audit(advice[1:2])["steps_per_helpful"] is None
