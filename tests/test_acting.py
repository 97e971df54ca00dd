"""Policies that act on observations alone: one or many, with programs, clocks and memory, after being saved."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import ultra
from ultra.adoption.reading import with_observed_facts
from ultra.cli.main import run as cli
from ultra.collection.collect import collect
from ultra.evaluation.evaluate import evaluate
from ultra.policies.io import load_policy, save_policy
from ultra.policies.policy import Architecture, Policy, create_policy
from ultra.programs.attached import AttachedPrograms
from ultra.programs.observed import FactReading, ObservedFacts
from ultra.programs.records import Program, ProgramError
from ultra.tasks import Task, get_task
from ultra.tasks.spaces import Continuous, Discrete

SWING = {
    "name": "swing up",
    "explanation": "pump energy, and hold the pole upright",
    "parameters": {"k": {"value": 12, "low": 0, "high": 20}},
    "memory": {"last": {"start": 0, "update": "velocity"}},
    "rules": [
        {"when": "true", "set": {"torque": "2 * sign(velocity + 0.001 * last)"}},
        {"when": "abs(angle) < 0.5", "set": {"torque": "-k * wrap(angle) - 2 * velocity"}},
    ],
}
BALANCE = {
    "name": "balance",
    "rules": [
        {"when": "pole_angle + 0.3 * pole_velocity > 0", "action": "push_right"},
        {"when": "pole_angle + 0.3 * pole_velocity <= 0", "action": "push_left"},
    ],
}


def fresh(task: Task) -> Policy:
    shape = Architecture(task.observation_size, task.action_space, (16, 16))
    return create_policy(shape, np.random.default_rng(3))


def with_program(task: Task, program: dict[str, Any]) -> Policy:
    actions = tuple(action.name for action in task.card.actions)
    attached = AttachedPrograms(((Program.from_json(program),),), task.card.fact_names, actions)
    return replace(fresh(task), attached=attached)


def observed(task: Task, program: dict[str, Any]) -> Policy:
    """The policy with a program, and what episodes of it tell about its facts."""
    policy = with_program(task, program)
    return with_observed_facts(policy, task.card, collect(task, policy, list(range(12)), 0.99, longest=200, workers=1))


def played(policy: Policy, env_id: str, seed: int) -> float:
    """The return of an episode in Gymnasium's own environment."""
    env, actor, total = gymnasium.make(env_id), policy.actor(), 0.0
    observation, _ = env.reset(seed=seed)
    over = False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(actor.act(observation))
        total, over = total + float(reward), terminated or truncated
    env.close()
    return total


def test_one_observation_or_many() -> None:
    spaces = ((Continuous((-0.01, -1.0), (0.01, 1.0)), (2,)), (Discrete(3), ()), (Discrete(6, (3, 1)), (2,)))
    for space, shape in spaces:
        policy = create_policy(Architecture(3, space), np.random.default_rng(0))
        rows = np.random.default_rng(1).normal(size=(5, 3))
        many = policy.act(rows)
        assert many.shape == (5, *shape)
        assert all(np.allclose(policy.act(row), action, atol=1e-6) for row, action in zip(rows, many, strict=True))
        drawn = [policy.act(rows, sampled=True, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)]
        assert np.array_equal(drawn[0], drawn[1])
        if isinstance(space, Continuous):
            assert np.abs(many[:, 0]).max() <= 0.01
            assert not np.array_equal(drawn[0], drawn[2])
    with pytest.raises(ultra.UltraError, match=r"rng=np.random.default_rng"):
        policy.act(rows, sampled=True)
    with pytest.raises(ultra.UltraError, match=r"shape \(4,\), but the policy takes \(3,\), or \(n, 3\)"):
        policy.act([1, 2, 3, 4])


def test_images_are_taken_as_they_come() -> None:
    policy = create_policy(Architecture(36 * 36, Discrete(2), image=(36, 36, 1)), np.random.default_rng(0))
    screens = np.random.default_rng(0).integers(256, size=(4, 36, 36, 1)).astype(np.uint8)
    assert np.array_equal(policy.act(screens), policy.act(screens.reshape(4, -1)))
    assert np.array_equal(policy.act(screens[0]), policy.act(screens)[0])


def test_a_program_without_memory_acts_like_any_policy() -> None:
    task = get_task("CartPole-v1")
    policy = observed(task, BALANCE)
    assert policy.act([[0, 0, 0.1, 0], [0, 0, -0.1, 0]]).tolist() == [1, 0]
    assert policy.act([0, 0, 0.1, 0]) == 1
    assert played(policy, "CartPole-v1", 0) == 500


def test_a_saved_policy_with_memory_acts_alone_as_it_does_within(tmp_path: Path) -> None:
    """Pendulum's angle is no affine function of the observation: the card says how it is computed."""
    task = get_task("Pendulum-v1")
    save_policy(observed(task, SWING), tmp_path / "policy")
    policy = load_policy(tmp_path / "policy")
    with pytest.raises(ultra.UltraError, match=r"swing up\) have clocks or memory.*policy.actor\(\)"):
        policy.act([1, 0, 0])
    _, returns, _ = evaluate(task, policy, [5, 6], workers=1)
    assert [played(policy, "Pendulum-v1", seed) for seed in (5, 6)] == pytest.approx(returns.tolist(), abs=1e-3)
    header = json.loads((tmp_path / "policy" / "policy.json").read_text())
    assert header["attached"]["observed"]["facts"]["angle"] == {"source": "atan2(obs[1], obs[0])"}


def test_episodes_of_several_environments_begin_by_themselves() -> None:
    policy = observed(get_task("Pendulum-v1"), {
        "name": "clock", "clocks": {"c": "0.5"}, "rules": [{"set": {"torque": "c"}}]
    })  # fmt: skip
    actor, rows = policy.actor(2), np.array([[1.0, 0, 0], [0, 1, 0]])
    assert [actor.act(rows).ravel().tolist() for _ in range(2)] == [[0, 0], [0.5, 0.5]]
    actor.reset([1])
    assert actor.act(rows).ravel().tolist() == [1.0, 0.0]
    actor.reset()
    assert actor.act(rows).ravel().tolist() == [0.0, 0.0]
    with pytest.raises(ultra.UltraError, match="1 observations for an actor of 2"):
        actor.act(rows[0])


def test_facts_that_are_not_in_the_observation_are_named() -> None:
    task = get_task("hopper")
    policy = observed(task, {"name": "run", "rules": [{"when": f"{task.card.fact_names[0]} > 0.5", "add": {
        task.card.actions[0].name: "0.1 * torso_pitch"}}]})  # fmt: skip
    with pytest.raises(ultra.UltraError, match=f"not in the observation: {task.card.fact_names[0]}; teach them"):
        policy.act(np.zeros(11))
    facts = np.zeros(len(task.card.facts))
    assert policy.actor().act(np.zeros(11), facts=facts).shape == (3,)


def test_what_was_not_saved_is_found_out_by_playing() -> None:
    task = get_task("CartPole-v1")
    policy = with_program(task, BALANCE)
    with pytest.raises(ultra.UltraError, match=r"pole_angle, pole_velocity are read .*`ultra.observe_facts"):
        policy.act([0, 0, 0.1, 0])
    assert ultra.observe_facts(policy, task).act([0, 0, 0.1, 0]) == 1


def test_a_reading_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="fact 'x' has 2 weights, but needs 3"):
        ObservedFacts(3, {"x": FactReading("", (1.0, 2.0))})
    with pytest.raises(ProgramError, match="reads more than the observation"):
        ObservedFacts(3, {"x": FactReading("qpos[0]")})
    with pytest.raises(ProgramError, match="is not known; known are obs"):
        ObservedFacts(3, {"x": FactReading("__import__('os')")})
    save_policy(observed(get_task("CartPole-v1"), BALANCE), tmp_path)
    header = json.loads((tmp_path / "policy.json").read_text())
    header["attached"]["observed"]["facts"]["pole_angle"]["source"] = "obs[4]"
    (tmp_path / "policy.json").write_text(json.dumps(header))
    with pytest.raises(ultra.UltraError, match="entries 0 to 3"):
        load_policy(tmp_path)


@pytest.mark.parametrize("name", ["reacher", "Reacher-v5"])
def test_facts_of_the_arm_are_read_off_its_observation(name: str) -> None:
    """Of the second one the card says no more than where facts are in the simulator."""
    task = get_task(name)
    names = [fact.name for fact in task.card.facts if not fact.name.startswith("target_") or fact.unit == "m"]
    rule = {"add": {task.card.actions[0].name: " + ".join(names)}}
    policy = observed(task, {"name": "all", "rules": [rule]})
    assert policy.attached is not None
    assert policy.attached.observed is not None
    assert policy.attached.observed.missing(names) == []


@pytest.mark.parametrize(
    "name", ["hopper", "walker2d", "halfcheetah", "reacher", "pong", "sparse-hopper", "Pendulum-v1"]
)
def test_programs_read_the_same_facts_in_evaluation_as_in_training(name: str) -> None:
    task = get_task(name)
    own, theirs = task.make_local_batch(2), task.make_local_evaluation_batch(2)
    rng = np.random.default_rng(0)
    try:
        for batch in (own, theirs):
            batch.reset([0, 1], [3, 4])
        for _ in range(8):
            np.testing.assert_allclose(theirs.facts(), own.facts(), atol=1e-6)
            space = task.action_space
            actions: Any = rng.integers(space.n, size=2) if isinstance(space, Discrete) else space.clip(
                rng.normal(size=(2, space.size)).astype(np.float32))  # fmt: skip
            own.step(actions)
            theirs.step(actions)
    finally:
        own.close()
        theirs.close()


def test_a_policy_with_programs_is_exported_as_a_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_policy(observed(get_task("Pendulum-v1"), SWING), tmp_path / "policy")
    out = tmp_path / "modules" / "pendulum.py"
    assert cli(["export", str(tmp_path / "policy"), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    rows = np.random.default_rng(0).normal(size=(50, 3)).round(3)
    code = (
        f"import sys, json; sys.path.insert(0, {str(out.parent)!r}); import pendulum\n"
        "policy = pendulum.Policy()\n"
        f"print(json.dumps([policy.act(row).tolist() for row in {rows.tolist()}]))\n"
        "assert not {'jax', 'ultra', 'gymnasium'} & {name.partition('.')[0] for name in sys.modules}"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    actor = load_policy(tmp_path / "policy").actor()
    np.testing.assert_allclose(json.loads(done.stdout), [actor.act(row) for row in rows], atol=1e-5)


def test_what_a_zip_has_no_place_for_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_policy(observed(get_task("CartPole-v1"), BALANCE), tmp_path / "policy")
    command = ["export", str(tmp_path / "policy"), "--out", str(tmp_path / "p.zip")]
    assert cli([*command, "--task", "CartPole-v1"]) == 2
    assert (
        "follows programs (balance), for which Stable-Baselines3 has no place: export a module"
        in capsys.readouterr().err
    )
    assert cli(command) == 2
    assert "give the task, whose spaces it names (--task)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "policy"]
