"""Episodes as text: within a token budget, with what matters, the same every time; and the prompts around it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ultra
from ultra import api
from ultra.cli.prompt import prompts_of_run
from ultra.collection.describe import choose_rows, count_tokens, describe_episode, describe_window, largest_facts
from ultra.collection.trajectories import Trajectory
from ultra.common.errors import UltraError
from ultra.config import AnalyseConfig, CollectConfig, PPOConfig, RefineConfig
from ultra.pipeline.progress import Reporter
from ultra.pipeline.refinement import Refinement
from ultra.tasks import Task, get_task
from ultra.tasks.spaces import Discrete

POLICIES = Path(ultra.__file__).parent / "policies" / "shipped"
HOPPER, PONG = get_task("hopper"), get_task("pong")
TASKS = {"hopper": HOPPER, "pong": PONG}


def make_episode(task: Task, steps: int, seed: int = 0, events: tuple[int, ...] = ()) -> Trajectory:
    """A wandering episode whose reward is 1 everywhere, but -20 at the events."""
    rng = np.random.default_rng(seed)
    width = 1 if isinstance(task.action_space, Discrete) else task.action_space.size
    actions: Any = rng.normal(0, 2, (steps, width)).astype(np.float32)
    if isinstance(task.action_space, Discrete):
        actions = rng.integers(0, task.action_space.n, steps)
    rewards = np.ones(steps)
    rewards[list(events)] = -20.0
    return Trajectory(
        observations=np.zeros((steps + 1, task.observation_size), np.float32),
        facts=rng.normal(0, 3, (steps + 1, len(task.card.facts))).cumsum(axis=0),
        actions=actions,
        rewards=rewards,
        values=rng.normal(50, 20, steps + 1),
        log_probs=np.zeros(steps, np.float32),
        terminated=True,
        truncated=False,
        seed=seed,
        snapshots=((0, b""),),
    )


def shown(text: str) -> list[int]:
    """The times of the rows in a table."""
    return [int(found) for found in re.findall(r"^(\d+),", text, flags=re.MULTILINE)]


@settings(deadline=None)
@given(name=st.sampled_from(sorted(TASKS)), steps=st.integers(1, 600), seed=st.integers(0, 99), data=st.data())
def test_an_episode_costs_at_most_its_tokens(name: str, steps: int, seed: int, data: st.DataObject) -> None:
    task = TASKS[name]
    tokens = data.draw(st.integers(600, 6000))
    text = describe_episode(task, make_episode(task, steps, seed), tokens)
    assert count_tokens(text) <= tokens


@settings(deadline=None)
@given(seed=st.integers(0, 99), events=st.sets(st.integers(0, 599), max_size=6))
def test_reward_events_are_kept(seed: int, events: set[int]) -> None:
    rows = choose_rows(make_episode(HOPPER, 600, seed, tuple(events)), 40)
    assert events <= set(rows)


@settings(deadline=None)
@given(name=st.sampled_from(sorted(TASKS)), steps=st.integers(1, 600), seed=st.integers(0, 99), data=st.data())
def test_what_is_left_out_is_announced(name: str, steps: int, seed: int, data: st.DataObject) -> None:
    """Shown and announced steps together are the whole episode, in order."""
    task = TASKS[name]
    tokens = data.draw(st.integers(100, 6000))
    text = describe_episode(task, make_episode(task, steps, seed), tokens)
    expected = 0
    for line in text.split("\n\n", 1)[1].splitlines()[1:]:
        gap = re.fullmatch(r"\.\.\. (\d+) left out", line)
        if gap:
            assert int(gap[1]) > 0
            expected += int(gap[1])
        else:
            assert line.startswith(f"{expected},")
            expected += 1
    assert expected == steps


@settings(deadline=None)
@given(steps=st.integers(1, 600), seed=st.integers(0, 99), most=st.integers(4, 200))
def test_both_ends_are_kept(steps: int, seed: int, most: int) -> None:
    rows = choose_rows(make_episode(PONG, steps, seed), most)
    assert len(rows) <= most
    assert rows == sorted(set(rows))
    assert {0, 1, 2} & set(range(steps)) <= set(rows)
    assert set(range(max(0, steps - most // 4), steps)) <= set(rows)


def test_a_fall_of_the_value_and_a_sharp_change_are_kept() -> None:
    episode = make_episode(HOPPER, 500)
    episode.facts[:] = np.linspace(0, 1, 501)[:, None]
    episode.facts[123:] += 5.0
    episode.values[:] = np.linspace(100, 90, 501)
    episode.values[302:] -= 40.0
    rows = choose_rows(episode, 20)
    assert 301 in rows
    assert {122, 123} & set(rows)


def test_a_short_episode_is_shown_whole() -> None:
    text = describe_episode(PONG, make_episode(PONG, 30), 5000)
    assert shown(text) == list(range(30))
    assert "left out" not in text


def test_a_row_holds_what_happened_in_the_cards_words() -> None:
    episode = make_episode(PONG, 5, events=(3,))
    lines = describe_episode(PONG, episode, 5000).splitlines()
    assert lines[0] == f"The episode lasted 5 steps with a return of -16.00; {episode.end()}."
    assert lines[2] == "Reward -20 at t = 3."
    header, row = lines[4].split(","), lines[8].split(",")
    named = dict(zip(header, row, strict=True))
    assert header[0] == "t"
    assert header[1:-3] == list(PONG.card.fact_names)
    assert named["reward"] == "-20"
    assert named["value"] == f"{episode.values[3]:.1f}"
    assert named["action"] == PONG.card.actions[int(episode.actions[3])].name
    assert float(row[1]) == pytest.approx(episode.facts[3, 0], abs=0.5 * 10 ** -PONG.card.facts[0].decimals + 1e-9)


def test_continuous_actions_are_shown_as_the_environment_got_them() -> None:
    episode = make_episode(HOPPER, 3)
    episode.actions[0] = [0.25, -7.0, 3.0]
    row = describe_episode(HOPPER, episode, 5000).splitlines()[4]
    assert row.startswith("0,")
    assert ",0.25,-1.00,1.00," in row


@pytest.mark.parametrize("t", [0, 5, 50, 99])
def test_a_window_shows_every_step_around_a_time_and_marks_it(t: int) -> None:
    text = describe_window(HOPPER, make_episode(HOPPER, 100), t, before=12, after=16)
    assert shown(text) == list(range(max(0, t - 12), min(100, t + 16)))
    marked = [line for line in text.splitlines() if line.endswith("<- critical")]
    assert len(marked) == 1
    assert marked[0].startswith(f"{t},")


def test_text_is_the_same_every_time() -> None:
    first, second = (make_episode(HOPPER, 400, seed=7, events=(100,)) for _ in range(2))
    assert describe_episode(HOPPER, first, 2000) == describe_episode(HOPPER, second, 2000)


def test_unusual_facts_are_named_with_value_and_unit() -> None:
    episode = make_episode(HOPPER, 50)
    columns = HOPPER.card.matched
    episode.facts[:] = np.random.default_rng(0).normal(size=episode.facts.shape)
    episode.facts[20, columns[1]] = 30.0
    fact = HOPPER.card.facts[columns[1]]
    words = largest_facts(HOPPER.card, [make_episode(HOPPER, 3), episode], 1, 20, count=1)
    assert words == f"{fact.name} {30:.{fact.decimals}f} {fact.unit}".strip()


# Prompts


def analysed(path: Path) -> Path:
    config = RefineConfig(
        task="hopper",
        policy=str(POLICIES / "hopper"),
        analyst="random",
        steps=2000,
        workers=1,
        collect=CollectConfig(episodes=2),
        analyse=AnalyseConfig(states=3, plan_steps=4, horizon=8),
        ppo=PPOConfig(environments=2, rollout_steps=32, minibatch=32),
    )
    Refinement.start(path, config, Reporter(quiet=True))
    api.collect(path)
    api.identify(path)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same run made twice."""
    return [analysed(tmp_path_factory.mktemp("runs") / name) for name in ("one", "two")]


def test_the_same_run_made_twice_gives_the_same_prompts(runs: list[Path]) -> None:
    """Byte by byte, so that recorded answers can be replayed."""
    titles = set()
    for episode in range(2):
        one, two = (prompts_of_run(run, episode) for run in runs)
        assert one == two
        titles |= {title for title, _ in one}
    assert {title.split(",")[0] for title in titles} == {"identify", "advise"}


def test_an_episode_that_was_not_collected_is_an_error(runs: list[Path]) -> None:
    for episode in (-1, 2):
        with pytest.raises(UltraError, match=f"--episode is {episode}, but .* holds episodes 0 to 1"):
            prompts_of_run(runs[0], episode)


def test_prompts_need_collected_episodes(tmp_path: Path) -> None:
    config = RefineConfig(task="hopper", policy=str(POLICIES / "hopper"))
    Refinement.start(tmp_path / "run", config, Reporter(quiet=True))
    with pytest.raises(UltraError, match=r"stage 'round-1/collect' is not done yet: run `ultra collect .*` first"):
        prompts_of_run(tmp_path / "run", 0)
