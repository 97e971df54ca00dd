"""Random streams: independent by name, the same in every run, and apart from the seeds of environments."""

from __future__ import annotations

import ast
import re
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import ultra
from ultra.common.streams import stream
from ultra.evaluation.evaluate import evaluate, evaluation_seeds
from ultra.policies.policy import Architecture, Decision, Policy, create_policy, flatten, unflatten
from ultra.simulation.branches import Branch, simulate
from ultra.tasks import Batch, Step, Task, shipped
from ultra.tasks.batch import Observations
from ultra.tasks.spaces import Actions

Array = NDArray[np.float64]
KEYS = st.lists(st.integers(0, 2**40) | st.text(max_size=5), max_size=4)


def blind(task: Task) -> Policy:
    """A policy whose actions are its noise."""
    policy = create_policy(Architecture(task.observation_size, task.action_space), np.random.default_rng(0))
    return Policy(
        policy.architecture,
        unflatten({name: np.zeros_like(array) for name, array in flatten(policy.params).items()}),
        policy.normalizer,
    )


class FirstActions:
    """Records the first action of each branch."""

    def __init__(self, branches: int) -> None:
        self.actions: list[Array] = [np.zeros(0)] * branches

    def before(self, jobs: NDArray[np.int64], clocks: NDArray[np.int64], batch: Batch) -> None:
        pass

    def after(
        self,
        jobs: NDArray[np.int64],
        observations: Observations,
        decision: Decision,
        done: Actions,
        step: Step,
        batch: Batch,
    ) -> None:
        for slot in np.flatnonzero(jobs >= 0):
            self.actions[jobs[slot]] = np.asarray(decision.actions[slot], np.float64)


@given(KEYS, KEYS)
def test_keys_that_differ_give_other_numbers(one: list[int | str], other: list[int | str]) -> None:
    draws = [stream(*key).integers(2**62, size=4).tolist() for key in (one, other)]
    assert (draws[0] == draws[1]) == (one == other)


def test_keys_of_different_length_give_other_numbers() -> None:
    """NumPy seeds the same generator with 1, [1] and [1, 0]; text and numbers that look alike differ too."""
    keys: list[tuple[int | str, ...]] = [(), (1,), (1, 0), (1, 0, 0), (0, 1), ("1",), ("1", 0), (10,), (1, "")]
    draws = [stream(*key).random() for key in keys]
    assert all(one != other for one, other in combinations(draws, 2))


def test_a_stream_is_the_same_in_every_run() -> None:
    """Results of old runs can be repeated only as long as these numbers stay."""
    assert stream(7, "evaluation").integers(1000, size=5).tolist() == [37, 75, 708, 442, 653]


def test_the_reset_and_the_policys_noise_do_not_depend_on_each_other() -> None:
    """With one seed for both: Hopper's first position and velocity against its first action, over 200 seeds."""
    task, seeds = shipped.hopper(), range(200)
    seen = FirstActions(len(seeds))
    simulate(task.make_local_batch(50), blind(task), [Branch(s, 1, reset_seed=s) for s in seeds], 1.0, watcher=seen)
    actions, states = np.array(seen.actions), np.array([first_state(seed) for seed in seeds])
    assert np.abs(correlations(np.linalg.norm(actions, axis=1)[:, None], states)).max() < 0.2
    assert np.abs(correlations(np.abs(actions), states)).max() < 0.3  # the largest of 36


@cache
def hopper() -> Any:
    return gymnasium.make("Hopper-v5")


def first_state(seed: int) -> Array:
    """(12,) position and velocity after a reset."""
    hopper().reset(seed=seed)
    data = hopper().unwrapped.data
    return np.concatenate([data.qpos, data.qvel])


def correlations(one: Array, other: Array) -> Array:
    """(columns of one, columns of the other)."""
    return np.corrcoef(one.T, other.T)[: one.shape[1], one.shape[1] :]


def test_evaluation_resets_with_its_seeds() -> None:
    """The returns are those that Gymnasium gives after `reset(seed=...)`, with the same policy."""
    task = shipped.hopper()
    seeds = evaluation_seeds(3, 4)
    assert evaluation_seeds(3, 2) == seeds[:2]
    assert not set(seeds) & set(evaluation_seeds(4, 4))
    policy = blind(task)
    _, returns, _ = evaluate(task, policy, seeds, workers=1)
    env = hopper()
    for seed, found in zip(seeds, returns, strict=True):
        env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(np.zeros(3, np.float32))
            total, over = total + float(reward), terminated or truncated
        assert found == total


def test_every_generator_of_the_package_is_a_named_stream() -> None:
    """But those that repeat the states of Gymnasium's `reset(seed=...)`."""
    package = Path(ultra.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        called = {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        }
        if any(re.search(r"(default_rng|SeedSequence|RandomState|random\.seed)$", name) for name in called):
            found.add(path.relative_to(package).as_posix())
    assert found == {"common/streams.py", "tasks/mujoco.py"}
