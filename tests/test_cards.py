"""Cards as a person or a language model gets them: right for every kind of environment, before anybody edits them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium import spaces
from scipy.spatial.transform import Rotation

from ultra.cli import main as cli
from ultra.common.errors import UltraError
from ultra.tasks import Task, get_task
from ultra.tasks.atari_objects import _places
from ultra.tasks.card import UNKNOWN_GOAL
from ultra.tasks.sources import SourceError, compile_source


def visits(task: Task, steps: int, seed: int = 0) -> Iterator[tuple[Any, dict[str, float], Any]]:
    """The environment, the card's facts and the observation along an episode of random actions."""
    batch = task.make_batch(1, workers=1)
    observation = batch.reset([0], [seed])
    env: Any = batch._envs[0].unwrapped  # type: ignore[attr-defined]
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        yield env, dict(zip(task.card.fact_names, batch.facts()[0].tolist(), strict=True)), observation[0]
        space = batch._envs[0].action_space  # type: ignore[attr-defined]
        space.seed(int(rng.integers(2**31)))
        step = batch.step(np.array([space.sample()]))
        observation = step.observations
        if step.done[0]:
            observation = batch.reset([0], [int(rng.integers(1000))])
    batch.close()


# -- what can have one of several values is one fact -----------------------------------------------


class Mixed(gymnasium.Env[Any, Any]):
    """An observation of every kind; nothing happens in it."""

    observation_space = spaces.Dict(
        {
            "gear": spaces.Discrete(4, start=-1),
            "lamps": spaces.MultiBinary(2),
            "dials": spaces.MultiDiscrete([3, 5]),
            "pair": spaces.Tuple([spaces.Discrete(2), spaces.Box(-2, 2, (2,), np.float32)]),
            "place": spaces.Box(-np.inf, np.inf, (1,), np.float32),
        }
    )
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._look(), {}

    def _look(self) -> Any:
        draw = self.np_random
        self.seen = {
            "gear": int(draw.integers(-1, 3)),
            "lamps": draw.integers(2, size=2).astype(np.int8),
            "dials": draw.integers([3, 5]),
            "pair": (int(draw.integers(2)), draw.uniform(-2, 2, 2).astype(np.float32)),
            "place": draw.uniform(size=1).astype(np.float32),
        }
        return self.seen

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._look(), 0.0, False, False, {}


@pytest.fixture
def mixed() -> Iterator[Task]:
    gymnasium.register("Mixed-v0", Mixed, max_episode_steps=50)  # type: ignore[arg-type]
    yield get_task("Mixed-v0")
    del gymnasium.registry["Mixed-v0"]


def test_a_skeleton_has_one_fact_for_each_quantity_of_an_observation(mixed: Task) -> None:
    assert sorted(mixed.card.fact_names) == [
        "dials_0", "dials_1", "gear", "lamps_0", "lamps_1", "pair_part0", "pair_part1_0", "pair_part1_1", "place",
    ]  # fmt: skip
    for env, facts, _ in visits(mixed, 20):
        seen = env.seen
        expected = {
            "gear": seen["gear"], "lamps_0": seen["lamps"][0], "lamps_1": seen["lamps"][1], "place": seen["place"][0],
            "dials_0": seen["dials"][0], "dials_1": seen["dials"][1], "pair_part0": seen["pair"][0],
            "pair_part1_0": seen["pair"][1][0], "pair_part1_1": seen["pair"][1][1],
        }  # fmt: skip
        assert facts == pytest.approx({name: float(value) for name, value in expected.items()})


def test_a_line_can_be_deleted_from_a_skeleton_without_moving_the_others(mixed: Task, tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    assert cli.run(["card", "Mixed-v0", "--out", str(path)]) == 0
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if "name: dials_0" not in line))
    shorter = get_task("Mixed-v0", card=str(path))
    whole = [facts for _, facts, _ in visits(mixed, 5)]
    assert [facts for _, facts, _ in visits(shorter, 5)] == [
        {name: value for name, value in facts.items() if name != "dials_0"} for facts in whole
    ]


def test_a_card_to_complete_says_what_the_environment_says_of_itself(
    mixed: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["card", "Mixed-v0"]) == 0
    assert "# An observation of every kind; nothing happens in it." in capsys.readouterr().out


@pytest.mark.parametrize("text", ["argmax(obs[2:2])", "argmax(obs[1:4])", "argmax(obs[0])", "argmax(qpos[0:2])"])
def test_argmax_is_of_entries_that_are_there(text: str) -> None:
    with pytest.raises(SourceError, match="argmax takes"):
        compile_source(text, 3)


# -- shipped and derived cards say the truth -------------------------------------------------------


def test_facts_of_the_text_games_are_places() -> None:
    lake = get_task("FrozenLake-v1")
    for env, facts, _ in visits(lake, 30):
        assert (facts["row"], facts["column"]) == divmod(int(env.s), 4)
    cliff = get_task("CliffWalking-v1")
    for env, facts, _ in visits(cliff, 30):
        assert (facts["row"], facts["column"]) == divmod(int(env.s), 12)
    taxi = get_task("Taxi-v4")
    for env, facts, _ in visits(taxi, 60):
        row, column, passenger, destination = env.decode(env.s)
        assert facts == {"row": row, "column": column, "passenger": passenger, "destination": destination}
    cards = get_task("Blackjack-v1")
    for env, facts, _ in visits(cards, 30):
        own, dealer, ace = env._get_obs()
        assert facts == {"own_sum": own, "dealer": dealer, "usable_ace": ace}


def test_the_orientation_of_a_free_body_is_told_in_angles() -> None:
    """As SciPy computes them from the quaternion."""
    task = get_task("Ant-v5", kwargs=("terminate_when_unhealthy=false",))
    for env, facts, _ in visits(task, 40):
        w, x, y, z = env.data.qpos[3:7]
        turn = Rotation.from_quat([x, y, z, w])
        yaw, pitch, roll = turn.as_euler("ZYX")
        assert [facts[f"root_{name}"] for name in ("roll", "pitch", "yaw")] == pytest.approx([roll, pitch, yaw])
        assert facts["root_upright"] == pytest.approx(turn.as_matrix()[2, 2])


@pytest.mark.parametrize(
    "name", ["Ant-v5", "Humanoid-v5", "HumanoidStandup-v5", "Swimmer-v5", "Pusher-v5", "InvertedPendulum-v5",
             "InvertedDoublePendulum-v5", "Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Reacher-v5"]
)  # fmt: skip
def test_gymnasiums_mujoco_environments_have_a_goal(name: str) -> None:
    card = get_task(name, snapshots="replay").card
    assert card.goal != UNKNOWN_GOAL and "cut off" in card.termination and card.reward.startswith(("For", "1 for"))


def test_facts_of_any_model_hold_its_feet_and_its_body_in_words() -> None:
    """An ant's legs end in bodies without a name: their joints name them."""
    task = get_task("Ant-v5", kwargs=("terminate_when_unhealthy=false",))
    names = [f"ankle_{leg}" for leg in (1, 2, 3, 4)]
    assert {f"{name}_{kind}" for name in names for kind in ("height", "contact")} <= set(task.card.fact_names)
    seen = set()
    for env, facts, _ in visits(task, 40):
        data = mujoco.MjData(env.model)
        data.qpos[:] = env.data.qpos
        mujoco.mj_forward(env.model, data)
        touching = {int(env.model.geom_bodyid[geom]) for contact in data.contact for geom in contact.geom}
        for name in names:
            body = int(env.model.jnt_bodyid[env.model.joint(name).id])
            assert facts[f"{name}_contact"] == (body in touching)
            seen.add(facts[f"{name}_contact"])
    assert seen == {0.0, 1.0}
    assert "One step of the agent lasts 0.05 s" in task.card.body and "hip_1 -0.52 to 0.52" in task.card.body
    swimmer = get_task("Swimmer-v5", snapshots="replay").card  # which nothing touches
    assert not any(name.endswith("_contact") for name in swimmer.fact_names)


def test_other_arguments_leave_the_goal_to_the_user() -> None:
    """They may change what is rewarded and when it ends."""
    assert get_task("Ant-v5", snapshots="replay", kwargs=("healthy_reward=0",)).card.goal == UNKNOWN_GOAL


@pytest.mark.slow
def test_facts_of_breakout_are_what_the_screen_shows() -> None:
    """Left edges of paddle and ball, and where the ball goes."""
    task = get_task("ALE/Breakout-v5", kwargs=("obs_type=ram", "repeat_action_probability=0.0"))
    batch = task.make_batch(1, workers=1)
    batch.reset([0], [0])
    env: Any = batch._envs[0].unwrapped  # type: ignore[attr-defined]
    seen, before = 0, None
    for t in range(120):
        batch.step(np.array([1 if t % 10 == 0 else 2 + t // 15 % 2]))
        facts = dict(zip(task.card.fact_names, batch.facts()[0], strict=True))
        red = (env.ale.getScreenRGB() == [200, 72, 72]).all(axis=2)
        assert facts["balls"] == env.ale.lives()
        if not 95 < facts["ball_y"] < 180:  # among the bricks, or at the paddle: all of them are red
            before = None
            continue
        assert facts["paddle_x"] == 8 + np.flatnonzero(red[190, 8:152])[0]
        y, x = np.argwhere(red[94:186, 8:152])[0] + [94, 8]
        assert (facts["ball_x"], facts["ball_y"]) == (x, y)
        assert facts["gap_x"] == (x + 1) - (facts["paddle_x"] + 8)
        if before is not None and (before["ball_dx"], before["ball_dy"]) == (facts["ball_dx"], facts["ball_dy"]):
            frames = (facts["ball_y"] - before["ball_y"]) / facts["ball_dy"]
            assert frames == pytest.approx(4, abs=1)
            assert np.sign(facts["ball_x"] - before["ball_x"]) == np.sign(facts["ball_dx"])
            seen += 1
        before = facts
    batch.close()
    assert seen > 10


# -- Atari's objects through OCAtari ---------------------------------------------------------------

STAND_IN = '''
"""NOT OCAtari: the part of its module for Boxing that we use, written after its documented interface (2.2.1)."""

class NoObject:
    def __bool__(self):
        return False

class Player:
    def __init__(self):
        self.xy = 0, 0
    x = property(lambda self: self.xy[0])
    y = property(lambda self: self.xy[1])

class Enemy(Player):
    pass

MAX_NB_OBJECTS = {"Player": 1, "Enemy": 1, "Rope": 40}

def _init_objects_ram(hud=False):
    return [Player(), Enemy()]

def _detect_objects_ram(objects, ram_state, hud=False):
    objects[0].xy = ram_state[32] - 300, ram_state[34] + 38
    if ram_state[33] > 0:
        objects[1] = NoObject()
'''


@pytest.fixture
def forget_ocatari() -> Iterator[None]:
    """Whatever was imported under that name, before and after."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "ocatari"]:
            del sys.modules[name]
        _places.cache_clear()

    forget()
    yield
    forget()


@pytest.mark.slow
def test_objects_are_facts_where_ocatari_is_installed(
    forget_ocatari: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in, so that it runs everywhere; the test below takes the real one."""
    folder = tmp_path / "ocatari" / "ram"
    folder.mkdir(parents=True)
    for path in (folder.parent, folder):
        (path / "__init__.py").write_text("")
    (folder / "boxing.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    task = get_task("ALE/Boxing-v5", kwargs=("obs_type=ram", "repeat_action_probability=0.0"))
    assert task.card.fact_names == ("player_x", "player_y", "enemy_x", "enemy_y") and not task.note
    for env, facts, _ in visits(task, 10):
        ram = env.ale.getRAM()
        assert facts["player_x"] == int(ram[32]) - 300  # below zero, as OCAtari means it: no byte's overflow
        assert facts["player_y"] == int(ram[34]) + 38
        assert (facts["enemy_x"], facts["enemy_y"]) == ((-1, -1) if ram[33] else (0, 0))


@pytest.mark.slow
def test_without_ocatari_bytes_are_facts_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ocatari", "ocatari.ram", "ocatari.ram.boxing"):
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.run(["card", "ALE/Boxing-v5", "--env-kwargs", "obs_type=ram"]) == 0
    told = capsys.readouterr().out
    assert "ram127" in told and "OCAtari" in told and "repeat_action_probability=0.0" in told


def test_ocatari_itself_tells_where_the_objects_of_boxing_are() -> None:
    pytest.importorskip("ocatari", reason="needs OCAtari: docs/own-environment.md")
    task = get_task("ALE/Boxing-v5", kwargs=("obs_type=ram", "repeat_action_probability=0.0"))
    assert {"player_x", "player_y", "enemy_x", "enemy_y"} <= set(task.card.fact_names)
    for _, facts, _ in visits(task, 20):
        assert 0 < facts["player_x"] < 160 and 0 < facts["player_y"] < 210


# -- ids that nobody registered --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "right"), [("Taxi-v3", "Taxi-v4"), ("cartpole-v1", "CartPole-v1"), ("ALE/Breakou-v5", "ALE/Breakout-v5")]
)
def test_an_unknown_id_offers_another_version_or_spelling(wrong: str, right: str) -> None:
    with pytest.raises(UltraError, match=f"did you mean {right}"):
        get_task(wrong)
