"""Programs in a policy's network: it does what they say, exactly, and says why where it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ultra.adoption.graft import GraftError, check_takes_units, graft, readable_facts
from ultra.policies.io import load_policy, save_policy
from ultra.policies.normalizer import Normalizer
from ultra.policies.policy import Architecture, Policy, create_policy
from ultra.programs.affine import Affine, NotAffineError
from ultra.programs.compiled import Controller, compile_programs
from ultra.programs.executor import Executor
from ultra.programs.records import Program
from ultra.programs.tape import frame
from ultra.tasks.plans import Plan, Segment
from ultra.tasks.spaces import ActionSpace, Continuous, Discrete

NAMES = ("a", "b", "gap", "square")
ARM = Continuous((-1.0, -1.0), (1.0, 1.0))
JOINTS = ("hip", "knee")
PARAMETERS = {"p": {"value": 0.375, "low": -1.0, "high": 1.0}}
Array = NDArray[Any]


def policy_of(space: ActionSpace, activation: str = "tanh", hidden: tuple[int, ...] = (16, 16), **shape: Any) -> Policy:
    """A random policy on three numbers, with statistics."""
    rng = np.random.default_rng(5)
    policy = create_policy(Architecture(3, space, hidden, activation=activation, **shape), rng)
    wide = [{**layer, "w": layer["w"] * 3} for layer in policy.params["actor"]]
    seen = rng.normal([1, 0, -2], [2, 1, 3], (500, 3)).astype(np.float32)
    normalizer = Normalizer.identity(3).with_observations(seen)
    return replace(policy, params={**policy.params, "actor": wide}, normalizer=normalizer)


def visited(steps: int = 600, seed: int = 6) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """States whose facts are linear in the observation, but for the last one."""
    seen = np.random.default_rng(seed).normal([1, 0, -2], [2, 1, 3], (steps, 3)).astype(np.float32)
    x, y, z = seen.T.astype(np.float64)
    return seen, np.stack([10 * x + 78, y, x - z / 2, y**2], axis=1)


def controller(rules: list[dict[str, Any]], space: ActionSpace = ARM, **parts: Any) -> Controller:
    actions = JOINTS if isinstance(space, Continuous) else [f"take_{k}" for k in range(space.n)]
    program = Program.from_json({"name": "p", "parameters": PARAMETERS, "rules": rules, **parts})
    return Controller.of(compile_programs([program], NAMES, actions, space))


def actions(policy: Policy, seen: NDArray[np.float32], noise: NDArray[np.float32] | None = None) -> Array:
    quiet = np.zeros((len(seen), policy.architecture.action_space.size), np.float32)
    return policy.decide(seen, quiet if noise is None else noise).actions


def followed(policy: Policy, chosen: Controller, seen: Array, facts: Array, noise: Array | None = None) -> Array:
    executor = Executor([chosen.program], policy.architecture.action_space, len(seen))
    executor.assign(slice(None), 0, chosen.settings)
    return executor.act(facts, actions(policy, seen, noise))[0]


GUARDED: list[list[dict[str, Any]]] = [
    [{"when": "a > 80", "add": {"hip": "0.3"}}],
    [{"when": "gap >= 1", "add": {"hip": "p"}}, {"when": "b > -1", "add": {"knee": "-0.25"}}],
    [{"when": "b > 0 and gap > 2 and a < 90", "add": {"hip": "0.3"}},
     {"when": "b < 0 and abs(gap) <= 1.5", "add": {"knee": "p"}}],
    [{"when": "not (b <= 0 or gap <= 2)", "add": {"hip": "0.3", "knee": "1 if p > 0 else b * gap"}}],
    [{"when": "max(a / 40 - 2, b) < p and true", "set": {"hip": "agent(hip) + 2 * p"}}],
    [{"when": "b > 0", "add": {"hip": "9"}}, {"set": {"hip": "agent(hip)"}},
     {"when": "false", "set": {"knee": "b * b"}}],
]  # fmt: skip
UNGUARDED: list[list[dict[str, Any]]] = [
    [{"add": {"hip": "p"}}],
    [{"add": {"hip": "p - 0.5 * agent(hip)", "knee": "-2 * agent(knee)"}}],
    [{"set": {"hip": "agent(knee) * p / 2 + agent(hip)", "knee": "0.25"}}],
    [{"add": {"hip": "p * (a - 78) / 10 - 0.2 * gap", "knee": "0.1"}}],
    [{"set": {"hip": "-0.4 * b + 0.01 * a - 1 + 0.1 * agent(hip)"}}],
    [{"set": {"hip": "0.3 * b"}}, {"add": {"hip": "sin(p) * gap"}}, {"when": "gap > 1", "add": {"hip": "0.2"}}],
]


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("hidden", [(16, 16), (8, 12, 16)])
@pytest.mark.parametrize("rules", GUARDED + UNGUARDED)
def test_the_network_does_what_the_program_says(
    activation: str, hidden: tuple[int, ...], rules: list[dict[str, Any]], tmp_path: Path
) -> None:
    policy, chosen = policy_of(ARM, activation, hidden), controller(rules)
    grafted = graft(policy, chosen, NAMES, *visited())
    seen, facts = visited(seed=7)
    off = np.abs(actions(grafted, seen) - followed(policy, chosen, seen, facts)).max(axis=1)
    assert (off > 5e-4).mean() <= 0.005  # in the step at a border itself
    assert np.array_equal(policy.values(seen), grafted.values(seen))
    save_policy(grafted, tmp_path / "policy")
    assert np.array_equal(actions(load_policy(tmp_path / "policy"), seen), actions(grafted, seen))


@pytest.mark.parametrize(("rules", "signs"), [(UNGUARDED[0], (1, 1)), (UNGUARDED[1], (1, -1))])
def test_sampled_actions_are_scaled_like_the_most_likely_ones(
    rules: list[dict[str, Any]], signs: tuple[int, int]
) -> None:
    policy, chosen = policy_of(ARM), controller(rules)
    seen, facts = visited()
    noise = policy.draw_noise(np.random.default_rng(1), (len(seen),))
    mirrored = noise * np.array(signs, np.float32)  # noise of the other sign is as likely
    found = actions(graft(policy, chosen, NAMES, seen, facts), seen, mirrored)
    assert np.allclose(found, followed(policy, chosen, seen, facts, noise), atol=1e-4)


def test_own_actions_are_scaled_in_any_network_and_from_any_number_of_states() -> None:
    seen, facts = visited(3)
    for policy in (policy_of(ARM, "elu"), policy_of(ARM, shared=(8,)), policy_of(ARM, hidden=())):
        chosen = controller(UNGUARDED[1])
        found = actions(graft(policy, chosen, NAMES, seen, facts), seen)
        assert np.allclose(found, followed(policy, chosen, seen, facts), atol=1e-5)
        assert graft(policy, chosen, NAMES, seen, facts).architecture == policy.architecture


def test_a_linear_policy_takes_gains_on_facts() -> None:
    policy, chosen = policy_of(ARM, hidden=()), controller(UNGUARDED[3])
    seen, facts = visited()
    found = actions(graft(policy, chosen, NAMES, seen, facts), seen)
    assert np.allclose(found, followed(policy, chosen, seen, facts), atol=1e-4)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_discrete_action_is_taken_whatever_the_noise(activation: str) -> None:
    policy = policy_of(Discrete(3), activation)
    rules = [
        {"when": "gap > 1", "action": "take_2"},
        {"when": "gap < -1", "action": "take_0"},
        {"when": "b > 0 and abs(gap) <= 1", "action": "take_1"},
        {"when": "a > 100", "action": "take_1"},  # the later rule wins where both hold
        {"when": "a > 105", "action": "take_0"},
    ]
    chosen = controller(rules, Discrete(3))
    grafted = graft(policy, chosen, NAMES, *visited())
    seen, facts = visited(seed=7)
    noise = policy.draw_noise(np.random.default_rng(1), (len(seen),))
    assert (actions(grafted, seen, noise) != followed(policy, chosen, seen, facts, noise)).mean() <= 0.005


def test_parts_of_a_discrete_action_are_chosen_one_by_one() -> None:
    space = Discrete(6, (3, 1))
    policy = policy_of(space)
    rules: list[dict[str, Any]] = [
        {"when": "gap > 1", "action": {"choice0": 2}},
        {"when": "b > 0", "action": {"choice1": 0}},
        {"when": "a > 100", "action": "take_3"},
    ]
    chosen = controller(rules, space)
    grafted = graft(policy, chosen, NAMES, *visited())
    seen, facts = visited(seed=7)
    assert (actions(grafted, seen) != followed(policy, chosen, seen, facts)).mean() <= 0.005


def test_facts_that_no_unit_can_read_are_named() -> None:
    policy = policy_of(ARM)
    assert readable_facts(policy, *visited()).tolist() == [True, True, True, False]


def test_a_few_clipped_observations_do_not_hide_a_fact() -> None:
    policy = policy_of(ARM)
    seen, facts = visited(3000)
    clipped = np.minimum(
        seen, np.array([99, 2.7, 99], np.float32)
    )  # the second fact goes beyond in 0.35 % of the states
    assert 0 < (clipped != seen).any(axis=1).mean() < 0.005
    assert readable_facts(policy, clipped, facts)[1]
    assert not readable_facts(policy, np.minimum(seen, np.array([99, 1.0, 99], np.float32)), facts)[1]


@pytest.mark.parametrize("by_episode", [True, False])
def test_noise_is_not_readable_however_few_the_states(by_episode: bool) -> None:
    """Least squares on few states reads anything; what it reads is judged in others."""
    rng, size = np.random.default_rng(3), 40
    policy = create_policy(Architecture(size, ARM), rng)
    chosen = controller([{"when": "b > 0", "add": {"hip": "0.3"}}])
    for count, complaint in ((size, "too few"), (3 * size, "too few"), (16 * size, "'b' cannot be read")):
        seen, noise = rng.normal(size=(count, size)).astype(np.float32), rng.normal(size=(count, 4))
        design = np.column_stack([seen, np.ones(count)])
        fitted = design @ np.linalg.lstsq(design, noise, rcond=None)[0]
        assert (np.abs(fitted - noise).max() < 1e-6) == (count <= size)  # in so few states noise seems readable
        episodes = np.repeat(np.arange(8), count // 8) if by_episode else None
        with pytest.raises(GraftError, match=complaint):
            graft(policy, chosen, NAMES, seen, noise, episodes)


def test_whole_episodes_are_held_out() -> None:
    """A fact that is constant in each episode can be read in states of known episodes, not in those of others."""
    rng = np.random.default_rng(3)
    episodes = np.repeat(np.arange(9), 60)
    marks, hidden = rng.normal(size=(9, 8)), rng.normal(size=(9, 4))
    seen = (marks[episodes] + 1e-7 * rng.normal(size=(540, 8))).astype(np.float32)
    policy = create_policy(Architecture(8, ARM), rng)
    assert readable_facts(policy, seen, hidden[episodes]).all()
    assert not readable_facts(policy, seen, hidden[episodes], episodes).any()


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ([{"when": "square > 1", "add": {"hip": "0.1"}}], "'square' cannot be read"),
        ([{"add": {"hip": "square"}}], "'square' cannot be read"),
        ([{"when": "b > 0 or gap > 0", "add": {"hip": "0.1"}}], "either of two conditions"),
        ([{"when": "abs(b) > 1", "add": {"hip": "0.1"}}], "abs of facts or actions is not linear"),
        ([{"when": "b == 0", "add": {"hip": "0.1"}}], "compares by =="),
        ([{"when": "prev(b) > 0", "add": {"hip": "0.1"}}], r"looks back with prev"),
        ([{"when": "start(b) > 0", "add": {"hip": "0.1"}}], "reads the episode's start"),
        ([{"when": "agent(hip) > 0", "add": {"hip": "0.1"}}], "a guard reads the agent's own action"),
        ([{"when": "b > 0", "set": {"hip": "0.1"}}], "replaces action 0 instead of adding a constant"),
        ([{"when": "b > 0", "add": {"knee": "b"}}], "adds facts or actions to action 1"),
        ([{"when": "b > 0", "add": {"hip": "1"}}, {"when": "a > 0", "set": {"hip": "agent(hip)"}}], "earlier guarded"),
        ([{"add": {"hip": "c"}}], "reads a clock"),
        ([{"add": {"hip": "m * 2"}}], "reads memory"),
        ([{"add": {"hip": "sin(b)"}}], "sin of facts or actions is not linear"),
        ([{"add": {"hip": "b * gap"}}], "product of two facts"),
        ([{"add": {"hip": "1 / b"}}], "division by facts"),
        ([{"add": {"hip": "1 if b > 0 else 2"}}], "depends on a condition"),
        ([{"add": {"hip": "1 / (p - 0.375)"}}], "infinite|by zero"),
    ],
)
def test_what_stands_in_the_way_is_said(rules: list[dict[str, Any]], complaint: str) -> None:
    chosen = controller(rules, clocks={"c": "1"}, memory={"m": {"start": 0, "update": "m + 1"}})
    with pytest.raises(GraftError, match=complaint):
        graft(policy_of(ARM), chosen, NAMES, *visited())


def test_plans_are_no_part_of_a_network() -> None:
    chosen = Controller.of_plan(Plan((Segment((0.1, 0.0), 3),), relative=True), ARM)
    with pytest.raises(GraftError, match=r"reads memory|several steps"):
        graft(policy_of(ARM), chosen, NAMES, *visited())


@pytest.mark.parametrize("shape", [{"shared": (8,)}, {"activation": "elu"}, {"hidden": ()}])
def test_networks_that_take_no_units_are_known_beforehand(shape: dict[str, Any]) -> None:
    with pytest.raises(GraftError, match="take"):
        check_takes_units(policy_of(ARM, **shape))
    with pytest.raises(GraftError, match="take"):
        graft(policy_of(ARM, **shape), controller(GUARDED[0]), NAMES, *visited())


def test_two_comparisons_need_two_hidden_layers() -> None:
    policy = policy_of(ARM, hidden=(16,))
    grafted = graft(policy, controller([{"when": "b > 0", "add": {"hip": "0.1"}}]), NAMES, *visited())
    assert grafted.architecture.hidden == (17,)
    with pytest.raises(GraftError, match="two hidden layers"):
        graft(policy, controller([{"when": "b > 0 and gap > 0", "add": {"hip": "0.1"}}]), NAMES, *visited())


# Affine forms

_NUMBERS = st.sampled_from(["0", "1", "-2.5", "0.25", "7", "p"])
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
    st.tuples(_FORMS, _FORMS, _NUMBERS).map(lambda parts: f"not (max({parts[0]}, {parts[1]}) >= {parts[2]})"),
    st.tuples(_FORMS, _FORMS, _NUMBERS).map(lambda parts: f"not ({parts[0]} > {parts[2]} or {parts[1]} <= p)"),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_COMPARISONS, min_size=1, max_size=3).map(" and ".join), st.integers(0, 2**31))
def test_half_spaces_say_what_the_guard_says(text: str, seed: int) -> None:
    chosen = controller([{"when": text, "add": {"hip": "1"}}])
    halves = Affine(chosen, len(NAMES), 2).half_spaces(chosen.program.effects[0].when)
    facts = np.asarray(np.random.default_rng(seed).integers(-4, 5, (200, len(NAMES))) / 2)
    settings_of_all = np.broadcast_to(chosen.settings, (200, 1))
    held = chosen.program.rules.run(frame(facts)._replace(settings=settings_of_all))[chosen.program.effects[0].when]
    held = np.broadcast_to(held, 200)
    if not halves:
        assert (held == (halves is not None)).all()
        return
    forms = np.stack([facts @ half.weights + half.constant for half in halves], axis=1)
    clear = np.abs(forms).min(axis=1) > 1e-9  # on a border itself rounding decides
    assert not ((forms > 0).all(axis=1) != held)[clear].any()
    closed = np.array([half.closed for half in halves])
    assert (np.where(closed, forms >= -1e-9, forms > 1e-9).all(axis=1) == held).mean() > 0.99


@settings(max_examples=300, deadline=None)
@given(_FORMS, _FORMS, st.integers(0, 2**31))
def test_forms_say_what_the_expression_says(one: str, other: str, seed: int) -> None:
    rules = [{"set": {"hip": f"{one} - agent(knee) * ({other})"}}]
    chosen, rng = controller(rules), np.random.default_rng(seed)
    facts, agent = rng.normal(size=(50, len(NAMES))), rng.normal(size=(50, 2))
    place = chosen.program.effects[0].value
    try:
        form = Affine(chosen, len(NAMES), 2).form(place)
    except NotAffineError as error:
        assert "product" in str(error)
        return
    filled = frame(facts)._replace(settings=np.broadcast_to(chosen.settings, (50, 1)), agent=agent)
    expected = np.broadcast_to(chosen.program.rules.run(filled)[place], 50)
    assert np.allclose(facts @ form.weights + agent @ form.gains + form.constant, expected, atol=1e-9)
