"""Checkpoints of a training: resuming from one gives the same result as never having stopped."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import RunDirectoryError
from ultra.common.files import pack_bytes, to_json_text, unpack_bytes, write_atomically
from ultra.policies.policy import Policy, flatten, unflatten
from ultra.tasks.batch import Snapshot

if TYPE_CHECKING:
    from ultra.ppo.rollout import Environments


SECONDS_BETWEEN = 20.0
"""A checkpoint is written at most this often, and when training is interrupted."""


@dataclass
class Learner:
    """What training changes: all of it is in a checkpoint."""

    policy: Policy
    optimizer_state: Any
    steps: int = 0


class CheckpointFile:
    """Keeps the newest state of a training in memory and, now and then, on disk.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._newest: bytes | None = None
        self._written = time.monotonic()

    def resume(self, learner: Learner, environments: Environments) -> bool:
        """Put the saved state back, if there is one.

        Raises:
            RunDirectoryError: if the file is damaged.
        """
        if self._path is None or not self._path.exists():
            return False
        load_checkpoint(self._path, learner, environments)
        return True

    def keep(self, learner: Learner, environments: Environments) -> None:
        """Remember the state between two iterations; write it if the last writing is long ago."""
        if self._path is not None:
            self._newest = save_checkpoint(learner, environments)
            if time.monotonic() - self._written > SECONDS_BETWEEN:
                self.flush()

    def flush(self) -> None:
        """Write the state that was remembered last."""
        if self._path is not None and self._newest is not None:
            write_atomically(self._path, self._newest)
            self._written = time.monotonic()


def save_checkpoint(learner: Learner, environments: Environments) -> bytes:
    """Everything that training changes, as the bytes of an `.npz` file without pickles."""
    normalizer = learner.policy.normalizer
    episodes = environments.episodes
    states, ends = pack_bytes(environments.batch.snapshots(range(environments.batch.size)))
    arrays: dict[str, NDArray[Any]] = {
        "states": states,
        "ends": ends,
        "mean": normalizer.mean,
        "variance": normalizer.variance,
        "returns": episodes.returns,
        "lengths": episodes.lengths,
        "discounted": episodes.discounted,
        "ordinary": episodes.ordinary,
        "recent_returns": np.array(episodes.recent_returns),
        "recent_lengths": np.array(episodes.recent_lengths, np.int64),
    }
    arrays |= {f"params.{name}": array for name, array in flatten(learner.policy.params).items()}
    arrays |= {f"optimizer.{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(learner.optimizer_state))}
    header = {
        "steps": learner.steps,
        "finished": episodes.finished,
        "normalizer": [normalizer.count, normalizer.reward_variance, normalizer.reward_count, normalizer.clip],
        "rng": environments.rng.bit_generator.state,
        "guidance": environments.guidance.state(),
        "underneath": [executor.state() for executor in environments.underneath],
    }
    arrays["header"] = np.frombuffer(to_json_text(header, "the checkpoint").encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def load_checkpoint(path: Path, learner: Learner, environments: Environments) -> None:
    """Put a learner and its environments into the saved state.

    Raises:
        RunDirectoryError: if the file is damaged, or was made with another policy or number of environments.
    """
    try:
        snapshots = _load(path, learner, environments)
    except RunDirectoryError:
        raise
    except Exception as error:  # a damaged archive can fail anywhere in the code that unpacks it
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RunDirectoryError(
            f"checkpoint {path} is damaged ({reason}): delete it to start this stage anew"
        ) from error
    environments.resume(snapshots)


def _load(path: Path, learner: Learner, environments: Environments) -> list[Snapshot]:
    """Put back all but the states of the environments, which are returned."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(arrays["header"].tobytes())
    snapshots = unpack_bytes(arrays["states"], arrays["ends"])
    if len(snapshots) != environments.batch.size:
        raise RunDirectoryError(
            f"checkpoint {path} was made with {len(snapshots)} environments, not {environments.batch.size}: "
            f"continue with --ppo.environments {len(snapshots)}, or delete it to start this stage anew"
        )
    params = {k.removeprefix("params."): v for k, v in arrays.items() if k.startswith("params.")}
    if _shapes(params) != _shapes(flatten(learner.policy.params)):
        raise RunDirectoryError(
            f"checkpoint {path} was made with a policy of other shapes: delete it to start this stage anew"
        )
    seen, reward_variance, reward_count, clip = header["normalizer"]
    learner.policy = replace(
        learner.policy,
        params=unflatten(params, learner.policy.params.get("form")),
        normalizer=replace(
            learner.policy.normalizer,
            mean=arrays["mean"],
            variance=arrays["variance"],
            count=seen,
            reward_variance=reward_variance,
            reward_count=reward_count,
            clip=clip,
        ),
    )
    tree = jax.tree.structure(learner.optimizer_state)
    count = len(jax.tree.leaves(learner.optimizer_state))
    leaves = [jnp.asarray(arrays[f"optimizer.{i}"]) for i in range(count)]
    if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in jax.tree.leaves(learner.optimizer_state)]:
        raise RunDirectoryError(f"checkpoint {path} was made by another version: delete it to start this stage anew")
    learner.optimizer_state = jax.tree.unflatten(tree, leaves)
    learner.steps = header["steps"]
    environments.rng.bit_generator.state = header["rng"]
    episodes = environments.episodes
    for name in ("returns", "lengths", "discounted", "ordinary"):
        setattr(episodes, name, arrays[name])
    episodes.recent_returns.extend(arrays["recent_returns"].tolist())
    episodes.recent_lengths.extend(arrays["recent_lengths"].tolist())
    episodes.finished = header["finished"]
    environments.guidance.load_state(header["guidance"])
    if len(environments.underneath) != len(header["underneath"]):
        raise RunDirectoryError(
            f"checkpoint {path} was made with {len(header['underneath'])} programs underneath the network, not "
            f"{len(environments.underneath)}: delete it to start this stage anew"
        )
    for executor, state in zip(environments.underneath, header["underneath"], strict=True):
        executor.load_state(state)
    return snapshots


def _shapes(arrays: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}
