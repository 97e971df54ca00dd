"""Stable-Baselines3 in and out: what real users bring, and what an attacker might."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from ultra import api
from ultra.cli import main as cli
from ultra.common.errors import PolicyError
from ultra.config import EvaluateConfig, PPOConfig, RefineConfig
from ultra.evaluation.evaluate import evaluate
from ultra.policies.io import load_policy, save_policy
from ultra.policies.normalizer import Normalizer
from ultra.policies.opening import open_policy
from ultra.policies.policy import Architecture, Policy, create_policy
from ultra.policies.sb3 import import_policy
from ultra.policies.sb3.exporting import export_policy
from ultra.policies.sb3.inert import UnsafePickleError, read_inert
from ultra.policies.sb3.statistics import read_statistics
from ultra.tasks import get_task
from ultra.tasks.spaces import Continuous, Discrete

torch = pytest.importorskip("torch", reason="needs torch: make install-sb3")
sb3 = pytest.importorskip("stable_baselines3", reason="needs Stable-Baselines3: make install-sb3")

SHARED = Path(__file__).parents[2] / "shared" / "policies"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the policies in ../shared/policies")


class Given(gymnasium.Env[Any, Any]):
    """An environment of given spaces; nothing happens in it."""

    def __init__(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observations, actions

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        return self.observation_space.sample(), float(np.sum(action)), False, False, {}


VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
PARTS = spaces.Dict({"place": VECTOR, "gear": spaces.Discrete(4), "switches": spaces.MultiBinary(2)})
ACTIONS = {
    "continuous": spaces.Box(np.array([-0.4, -2], np.float32), np.array([0.4, 1.5], np.float32)),
    "discrete": spaces.Discrete(3),
    "several choices": spaces.MultiDiscrete([2, 3, 4]),
    "switches": spaces.MultiBinary(3),
}


def save_model(path: Path, env: gymnasium.Env[Any, Any], algorithm: str = "PPO", **kwargs: Any) -> Any:
    """An SB3 model whose action net is not nearly zero, as a fresh one's is."""
    kind = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    model = getattr(sb3, algorithm)(kind, env, policy_kwargs=kwargs, device="cpu", seed=0)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(100.0)
        model.policy.action_net.bias.add_(torch.randn(model.policy.action_net.bias.shape))
    model.save(path)
    return model


def ours_of(policy: Policy, observations: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    space = policy.architecture.action_space
    noise = np.zeros((len(observations), space.size), np.float32)
    actions = space.clip(policy.decide(observations, noise).actions)
    return space.split(actions) if isinstance(space, Discrete) and space.parts else actions


def assert_acts_as(policy: Policy, model: Any, env: gymnasium.Env[Any, Any]) -> None:
    """The most likely actions, their probabilities and the values are the model's."""
    env.observation_space.seed(1)
    samples = [env.observation_space.sample() for _ in range(200)]
    flat = np.array([spaces.flatten(env.observation_space, sample) for sample in samples], np.float32)
    theirs = np.array([model.predict(sample, deterministic=True)[0] for sample in samples])
    np.testing.assert_allclose(ours_of(policy, flat), theirs, rtol=1e-4, atol=1e-5)
    decision = policy.decide(flat, np.zeros((200, policy.architecture.action_space.size), np.float32))
    actions = ours_of(policy, flat)
    own = policy.architecture.action_space
    raw = np.array(decision.actions if isinstance(own, Continuous) else actions)
    if isinstance(env.action_space, spaces.MultiBinary):
        raw = raw.astype(np.float32)
    with torch.no_grad():
        tensors, _ = model.policy.obs_to_tensor(
            {key: np.array([sample[key] for sample in samples]) for key in samples[0]}
            if isinstance(env.observation_space, spaces.Dict)
            else np.array(samples)
        )
        values, logs, _ = model.policy.evaluate_actions(tensors, torch.as_tensor(raw))
    np.testing.assert_allclose(decision.values, values[:, 0].numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(decision.log_probs, logs.numpy(), rtol=1e-4, atol=1e-4)


# -- in --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["PPO", "A2C"])
@pytest.mark.parametrize("actions", ACTIONS.values(), ids=ACTIONS)
def test_a_model_acts_as_it_did_in_stable_baselines3(
    algorithm: str, actions: spaces.Space[Any], tmp_path: Path
) -> None:
    env = Given(VECTOR, actions)
    model = save_model(tmp_path / "m.zip", env, algorithm)
    assert_acts_as(import_policy(tmp_path / "m.zip").policy, model, env)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kwargs",
    [
        {"net_arch": []},
        {"net_arch": [8]},
        {"net_arch": {"pi": [16], "vf": [8, 4]}},
        {"net_arch": {"pi": [], "vf": [8]}, "activation_fn": torch.nn.ReLU},
        {"net_arch": [8, 8, 8], "activation_fn": torch.nn.ReLU},
        {"activation_fn": torch.nn.ELU},
        {"activation_fn": torch.nn.SiLU},
        {"activation_fn": torch.nn.LeakyReLU},
    ],
    ids=str,
)
def test_any_layers_and_activations(kwargs: dict[str, Any], tmp_path: Path) -> None:
    """Also after saving and loading in our own format."""
    env = Given(VECTOR, ACTIONS["discrete"])
    model = save_model(tmp_path / "m.zip", env, **kwargs)
    policy = import_policy(tmp_path / "m.zip").policy
    assert_acts_as(policy, model, env)
    save_policy(policy, tmp_path / "own")
    assert_acts_as(load_policy(tmp_path / "own"), model, env)


@pytest.mark.slow
@pytest.mark.parametrize("observations", [PARTS, spaces.Discrete(5), spaces.MultiBinary(4)], ids=str)
def test_observations_of_other_kinds(observations: spaces.Space[Any], tmp_path: Path) -> None:
    env = Given(observations, ACTIONS["discrete"])
    model = save_model(tmp_path / "m.zip", env)
    assert_acts_as(import_policy(tmp_path / "m.zip").policy, model, env)


def change(path: Path, data: Callable[[dict[str, Any]], Any] = id, weights: Callable[[Any], Any] = id) -> None:
    """Change the parts of a zip in place; a function that returns something replaces the part."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    settings = json.loads(parts["data"])
    data(settings)
    parts["data"] = json.dumps(settings).encode()
    state = torch.load(io.BytesIO(parts["policy.pth"]), weights_only=True)
    weights(state)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    parts["policy.pth"] = buffer.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def test_layers_that_actor_and_critic_share_as_in_version_1(tmp_path: Path) -> None:
    """The trunk is that of the actor; what comes after is each one's own. Exported, it is written twice."""
    env = Given(VECTOR, ACTIONS["continuous"])
    model = save_model(tmp_path / "m.zip", env, net_arch={"pi": [8, 4], "vf": [8, 5]})
    state = model.policy.state_dict()
    for part in ("weight", "bias"):
        state[f"mlp_extractor.value_net.0.{part}"] = state[f"mlp_extractor.policy_net.0.{part}"]
    model.policy.load_state_dict(state)

    def share(weights: Any) -> None:
        for part in ("weight", "bias"):
            weights[f"mlp_extractor.shared_net.0.{part}"] = weights.pop(f"mlp_extractor.policy_net.0.{part}")
            del weights[f"mlp_extractor.value_net.0.{part}"]
            for net in ("policy_net", "value_net"):
                weights[f"mlp_extractor.{net}.0.{part}"] = weights.pop(f"mlp_extractor.{net}.2.{part}")

    change(tmp_path / "m.zip", weights=share)
    policy = import_policy(tmp_path / "m.zip").policy
    assert (policy.architecture.shared, policy.architecture.hidden, policy.architecture.critic_hidden) == (
        (8,), (4,), (5,)
    )  # fmt: skip
    assert_acts_as(policy, model, env)
    save_policy(policy, tmp_path / "own")
    assert_acts_as(load_policy(tmp_path / "own"), model, env)


@needs_shared
@pytest.mark.parametrize(
    ("name", "mean", "deviation"),
    [
        ("hopper_sub_optimal", 740, 31),
        ("hopper_near_optimal", 2449, 507),
        ("halfcheetah_sub_optimal", 507, 352),
        ("halfcheetah_near_optimal", 2003, 185),
    ],
)
def test_policies_that_others_trained(name: str, mean: float, deviation: float) -> None:
    """SB3 1.7 with gym 0.21, from a GPU; they score what is known of them, 10 episodes, seeds 0 to 9."""
    found = import_policy(SHARED / f"{name}.zip")
    assert not found.warnings
    assert "1.7.0" in found.notes[0]
    assert bool(found.policy.normalizer.count) == name.startswith("halfcheetah")
    estimate, _, _ = evaluate(get_task(name.partition("_")[0]), found.policy, list(range(10)), workers=1)
    assert abs(estimate.mean - mean) < 2 * deviation * np.sqrt(2 / 10)  # of two means of ten


# -- statistics ------------------------------------------------------------------------------------


def save_with_statistics(folder: Path, zip_name: str = "model.zip", statistics: str = "model_vecnormalize.pkl") -> Any:
    """A Pendulum model trained for a moment, and its statistics."""
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    vectorized = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]), clip_obs=2.0)
    model = sb3.PPO("MlpPolicy", vectorized, n_steps=32, batch_size=32, device="cpu", seed=0)
    model.learn(32)
    folder.mkdir(exist_ok=True)
    model.save(folder / zip_name)
    (folder / statistics).parent.mkdir(exist_ok=True)
    vectorized.save(str(folder / statistics))
    return model, vectorized


@pytest.mark.parametrize(
    ("zip_name", "statistics"),
    [
        ("model.zip", "model_vecnormalize.pkl"),
        ("model.zip", "vecnormalize.pkl"),
        ("model.zip", "vec_normalize.pkl"),
        ("model.zip", "model/vecnormalize.pkl"),
        ("rl_model_32_steps.zip", "rl_model_vecnormalize_32_steps.pkl"),
    ],
)
def test_statistics_are_found_under_the_usual_names(zip_name: str, statistics: str, tmp_path: Path) -> None:
    model, vectorized = save_with_statistics(tmp_path, zip_name, statistics)
    found = import_policy(tmp_path / zip_name)
    assert not found.warnings
    observations = np.random.default_rng(0).normal(0, 3, (50, 3)).astype(np.float32)
    theirs, _ = model.predict(vectorized.normalize_obs(observations), deterministic=True)
    np.testing.assert_allclose(ours_of(found.policy, observations), theirs, rtol=1e-4, atol=1e-5)
    scale = np.sqrt(vectorized.ret_rms.var + vectorized.epsilon)
    assert found.policy.normalizer.reward_scale == pytest.approx(float(scale))


def test_statistics_that_are_missing_are_a_warning_that_names_where_they_were_looked_for(tmp_path: Path) -> None:
    save_with_statistics(tmp_path, statistics="elsewhere.pkl")
    (warning,) = import_policy(tmp_path / "model.zip").warnings
    for part in (str(tmp_path), "model_vecnormalize.pkl", "vec_normalize.pkl", "--vecnormalize"):
        assert part in warning
    assert not import_policy(tmp_path / "model.zip", tmp_path / "elsewhere.pkl").warnings


def test_a_policy_without_statistics_is_no_warning(tmp_path: Path) -> None:
    save_model(tmp_path / "m.zip", Given(VECTOR, ACTIONS["discrete"]))
    assert not import_policy(tmp_path / "m.zip").warnings


def test_statistics_of_another_size_name_both_shapes(tmp_path: Path) -> None:
    save_with_statistics(tmp_path, statistics="vecnormalize.pkl")
    save_model(tmp_path / "other.zip", Given(spaces.Box(-1, 1, (7,)), ACTIONS["discrete"]))
    with pytest.raises(PolicyError, match=r"\(3,\).*\(7,\)"):
        import_policy(tmp_path / "other.zip")


def test_statistics_of_a_dict_observation(tmp_path: Path) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    parts = spaces.Dict({"b": VECTOR, "a": spaces.Box(-5, 5, (2,))})
    vectorized = VecNormalize(DummyVecEnv([lambda: Given(parts, ACTIONS["discrete"])]))
    vectorized.reset()
    vectorized.obs_rms["a"].mean[:] = [1, 2]
    vectorized.obs_rms["b"].mean[:] = [3, 4, 5]
    vectorized.save(str(tmp_path / "v.pkl"))
    order = [{"a": [1, 2], "b": [3, 4, 5]}[key] for key in parts.spaces]
    np.testing.assert_array_equal(read_statistics(tmp_path / "v.pkl").mean, np.concatenate(order))


# -- what an attacker might bring ------------------------------------------------------------------


class Marks:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "run")


def test_hostile_statistics_run_nothing_unless_trusted(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "vecnormalize.pkl"
    path.write_bytes(pickle.dumps(Marks(marker)))
    with pytest.raises(PolicyError, match="--trust-pickle") as caught:
        read_statistics(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    with pytest.raises(PolicyError, match=r"no VecNormalize|cannot be unpickled"):
        read_statistics(path, trust_pickle=True)
    assert marker.exists()


def test_a_hostile_zip_runs_nothing(tmp_path: Path) -> None:
    """Neither its settings, whose pickles are not read, nor its weights."""
    import base64

    marker = tmp_path / "marker"
    save_model(tmp_path / "m.zip", Given(VECTOR, ACTIONS["discrete"]))
    hostile = base64.b64encode(pickle.dumps(Marks(marker))).decode()

    def poison(data: dict[str, Any]) -> None:
        for value in data.values():
            if isinstance(value, dict) and ":serialized:" in value:
                value[":serialized:"] = hostile
        data["lr_schedule"] = {":type:": "function", ":serialized:": hostile}

    change(tmp_path / "m.zip", data=poison)
    import_policy(tmp_path / "m.zip")
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        data = archive.read("data")
    for protocol in (None, "legacy"):
        buffer = io.BytesIO()
        torch.save({"log_std": Marks(marker)}, buffer, _use_new_zipfile_serialization=protocol is None)
        with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
            archive.writestr("data", data)
            archive.writestr("policy.pth", buffer.getvalue())
        with pytest.raises(PolicyError, match="cannot be read safely") as caught:
            import_policy(tmp_path / "w.zip")
        assert "\n" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(print),
        pickle.dumps(OrderedDict(a=pickle.loads)),
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"cstable_baselines3.common.vec_env.vec_normalize\nVecNormalize\n)\x81}b",
        b"\x80\x04P1\n.",
        b"",
        b"\x80",
    ],
)
def test_pickles_that_are_no_data_are_refused(content: bytes) -> None:
    with pytest.raises(UnsafePickleError):
        read_inert(content)


def test_arrays_of_every_kind_and_protocol_come_out_of_the_inert_reader() -> None:
    arrays = [
        np.arange(6).astype(kind).reshape(2, 3, order=order)  # type: ignore[call-overload]
        for kind in ("f4", "f8", "i8", "u1", "?", ">f8") for order in "CF"
    ]  # fmt: skip
    for protocol in (2, 3, 4, 5):
        for array in arrays:
            found = read_inert(pickle.dumps({"a": [array]}, protocol=protocol))["a"][0]
            found = getattr(found, "value", found)
            np.testing.assert_array_equal(found, array)
        assert read_inert(pickle.dumps(np.float64(1.5), protocol=protocol)) == 1.5


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("policy.pth", b"")
        with archive.open("data", "w", force_zip64=True) as part:
            for _ in range(300):
                part.write(bytes(2**20))


def truncated(path: Path) -> None:
    save_model(path, Given(VECTOR, ACTIONS["discrete"]))
    path.write_bytes(path.read_bytes()[:-2000])


def damaged(path: Path) -> None:
    save_model(path, Given(VECTOR, ACTIONS["discrete"]))
    content = bytearray(path.read_bytes())
    content[len(content) // 3 :: 97] = bytes(len(content[len(content) // 3 :: 97]))
    path.write_bytes(content)


def of_dqn(path: Path) -> None:
    sb3.DQN("MlpPolicy", Given(VECTOR, ACTIONS["discrete"]), buffer_size=10, device="cpu").save(path)


def of_sac(path: Path) -> None:
    sb3.SAC("MlpPolicy", Given(VECTOR, ACTIONS["continuous"]), buffer_size=10, device="cpu").save(path)


def not_a_zip(path: Path) -> None:
    path.write_text("model")


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "hello")


def not_finite(path: Path) -> None:
    save_model(path, Given(VECTOR, ACTIONS["discrete"]))
    change(path, weights=lambda state: state["action_net.weight"].fill_(float("nan")))


def own_activation(path: Path) -> None:
    save_model(path, Given(VECTOR, ACTIONS["discrete"]), activation_fn=torch.nn.Hardswish)


def odd_shapes(path: Path) -> None:
    save_model(path, Given(VECTOR, ACTIONS["discrete"]))
    change(path, weights=lambda state: state.update({"mlp_extractor.policy_net.2.weight": torch.zeros(5, 9)}))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (bomb, r"unpacks to 314,572,800 bytes, more than"),
        (truncated, "cut off"),
        (damaged, "m.zip"),
        (of_dqn, "saved by DQN"),
        (of_sac, "saved by SAC"),
        (not_a_zip, "not a zip"),
        (other_zip, "holds no 'data'"),
        (not_finite, "not finite"),
        (own_activation, "Hardswish"),
        (odd_shapes, r"\(9, 5\), not \(64, 5\)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_read_is_one_clear_line(make: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    make(tmp_path / "m.zip")
    with pytest.raises(PolicyError, match=says) as caught:
        open_policy(tmp_path / "m.zip")
    assert "\n" not in str(caught.value)
    assert "m.zip" in str(caught.value)


def test_without_torch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "m.zip", Given(VECTOR, ACTIONS["discrete"]))
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(PolicyError, match=r"ultra-refine\[sb3\]"):
        import_policy(tmp_path / "m.zip")


@pytest.mark.parametrize(("task", "says"), [("CartPole-v1", r"\(3,\).*\(4,\)"), ("Pendulum-v1", r"Discrete\(3\).*Box")])
def test_a_policy_for_other_spaces_names_both(
    task: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    save_model(tmp_path / "m.zip", Given(VECTOR, ACTIONS["discrete"]))
    command = ["refine", task, "--policy", str(tmp_path / "m.zip"), "--out", str(tmp_path / "run"), "--quiet"]
    assert cli.run(command) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(says, error) and "\n" not in error
    assert not (tmp_path / "run").exists()


# -- out -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("actions", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_an_exported_policy_acts_alike_in_stable_baselines3(
    actions: spaces.Space[Any], activation: str, tmp_path: Path
) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    gymnasium.register("Given-v0", lambda: Given(VECTOR, actions), max_episode_steps=9)  # type: ignore[arg-type]
    try:
        task = get_task("Given-v0")
    finally:
        del gymnasium.registry["Given-v0"]
    rng = np.random.default_rng(0)
    policy = create_policy(
        Architecture(3, task.action_space, (8, 6), critic_hidden=(5,), shared=(7,), activation=activation), rng
    )
    policy.params["actor"][-1]["w"] *= 100.0
    normalizer = Normalizer(rng.normal(size=3), rng.uniform(0.5, 2, 3), 100.0, 4.0, 100.0, clip=1.5)
    policy = Policy(policy.architecture, policy.params, normalizer)
    gymnasium.register("Given-v0", lambda: Given(VECTOR, actions), max_episode_steps=9)  # type: ignore[arg-type]
    try:
        zipped, statistics = export_policy(policy, task, tmp_path / "out")
        vectorized = VecNormalize.load(str(statistics), DummyVecEnv([task.make_environment]))
    finally:
        del gymnasium.registry["Given-v0"]
    model = sb3.PPO.load(zipped, device="cpu")
    observations = rng.uniform(-3, 3, (200, 3)).astype(np.float32)
    theirs, _ = model.predict(vectorized.normalize_obs(observations), deterministic=True)
    np.testing.assert_allclose(ours_of(policy, observations), theirs, rtol=1e-4, atol=1e-5)
    again = import_policy(zipped)
    assert not again.warnings
    np.testing.assert_allclose(ours_of(again.policy, observations), theirs, rtol=1e-4, atol=1e-5)
    assert again.policy.normalizer.reward_scale == pytest.approx(2.0)


def test_a_refined_policy_scores_the_same_in_stable_baselines3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a zip to a zip: refined here, loaded and scored there on the same seeds."""
    save_model(tmp_path / "m.zip", gymnasium.make("CartPole-v1"), net_arch=[16], activation_fn=torch.nn.ReLU)
    ppo = PPOConfig(environments=4, rollout_steps=64, minibatch=64)
    config = RefineConfig(
        task="CartPole-v1", policy=str(tmp_path / "m"), method="ppo", steps=1024, workers=1, ppo=ppo,
        evaluate=EvaluateConfig(episodes=3),
    )  # fmt: skip
    api.refine(config, tmp_path / "run")
    last = tmp_path / "run" / "policy" / "last"
    assert cli.run(["export", str(last), "--task", "CartPole-v1", "--out", str(tmp_path / "new.zip")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "new.zip")
    model, env = sb3.PPO.load(tmp_path / "new.zip", device="cpu"), gymnasium.make("CartPole-v1")
    returns = []
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    _, ours, _ = evaluate(get_task("CartPole-v1"), load_policy(last), [0, 1, 2], workers=1)
    assert ours.tolist() == returns


@pytest.mark.slow
def test_the_starting_return_is_shown_first_and_one_near_chance_is_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_with_statistics(tmp_path, statistics="elsewhere.pkl")
    command = ["refine", "Pendulum-v1", "--policy", str(tmp_path / "model.zip"), "--method", "none",
               "--workers", "1", "--evaluate.episodes", "2", "--out", str(tmp_path / "run")]  # fmt: skip
    assert cli.run(command) == 0
    told = " ".join(capsys.readouterr().err.split())
    poor = told.index("not clearly better than an untrained one")
    assert told.index("VecNormalize statistics, which are missing") < poor
    assert told.index("return -") < poor
