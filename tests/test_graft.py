"""Rules in a policy's network: it does what they say, exactly, and says why where it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ultra.advice import Rule
from ultra.expression import parse
from ultra.graft import GraftError, check_takes_rules, graft, readable_facts
from ultra.halfspaces import half_spaces
from ultra.normalizer import Normalizer
from ultra.plans import Plan, Segment
from ultra.policy import Architecture, Policy, create_policy
from ultra.policy_files import load_policy, save_policy
from ultra.spaces import ActionSpace, Continuous, Discrete
from ultra.trajectories import Trajectory

NAMES = ("a", "b", "gap", "square")
ARM = Continuous((-1.0, -1.0), (1.0, 1.0))


def policy_of(space: ActionSpace, activation: str = "tanh", hidden: tuple[int, ...] = (16, 16), **shape: Any) -> Policy:
    """A random policy on three numbers, with statistics."""
    rng = np.random.default_rng(5)
    policy = create_policy(Architecture(3, space, hidden, activation=activation, **shape), rng)
    wide = [{**layer, "w": layer["w"] * 3} for layer in policy.params["actor"]]
    normalizer = Normalizer.identity(3).with_observations(
        rng.normal([1, 0, -2], [2, 1, 3], (500, 3)).astype(np.float32)
    )
    return replace(policy, params={**policy.params, "actor": wide}, normalizer=normalizer)


def visited(policy: Policy, steps: int = 400) -> Trajectory:
    """States whose facts are linear in the observation, but for the last one."""
    seen = np.random.default_rng(6).normal([1, 0, -2], [2, 1, 3], (steps + 1, 3)).astype(np.float32)
    x, y, z = seen.T.astype(np.float64)
    quiet = np.zeros((steps + 1, policy.architecture.action_space.size), np.float32)
    return Trajectory(
        observations=seen,
        facts=np.stack([10 * x + 78, y, x - z / 2, y**2], axis=1),
        actions=policy.decide(seen, quiet).actions[:-1],
        rewards=np.zeros(steps),
        values=np.zeros(steps + 1),
        log_probs=np.zeros(steps, np.float32),
        terminated=False,
        truncated=True,
        seed=0,
        snapshots=((0, b""),),
    )


def rule(guard: str, action: int | tuple[float, ...], *, steps: int = 1, relative: bool | None = None) -> Rule:
    relative = isinstance(action, tuple) if relative is None else relative
    return Rule(guard, Plan((Segment(action, steps),), relative=relative), 0.0, "", "test")


def actions(policy: Policy, seen: NDArray[np.float32]) -> NDArray[Any]:
    return policy.decide(seen, np.zeros((len(seen), policy.architecture.action_space.size), np.float32)).actions


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("hidden", [(16, 16), (8, 12, 16)])
@pytest.mark.parametrize(
    "guards",
    [
        ("1 > 0",),
        ("a > 80",),
        ("gap >= 1", "b > -1"),
        ("gap >= 1", "gap < -1"),
        ("b > 0 and gap > 2 and a < 90", "b < 0 and abs(gap) <= 1.5"),
    ],
)
def test_a_continuous_action_changes_where_a_rule_holds_and_nowhere_else(
    activation: str, hidden: tuple[int, ...], guards: tuple[str, ...], tmp_path: Path
) -> None:
    policy = policy_of(ARM, activation, hidden)
    episode = visited(policy)
    changes = [(0.3, 0.0), (0.0, -0.25)]
    rules = [rule(guard, change) for guard, change in zip(guards, changes, strict=False)]
    grafted = graft(policy, rules, NAMES, [episode])
    expected = actions(policy, episode.observations).copy()
    for guard, change in zip(guards, changes, strict=False):
        expected[parse(guard, NAMES).evaluate(episode.facts)] += np.array(change, np.float32)
    off = np.abs(actions(grafted, episode.observations) - expected).max(axis=1) > 1e-4
    assert off.mean() <= 0.002  # in the step at a border itself
    assert np.array_equal(policy.values(episode.observations), grafted.values(episode.observations))
    save_policy(grafted, tmp_path / "policy")
    again = actions(load_policy(tmp_path / "policy"), episode.observations)
    assert np.array_equal(again, actions(grafted, episode.observations))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_discrete_action_is_taken_whatever_the_noise(activation: str) -> None:
    policy = policy_of(Discrete(3), activation)
    episode = visited(policy)
    rules = [rule("gap > 1", 2), rule("gap < -1", 0), rule("b > 0 and abs(gap) <= 1", 1)]
    grafted = graft(policy, rules, NAMES, [episode])
    noise = policy.draw_noise(np.random.default_rng(1), (len(episode.observations),))
    expected = policy.decide(episode.observations, noise).actions.copy()
    for item in rules:
        expected[parse(item.guard, NAMES).evaluate(episode.facts)] = item.plan.segments[0].action  # type: ignore
    assert (grafted.decide(episode.observations, noise).actions != expected).mean() <= 0.005


def test_facts_that_no_unit_can_read_are_named() -> None:
    policy = policy_of(ARM)
    episode = visited(policy)
    assert readable_facts(policy, [episode]).tolist() == [True, True, True, False]


def test_rules_of_discrete_actions_must_exclude_each_other() -> None:
    policy = policy_of(Discrete(3))
    with pytest.raises(GraftError, match="hold in the same state"):
        graft(policy, [rule("b > 0", 2), rule("gap > 0", 0)], NAMES, [visited(policy)])


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ([rule("square > 1", (0.1, 0.0))], "'square' cannot be read"),
        ([rule("b > 0 or gap > 0", (0.1, 0.0))], "not a set of linear comparisons"),
        ([rule("prev(b) > 0", (0.1, 0.0))], "not a set of linear comparisons"),
        ([rule("b > 0", (0.1, 0.0), steps=3)], "several steps"),
        ([rule("b > 0", (0.1, 0.0), relative=False)], "instead of changing it"),
    ],
)
def test_what_cannot_be_expressed_is_said(rules: list[Rule], complaint: str) -> None:
    policy = policy_of(ARM)
    with pytest.raises(GraftError, match=complaint):
        graft(policy, rules, NAMES, [visited(policy)])


@pytest.mark.parametrize("shape", [{"shared": (8,)}, {"activation": "elu"}, {"hidden": ()}])
def test_networks_that_take_no_rules_are_known_beforehand(shape: dict[str, Any]) -> None:
    with pytest.raises(GraftError, match="rules"):
        check_takes_rules(policy_of(ARM, **shape))


def test_two_comparisons_need_two_hidden_layers() -> None:
    policy = policy_of(ARM, hidden=(16,))
    episode = visited(policy)
    assert graft(policy, [rule("b > 0", (0.1, 0.0))], NAMES, [episode]).architecture.hidden == (17,)
    with pytest.raises(GraftError, match="two hidden layers"):
        graft(policy, [rule("b > 0 and gap > 0", (0.1, 0.0))], NAMES, [episode])


_NUMBERS = st.sampled_from(["0", "1", "-2.5", "0.25", "7"])
_FORMS = st.recursive(
    st.sampled_from(NAMES) | _NUMBERS,
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-"), inner).map(lambda parts: f"({parts[0]} {parts[1]} {parts[2]})")
        | st.tuples(_NUMBERS, inner).map(lambda parts: f"({parts[0]} * {parts[1]})")
        | inner.map(lambda form: f"({form} / 4)")
        | inner.map(lambda form: f"(-{form})")
    ),
    max_leaves=4,
)
_COMPARISONS = st.one_of(
    st.tuples(_FORMS, st.sampled_from(["<", "<=", ">", ">="]), _FORMS).map(" ".join),
    st.tuples(_FORMS, _NUMBERS).map(lambda parts: f"abs({parts[0]}) <= {parts[1]}"),
    st.tuples(_NUMBERS, _FORMS, _NUMBERS).map(lambda parts: f"{parts[0]} < {parts[1]} < {parts[2]}"),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_COMPARISONS, min_size=1, max_size=3).map(" and ".join), st.integers(0, 2**31))
def test_half_spaces_say_what_the_guard_says(text: str, seed: int) -> None:
    guard = parse(text, NAMES)
    halves = half_spaces(guard)
    assert halves is not None
    facts = np.asarray(np.random.default_rng(seed).integers(-4, 5, (200, len(NAMES))) / 2)
    forms = np.stack([facts @ half.weights + half.constant for half in halves], axis=1)
    clear = np.abs(forms).min(axis=1) > 1e-9  # on a border itself rounding decides
    wrong = (forms > 0).all(axis=1) != guard.evaluate(facts)
    assert not wrong[clear].any()
    closed = np.array([half.closed for half in halves])
    holds = np.where(closed, forms >= -1e-9, forms > 1e-9).all(axis=1)
    assert (holds == guard.evaluate(facts)).mean() > 0.99
