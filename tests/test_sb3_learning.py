"""From the same steps of the same environments, our PPO learns what Stable-Baselines3's does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ultra.config import PPOConfig
from ultra.policies.policy import flatten
from ultra.ppo.checkpoint import Learner
from ultra.ppo.guidance import NoGuidance
from ultra.ppo.rollout import Environments
from ultra.ppo.train import improve, optimizer
from ultra.tasks.batch import Step

pytestmark = pytest.mark.slow

sb3 = pytest.importorskip("stable_baselines3", reason="needs Stable-Baselines3: make install-sb3")

from stable_baselines3.common.callbacks import BaseCallback  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402

from ultra.policies.sb3.importing import import_policy  # noqa: E402

CONFIG = PPOConfig(environments=4, rollout_steps=128, minibatch=32, epochs=3)
TIME_LIMIT = 15
"""Shorter than many episodes of an untrained Hopper: some are cut off, some end."""


class Witness(BaseCallback):
    """Notes what Stable-Baselines3's environments return."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.later: list[NDArray[np.float32]] = []
        """Observations after each step, of the new episodes where one was over."""

    def _on_step(self) -> bool:
        found = self.locals
        over, infos, after = found["dones"].copy(), found["infos"], found["new_obs"].astype(np.float32)
        reached = after.copy()
        for index in np.flatnonzero(over):
            reached[index] = infos[index]["terminal_observation"]
        cut = np.array([bool(info.get("TimeLimit.truncated")) for info in infos])
        self.steps.append(Step(reached, found["rewards"].astype(np.float64), over & ~cut, cut))
        self.later.append(after)
        return True


class Recorded:
    """A batch of environments in which happens what happened before, whatever is done."""

    def __init__(self, first: NDArray[np.float32], witness: Witness) -> None:
        self._first, self._witness, self._clock = first, witness, -1
        self.size = len(first)

    def reset(self, indices: NDArray[np.intp], seeds: Sequence[int]) -> NDArray[np.float32]:
        before = self._first if self._clock < 0 else self._witness.later[self._clock]
        return before[indices]

    def step(self, actions: NDArray[Any]) -> Step:
        self._clock += 1
        step = self._witness.steps[self._clock]
        return Step(step.observations.copy(), step.rewards, step.terminated, step.truncated)


class Given:
    """In place of a random generator: the noise and the permutations that the other library drew."""

    def __init__(self, noise: NDArray[np.float32], permutations: Sequence[NDArray[np.intp]]) -> None:
        self._noise, self._permutations = noise, list(permutations)

    def integers(self, high: int, size: int) -> NDArray[np.int64]:
        return np.zeros(size, np.int64)

    def standard_normal(self, shape: tuple[int, ...], dtype: Any) -> NDArray[np.float32]:
        assert shape == self._noise.shape
        return self._noise

    def permutation(self, count: int) -> NDArray[np.intp]:
        return self._permutations.pop(0)


def test_one_rollout_changes_the_weights_as_in_stable_baselines3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, advantages across ends and time limits, every minibatch's loss, gradient norm and Adam."""
    env = make_vec_env("Hopper-v5", CONFIG.environments, seed=0, env_kwargs={"max_episode_steps": TIME_LIMIT})
    model = sb3.PPO(
        "MlpPolicy", env, n_steps=CONFIG.rollout_steps, batch_size=CONFIG.minibatch, n_epochs=CONFIG.epochs,
        seed=0, device="cpu",
    )  # fmt: skip
    model.save(tmp_path / "before.zip")
    witness = Witness()
    _, callback = model._setup_learn(CONFIG.samples, witness)
    first = model._last_obs.astype(np.float32)
    model.collect_rollouts(env, callback, model.rollout_buffer, CONFIG.rollout_steps)
    buffer = {
        name: getattr(model.rollout_buffer, name).copy()
        for name in ("observations", "actions", "values", "log_probs", "returns", "advantages")
    }
    assert sum(step.truncated.sum() for step in witness.steps) > 3
    assert sum(step.terminated.sum() for step in witness.steps) > 3

    policy = import_policy(tmp_path / "before.zip").policy
    silence = np.zeros((CONFIG.environments, buffer["actions"].shape[2]), np.float32)
    noise = [
        a - policy.decide(o, silence).actions for o, a in zip(buffer["observations"], buffer["actions"], strict=True)
    ]
    # They count environment by environment, we step by step.
    place = np.arange(CONFIG.samples).reshape(CONFIG.rollout_steps, CONFIG.environments).T.ravel()
    orders = [np.random.default_rng(epoch).permutation(CONFIG.samples) for epoch in range(CONFIG.epochs)]
    given: Any = Given(np.stack(noise), [place[order] for order in orders])
    batch: Any = Recorded(first, witness)
    environments = Environments(batch, NoGuidance(), given)
    environments.begin()
    rollout = environments.rollout(policy, CONFIG.rollout_steps, CONFIG.discount)
    for name in ("observations", "actions", "values", "log_probs"):
        np.testing.assert_allclose(getattr(rollout, name), buffer[name], rtol=1e-4, atol=1e-5, err_msg=name)
    episodes = [info["r"] for info in model.ep_info_buffer]
    np.testing.assert_allclose(list(environments.episodes.recent_returns), episodes[-30:], rtol=1e-5)

    learner = Learner(policy, optimizer(CONFIG).init(policy.params))
    improve(learner, rollout, CONFIG, given, NoGuidance(), CONFIG.learning_rate)
    monkeypatch.setattr(np.random, "permutation", lambda count: orders.pop(0))
    model.train()
    model.save(tmp_path / "after.zip")
    ours, before = flatten(learner.policy.params), flatten(policy.params)
    theirs = flatten(import_policy(tmp_path / "after.zip").policy.params)
    for name, weights in theirs.items():
        moved = np.abs(weights - before[name]).max()
        assert moved > 1e-3
        np.testing.assert_allclose(ours[name], weights, atol=0.01 * moved, err_msg=name)
