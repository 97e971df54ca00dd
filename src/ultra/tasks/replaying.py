"""How snapshots of an environment can be taken, found out by restoring and replaying."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, Literal

import gymnasium
import numpy as np

from ultra.common.streams import stream
from ultra.tasks.gymnasium import GymnasiumBatch
from ultra.tasks.spaces import ActionSpace, Discrete
from ultra.tasks.states import NotPlainError

STEPS = 40
"""Steps of an episode that are replayed."""
TAKEN_AT = (0, 3, 10)
"""Steps at which snapshots are taken."""

Means = Literal["state", "replay", "remake", "none"]
_BY_MERIT: tuple[Literal["state", "replay", "remake"], ...] = ("state", "replay", "remake")
Trace = list[tuple[Any, ...]]


def choose_snapshots(make: Callable[[], gymnasium.Env[Any, Any]], space: ActionSpace) -> Means:
    """The best means that repeats episodes of random actions bit for bit.

    Args:
        make: makes an environment.
        space: its actions.

    Returns:
        `state`, else `replay`, else `remake` (a new environment for each episode), else `none` if the
        environment does not repeat itself.

    Raises:
        EnvironmentFault: if it does not keep to Gymnasium's interface.
    """
    _look_for_faults(make, space)
    for means in _BY_MERIT:
        batch = GymnasiumBatch(make, 2, snapshots=means)
        try:
            if all(_repeats(batch, space, seed) for seed in (1, 2)):
                return means
        except (NotPlainError, TypeError, ValueError, AttributeError):
            continue  # the state cannot be written down, or not be put back
        finally:
            batch.close()
    return "none"


def _look_for_faults(make: Callable[[], gymnasium.Env[Any, Any]], space: ActionSpace) -> None:
    """Play random actions: an environment's own faults are no reason to think that it cannot be restored."""
    with closing(GymnasiumBatch(make, 1)) as batch:
        batch.reset([0], [1])
        for action in _random_actions(space, 1)[:, :1]:
            if batch.step(action).done[0]:
                batch.reset([0], [2])


def _random_actions(space: ActionSpace, seed: int) -> Any:
    """(STEPS, 2) or (STEPS, 2, size)."""
    rng = stream(seed, "random actions")
    if isinstance(space, Discrete):
        return rng.integers(space.n, size=(STEPS, 2))
    return rng.uniform(space.low, space.high, (STEPS, 2, space.size)).astype(np.float32)


def _repeats(batch: GymnasiumBatch, space: ActionSpace, seed: int) -> bool:
    """Whether an episode goes on from its snapshots as it did, in place and in another environment."""
    actions = _random_actions(space, seed)
    batch.reset([0, 1], [seed, seed + 100])
    trace: Trace = []
    snapshots = {}
    for t in range(STEPS):
        if t in TAKEN_AT:
            snapshots[t] = batch.snapshots([0])
        trace.append(_step(batch, actions[t], 0))
        if trace[-1][-1]:
            break
    for t, snapshot in snapshots.items():
        for slot in (0, 1):
            batch.reset([1 - slot], [seed + 200])
            batch.restore([slot], snapshot)
            again = [_step(batch, actions[k][::-1] if slot else actions[k], slot) for k in range(t, len(trace))]
            if again != trace[t:]:
                return False
    return True


def _step(batch: GymnasiumBatch, actions: Any, slot: int) -> tuple[Any, ...]:
    """What one environment returned for a step, comparable bit for bit; the other is kept going."""
    step = batch.step(actions)
    other = 1 - slot
    if step.done[other]:
        batch.reset([other], [7])
    return step.observations[slot].tobytes(), float(step.rewards[slot]).hex(), bool(step.done[slot])
