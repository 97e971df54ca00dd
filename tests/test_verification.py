"""Verification, on a game whose true advantages are known: verdicts, intervals and the steps that are charged.

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
from scipy.stats import binom

from ultra.advice.records import Advice, CriticalState, Entry, Verification
from ultra.config import VerifyConfig
from ultra.policies.policy import Architecture, Policy, create_policy, flatten, unflatten
from ultra.simulation.budget import StepBudget
from ultra.simulation.paired import Candidate, PairedEvaluator, Trial, run_pairs
from ultra.tasks import Snapshot, Step
from ultra.tasks.batch import Facts, Indices, Live, Observations
from ultra.tasks.plans import Plan, Segment
from ultra.tasks.spaces import Actions, ActionSpace, Continuous, Discrete
from ultra.verification.recheck import Recheck
from ultra.verification.verdicts import (
    FIRST_LOOK,
    FUTILITY,
    audit,
    interim_analyses,
    interval,
    predictive_probability,
    suggestions_of,
    verdict_of,
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


def candidate(plan: Plan, worth: float = 0.0) -> Candidate:
    return Candidate(plan, np.array([0.0, 0.0, worth]).tobytes())


def evaluator_of(
    game: Game, policy: Policy, *, allowance: int = 10**9, total: int = 10**9, seed: int = 0, horizon: int = 5
) -> tuple[PairedEvaluator, StepBudget]:
    budget = StepBudget(total)
    rng = np.random.default_rng(seed)
    return PairedEvaluator(game, policy, 1.0, horizon, budget, "verify", allowance, rng), budget


def verify_all(
    entries: list[Candidate], game: Game, policy: Policy, branches: int = 16, seed: int = 0
) -> list[Verification]:
    evaluator, _ = evaluator_of(game, policy, seed=seed)
    found = verify(entries, evaluator, VerifyConfig(branches=branches))
    assert all(found)
    return [v for v in found if v is not None]


PUSH = Plan((Segment((2.0,)),), relative=True)
SET = Plan((Segment((2.0,)),))
PLAY = Plan((Segment(2),))


# Verdicts


def share(found: list[Verification], verdict: str) -> float:
    return float(np.mean([v.verdict == verdict for v in found]))


BET_LOGITS = (0.0, 0.0, -100.0)
"""The bettor never plays the third card."""


def bet_game() -> Game:
    """The third card bets one point on the second card."""
    return Game(second=lambda before, card: (before == 2) * (2 * card - 1))


CASES = [
    # Pushing adds 2 x (second action), a normal variable, at whatever strength.
    pytest.param(PUSH, FORCE, (), Game, id="a change"),
    # Setting the force trades (first action) x (second action) for 2 x (second action).
    pytest.param(SET, FORCE, (), Game, id="a force outright"),
    pytest.param(PLAY, CARDS, BET_LOGITS, bet_game, id="a fair bet"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "space", "logits", "game"), CASES)
@pytest.mark.parametrize("branches", [8, 64])
def test_worthless_advice_rarely_helps(
    plan: Plan, space: ActionSpace, logits: tuple[float, ...], game: Callable[[], Game], branches: int
) -> None:
    """The interval's confidence is 95% over all analyses: 2.5% err on either side."""
    count = 400
    found = verify_all([candidate(plan)] * count, game(), player(space, *logits), branches=branches)
    slack = 3 * math.sqrt(0.025 * 0.975 / count)
    assert share(found, "helps") < 0.025 + slack
    assert share(found, "harms") < 0.025 + slack
    assert abs(np.mean([v.advantage for v in found])) < 0.25


def rate_of_false_help(branches: int) -> float:
    """Exact probability that a fair bet of one point "helps", from the distribution of its sum at each analysis."""
    sizes = interim_analyses(branches)
    sums, seen, helped = {0: 1.0}, 0, 0.0
    for size in sizes:
        more = np.arange(-(size - seen), size - seen + 1, 2)
        chances = binom.pmf((more + size - seen) / 2, size - seen, 0.5)
        reached: dict[int, float] = {}
        for total, chance in sums.items():
            for step, part in zip(more.tolist(), chances.tolist(), strict=True):
                reached[total + step] = reached.get(total + step, 0.0) + chance * part
        sums, seen = {}, size
        for total, chance in reached.items():
            values = np.repeat([1.0, -1.0], [(size + total) // 2, (size - total) // 2])
            verdict = verdict_of(*interval(values, 0.95, len(sizes)))
            helped += chance * (verdict == "helps")
            futile = size < branches and predictive_probability(values, branches, 0.95, len(sizes)) < FUTILITY
            if verdict == "unclear" and not futile:
                sums[total] = chance
    return helped


@pytest.mark.parametrize("branches", [8, 9, 10, 13, 16, 17, 20, 24, 31, 33, 48, 64, 100, 128])
def test_a_fair_bet_helps_at_most_at_the_promised_rate(branches: int) -> None:
    assert rate_of_false_help(branches) <= 0.025


@pytest.mark.parametrize(("branches", "share_of_steps"), [(8, 0.3), (16, 0.55), (20, 0.2), (64, 0.7)])
def test_a_fair_bet_rarely_helps_where_the_allowance_is_tight(branches: int, share_of_steps: float) -> None:
    """Every number of steps is left over in turn, and none of it goes into a verdict from a few pairs."""
    count, each, helped, tried = 40, 8, 0, 0
    for repeat in range(count):
        first = 2 * FIRST_LOOK * STEPS * each
        allowance = int(share_of_steps * first) + repeat
        evaluator, _ = evaluator_of(
            bet_game(), player(CARDS, *BET_LOGITS), allowance=allowance, seed=repeat, horizon=STEPS
        )
        found = verify([candidate(PLAY)] * each, evaluator, VerifyConfig(branches=branches))
        helped += sum(v is not None and v.verdict == "helps" for v in found)
        tried += sum(v is not None for v in found)
        assert all(v is None or v.pairs >= FIRST_LOOK for v in found)
    assert tried > 0
    assert helped <= 0.025 * tried + 3 * math.sqrt(0.025 * 0.975 * tried)


@settings(deadline=None, max_examples=100)
@given(
    allowance=st.integers(0, 1500),
    branches=st.integers(8, 40),
    horizon=st.integers(1, 6),
    plans=st.lists(st.sampled_from([PUSH, SET]), max_size=8),
    known=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_no_verdict_rests_on_fewer_pairs_than_the_first_analysis(
    allowance: int, branches: int, horizon: int, plans: list[Plan], known: bool, seed: int
) -> None:
    """Whatever the allowance, the maximum of pairs and the number of candidates: 8 pairs or no verdict."""
    evaluator, budget = evaluator_of(Game(), player(FORCE), allowance=allowance, seed=seed, horizon=horizon)
    strengths = [0.5] * len(plans) if known else None
    found = verify([candidate(plan) for plan in plans], evaluator, VerifyConfig(branches=branches), strengths)
    assert budget.used <= allowance
    tried = [item for item in found if item is not None]
    assert [item is not None for item in found] == [True] * len(tried) + [False] * (len(found) - len(tried))
    for item in tried:
        assert FIRST_LOOK <= item.pairs <= branches
        assert math.isfinite(item.advantage)
        assert math.isfinite(item.low)
        assert math.isfinite(item.high)
    assert budget.used == sum(item.steps for item in tried)
    if len(tried) < len(found):  # what is left does not last for one more
        assert evaluator.left < 2 * FIRST_LOOK * horizon


def test_first_analyses_take_precedence_over_later_ones() -> None:
    """Branches that end early leave steps: they go to who was not tried yet, before anyone gets more pairs."""
    each = 2 * FIRST_LOOK * STEPS
    evaluator, _ = evaluator_of(Game(), player(FORCE), allowance=4 * each, horizon=2 * STEPS)
    found = verify([candidate(SET)] * 4, evaluator, VerifyConfig(branches=64))
    assert [v is not None for v in found] == [True, True, True, False]  # two before the first branches ended


@pytest.mark.parametrize(("worth", "verdict"), [(20.0, "helps"), (-20.0, "harms")])
def test_clear_advice_is_recognised_at_once(worth: float, verdict: str) -> None:
    found = verify_all([candidate(PUSH, worth), candidate(SET, worth)] * 20, Game(), player(FORCE))
    assert {v.verdict for v in found} == {verdict}
    assert {v.pairs for v in found[::2]} == {FIRST_LOOK}
    assert {v.pairs for v in found[1::2]} <= {8, 16}  # the policy's own first action adds noise
    # The loss is smallest at a quarter of the change, the gain largest at all of it.
    assert {v.strength for v in found[::2]} == {1.0 if verdict == "helps" else 0.25}
    assert {v.strength for v in found[1::2]} == {1.0}


def test_doubtful_advice_gets_more_pairs() -> None:
    """An advantage of a deviation: 8 pairs hardly show it, 64 do."""
    found = verify_all([candidate(PUSH, 1.0)] * 40, Game(), player(FORCE), branches=64)
    assert share(found, "helps") > 0.9
    assert np.mean([v.pairs > FIRST_LOOK for v in found]) > 0.5


def test_worthless_advice_is_stopped_for_futility() -> None:
    """Half the pairs are saved on worthless advice, and hardly any good advice is missed."""
    worthless = verify_all([candidate(PUSH)] * 100, Game(), player(FORCE), branches=64)
    assert np.mean([v.pairs for v in worthless]) < 45
    assert {v.verdict for v in worthless if 8 < v.pairs < 64} >= {"unclear"}
    good = verify_all([candidate(PUSH, 1.0)] * 100, Game(), player(FORCE), branches=64)
    assert np.mean([v.verdict == "unclear" and v.pairs < 64 for v in good]) < 0.1


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=8, max_size=32), st.sampled_from([64, 128]))
def test_the_predictive_probability(differences: list[float], most: int) -> None:
    """It is a probability, the same for losses as for gains, and larger for what is further from zero."""
    values = np.array(differences)
    chance = predictive_probability(values, most, 0.95, 4)
    assert 0 <= chance <= 1
    assert chance == pytest.approx(predictive_probability(-values, most, 0.95, 4))
    if values.std() > 1e-6:
        assert predictive_probability(values + math.copysign(5.0, values.mean()), most, 0.95, 4) >= chance - 1e-9


@pytest.mark.parametrize("worth", [-1.0, 0.0, 0.6])
def test_intervals_hold_the_true_advantage(worth: float) -> None:
    """Whenever the verdict falls."""
    count = 200
    found = verify_all([candidate(PUSH, worth)] * count, Game(), player(FORCE), branches=16)
    held = np.mean([v.low <= 2 * worth * v.strength <= v.high for v in found])
    assert held > 0.95 - 3 * math.sqrt(0.05 * 0.95 / count)
    for v in found:
        assert v.low <= v.advantage <= v.high
        assert v.verdict == verdict_of(v.low, v.high)


def test_the_strength_is_chosen_by_what_it_gives() -> None:
    """Worth 1 and cost action squared / 2 with a push of 2: the gain is 0 in full, 1/2 at half, 3/8 at a quarter."""
    game = Game(first=lambda worth, force: worth * force - force**2 / 2, second=lambda before, force: 0.0 * force)
    quiet = player(FORCE)
    quiet = replace(quiet, params=unflatten(flatten(quiet.params) | {"log_std": np.full(1, -4, np.float32)}))
    found = verify_all([candidate(PUSH, 1.0)] * 10, game, quiet)
    assert {v.strength for v in found} == {0.5}
    assert {v.verdict for v in found} == {"helps"}
    assert found[0].advantage == pytest.approx(0.5, abs=0.1)


def test_choosing_a_strength_does_not_flatter_it() -> None:
    """The best of three strengths looks good on the pairs that chose it; others judge."""
    found = verify_all([candidate(PUSH)] * 200, Game(), player(FORCE), branches=8)
    means = np.array([v.advantage for v in found])
    assert abs(means.mean()) < 4 * means.std() / math.sqrt(len(means))


def test_a_verdict_does_not_depend_on_the_batch() -> None:
    entries = [candidate(PUSH, 1.0), candidate(SET, -1.0), candidate(PUSH)]
    found = [verify_all(entries, Game(size), player(FORCE)) for size in (8, 32)]
    assert found[0] == found[1]


# Steps that are charged


def test_every_step_is_charged_once() -> None:
    """A change is tried at three strengths against one run without it; each analysis adds fresh pairs."""
    evaluator, budget = evaluator_of(Game(), player(FORCE))
    verified = verify(
        [candidate(PUSH, 20.0), candidate(SET, 20.0), candidate(PUSH)], evaluator, VerifyConfig(branches=16)
    )
    found = [v for v in verified if v is not None]
    assert [v.steps for v in found] == [
        STEPS * (4 * 4 + 2 * found[0].pairs),
        STEPS * 2 * found[1].pairs,
        STEPS * (4 * 4 + 2 * found[2].pairs),
    ]
    assert budget.spent["verify"] == budget.used == sum(v.steps for v in found)
    assert evaluator.left == 10**9 - budget.used


def test_runs_without_a_plan_are_shared_by_the_plans_at_a_state() -> None:
    game, policy = Game(), player(FORCE)
    trials = [
        Trial(candidate(SET), 1.0, (1, 2)),
        Trial(candidate(PUSH), 0.5, (1, 2)),
        Trial(candidate(SET, 3.0), 1.0, (1, 2)),
    ]
    results = run_pairs(game, policy, trials, 1.0, 5)
    assert [paired.steps for paired in results] == [STEPS * 4, STEPS * 2, STEPS * 4]
    apart = [run_pairs(game, policy, [trial], 1.0, 5)[0] for trial in trials]
    for one, two in zip(results, apart, strict=True):
        np.testing.assert_array_equal(one.differences, two.differences)


def test_the_critic_has_no_say_in_whole_episodes() -> None:
    """The first step of a game without worth pays nothing, whatever the critic makes of the state after it."""
    policy = create_policy(Architecture(3, FORCE, (4,)), np.random.default_rng(0))
    at_a_state, whole = (
        run_pairs(Game(), policy, [Trial(each, 1.0, (1, 2, 3))], 1.0, 1)[0] for each in (candidate(SET), Candidate(SET))
    )
    assert np.all(at_a_state.differences != 0)
    np.testing.assert_array_equal(whole.differences, 0.0)


def test_a_long_branch_is_cut_at_the_horizon() -> None:
    evaluator, budget = evaluator_of(Game(), player(FORCE), horizon=1)
    evaluator.run([Trial(candidate(SET), 1.0, (1, 2, 3))])
    assert budget.used == 6


@settings(deadline=None)
@given(allowance=st.integers(0, 400), total=st.integers(1, 400), entries=st.integers(0, 6), relative=st.booleans())
def test_the_allowance_is_never_exceeded(allowance: int, total: int, entries: int, relative: bool) -> None:
    """What comes first is tried first; what is left over stays unverified."""
    evaluator, budget = evaluator_of(Game(), player(FORCE), allowance=allowance, total=total)
    plan = PUSH if relative else SET
    verified = verify([candidate(plan)] * entries, evaluator, VerifyConfig(branches=8))
    assert budget.used <= min(allowance, total)
    tried = [found is not None for found in verified]
    assert tried == sorted(tried, reverse=True)
    if not any(tried) and entries:
        assert min(allowance, total) < 5 * (32 if relative else 16)


# The parts of a verdict


@settings(deadline=None)
@given(st.integers(FIRST_LOOK, 300))
def test_interim_analyses_double_up_to_the_most(most: int) -> None:
    sizes = interim_analyses(most)
    assert sizes[0] == FIRST_LOOK
    assert sizes[-1] == most
    assert all(size < later <= 2 * size for size, later in pairwise(sizes))
    assert len(sizes) <= 1 + math.ceil(math.log2(most / FIRST_LOOK))


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=4, max_size=20), st.integers(1, 6))
def test_more_analyses_take_a_wider_interval(differences: list[float], analyses: int) -> None:
    values = np.array(differences)
    low, high = interval(values, 0.95, analyses)
    wide = interval(values, 0.95, analyses + 1)
    assert wide[0] <= low <= values.mean() + 1e-9
    assert wide[1] >= high >= values.mean() - 1e-9


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 2, "helps"), (-2, -0.1, "harms"), (-1, 1, "unclear"), (0, 1, "unclear"), (-1, 0, "unclear")],
)  # fmt: skip
def test_a_verdict_needs_the_whole_interval_on_one_side(low: float, high: float, verdict: str) -> None:
    assert verdict_of(low, high) == verdict


def test_the_audit_counts_verdicts_and_their_cost() -> None:
    nothing = Advice(CriticalState(0, 0, 1.0, ""), SET, 0.5, -0.5, "", "test")

    def tried(verdict: Any, advantage: float, steps: int) -> Advice:
        return replace(nothing, verification=Verification(advantage, 0, 0, 4, 1.0, verdict, steps))

    advice = [tried("helps", 3, 100), tried("harms", -1, 50), tried("helps", 2, 51), tried("unclear", 0, 200)]
    found = audit([*advice, nothing])
    low, high = found.pop("ci95")
    assert low < 1.0 < high
    assert found == {
        "suggestions": 5,
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


def test_audits_of_earlier_versions_are_read() -> None:
    assert suggestions_of(audit([])) == 0
    assert suggestions_of({"advices": 3, "helps": 1}) == 3


# Again, while training goes on


def test_a_recheck_counts_the_steps_that_it_took_and_draws_fresh_pairs_each_time() -> None:
    """Also where the budget holds less than the allowance; a resumed training repeats what was to come."""
    advice = Advice(CriticalState(0, 0, 1.0, ""), SET, 0.5, -0.5, "", "test")
    entry = Entry(advice, np.zeros(3), candidate(SET).start or b"", np.zeros((1, 1)))

    def recheck(total: int) -> tuple[Recheck, StepBudget]:
        budget = StepBudget(total)
        return Recheck(Game(), [entry], VerifyConfig(branches=8), 1.0, 5, budget, 3000, (7, "recheck")), budget

    first, budget = recheck(130)
    found = [first.run(player(FORCE), [0]) for _ in range(3)]
    assert first.state() == {"done": 3, "spent": budget.used}
    assert budget.spent["verify"] == 2 * 2 * FIRST_LOOK * STEPS  # the third could not afford 16 branches of 5 steps
    assert found[2] == [None]
    assert found[0] != found[1]

    before, budget = recheck(130)
    before.run(player(FORCE), [0])
    resumed, budget = recheck(130)
    resumed.load_state(before.state())
    assert resumed.run(player(FORCE), [0]) == found[1]
    assert budget.used == resumed.state()["spent"]
