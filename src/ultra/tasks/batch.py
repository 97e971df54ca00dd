"""The batch protocol: environments of one task that step together, with facts and snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ultra.tasks.spaces import Actions

Snapshot = bytes
"""The complete state of one environment: restoring it and replaying actions is bit-identical."""

Observations = NDArray[np.float32]
"""(n, observation_size); images are flattened and hold bytes (uint8)."""
Facts = NDArray[np.float64]
"""(n, n_facts), columns in the order of the task's card."""
Indices = Sequence[int] | NDArray[np.intp]
"""Indices of environments in a batch."""
Live = NDArray[np.bool_] | None
"""(n,) environments to step; None: all. Results of the others are undefined."""


@dataclass(frozen=True)
class Step:
    """The result of one step of all environments, before any reset."""

    observations: Observations
    """(n, observation_size), after the step."""
    rewards: NDArray[np.float64]
    """(n,)"""
    terminated: NDArray[np.bool_]
    """(n,): the task itself ended the episode; the value beyond is 0."""
    truncated: NDArray[np.bool_]
    """(n,): the time limit was reached; the state would have had a value."""

    @property
    def done(self) -> NDArray[np.bool_]:
        """(n,): the episode is over and the environment must be reset or restored."""
        return self.terminated | self.truncated


class Batch(Protocol):
    """`size` environments of one task that step together.

    Nothing resets by itself: whoever drives the batch resets or restores the environments whose
    episode is over. Stepping is a pure function of the state, so equal snapshots and actions give
    equal results, bit for bit.
    """

    @property
    def size(self) -> int:
        """Number of environments."""
        ...

    def reset(self, indices: Indices, seeds: Sequence[int]) -> Observations:
        """Start new episodes; returns the observations (len(indices), observation_size)."""
        ...

    def step(self, actions: Actions, live: Live = None) -> Step:
        """Step the environments, all or those that are live, with actions inside the action space."""
        ...

    def facts(self) -> Facts:
        """The named quantities of the current states, in an array that stays as it is."""
        ...

    def snapshots(self, indices: Indices) -> list[Snapshot]:
        """Save the complete states of some environments."""
        ...

    def restore(self, indices: Indices, snapshots: Sequence[Snapshot]) -> Observations:
        """Restore saved states, time-limit counters included; returns their observations."""
        ...

    def restart_clock(self, indices: Indices) -> None:
        """Reset the time-limit counters of some environments (for episodes that start from a snapshot)."""
        ...

    def close(self) -> None:
        """Free threads and processes."""
        ...
