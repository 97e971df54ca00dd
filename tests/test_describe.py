"""Episodes as text: within a token budget, with what matters, the same every time; and the prompts around it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ultra
from ultra import api
from ultra.cli.prompt import prompts_of_run
from ultra.collection.cycles import cycle_of
from ultra.collection.describe import (
    Split,
    choose_rows,
    count_tokens,
    describe_episode,
    describe_outcome,
    describe_windows,
    largest_facts,
)
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
    assert events <= set(rows.times)


@settings(deadline=None)
@given(steps=st.integers(1, 600), seed=st.integers(0, 99), most=st.integers(4, 200))
def test_rows_are_regular_from_the_first_step_to_the_last(steps: int, seed: int, most: int) -> None:
    rows = choose_rows(make_episode(PONG, steps, seed), most, PONG.card)
    assert len(rows.times) <= most
    assert list(rows.times) == sorted(set(rows.times))
    assert {0, steps - 1} <= set(rows.times)
    assert set(range(0, steps, rows.every)) <= set(rows.times)


def test_the_text_says_which_steps_it_shows() -> None:
    episode = make_episode(HOPPER, 600)
    text = describe_episode(HOPPER, episode, 2400)
    rows = choose_rows(episode, len(shown(text)), HOPPER.card)
    assert shown(text) == list(rows.times)
    assert re.search(rf"Shown: every {rows.every}(st|nd|rd|th) step, .*the end\.", text)


def hopping(steps: int = 400, period: int = 40) -> Trajectory:
    """An episode in which the foot comes down every `period` steps."""
    episode = make_episode(HOPPER, steps)
    place = HOPPER.card.fact_names.index("foot_contact")
    episode.facts[:, place] = np.arange(steps + 1) % period < period // 2
    return episode


def test_one_full_cycle_of_a_gait_is_shown() -> None:
    """From one touch-down to the next."""
    episode = hopping()
    assert cycle_of(episode.facts[:-1], HOPPER.card) == (200, 240)
    text = describe_episode(HOPPER, episode, 20_000)
    assert "one full cycle from t = 200 to 240," in text
    assert set(range(200, 241)) <= set(shown(text))


def test_what_repeats_without_contacts_is_a_cycle_too() -> None:
    task = get_task("reacher")
    episode = make_episode(task, 300)
    phase = np.arange(301)[:, None] * 2 * np.pi / 25 + np.arange(len(task.card.facts))
    episode.facts[:] = np.sin(phase)
    assert cycle_of(episode.facts[:-1], task.card) == (138, 163)
    assert cycle_of(make_episode(task, 300).facts[:-1], task.card) is None


def test_facts_that_never_change_are_told_once() -> None:
    task = get_task("reacher")
    episode = make_episode(task, 40)
    episode.facts[:, 6] = 0.125
    text = describe_episode(task, episode, 5000)
    header = next(line for line in text.splitlines() if line.startswith("t,"))
    assert "target_x" not in header.split(",") and "Constant: target_x 0.125." in text


def test_rewards_that_always_differ_are_no_events() -> None:
    """As in Reacher: they stand in the table already."""
    episode = make_episode(HOPPER, 40)
    episode.rewards[:] = np.arange(40)
    assert "Reward +" not in describe_outcome(HOPPER, episode)


def test_an_episode_that_was_cut_to_save_steps_is_not_said_to_have_reached_its_limit() -> None:
    episode = replace(make_episode(HOPPER, 350), terminated=False, truncated=True)
    assert "cut off there to save steps, which is no failure: the task itself goes on to 1,000 steps" in (
        describe_outcome(HOPPER, episode)
    )
    whole = replace(make_episode(HOPPER, 1000), terminated=False, truncated=True)
    assert "reached the task's time limit" in describe_outcome(HOPPER, whole)


def test_reward_is_told_by_phase() -> None:
    episode = hopping()
    episode.rewards[:] = np.where(np.arange(400) % 40 < 20, 1.5, 2.5)
    text = describe_outcome(HOPPER, episode, Split("foot_contact", 0.5))
    assert (
        "Mean reward of a step: 1.5 where foot_contact is 1 (50% of the steps), "
        "2.5 where foot_contact is 0 (50% of the steps)." in text
    )


def test_the_most_likely_action_stands_beside_one_that_differs() -> None:
    episode = make_episode(HOPPER, 3)
    episode.actions[:] = [0.5, -0.5, 0.0]
    episode = replace(episode, most_likely=np.array([[0.45, 0.5, 0.0]] * 3, np.float32))
    text = describe_episode(HOPPER, episode, 5000)
    assert ",0.50,-0.50/0.50,0.00," in text and "its most likely action" in text
    assert ",0.45,0.50,0.00," in describe_episode(HOPPER, episode, 5000, likely=True)


def test_a_short_episode_is_shown_whole() -> None:
    text = describe_episode(PONG, make_episode(PONG, 30), 5000)
    assert shown(text) == list(range(30))
    assert "Every step is shown." in text


def test_a_row_holds_what_happened_in_the_cards_words() -> None:
    episode = make_episode(PONG, 5, events=(3,))
    lines = describe_episode(PONG, episode, 5000).splitlines()
    assert lines[0] == "The episode lasted 5 steps with a return of -16.00; it was ended by the task's own rule."
    assert lines[2] == "Reward -20 at t = 3."
    header, row = lines[5].split(","), lines[9].split(",")
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
    row = next(line for line in describe_episode(HOPPER, episode, 5000).splitlines() if line.startswith("0,"))
    assert row.startswith("0,")
    assert ",0.25,-1.00,1.00," in row


@settings(deadline=None)
@given(times=st.sets(st.integers(0, 99), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_windows_show_each_step_once_and_cover_the_plan(times: set[int], seed: int) -> None:
    text = describe_windows(HOPPER, make_episode(HOPPER, 100, seed), sorted(times), 30, 10**6)
    rows = shown(text)
    assert rows == sorted(set(rows))
    for t in times:
        assert set(range(max(0, t - 6), min(100, t + 11))) <= set(rows)
        assert max(rows) >= min(99 - 3, t + 30)
        assert len([line for line in text.splitlines() if line.startswith(f"{t},") and "<- critical" in line]) == 1
    assert text.count("<- critical") == len(times)


def test_windows_are_thinned_where_they_cost_too_much() -> None:
    episode = make_episode(HOPPER, 300)
    whole, thin = (describe_windows(HOPPER, episode, [50, 150], 30, tokens) for tokens in (10_000, 1500))
    assert count_tokens(thin) < count_tokens(whole)
    assert {50, 150} <= set(shown(thin)) and max(shown(thin)) >= 175


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
