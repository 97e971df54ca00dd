"""What `search` proposes: programs that compile, that are about the right facts, and that begin as the agent itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import ultra
from ultra.analysts.base import Case
from ultra.analysts.posture import Body
from ultra.analysts.structures import search_proposals, structures
from ultra.collection.collect import collect
from ultra.collection.trajectories import Trajectory
from ultra.common.streams import stream
from ultra.config import AnalyseConfig
from ultra.policies.io import load_policy
from ultra.policies.policy import Architecture, Policy, create_policy
from ultra.programs.compiled import Compiled, compile_programs
from ultra.programs.executor import Executor
from ultra.programs.records import MAX_PARAMETERS, Program
from ultra.simulation.budget import StepBudget
from ultra.tasks import Task, get_task

SHIPPED = Path(ultra.__file__).parent / "policies" / "shipped"
TASKS = ("hopper", "walker2d", "halfcheetah", "reacher", "pong", "CartPole-v1", "Pendulum-v1")


@cache
def collected(name: str) -> tuple[Task, Policy, list[Trajectory]]:
    """A task, a policy, and two short episodes."""
    task = get_task(name)
    if (SHIPPED / name).is_dir():
        policy = load_policy(SHIPPED / name)
    else:
        policy = create_policy(Architecture(task.observation_size, task.action_space, (8,)), stream(1, "policy"))
    return task, policy, collect(task, policy, [1, 2], 0.99, longest=250, workers=1)


@contextmanager
def case_of(name: str, episodes: list[Trajectory] | None = None) -> Iterator[Case]:
    """What an analyst is given, with a budget of its own."""
    task, policy, played = collected(name)
    batch = task.make_batch(2, 1)
    rng, budget = stream(1, "case"), StepBudget(100_000)
    yield Case(task, policy, episodes or played, AnalyseConfig(), 0.99, batch, batch, budget, 20_000, rng)
    batch.close()


def proposed(name: str, count: int = 24) -> list[Program]:
    with case_of(name) as case:
        return [proposal.program for proposal in search_proposals(case, count)]


def compiled(name: str, program: Program) -> Compiled:
    task = get_task(name)
    return compile_programs(
        [program], task.card.fact_names, [action.name for action in task.card.actions], task.action_space
    )


@pytest.mark.parametrize("name", TASKS)
def test_all_compile_and_none_comes_twice(name: str) -> None:
    programs = proposed(name)
    assert len(programs) >= 10
    assert len({program.name for program in programs}) == len(programs)
    for program in programs:
        assert 1 <= len(program.parameters) <= MAX_PARAMETERS
        assert Program.from_json(program.to_json()) == program
        compiled(name, program)


@pytest.mark.parametrize("name", ["hopper", "walker2d", "halfcheetah", "reacher", "Pendulum-v1"])
def test_corrections_begin_as_the_agent_itself(name: str) -> None:
    task, policy, episodes = collected(name)
    observations, facts = episodes[0].observations, episodes[0].facts
    agent = policy.decide(observations, np.zeros((len(observations), task.action_space.size), np.float32)).actions
    for program in proposed(name):
        if program.name.startswith("push"):
            continue
        executor = Executor([compiled(name, program)], task.action_space, len(facts))
        executor.assign(np.arange(len(facts)), 0)
        done, _ = executor.act(facts, agent)
        same = np.allclose(task.action_space.clip(done), task.action_space.clip(agent), atol=1e-5)
        assert same == (program.name != "rhythm"), program.name


def test_left_and_right_share_their_numbers() -> None:
    for program in proposed("walker2d"):
        for rule in program.rules:
            for changes in (dict(rule.set), dict(rule.add)):
                sides = {action for action in changes if action.startswith("left")}
                assert {action.replace("left", "right") for action in sides} == set(changes) - sides
        assert not any("left_" in p.name or "right_" in p.name for p in program.parameters)


def test_front_and_back_legs_do_not_share() -> None:
    offsets = next(program for program in proposed("halfcheetah") if program.name == "offsets")
    assert len(offsets.parameters) == 6


def test_the_same_is_proposed_for_gymnasiums_own_walker() -> None:
    """Other names of facts and actions, read off the model: the same body."""
    with case_of("Walker2d-v5") as case:
        body = Body(case)
        names = case.task.card.fact_names
        found = [body.pitch(), body.height(), body.speed()]
        assert [names[column] for column in found if column is not None] == ["rooty", "rootz", "rootx_velocity"]
        assert [len(group.columns) for group in body.groups] == [2, 2, 2]


@pytest.mark.parametrize("name", ["hopper", "walker2d", "halfcheetah"])
def test_posture_and_its_rates_are_found(name: str) -> None:
    with case_of(name) as case:
        body, names = Body(case), case.task.card.fact_names
        pitch, height, speed = body.pitch(), body.height(), body.speed()
        assert pitch is not None
        assert height is not None
        assert speed is not None
        turning, rising = body.rate(pitch), body.rate(height)
        assert turning is not None
        assert rising is not None
        found = [names[column] for column in (pitch, height, speed, turning, rising)]
        assert found == ["torso_pitch", "height", "x_velocity", "pitch_velocity", "z_velocity"]
        assert [names[column] for column in body.joint(0) if column is not None] == [
            f"{case.task.card.actions[0].name.removesuffix('_torque')}_{what}" for what in ("angle", "velocity")
        ]


def test_in_pong_the_paddle_is_steered_toward_the_ball_by_what_was_measured() -> None:
    with case_of("pong") as case:
        programs = [proposal.program for proposal in search_proposals(case, 12)]
        assert 0 < case.budget.spent["analyse"] <= 2_000
    toward = [program for program in programs if program.name.startswith("paddle_y_to_ball_y")]
    assert any("ball_dx > 0" in rule.when for program in toward for rule in program.rules)
    for program in toward:
        assert {"band", "offset", "brake"} <= {parameter.name for parameter in program.parameters}
        assert [rule.action for rule in program.rules] == ["DOWN", "UP", "STAY"]


def test_a_linear_rule_begins_near_the_agent() -> None:
    task, policy, episodes = collected("CartPole-v1")
    rule = next(program for program in proposed("CartPole-v1") if program.name == "linear_rule")
    facts = np.concatenate([episode.facts for episode in episodes])
    observations = np.concatenate([episode.observations for episode in episodes])
    agent = policy.decide(observations, np.zeros((len(facts), task.action_space.size), np.float32)).actions
    executor = Executor([compiled("CartPole-v1", rule)], task.action_space, len(facts))
    executor.assign(np.arange(len(facts)), 0)
    done, _ = executor.act(facts, agent)
    assert (done == agent).mean() > 0.8


def test_facts_that_never_change_are_left_out() -> None:
    _, _, episodes = collected("hopper")
    still = [replace(episode, facts=np.ones_like(episode.facts)) for episode in episodes]
    with case_of("hopper", still) as case:
        programs = [proposal.program for proposal in islice(structures(case), 24)]
    assert "offsets" in {program.name for program in programs}
    assert not any("torso_pitch" in str(program.to_json()) for program in programs)
