"""Measured action effects and what the prompts hold for every task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.llm_runs import make_policy

from ultra.advice.records import Advice, CriticalState, Verification
from ultra.analysts.questions import Brief, advise_question, identify_question, programs_question
from ultra.collection.collect import collect
from ultra.collection.describe import Split, count_tokens
from ultra.collection.effects import Effects, describe_effects, measure
from ultra.collection.trajectories import Trajectory
from ultra.config import LLMConfig
from ultra.policies.io import SHIPPED, load_policy
from ultra.policies.policy import Architecture, create_policy
from ultra.tasks import Task, get_task
from ultra.tasks.plans import Plan, Segment

TASKS = ("pong", "hopper", "walker2d", "halfcheetah", "reacher", "CartPole-v1")


def play(name: str, path: Path, steps: int = 60) -> tuple[Task, list[Trajectory], Effects | None]:
    task = get_task(name)
    policy = load_policy(make_policy(path / name, name))
    episodes = collect(task, policy, [1, 2], 0.99, longest=steps, workers=1)
    return task, episodes, measure(task, policy, episodes, 10_000)


@pytest.mark.parametrize("name", TASKS)
def test_effects_and_prompts_of_every_task(name: str, tmp_path: Path) -> None:
    task, episodes, effects = play(name, tmp_path)
    assert effects is not None
    assert 0 < effects.cost <= 2_500
    assert Effects.from_json(effects.to_json()) == effects
    moved = {effect.action for effect in effects.effects if effect.changes}
    assert len(moved) >= (1 if name == "CartPole-v1" else len(task.card.actions) - 1)
    brief = Brief(task, effects, 12, 2, LLMConfig().episode_tokens)
    states = [CriticalState(0, 2, 0.5, "it leaned"), CriticalState(0, 5, 0.5, "it leaned more")]
    first, second = identify_question(brief, 0, episodes[0]), advise_question(brief, 0, episodes[0], states)
    assert count_tokens(first.text) + count_tokens(second.text) < 10_000  # an episode analysed in all
    for question in (first, second, programs_question(brief, episodes, states)):
        assert "$" not in question.text
        assert task.card.goal in question.instructions
        assert describe_effects(effects) in question.instructions
        assert question.text.isascii()
        assert question.instructions != question.prompt and "episode 0" not in question.instructions


def test_pong_effects_show_how_the_paddle_really_moves(tmp_path: Path) -> None:
    _, _, effects = play("pong", tmp_path, 100)
    assert effects is not None
    changes = {(e.action, e.steps): dict(e.changes) for e in effects.effects}
    assert effects.baseline == "STAY throughout"
    assert changes["UP", 1]["paddle_y"][-1] < 0 < changes["DOWN", 1]["paddle_y"][-1]
    # Inertia: three steps of one action move the paddle further than one, long after it ended.
    assert changes["DOWN", 3]["paddle_y"][-1] > changes["DOWN", 1]["paddle_y"][-1]


def test_effects_are_split_by_ground_contact_where_there_is_any() -> None:
    task, policy = get_task("hopper"), load_policy(SHIPPED / "hopper")
    episodes = collect(task, policy, [1, 2], 0.99, longest=200, workers=1)
    effects = measure(task, policy, episodes, 10_000)
    assert effects is not None and effects.split == Split("foot_contact", 0.5)
    assert {phase.label for phase in effects.phases} == {f"{effects.split.fact} is {side}" for side in (0, 1)}
    assert sum(phase.states for phase in effects.phases) == effects.states
    for phase in effects.phases:  # one for each actuator: what goes up goes down by as much
        assert [effect.action for effect in phase.effects] == [f"{action.name} +1" for action in task.card.actions]
        assert max(dict(phase.effects[1].changes)["leg_velocity"]) > 0.5  # the knee straightens


def test_effects_of_unlike_states_are_told_apart() -> None:
    """In Reacher a push moves the fingertip one way or the other, as the arm stands."""
    task = get_task("reacher")
    policy = create_policy(Architecture(10, task.action_space, (8,)), np.random.default_rng(0))
    episodes = collect(task, policy, list(range(8)), 0.99, workers=1)
    effects = measure(task, policy, episodes, 10_000)
    assert effects is not None and effects.split is not None and len(effects.phases) == 2
    signs = []
    for phase in effects.phases:
        changes = dict(phase.effects[0].changes)
        found = changes.get("fingertip_y", changes.get("fingertip_x"))
        assert found is not None
        signs.append(np.sign(found[-1]))
    assert signs[0] == -signs[1]


def test_effects_are_the_same_every_time_and_need_a_budget(tmp_path: Path) -> None:
    task, episodes, first = play("hopper", tmp_path)
    policy = load_policy(tmp_path / "hopper")
    assert measure(task, policy, episodes, 10_000) == first
    assert measure(task, policy, episodes, 100) is None
    assert "Not measured" in describe_effects(None)


def test_failed_advice_is_shown_with_what_happened(tmp_path: Path) -> None:
    task, episodes, effects = play("hopper", tmp_path)
    found = Verification(-3.25, -4.0, -2.5, 16, 1.0, "harms", 100)
    plan = Plan((Segment((0.5, 0.0, 0.0), 4),), relative=True)
    failed = Advice(CriticalState(0, 3, 0.5, "it fell forward"), plan, 1.0, -1.0, "e", "me", found)
    state = CriticalState(0, 5, 0.5, "it leaned")
    text = advise_question(Brief(task, effects, 12, 2, 2600, (failed,)), 0, episodes[0], [state]).text
    assert "it fell forward Advice: add thigh_torque +0.50 for 4 steps. Tried, harms" in text
    assert "-3.25 [-4, -2.5] over 16 paired branches" in text
    assert "tried before" not in advise_question(Brief(task, effects, 12, 2, 2600), 0, episodes[0], [state]).text
    assert np.isfinite(episodes[0].facts).all()
