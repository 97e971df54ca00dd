"""The training loop: the estimator, the update, resuming, divergence, time limits, and that it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ultra.common.errors import DivergedError, RunDirectoryError, UltraError
from ultra.config import PPOConfig
from ultra.policies.normalizer import Normalizer
from ultra.policies.policy import Architecture, Policy, create_policy, flatten, unflatten
from ultra.ppo.checkpoint import Learner, load_checkpoint, save_checkpoint
from ultra.ppo.guidance import NoGuidance
from ultra.ppo.rollout import Environments, Rollout
from ultra.ppo.train import Iteration, advantages, improve, optimizer, surrogate, train
from ultra.simulation.budget import StepBudget
from ultra.tasks import Snapshot, Step, Task, get_task
from ultra.tasks.batch import Facts, Indices, Live, Observations
from ultra.tasks.card import Fact, skeleton_card
from ultra.tasks.spaces import Actions, ActionSpace, Continuous, Discrete

Array = NDArray[np.float64]

TINY = PPOConfig(environments=4, rollout_steps=32, minibatch=64, epochs=2, learning_rate=0.001, anneal=True)
"""Shared by most tests, because each configuration is compiled anew."""
ITERATIONS = 4


class Treadmill:
    """A hand-made batch: the observation is the time, the reward 1; episodes only end by the clock.

    Args:
        size: environments.
        limit: steps of an episode.
        terminates: whether the limit is the task's own end instead of a cut.
        reward: (steps of the whole batch so far) -> reward.
    """

    def __init__(
        self, size: int, *, limit: int = 5, terminates: bool = False, reward: Callable[[int], float] = lambda step: 1.0
    ) -> None:
        self.limit, self.terminates, self.reward = limit, terminates, reward
        self.clock = np.zeros(size, np.int64)
        self.steps = 0

    @property
    def size(self) -> int:
        return len(self.clock)

    def observe(self) -> Observations:
        return np.stack([self.clock, np.full(self.size, 3)], axis=1).astype(np.float32)

    def reset(self, indices: Indices, seeds: Sequence[int]) -> Observations:
        self.clock[indices] = 0
        return self.observe()[indices]

    def step(self, actions: Actions, live: Live = None) -> Step:
        self.clock += 1
        self.steps += 1
        over, never = self.clock >= self.limit, np.zeros(self.size, np.bool_)
        rewards = np.full(self.size, self.reward(self.steps))
        return Step(self.observe(), rewards, over if self.terminates else never, never if self.terminates else over)

    def facts(self) -> Facts:
        return self.observe().astype(np.float64)

    def snapshots(self, indices: Indices) -> list[Snapshot]:
        return [self.clock[i].tobytes() for i in indices]

    def restore(self, indices: Indices, snapshots: Sequence[Snapshot]) -> Observations:
        for index, snapshot in zip(indices, snapshots, strict=True):
            self.clock[index] = np.frombuffer(snapshot, np.int64)[0]
        return self.observe()[indices]

    def restart_clock(self, indices: Indices) -> None:
        self.clock[indices] = 0

    def close(self) -> None:
        pass


def treadmill(**options: Any) -> Task:
    return Task(
        name="treadmill",
        card=skeleton_card("treadmill", [Fact("x0", "", ""), Fact("x1", "", "")], Discrete(2)),
        observation_size=2,
        action_space=Discrete(2),
        time_limit=options.get("limit", 5),
        make_local_batch=partial(Treadmill, **options),
        make_environment=get_task("CartPole-v1").make_environment,
    )


def start_policy(task: Task, seed: int = 0, hidden: tuple[int, ...] = (16,)) -> Policy:
    architecture = Architecture(task.observation_size, task.action_space, hidden)
    return create_policy(architecture, np.random.default_rng(seed))


def run(task: Task, seed: int = 1, iterations: int = ITERATIONS, config: PPOConfig = TINY, **options: Any) -> Policy:
    options = {"learn_statistics": True, "workers": 1} | options
    rng = np.random.default_rng(seed)
    return train(task, start_policy(task), config, iterations * config.samples, rng, **options)


def assert_identical(policy: Policy, other: Policy) -> None:
    for name, array in flatten(policy.params).items():
        np.testing.assert_array_equal(flatten(other.params)[name], array, err_msg=name)
    np.testing.assert_array_equal(policy.normalizer.mean, other.normalizer.mean)
    np.testing.assert_array_equal(policy.normalizer.variance, other.normalizer.variance)
    for name in ("count", "reward_variance", "reward_count"):
        assert getattr(policy.normalizer, name) == getattr(other.normalizer, name)


# The estimator


@st.composite
def estimates(draw: st.DrawFn) -> dict[str, Array]:
    """Rewards, values, next values and cuts (T, n)."""
    steps, size = draw(st.sampled_from([1, 2, 12])), draw(st.sampled_from([1, 3]))  # each shape is compiled
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cut = rng.random((steps, size)) < draw(st.sampled_from([0.0, 0.2, 1.0]))
    names = ("rewards", "values", "next_values")
    arrays = {name: draw(st.sampled_from([0.1, 1.0, 50.0])) * rng.standard_normal((steps, size)) for name in names}
    return arrays | {"cut": cut.astype(np.float64)}


def reference_advantages(rollout: dict[str, Array], gamma: float, lam: float) -> Array:
    """Equation 16 of arXiv 1506.02438, term by term: discounted errors up to the first cut."""
    errors = rollout["rewards"] + gamma * rollout["next_values"] - rollout["values"]
    steps, size = errors.shape
    result = np.zeros((steps, size))
    for t in range(steps):
        for i in range(size):
            for later in range(t, steps):
                result[t, i] += (gamma * lam) ** (later - t) * errors[later, i]
                if rollout["cut"][later, i]:
                    break
    return result


@settings(deadline=None, max_examples=60)
@given(rollout=estimates(), gamma=st.floats(0, 1), lam=st.floats(0, 1))
def test_advantages_are_the_discounted_errors_up_to_a_cut(rollout: dict[str, Array], gamma: float, lam: float) -> None:
    single = {name: jnp.asarray(array, jnp.float32) for name, array in rollout.items()}
    wanted = reference_advantages(rollout, gamma, lam)
    np.testing.assert_allclose(
        jax.jit(advantages)(single, gamma, lam), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max()
    )


@pytest.mark.parametrize("terminates", [False, True])
def test_a_time_limit_bootstraps_and_an_end_does_not(terminates: bool) -> None:
    """After a cut comes the critic's value of the last state, not of the next episode's first one."""
    task = treadmill(terminates=terminates)
    policy = start_policy(task)
    environments = Environments(task.make_batch(3), NoGuidance(), np.random.default_rng(0))
    environments.begin()
    rollout = environments.rollout(policy, 12, gamma=0.9)
    values = policy.decide(np.array([[time, 3] for time in range(6)], np.float32), np.zeros((6, 2), np.float32)).values
    assert len(set(values.tolist())) == 6
    for t in range(12):
        time = t % 5
        np.testing.assert_array_equal(rollout.observations[t], np.tile([time, 3], (3, 1)))
        np.testing.assert_allclose(rollout.values[t], values[time], rtol=1e-5)
        ended = time == 4
        assert (rollout.done[t] == ended).all()
        wanted = 0.0 if ended and terminates else values[time + 1]
        np.testing.assert_allclose(rollout.next_values[t], wanted, rtol=1e-5)
        np.testing.assert_allclose(rollout.discounted[t], sum(0.9**k for k in range(time + 1)))


@pytest.mark.parametrize(("terminates", "wanted"), [(False, 5.0), (True, sum(0.8**k for k in range(4)))])
def test_the_critic_learns_what_a_time_limit_means(terminates: bool, wanted: float) -> None:
    """Reward 1 for ever is worth 1 / (1 - 0.8) = 5; with an end after 4 steps, at most 2.95."""
    task = treadmill(limit=4, terminates=terminates)
    config = PPOConfig(environments=8, rollout_steps=16, minibatch=128, epochs=20, learning_rate=0.01, gamma=0.8)
    policy = run(task, iterations=30, config=config, learn_statistics=False)
    assert policy.values(np.array([[0, 3]], np.float32))[0] == pytest.approx(wanted, abs=0.25)


# The update


def nudged_policy(space: ActionSpace, rng: np.random.Generator) -> Policy:
    """A small policy whose weights are not the fresh ones."""
    policy = create_policy(Architecture(3, space, (4,)), rng)
    params = {name: array + 0.3 * rng.standard_normal(array.shape) for name, array in flatten(policy.params).items()}
    return replace(policy, params=unflatten({name: array.astype(np.float32) for name, array in params.items()}))


def random_rollout(policy: Policy, config: PPOConfig, rng: np.random.Generator) -> Rollout:
    """A rollout whose log-probabilities and values are a little off, so that ratios are clipped."""
    shape = (config.rollout_steps, config.environments)
    rows = [rng.normal(1, 2, (config.environments, policy.architecture.observation_size)) for _ in range(shape[0])]
    observations = np.stack(rows).astype(np.float32)
    decisions = [policy.decide(row, policy.draw_noise(rng, (shape[1],))) for row in observations]
    return Rollout(
        observations=observations,
        actions=np.stack([decision.actions for decision in decisions]),
        log_probs=np.stack([d.log_probs for d in decisions]) + rng.normal(0, 0.3, shape).astype(np.float32),
        values=np.stack([d.values for d in decisions]) + rng.normal(0, 0.3, shape).astype(np.float32),
        next_values=rng.normal(0, 1, shape).astype(np.float32),
        rewards=rng.normal(0, 5, shape),
        done=rng.random(shape) < 0.2,
        replaced=np.zeros(shape, np.bool_),
        weights=np.zeros(shape, np.float32),
        discounted=np.zeros(shape),
    )


def reference_loss(weights: dict[str, Array], samples: dict[str, Array], config: PPOConfig, discrete: bool) -> float:
    """PPO's loss with NumPy in double precision, written for reading."""

    def network(name: str) -> Array:
        hidden = np.tanh(samples["observations"] @ weights[f"{name}.0.w"] + weights[f"{name}.0.b"])
        outputs: Array = hidden @ weights[f"{name}.1.w"] + weights[f"{name}.1.b"]
        return outputs

    outputs, values = network("actor"), network("critic")[:, 0]
    if discrete:
        probabilities = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
        chosen = samples["actions"].astype(int)
        log_probs = np.log(probabilities[np.arange(len(chosen)), chosen])
        entropy = -(probabilities * np.log(probabilities)).sum(axis=1).mean()
    else:
        deviation = np.exp(weights["log_std"])
        densities = np.exp(-(((samples["actions"] - outputs) / deviation) ** 2) / 2) / deviation / np.sqrt(2 * np.pi)
        log_probs = np.log(densities).sum(axis=1)
        entropy = np.log(deviation * np.sqrt(2 * np.pi * np.e)).sum()
    advantage = samples["advantages"]
    advantage = (advantage - advantage.mean()) / (advantage.std(ddof=1) + 1e-8)
    ratio = np.exp(log_probs - samples["log_probs"])
    clipped = np.clip(ratio, 1 - config.clip, 1 + config.clip)
    policy_loss = -np.minimum(ratio * advantage, clipped * advantage).mean()
    value_loss = ((values - samples["returns"]) ** 2).mean()
    return float(policy_loss + config.value * value_loss - config.entropy * entropy)


def reference_gradient(weights: dict[str, Array], loss: Callable[[dict[str, Array]], float]) -> dict[str, Array]:
    """Central differences, one weight at a time."""
    gradient = {}
    for name, array in weights.items():
        gradient[name] = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            nudge = np.zeros_like(array)
            nudge[place] = 1e-6
            ahead, behind = ({**weights, name: array + sign * nudge} for sign in (1, -1))
            gradient[name][place] = (loss(ahead) - loss(behind)) / 2e-6
    return gradient


def reference_update(
    weights: dict[str, Array], samples: dict[str, Array], config: PPOConfig, discrete: bool
) -> dict[str, Array]:
    """Adam (arXiv 1412.6980) on whole batches, with the gradient's norm capped."""
    first = {name: np.zeros_like(array) for name, array in weights.items()}
    second = {name: np.zeros_like(array) for name, array in weights.items()}
    for step in range(1, config.epochs + 1):
        gradient = reference_gradient(weights, lambda w: reference_loss(w, samples, config, discrete))
        norm = np.sqrt(sum(float((array**2).sum()) for array in gradient.values()))
        for name, array in weights.items():
            capped = gradient[name] * min(1.0, config.gradient_norm / norm)
            first[name] = 0.9 * first[name] + 0.1 * capped
            second[name] = 0.999 * second[name] + 0.001 * capped**2
            mean, square = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
            weights = {**weights, name: array - config.learning_rate * mean / (np.sqrt(square) + 1e-5)}
    return weights


SPACES: list[ActionSpace] = [Discrete(3), Continuous((-1.0, -1.0), (1.0, 1.0))]


@pytest.mark.parametrize(("space", "norm"), list(zip(SPACES, [0.05, 100.0], strict=True)), ids=["capped", "free"])
def test_the_update_is_that_of_a_slow_reference(space: ActionSpace, norm: float) -> None:
    config = PPOConfig(
        environments=4, rollout_steps=8, minibatch=32, epochs=3, learning_rate=0.01, entropy=0.05, gradient_norm=norm
    )
    rng = np.random.default_rng(0)
    policy = nudged_policy(space, rng)
    before = flatten(policy.params)
    normalizer = Normalizer.identity(3).with_observations(rng.normal(1, 2, (50, 3))).with_returns(rng.normal(0, 5, 50))
    policy = replace(policy, normalizer=normalizer)
    rollout = random_rollout(policy, config, rng)
    learner = Learner(policy, optimizer(config).init(policy.params))
    improve(learner, rollout, config, np.random.default_rng(5), NoGuidance(), config.learning_rate)

    estimate = reference_advantages(
        {
            "rewards": rollout.rewards / normalizer.reward_scale,
            "values": rollout.values.astype(np.float64),
            "next_values": rollout.next_values.astype(np.float64),
            "cut": rollout.done.astype(np.float64),
        },
        config.discount,
        config.gae_lambda,
    )
    scaled = (rollout.observations.astype(np.float64) - normalizer.mean) / np.sqrt(normalizer.variance + 1e-8)
    samples = {
        "observations": scaled.reshape(-1, 3),
        "actions": rollout.actions.reshape(-1, *rollout.actions.shape[2:]).astype(np.float64),
        "log_probs": rollout.log_probs.reshape(-1).astype(np.float64),
        "advantages": estimate.reshape(-1),
        "returns": (estimate + rollout.values).reshape(-1),
    }
    weights = {name: array.astype(np.float64) for name, array in before.items()}
    wanted = reference_update(weights, samples, config, isinstance(space, Discrete))
    for name, array in flatten(learner.policy.params).items():
        np.testing.assert_allclose(array, wanted[name], rtol=0, atol=0.01 * config.learning_rate, err_msg=name)
        assert np.abs(array - before[name]).max() > 0.1 * config.learning_rate


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_samples_that_are_not_kept_take_no_part(space: ActionSpace) -> None:
    """The gradient is that of the kept samples alone, the entropy's included."""
    rng, config = np.random.default_rng(0), PPOConfig(entropy=0.1)
    policy = nudged_policy(space, rng)
    rollout = random_rollout(policy, TINY, rng)
    batch = {
        "observations": rollout.observations[0],
        "actions": rollout.actions[0],
        "log_probs": rollout.log_probs[0],
        "advantages": rng.normal(size=4).astype(np.float32),
        "returns": rng.normal(size=4).astype(np.float32),
        "kept": np.array([1, 0, 1, 1], np.float32),
    }
    batch["log_probs"][1] -= 1e4  # an action so far off that its ratio overflows
    batches = (batch, {name: array[[0, 2, 3]] for name, array in batch.items()})
    gradient = jax.jit(jax.grad(partial(surrogate, config=config, extra=None), has_aux=True))
    whole, part = (gradient(policy.params, {k: jnp.asarray(v) for k, v in b.items()})[0] for b in batches)
    for name, array in flatten(part).items():
        np.testing.assert_allclose(flatten(whole)[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


# The loop


def test_the_same_seed_gives_the_same_policy(tmp_path: Path) -> None:
    task = get_task("hopper")
    first = run(task)
    assert_identical(first, run(task, checkpoint=tmp_path / "checkpoint.npz"))
    other = run(task, seed=2)
    assert (flatten(other.params)["actor.0.w"] != flatten(first.params)["actor.0.w"]).any()


def test_iterations_report_steps_and_the_returns_of_finished_episodes() -> None:
    seen: list[Iteration] = []
    budget = StepBudget(10_000)
    run(treadmill(), observer=seen.append, budget=budget)
    assert [iteration.steps for iteration in seen] == [128, 256, 384, 512]
    assert {iteration.total for iteration in seen} == {512}
    assert set(seen[-1].returns) == {5.0}
    assert seen[-1].metrics["rollout/ep_len_mean"] == 5.0
    rates = [iteration.metrics["train/learning_rate"] for iteration in seen]
    np.testing.assert_allclose(rates, [0.001, 0.00075, 0.0005, 0.00025])
    assert budget.spent["train"] == budget.used == 512


def test_only_whole_rollouts_are_taken_and_one_must_fit() -> None:
    budget = StepBudget(1000)
    task = treadmill()
    train(task, start_policy(task), TINY, 300, np.random.default_rng(0), budget=budget)
    assert budget.used == 256
    with pytest.raises(UltraError, match="127 steps are left for training, less than one rollout of 128"):
        train(task, start_policy(task), TINY, 127, np.random.default_rng(0))


def interrupt_at(iteration: int) -> Callable[[Iteration], None]:
    """An observer that presses Ctrl-C."""
    calls = iter(range(1, 1000))

    def observe(_: Iteration) -> None:
        if next(calls) == iteration:
            raise KeyboardInterrupt

    return observe


@pytest.mark.parametrize("name", ["hopper", "Pendulum-v1"])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """Interrupted twice; the budget counts every step once."""
    task, path = get_task(name), tmp_path / "checkpoint.npz"
    whole = run(task)
    for iteration in (2, 1):
        with pytest.raises(KeyboardInterrupt):
            run(task, checkpoint=path, observer=interrupt_at(iteration))
    budget = StepBudget(10_000)
    seen: list[Iteration] = []
    # The generator's state is in the checkpoint: what the caller brings does not matter.
    resumed = run(task, seed=99, checkpoint=path, budget=budget, observer=seen.append)
    assert_identical(whole, resumed)
    assert budget.spent["train"] == ITERATIONS * TINY.samples
    assert [iteration.steps for iteration in seen] == [256, 384, 512]


class Tally(NoGuidance):
    """Notes what `progress` is called with; the calls before a checkpoint are in its state."""

    def __init__(self) -> None:
        self.calls: list[float] = []

    def progress(self, fraction: float, policy: Policy) -> None:
        self.calls.append(fraction)

    def state(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state(self, state: dict[str, Any]) -> None:
        self.calls = list(state["calls"])


@pytest.mark.parametrize("iteration", [1, 2, 4])
def test_a_resumed_training_calls_progress_once_for_each_rollout(iteration: int, tmp_path: Path) -> None:
    """Guidance that acts on a call (a recheck, a curriculum) must not act twice after an interruption."""
    task, path = treadmill(), tmp_path / "checkpoint.npz"
    with pytest.raises(KeyboardInterrupt):
        run(task, checkpoint=path, observer=interrupt_at(iteration), guidance=Tally())
    resumed = Tally()
    run(task, checkpoint=path, guidance=resumed)
    assert resumed.calls == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.slow
def test_pong_resumes_alike_on_any_number_of_workers(tmp_path: Path) -> None:
    task, path = get_task("pong"), tmp_path / "checkpoint.npz"
    whole = run(task, iterations=3, workers=1)
    with pytest.raises(KeyboardInterrupt):
        run(task, iterations=3, workers=2, checkpoint=path, observer=interrupt_at(2))
    assert_identical(whole, run(task, iterations=3, workers=1, checkpoint=path))


def test_an_interruption_in_the_middle_of_a_rollout_loses_nothing(tmp_path: Path) -> None:
    def interrupt(step: int) -> float:
        if step == 70:
            raise KeyboardInterrupt
        return 1.0

    path = tmp_path / "checkpoint.npz"
    with pytest.raises(KeyboardInterrupt):
        run(treadmill(reward=interrupt), checkpoint=path)
    assert_identical(run(treadmill()), run(treadmill(), checkpoint=path))


def test_a_killed_training_resumes_from_its_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ultra.ppo.checkpoint.SECONDS_BETWEEN", 0.0)
    path = tmp_path / "checkpoint.npz"
    whole = run(get_task("hopper"), checkpoint=path)
    seen: list[Iteration] = []
    assert_identical(whole, run(get_task("hopper"), seed=99, checkpoint=path, observer=seen.append))
    assert [iteration.steps for iteration in seen] == [ITERATIONS * TINY.samples]


def test_a_reward_that_is_not_a_number_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    """Repaired, the training goes on as if nothing had happened."""
    path = tmp_path / "checkpoint.npz"
    broken = treadmill(reward=lambda step: np.nan if step == 2 * TINY.rollout_steps + 7 else 1.0)
    with pytest.raises(
        DivergedError, match=r"environment 0 .* not finite 7 steps into the rollout .*reward nan"
    ) as error:
        run(broken, checkpoint=path)
    assert "\n" not in str(error.value)
    seen: list[Iteration] = []
    assert_identical(run(treadmill()), run(treadmill(), seed=99, checkpoint=path, observer=seen.append))
    assert seen[0].steps == 3 * TINY.samples


def test_weights_that_are_not_numbers_stop_and_keep_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"
    with pytest.raises(DivergedError, match=r"lower --ppo\.learning-rate"):
        run(treadmill(), config=replace(TINY, learning_rate=1e38), checkpoint=path)
    assert_identical(run(treadmill()), run(treadmill(), seed=99, checkpoint=path))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_damaged_checkpoint_is_one_clear_error(share: float, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npz"
    with pytest.raises(KeyboardInterrupt):
        run(treadmill(), checkpoint=path, observer=interrupt_at(2))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RunDirectoryError, match=r"checkpoint .* is damaged") as error:
        run(treadmill(), checkpoint=path)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_damaged_byte_in_a_checkpoint_is_found_or_changes_nothing(tmp_path: Path, data: st.DataObject) -> None:
    """The archive's own checksums see to the arrays; what lies around them may be damaged as well."""
    path, task = tmp_path / "checkpoint.npz", treadmill()

    def start() -> tuple[Learner, Environments]:
        policy = start_policy(task)
        environments = Environments(task.make_batch(4), NoGuidance(), np.random.default_rng(0))
        environments.begin()
        return Learner(policy, optimizer(TINY).init(policy.params)), environments

    saved = save_checkpoint(*start())
    content = bytearray(saved)
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    learner, environments = start()
    try:
        load_checkpoint(path, learner, environments)
    except RunDirectoryError as error:
        assert "\n" not in str(error)
        return
    assert save_checkpoint(learner, environments) == saved


def test_a_checkpoint_of_another_training_is_one_clear_error(tmp_path: Path) -> None:
    path, task = tmp_path / "checkpoint.npz", treadmill()
    with pytest.raises(KeyboardInterrupt):
        run(task, checkpoint=path, observer=interrupt_at(2))
    with pytest.raises(RunDirectoryError, match=r"made with 4 environments, not 8: .*--ppo\.environments 4"):
        run(task, config=replace(TINY, environments=8), checkpoint=path)
    other = start_policy(task, hidden=(8,))
    with pytest.raises(RunDirectoryError, match="policy of other shapes"):
        train(task, other, TINY, TINY.samples, np.random.default_rng(0), checkpoint=path)


@pytest.mark.slow
def test_it_learns_to_balance_a_pole() -> None:
    """A random policy keeps the pole up for about 22 steps."""
    task = get_task("CartPole-v1")
    config = PPOConfig(environments=8, rollout_steps=64, minibatch=128, epochs=10, learning_rate=0.003, gamma=0.98)
    policy = start_policy(task, hidden=(32, 32))
    seen: list[Iteration] = []
    train(task, policy, config, 10_000, np.random.default_rng(0), observer=seen.append, workers=1)
    assert np.mean(seen[1].returns) < 40
    assert np.mean(seen[-1].returns) > 120
