"""Policies of Stable-Baselines3 that look at images: NatureCNN in and out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from ultra import api
from ultra.common.errors import PolicyError
from ultra.config import EvaluateConfig, PPOConfig, RefineConfig
from ultra.policies.io import load_policy, save_policy
from ultra.policies.opening import open_policy
from ultra.policies.policy import Architecture, Policy, create_policy
from ultra.policies.sb3 import import_policy
from ultra.policies.sb3.exporting import export_policy
from ultra.tasks import Task, get_task

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch", reason="needs torch: make install-sb3")
sb3 = pytest.importorskip("stable_baselines3", reason="needs Stable-Baselines3: make install-sb3")


class Pictures(gymnasium.Env[Any, Any]):
    """Random images; nothing happens in it."""

    def __init__(self, shape: tuple[int, ...] = (40, 40, 3), actions: int = 3) -> None:
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.action_space = spaces.Discrete(actions)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._draw(), {}

    def _draw(self) -> Any:
        shape = self.observation_space.shape
        assert shape is not None
        return self.np_random.integers(0, 256, shape).astype(np.uint8)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._draw(), float(action == 0), False, False, {}


@pytest.fixture(scope="module")
def task() -> Any:
    gymnasium.register("Pictures-v0", Pictures, max_episode_steps=9)  # type: ignore[arg-type]
    yield get_task("Pictures-v0")
    del gymnasium.registry["Pictures-v0"]


def a_model(env: Any = None, algorithm: str = "PPO", kind: str = "CnnPolicy", **kwargs: Any) -> Any:
    """A model whose biases are not zero, and whose action net is not nearly zero, as a fresh one's are."""
    steps = {"PPO": {"n_steps": 2, "batch_size": 2}, "A2C": {}}[algorithm]
    model = getattr(sb3, algorithm)(kind, env or Pictures(), policy_kwargs=kwargs, device="cpu", seed=0, **steps)
    with torch.no_grad():
        for name, array in model.policy.named_parameters():
            if name.endswith("bias"):
                array.add_(0.1 * torch.randn(array.shape))
        model.policy.action_net.weight.mul_(100.0)
    return model


def some_images(shape: tuple[int, ...]) -> Any:
    """Coarse patterns under noise: noise alone looks the same to a network everywhere."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (20, 4, 4, shape[2]))
    rows, columns = (np.arange(length) * 4 // length for length in shape[:2])
    return (coarse[:, rows][:, :, columns] * rng.uniform(0, 1, (20, *shape))).astype(np.uint8)


def assert_acts_as(policy: Policy, model: Any) -> None:
    """On images as an environment gives them: predictions, every action's probability, values."""
    image = policy.architecture.image
    assert image is not None
    images = some_images(image)
    flat = images.reshape(20, -1)
    count = policy.architecture.action_space.size
    decision = policy.decide(flat, np.zeros((20, count), np.float32))
    np.testing.assert_array_equal(decision.actions, model.predict(images, deterministic=True)[0])
    tensor, _ = model.policy.obs_to_tensor(images)
    with torch.no_grad():
        theirs = model.policy.get_distribution(tensor).distribution.probs.numpy()
        values = model.policy.predict_values(tensor)[:, 0].numpy()
    assert theirs.std(axis=0).max() > 0.01  # it does look
    for action in range(count):
        certain = np.zeros((20, count), np.float32)
        certain[:, action] = 1e6  # noise that makes it the chosen one
        found = policy.decide(flat, certain)
        np.testing.assert_allclose(np.exp(found.log_probs), theirs[:, action], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(decision.values, values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("algorithm", "shape", "kwargs"),
    [
        ("PPO", (84, 84, 4), {}),
        ("A2C", (40, 40, 3), {}),
        ("PPO", (36, 36, 1), {"net_arch": {"pi": [8], "vf": [6, 4]}, "activation_fn": torch.nn.ReLU}),
    ],
    ids=str,
)
def test_a_model_of_images_acts_as_it_did(
    algorithm: str, shape: tuple[int, ...], kwargs: dict[str, Any], tmp_path: Path
) -> None:
    """Also after saving and loading in our own format."""
    model = a_model(Pictures(shape), algorithm, **kwargs)
    model.save(tmp_path / "m.zip")
    found = import_policy(tmp_path / "m.zip")
    assert not found.warnings
    assert found.policy.architecture.image == shape
    assert_acts_as(found.policy, model)
    save_policy(found.policy, tmp_path / "own")
    assert_acts_as(load_policy(tmp_path / "own"), model)


def test_one_extractor_as_version_1_names_it(tmp_path: Path) -> None:
    from tests.test_sb3 import change

    model = a_model()
    model.save(tmp_path / "m.zip")

    def name_once(weights: Any) -> None:
        for name in [name for name in weights if name.startswith(("pi_features", "vf_features"))]:
            del weights[name]

    change(tmp_path / "m.zip", weights=name_once)
    assert_acts_as(import_policy(tmp_path / "m.zip").policy, model)


@pytest.mark.parametrize("hidden", [(), (16,)], ids=str)
def test_an_exported_policy_of_images_acts_alike(hidden: tuple[int, ...], task: Task, tmp_path: Path) -> None:
    """And comes back the same."""
    shape = Architecture(task.observation_size, task.action_space, hidden, (40, 40, 3), shared=hidden)
    policy = create_policy(shape, np.random.default_rng(0))
    policy.params["actor"][-1]["w"] *= 100.0
    (zipped,) = export_policy(policy, task, tmp_path / "out")
    model = sb3.PPO.load(zipped, device="cpu")
    assert_acts_as(policy, model)
    assert_acts_as(import_policy(zipped).policy, model)


def test_pong_from_pixels_is_exported(tmp_path: Path) -> None:
    pong = get_task("pong-pixels")
    policy = create_policy(
        Architecture(pong.observation_size, pong.action_space, (), pong.image), np.random.default_rng(0)
    )
    policy.params["actor"][-1]["w"] *= 100.0
    (zipped,) = export_policy(policy, pong, tmp_path / "out")
    assert_acts_as(policy, sb3.PPO.load(zipped, device="cpu"))


def test_a_model_of_images_is_refined_in_an_environment_of_ones_own(task: Task, tmp_path: Path) -> None:
    """From a zip to a zip; training changes the convolutions too."""
    model = a_model()
    model.save(tmp_path / "m.zip")
    config = RefineConfig(
        task="Pictures-v0", policy=str(tmp_path / "m.zip"), method="ppo", steps=32, workers=1,
        ppo=PPOConfig(environments=2, rollout_steps=8, minibatch=8, epochs=1), evaluate=EvaluateConfig(2),
    )  # fmt: skip
    api.refine(config, tmp_path / "run")
    last = load_policy(tmp_path / "run" / "policy" / "last")
    (zipped,) = export_policy(last, task, tmp_path / "new")
    refined = sb3.PPO.load(zipped, device="cpu")
    assert_acts_as(last, refined)
    before, after = (m.policy.features_extractor.cnn[0].weight.detach().numpy() for m in (model, refined))
    assert (before != after).any()


def two_extractors() -> Any:
    return a_model(share_features_extractor=False)


def other_size() -> Any:
    return a_model(features_extractor_kwargs={"features_dim": 64})


def not_scaled() -> Any:
    return a_model(normalize_images=False)


def oblong() -> Any:
    return a_model(Pictures((40, 60, 3)))


def in_a_dict() -> Any:
    env = Pictures()
    env.observation_space = spaces.Dict({"seen": env.observation_space})
    return a_model(env, kind="MultiInputPolicy")


class Twice(sb3.common.torch_layers.NatureCNN):  # type: ignore[misc, name-defined]
    """NatureCNN with one more layer."""

    def __init__(self, space: Any) -> None:
        super().__init__(space)
        self.linear.append(torch.nn.Linear(512, 512))


def own_extractor() -> Any:
    return a_model(features_extractor_class=Twice)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (two_extractors, "share_features_extractor=False"),
        (other_size, r"linear.0.weight .* is \(64, 64\), not \(512, 64\)"),
        (not_scaled, "normalize_images=False"),
        (oblong, "images of 40 x 60 x 3 .* square ones"),
        (in_a_dict, "only NatureCNN"),
        (own_extractor, "only NatureCNN"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_read_of_images_is_one_clear_line(make: Callable[[], Any], says: str, tmp_path: Path) -> None:
    make().save(tmp_path / "m.zip")
    with pytest.raises(PolicyError, match=says) as caught:
        open_policy(tmp_path / "m.zip")
    assert "\n" not in str(caught.value)
    assert "m.zip" in str(caught.value)
