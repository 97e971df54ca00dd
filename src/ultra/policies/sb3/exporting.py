"""Our policies as zips of Stable-Baselines3, whose `predict` equals ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ultra.common.errors import PolicyError
from ultra.common.files import make_directory
from ultra.policies.networks import Image
from ultra.policies.normalizer import Normalizer
from ultra.policies.policy import Architecture, Policy, check_fits, flatten
from ultra.policies.sb3.archive import import_torch
from ultra.policies.sb3.images import write_features
from ultra.policies.sb3.importing import ACTIVATIONS
from ultra.tasks.task import Task


def export_policy(policy: Policy, task: Task, out: Path) -> list[Path]:
    """Write a policy as Stable-Baselines3 2.x saves PPO, and its statistics as VecNormalize does.

    The zip takes observations as `gymnasium.wrappers.FlattenObservation` gives them; images with their
    rows, columns and channels. Layers that actor and critic share, which Stable-Baselines3 2.x does not
    have, are written twice.

    Args:
        policy: what to write.
        task: whose spaces the zip names.
        out: the zip; `.zip` is added if it is missing.

    Returns:
        The files that were written: the zip and, if the policy has statistics, theirs.

    Raises:
        PolicyError: if Stable-Baselines3 is not installed, or the policy does not fit the task.
        UltraError: if the place cannot be written.
    """
    if policy.attached is not None:
        names = ", ".join(program.name for program in policy.attached.programs)
        raise PolicyError(
            f"the policy follows programs ({names}), for which Stable-Baselines3 has no place: export a module instead "
            "(--out NAME.py), or teach them to its network (`ultra refine --programs.adopt distil`)"
        )
    torch = import_torch("write")
    check_fits(policy, task.name, task.observation_size, task.action_space)
    _check_plain(policy.normalizer, task)
    out = out if out.suffix == ".zip" else out.with_name(f"{out.name}.zip")
    make_directory(out.parent)
    vectorized, model = _model(policy.architecture, task)
    state = {name: torch.from_numpy(np.array(array)) for name, array in _weights(policy).items()}
    model.policy.load_state_dict(state)
    normalizer = policy.normalizer
    files = [out]
    if normalizer.count or normalizer.reward_count:
        statistics = _vecnormalize(vectorized, normalizer)
        files.append(out.with_name(f"{out.stem}_vecnormalize.pkl"))
        # Without this no reader could tell that the zip needs its statistics.
        model._last_original_obs = np.zeros((1, task.observation_size), np.float32)
        _write(files[1], lambda path: statistics.save(str(path)))
    _write(out, lambda path: model.save(str(path)))
    vectorized.close()
    return files


def _check_plain(normalizer: Normalizer, task: Task) -> None:
    """Check that entries which are not cut lie inside the bounds to which VecNormalize cuts a flat observation.

    Raises:
        PolicyError: if they do not.
    """
    if not normalizer.plain:
        return
    entries, space = list(normalizer.plain), _environment(task, None).observation_space
    low, high = space.low[entries], space.high[entries]
    if max(-low.min(), high.max()) > normalizer.clip:
        raise PolicyError(
            f"the policy leaves entries {entries[0]} to {entries[-1]} of the observation as they are (norm_obs_keys), "
            f"but VecNormalize would cut them to +-{normalizer.clip:g}: this cannot be written as a flat observation"
        )


def _write(path: Path, save: Callable[[Path], None]) -> None:
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        save(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _model(architecture: Architecture, task: Task) -> tuple[Any, Any]:
    """An untrained PPO of the policy's shape, and its vectorized environment."""
    try:
        from stable_baselines3 import PPO
        from stable_baselines3.common.vec_env import DummyVecEnv
    except ImportError as error:
        raise PolicyError(
            "to write Stable-Baselines3 files, install it: pip install 'ultra-refine[sb3]' (or make install-sb3)"
        ) from error
    torch = import_torch("write")
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    sizes = architecture.sizes
    net_arch = {
        "pi": [*architecture.shared, *sizes["actor"][1:-1]],
        "vf": [*architecture.shared, *sizes["critic"][1:-1]],
    }
    vectorized = DummyVecEnv([lambda: _environment(task, architecture.image)])
    kwargs = {"net_arch": net_arch, "activation_fn": getattr(torch.nn, names[architecture.activation])}
    kind = "MlpPolicy" if architecture.image is None else "CnnPolicy"
    return vectorized, PPO(kind, vectorized, policy_kwargs=kwargs, device="cpu")


def _weights(policy: Policy) -> dict[str, np.ndarray[Any, Any]]:
    """Weights under Stable-Baselines3's names; torch keeps matrices (outputs, inputs)."""
    flat = flatten(policy.params)
    shared = len(policy.architecture.shared)
    weights: dict[str, np.ndarray[Any, Any]] = {}
    for ours, extractor, head in (("actor", "policy_net", "action_net"), ("critic", "value_net", "value_net")):
        own = len(policy.architecture.sizes[ours]) - 2
        sources = [f"shared.{i}" for i in range(shared)] + [f"{ours}.{i}" for i in range(own + 1)]
        places = [f"mlp_extractor.{extractor}.{2 * i}" for i in range(shared + own)] + [head]
        for source, place in zip(sources, places, strict=True):
            weights |= {f"{place}.weight": flat[f"{source}.w"].T, f"{place}.bias": flat[f"{source}.b"]}
    if "log_std" in flat:
        weights["log_std"] = flat["log_std"]
    if policy.architecture.image is not None:
        weights |= write_features(flat, policy.architecture.image)
    return weights


def _vecnormalize(vectorized: Any, normalizer: Normalizer) -> Any:
    from stable_baselines3.common.vec_env import VecNormalize

    observations, rewards = bool(normalizer.count), bool(normalizer.reward_count)
    statistics = VecNormalize(
        vectorized, training=False, norm_obs=observations, norm_reward=rewards, clip_obs=normalizer.clip
    )
    if observations:
        rms: Any = statistics.obs_rms
        rms.mean, rms.var, rms.count = normalizer.mean.copy(), normalizer.variance.copy(), normalizer.count
    returns: Any = statistics.ret_rms
    returns.var, returns.count = np.float64(normalizer.reward_variance), normalizer.reward_count
    return statistics


def _environment(task: Task, image: Image | None) -> Any:
    """The environment with flat observations, or with images; it is never stepped, only its spaces count."""
    import gymnasium

    env: Any = task.make_environment()
    if image is not None:
        box: Any = gymnasium.spaces.Box(0, 255, image, np.uint8)
        return gymnasium.wrappers.TransformObservation(env, lambda flat: np.reshape(flat, image), box)
    if env.observation_space.shape == (task.observation_size,):
        return env
    return gymnasium.wrappers.FlattenObservation(env)
