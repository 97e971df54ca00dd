"""Policies, environments and commands as people bring them: docs/results/first-use.md lists the cases."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from tests.test_sb3 import ACTIONS, VECTOR, Given, assert_acts_as, change, save_model

from ultra import api
from ultra.analysts.registry import check_ready
from ultra.cli import main as cli
from ultra.common.errors import PolicyError, UltraError
from ultra.common.records import record_from, whole_number
from ultra.config import EvaluateConfig, GuidanceConfig, LLMConfig, PPOConfig, RefineConfig, TrainConfig
from ultra.evaluation.evaluate import evaluate
from ultra.pipeline.run import Run
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


# -- first use -------------------------------------------------------------------------------------


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command says that is refused, on one line."""
    assert cli.run([str(word) for word in words]) in (2, 3)
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and not captured.out, captured
    return captured.err


@pytest.mark.parametrize(
    "options",
    [
        ["train", "CartPole-v1", "--steps", "100"],
        ["train", "Cartpole-v1"],
        ["train", "CartPole-v1", "--seed", "-1"],
        ["train", "CartPole-v1", "--hidden", "-5"],
        ["train", "CartPole-v1", "--hidden", "0"],
        ["train", "CartPole-v1", "--sticky", "0.5"],
        ["refine", "CartPole-v1", "--policy", "POLICY", "--analyst", "foo"],
        ["refine", "CartPole-v1", "--policy", "POLICY", "--analyst", "llm:openai/gpt-5"],
        ["refine", "CartPole-v1", "--policy", "POLICY", "--analyst", "llm:local/m"],
        ["refine", "CartPole-v1", "--policy", "POLICY", "--analyst", "llm:local/m", "--base-url", "http://127.0.0.1:9"],
        ["refine", "CartPole-v1", "--policy", "POLICY", "--analyst", "recorded:none.jsonl"],
        ["refine", "CartPole-v1", "--policy", "POLICY", "--steps", "100"],
        ["refine", "Acrobot-v1", "--policy", "POLICY"],
        ["refine", "CartPole-v1", "--policy", "none"],
    ],
    ids=" ".join,
)
def test_nothing_is_written_before_a_command_is_found_to_be_good(
    options: list[str], policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    complaint(capsys, *(str(policy) if word == "POLICY" else word for word in options), "--out", out)
    assert not out.exists()


def test_a_model_that_its_server_does_not_have_is_named_before_the_first_step(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Models(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps({"data": [{"id": "qwen3:latest", "owned_by": "library"}]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Models)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        command = ["refine", "CartPole-v1", "--policy", policy, "--base-url", url, "--out", tmp_path / "run"]
        error = complaint(capsys, *command, "--analyst", "llm:local/qwen4")
        check_ready("llm:local/qwen3", LLMConfig(base_url=url))
    finally:
        server.shutdown()
        server.server_close()
    assert "does not know this model; it has qwen3:latest" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RefineConfig("x", seed=-1), "seed is -1, but must be at least 0"),
        (lambda: RefineConfig("x", steps="many"), "steps is many, but must be a whole number"),  # type: ignore[arg-type]
        (lambda: RefineConfig("x", steps=2.5), "steps is 2.5, but must be a whole number"),  # type: ignore[arg-type]
        (lambda: RefineConfig("x", ppo={}), "ppo is {}, but must be a PPOConfig"),  # type: ignore[arg-type]
        (lambda: PPOConfig(clip=float("nan")), "ppo.clip is nan, but must be above 0"),
        (lambda: GuidanceConfig(lam=float("inf")), "guidance.lambda is inf, but must be at most 1,000,000,000"),
        (lambda: TrainConfig("x", hidden=(8, 0)), "hidden is 8 0, but must be at least 1"),
        (lambda: api.evaluate("x", "CartPole-v1", episodes=0), "episodes is 0, but must be at least 2"),
        (lambda: api.evaluate("x", "CartPole-v1", seed=-1), "seed is -1, but must be at least 0"),
        (lambda: record_from(RefineConfig, {"task": "x", "guidance": {"lambda": -1}}), "guidance.lambda is -1.0, but"),
        (lambda: record_from(RefineConfig, {"task": "x", "steps": "2e-5"}), "steps is '2e-5', but must be a whole"),
    ],
)
def test_settings_are_refused_alike_in_python_and_in_files(make: Any, says: str) -> None:
    with pytest.raises(UltraError, match=re.escape(says)):
        make()


def test_what_means_the_same_is_accepted(tmp_path: Path) -> None:
    config = RefineConfig("x", policy=tmp_path, steps=np.int64(5), seed=2.0, threshold=1)  # type: ignore[arg-type]
    assert (config.policy, config.steps, config.seed, config.threshold) == (str(tmp_path), 5, 2, 1.0)
    assert [type(value) for value in (config.steps, config.seed, config.threshold)] == [int, int, float]
    text = {"task": "x", "steps": "2e5", "seed": "1_000", "guidance": {"lambda": 2}}
    read = record_from(RefineConfig, text)
    assert (read.steps, read.seed, read.guidance.lam) == (200_000, 1000, 2.0)


@pytest.mark.parametrize(
    ("text", "number"),
    [("200000", 200_000), ("200_000", 200_000), ("1e5", 100_000), ("1.5e3", 1500), ("-2E2", -200), ("1e12", 10**12)],
)
def test_whole_numbers_as_people_write_them(text: str, number: int) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize("text", ["", "1e-5", "1.5", "1e1.5", "inf", "nan", "1e999999", "ten", "0x10", "1e", "_"])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        whole_number(text)


def test_steps_in_scientific_notation_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("1e2", "1_00"):
        assert "100 steps are left" in complaint(
            capsys, "train", "CartPole-v1", "--steps", text, "--out", tmp_path / "run", "--quiet"
        )


@pytest.mark.parametrize("verb", [["tasks"], ["card", "CartPole-v1"], ["ledger", "list"], ["report", "none"]])
def test_every_verb_takes_quiet(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.run([*verb, "--quiet"])
    assert "unrecognized" not in capsys.readouterr().err.lower()


def test_quiet_hides_progress_and_no_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m.zip", gymnasium.make("CartPole-v1"))
    change(tmp_path / "m.zip", data=lambda settings: settings.update(_last_original_obs={":serialized:": ""}))
    command = ["refine", "CartPole-v1", "--policy", tmp_path / "m.zip", "--method", "none", "--workers", "1"]
    command += ["--evaluate.episodes", "2", "--out", tmp_path / "run", "--quiet"]
    assert cli.run([str(word) for word in command]) == 0
    told = capsys.readouterr().err
    assert "warning: the policy was trained with VecNormalize statistics, which are missing" in " ".join(told.split())
    assert "episodes" not in told


@pytest.mark.parametrize(
    "content",
    [
        "[]", "3", "null", '"x"', "", "{}", '{"format": 2}',
        '{"format": 2, "versions": []}', '{"format": 2, "versions": {"ultra-refine": "1"}, "command": []}',
        '{"format": 2, "versions": {"ultra-refine": "1"}, "command": "refine", "config": [], "done": {}}',
        '{"format": 2, "versions": {"ultra-refine": "1"}, "command": "refine", "config": {"task": "x"}, "done": [1]}',
        '{"format": 2, "versions": {"ultra-refine": "1"}, "command": "refine", "config": {"task": 1}, "done": {}}',
    ],
)  # fmt: skip
def test_a_damaged_run_is_called_that(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text(content)
    for verb in ("identify", "report", "prompt", "fidelity"):
        assert "run.json is damaged" in complaint(capsys, verb, tmp_path)


def test_an_option_for_other_tasks_names_the_task(capsys: pytest.CaptureFixture[str], policy: Path) -> None:
    error = complaint(capsys, "evaluate", policy, "--task", "CartPole-v1", "--sticky", "0.5")
    assert "CartPole-v1 takes no --sticky" in error
