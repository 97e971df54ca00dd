"""Throughput of the worker batch against gymnasium's AsyncVectorEnv and Stable-Baselines3's SubprocVecEnv.

    python benchmarks/worker_batch.py [ENV_ID ...] [--envs 16] [--workers 2] [--seconds 4]

Each steps 16 environments with random actions, resetting those whose episode is over. Environment steps
per second, wall clock, after a warm-up; the median of three turns, taken in alternation so that what
else the machine does falls on all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from ultra.tasks import Task, get_task
from ultra.tasks.spaces import Discrete
from ultra.tasks.workers import WorkerBatch

Stepper = Callable[[], None]


def _actions(task: Task, envs: int) -> Callable[[], Any]:
    rng, space = np.random.default_rng(0), task.action_space
    if isinstance(space, Discrete):
        return lambda: rng.integers(space.n, size=envs)
    return lambda: rng.uniform(space.low, space.high, (envs, space.size)).astype(np.float32)


def worker_batch(task: Task, envs: int, workers: int) -> tuple[Stepper, Callable[[], None]]:
    """Ours: several environments in each of few processes, arrays in shared memory."""
    batch, draw = WorkerBatch(task, "make_local_batch", envs, workers), _actions(task, envs)
    batch.reset(range(envs), range(envs))

    def step() -> None:
        over = np.flatnonzero(batch.step(draw()).done)
        if len(over):
            batch.reset(over, over.tolist())

    return step, batch.close


def async_vector(task: Task, envs: int, workers: int) -> tuple[Stepper, Callable[[], None]]:
    """Gymnasium's: a process for each environment, observations in shared memory."""
    vector = gymnasium.vector.AsyncVectorEnv([partial(gymnasium.make, task.name)] * envs)
    draw = _actions(task, envs)
    vector.reset(seed=0)
    return (lambda: vector.step(draw()) and None), vector.close


def subproc(task: Task, envs: int, workers: int) -> tuple[Stepper, Callable[[], None]]:
    """Stable-Baselines3's: a process for each environment, everything through pipes."""
    from stable_baselines3.common.vec_env import SubprocVecEnv

    vector = SubprocVecEnv([partial(gymnasium.make, task.name)] * envs, start_method="fork")
    draw = _actions(task, envs)
    vector.reset()
    return (lambda: vector.step(draw()) and None), vector.close


def rate(step: Stepper, envs: int, seconds: float) -> float:
    """Environment steps per second."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        step()
        count += 1
    return count * envs / (time.perf_counter() - start)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", default=["CartPole-v1", "Acrobot-v1", "LunarLander-v3"])
    parser.add_argument("--envs", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    makers = {"worker batch": worker_batch, "AsyncVectorEnv": async_vector, "SubprocVecEnv": subproc}
    print(f"environment steps/s, {options.envs} environments, {options.workers} workers")
    for name in options.ids:
        task = get_task(name)
        found: dict[str, list[float]] = {maker: [] for maker in makers}
        made = {title: make(task, options.envs, options.workers) for title, make in makers.items()}
        for turn in range(4):
            for title, (step, _) in made.items():
                measured = rate(step, options.envs, options.seconds)
                if turn:  # the first is the warm-up
                    found[title].append(measured)
        for _, close in made.values():
            close()
        rates = {title: statistics.median(values) for title, values in found.items()}
        ours = rates["worker batch"]
        others = ", ".join(f"{t} {r:,.0f} ({ours / r:.1f}x)" for t, r in rates.items() if t != "worker batch")
        print(f"{name:<16} worker batch {ours:,.0f}, {others}", flush=True)


if __name__ == "__main__":
    main()
