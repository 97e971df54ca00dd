"""Policies, environments and commands as people bring them: docs/results/first-use.md lists the cases."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from tests.test_sb3 import ACTIONS, VECTOR, Given, assert_acts_as, change, save_model

from ultra.cli import main as cli
from ultra.common.errors import PolicyError, UltraError
from ultra.evaluation.evaluate import evaluate
from ultra.policies.io import load_policy, save_policy
from ultra.policies.opening import open_policy
from ultra.policies.policy import Architecture, check_fits, create_policy
from ultra.policies.sb3 import import_policy
from ultra.policies.sb3.statistics import read_statistics
from ultra.tasks import get_task

torch = pytest.importorskip("torch", reason="needs torch: make install-sb3")
sb3 = pytest.importorskip("stable_baselines3", reason="needs Stable-Baselines3: make install-sb3")


class WholeNumbers(gymnasium.Env[Any, Any]):
    """Adds a tenth of the action to a place; the space says that actions are whole numbers."""

    observation_space = spaces.Box(-10.0, 10.0, (1,), np.float32)
    action_space = spaces.Box(-10, 10, (1,), np.int64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 1)
        return self.place.astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = np.clip(self.place + action / 10, -10, 10)
        return self.place.astype(np.float32), -float(abs(self.place[0])), False, False, {}


@pytest.fixture
def registered() -> Any:
    """Registers an environment for the time of a test."""
    names: list[str] = []

    def register(name: str, make: Any, limit: int | None = 20) -> str:
        gymnasium.register(name, make, max_episode_steps=limit)
        names.append(name)
        return name

    yield register
    for name in names:
        del gymnasium.registry[name]


# -- policies --------------------------------------------------------------------------------------


def test_real_numbers_reach_an_environment_whose_actions_are_said_to_be_whole(registered: Any, tmp_path: Path) -> None:
    name = registered("WholeNumbers-v0", WholeNumbers)
    model = sb3.PPO("MlpPolicy", WholeNumbers(), device="cpu", seed=0)
    with torch.no_grad():
        model.policy.action_net.bias.fill_(0.7)
    model.save(tmp_path / "m.zip")
    _, ours, _ = evaluate(get_task(name), import_policy(tmp_path / "m.zip").policy, [0, 1, 2], workers=1)
    env, theirs = gymnasium.make(name), []
    for seed in range(3):
        (observation, _), done, total = env.reset(seed=seed), False, 0.0
        while not done:
            observation, reward, terminated, truncated, _ = env.step(model.predict(observation, deterministic=True)[0])
            total, done = total + float(reward), terminated or truncated
        theirs.append(total)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("kwargs", [{}, {"full_std": False, "use_expln": True}, {"net_arch": []}], ids=str)
def test_a_policy_with_gsde_acts_by_its_mean_and_states_its_noise(kwargs: dict[str, Any], tmp_path: Path) -> None:
    env = Given(VECTOR, ACTIONS["continuous"])
    model = sb3.PPO("MlpPolicy", env, use_sde=True, policy_kwargs=kwargs, device="cpu", seed=0)
    model.save(tmp_path / "m.zip")
    found = import_policy(tmp_path / "m.zip")
    seen = np.array([env.observation_space.sample() for _ in range(50)])
    theirs, _ = model.predict(seen, deterministic=True)
    decision = found.policy.decide(seen, np.zeros((50, 2), np.float32))
    space = found.policy.architecture.action_space
    np.testing.assert_allclose(space.clip(decision.actions), theirs, rtol=1e-4, atol=1e-5)
    (note,) = [note for note in found.notes if "gSDE" in note]
    deviations = np.exp(np.asarray(found.policy.params["log_std"]))
    assert f"{deviations[0]:.2g}" in note
    real = model.policy.get_distribution(model.policy.obs_to_tensor(np.random.default_rng(0).normal(size=(999, 3)))[0])
    np.testing.assert_allclose(deviations, np.sqrt((real.distribution.stddev**2).mean(0).detach()), rtol=0.1)


@pytest.mark.parametrize(
    ("task", "takes", "says"),
    [
        ("Swimmer-v5", 9, "TimeFeatureWrapper"),
        ("HalfCheetah-v5", 18, "TimeFeatureWrapper"),
        ("Ant-v5", 112, r"TimeFeatureWrapper around Ant-v4 with --env-kwargs use_contact_forces=true"),
        ("MountainCarContinuous-v0", 8, r"VecFrameStack\(4\)"),
        ("Reacher-v5", 11, "Reacher-v4"),
        ("reacher", 11, "Reacher-v4"),
        ("hopper", 28, r"HistoryWrapper\(2\)"),
        ("hopper", 50, "was it trained on another task"),
    ],
)
def test_the_likely_wrapper_or_version_is_named(task: str, takes: int, says: str) -> None:
    known = get_task(task)
    policy = create_policy(Architecture(takes, known.action_space), np.random.default_rng(0))
    with pytest.raises(PolicyError, match=says) as caught:
        check_fits(policy, known.name, known.observation_size, known.action_space)
    assert f"({takes},)" in str(caught.value)


def test_parts_that_statistics_leave_out_stay_as_they_are(tmp_path: Path) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    parts = spaces.Dict({"a": spaces.Box(-50, 50, (2,)), "b": VECTOR, "mode": spaces.Discrete(3)})
    env = Given(parts, ACTIONS["discrete"])
    vectorized = VecNormalize(DummyVecEnv([lambda: env]), norm_obs_keys=["b"], clip_obs=2.0)
    model = sb3.PPO("MultiInputPolicy", vectorized, n_steps=32, batch_size=32, device="cpu", seed=0)
    model.learn(32)
    model.save(tmp_path / "m.zip")
    vectorized.save(str(tmp_path / "vecnormalize.pkl"))
    policy = import_policy(tmp_path / "m.zip").policy
    save_policy(policy, tmp_path / "own")
    samples = [parts.sample() for _ in range(100)]
    flat = np.array([spaces.flatten(parts, sample) for sample in samples], np.float32)
    stacked = {key: np.array([sample[key] for sample in samples]) for key in parts.spaces}
    tensors, _ = model.policy.obs_to_tensor(vectorized.normalize_obs(stacked))
    theirs = model.policy.predict_values(tensors).detach().numpy()[:, 0]
    for ours in (policy, load_policy(tmp_path / "own")):
        decision = ours.decide(flat, np.zeros((100, 3), np.float32))
        np.testing.assert_allclose(decision.values, theirs, rtol=1e-4, atol=1e-5)


def test_a_model_where_statistics_should_be_is_called_one(tmp_path: Path) -> None:
    save_model(tmp_path / "vecnormalize.pkl", Given(VECTOR, ACTIONS["discrete"]))
    with pytest.raises(PolicyError, match="is a model, not statistics") as caught:
        read_statistics(tmp_path / "vecnormalize.pkl")
    assert "trust" not in str(caught.value)


def test_statistics_where_a_model_should_be_are_called_that(tmp_path: Path) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    VecNormalize(DummyVecEnv([lambda: Given(VECTOR, ACTIONS["discrete"])])).save(str(tmp_path / "m.zip"))
    with pytest.raises(PolicyError, match="holds VecNormalize statistics, not a model"):
        open_policy(tmp_path / "m.zip")


def test_weights_alone_are_called_that(tmp_path: Path) -> None:
    save_model(tmp_path / "m.zip", Given(VECTOR, ACTIONS["discrete"])).policy.save(str(tmp_path / "p.zip"))
    with pytest.raises(PolicyError, match="holds weights alone"):
        open_policy(tmp_path / "p.zip")


def test_statistics_that_were_cut_off_are_not_to_be_trusted(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "v.pkl").write_bytes(pickle.dumps({"a": list(range(100))})[:-20])
    with pytest.raises(PolicyError, match="copy the file again") as caught:
        read_statistics(tmp_path / "v.pkl")
    assert "trust" not in str(caught.value)


def test_a_zip_is_found_beside_a_folder_of_its_name(tmp_path: Path) -> None:
    """As RL Baselines3 Zoo keeps them."""
    save_model(tmp_path / "CartPole-v1.zip", gymnasium.make("CartPole-v1"))
    (tmp_path / "CartPole-v1").mkdir()
    assert open_policy(tmp_path / "CartPole-v1").policy.architecture.observation_size == 4


@pytest.mark.parametrize("normalize", [True, False])
def test_a_policy_without_convolutions_that_looks_at_images(normalize: bool, tmp_path: Path) -> None:
    """Stable-Baselines3 puts their channels first and divides by 255, whatever the policy is."""
    shape = (8, 6, 3)
    env = Given(spaces.Box(0, 255, shape, np.uint8), ACTIONS["discrete"])
    model = save_model(tmp_path / "m.zip", env, normalize_images=normalize)
    policy = import_policy(tmp_path / "m.zip").policy
    seen = np.array([env.observation_space.sample() for _ in range(50)])
    tensors, _ = model.policy.obs_to_tensor(np.transpose(seen, (0, 3, 1, 2)))
    theirs = model.policy.predict_values(tensors).detach().numpy()[:, 0]
    ours = policy.decide(seen.reshape(50, -1).astype(np.float32), np.zeros((50, 3), np.float32)).values
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_bytes_in_three_dimensions_that_are_no_image(tmp_path: Path) -> None:
    env = Given(spaces.Box(0, 9, (2, 2, 3), np.uint8), ACTIONS["discrete"])
    model = save_model(tmp_path / "m.zip", env)
    assert_acts_as(import_policy(tmp_path / "m.zip").policy, model, env)


def test_squashed_actions_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "m.zip", Given(VECTOR, ACTIONS["continuous"]))
    change(tmp_path / "m.zip", data=lambda settings: settings["policy_kwargs"].update(squash_output=True))
    with pytest.raises(PolicyError, match="squash_output"):
        import_policy(tmp_path / "m.zip")


def test_training_goes_on_with_the_discount_of_the_policy(tmp_path: Path) -> None:
    """Of a zip, of `ultra train` and of a refined policy, unless another one is asked for."""
    from ultra import api
    from ultra.config import EvaluateConfig, PPOConfig, RefineConfig, TrainConfig
    from ultra.pipeline.run import Run

    sb3.PPO("MlpPolicy", gymnasium.make("CartPole-v1"), gamma=0.9, device="cpu").save(tmp_path / "m.zip")
    small = PPOConfig(environments=2, rollout_steps=32)
    train = TrainConfig("CartPole-v1", steps=64, ppo=PPOConfig(2, 32, gamma=0.8), evaluate=EvaluateConfig(2), workers=1)
    api.train(train, tmp_path / "own")

    def discount(policy: str, out: str, ppo: PPOConfig = small) -> float:
        config = RefineConfig("CartPole-v1", str(tmp_path / policy), method="ppo", steps=64, workers=1)
        config = replace(config, ppo=ppo, evaluate=EvaluateConfig(2))
        for _ in range(2):  # the repeated command is the same one
            api.refine(config, tmp_path / out)
        return float(Run.open(tmp_path / out).config.ppo.gamma)

    assert discount("m.zip", "a") == 0.9
    assert discount("own", "b") == 0.8
    assert discount("a/policy/best", "c") == 0.9
    assert discount("m.zip", "d", PPOConfig(2, 32, gamma=0.5)) == 0.5


# -- environments ----------------------------------------------------------------------------------


class Plain(gymnasium.Env[Any, Any]):
    """Three numbers; what follows does one thing wrong."""

    observation_space: Any = spaces.Box(-10, 10, (3,), np.float32)
    action_space: Any = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def look(self) -> Any:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.look(), 1.0, self.t >= 10, False, {}


class FourValues(Plain):
    def step(self, action: Any) -> Any:
        return *super().step(action)[:3], {}


class NoSeed(Plain):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class NeedsOptions(Plain):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=options["seed"])


class ObservationAlone(Plain):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0]


class RewardInArray(Plain):
    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, np.array([reward]), *rest


class NoReward(Plain):
    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, float("nan"), *rest


class InAList(Plain):
    def look(self) -> Any:
        return [0.1, 0.2, 0.3]


class OtherShape(Plain):
    def look(self) -> Any:
        return np.zeros(1, np.float32)


class NoNumber(Plain):
    def look(self) -> Any:
        return np.array([0.1, np.nan if self.t == 5 else 0.2, 0.3], np.float32)


class OutsideItsChoices(Plain):
    observation_space = spaces.Dict({"mode": spaces.Discrete(3)})

    def look(self) -> Any:
        return {"mode": 3}


class PartMissing(Plain):
    observation_space = spaces.Dict({"mode": spaces.Discrete(3), "place": VECTOR})

    def look(self) -> Any:
        return {"mode": 1}


class Explodes(Plain):
    def step(self, action: Any) -> Any:
        if self.t == 4:
            raise RuntimeError("the simulator\nexploded")
        return super().step(action)


class Leaves(Plain):
    def step(self, action: Any) -> Any:
        if self.t == 4:
            raise SystemExit(3)
        return super().step(action)


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (FourValues, "step failed: it returned 4 values: observation, reward, terminated, truncated and info"),
        (NoSeed, r"reset failed: .*'seed': write `def reset\(self, \*, seed=None, options=None\)`"),
        (NeedsOptions, r"reset failed: TypeError: .*test_cases.py, line \d+\); it is given a seed and no options"),
        (ObservationAlone, "reset returned an array, but must return the observation and a dict of info"),
        (RewardInArray, r"step returned array\(\[1.\]\) as the reward, but must return a number"),
        (NoReward, "step returned a reward that is not finite: nan"),
        (InAList, r"reset returned a list of 3 values as the observation, but must return an array"),
        (OtherShape, r"reset returned the observation with shape \(1,\), but its space says \(3,\)"),
        (NoNumber, "step returned an observation that is not finite: entry 1 is nan"),
        (OutsideItsChoices, r"reset returned 3 as the observation's 'mode', which is not in Discrete\(3\)"),
        (PartMissing, "reset returned an observation without 'place'"),
        (Explodes, r"step failed: RuntimeError: the simulator exploded \(test_cases.py, line \d+\)"),
        (Leaves, r"step failed: it ended the program \(sys.exit\(3\)\)"),
    ],
)
def test_an_environments_fault_is_one_line(env: type[Plain], says: str, registered: Any) -> None:
    name = registered("Faulty-v0", env)
    with pytest.raises(UltraError, match=f"Faulty-v0: {says}") as caught:
        get_task(name)
    assert "\n" not in str(caught.value)


DIES = """
import os
import gymnasium
from tests.test_cases import Plain

class Dies(Plain):
    def step(self, action):
        if self.t == 4 and os.getpid() != {process}:
            {what}
        return super().step(action)

gymnasium.register("Dies-v0", Dies, max_episode_steps=20)
"""


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("os.abort()", "Dies-v0: environment worker 0 has ended by SIGABRT, a crash in the environment's native code"),
        ("os.kill(os.getpid(), 9)", "Dies-v0: environment worker 0 has ended by SIGKILL.*memory"),
        ("os._exit(7)", "Dies-v0: environment worker 0 has ended with status 7"),
        ("raise SystemExit(7)", r"Dies-v0: step failed: it ended the program \(sys.exit\(7\)\)"),
        ("raise KeyError('x')", r"Dies-v0: step failed: KeyError: 'x' \(dies.py, line \d+\)"),
    ],
)
def test_a_worker_that_dies_is_one_line(
    what: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "dies.py").write_text(DIES.format(process=os.getpid(), what=what))
    policy = create_policy(Architecture(3, get_task("CartPole-v1").action_space), np.random.default_rng(0))
    save_policy(policy, tmp_path / "policy")
    command = [
        "evaluate",
        "policy",
        "--task",
        "Dies-v0",
        "--env-module",
        "dies.py",
        "--episodes",
        "2",
        "--workers",
        "2",
    ]
    try:
        assert cli.run(command) == 2
    finally:
        gymnasium.registry.pop("Dies-v0", None)
        sys.modules.pop("dies", None)
    error = capsys.readouterr().err
    assert re.search(says, error) and error.count("\n") == 1


def test_mujoco_writes_neither_warnings_nor_a_file(tmp_path: Path) -> None:
    text = "from ultra.tasks import get_task; get_task('HalfCheetah-v5')"
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout + done.stderr, list(tmp_path.iterdir())) == ("", [])
