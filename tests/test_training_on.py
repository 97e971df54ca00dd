"""Training on from a good policy: the critic first, the penalty, low noise, and a program underneath the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policies import same

from ultra.config import AnchorConfig, PPOConfig
from ultra.policies.policy import Architecture, Policy, create_policy, flatten, log_prob_function
from ultra.ppo.anchor import Anchor, kl_divergence, with_less_noise
from ultra.ppo.checkpoint import Learner
from ultra.ppo.guidance import NoGuidance
from ultra.ppo.rollout import Environments, Rollout
from ultra.ppo.train import Iteration, improve, make_update, optimizer, train
from ultra.programs.compiled import Controller, compile_programs
from ultra.programs.records import Assignment, Parameter, Program
from ultra.tasks import Task, get_task
from ultra.tasks.spaces import ActionSpace, Continuous, Discrete

TINY = PPOConfig(environments=4, rollout_steps=32, minibatch=64, epochs=2, learning_rate=0.001)
HELD = AnchorConfig(critic_rollouts=1, weight=0.5, noise=0.3)
TASKS = ("hopper", "CartPole-v1")


def fresh(task: Task, seed: int = 0) -> Policy:
    architecture = Architecture(task.observation_size, task.action_space, (16,))
    return create_policy(architecture, np.random.default_rng(seed))


def run(name: str, steps: int = 3 * TINY.samples, **options: Any) -> Policy:
    task = get_task(name)
    return train(task, fresh(task), TINY, steps, np.random.default_rng(1), workers=1, **options)


def rollout_of(name: str, policy: Policy, underneath: Controller | None = None) -> Rollout:
    batch = get_task(name).make_batch(4, 1)
    environments = Environments(
        batch, NoGuidance(), np.random.default_rng(2), () if underneath is None else (underneath,)
    )
    environments.begin()
    rollout = environments.rollout(policy, TINY.rollout_steps, TINY.discount)
    batch.close()
    return rollout


@pytest.mark.parametrize("name", TASKS)
def test_settings_that_hold_nothing_are_plain_ppo(name: str) -> None:
    nothing = AnchorConfig(critic_rollouts=0, noise=1e6, weight=0.0)
    assert same(run(name, keep=nothing), run(name))


@pytest.mark.parametrize("name", TASKS)
def test_the_critic_is_fitted_before_the_actor_moves(name: str) -> None:
    policy = run(name, 2 * TINY.samples, keep=AnchorConfig(critic_rollouts=2, noise=1e6))
    before = flatten(fresh(get_task(name)).params)
    for part, array in flatten(policy.params).items():
        assert (array == before[part]).all() == (not part.startswith("critic")), part


def test_fitting_the_critic_brings_it_nearer_to_the_returns() -> None:
    policy = fresh(get_task("hopper"))
    learner = Learner(policy, optimizer(TINY).init(policy.params))
    anchor = Anchor(policy, AnchorConfig(critic_rollouts=30))
    rng = np.random.default_rng(0)
    rollout = rollout_of("hopper", policy)
    losses = []
    for iteration in range(10):
        hold = anchor.hold(learner.policy, rollout, iteration, 60)
        losses.append(improve(learner, rollout, TINY, rng, NoGuidance(), 0.003, hold)["train/value_loss"])
    assert losses[-1] < 0.7 * losses[0], losses
    assert learner.steps == 10 * TINY.samples
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(learner.optimizer_state))  # no momentum is left


SPACES: list[ActionSpace] = [Discrete(4), Discrete(6, (2, 3)), Continuous((-1.0, -2.0), (1.0, 2.0))]


def some_distribution(space: ActionSpace, rng: np.random.Generator) -> dict[str, jax.Array]:
    found = {"outputs": jnp.asarray(rng.normal(size=(5, space.size)))}
    if isinstance(space, Continuous):
        found["log_std"] = jnp.broadcast_to(jnp.asarray(rng.normal(size=space.size)), (5, space.size))
    return found


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_divergence_is_that_of_samples(space: ActionSpace) -> None:
    rng = np.random.default_rng(0)
    p, q = some_distribution(space, rng), some_distribution(space, rng)

    def log_density(of: dict[str, jax.Array], actions: Any) -> Any:
        if isinstance(space, Continuous):
            deviations = (actions - of["outputs"]) / np.exp(of["log_std"])
            return (-0.5 * deviations**2 - np.asarray(of["log_std"])).sum(axis=-1)
        return np.asarray(jax.nn.log_softmax(of["outputs"]))[np.arange(5), actions]

    if isinstance(space, Continuous):
        actions: Any = p["outputs"] + np.exp(p["log_std"]) * rng.normal(size=(200_000, 5, space.size))
    else:
        actions = np.argmax(np.asarray(p["outputs"]) + rng.gumbel(size=(200_000, 5, space.size)), axis=-1)
    sampled = np.mean(log_density(p, actions) - log_density(q, actions), axis=0)
    np.testing.assert_allclose(kl_divergence(p, q), sampled, rtol=0.03, atol=0.01)
    np.testing.assert_allclose(kl_divergence(p, p), 0, atol=1e-5)


@pytest.mark.parametrize("direction", ["reference", "policy"])
@pytest.mark.parametrize("name", TASKS)
def test_a_heavy_penalty_keeps_the_policy_where_it_was(name: str, direction: Any) -> None:
    """Ten updates on the same rollout move a free policy far, and a held one hardly."""
    task = get_task(name)
    policy = fresh(task)
    rollout = rollout_of(name, policy)
    divergences = {}
    for weight in (1e-6, 100.0):
        config = AnchorConfig(critic_rollouts=0, noise=1e6, weight=weight, floor=1.0, direction=direction)
        anchor = Anchor(policy, config)
        learner = Learner(policy, optimizer(TINY).init(policy.params))
        for _ in range(10):
            hold = anchor.hold(learner.policy, rollout, 0, 10)
            improve(learner, rollout, TINY, np.random.default_rng(0), NoGuidance(), 0.003, hold)
        divergences[weight] = anchor.hold(learner.policy, rollout, 0, 10).figures["keep/divergence"]
    assert 0 < divergences[100.0] < 0.05 * divergences[1e-6]


def test_annealing_does_not_compile_anew() -> None:
    seen: list[Iteration] = []
    run(
        "CartPole-v1",
        6 * TINY.samples,
        keep=AnchorConfig(critic_rollouts=2, weight=0.5, floor=0.0),
        observer=seen.append,
    )
    weights = [iteration.metrics.get("keep/weight") for iteration in seen]
    np.testing.assert_allclose(weights[2:], [0.5 * (1 - k / 6) for k in (2, 3, 4, 5)])  # type: ignore[arg-type]
    assert weights[:2] == [None, None]
    misses = make_update.cache_info().misses
    run("CartPole-v1", 3 * TINY.samples, keep=AnchorConfig(critic_rollouts=2, weight=3.0))
    assert make_update.cache_info().misses == misses


@settings(deadline=None, max_examples=20)
@given(noise=st.floats(0.01, 5))
def test_noise_starts_low_and_most_likely_actions_stay(noise: float) -> None:
    space = Continuous((-1.0, -4.0), (1.0, 4.0))
    policy = create_policy(Architecture(2, space, (4,)), np.random.default_rng(0))
    quiet = with_less_noise(policy, noise)
    wanted = [min(1.0, noise), min(1.0, 4 * noise)]
    np.testing.assert_allclose(np.exp(quiet.params["log_std"]), wanted, rtol=1e-5)
    observations = np.random.default_rng(1).normal(size=(7, 2)).astype(np.float32)
    silence = np.zeros((7, 2), np.float32)
    np.testing.assert_array_equal(
        quiet.decide(observations, silence).actions, policy.decide(observations, silence).actions
    )
    assert same(with_less_noise(quiet, noise), quiet)


def swing(task: Task) -> Controller:
    """Stretches the network's first action, and adds a swing to the second, whose clock a checkpoint must hold."""
    actions = [action.name for action in task.card.actions]
    rule = Assignment(add=((actions[0], f"k * agent({actions[0]})"), (actions[1], "0.3 * sin(c)")))
    program = Program("swing", (rule,), parameters=(Parameter("k", 0.5, 0, 1),), clocks=(("c", "0.3"),))
    facts = [fact.name for fact in task.card.facts]
    return Controller.of(compile_programs([program], facts, actions, task.action_space))


def test_ppo_learns_on_the_networks_own_actions_and_the_programs_are_executed() -> None:
    task = get_task("hopper")
    policy = fresh(task)
    with_program, without = rollout_of("hopper", policy, swing(task)), rollout_of("hopper", policy)
    # The first step of both begins in the same states, with the same noise.
    np.testing.assert_array_equal(with_program.actions[0], without.actions[0])
    assert (with_program.rewards[0] != without.rewards[0]).any()
    flat = [array.reshape(-1, array.shape[-1]) for array in (with_program.observations, with_program.actions)]
    logs = log_prob_function()(policy.params, policy.normalizer.arrays(), *flat)
    np.testing.assert_allclose(with_program.log_probs.ravel(), logs, rtol=1e-4, atol=1e-5)

    batch = task.make_batch(4, 1)
    rng = np.random.default_rng(2)
    batch.reset(range(4), rng.integers(2**31, size=4).tolist())
    for t in range(2):
        expected = with_program.actions[t].astype(np.float64)
        expected[:, 0] *= 1.5
        expected[:, 1] += 0.3 * np.sin(0.3 * t)
        step = batch.step(task.action_space.clip(expected.astype(np.float32)))
        np.testing.assert_allclose(step.rewards, with_program.rewards[t], rtol=1e-5)
    batch.close()


@pytest.mark.parametrize("interrupted", [1, 2])
def test_a_training_that_is_held_resumes_to_the_same_policy(interrupted: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"keep": HELD, "underneath": (swing(get_task("hopper")),)}
    whole = run("hopper", **options)

    def interrupt(iteration: Iteration) -> None:
        if iteration.steps == interrupted * TINY.samples:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("hopper", **options, checkpoint=tmp_path / "checkpoint.npz", observer=interrupt)
    assert same(run("hopper", **options, checkpoint=tmp_path / "checkpoint.npz"), whole)
    assert not same(run("hopper", keep=HELD), whole)
