"""The starting return: what the policy scores before anything is done, and what chance scores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ultra.common.files import write_json
from ultra.common.statistics import Estimate, difference_interval, mean_interval
from ultra.common.streams import stream
from ultra.evaluation.evaluate import evaluate
from ultra.policies.policy import Architecture, Policy, create_policy
from ultra.tasks.task import Task

CHANCE_EPISODES = 5
"""Episodes of the untrained policy."""


@dataclass(frozen=True)
class Start:
    """Returns of the starting policy, and of an untrained one."""

    returns: tuple[float, ...]
    """(episodes,) of the starting policy."""
    chance: tuple[float, ...]
    """(episodes,) of an untrained policy whose actions are sampled."""
    steps: int
    """Environment steps taken."""

    @property
    def estimate(self) -> Estimate:
        """Mean return of the starting policy."""
        return mean_interval(self.returns)

    @property
    def warning(self) -> str | None:
        """A remark if the policy is not significantly better than an untrained one."""
        if difference_interval(self.returns, self.chance).low > 0:
            return None
        return (
            f"the policy scores {self.estimate.mean:.1f}, not clearly better than an untrained one "
            f"({np.mean(self.chance):.1f}): is it the right task, and were its statistics found?"
        )

    def save(self, path: Path) -> None:
        """Write the returns as JSON."""
        write_json(path, {"returns": list(self.returns), "chance": list(self.chance), "steps": self.steps})


def load_start(path: Path) -> Start:
    """Inverse of `Start.save`."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return Start(tuple(raw["returns"]), tuple(raw["chance"]), raw["steps"])


def measure_start(task: Task, policy: Policy, seeds: list[int], workers: int = 0) -> Start:
    """Play the evaluation's episodes with the starting policy, and a few with an untrained one.

    Args:
        task: the task.
        policy: the starting policy.
        seeds: (episodes,), the same as in the final evaluation.
        workers: processes; 0 uses all cores.
    """
    _, returns, steps = evaluate(task, policy, seeds, workers=workers)
    shape = Architecture(task.observation_size, task.action_space, (), task.image)
    untrained = create_policy(shape, stream("untrained policy"))
    _, chance, more = evaluate(task, untrained, seeds[:CHANCE_EPISODES], workers=workers, sampled=True)
    return Start(tuple(returns.tolist()), tuple(chance.tolist()), steps + more)
