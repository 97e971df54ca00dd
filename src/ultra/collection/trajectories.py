"""Trajectories: validated records of episodes, and their storage."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import RunDirectoryError, UltraError
from ultra.common.files import pack_bytes, unpack_bytes, write_atomically
from ultra.tasks.batch import Batch, Snapshot
from ultra.tasks.spaces import ActionSpace


@dataclass(frozen=True)
class Trajectory:
    """One episode of T steps.

    Raises:
        UltraError: if lengths disagree or a reward is not finite; the message names the field.
    """

    observations: NDArray[np.float32]
    """(T+1, observation_size): the last one follows the last action."""
    facts: NDArray[np.float64]
    """(T+1, n_facts), columns as in the task's card."""
    actions: NDArray[Any]
    """(T,) int64 or (T, dim) float32, as sampled; the environment received them inside their bounds."""
    rewards: NDArray[np.float64]
    """(T,)"""
    values: NDArray[np.float64]
    """(T+1,): the critic's estimate of the discounted return, in the task's units."""
    log_probs: NDArray[np.float32]
    """(T,) of the actions under the policy that took them."""
    terminated: bool
    """Whether the task itself ended the episode."""
    truncated: bool
    """Whether it was cut off by the time limit or the step budget."""
    seed: int
    """Seed of the environment's reset."""
    snapshots: tuple[tuple[int, Snapshot], ...]
    """(t, complete state), t ascending from 0; states between them are reached by replay."""
    most_likely: NDArray[Any] | None = None
    """(T,) or (T, dim): the agent's most likely actions; None if not recorded."""

    def __post_init__(self) -> None:
        steps = len(self.rewards)
        if steps == 0:
            raise UltraError("a trajectory needs at least one step")
        for name, extra in (
            ("observations", 1),
            ("facts", 1),
            ("values", 1),
            ("actions", 0),
            ("log_probs", 0),
        ):
            found = len(getattr(self, name))
            if found != steps + extra:
                raise UltraError(f"trajectory.{name} has {found} rows, but {steps} rewards need {steps + extra}")
        if self.most_likely is not None and len(self.most_likely) != steps:
            raise UltraError(f"trajectory.most_likely has {len(self.most_likely)} rows, but {steps} rewards")
        bad = np.flatnonzero(~np.isfinite(self.rewards))
        if len(bad):
            raise UltraError(f"trajectory.rewards[{bad[0]}] is {self.rewards[bad[0]]}: the environment is broken")
        if not self.snapshots or self.snapshots[0][0] != 0:
            raise UltraError("trajectory.snapshots must begin with the state at t = 0")

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def total_reward(self) -> float:
        """The undiscounted return."""
        return float(self.rewards.sum())

    def snapshot(self, t: int, batch: Batch, space: ActionSpace) -> tuple[Snapshot, int]:
        """The complete state at time t.

        Args:
            t: 0 to T.
            batch: environments; the first one replays.
            space: action space, for its bounds.

        Returns:
            The snapshot, and the number of environment steps that replay took.

        Raises:
            UltraError: if t lies outside the episode.
        """
        if not 0 <= t <= len(self):
            raise UltraError(f"t = {t} is outside the episode (0 to {len(self)})")
        start, state = [pair for pair in self.snapshots if pair[0] <= t][-1]
        if start == t:
            return state, 0
        batch.restore([0], [state])
        rest = list(range(1, batch.size))
        if rest:
            batch.restore(rest, [state] * len(rest))
        for action in space.clip(self.actions[start:t]):
            batch.step(np.repeat(action[None], batch.size, axis=0))
        return batch.snapshots([0])[0], t - start


def save_trajectory(trajectory: Trajectory, path: Path) -> None:
    """Write one episode as a compressed `.npz` file without pickles."""
    import io

    states, ends = pack_bytes([state for _, state in trajectory.snapshots])
    buffer = io.BytesIO()
    likely = {} if trajectory.most_likely is None else {"most_likely": trajectory.most_likely}
    np.savez_compressed(
        buffer,
        **likely,  # type: ignore[arg-type]
        observations=trajectory.observations,
        facts=trajectory.facts,
        actions=trajectory.actions,
        rewards=trajectory.rewards,
        values=trajectory.values,
        log_probs=trajectory.log_probs,
        end=np.array([trajectory.terminated, trajectory.truncated]),
        seed=np.array(trajectory.seed),
        times=np.array([t for t, _ in trajectory.snapshots]),
        states=states,
        ends=ends,
    )
    write_atomically(path, buffer.getvalue())


def load_trajectory(path: Path) -> Trajectory:
    """Read one episode.

    Raises:
        RunDirectoryError: if the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            states = unpack_bytes(file["states"], file["ends"])
            return Trajectory(
                observations=file["observations"],
                facts=file["facts"],
                actions=file["actions"],
                rewards=file["rewards"],
                values=file["values"],
                log_probs=file["log_probs"],
                terminated=bool(file["end"][0]),
                truncated=bool(file["end"][1]),
                seed=int(file["seed"]),
                snapshots=tuple(zip(file["times"].tolist(), states, strict=True)),
                most_likely=file.get("most_likely"),
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise RunDirectoryError(f"trajectory {path} is missing or damaged ({error}): collect again") from error


def visited(episodes: Sequence[Trajectory]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Observations and facts of all states."""
    observations = np.concatenate([episode.observations for episode in episodes])
    return observations, np.concatenate([episode.facts for episode in episodes])


class Episodes(Sequence[Trajectory]):
    """The trajectories of a folder, read from disk one at a time."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.glob("episode-*.npz"))
        self._last: tuple[int, Trajectory] | None = None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        if self._last is None or self._last[0] != index:
            self._last = (index, load_trajectory(self._paths[index]))
        return self._last[1]

    def __iter__(self) -> Iterator[Trajectory]:
        return (self[i] for i in range(len(self)))
