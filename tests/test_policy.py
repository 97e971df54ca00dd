"""Policies: exact files, clear errors for damaged ones, and the distributions that they sample from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save
from scipy.special import log_softmax, softmax
from scipy.stats import norm

from ultra.common.errors import PolicyError, UltraError
from ultra.policies.io import load_policy, save_policy
from ultra.policies.normalizer import Normalizer
from ultra.policies.policy import (
    Architecture,
    Policy,
    actor_critic,
    check_fits,
    create_policy,
    flatten,
    log_prob_function,
    normalize,
    unflatten,
)
from ultra.tasks.spaces import ActionSpace, Continuous, Discrete

Arrays = dict[str, NDArray[Any]]

TORQUES = Continuous((-1.0, -2.0), (1.0, 2.0))
SPACES = [pytest.param(Discrete(3), id="discrete"), pytest.param(TORQUES, id="continuous")]


def make_policy(space: ActionSpace, seed: int = 0, hidden: tuple[int, ...] = (8, 8)) -> Policy:
    """A policy as after some training: no weight at its first value, statistics learnt."""
    rng = np.random.default_rng(seed)
    policy = create_policy(Architecture(4, space, hidden), rng)
    params = {name: array + 0.3 * rng.standard_normal(array.shape) for name, array in flatten(policy.params).items()}
    normalizer = Normalizer.identity(4).with_observations(rng.normal(3, 2, (50, 4))).with_returns(rng.normal(size=40))
    return replace(
        policy, params=unflatten({k: v.astype(np.float32) for k, v in params.items()}), normalizer=normalizer
    )


def observations(count: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(3, 2, (count, 4)).astype(np.float32)


def assert_decides_alike(policy: Policy, other: Policy) -> None:
    seen, noise = observations(32), policy.draw_noise(np.random.default_rng(2), (32,))
    for ours, theirs in zip(policy.decide(seen, noise), other.decide(seen, noise), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> ActionSpace:
    value: ActionSpace = request.param
    return value


# Files


def test_a_saved_policy_is_read_back_exactly(space: ActionSpace, tmp_path: Path) -> None:
    policy = make_policy(space)
    save_policy(policy, tmp_path / "new" / "policy", {"task": "pong", "seed": 3})
    loaded = load_policy(tmp_path / "new" / "policy")
    assert loaded.architecture == policy.architecture
    for name, array in flatten(policy.params).items():
        np.testing.assert_array_equal(flatten(loaded.params)[name], array)
    np.testing.assert_array_equal(loaded.normalizer.mean, policy.normalizer.mean)
    np.testing.assert_array_equal(loaded.normalizer.variance, policy.normalizer.variance)
    for name in ("count", "reward_variance", "reward_count", "clip"):
        assert getattr(loaded.normalizer, name) == getattr(policy.normalizer, name)
    assert_decides_alike(policy, loaded)
    np.testing.assert_array_equal(loaded.values(observations(5)), policy.values(observations(5)))
    about = json.loads((tmp_path / "new" / "policy" / "policy.json").read_text())["about"]
    assert about == {"task": "pong", "seed": 3}


def test_saving_again_replaces_the_policy_and_leaves_no_other_files(tmp_path: Path) -> None:
    save_policy(make_policy(TORQUES), tmp_path)
    second = make_policy(Discrete(5), seed=9)
    save_policy(second, tmp_path)
    assert_decides_alike(load_policy(tmp_path), second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.json", "weights.safetensors"]


def test_a_policy_that_is_not_finite_is_not_saved_and_the_old_one_stays(tmp_path: Path) -> None:
    policy = make_policy(TORQUES)
    save_policy(policy, tmp_path)
    broken = replace(policy, params={**policy.params, "log_std": jnp.array([0.0, jnp.nan])})
    with pytest.raises(PolicyError, match=r"1 of 2 weights of 'log_std' are not finite"):
        save_policy(broken, tmp_path)
    assert_decides_alike(load_policy(tmp_path), policy)


def test_a_place_where_nothing_can_be_saved_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "policy").write_text("a file where the directory should be")
    for place in (tmp_path / "policy", tmp_path / "policy" / "newest"):
        with pytest.raises(UltraError, match=f"cannot make the directory {place}") as caught:
            save_policy(make_policy(TORQUES), place)
        assert "\n" not in str(caught.value)


def read_error(path: Path) -> str:
    """The message with which a policy is refused: one line that names the place."""
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_missing_files_are_named(tmp_path: Path) -> None:
    assert "no policy at" in read_error(tmp_path / "nowhere")
    assert "holds no policy.json" in read_error(tmp_path)
    (tmp_path / "file.zip").write_bytes(b"PK")
    assert "policy.json" in read_error(tmp_path / "file.zip")
    save_policy(make_policy(TORQUES), tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    assert "missing a file" in read_error(tmp_path)


@cache
def saved_files(space: ActionSpace) -> dict[str, bytes]:
    """Names and contents of a saved policy's files, saved once to be damaged often."""
    with TemporaryDirectory() as folder:
        save_policy(make_policy(space), Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def write_files(directory: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (directory / name).write_bytes(content)


@pytest.mark.parametrize("name", ["policy.json", "weights.safetensors"])
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_a_truncated_file_is_an_error(name: str, tmp_path: Path, data: st.DataObject) -> None:
    files = saved_files(Discrete(3))
    # The last byte of policy.json is its newline.
    length = data.draw(st.integers(0, len(files[name].rstrip()) - 1))
    write_files(tmp_path, {**files, name: files[name][:length]})
    read_error(tmp_path)


@pytest.mark.parametrize("name", ["policy.json", "weights.safetensors"])
@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_a_damaged_byte_is_an_error_or_a_policy_that_works(name: str, tmp_path: Path, data: st.DataObject) -> None:
    """A changed weight cannot be told from another weight, but nothing else may come through."""
    files = saved_files(TORQUES)
    content = bytearray(files[name])
    header = len(content) if name == "policy.json" else 900  # damage in the header matters most
    content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    write_files(tmp_path, {**files, name: bytes(content)})
    try:
        policy = load_policy(tmp_path)
    except PolicyError:
        return
    size = policy.architecture.action_space.size
    decision = policy.decide(np.zeros((2, 4), np.float32), np.zeros((2, size), np.float32))
    assert decision.actions.shape == (2, 2)


def change_weights(path: Path, change: Callable[[Arrays], object]) -> None:
    arrays: Arrays = load((path / "weights.safetensors").read_bytes())
    change(arrays)
    (path / "weights.safetensors").write_bytes(save(arrays))


def change_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    header = json.loads((path / "policy.json").read_text())
    change(header)
    (path / "policy.json").write_text(json.dumps(header))


def full(shape: tuple[int, ...], value: float = 0.0) -> NDArray[np.float32]:
    return np.full(shape, value, np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"actor.1.w": full((8, 8), np.nan)}, id="NaN weight"),
        pytest.param({"critic.2.b": full((1,), np.inf)}, id="infinite bias"),
        pytest.param({"log_std": full((2,), np.nan)}, id="NaN deviation"),
        pytest.param({"normalizer.mean": full((4,), np.nan)}, id="NaN mean"),
        pytest.param({"normalizer.variance": full((4,), np.nan)}, id="NaN variance"),
        pytest.param({"normalizer.variance": full((4,), -1.0)}, id="negative variance"),
        pytest.param({"actor.0.w": full((5, 8))}, id="another observation size"),
        pytest.param({"actor.2.w": full((8, 3))}, id="another number of actions"),
        pytest.param({"actor.2.b": full((3,))}, id="bias of another length"),
        pytest.param({"critic.0.b": full((1,))}, id="bias that would broadcast"),
        pytest.param({"log_std": full((1,))}, id="deviation that would broadcast"),
        pytest.param({"log_std": None}, id="no deviation"),
        pytest.param({"normalizer.mean": full((3,))}, id="mean of another length"),
        pytest.param({"normalizer.variance": full((1,))}, id="variance that would broadcast"),
        pytest.param({"normalizer.mean": None}, id="no mean"),
        pytest.param({"actor.1.b": None}, id="no bias"),
        pytest.param({"critic.2.w": None, "critic.2.b": None}, id="a layer fewer"),
        pytest.param({"actor.3.w": full((2, 2)), "actor.3.b": full((2,))}, id="a layer more"),
        pytest.param({"actor.0.w": None, "actor.0.b": None}, id="no first layer"),
    ],
)
def test_weights_that_do_not_fit_are_an_error(changes: dict[str, NDArray[Any] | None], tmp_path: Path) -> None:
    save_policy(make_policy(TORQUES), tmp_path)

    def change(arrays: Arrays) -> None:
        for name, array in changes.items():
            if array is None:
                del arrays[name]
            else:
                arrays[name] = array.astype(arrays[name].dtype) if name in arrays else array

    change_weights(tmp_path, change)
    read_error(tmp_path)


def test_deviations_in_a_discrete_policy_are_an_error(tmp_path: Path) -> None:
    """They would make its log-probabilities those of a Gaussian."""
    save_policy(make_policy(Discrete(3)), tmp_path)
    change_weights(tmp_path, lambda arrays: arrays.update(log_std=full((3,))))
    read_error(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(lambda header: header.update(format=4), "format 4 is not one of 1 to 3", id="format"),
        pytest.param(lambda header: header.pop("hidden"), "hidden", id="no layers"),
        pytest.param(lambda header: header.update(hidden=[8, 5]), r"actor.*\(8,\).*\(5,\)", id="layers"),
        pytest.param(lambda header: header.update(hidden=[8]), r"actor.*\(8,\).*\(2,\)", id="a layer fewer"),
        pytest.param(lambda header: header.update(hidden=[8.0, 8.0]), "float", id="fractional layers"),
        pytest.param(lambda header: header.update(hidden=8), "", id="no list of layers"),
        pytest.param(lambda header: header.update(observation_size=7), r"\(7, 8\)", id="observation size"),
        pytest.param(lambda header: header.pop("action_space"), "action_space", id="no actions"),
        pytest.param(lambda header: header["action_space"].pop("low"), "low", id="no bounds"),
        pytest.param(lambda header: header["action_space"].update(low=[2.0, 2.0]), "bounds", id="bounds"),
        pytest.param(lambda header: header["action_space"].update(kind="none"), "'none'", id="kind of actions"),
        pytest.param(lambda header: header["normalizer"].pop("count"), "count", id="no count"),
        pytest.param(lambda header: header["normalizer"].update(mode=1), "mode", id="unknown statistic"),
        pytest.param(
            lambda header: header["normalizer"].update(count="many"), "count.*many", id="count that is no number"
        ),
        pytest.param(lambda header: header["normalizer"].update(count=-1.0), "count.*-1", id="negative count"),
        pytest.param(lambda header: header["normalizer"].update(reward_variance=np.nan), "nan", id="NaN reward scale"),
        pytest.param(lambda header: header["normalizer"].update(clip=None), "clip.*None", id="no clip"),
    ],
)
def test_a_header_that_does_not_fit_is_an_error(
    change: Callable[[dict[str, Any]], object], says: str, tmp_path: Path
) -> None:
    save_policy(make_policy(TORQUES), tmp_path)
    change_header(tmp_path, change)
    message = read_error(tmp_path)
    assert re.search(says, message), message


@pytest.mark.parametrize("content", ["[]", "null", "3", '"policy"', "{}"])
def test_a_header_of_another_kind_is_an_error(content: str, tmp_path: Path) -> None:
    save_policy(make_policy(TORQUES), tmp_path)
    (tmp_path / "policy.json").write_text(content)
    read_error(tmp_path)


@pytest.mark.parametrize(
    ("size", "space", "says"),
    [
        (17, TORQUES, r"\(4,\).*walker2d.*\(17,\)"),
        (4, Discrete(3), r"Box\(2,\).*walker2d.*Discrete\(3\)"),
        (4, Continuous((-1.0,) * 6, (1.0,) * 6), r"Box\(2,\).*walker2d.*Box\(6,\)"),
    ],
)
def test_a_policy_of_another_task_is_refused_with_both_shapes(size: int, space: ActionSpace, says: str) -> None:
    policy = make_policy(TORQUES)
    check_fits(policy, "hopper", 4, TORQUES)
    with pytest.raises(PolicyError, match=says) as caught:
        check_fits(policy, "walker2d", size, space)
    assert "\n" not in str(caught.value)


def test_other_bounds_of_the_same_shape_are_told_apart() -> None:
    with pytest.raises(PolicyError) as caught:
        check_fits(make_policy(TORQUES), "other", 4, Continuous((-1.0, -1.0), (1.0, 1.0)))
    assert "2.0" in str(caught.value), f"both shapes are Box(2,): {caught.value}"


# Distributions


def outputs_of(policy: Policy, seen: NDArray[np.float32]) -> NDArray[np.float64]:
    """The actor's logits or means, as float64."""
    outputs, _ = actor_critic(policy.params, normalize(policy.normalizer.arrays(), jnp.asarray(seen)))
    return np.asarray(outputs, np.float64)


def test_discrete_actions_have_the_softmaxs_frequencies() -> None:
    policy, count = make_policy(Discrete(3)), 40_000
    for seen in observations(3):
        noise = policy.draw_noise(np.random.default_rng(4), (count,))
        actions = policy.decide(np.repeat(seen[None], count, axis=0), noise).actions
        wanted = softmax(outputs_of(policy, seen[None])[0])
        found = np.bincount(actions, minlength=3) / count
        np.testing.assert_allclose(found, wanted, atol=5 * np.sqrt(0.25 / count))


def test_continuous_actions_have_the_gaussians_moments() -> None:
    policy, count = make_policy(TORQUES), 40_000
    seen = observations(1)
    actions = policy.decide(
        np.repeat(seen, count, axis=0), policy.draw_noise(np.random.default_rng(4), (count,))
    ).actions
    deviation = np.exp(np.asarray(policy.params["log_std"]))
    np.testing.assert_allclose(actions.mean(axis=0), outputs_of(policy, seen)[0], atol=5 * deviation.max() / count**0.5)
    np.testing.assert_allclose(actions.std(axis=0), deviation, rtol=0.02)


def test_log_probs_are_the_distributions(space: ActionSpace) -> None:
    policy, seen = make_policy(space), observations(64)
    decision = policy.decide(seen, policy.draw_noise(np.random.default_rng(5), (64,)))
    outputs = outputs_of(policy, seen)
    if isinstance(space, Discrete):
        wanted = log_softmax(outputs, axis=1)[np.arange(64), decision.actions]
    else:
        deviation = np.exp(np.asarray(policy.params["log_std"], np.float64))
        wanted = np.asarray(norm.logpdf(decision.actions, outputs, deviation)).sum(axis=1)
    np.testing.assert_allclose(decision.log_probs, wanted, rtol=1e-5, atol=1e-5)
    again = log_prob_function()(policy.params, policy.normalizer.arrays(), seen, decision.actions)
    np.testing.assert_allclose(again, wanted, rtol=1e-5, atol=1e-5)


def test_without_noise_the_most_likely_action_is_taken(space: ActionSpace) -> None:
    policy, seen = make_policy(space), observations(64)
    actions = policy.decide(seen, np.zeros((64, space.size), np.float32)).actions
    outputs = outputs_of(policy, seen)
    if isinstance(space, Discrete):
        assert actions.dtype == np.int64
        np.testing.assert_array_equal(actions, outputs.argmax(axis=1))
    else:
        assert actions.dtype == np.float32
        np.testing.assert_allclose(actions, outputs, rtol=1e-6, atol=1e-6)


def test_the_same_noise_gives_the_same_actions(space: ActionSpace) -> None:
    policy, seen = make_policy(space), observations(16)
    noise = [policy.draw_noise(np.random.default_rng(6), (3, 16)) for _ in range(2)]
    assert noise[0].shape == (3, 16, space.size)
    first = [policy.decide(seen, row).actions for row in noise[0]]
    np.testing.assert_array_equal(first, [policy.decide(seen, row).actions for row in noise[1]])
    assert (first[0] != first[1]).any()


def test_noise_is_always_finite(space: ActionSpace) -> None:
    """Single-precision exponentials are exactly 0 once in ten million."""
    policy = make_policy(space)
    assert np.isfinite(policy.draw_noise(np.random.default_rng(0), (10_000_000 // space.size,))).all()


# Normalisation


CHUNKS = st.lists(
    st.tuples(st.integers(1, 20), st.floats(-1e3, 1e3), st.floats(1e-2, 1e3), st.integers(0, 2**32 - 1)),
    min_size=1,
    max_size=6,
)


def draw_chunks(described: list[tuple[int, float, float, int]]) -> list[NDArray[np.float64]]:
    return [np.random.default_rng(seed).normal(mean, width, (rows, 3)) for rows, mean, width, seed in described]


@settings(deadline=None)
@given(CHUNKS)
def test_merged_statistics_are_those_of_all_the_data(described: list[tuple[int, float, float, int]]) -> None:
    chunks = draw_chunks(described)
    everything = np.concatenate(chunks)
    normalizer = Normalizer.identity(3)
    for chunk in chunks:
        normalizer = normalizer.with_observations(chunk)
    scale = np.abs(everything).max()
    assert normalizer.count == len(everything)
    np.testing.assert_allclose(normalizer.mean, everything.mean(axis=0), rtol=1e-9, atol=1e-9 * scale)
    np.testing.assert_allclose(normalizer.variance, everything.var(axis=0), rtol=1e-9, atol=1e-9 * scale**2)


@settings(deadline=None)
@given(CHUNKS)
def test_the_reward_scale_is_the_root_mean_square_of_returns(described: list[tuple[int, float, float, int]]) -> None:
    chunks = draw_chunks(described)
    normalizer = Normalizer.identity(3)
    assert normalizer.reward_scale == 1.0
    for chunk in chunks:
        normalizer = normalizer.with_returns(chunk)
    wanted = np.sqrt(np.square(np.concatenate(chunks)).mean())
    assert normalizer.reward_scale == pytest.approx(wanted, rel=1e-6, abs=1e-4)


def test_observations_are_centred_scaled_and_cut() -> None:
    policy = make_policy(TORQUES)
    normalizer = policy.normalizer
    plain = replace(policy, normalizer=Normalizer.identity(4))
    seen = np.concatenate([observations(8), np.full((1, 4), 1e4, np.float32), np.full((1, 4), -1e4, np.float32)])
    scaled = np.clip((seen - normalizer.mean) / np.sqrt(normalizer.variance + 1e-8), -10, 10).astype(np.float32)
    noise = np.zeros((10, 2), np.float32)
    for normalised, by_hand in zip(policy.decide(seen, noise), plain.decide(scaled, noise), strict=True):
        np.testing.assert_allclose(normalised, by_hand, rtol=1e-5, atol=1e-5)


def test_values_are_in_units_of_the_tasks_reward() -> None:
    policy, seen = make_policy(TORQUES), observations(6)
    scale = policy.normalizer.reward_scale
    assert scale != 1.0
    raw = policy.decide(seen, np.zeros((6, 2), np.float32)).values
    np.testing.assert_allclose(policy.values(seen), scale * raw.astype(np.float64), rtol=1e-12)


# Fresh policies


@settings(deadline=None, max_examples=30)
@given(
    observation_size=st.integers(1, 20),
    hidden=st.lists(st.integers(1, 20), max_size=3).map(tuple),
    outputs=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_fresh_weights_are_orthogonal(observation_size: int, hidden: tuple[int, ...], outputs: int, seed: int) -> None:
    space = Continuous((-1.0,) * outputs, (1.0,) * outputs)
    policy = create_policy(Architecture(observation_size, space, hidden), np.random.default_rng(seed))
    for net, last in (("actor", 0.01), ("critic", 1.0)):
        layers = policy.params[net]
        for layer, gain in zip(layers, [2**0.5] * len(hidden) + [last], strict=True):
            weight = np.asarray(layer["w"], np.float64)
            short = weight.T @ weight if weight.shape[0] >= weight.shape[1] else weight @ weight.T
            np.testing.assert_allclose(short, gain**2 * np.eye(len(short)), atol=1e-5 * gain**2)
            assert not np.asarray(layer["b"]).any()
    assert not np.asarray(policy.params["log_std"]).any()


def test_fresh_policies_follow_their_generator() -> None:
    architecture = Architecture(4, TORQUES)
    first, same, other = (create_policy(architecture, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert_decides_alike(first, same)
    assert (np.asarray(first.params["actor"][0]["w"]) != np.asarray(other.params["actor"][0]["w"])).any()
