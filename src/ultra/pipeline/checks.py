"""What is found out about a command before anything is written or spent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ultra.analysts.programs_file import ProgramsAnalyst
from ultra.analysts.registry import check_ready, get_analyst
from ultra.common.errors import UltraError
from ultra.config import RefineConfig, takes_advice
from ultra.tasks import Task, get_task


def with_discount(config: RefineConfig, gamma: float | None) -> RefineConfig:
    """A configuration whose discount is settled: what it says, else that of the policy, else the usual one."""
    settled = config.ppo.discount if config.ppo.gamma is not None or gamma is None else gamma
    return replace(config, ppo=replace(config.ppo, gamma=settled))


def check_snapshots(task: Task, method: str) -> None:
    """Check that a method which restores states can be used in a task.

    Raises:
        UltraError: if the environment does not repeat itself.
    """
    if task.snapshots == "none" and method not in ("none", "ppo", "jsrl"):
        raise UltraError(
            f"{task.name} does not repeat itself: the same seed and actions lead elsewhere, so advice cannot be tried; "
            "use --method ppo, or draw all randomness from self.np_random (docs/own-environment.md)"
        )


def check_analyst(config: RefineConfig, task: Task) -> None:
    """Check that a run's analyst exists, and that what it has to say already fits the task.

    Raises:
        UltraError: if it does not; nothing has been spent yet.
    """
    if not takes_advice(config.method):
        return
    check_ready(config.analyst, config.llm)
    analyst = get_analyst(config.analyst)
    if isinstance(analyst, ProgramsAnalyst):
        analyst.check(task)


def task_of(config: Any) -> Task:
    """The task of a configuration, with its options."""
    options = {name: getattr(config, name) for name in ("sticky", "threshold") if getattr(config, name)}
    return get_task(config.task, **options, **config.env.options())
