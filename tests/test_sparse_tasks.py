"""Sparse tasks: the runners' physics with a reward for distance alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ultra import api
from ultra.cli import main as cli
from ultra.collection.collect import collect
from ultra.common.errors import UltraError
from ultra.config import EvaluateConfig, PPOConfig, RefineConfig, TrainConfig
from ultra.evaluation.evaluate import evaluate
from ultra.policies.io import save_policy
from ultra.policies.policy import Architecture, Policy, create_policy
from ultra.tasks import Task, get_task

NAMES = {"sparse-hopper": 0.6, "sparse-walker2d": 0.6, "sparse-halfcheetah": 5.0}


def some_policy(task: Task) -> Policy:
    return create_policy(Architecture(task.observation_size, task.action_space, (8,)), np.random.default_rng(0))


@pytest.mark.parametrize("name", NAMES)
def test_only_the_reward_differs_from_the_dense_task(name: str) -> None:
    """At a threshold that random actions reach; observations, facts, ends and snapshots are the dense task's."""
    task, dense = get_task(name, threshold=0.02), get_task(name.removeprefix("sparse-"))
    batch, other = task.make_local_batch(3), dense.make_local_batch(3)
    rng, rewards = np.random.default_rng(0), []
    np.testing.assert_array_equal(batch.reset(range(3), [1, 2, 3]), other.reset(range(3), [1, 2, 3]))
    for _ in range(60):
        actions = rng.uniform(-1, 1, (3, task.action_space.size)).astype(np.float32)
        step, wanted = batch.step(actions), other.step(actions)
        np.testing.assert_array_equal(step.observations, wanted.observations)
        np.testing.assert_array_equal(step.terminated, wanted.terminated)
        np.testing.assert_array_equal(batch.facts(), other.facts())
        np.testing.assert_array_equal(step.rewards, np.abs(batch.facts()[:, 0]) >= 0.02)
        rewards.append(step.rewards)
    assert 0 < np.mean(rewards) < 1
    assert batch.snapshots(range(3)) == other.snapshots(range(3))


@pytest.mark.parametrize(("name", "threshold"), NAMES.items())
def test_the_default_threshold_is_told_wherever_the_task_is_described(name: str, threshold: float) -> None:
    task = get_task(name)
    assert f"{threshold:g} m" in task.note
    assert f"{threshold:g} m" in task.card.reward
    batch = task.make_local_batch(2)
    batch.reset([0, 1], [0, 1])
    for sign, wanted in ((-1, 1), (1, 1), (0, 0)):
        state = np.frombuffer(batch.snapshots([0])[0]).copy()
        state[1] = sign * (threshold + 0.3)  # after the time comes x
        batch.restore([0, 1], [state.tobytes()] * 2)
        rewards = batch.step(np.zeros((2, task.action_space.size), np.float32)).rewards
        np.testing.assert_array_equal(rewards, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_gives_the_same_reward_in_gymnasiums_own_environment(name: str) -> None:
    """Step by step, from the states of the environment itself."""
    task: Task = get_task(name, threshold=0.03)
    env: Any = task.make_environment()
    env.reset(seed=5)
    rng, rewards = np.random.default_rng(1), []
    for _ in range(40):
        _, reward, _, _, _ = env.step(rng.uniform(-1, 1, task.action_space.size).astype(np.float32))
        assert reward == float(abs(env.unwrapped.data.qpos[0]) >= 0.03)
        rewards.append(reward)
    assert 0 < np.mean(rewards) < 1
    env.close()


def test_evaluation_is_about_what_collection_sees() -> None:
    task = get_task("sparse-hopper", threshold=0.01)
    policy = some_policy(task)
    collected = collect(task, policy, [1, 2, 3, 4], 0.99, workers=1)
    estimate, _, _ = evaluate(task, policy, [1, 2, 3, 4], workers=1)
    assert all(set(np.unique(episode.rewards)) <= {0.0, 1.0} for episode in collected)
    assert estimate.mean > 0
    assert evaluate(get_task("sparse-hopper", threshold=50.0), policy, [1, 2], workers=1)[0].mean == 0


@pytest.mark.slow
def test_the_threshold_is_an_option_of_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ppo = PPOConfig(environments=2, rollout_steps=16, minibatch=16, epochs=1)
    config = TrainConfig(
        "sparse-hopper", steps=64, hidden=(8,), threshold=0.02, workers=1, ppo=ppo, evaluate=EvaluateConfig(2)
    )
    api.train(config, tmp_path / "policy")
    refine = RefineConfig(
        "sparse-hopper", str(tmp_path / "policy"), method="ppo", steps=64, threshold=0.02, workers=1, ppo=ppo,
        evaluate=EvaluateConfig(2),
    )  # fmt: skip
    api.refine(refine, tmp_path / "run")
    status = cli.run(
        ["evaluate", str(tmp_path / "policy"), "--task", "sparse-hopper", "--threshold", "0.25", "--episodes", "2",
         "--workers", "1", "--json"]
    )  # fmt: skip
    assert status == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["episodes"] == 2
    assert "|x| >= 0.25 m" in printed.err


def test_a_threshold_for_another_task_is_one_clear_error(tmp_path: Path) -> None:
    save_policy(some_policy(get_task("hopper")), tmp_path / "policy")
    config = RefineConfig("hopper", str(tmp_path / "policy"), threshold=1.0)
    with pytest.raises(UltraError, match=r"hopper takes no --threshold: .* for sparse-"):
        api.refine(config, tmp_path / "run")
    with pytest.raises(UltraError, match=r"threshold is -1\.0, but must be at least 0"):
        api.refine(RefineConfig("sparse-hopper", str(tmp_path / "policy"), threshold=-1.0), tmp_path / "other")
