"""Any Gymnasium environment as a task: snapshots by replay, workers, and what cannot be used."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

import ultra.tasks
from ultra.common.errors import UltraError
from ultra.tasks import Batch, Step, Task, get_task
from ultra.tasks import task as task_module
from ultra.tasks.spaces import Continuous, Discrete

IDS = ("CartPole-v1", "MountainCar-v0", "Pendulum-v1", "MountainCarContinuous-v0")


def random_actions(task: Task, rng: np.random.Generator, steps: int, size: int) -> NDArray[Any]:
    space = task.action_space
    if isinstance(space, Discrete):
        return rng.integers(space.n, size=(steps, size))
    return rng.uniform(space.low, space.high, (steps, size, space.size)).astype(np.float32)


def play(batch: Batch, actions: NDArray[Any]) -> list[tuple[Step, NDArray[np.float64]]]:
    """Step with each row; the rows are one array that is written over, as a caller may do."""
    row = np.empty_like(actions[0])
    record = []
    for values in actions:
        row[...] = values
        record.append((batch.step(row), batch.facts()))
    return record


def assert_same(
    record: list[tuple[Step, NDArray[np.float64]]],
    again: list[tuple[Step, NDArray[np.float64]]],
    old: list[int],
    new: list[int],
) -> None:
    """The environments `old` of one record went exactly as `new` of the other."""
    for (step, facts), (step_again, facts_again) in zip(record, again, strict=True):
        np.testing.assert_array_equal(step_again.observations[new], step.observations[old])
        np.testing.assert_array_equal(step_again.rewards[new], step.rewards[old])
        np.testing.assert_array_equal(step_again.terminated[new], step.terminated[old])
        np.testing.assert_array_equal(step_again.truncated[new], step.truncated[old])
        np.testing.assert_array_equal(facts_again[new], facts[old])


@pytest.fixture(params=[1, 2], ids=["local", "workers"])
def workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=IDS)
def task(request: pytest.FixtureRequest) -> Task:
    return get_task(request.param)


def test_a_task_is_made_from_the_environments_own_data(task: Task) -> None:
    env = gymnasium.make(task.name)
    shape = env.observation_space.shape
    assert env.spec is not None and shape is not None
    assert (task.observation_size,) == shape
    assert task.time_limit == env.spec.max_episode_steps
    assert len(task.card.actions) == task.action_space.size
    env.close()


def test_steps_are_gymnasiums(task: Task) -> None:
    batch, env, rng = task.make_batch(2, workers=1), gymnasium.make(task.name), np.random.default_rng(0)
    observations = batch.reset([0, 1], [8, 9])
    theirs, _ = env.reset(seed=9)
    np.testing.assert_array_equal(observations[1], theirs)
    for row in random_actions(task, rng, 250, 2):
        step = batch.step(row)
        theirs, reward, terminated, truncated, _ = env.step(row[1])
        np.testing.assert_array_equal(step.observations[1], theirs)
        assert (step.rewards[1], step.terminated[1]) == (reward, terminated)
        assert step.truncated[1] == (truncated and not terminated)
        if step.done.any():
            break
    batch.close()
    env.close()


@pytest.mark.parametrize(("name", "steps"), [("CartPole-v1", 5), ("Pendulum-v1", 30)])
def test_restore_and_replay_is_bit_identical(name: str, steps: int, workers: int) -> None:
    """From the middle of episodes, in place and in other slots of another batch."""
    task, rng = get_task(name), np.random.default_rng(3)
    batch, other = task.make_batch(2, workers), task.make_batch(3, workers)
    batch.reset([0, 1], [1, 2])
    other.reset(range(3), [3, 4, 5])
    play(batch, random_actions(task, rng, 3, 2))
    snapshots, facts = batch.snapshots([0, 1]), batch.facts()
    ahead = random_actions(task, rng, steps, 2)
    record = play(batch, ahead)

    restored = batch.restore([0, 1], snapshots)
    np.testing.assert_array_equal(batch.facts(), facts)
    assert batch.snapshots([0, 1]) == snapshots
    assert_same(record, play(batch, ahead), [0, 1], [0, 1])

    play(other, random_actions(task, rng, 3, 3))
    np.testing.assert_array_equal(other.restore([2, 0], snapshots), restored)
    elsewhere = random_actions(task, rng, steps, 3)
    elsewhere[:, [2, 0]] = ahead
    assert_same(record, play(other, elsewhere), [0, 1], [2, 0])
    batch.close()
    other.close()


def test_a_snapshot_of_a_fresh_episode_is_its_start(task: Task) -> None:
    batch = task.make_batch(2, workers=1)
    start = batch.reset([0, 1], [1, 2])
    np.testing.assert_array_equal(batch.restore([1, 0], batch.snapshots([0, 1])), start)
    batch.close()


def test_the_time_limit_is_kept_in_snapshots_and_restarts() -> None:
    """Pendulum never ends by itself and is cut off after 200 steps."""
    task = get_task("Pendulum-v1")
    batch = task.make_batch(2, workers=1)
    batch.reset([0, 1], [1, 2])
    still = np.zeros((2, 1), np.float32)
    for _ in range(task.time_limit - 2):
        assert not batch.step(still).truncated.any()
    snapshots = batch.snapshots([0, 1])
    for _ in range(2):
        batch.restore([0, 1], snapshots)
        batch.restart_clock([1])
        assert batch.step(still).truncated.tolist() == [False, False]
        assert batch.step(still).truncated.tolist() == [True, False]
    batch.close()


def test_a_snapshot_after_the_clock_restarted_keeps_the_restarted_clock() -> None:
    task = get_task("Pendulum-v1")
    batch = task.make_batch(1, workers=1)
    batch.reset([0], [1])
    still = np.zeros((1, 1), np.float32)
    for _ in range(150):
        batch.step(still)
    batch.restart_clock([0])
    batch.step(still)
    batch.restore([0], batch.snapshots([0]))
    truncated = [bool(batch.step(still).truncated[0]) for _ in range(task.time_limit - 1)]
    assert truncated.index(True) == task.time_limit - 2
    batch.close()


class Recorder(gymnasium.Env[NDArray[np.float64], NDArray[np.float64]]):
    """Actions and observations in float64: the observation is the sum of the actions so far.

    It insists on its bounds, which single precision cannot hold, and writes into its action.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (2,), np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        super().reset(seed=seed)
        self.total = self.np_random.uniform(size=2)
        return self.total.copy(), {}

    def step(self, action: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.total += action
        action[:] = 9.0
        return self.total.copy(), float(self.total.sum()), False, False, {}


@pytest.fixture
def register() -> Iterator[Any]:
    """Registers environments for one test."""
    before = set(gymnasium.registry)
    yield gymnasium.register
    for name in set(gymnasium.registry) - before:
        del gymnasium.registry[name]


def test_snapshots_of_an_environment_with_float64_actions(register: Any) -> None:
    register("Recorder-v0", entry_point=Recorder, max_episode_steps=50)
    task, rng = get_task("Recorder-v0"), np.random.default_rng(0)
    batch = task.make_batch(2, workers=1)
    batch.reset([0, 1], [1, 2])
    play(batch, random_actions(task, rng, 5, 2))
    snapshots = batch.snapshots([0, 1])
    ahead = random_actions(task, rng, 10, 2)
    ahead[0] = 0.1
    record = play(batch, ahead)
    batch.restore([0, 1], snapshots)
    assert_same(record, play(batch, ahead), [0, 1], [0, 1])


def test_an_environment_without_a_time_limit_is_given_one(register: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ultra.tasks.gymnasium.TIME_LIMIT", 20)
    register("Endless-v0", entry_point=Recorder)
    task = get_task("Endless-v0")
    assert task.time_limit == 20
    batch, still = task.make_batch(1, workers=1), np.zeros((1, 2), np.float32)
    batch.reset([0], [1])
    assert [bool(batch.step(still).truncated[0]) for _ in range(20)] == [False] * 19 + [True]


def test_a_task_of_the_users_own_runs_in_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered in this process, made again in the others."""
    (tmp_path / "users_tasks.py").write_text(
        "from dataclasses import replace\nfrom ultra.tasks import get_task\n\n"
        "def easy():\n    return replace(get_task('CartPole-v1'), name='easy-pole')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("ultra.tasks.task._registry", dict(task_module._registry))
    ultra.tasks.register("easy-pole", "users_tasks:easy", "a pole to balance")
    batch = get_task("easy-pole").make_batch(2, workers=2)
    assert batch.reset([0, 1], [1, 2]).shape == (2, 4)
    batch.close()


def test_an_environment_of_the_users_own_module_runs_in_workers(
    register: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gymnasium's `module:id` imports the module that registers the id."""
    (tmp_path / "users_environments.py").write_text(
        "import gymnasium\n\n"
        "gymnasium.register('Own-v0', entry_point='gymnasium.envs.classic_control:PendulumEnv', max_episode_steps=5)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = get_task("users_environments:Own-v0")
    assert task.time_limit == 5
    batch = task.make_batch(2, workers=2)
    assert batch.reset([0, 1], [1, 2]).shape == (2, 3)
    batch.close()


def test_what_workers_cannot_make_is_one_clear_error_and_leaves_none_running(
    register: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    register("Recorder-v0", entry_point=Recorder)
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr("subprocess.Popen", Noted)
    with pytest.raises(UltraError, match=r"cannot make Recorder-v0: .*`module:id`.*--workers 1") as caught:
        get_task("Recorder-v0").make_batch(2, workers=2)
    assert "\n" not in str(caught.value)
    assert [process.poll() is None for process in started] == [False, False]


def test_an_observation_of_several_parts_is_flattened() -> None:
    task = get_task("Blackjack-v1")
    assert (task.observation_size, task.action_space) == (32 + 11 + 2, Discrete(2))
    batch = task.make_batch(2, workers=1)
    assert batch.reset([0, 1], [1, 2]).shape == (2, 45)


def test_action_bounds_are_the_environments() -> None:
    assert get_task("Pendulum-v1").action_space == Continuous((-2.0,), (2.0,))


@pytest.mark.parametrize(
    ("wrong", "right"), [("hoper", "hopper"), ("Walker", "walker2d"), ("half-cheetah", "halfcheetah")]
)
def test_an_unknown_task_offers_the_closest_name(wrong: str, right: str) -> None:
    with pytest.raises(UltraError, match=f"unknown task '{wrong}': did you mean .*{right}") as caught:
        get_task(wrong)
    assert "\n" not in str(caught.value)


def test_an_unknown_task_that_is_like_no_other_lists_all() -> None:
    with pytest.raises(UltraError, match="hopper, walker2d"):
        get_task("qqqq")


def test_a_module_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(UltraError, match="cannot import 'no_such_module', which should register 'Own-v0'"):
        get_task("no_such_module:Own-v0")


def space_environment(
    actions: gymnasium.Space[Any], observations: gymnasium.Space[Any]
) -> type[gymnasium.Env[Any, Any]]:
    class Spaces(gymnasium.Env[Any, Any]):
        action_space = actions
        observation_space = observations

    return Spaces


BOX = gymnasium.spaces.Box(-1.0, 1.0, (2,))


@pytest.mark.parametrize(
    ("actions", "observations"),
    [
        pytest.param(gymnasium.spaces.MultiDiscrete([64, 64]), BOX, id="too many combinations"),
        pytest.param(gymnasium.spaces.MultiDiscrete(np.full((2, 2), 3)), BOX, id="a matrix of discrete actions"),
        pytest.param(gymnasium.spaces.Box(-1.0, 1.0, (2, 2)), BOX, id="a matrix of actions"),
        pytest.param(gymnasium.spaces.Box(-np.inf, np.inf, (2,)), BOX, id="unbounded actions"),
        pytest.param(gymnasium.spaces.Discrete(3, start=1), BOX, id="actions not numbered from 0"),
        pytest.param(gymnasium.spaces.Discrete(1), BOX, id="nothing to choose"),
        pytest.param(gymnasium.spaces.Discrete(2), gymnasium.spaces.Sequence(BOX), id="observations of varying length"),
    ],
)
def test_unsupported_spaces_are_one_clear_error(
    register: Any, actions: gymnasium.Space[Any], observations: gymnasium.Space[Any]
) -> None:
    register("Spaces-v0", entry_point=space_environment(actions, observations))
    with pytest.raises(UltraError) as caught:
        get_task("Spaces-v0")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*out of date")
def test_an_environment_that_cannot_be_made_is_one_clear_error() -> None:
    """Gymnasium still lists the old MuJoCo versions, but making them fails; others lack a package."""
    with pytest.raises(UltraError, match="Hopper-v3") as caught:
        get_task("Hopper-v3")
    assert "\n" not in str(caught.value)
