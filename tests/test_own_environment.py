"""An environment that we have never seen: cards, facts, snapshots, arguments, modules."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from tests.llm_runs import make_policy

from ultra.cli import main as cli
from ultra.common.errors import UltraError
from ultra.tasks import Task, get_task
from ultra.tasks.card import load_card, write_card
from ultra.tasks.shipped import parse_arguments
from ultra.tasks.sources import SourceError, compile_source
from ultra.tasks.spaces import Continuous, Discrete

FIELD = '''
"""A robot in a field, with a Dict observation."""

import gymnasium
import numpy as np
from gymnasium import spaces


class Field(gymnasium.Env):
    """Walk to the flag."""

    def __init__(self, size=8):
        self.size = size
        self.observation_space = spaces.Dict({
            "robot": spaces.Box(0, size, (2,), np.float32),
            "flag": spaces.Box(0, size, (2,), np.float32),
            "tired": spaces.Discrete(2),
        })
        self.action_space = spaces.Discrete(4)

    def _look(self):
        return {"robot": self.robot.astype(np.float32), "flag": self.flag.astype(np.float32), "tired": self.tired}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.robot, self.flag = self.np_random.integers(0, self.size, (2, 2)).astype(float)
        self.tired = 0
        return self._look(), {}

    def step(self, action):
        self.tired = int(self.np_random.random() < 0.2)
        move = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])[action] * (1 - self.tired)
        self.robot = np.clip(self.robot + move, 0, self.size)
        gap = float(np.abs(self.robot - self.flag).sum())
        return self._look(), -gap, gap == 0, False, {}


gymnasium.register("Field-v0", entry_point=Field, max_episode_steps=30)
'''


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


needs_box2d = pytest.mark.skipif(not has("Box2D"), reason="needs Box2D: pip install 'ultra-refine[envs]'")
needs_minigrid = pytest.mark.skipif(not has("minigrid"), reason="needs MiniGrid: pip install 'ultra-refine[envs]'")


@pytest.fixture
def registry() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    before = dict(gymnasium.registry)
    yield
    for name in set(gymnasium.registry) - set(before):
        del gymnasium.registry[name]


@pytest.fixture
def field(tmp_path: Path, registry: None) -> Path:
    """A module of the user's own, under a name of its own for each test."""
    path = tmp_path / f"field_{tmp_path.name}.py"
    path.write_text(FIELD)
    return path


# -- snapshots -------------------------------------------------------------------------------------


def replay_differs(task: Task, seed: int = 5, before: int = 30, after: int = 60) -> list[int]:
    """Steps after a snapshot at which another environment, restored from it, goes another way."""
    rng = np.random.default_rng(seed)
    space = task.action_space

    def draw() -> Any:
        if isinstance(space, Discrete):
            return rng.integers(space.n, size=2)
        return rng.uniform(space.low, space.high, (2, space.size)).astype(np.float32)

    batch = task.make_batch(2, workers=1)
    batch.reset([0, 1], [seed, seed + 1])
    for _ in range(before):
        if batch.step(draw()).done[0]:
            batch.reset([0], [seed])
    (snapshot,) = batch.snapshots([0])
    trace, facts = [], []
    for _ in range(after):
        actions = draw()
        step = batch.step(actions)
        trace.append((actions, step))
        facts.append(batch.facts()[0])
        if step.done[0]:
            break
    batch.reset([0, 1], [91, 92])
    batch.restore([1], [snapshot])
    differs = []
    for t, (actions, step) in enumerate(trace):
        again = batch.step(actions[::-1])
        same = np.array_equal(again.observations[1], step.observations[0]) and again.rewards[1] == step.rewards[0]
        if not same or again.done[1] != step.done[0] or not np.array_equal(batch.facts()[1], facts[t]):
            differs.append(t)
        if again.done[0]:
            batch.reset([0], [93])
    batch.close()
    return differs


@pytest.mark.parametrize(
    ("name", "kwargs", "means"),
    [
        ("Acrobot-v1", (), "state"),
        ("Ant-v5", (), "state"),
        ("InvertedDoublePendulum-v5", (), "state"),
        ("FrozenLake-v1", ("is_slippery=true",), "state"),
        pytest.param("LunarLander-v3", (), "replay", marks=needs_box2d),
        pytest.param("LunarLander-v3", ("enable_wind=true",), "replay", marks=needs_box2d),
        pytest.param("BipedalWalker-v3", (), "remake", marks=needs_box2d),
        pytest.param("MiniGrid-DoorKey-5x5-v0", (), "replay", marks=needs_minigrid),
    ],
)
def test_snapshots_by_the_best_means_are_exact(name: str, kwargs: tuple[str, ...], means: str) -> None:
    task = get_task(name, kwargs=kwargs)
    assert task.snapshots == means
    assert replay_differs(task) == []


@pytest.mark.slow
def test_an_atari_console_is_saved_unless_its_actions_stick() -> None:
    """The console does not save which action sticks."""
    steady = get_task("ALE/Breakout-v5", kwargs=("obs_type=ram", "repeat_action_probability=0.0"))
    assert steady.snapshots == "state"
    assert replay_differs(steady, before=10, after=20) == []


class Counter(gymnasium.Env[Any, Any]):
    """Keeps its state in an object, and says how to save it if it is asked."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.MultiDiscrete([3, 2])

    class Hidden:
        total = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.hidden = self.Hidden()
        self.hidden.total = float(self.np_random.uniform())
        return np.array([self.hidden.total]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.hidden.total += float(action[0]) - 10 * float(action[1]) + float(self.np_random.uniform())
        return np.array([self.hidden.total]), self.hidden.total, False, False, {}


class SavedCounter(Counter):
    def save_state(self) -> bytes:
        return json.dumps([self.hidden.total, self.np_random.bit_generator.state]).encode()

    def load_state(self, state: bytes) -> None:
        self.hidden = self.Hidden()
        self.hidden.total, self.np_random.bit_generator.state = json.loads(state)


class ForgetfulCounter(SavedCounter):
    """Forgets its generator: the check must notice."""

    def load_state(self, state: bytes) -> None:
        self.hidden = self.Hidden()
        self.hidden.total, _ = json.loads(state)


class Clock(Counter):
    """Goes on counting whatever the seed."""

    ticks = count()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.array([float(next(self.ticks))]), 0.0, False, False, {}


@pytest.mark.parametrize(
    ("kind", "means"), [(Counter, "replay"), (SavedCounter, "state"), (ForgetfulCounter, "replay"), (Clock, "none")]
)
def test_an_environments_own_snapshots_are_used_if_they_are_right(
    kind: type[gymnasium.Env[Any, Any]], means: str, registry: None
) -> None:
    gymnasium.register("Counter-v0", kind, max_episode_steps=100)  # type: ignore[arg-type]
    task = get_task("Counter-v0")
    assert task.snapshots == means
    assert (replay_differs(task) == []) == (means != "none")


def test_an_environment_that_does_not_repeat_itself_is_one_clear_line(
    registry: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain PPO can still be used."""
    gymnasium.register("Clock-v0", Clock, max_episode_steps=20)  # type: ignore[arg-type]
    policy = make_policy(tmp_path / "policy", "Clock-v0")
    command = ["refine", "Clock-v0", "--policy", str(policy), "--workers", "1", "--evaluate.episodes", "2", "--quiet"]
    assert cli.run([*command, "--out", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err.strip()
    assert "does not repeat itself" in error and "--method ppo" in error and "\n" not in error
    assert cli.run([*command, "--method", "none", "--out", str(tmp_path / "b")]) == 0


# -- actions of several parts ----------------------------------------------------------------------


def test_actions_of_several_parts_are_joint_actions(registry: None) -> None:
    gymnasium.register("Counter-v0", Counter, max_episode_steps=100)  # type: ignore[arg-type]
    task = get_task("Counter-v0")
    assert task.action_space == Discrete(6, (3, 2))
    assert [action.name for action in task.card.actions] == ["0_0", "0_1", "1_0", "1_1", "2_0", "2_1"]
    batch = task.make_batch(6, workers=1)
    start = batch.reset(range(6), [4] * 6)[:, 0]
    moved = batch.step(np.arange(6)).observations[:, 0] - start
    np.testing.assert_allclose(moved - moved[0], [0, -10, 1, -9, 2, -8], atol=1e-5)


# -- cards -----------------------------------------------------------------------------------------

SHIPPED = [
    "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1", "Pendulum-v1", "FrozenLake-v1",
    "CliffWalking-v1", "Taxi-v4", "Blackjack-v1", "ALE/Breakout-v5",
]  # fmt: skip
BOX2D = ["LunarLander-v3", "BipedalWalker-v3", "CarRacing-v3"]


@pytest.mark.parametrize("name", SHIPPED + [pytest.param(name, marks=needs_box2d) for name in BOX2D])
def test_shipped_cards_fit_their_environments(name: str) -> None:
    """Each fact is within the observation's bounds where it is one of its entries."""
    task = get_task(name, snapshots="replay")
    assert not task.card.fact_names[0].startswith("x0")
    batch = task.make_batch(1, workers=1)
    observation = batch.reset([0], [0])
    facts = batch.facts()
    assert facts.shape == (1, len(task.card.facts)) and np.isfinite(facts).all()
    if not task.card.facts[0].source:
        np.testing.assert_array_equal(facts, observation.astype(np.float64))
    batch.close()


def test_facts_of_acrobot_are_angles_and_the_height_of_its_free_end() -> None:
    task = get_task("Acrobot-v1")
    batch = task.make_batch(1, workers=1)
    batch.reset([0], [0])
    env: Any = batch._envs[0].unwrapped  # type: ignore[attr-defined]
    for action in np.random.default_rng(0).integers(3, size=40):
        batch.step(np.array([action]))
        s, facts = env.state, dict(zip(task.card.fact_names, batch.facts()[0], strict=True))
        assert facts["first_angle"] == pytest.approx(s[0], abs=1e-5)
        assert facts["second_angle"] == pytest.approx(s[1], abs=1e-5)
        assert facts["height"] == pytest.approx(-np.cos(s[0]) - np.cos(s[0] + s[1]), abs=1e-5)


def test_a_mujoco_card_is_read_off_the_model() -> None:
    task = get_task("Ant-v5")
    names = task.card.fact_names
    assert names[:3] == ("root_x", "root_y", "root_z") and "hip_1" in names and "ankle_4_velocity" in names
    facts = {fact.name: fact for fact in task.card.facts}
    assert facts["hip_1"].unit == "rad" and "from -0.5" in facts["hip_1"].meaning
    assert not facts["root_x"].match and facts["root_z"].match
    env = task.make_environment()
    assert isinstance(task.action_space, Continuous) and len(task.card.actions) == task.action_space.size
    model = env.unwrapped.model  # type: ignore[attr-defined]
    target = model.joint(int(model.actuator_trnid[0, 0])).name
    assert target in task.card.actions[0].meaning


@needs_minigrid
def test_a_minigrid_card_says_what_the_agent_sees() -> None:
    task = get_task("MiniGrid-DoorKey-5x5-v0")
    assert [action.name for action in task.card.actions][:3] == ["left", "right", "forward"]
    batch = task.make_batch(1, workers=1)
    batch.reset([0], [1])
    env: Any = batch._envs[0].unwrapped  # type: ignore[attr-defined]
    codes = {None: 1, "wall": 2, "door": 4, "key": 5, "goal": 8}
    for action in np.random.default_rng(0).integers(3, size=40):
        batch.step(np.array([action]))
        facts = dict(zip(task.card.fact_names, batch.facts()[0], strict=True))
        assert (facts["agent_x"], facts["agent_y"]) == tuple(env.agent_pos)
        cell = env.grid.get(*env.front_pos)
        assert facts["front"] == codes[cell.type if cell else None]
        assert facts["carried"] == 1


def test_a_card_survives_writing_and_reading(tmp_path: Path) -> None:
    for name in ("Acrobot-v1", "Ant-v5", "hopper", "FrozenLake-v1"):
        card = get_task(name).card
        (tmp_path / "card.yaml").write_text(write_card(card))
        assert load_card(tmp_path / "card.yaml") == card


def test_a_card_is_derived_completed_and_used(field: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a new user does: derive, edit, give."""
    path = tmp_path / "field.yaml"
    own = ["--env-module", str(field), "--env-kwargs", "size=5"]
    assert cli.run(["card", "Field-v0", *own, "--out", str(path)]) == 0
    raw = yaml.safe_load(path.read_text())
    assert len(raw["facts"]) == 5 and len(raw["actions"]) == 4  # flag (2), robot (2), tired
    raw["facts"] = [
        {"name": "robot_x", "unit": "m", "meaning": "east is positive", "source": "env.robot[0]"},
        {"name": "gap", "unit": "m", "meaning": "distance east", "source": "env.flag[0] - env.robot[0]"},
    ]
    raw["goal"] = "Walk to the flag."
    path.write_text(yaml.safe_dump(raw))
    task = get_task("Field-v0", card=str(path), module=str(field), kwargs=("size=5",))
    assert task.snapshots == "state"
    assert replay_differs(task, before=5) == []
    batch = task.make_batch(2, workers=2)
    batch.reset([0, 1], [0, 1])
    assert batch.facts().shape == (2, 2)
    batch.close()
    assert cli.run(["card", "Field-v0", *own, "--out", str(path)]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"facts": [{"name": "a", "unit": "", "meaning": "", "source": "env.nothing"}]}, "nothing"),
        ({"facts": [{"name": "a", "unit": "", "meaning": "", "source": "obs[99]"}]}, "entries 0 to 5"),
        ({"facts": [{"name": "a", "unit": "", "meaning": "", "source": "__import__('os')"}]}, "not known"),
        ({"actions": [{"name": "a", "meaning": ""}]}, "1 actions, but the environment takes Discrete"),
        ({"goal": None}, "goal|NoneType"),
    ],
    ids=["no such attribute", "no such entry", "code", "too few actions", "no goal"],
)
def test_a_card_that_does_not_fit_is_one_clear_line(
    change: dict[str, Any], says: str, field: Path, tmp_path: Path
) -> None:
    path = tmp_path / "card.yaml"
    raw = yaml.safe_load(write_card(get_task("Field-v0", module=str(field)).card))
    path.write_text(yaml.safe_dump(raw | change))
    with pytest.raises(UltraError, match=says) as caught:
        get_task("Field-v0", module=str(field), card=str(path))
    assert "\n" not in str(caught.value)
    assert "card" in str(caught.value)


def test_a_fact_that_cannot_be_read_later_is_one_clear_line_from_a_worker_too(field: Path, tmp_path: Path) -> None:
    """For instance an attribute that is there at first, or an entry of a list that grows shorter."""
    field.write_text(field.read_text().replace("self.tired = int(", "self.__dict__.pop('extra', 0); self.tired = int(")
                     .replace("self.tired = 0\n", "self.tired = 0; self.extra = 1.0\n"))  # fmt: skip
    path = tmp_path / "card.yaml"
    raw = yaml.safe_load(write_card(get_task("Field-v0", module=str(field)).card))
    extra = {"name": "extra", "unit": "", "meaning": "", "source": "env.extra"}
    path.write_text(yaml.safe_dump(raw | {"facts": [extra]}))
    task = get_task("Field-v0", module=str(field), card=str(path))
    batch = task.make_batch(2, workers=2)
    batch.reset([0, 1], [0, 1])
    assert batch.facts().tolist() == [[1.0], [1.0]]
    batch.step(np.array([0, 0]))
    with pytest.raises(UltraError, match=r"'env\.extra' cannot be read") as caught:
        batch.facts()
    assert "\n" not in str(caught.value)
    batch.close()


@pytest.mark.parametrize(
    "text",
    [
        "obs",
        "obs[-1]",
        "obs[0:2]",
        "env._secret",
        "env.step(1)",
        "open('x')",
        "sin(1, 2)",
        "a",
        "1 if 2 else 3",
        "",
        "(",
    ],
)
def test_sources_are_arithmetic_and_nothing_else(text: str) -> None:
    with pytest.raises(SourceError):
        compile_source(text, 3)


def test_sources_compute_on_all_environments_at_once() -> None:
    observations = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    reader = compile_source("-obs[0] * 2 + max(obs[1], 4) / atan2(obs[2], 1)", 3)
    expected = -observations[:, 0] * 2 + np.maximum(observations[:, 1], 4) / np.arctan2(observations[:, 2], 1)
    np.testing.assert_allclose(reader([], observations), expected, rtol=1e-5)


# -- modules and arguments -------------------------------------------------------------------------


def test_arguments_are_written_as_in_yaml() -> None:
    given = ("size=5", "name=two words", "fast=true", "nothing=null", "list=[1, 2]", "text='7'")
    assert parse_arguments(given) == {
        "size": 5, "name": "two words", "fast": True, "nothing": None, "list": [1, 2], "text": "7",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--env-kwargs", "colour=red"], "colour"),
        (["--env-module", "no_such_module"], "cannot import 'no_such_module'"),
        (["--card", "no_such_card.yaml"], "no_such_card.yaml"),
    ],
)
def test_wrong_arguments_are_one_clear_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["card", "CartPole-v1", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and "\n" not in error


@pytest.mark.slow
def test_a_dict_observation_from_a_users_module_is_refined_end_to_end(field: Path, tmp_path: Path) -> None:
    """In worker processes, with the module in the working directory."""
    own = ["--env-module", field.stem, "--env-kwargs", "size=4", "--workers", "2", "--quiet"]
    small = [
        "--ppo.environments",
        "4",
        "--ppo.rollout-steps",
        "32",
        "--ppo.minibatch",
        "64",
        "--evaluate.episodes",
        "2",
    ]
    train = ["train", "Field-v0", "--steps", "256", "--out", "policy", *own, *small]
    refine = ["refine", "Field-v0", "--policy", "policy", "--steps", "4000", "--analyst", "random", *own, *small]
    refine += ["--analyse.horizon", "20", "--analyse.states", "2", "--verify.share", "0.4"]
    code = "import sys; from ultra.cli.main import run; sys.exit(run(sys.argv[1:]))"
    for command in (train, [*refine, "--out", "run"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *command], check=False, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["budget"]["verify"] > 0
