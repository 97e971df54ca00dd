"""What is refined: the record of a task, and the registry of the known ones."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ultra.errors import UltraError
from ultra.spaces import ActionSpace
from ultra.tasks.batch import Batch
from ultra.tasks.card import Card

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True)
class Task:
    """An environment with its card.

    Attributes:
        name: as on the command line.
        card: facts, units, goal, termination, reward, actions.
        observation_size: entries of an observation.
        action_space: actions of the policy.
        time_limit: agent steps after which an episode is truncated.
        make_local_batch: n -> a batch of n environments that lives in this process.
        make_environment: Gymnasium's own environment, in which policies are evaluated.
        in_workers: whether several cores can only be used through worker processes.
        snapshot_every: steps between the snapshots of a trajectory (states between are replayed).
        sampled_evaluation: whether evaluation samples actions. In a deterministic game the most likely
            actions can rally for ever (RL Baselines3 Zoo samples on Atari for the same reason).
        options: what the task was made with, to make it again in another process.
    """

    name: str
    card: Card
    observation_size: int
    action_space: ActionSpace
    time_limit: int
    make_local_batch: Callable[[int], Batch]
    make_environment: Callable[[], gymnasium.Env[Any, Any]]
    in_workers: bool = False
    snapshot_every: int = 1
    sampled_evaluation: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def make_batch(self, size: int, workers: int | None = None) -> Batch:
        """Make `size` environments that use up to `workers` cores (default: all)."""
        workers = workers or os.cpu_count() or 1
        if self.in_workers and workers > 1 and size > 1:
            from ultra.tasks.workers import WorkerBatch

            return WorkerBatch(self, "make_local_batch", size, workers)
        return self.make_local_batch(size)

    def make_local_evaluation_batch(self, size: int) -> Batch:
        """Make `size` of Gymnasium's own environments in this process."""
        from ultra.tasks.gymnasium import GymnasiumBatch

        return GymnasiumBatch(self.make_environment, size)

    def make_evaluation_batch(self, size: int, workers: int | None = None) -> Batch:
        """Make `size` of Gymnasium's own environments, in up to `workers` processes (default: all cores)."""
        workers = workers or os.cpu_count() or 1
        if workers > 1 and size > 1:
            from ultra.tasks.workers import WorkerBatch

            return WorkerBatch(self, "make_local_evaluation_batch", size, workers)
        return self.make_local_evaluation_batch(size)


@dataclass(frozen=True)
class Entry:
    """A known task that has not been imported yet."""

    target: str
    """`module:function`; the function takes the task's options and returns a `Task`."""
    summary: str
    """One line for `ultra tasks`."""


_registry: dict[str, Entry] = {}


def register(name: str, target: str, summary: str) -> None:
    """Make a task known by name.

    Args:
        name: as on the command line.
        target: `module:function`, imported when the task is first used.
        summary: one line.
    """
    _registry[name] = Entry(target, summary)


def known_tasks() -> dict[str, str]:
    """Names and summaries of the registered tasks."""
    return {name: entry.summary for name, entry in _registry.items()}


def get_task(name: str, **options: Any) -> Task:
    """Load a task by its name, or any Gymnasium environment by its id.

    Raises:
        UltraError: if there is no such task; the closest names are offered.
    """
    if name in _registry:
        module, function = _registry[name].target.split(":")
        make: Callable[..., Task] = getattr(importlib.import_module(module), function)
        return make(**options)
    from ultra.tasks.shipped import gymnasium_task

    task = gymnasium_task(name)
    if task is None:
        close = difflib.get_close_matches(name.lower(), _registry, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known tasks: {', '.join(_registry)}"
        raise UltraError(f"unknown task {name!r}: {hint} (`ultra tasks` lists them; a Gymnasium id works too)")
    return task
