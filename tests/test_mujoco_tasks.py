"""The batched MuJoCo tasks against Gymnasium's own environments, and their snapshots."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.envs.mujoco import MujocoEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ultra.tasks import Step, Task, get_task
from ultra.tasks import mujoco as module
from ultra.tasks.mujoco import MujocoBatch
from ultra.tasks.shipped import fact_readers
from ultra.tasks.simulators import Simulators

Array = NDArray[np.float64]

NAMES = ("hopper", "walker2d", "halfcheetah", "reacher")
FALLING = ("hopper", "walker2d")
ELBOW_LIMIT = 3.0
"""Reacher's elbow stops at 3 rad; the joint's stop begins to push within a step of it."""


def make(name: str, size: int, threads: int | None = None) -> MujocoBatch:
    return MujocoBatch(getattr(module, name.upper()), size, threads)


class Reference:
    """Gymnasium's own environment, which can be put into a state described by our facts."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.env = task.make_environment()
        self.base: Any = self.env.unwrapped

    def state(self) -> tuple[Array, Array]:
        return self.base.data.qpos.copy(), self.base.data.qvel.copy()

    def state_of(self, facts: Array) -> tuple[Array, Array]:
        """The positions and velocities that a row of facts stands for."""
        if self.task.name == "reacher":
            return np.concatenate([facts[:2], facts[6:8]]), np.concatenate([facts[2:4], [0.0, 0.0]])
        nq, nv = self.base.model.nq, self.base.model.nv
        return facts[:nq], facts[nq : nq + nv]

    def step_from(self, facts: Array, action: NDArray[np.float32]) -> tuple[Array, float, bool]:
        self.base.set_state(*self.state_of(facts))
        observation, reward, terminated, _, _ = self.base.step(action)
        return observation, float(reward), bool(terminated)


@pytest.fixture(params=NAMES)
def task(request: pytest.FixtureRequest) -> Task:
    return get_task(request.param)


@pytest.fixture
def reference(task: Task) -> Iterator[Reference]:
    reference = Reference(task)
    yield reference
    reference.env.close()


@cache
def shared_environment(name: str) -> gymnasium.Env[Any, Any]:
    """Gymnasium's own environment, made once for the tests that set its whole state."""
    return get_task(name).make_environment()


def random_actions(task: Task, rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    return rng.uniform(-1, 1, (size, task.action_space.size)).astype(np.float32)


@pytest.mark.parametrize("seed", [0, 1, 123_456, 2**31 - 1])
def test_reset_gives_the_state_of_gymnasiums_reset(task: Task, reference: Reference, seed: int) -> None:
    batch = make(task.name, 3)
    batch.reset([0, 1, 2], [7, 8, 9])
    ours = batch.reset([1], [seed])
    theirs, _ = reference.env.reset(seed=seed)
    np.testing.assert_array_equal(ours[0], theirs.astype(np.float32))
    qpos, qvel = reference.state_of(batch.facts()[1])
    np.testing.assert_array_equal(qpos, reference.state()[0])
    np.testing.assert_array_equal(qvel, reference.state()[1])


def test_steps_agree_with_gymnasium_from_the_same_states(task: Task, reference: Reference) -> None:
    """One step at a time, so that the solver's tolerance does not add up; falls included."""
    rng = np.random.default_rng(1)
    batch = make(task.name, 4)
    batch.reset(range(4), [1, 2, 3, 4])
    falls = compared = 0
    for _ in range(120):
        before, actions = batch.facts(), random_actions(task, rng, 4)
        step = batch.step(actions)
        for i in range(4):
            observation, reward, terminated = reference.step_from(before[i], actions[i])
            # At Reacher's elbow stop Gymnasium's fingertip belongs to another moment (see below).
            at_stop = task.name == "reacher" and np.abs([before[i, 1], batch.facts()[i, 1]]).max() > ELBOW_LIMIT - 0.2
            entries = slice(0, 8) if at_stop else slice(None)
            np.testing.assert_allclose(step.observations[i, entries], observation[entries], rtol=1e-6, atol=1e-5)
            if not at_stop:
                assert step.rewards[i] == pytest.approx(reward, rel=1e-6, abs=1e-5)
            assert step.terminated[i] == terminated
            falls += terminated
            compared += not at_stop
        over = np.flatnonzero(step.terminated)
        batch.reset(over, rng.integers(2**31, size=len(over)).tolist())
    assert compared > 200
    assert falls >= 10 if task.name in FALLING else falls == 0


def test_reachers_fingertip_is_that_of_the_state_itself() -> None:
    """Gymnasium reads it from the integrator's last stage: up to centimetres off at the elbow's stop."""
    task, rng = get_task("reacher"), np.random.default_rng(0)
    reference = Reference(task)
    batch = make("reacher", 8)
    batch.reset(range(8), range(8))
    at_stop = 0
    for t in range(200):
        if t % 25 == 0:
            actions = random_actions(task, rng, 8)
        step = batch.step(actions)
        for facts, observation in zip(batch.facts(), step.observations, strict=True):
            reference.base.set_state(*reference.state_of(facts))
            tip, target = reference.base.get_body_com("fingertip"), reference.base.get_body_com("target")
            np.testing.assert_allclose(facts[4:6], tip[:2], atol=1e-9)
            np.testing.assert_allclose(observation[8:], (tip - target)[:2], atol=1e-7)
            at_stop += abs(facts[1]) > ELBOW_LIMIT
    assert at_stop > 20


@pytest.mark.parametrize("name", FALLING)
@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data())
def test_health_and_observation_agree_in_any_state(name: str, data: st.DataObject) -> None:
    """Also where random actions never lead: fast, bent, leaning to the limit."""
    physics = getattr(module, name.upper())
    base: Any = shared_environment(name).unwrapped
    number = st.floats(-30, 30, allow_subnormal=False)
    qpos = np.array(data.draw(st.lists(number, min_size=base.model.nq, max_size=base.model.nq)))
    qvel = np.array(data.draw(st.lists(number, min_size=base.model.nv, max_size=base.model.nv)))
    qpos[1] = data.draw(st.sampled_from([0.7, 0.8, 2.0]) | st.floats(0.6, 2.2))
    qpos[2] = data.draw(st.sampled_from([-1.0, -0.2, 0.2, 1.0]) | st.floats(-1.2, 1.2))
    qvel[0] = data.draw(st.sampled_from([-100.0, 10.0, 99.0, 100.0]) | number)
    base.set_state(qpos, qvel)
    assert physics.healthy(qpos[None], qvel[None])[0] == base.is_healthy
    np.testing.assert_array_equal(physics.observe(qpos[None], qvel[None])[0], base._get_obs())


def test_the_time_limit_truncates_at_the_limit_and_the_clock_restarts(task: Task) -> None:
    spec = gymnasium.spec(getattr(module, task.name.upper()).env_id)
    assert task.time_limit == spec.max_episode_steps
    batch = make(task.name, 3)
    batch.reset(range(3), [0, 1, 2])
    still = np.zeros((3, task.action_space.size), np.float32)
    half = task.time_limit // 2
    for _ in range(half):
        assert not batch.step(still).truncated.any()
    batch.reset([1], [5])
    batch.restart_clock([2])
    for _ in range(task.time_limit - half - 1):
        assert not batch.step(still).truncated.any()
    assert batch.step(still).truncated.tolist() == [True, False, False]
    for _ in range(half - 1):
        assert not batch.step(still).truncated[1:].any()
    assert batch.step(still).truncated.tolist() == [True, True, True]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FALLING])
def test_the_time_limit_is_reached_with_gymnasiums(name: str) -> None:
    task = get_task(name)
    batch, env = make(name, 1), task.make_environment()
    batch.reset([0], [3])
    env.reset(seed=3)
    still = np.zeros(task.action_space.size, np.float32)
    for _ in range(task.time_limit):
        step = batch.step(still[None])
        _, _, _, truncated, _ = env.step(still)
        assert step.truncated[0] == truncated
    assert truncated
    env.close()


ROOT = {"x_position": "rootx", "height": "rootz", "torso_pitch": "rooty"}
JOINTS = {
    "hopper": ROOT | {f"{part}_angle": f"{part}_joint" for part in ("thigh", "leg", "foot")},
    "walker2d": ROOT
    | {f"right_{part}_angle": f"{part}_joint" for part in ("thigh", "leg", "foot")}
    | {f"left_{part}_angle": f"{part}_left_joint" for part in ("thigh", "leg", "foot")},
    "halfcheetah": ROOT
    | {f"{side}_{part}_angle": f"{side[0]}{part}" for side in ("back", "front") for part in ("thigh", "shin", "foot")},
    "reacher": {"shoulder_angle": "joint0", "elbow_angle": "joint1"},
}
"""Position facts by the model's names of joints; each has a velocity of the like name."""
VELOCITIES = {"x_position": "x_velocity", "height": "z_velocity", "torso_pitch": "pitch_velocity"}


def test_facts_are_the_cards_names_in_the_models_coordinates(task: Task, reference: Reference) -> None:
    batch = make(task.name, 2)
    batch.reset([0, 1], [1, 2])
    for _ in range(5):
        batch.step(random_actions(task, np.random.default_rng(0), 2))
    facts = batch.facts()
    assert facts.shape == (2, len(task.card.fact_names))
    named = dict(zip(task.card.fact_names, facts[0], strict=True))
    reference.base.set_state(*reference.state_of(facts[0]))
    data = reference.base.data
    for fact, joint in JOINTS[task.name].items():
        assert named[fact] == data.joint(joint).qpos[0], fact
        velocity = VELOCITIES.get(fact, fact.replace("angle", "velocity"))
        assert named[velocity] == data.joint(joint).qvel[0], velocity
    if task.name == "reacher":
        tip, target = data.body("fingertip").xpos, data.body("target").xpos
        assert [named["fingertip_x"], named["fingertip_y"]] == pytest.approx(tip[:2].tolist(), abs=1e-9)
        assert [named["target_x"], named["target_y"]] == pytest.approx(target[:2].tolist(), abs=1e-9)
        assert named["distance"] == pytest.approx(float(np.linalg.norm(tip - target)), abs=1e-9)


FEET = {
    "hopper": {"foot": "foot"},
    "walker2d": {"right_foot": "foot", "left_foot": "foot_left"},
    "halfcheetah": {"back_foot": "bfoot", "front_foot": "ffoot"},
}
"""Names of feet in the card and in the model."""


@pytest.mark.parametrize("name", sorted(FEET))
def test_contacts_and_heights_of_feet_agree_with_mujoco_and_with_the_generic_facts(name: str) -> None:
    """In the batch they follow from positions in a few array operations; MuJoCo finds contacts by collision."""
    batch, own = make(name, 8), get_task(name).card.fact_names
    env_id = {"hopper": "Hopper-v5", "walker2d": "Walker2d-v5", "halfcheetah": "HalfCheetah-v5"}[name]
    generic = get_task(env_id, snapshots="replay")
    readers = dict(
        zip(
            generic.card.fact_names,
            fact_readers(generic.card, generic.observation_size, generic.action_space),
            strict=True,
        )
    )
    env = gymnasium.make(env_id)
    env.reset(seed=0)
    base: Any = env.unwrapped
    rng = np.random.default_rng(0)
    batch.reset(range(8), range(8))
    seen = set()
    for _ in range(60):
        step = batch.step(random_actions(get_task(name), rng, 8))
        facts = batch.facts()
        for row in facts[:3]:
            base.set_state(row[: base.model.nq], row[base.model.nq : base.model.nq + base.model.nv])
            named = dict(zip(own, row, strict=True))
            touching = {int(base.model.geom_bodyid[geom]) for contact in base.data.contact for geom in contact.geom}
            for foot, body in FEET[name].items():
                assert named[f"{foot}_contact"] == (base.model.body(body).id in touching)
                for kind, tolerance in (("height", 1e-9), ("contact", 0)):
                    (value,) = readers[f"{body}_{kind}"]([env], np.zeros((1, generic.observation_size), np.float32))
                    assert named[f"{foot}_{kind}"] == pytest.approx(value, abs=tolerance)
                seen.add(named[f"{foot}_contact"])
        over = np.flatnonzero(step.done)
        batch.reset(over, over.tolist())
    assert seen == {0.0, 1.0}
    env.close()


@pytest.mark.parametrize("name", sorted(FEET))
def test_the_body_in_words_is_that_of_the_model(name: str) -> None:
    base: Any = shared_environment(name).unwrapped
    words = get_task(name).card.body
    assert f"One step of the agent lasts {base.dt:g} s" in words
    for joint in range(base.model.njnt):
        if base.model.jnt_limited[joint]:
            low, high = base.model.jnt_range[joint]
            assert f" {low:.2f} to {high:.2f}, " in words
    for body in range(1, base.model.nbody):
        assert f" {base.model.body_mass[body]:.2g} kg" in words


@pytest.mark.parametrize("name", ["hopper", "walker2d", "halfcheetah"])
def test_a_positive_torso_pitch_leans_forward(name: str) -> None:
    base: Any = shared_environment(name).unwrapped
    qpos = base.init_qpos.copy()
    qpos[get_task(name).card.fact_names.index("torso_pitch")] = 0.1
    base.set_state(qpos, base.init_qvel)
    upward = base.data.body("torso").xmat.reshape(3, 3)[:, 2]
    assert upward[0] > 0.09, "the torso's own upward direction tips toward positive x"


def test_facts_stay_as_they_were_when_the_batch_steps_on(task: Task) -> None:
    batch = make(task.name, 2)
    batch.reset([0, 1], [1, 2])
    facts = batch.facts()
    kept = facts.copy()
    batch.step(random_actions(task, np.random.default_rng(0), 2))
    np.testing.assert_array_equal(facts, kept)


def replay(batch: MujocoBatch, actions: NDArray[np.float32]) -> list[tuple[Step, Array]]:
    return [(batch.step(row), batch.facts().copy()) for row in actions]


def assert_rows_equal(
    recorded: list[tuple[Step, Array]], replayed: list[tuple[Step, Array]], old: list[int], new: list[int]
) -> None:
    for (step, facts), (again, facts_again) in zip(recorded, replayed, strict=True):
        np.testing.assert_array_equal(again.observations[new], step.observations[old])
        np.testing.assert_array_equal(again.rewards[new], step.rewards[old])
        np.testing.assert_array_equal(again.terminated[new], step.terminated[old])
        np.testing.assert_array_equal(again.truncated[new], step.truncated[old])
        np.testing.assert_array_equal(facts_again[new], facts[old])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_restore_and_replay_is_bit_identical(task: Task, threads: int) -> None:
    """In place, and in other slots of a batch of another size on another number of threads."""
    rng = np.random.default_rng(2)
    batch = make(task.name, 4, threads=2)
    batch.reset(range(4), [1, 2, 3, 4])
    for _ in range(20):
        batch.step(random_actions(task, rng, 4))
    snapshots, facts = batch.snapshots(range(4)), batch.facts().copy()
    ahead = rng.uniform(-1, 1, (40, 4, task.action_space.size)).astype(np.float32)
    recorded = replay(batch, ahead)

    batch.restore(range(4), snapshots)
    assert_rows_equal(recorded, replay(batch, ahead), [0, 1, 2, 3], [0, 1, 2, 3])

    other = make(task.name, 7, threads)
    other.reset(range(7), range(7))
    old, new = [3, 0, 2], [1, 6, 4]
    observations = other.restore(new, [snapshots[i] for i in old])
    np.testing.assert_array_equal(other.facts()[new], facts[old])
    np.testing.assert_array_equal(observations, batch.restore(old, [snapshots[i] for i in old]))
    assert other.snapshots(new) == [snapshots[i] for i in old]
    elsewhere = rng.uniform(-1, 1, (40, 7, task.action_space.size)).astype(np.float32)
    elsewhere[:, new] = ahead[:, old]
    assert_rows_equal(recorded, replay(other, elsewhere), old, new)


def test_snapshots_hold_the_time_limits_counter(task: Task) -> None:
    batch = make(task.name, 1)
    batch.reset([0], [0])
    still = np.zeros((1, task.action_space.size), np.float32)
    for _ in range(task.time_limit - 2):
        batch.step(still)
    late = batch.snapshots([0])
    other = make(task.name, 2)
    other.reset([0, 1], [0, 1])
    other.restore([1], late)
    still = np.repeat(still, 2, axis=0)
    assert other.step(still).truncated.tolist() == [False, False]
    assert other.step(still).truncated.tolist() == [False, True]


def simulator_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "simulators"}


def test_one_worker_means_one_thread() -> None:
    """`make_batch(n, workers)` uses up to that many cores; what it started ends with the batch."""
    before = simulator_threads()  # those of other tests may end meanwhile
    alone = get_task("hopper").make_batch(8, workers=1)
    assert not simulator_threads() - before
    closed, forgotten = (get_task("hopper").make_batch(8, workers=2) for _ in range(2))
    started = simulator_threads() - before
    assert len(started) == 2
    alone.close()
    closed.close()
    del forgotten
    gc.collect()
    for thread in started:
        thread.join(300)
        assert not thread.is_alive()


def test_an_error_beside_the_calling_thread_is_raised_and_not_kept() -> None:
    environment = gymnasium.make("Hopper-v5").unwrapped
    assert isinstance(environment, MujocoEnv)
    model = environment.model
    simulators = Simulators(model, threads=2)
    size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS)
    states, controls, trace = np.zeros((4, size)), np.zeros((4, 1, model.nu)), np.zeros((4, 1, size))

    class WrongBeside:
        def __len__(self) -> int:
            return len(states)

        def __getitem__(self, part: slice) -> Array:
            return states[part] if part.start is None else states[part, 1:]

    with pytest.raises(ValueError, match="size"):
        simulators.step(WrongBeside(), controls, trace)  # type: ignore[arg-type]
    simulators.step(states, controls, trace)
    assert trace[:, 0, 0].tolist() == [model.opt.timestep] * 4
    simulators.close()
    with pytest.raises(RuntimeError, match="closed"):
        simulators.step(states, controls, trace)
