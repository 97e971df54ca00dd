"""Statistics that a policy lacks: what it computes stays the same, and it comes back without them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ultra.config import PPOConfig
from ultra.policies.normalizer import Normalizer
from ultra.policies.policy import Architecture, Policy, create_policy, flatten
from ultra.ppo.guidance import NoGuidance
from ultra.ppo.rollout import Environments, Rollout
from ultra.ppo.standardize import standardize, unstandardize
from ultra.ppo.train import Iteration, train
from ultra.tasks import get_task
from ultra.tasks.spaces import ActionSpace, Continuous, Discrete

TINY = PPOConfig(environments=4, rollout_steps=32, minibatch=64, epochs=2)
SHAPES: dict[str, dict[str, Any]] = {
    "usual": {},
    "no hidden layer": {"hidden": ()},
    "shared layers": {"shared": (8,), "critic_hidden": (5,)},
}
OFFSETS = np.array([5.0, -1.2, 0.0], np.float32)
SCALES = np.array([100.0, 0.07, 0.0], np.float32)


def a_policy(space: ActionSpace, **shape: Any) -> Policy:
    """Far from fresh, so that differences would show."""
    policy = create_policy(Architecture(3, space, **{"hidden": (16,), **shape}), np.random.default_rng(0))
    policy.params["actor"][-1]["w"] *= 100.0
    return policy


def a_rollout(policy: Policy) -> Rollout:
    """Observations of very unlike scales, the last entry constant, and returns of about -100."""
    rng = np.random.default_rng(1)
    observations = (OFFSETS + SCALES * rng.standard_normal((40, 5, 3))).astype(np.float32)
    values = policy.values(observations.reshape(-1, 3)).reshape(40, 5).astype(np.float32)
    zero = np.zeros((40, 5))
    return Rollout(
        observations, zero.astype(np.int64), zero.astype(np.float32), values, values + 1, zero - 1,
        zero > 0, zero > 0, zero.astype(np.float32), zero - 100,
    )  # fmt: skip


def assert_computes_the_same(policy: Policy, other: Policy) -> None:
    """Also far outside of what the rollout showed, where statistics usually cut."""
    rng = np.random.default_rng(2)
    wide = OFFSETS + np.where(SCALES > 0, 30 * SCALES, 3) * rng.standard_normal((200, 3))
    observations = wide.astype(np.float32)
    noise = policy.draw_noise(rng, (200,))
    one, two = policy.decide(observations, noise), other.decide(observations, noise)
    np.testing.assert_allclose(two.actions, one.actions, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(two.log_probs, one.log_probs, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(other.values(observations), policy.values(observations), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("space", [Discrete(3), Continuous((-1.0,), (1.0,))], ids=["discrete", "continuous"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_policy_computes_the_same_with_statistics_and_after_them(space: ActionSpace, shape: dict[str, Any]) -> None:
    policy = a_policy(space, **shape)
    rollout = a_rollout(policy)
    inside, moved = standardize(policy, rollout)
    assert inside.normalizer.count == 200
    assert inside.normalizer.reward_scale == pytest.approx(100, rel=1e-4)
    shift, factor, _ = inside.normalizer.arrays()
    seen = (rollout.observations - shift) * factor
    np.testing.assert_allclose(seen.std(axis=(0, 1)), [1, 1, 0], atol=1e-3)
    assert_computes_the_same(policy, inside)
    for name in ("values", "next_values"):
        found = getattr(moved, name)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found * inside.normalizer.reward_scale, getattr(rollout, name), rtol=1e-5)
    back = unstandardize(inside, policy.normalizer)
    assert back.normalizer is policy.normalizer
    assert_computes_the_same(policy, back)
    for name, array in flatten(policy.params).items():
        np.testing.assert_allclose(flatten(back.params)[name], array, rtol=1e-4, atol=1e-5)


def test_statistics_that_a_policy_has_are_kept() -> None:
    policy = a_policy(Discrete(2))
    full = replace(policy, normalizer=Normalizer(np.ones(3), np.full(3, 2.0), 10.0, 4.0, 10.0))
    rollout = a_rollout(full)
    same, untouched = standardize(full, rollout)
    assert same == full
    assert untouched is rollout
    half = replace(policy, normalizer=Normalizer(np.ones(3), np.full(3, 2.0), 10.0))
    inside, _ = standardize(half, rollout)
    assert inside.params["actor"] is half.params["actor"]
    assert inside.normalizer.clip == half.normalizer.clip
    assert_computes_the_same(half, inside)
    assert_computes_the_same(half, unstandardize(inside, half.normalizer))


def test_training_gives_the_policy_back_without_statistics_and_resumes_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted between two iterations; the checkpoint holds the statistics, the policy does not."""
    task = get_task("MountainCar-v0")
    start = create_policy(Architecture(2, task.action_space, (8,)), np.random.default_rng(0))

    def run(checkpoint: Path | None = None, seed: int = 1, interrupted: bool = False) -> Policy:
        def observe(iteration: Iteration) -> None:
            if interrupted and iteration.steps == 2 * TINY.samples:
                raise KeyboardInterrupt

        rng = np.random.default_rng(seed)
        return train(
            task, start, TINY, 3 * TINY.samples, rng, standardized=True, checkpoint=checkpoint, observer=observe,
            workers=1,
        )  # fmt: skip

    whole = run()
    assert whole.normalizer is start.normalizer
    assert (flatten(whole.params)["actor.0.w"] != flatten(start.params)["actor.0.w"]).any()
    monkeypatch.setattr("ultra.ppo.checkpoint.SECONDS_BETWEEN", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c.npz", interrupted=True)
    again = run(tmp_path / "c.npz", seed=9)
    for name, array in flatten(whole.params).items():
        np.testing.assert_array_equal(flatten(again.params)[name], array)


def test_policies_with_statistics_train_as_before() -> None:
    task = get_task("MountainCar-v0")
    start = create_policy(Architecture(2, task.action_space, (8,)), np.random.default_rng(0))
    batch = task.make_local_batch(4)
    environments = Environments(batch, NoGuidance(), np.random.default_rng(0))
    environments.begin()
    seen = environments.rollout(start, 8, 0.99)
    normalizer = start.normalizer.with_observations(seen.observations.reshape(-1, 2)).with_returns(seen.discounted)
    batch.close()
    start = replace(start, normalizer=normalizer)
    one, other = (
        train(task, start, TINY, TINY.samples, np.random.default_rng(1), standardized=flag, workers=1)
        for flag in (True, False)
    )
    for name, array in flatten(one.params).items():
        np.testing.assert_array_equal(flatten(other.params)[name], array)
