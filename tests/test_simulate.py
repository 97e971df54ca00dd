"""Simulated branches and collected trajectories: independent, paired, valued and replayed exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import ultra
from ultra.collection.collect import collect
from ultra.collection.trajectories import Episodes, Trajectory, load_trajectory, save_trajectory
from ultra.common.errors import DivergedError, RunDirectoryError, UltraError
from ultra.policies.io import load_policy
from ultra.policies.policy import Architecture, Decision, Policy, create_policy, log_prob_function
from ultra.programs.attached import AttachedPrograms
from ultra.programs.compiled import Controller, compile_programs
from ultra.programs.records import Assignment, Program, Register
from ultra.simulation.branches import Branch, Outcome, simulate
from ultra.tasks import Batch, Snapshot, Step, Task, get_task
from ultra.tasks.batch import Facts, Indices, Live, Observations
from ultra.tasks.plans import Plan, Segment
from ultra.tasks.spaces import Actions, ActionSpace, Continuous, Discrete

POLICIES = Path(ultra.__file__).parent / "policies" / "shipped"
GAMMA = 0.95
BUTTONS, FORCE = Discrete(3), Continuous((-1.0,), (1.0,))


class Walk:
    """A hand-made batch: a point on a line, pushed by the action. The reward is the place, plus one.

    Args:
        size: environments.
        discrete: whether the action is one of left, none, right, or a force in [-1, 1].
        end: the task terminates to the right of this place.
        limit: time limit.
        spoilt: a place to the right of which rewards are no numbers.
    """

    def __init__(
        self, size: int, *, discrete: bool = False, end: float = 1e9, limit: int = 10**9, spoilt: float = 1e9
    ) -> None:
        self.discrete, self.end, self.limit, self.spoilt = discrete, end, limit, spoilt
        self.place = np.zeros(size)
        self.clock = np.zeros(size, np.int64)

    @property
    def size(self) -> int:
        return len(self.place)

    def observe(self) -> Observations:
        return np.stack([self.place, np.sin(5 * self.place), np.cos(3 * self.place)], axis=1).astype(np.float32)

    def reset(self, indices: Indices, seeds: Sequence[int]) -> Observations:
        self.place[indices] = [np.random.default_rng(seed).uniform(-1, 1) for seed in seeds]
        self.clock[indices] = 0
        return self.observe()[indices]

    def step(self, actions: Actions, live: Live = None) -> Step:
        self.place += 0.1 * ((actions - 1) if self.discrete else actions[:, 0])
        self.clock += 1
        rewards = np.where(self.place > self.spoilt, np.nan, self.place + 1)
        return Step(self.observe(), rewards, self.place > self.end, self.clock >= self.limit)

    def facts(self) -> Facts:
        return self.observe().astype(np.float64)

    def snapshots(self, indices: Indices) -> list[Snapshot]:
        return [np.array([self.place[i], self.clock[i]]).tobytes() for i in indices]

    def restore(self, indices: Indices, snapshots: Sequence[Snapshot]) -> Observations:
        for index, snapshot in zip(indices, snapshots, strict=True):
            self.place[index], self.clock[index] = np.frombuffer(snapshot)
        return self.observe()[indices]

    def restart_clock(self, indices: Indices) -> None:
        self.clock[indices] = 0

    def close(self) -> None:
        pass


class Diary:
    """A watcher that keeps rewards, own actions and the last observation of every branch."""

    def __init__(self, branches: int) -> None:
        self.rewards: list[list[float]] = [[] for _ in range(branches)]
        self.actions: list[list[Any]] = [[] for _ in range(branches)]
        self.last: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * branches

    def before(self, jobs: NDArray[np.int64], clocks: NDArray[np.int64], batch: Batch) -> None:
        pass

    def after(
        self,
        jobs: NDArray[np.int64],
        observations: Observations,
        decision: Decision,
        done: Actions,
        step: Step,
        batch: Batch,
    ) -> None:
        for slot in np.flatnonzero(jobs >= 0):
            self.rewards[jobs[slot]].append(float(step.rewards[slot]))
            self.actions[jobs[slot]].append(decision.actions[slot])
            self.last[jobs[slot]] = step.observations[slot].copy()


def walker(space: ActionSpace, seed: int = 0) -> Policy:
    """A policy of random weights whose critic has an opinion."""
    return create_policy(Architecture(3, space, (16,)), np.random.default_rng(seed))


def led(plan: Plan | None, space: ActionSpace, strength: float = 1.0) -> Controller | None:
    """A controller that follows a plan."""
    return None if plan is None else Controller.of_plan(plan, space, strength)


def program(*rules: Assignment, **parts: Any) -> Controller:
    """A controller of the walk's force."""
    made = Program("test", rules, **parts)
    return Controller.of(compile_programs([made], ("place", "wave", "other"), ("force",), FORCE))


def diary_of(batch: Batch, policy: Policy, branches: list[Branch], **options: Any) -> tuple[list[Outcome], Diary]:
    diary = Diary(len(branches))
    return simulate(batch, policy, branches, GAMMA, watcher=diary, **options), diary


@pytest.fixture(scope="module")
def hopper_policy() -> Policy:
    return load_policy(POLICIES / "hopper")


@pytest.fixture(scope="module")
def hopper() -> Task:
    return get_task("hopper")


# Branches on their own


def mixed_branches(space: ActionSpace) -> list[Branch]:
    """Branches of many lengths, some with plans."""
    wide = (0.3,) * space.size
    plan = Plan((Segment(2, 3), Segment(0, 2))) if isinstance(space, Discrete) else Plan((Segment(wide, 5),), True)
    return [
        Branch(noise_seed=k, steps=7 + 5 * k, reset_seed=100 + k, controller=led(plan if k % 2 else None, space, 0.5))
        for k in range(11)
    ]


def test_branches_with_the_same_seed_are_the_same(hopper: Task, hopper_policy: Policy) -> None:
    """Common random numbers: without a plan, both branches of a pair are one and the same."""
    batch = hopper.make_batch(8, 1)
    batch.reset(range(8), range(8))
    start = batch.snapshots([5])[0]
    same = [Branch(noise_seed=3, steps=20, start=start)] * 8
    outcomes = simulate(batch, hopper_policy, [*same, Branch(noise_seed=4, steps=20, start=start)], GAMMA)
    assert len(set(outcomes[:8])) == 1
    assert outcomes[8] != outcomes[0]


def test_no_change_is_no_plan(hopper: Task, hopper_policy: Policy) -> None:
    nothing = Plan((Segment((0.0, 0.0, 0.0), 9),), relative=True)
    branches = [Branch(k, 30, reset_seed=k) for k in range(4)]
    changed = [replace(branch, controller=led(nothing, hopper.action_space)) for branch in branches]
    outcomes = simulate(hopper.make_batch(8, 1), hopper_policy, branches + changed, GAMMA)
    assert outcomes[:4] == outcomes[4:]


def test_a_plan_of_the_policys_own_actions_is_no_plan() -> None:
    policy = walker(BUTTONS)
    outcomes, diary = diary_of(Walk(8, discrete=True), policy, [Branch(k, 40, reset_seed=k) for k in range(8)])
    plans = [Plan(tuple(Segment(int(action)) for action in actions[:16])) for actions in diary.actions]
    branches = [Branch(k, 40, reset_seed=k, controller=led(plan, BUTTONS)) for k, plan in enumerate(plans)]
    assert simulate(Walk(8, discrete=True), policy, branches, GAMMA) == outcomes


def pushes(rewards: list[float], seed: int) -> NDArray[np.float64]:
    """The forces behind a walk's rewards."""
    first = float(np.random.default_rng(seed).uniform(-1, 1))
    forces: NDArray[np.float64] = np.diff(np.array([first + 1, *rewards])) / 0.1
    return forces


def test_a_plan_comes_first_and_then_the_policy() -> None:
    """After the plan, the policy goes on with the noise of its own step, not with that of the beginning."""
    policy = walker(FORCE)
    plan = Plan((Segment((1.0,), 2), Segment((-1.0,), 1)))
    _, diary = diary_of(Walk(2), policy, [Branch(5, 10, reset_seed=1, controller=led(p, FORCE)) for p in (None, plan)])
    free, led_forces = (pushes(rewards, 1) for rewards in diary.rewards)
    np.testing.assert_allclose(led_forces[:3], [1, 1, -1])
    own = np.clip(np.array(diary.actions)[:, :, 0], -1, 1)
    np.testing.assert_allclose(free, own[0], atol=1e-6)
    np.testing.assert_allclose(led_forces[3:], own[1][3:], atol=1e-6)
    # A fresh policy hardly looks at the state: what remains is the noise, the same in both branches.
    np.testing.assert_allclose(led_forces[3:], free[3:], atol=0.1)


def test_a_change_is_added_at_its_strength() -> None:
    policy = walker(FORCE)
    plan = Plan((Segment((0.4,), 3),), relative=True)
    branch = Branch(5, 6, reset_seed=1, controller=led(plan, FORCE, 0.25))
    _, diary = diary_of(Walk(1), policy, [branch])
    own = np.array(diary.actions[0])[:, 0]
    wanted = np.clip(own + np.array([0.1, 0.1, 0.1, 0, 0, 0]), -1, 1)
    np.testing.assert_allclose(pushes(diary.rewards[0], 1), wanted, atol=1e-6)


# What a branch is worth


@pytest.mark.parametrize(
    ("options", "steps", "terminated"),
    [
        pytest.param({}, 25, False, id="cut"),
        pytest.param({"limit": 9}, 9, False, id="time limit"),
        pytest.param({"limit": 25}, 25, False, id="cut at the time limit"),
        pytest.param({"end": 1.35}, None, True, id="the task's own end"),
    ],
)
def test_the_critic_stands_for_the_rest_but_not_after_the_end(
    options: dict[str, Any], steps: int | None, terminated: bool
) -> None:
    """Discounted rewards, plus the critic's value of the last state in the task's units."""
    policy = walker(FORCE)
    policy = replace(policy, normalizer=policy.normalizer.with_returns(np.array([2.5])))
    push = Plan((Segment((0.5,), 30),))
    branches = [Branch(k, 25, reset_seed=k, controller=led(push if k % 2 else None, FORCE)) for k in range(6)]
    batch = Walk(4, **options)
    outcomes, diary = diary_of(batch, policy, branches)
    ended = 0
    for outcome, rewards, last in zip(outcomes, diary.rewards, diary.last, strict=True):
        assert outcome.steps == len(rewards) == (steps or len(rewards)) <= 25
        assert outcome.reward == pytest.approx(sum(rewards))
        value = sum(GAMMA**t * reward for t, reward in enumerate(rewards))
        if not outcome.terminated:
            value += GAMMA ** len(rewards) * policy.values(last[None])[0]
        assert outcome.value == pytest.approx(value, rel=1e-5)
        ended += outcome.terminated
    assert (ended > 0) == terminated


def test_a_branch_from_a_snapshot_has_what_is_left_of_the_time_limit() -> None:
    batch = Walk(2, limit=10)
    batch.reset([0, 1], [0, 1])
    for _ in range(7):
        batch.step(np.zeros((2, 1)))
    branches = [Branch(0, 100, start=start) for start in batch.snapshots([0, 1])]
    assert [outcome.steps for outcome in simulate(batch, walker(FORCE), branches, GAMMA)] == [3, 3]


def test_long_branches_never_see_the_same_noise_twice() -> None:
    """Noise is drawn in blocks of 256 steps: beyond, a branch goes on as a longer one does."""
    policy = walker(FORCE)
    branches = [Branch(1, 700), Branch(2, 600), Branch(1, 300), Branch(1, 256), Branch(1, 257)]
    outcomes, diary = diary_of(Walk(8), policy, branches)
    assert [outcome.steps for outcome in outcomes] == [700, 600, 300, 256, 257]
    for k in (2, 3, 4):
        assert diary.rewards[k] == diary.rewards[0][: branches[k].steps]
    noise = np.array(diary.actions[0])[:, 0]
    other = np.array(diary.actions[1])[:, 0]
    for one, two in ((noise[:256], noise[256:512]), (noise[:188], noise[512:]), (noise[:600], other)):
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.3
    alone, _ = diary_of(Walk(2), policy, branches[:1])
    assert alone[0].steps == 700


def test_without_noise_only_the_start_matters() -> None:
    policy = walker(BUTTONS)
    branches = [Branch(seed, 30, reset_seed=start) for start in range(3) for seed in range(2)]
    outcomes = simulate(Walk(8, discrete=True), policy, branches, GAMMA, deterministic=True)
    assert outcomes[::2] == outcomes[1::2]
    assert len(set(outcomes)) == 3
    sampled = simulate(Walk(8, discrete=True), policy, branches, GAMMA)
    assert len(set(sampled)) == 6


def test_nothing_to_do_is_done_at_once() -> None:
    assert simulate(Walk(3), walker(FORCE), [], GAMMA) == []


def test_a_reward_that_is_not_a_number_is_an_error() -> None:
    push = Plan((Segment((1.0,), 20),))
    with pytest.raises(DivergedError, match="reward that is not finite"):
        simulate(Walk(2, spoilt=1.2), walker(FORCE), [Branch(0, 30, controller=led(push, FORCE))], GAMMA)


def test_idle_environments_do_not_count() -> None:
    """Seed 0 starts at 0.27: environments that only wait for the others break the rules unpunished."""
    batch = Walk(6, spoilt=0.2, end=0.3)
    far = Branch(1, 5, reset_seed=3)  # starts at -0.83
    assert simulate(batch, walker(FORCE), [far], GAMMA)[0].steps == 5


@pytest.mark.parametrize("space", [BUTTONS, FORCE], ids=str)
def test_an_outcome_does_not_depend_on_its_company(space: ActionSpace) -> None:
    """Bit by bit in a batch of one size: in any slot, in any order. Other sizes differ by rounding."""
    policy, branches, discrete = walker(space), mixed_branches(space), space == BUTTONS
    alone = [simulate(Walk(8, discrete=discrete), policy, [branch], GAMMA)[0] for branch in branches]
    assert simulate(Walk(8, discrete=discrete), policy, branches, GAMMA) == alone
    assert simulate(Walk(8, discrete=discrete), policy, branches[::-1], GAMMA) == alone[::-1]
    for size in (1, 3, 13, 16):
        together = simulate(Walk(size, discrete=discrete), policy, branches, GAMMA)
        assert [outcome.steps for outcome in together] == [outcome.steps for outcome in alone]
        np.testing.assert_allclose([o.value for o in together], [o.value for o in alone], rtol=1e-4)


# Programs


def test_a_rule_acts_wherever_its_guard_holds() -> None:
    """Pushed back whenever it is too far to the right, a walk stays where it is."""
    back = program(Assignment("place > 0.5", set=(("force", "-1"),)))
    branches = [Branch(k, 200, reset_seed=k, controller=back) for k in range(6)]
    _, diary = diary_of(Walk(4), walker(FORCE), branches)
    for seed, rewards in enumerate(diary.rewards):
        places = np.array([float(np.random.default_rng(seed).uniform(-1, 1)), *(np.array(rewards) - 1)])
        forces = np.diff(places) / 0.1
        right = np.float32(places[:-1]) > 0.5
        np.testing.assert_allclose(forces[right], -1.0, atol=1e-5)
        assert not np.allclose(forces[~right], -1.0)


def test_a_guard_that_never_holds_changes_nothing() -> None:
    never = program(Assignment("place > 1e6", set=(("force", "-1"),)))
    plain = [Branch(k, 60, reset_seed=k) for k in range(6)]
    guarded = [replace(branch, controller=never) for branch in plain]
    assert simulate(Walk(4), walker(FORCE), guarded, GAMMA) == simulate(Walk(4), walker(FORCE), plain, GAMMA)


def test_a_guard_sees_the_step_before_of_its_own_episode() -> None:
    """`prev` of a state with which an episode begins is that state itself, whatever its slot held before."""
    up = program(Assignment("place < prev(place)", set=(("force", "1"),)))
    branches = [Branch(k, 40, reset_seed=k, controller=up) for k in range(9)]
    _, diary = diary_of(Walk(2), walker(FORCE), branches)
    for seed, rewards in enumerate(diary.rewards):
        forces = pushes(rewards, seed)
        for before, now in pairwise(forces):
            if before < -1e-5:
                assert now == pytest.approx(1.0, abs=1e-5)
        own = np.clip(np.array(diary.actions[seed])[0], -1, 1)
        assert forces[0] == pytest.approx(float(own[0]), abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16])
def test_nothing_is_left_in_a_slot_by_the_branch_before(size: int) -> None:
    """Branches with pushes that add, clocks and memory take turns in the same slots with plain ones."""
    push = program(
        Assignment(add=(("force", "0.3 * sin(c) + 0.1 * m"),)), clocks=(("c", "0.4"),),
        memory=(Register("m", 1.0, "0.5 * m"),),
    )  # fmt: skip
    plain = [Branch(k, 5 + 3 * k, reset_seed=k) for k in range(12)]
    mixed = [replace(branch, controller=push if k % 3 else None) for k, branch in enumerate(plain)]
    policy = walker(FORCE)
    alone = [simulate(Walk(1), policy, [branch], GAMMA)[0] for branch in mixed]
    together = simulate(Walk(size), policy, mixed, GAMMA)
    np.testing.assert_allclose([o.value for o in together], [o.value for o in alone], rtol=1e-4)
    controls = simulate(Walk(size), policy, plain, GAMMA)
    np.testing.assert_allclose([o.value for o in together[::3]], [o.value for o in controls[::3]], rtol=1e-4)


def test_a_policy_with_programs_acts_with_them_everywhere() -> None:
    """The programs of a policy come before those that are tried on top of it."""
    policy = walker(FORCE)
    quarter = Program("own", (Assignment(set=(("force", "0.25"),)),))
    own = AttachedPrograms(((quarter,),), ("place", "wave", "other"), ("force",))
    policy = replace(policy, attached=own)
    double = program(Assignment(set=(("force", "2 * agent(force)"),)))
    branches = [Branch(1, 5, reset_seed=1), Branch(1, 5, reset_seed=1, controller=double)]
    _, diary = diary_of(Walk(2), policy, branches)
    np.testing.assert_allclose(pushes(diary.rewards[0], 1), 0.25, atol=1e-5)
    np.testing.assert_allclose(pushes(diary.rewards[1], 1), 0.5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hopper", "pong", "CartPole-v1"])
@pytest.mark.parametrize("workers", [1, 2])
def test_environments_that_are_not_live_stand_still(name: str, workers: int) -> None:
    """The others step as if all did."""
    task = get_task(name)
    rng = np.random.default_rng(0)
    live = np.array([True, False, False, True])
    size = 1 if isinstance(task.action_space, Discrete) else task.action_space.size
    draw = rng.integers(0, 2, (3, 4)) if size == 1 else rng.uniform(-1, 1, (3, 4, size)).astype(np.float32)
    some, every = task.make_batch(4, workers), task.make_batch(4, workers)
    try:
        for batch in (some, every):
            batch.reset(range(4), range(4))
        before = some.snapshots([1, 2])
        for actions in draw:
            partly, fully = some.step(actions, live), every.step(actions)
            np.testing.assert_array_equal(partly.observations[live], fully.observations[live])
            np.testing.assert_array_equal(partly.rewards[live], fully.rewards[live])
        assert some.snapshots([1, 2]) == before
        assert some.snapshots([0, 3]) == every.snapshots([0, 3])
    finally:
        some.close()
        every.close()


# Trajectories


@pytest.fixture(scope="module", params=["hopper", "pong"])
def collected(request: pytest.FixtureRequest) -> tuple[Task, Policy, list[Trajectory]]:
    """A task, its shipped policy, and three short episodes."""
    task, policy = get_task(request.param), load_policy(POLICIES / request.param)
    longest = 40 if request.param == "pong" else 260
    return task, policy, collect(task, policy, [3, 4, 5], GAMMA, longest=longest, workers=1)


@pytest.mark.slow
def test_an_episode_replays_exactly_from_any_snapshot(collected: tuple[Task, Policy, list[Trajectory]]) -> None:
    """The same observations, facts, rewards and end, bit for bit, however many environments there are."""
    task, _, trajectories = collected
    batch = task.make_batch(2, 1)
    for trajectory in trajectories[:2]:
        stored = [t for t, _ in trajectory.snapshots if t < len(trajectory)]
        assert stored == list(range(0, len(trajectory), task.snapshot_every))
        for t in (0, stored[len(stored) // 2], stored[-1]):
            state = dict(trajectory.snapshots)[t]
            observations = batch.restore([0, 1], [state, state])
            np.testing.assert_array_equal(observations[0], trajectory.observations[t])
            for later in range(t, len(trajectory)):
                np.testing.assert_array_equal(batch.facts()[1], trajectory.facts[later])
                action = task.action_space.clip(trajectory.actions[later])
                step = batch.step(np.stack([action, action]))
                assert step.rewards[0] == step.rewards[1] == trajectory.rewards[later]
                np.testing.assert_array_equal(step.observations[0], trajectory.observations[later + 1])
                assert not step.terminated[0] or later == len(trajectory) - 1
            assert step.terminated[0] == trajectory.terminated
            np.testing.assert_array_equal(batch.facts()[0], trajectory.facts[-1])
    batch.close()


def test_a_state_between_snapshots_is_reached_by_replay(collected: tuple[Task, Policy, list[Trajectory]]) -> None:
    task, _, trajectories = collected
    batch = task.make_batch(2, 1)
    trajectory = trajectories[1]
    sparse = replace(trajectory, snapshots=trajectory.snapshots[:1])
    wanted = trajectory.snapshots[-1]
    assert trajectory.snapshot(wanted[0], batch, task.action_space) == (wanted[1], 0)
    assert sparse.snapshot(wanted[0], batch, task.action_space) == (wanted[1], wanted[0])
    end, steps = trajectory.snapshot(len(trajectory), batch, task.action_space)
    assert steps == len(trajectory) - trajectory.snapshots[-1][0]
    np.testing.assert_array_equal(batch.restore([1], [end])[0], trajectory.observations[-1])
    for t in (-1, len(trajectory) + 1):
        with pytest.raises(UltraError, match=f"t = {t} is outside the episode"):
            trajectory.snapshot(t, batch, task.action_space)
    batch.close()


def test_an_episode_records_what_the_policy_did(collected: tuple[Task, Policy, list[Trajectory]]) -> None:
    task, policy, trajectories = collected
    assert any(trajectory.terminated for trajectory in trajectories) == (task.name == "hopper")
    batch = task.make_batch(1, 1)
    for trajectory in trajectories:
        steps = len(trajectory)
        np.testing.assert_array_equal(trajectory.observations[0], batch.reset([0], [trajectory.seed])[0])
        seen = trajectory.observations[:-1]
        log_probs = log_prob_function()(policy.params, policy.normalizer.arrays(), seen, trajectory.actions)
        np.testing.assert_allclose(trajectory.log_probs, log_probs, rtol=1e-4, atol=1e-4)
        values = policy.values(trajectory.observations)
        if trajectory.terminated:
            values[-1] = 0.0
        np.testing.assert_allclose(trajectory.values, values, rtol=1e-4, atol=1e-4)
        assert trajectory.truncated is not trajectory.terminated
        assert trajectory.total_reward == pytest.approx(trajectory.rewards.sum())
        assert trajectory.facts.shape == (steps + 1, len(task.card.facts))
    batch.close()


def test_episodes_depend_on_their_seed_alone(hopper: Task, hopper_policy: Policy) -> None:
    together = collect(hopper, hopper_policy, [7, 8, 9, 10], GAMMA, longest=30, workers=1)
    other = collect(hopper, hopper_policy, [1, 9], GAMMA, longest=30, workers=1)
    for name in ("observations", "facts", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(other[1], name), getattr(together[2], name))
    assert other[1].snapshots == together[2].snapshots


# Storage of trajectories


def assert_equal(one: Trajectory, other: Trajectory) -> None:
    for name in Trajectory.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_trajectories_survive_their_storage(collected: tuple[Task, Policy, list[Trajectory]], tmp_path: Path) -> None:
    for index, trajectory in enumerate(collected[2]):
        save_trajectory(trajectory, tmp_path / f"episode-{index:03d}.npz")
        loaded = load_trajectory(tmp_path / f"episode-{index:03d}.npz")
        assert_equal(loaded, trajectory)
        assert loaded.actions.dtype == trajectory.actions.dtype
    episodes = Episodes(tmp_path)
    assert len(episodes) == 3
    for one, other in zip(episodes, collected[2], strict=True):
        assert_equal(one, other)
    assert [len(episode) for episode in episodes[1:]] == [len(t) for t in collected[2][1:]]
    with pytest.raises(IndexError, match="episode 3 of 3"):
        episodes[3]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.98])
def test_a_damaged_trajectory_is_one_clear_error(
    share: float, collected: tuple[Task, Policy, list[Trajectory]], tmp_path: Path
) -> None:
    path = tmp_path / "episode-000.npz"
    save_trajectory(collected[2][0], path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RunDirectoryError, match=r"episode-000\.npz is missing or damaged") as error:
        load_trajectory(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rewards": np.zeros(0)}, "at least one step"),
        ({"facts": np.zeros((3, 2))}, r"trajectory\.facts has 3 rows, but 4 rewards need 5"),
        ({"actions": np.zeros((9, 1))}, r"trajectory\.actions has 9 rows, but 4 rewards need 4"),
        ({"values": np.zeros(4)}, r"trajectory\.values has 4 rows, but 4 rewards need 5"),
        ({"rewards": np.array([0.0, 1.0, np.inf, 0.0])}, r"trajectory\.rewards\[2\] is inf"),
        ({"snapshots": ()}, "must begin with the state at t = 0"),
        ({"snapshots": ((1, b""),)}, "must begin with the state at t = 0"),
    ],
)
def test_a_record_that_does_not_fit_names_the_field(changes: dict[str, Any], says: str) -> None:
    good = Trajectory(
        observations=np.zeros((5, 2), np.float32),
        facts=np.zeros((5, 3)),
        actions=np.zeros((4, 1), np.float32),
        rewards=np.zeros(4),
        values=np.zeros(5),
        log_probs=np.zeros(4, np.float32),
        terminated=True,
        truncated=False,
        seed=0,
        snapshots=((0, b"start"),),
    )
    with pytest.raises(UltraError, match=says):
        replace(good, **changes)
