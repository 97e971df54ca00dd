"""Tasks: environments with their cards, and the registry of known ones."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ultra.common.errors import UltraError
from ultra.tasks.batch import Batch
from ultra.tasks.card import Card, load_card
from ultra.tasks.sources import Reader
from ultra.tasks.spaces import ActionSpace

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
        make_local_batch: n -> a batch of n environments on one thread of this process.
        make_threaded_batch: (n, threads) -> the same on several threads; None if the environments cannot.
        make_environment: Gymnasium's own environment, in which policies are evaluated.
        readers: read the facts off such environments; empty where facts are the entries of the observation.
        in_workers: whether worker processes may be used to get at several cores.
        snapshot_every: steps between the snapshots of a trajectory (states between are replayed).
        sampled_evaluation: whether evaluation samples actions. In a deterministic game the most likely
            actions can rally for ever (RL Baselines3 Zoo samples on Atari for the same reason).
        snapshots: how snapshots are taken: `state` saves it, `replay` repeats the episode's actions,
            `remake` does so in a new environment, `none` says that the environment does not repeat itself.
        image: height, width and channels where observations are flattened images, as bytes; else None.
        note: a line for people about options that change the task, such as a threshold; empty if there are none.
        target: `module:function` that made the task, set by `get_task`; empty for a task made by hand.
        options: what that function was given, to make the task again in another process.
    """

    name: str
    card: Card
    observation_size: int
    action_space: ActionSpace
    time_limit: int
    make_local_batch: Callable[[int], Batch]
    make_environment: Callable[[], gymnasium.Env[Any, Any]]
    readers: Sequence[Reader] = ()
    make_threaded_batch: Callable[[int, int], Batch] | None = None
    in_workers: bool = False
    snapshot_every: int = 1
    sampled_evaluation: bool = False
    snapshots: Literal["state", "replay", "remake", "none"] = "state"
    image: tuple[int, int, int] | None = None
    note: str = ""
    target: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Callable[[], Task] | None:
        """Makes the task again in another process; None for a task made by hand."""
        return partial(make_task, self.target, dict(self.options)) if self.target else None

    def make_batch(self, size: int, workers: int | None = None) -> Batch:
        """Make `size` environments that use up to `workers` cores (default: all)."""
        workers = workers or os.cpu_count() or 1
        if self.in_workers and workers > 1 and size > 1:
            from ultra.tasks.workers import WorkerBatch

            return WorkerBatch(self, "make_local_batch", size, workers)
        if self.make_threaded_batch is not None:
            return self.make_threaded_batch(size, workers)
        return self.make_local_batch(size)

    def make_local_evaluation_batch(self, size: int) -> Batch:
        """Make `size` of Gymnasium's own environments in this process."""
        from ultra.tasks.gymnasium import GymnasiumBatch

        return GymnasiumBatch(self.make_environment, size, readers=self.readers)

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


def make_task(target: str, options: Mapping[str, Any], name: str = "") -> Task:
    """Make a task that remembers how, so that worker processes can make it again.

    Args:
        target: `module:function`.
        options: arguments of the function.
        name: as the user knows the task, for errors.

    Raises:
        UltraError: if the function cannot be imported or does not take one of the options.
    """
    module, _, function = target.partition(":")
    try:
        make: Callable[..., Task] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UltraError(f"cannot import the task {target!r}: {error}") from error
    known = inspect.signature(make).parameters
    for option in options:
        if option not in known and not any(item.kind is item.VAR_KEYWORD for item in known.values()):
            flag = f"env-{option}" if option in ("module", "kwargs") else option
            raise UltraError(
                f"{name or target.partition(':')[2]} takes no --{flag}: --sticky is for Atari tasks, --threshold for "
                "sparse-* tasks, --env-module and --env-kwargs for Gymnasium ids"
            )
    return replace(make(**options), target=target, options=options)


def get_task(name: str, **options: Any) -> Task:
    """Load a task by its name, or any Gymnasium environment by its id.

    Raises:
        UltraError: if there is no such task (the closest names are offered) or it cannot be made.
    """
    if name in _registry:
        return _known_task(name, options)
    from ultra.tasks.gymnasium import import_module, is_registered, similar_ids

    if options.get("module"):
        import_module(options["module"], name)
    if is_registered(name):
        task = make_task("ultra.tasks.shipped:gymnasium_task", {"env_id": name, **options}, name)
        # What was found out about snapshots need not be found out again in every worker.
        return replace(task, options={**task.options, "snapshots": task.snapshots})
    close = similar_ids(name) or difflib.get_close_matches(name.lower(), _registry, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known tasks: {', '.join(_registry)}"
    raise UltraError(
        f"unknown task {name!r}: {hint} (`ultra tasks` lists them; a Gymnasium id works too, "
        "with --env-module FILE if a module of yours registers it)"
    )


def _known_task(name: str, options: dict[str, Any]) -> Task:
    """A registered task, perhaps with the user's own card of as many facts and actions."""
    rest = {key: value for key, value in options.items() if key != "card"}
    task = make_task(_registry[name].target, rest, name)
    if "card" not in options:
        return task
    card = load_card(Path(options["card"]))
    for kind, own, needed in (
        ("facts", len(card.facts), len(task.card.facts)),
        ("actions", len(card.actions), len(task.card.actions)),
    ):
        if own != needed:
            raise UltraError(f"card {options['card']} has {own} {kind}, but {name} has {needed}")
    return replace(task, card=card)
