"""Distilling: a network learns what a program makes of a policy, in the states that it visits itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from ultra.adoption.distil import Distilled, DistilSettings, distil, widened
from ultra.common.errors import UltraError
from ultra.policies.normalizer import Normalizer
from ultra.policies.policy import Architecture, Policy, create_policy, flatten
from ultra.programs.compiled import Controller, compile_programs
from ultra.programs.executor import Executor
from ultra.programs.records import Program
from ultra.tasks import Task, get_task

SWING_UP = {
    "name": "swing up",
    "let": {"energy": "velocity ** 2 / 6 + 5 * cos(angle)"},
    "rules": [
        {"set": {"torque": "2 * velocity * (5.2 - energy)"}},
        {"when": "cos(angle) > 0.85", "set": {"torque": "-20 * wrap(angle) - 4 * velocity"}},
    ],
}
BALANCE = {
    "name": "balance",
    "rules": [
        {"when": "true", "action": "push_left"},
        {"when": "pole_angle + 0.3 * pole_velocity + 0.05 * cart_velocity > 0", "action": "push_right"},
    ],
}
REACH = {
    "name": "inverse kinematics",
    "let": {
        "d2": "target_x ** 2 + target_y ** 2",
        "bend": "(d2 - 0.1 ** 2 - 0.11 ** 2) / (2 * 0.1 * 0.11)",
        "elbow": "atan2(sqrt(max(1 - bend ** 2, 0)), clip(bend, -1, 1))",
        "shoulder": "atan2(target_y, target_x) - atan2(0.11 * sin(elbow), 0.1 + 0.11 * cos(elbow))",
    },
    "rules": [
        {"set": {
            "shoulder_torque": "0.4 * wrap(shoulder - shoulder_angle) - 0.06 * shoulder_velocity",
            "elbow_torque": "0.4 * wrap(elbow - elbow_angle) - 0.06 * elbow_velocity",
        }}
    ],
}  # fmt: skip
TINY = DistilSettings(rounds=3, environments=8, chunk=50, longest=6)


def case(name: str, value: dict[str, Any], **shape: Any) -> tuple[Task, Policy, Controller]:
    """A task, an untrained policy with statistics of a few states, and a program."""
    task = get_task(name)
    policy = create_policy(Architecture(task.observation_size, task.action_space, **shape), np.random.default_rng(0))
    batch, rng = task.make_local_batch(16), np.random.default_rng(1)
    seen = [batch.reset(np.arange(16), range(16))]
    for _ in range(40):
        done = policy.decide(seen[-1], policy.draw_noise(rng, (16,))).actions
        step = batch.step(task.action_space.clip(done))
        over = np.flatnonzero(step.done)
        seen.append(step.observations.copy())
        seen[-1][over] = batch.reset(over, over.tolist())
    batch.close()
    statistics = Normalizer.identity(task.observation_size).with_observations(np.concatenate(seen))
    policy = replace(policy, normalizer=statistics)
    actions = [action.name for action in task.card.actions]
    compiled = compile_programs([Program.from_json(value)], task.card.fact_names, actions, task.action_space)
    return task, policy, Controller.of(compiled)


def returns(task: Task, policy: Policy, controller: Controller | None = None, episodes: int = 32) -> Any:
    """Returns (episodes,) of most likely actions, in episodes of the same starts."""
    batch, space = task.make_local_batch(episodes), task.action_space
    executor = Executor([controller.program] if controller else [], space, episodes)
    if controller is not None:
        executor.assign(slice(None), 0, controller.settings)
    observations = batch.reset(np.arange(episodes), range(1000, 1000 + episodes))
    total, live = np.zeros(episodes), np.ones(episodes, np.bool_)
    quiet = np.zeros((episodes, space.size), np.float32)
    while live.any():
        done, _ = executor.act(batch.facts(), policy.decide(observations, quiet).actions)
        step = batch.step(space.clip(done), live)
        total[live] += step.rewards[live]
        observations, live = step.observations, live & ~step.done
    batch.close()
    return total


@pytest.mark.parametrize(("name", "value"), [("Pendulum-v1", SWING_UP), ("CartPole-v1", BALANCE)])
def test_a_student_comes_closer_to_its_teacher_and_the_rest_of_it_stays(name: str, value: dict[str, Any]) -> None:
    task, policy, chosen = case(name, value, hidden=(32, 32))
    found = distil(task, policy, chosen, policy, 1200, np.random.default_rng(1), settings=TINY, workers=1)
    assert found.rounds[-1].after < 0.5 * found.rounds[0].before
    assert all(item.after <= item.before for item in found.rounds)
    assert found.steps == found.rounds[-1].states == 1200
    old, new = flatten(policy.params), flatten(found.policy.params)
    same = {key for key in old if np.array_equal(old[key], new[key])}
    assert same == {key for key in old if not key.startswith("actor")}
    assert found.policy.normalizer is policy.normalizer
    found.policy.check_finite("the student")


def test_the_same_seed_gives_the_same_student_and_too_few_steps_are_refused() -> None:
    task, policy, chosen = case("Pendulum-v1", SWING_UP, hidden=(8,))
    one, other = (
        distil(task, policy, chosen, policy, 600, np.random.default_rng(1), settings=TINY, workers=1) for _ in range(2)
    )
    assert one.rounds == other.rounds
    with pytest.raises(UltraError, match="5 steps are too few"):
        distil(task, policy, chosen, policy, 5, np.random.default_rng(1), settings=TINY, workers=1)


def test_the_teachers_clock_runs_with_the_students_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are those of the program in the visited states, its clock counting the steps of the episode there."""
    value = {"name": "count", "clocks": {"c": "0.01"}, "rules": [{"set": {"torque": "c + 0 * angle"}}]}
    task, policy, chosen = case("Pendulum-v1", value, hidden=(8,))
    labels: list[Any] = []
    act = Executor.act

    def seen(self: Executor, facts: Any, actions: Any) -> Any:
        labels.append(act(self, facts, actions)[0].copy())
        return labels[-1], np.ones(len(facts), np.bool_)

    monkeypatch.setattr(Executor, "act", seen)
    distil(task, policy, chosen, policy, 8 * 300, np.random.default_rng(1), settings=TINY, workers=1)
    steps = np.arange(300) % task.time_limit  # episodes go on between rounds
    assert np.allclose(np.array(labels)[:, :, 0], 0.01 * steps[:, None], atol=1e-6)


@pytest.mark.parametrize("hidden", [(12, 16), (8, 8)])
def test_a_widened_policy_acts_as_before_and_its_new_units_can_learn(hidden: tuple[int, ...]) -> None:
    _, policy, _ = case("Pendulum-v1", SWING_UP, hidden=(8, 8))
    wide = widened(policy, hidden, np.random.default_rng(2))
    seen = np.random.default_rng(3).normal(size=(50, 3)).astype(np.float32)
    noise = np.zeros((50, 1), np.float32)
    for one, other in zip(policy.decide(seen, noise), wide.decide(seen, noise), strict=True):
        assert np.allclose(one, other, atol=1e-6)
    assert wide.architecture.hidden == hidden
    gradients = jax.grad(lambda p: _outputs(p, seen).sum())(wide.params)["actor"]
    assert all((np.abs(np.asarray(layer["w"])).sum(axis=1) > 0).any() for layer in gradients)
    with pytest.raises(UltraError, match="do not hold"):
        widened(policy, (4, 8), np.random.default_rng(2))


def _outputs(params: Any, seen: Any) -> Any:
    from ultra.policies.policy import actor_critic

    return actor_critic(params, seen)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "allowance"),
    [("Pendulum-v1", SWING_UP, 20_000), ("reacher", REACH, 15_000), ("CartPole-v1", BALANCE, 20_000)],
)
def test_a_distilled_policy_is_as_good_as_its_program(name: str, value: dict[str, Any], allowance: int) -> None:
    task, policy, chosen = case(name, value)
    before, program = returns(task, policy), returns(task, policy, chosen)
    found: Distilled = distil(task, policy, chosen, policy, allowance, np.random.default_rng(1), workers=1)
    after = returns(task, found.policy)
    print(name, before.mean(), program.mean(), after.mean(), found.rounds)
    assert found.steps <= allowance
    assert program.mean() - after.mean() < 0.1 * (program.mean() - before.mean())
