"""Pong from pixels: the screens, exact snapshots, and the convolutional policy through the whole pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.short_tasks import registered

from ultra import api
from ultra.collection.collect import collect
from ultra.collection.trajectories import load_trajectory, save_trajectory
from ultra.common.errors import PolicyError, UltraError
from ultra.config import (
    AnalyseConfig,
    CollectConfig,
    EvaluateConfig,
    GuidanceConfig,
    Method,
    PPOConfig,
    RefineConfig,
    StateMaskConfig,
    TrainConfig,
    VerifyConfig,
)
from ultra.evaluation.evaluate import evaluate
from ultra.finetuning.novelty import Novelty
from ultra.policies import networks
from ultra.policies.io import load_policy, save_policy
from ultra.policies.normalizer import Normalizer
from ultra.policies.policy import Architecture, Policy, create_policy, flatten
from ultra.tasks import Task, get_task, shipped
from ultra.tasks.pong import GYMNASIUM_ACTIONS, PongBatch, draw_noops
from ultra.tasks.pong_pixels import IMAGE, PixelPongBatch, shrink

pytestmark = pytest.mark.slow

TINY = PPOConfig(environments=2, rollout_steps=8, minibatch=8, epochs=1)


def brief_pixels() -> Task:
    return replace(shipped.pong_pixels(), name="brief-pixels", time_limit=24)


@pytest.fixture(scope="module", autouse=True)
def _brief_task() -> Iterator[None]:
    """The task with episodes that are cut off early."""
    with registered({"brief-pixels": f"{__name__}:brief_pixels"}):
        yield


def some_policy(seed: int = 0) -> Policy:
    task = get_task("pong-pixels")
    shape = Architecture(task.observation_size, task.action_space, (), task.image)
    return create_policy(shape, np.random.default_rng(seed))


def test_images_are_those_of_gymnasiums_own_screens() -> None:
    """Built frame by frame from an environment that gives its screen itself."""
    gymnasium.register_envs(ale_py)
    env: Any = gymnasium.make("ALE/Pong-v5", obs_type="grayscale", frameskip=1, repeat_action_probability=0.0)
    screen, _ = env.reset(seed=3)
    for _ in range(draw_noops(3)):
        screen, *_ = env.step(0)
    small = [shrink(screen)] * 4
    batch = PixelPongBatch(2)
    evaluation: Any = get_task("pong-pixels").make_environment()
    shown = batch.reset([0, 1], [3, 4])[0]
    np.testing.assert_array_equal(evaluation.reset(seed=3)[0], shown)
    rng = np.random.default_rng(0)
    for _ in range(60):
        np.testing.assert_array_equal(shown.reshape(IMAGE), np.stack(small[-4:], axis=2))
        action = int(rng.integers(3))
        screens = [env.step(GYMNASIUM_ACTIONS[action])[0] for _ in range(4)]
        small.append(shrink(np.maximum(*screens[-2:])))
        step = batch.step(np.array([action, 0]))
        shown = step.observations[0]
        seen, reward, *_ = evaluation.step(action)
        np.testing.assert_array_equal(seen, shown)
        assert reward == step.rewards[0]


def test_shrinking_averages_over_areas() -> None:
    flat = np.full((210, 160), 137, np.uint8)
    assert (shrink(flat) == 137).all()
    half = np.zeros((210, 160), np.uint8)
    half[:105] = 200
    assert (shrink(half)[:42] == 200).all()
    assert (shrink(half)[42:] == 0).all()
    dot = np.zeros((210, 160), np.uint8)
    dot[0, 0] = 255
    assert shrink(dot)[0, 0] == round(255 / (210 / 84) / (160 / 84))


def test_facts_rewards_and_ends_are_those_of_pong() -> None:
    pixels, objects = PixelPongBatch(2, sticky=0.25), PongBatch(2, sticky=0.25)
    pixels.reset([0, 1], [5, 6])
    objects.reset([0, 1], [5, 6])
    rng = np.random.default_rng(1)
    for _ in range(200):
        actions = rng.integers(0, 3, 2)
        one, other = pixels.step(actions), objects.step(actions)
        np.testing.assert_array_equal(one.rewards, other.rewards)
        np.testing.assert_array_equal(pixels.facts(), objects.facts())
    assert get_task("pong-pixels").card.facts == get_task("pong").card.facts


def test_restore_and_replay_is_bit_identical() -> None:
    """In another batch, in other places, whose screens show something else."""
    batch, other = PixelPongBatch(3, sticky=0.25), PixelPongBatch(3, sticky=0.25)
    batch.reset(range(3), [1, 2, 3])
    other.reset(range(3), [7, 8, 9])
    actions = np.random.default_rng(2).integers(0, 3, (60, 3))
    for row in actions[:31]:
        shown = batch.step(row).observations
        other.step(row[::-1])
    states = batch.snapshots(range(3))
    np.testing.assert_array_equal(other.restore([2, 0, 1], states), shown)
    for row in actions[31:]:
        wanted, again = batch.step(row), other.step(row[[1, 2, 0]])
        np.testing.assert_array_equal(again.observations[[2, 0, 1]], wanted.observations)
        np.testing.assert_array_equal(again.rewards[[2, 0, 1]], wanted.rewards)
    np.testing.assert_array_equal(batch.facts(), other.facts()[[2, 0, 1]])


def test_worker_processes_pass_images_on() -> None:
    task = get_task("pong-pixels")
    local, workers = task.make_local_batch(2), task.make_batch(2, 2)
    try:
        np.testing.assert_array_equal(workers.reset([0, 1], [1, 2]), local.reset([0, 1], [1, 2]))
        for _ in range(5):
            actions = np.array([1, 2])
            one, other = workers.step(actions), local.step(actions)
            assert one.observations.dtype == np.uint8
            np.testing.assert_array_equal(one.observations, other.observations)
    finally:
        workers.close()


def reference_features(layers: list[dict[str, Any]], image: NDArray[Any]) -> NDArray[np.float64]:
    """The network by hand, one output at a time."""
    x = image.astype(np.float64) / 255
    for layer, (size, stride, filters) in zip(layers[:3], networks.KERNELS, strict=True):
        weight, bias = np.asarray(layer["w"], np.float64), np.asarray(layer["b"])
        rows, columns = ((length - size) // stride + 1 for length in x.shape[:2])
        y = np.zeros((rows, columns, filters))
        for i, j in np.ndindex(rows, columns):
            patch = x[i * stride : i * stride + size, j * stride : j * stride + size]
            y[i, j] = np.tensordot(patch, weight, 3) + bias
        x = np.maximum(y, 0)
    result: NDArray[np.float64] = np.maximum(x.reshape(-1) @ np.asarray(layers[3]["w"]) + np.asarray(layers[3]["b"]), 0)
    return result


def test_the_network_is_the_one_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    layers = networks.create(IMAGE, rng)
    assert [layer["w"].shape for layer in layers] == [(8, 8, 4, 32), (4, 4, 32, 64), (3, 3, 64, 64), (3136, 512)]
    image = rng.integers(0, 256, IMAGE).astype(np.uint8)
    found = networks.forward(layers, jnp.asarray(image.reshape(1, -1), jnp.float32))
    np.testing.assert_allclose(found[0], reference_features(layers, image), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("side", "size", "stride"), [(20, 8, 4), (23, 8, 4), (9, 4, 2), (7, 3, 1)])
def test_a_convolution_and_its_gradient_are_those_of_xla(side: int, size: int, stride: int) -> None:
    """Also where filters do not reach the last pixels."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, side, side, 3)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(size, size, 3, 5)), jnp.float32)

    def own(x: Any, weight: Any) -> Any:
        return networks.convolve(x, weight, stride)

    def theirs(x: Any, weight: Any) -> Any:
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, weight, (stride, stride), "VALID", dimension_numbers=layout)

    np.testing.assert_allclose(own(x, weight), theirs(x, weight), rtol=1e-4, atol=1e-4)
    for place in (0, 1):
        found, wanted = (jax.grad(lambda *a, f=f: jnp.sin(f(*a)).sum(), place)(x, weight) for f in (own, theirs))
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_a_policy_of_images_is_saved_and_loaded(tmp_path: Path) -> None:
    policy = some_policy()
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert loaded.architecture == policy.architecture
    for name, array in flatten(policy.params).items():
        np.testing.assert_array_equal(array, flatten(loaded.params)[name])
    header = json.loads((tmp_path / "policy" / "policy.json").read_text())
    for image in ([84, 84, 3], [84, 84], [28, 1008, 1]):
        (tmp_path / "policy" / "policy.json").write_text(json.dumps({**header, "image": image}))
        with pytest.raises(PolicyError):
            load_policy(tmp_path / "policy")
    with pytest.raises(UltraError, match=r"images of 20 x 20 x 1 .* at least 36 x 36"):
        Architecture(400, get_task("pong").action_space, (), (20, 20, 1))


def test_bytes_and_floats_are_the_same_image() -> None:
    """Evaluation holds observations as floats."""
    policy = some_policy()
    images = np.random.default_rng(0).integers(0, 256, (3, 84 * 84 * 4)).astype(np.uint8)
    noise = np.zeros((3, 3), np.float32)
    one, other = policy.decide(images, noise), policy.decide(images.astype(np.float32), noise)  # type: ignore[arg-type]
    np.testing.assert_allclose(one.values, other.values, rtol=1e-5)
    np.testing.assert_array_equal(one.actions, other.actions)


def test_episodes_are_collected_as_bytes_and_stored(tmp_path: Path) -> None:
    task, policy = get_task("pong-pixels"), some_policy()
    (episode,) = collect(task, policy, [3], 0.99, longest=20, workers=1)
    assert episode.observations.dtype == np.uint8
    save_trajectory(episode, tmp_path / "episode.npz")
    assert (tmp_path / "episode.npz").stat().st_size < 200_000
    again = load_trajectory(tmp_path / "episode.npz")
    np.testing.assert_array_equal(again.observations, episode.observations)
    state, steps = again.snapshot(19, task.make_local_batch(1), task.action_space)
    assert steps == 3
    np.testing.assert_array_equal(task.make_local_batch(1).restore([0], [state])[0], episode.observations[19])


def test_training_from_scratch_learns_no_pixel_statistics_and_is_repeatable(tmp_path: Path) -> None:
    config = TrainConfig("brief-pixels", steps=48, workers=1, ppo=TINY, evaluate=EvaluateConfig(2))
    for name in ("one", "other"):
        api.train(config, tmp_path / name)
    one, other = (load_policy(tmp_path / name) for name in ("one", "other"))
    assert one.normalizer.count == 0
    for name, array in flatten(one.params).items():
        np.testing.assert_array_equal(array, flatten(other.params)[name])
        assert name.endswith("b") or (array != flatten(some_policy().params)[name]).any()
    estimate, _, steps = evaluate(get_task("brief-pixels"), one, [1, 2], workers=1)
    assert steps == 48
    assert -2 <= estimate.mean <= 2


@pytest.mark.parametrize(("method", "analyst"), [("ultra-ra", "random"), ("rice", "search")])
def test_images_are_refined_like_anything_else(method: Method, analyst: str, tmp_path: Path) -> None:
    """Advice is verified from snapshots; a mask network and novelty see the images as well."""
    save_policy(some_policy(), tmp_path / "policy")
    config = RefineConfig(
        "brief-pixels",
        str(tmp_path / "policy"),
        method=method,
        analyst=analyst,
        steps=320,
        workers=1,
        collect=CollectConfig(episodes=2, share=0.2),
        analyse=AnalyseConfig(states=2, share=0.2, candidates=2, plan_steps=2, horizon=4),
        verify=VerifyConfig(share=0.4, branches=8),
        guidance=GuidanceConfig(imitation=0.0),
        statemask=StateMaskConfig(share=0.1),
        ppo=TINY,
        evaluate=EvaluateConfig(2),
    )
    result = api.refine(config, tmp_path / "run")
    assert result["budget"]["train"] > 0
    if method == "ultra-ra":
        assert result["budget"]["verify"] > 0
        assert result["audit"]["suggestions"] == 2
    last = load_policy(tmp_path / "run" / "policy" / "last")
    start = load_policy(tmp_path / "policy")
    assert (flatten(last.params)["features.0.w"] != flatten(start.params)["features.0.w"]).any()


def test_novelty_sees_a_coarse_copy_of_the_newest_screen() -> None:
    novelty = Novelty(Normalizer.identity(84 * 84 * 4), 1e-3, np.random.default_rng(0), IMAGE)
    images: NDArray[Any] = np.zeros((2, *IMAGE), np.uint8)
    images[1, 40:44, 40:44, :3] = 255  # only in older screens
    bonus = novelty.bonus(images.reshape(2, -1))
    assert bonus[0] == bonus[1]
    images[1, 40:44, 40:44, 3] = 255
    bonus = novelty.bonus(images.reshape(2, -1))
    assert bonus[0] != bonus[1]
