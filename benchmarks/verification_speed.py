"""How fast verification is, against the simulator alone on the same states.

    python benchmarks/verification_speed.py [--repeats 5]

Both sides step as many environments from the same states, in one process, in turn: `raw` is
`mujoco.rollout` with actions recorded beforehand and nothing else; `verify` runs paired branches with
everything they need: the policy's forward pass, noise, plans, rewards, values, bookkeeping.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from mujoco import rollout
from numpy.typing import NDArray

import ultra
from ultra.analysts.random import random_plan
from ultra.budget import StepBudget
from ultra.collection import collect
from ultra.config import VerifyConfig
from ultra.pipeline import BRANCHES_TOGETHER
from ultra.policy import Policy, load_policy
from ultra.tasks import get_task
from ultra.tasks.batch import Batch, Snapshot
from ultra.verification import Bench, Proposal, verify


def record(
    batch: Batch, policy: Policy, starts: list[Snapshot], horizon: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Physics states (n, state size) of the starts, and the policy's own actions from there (horizon, n, dim)."""
    size, space = batch.size, policy.architecture.action_space
    observations = batch.restore(range(size), [starts[i % len(starts)] for i in range(size)])
    states = np.stack([np.frombuffer(snapshot)[:-1] for snapshot in batch.snapshots(range(size))])
    actions = []
    for _ in range(horizon):
        own = space.clip(policy.decide(observations, policy.draw_noise(rng, (size,))).actions)
        actions.append(np.asarray(own, np.float64))
        observations = batch.step(own).observations
    return states, np.stack(actions)


def raw_rate(environment: str, recorded: tuple[NDArray[np.float64], NDArray[np.float64]], least: int) -> float:
    """Steps per second of `mujoco.rollout` alone, one call for each step of all environments."""
    unwrapped: Any = gymnasium.make(environment).unwrapped
    states, actions = recorded
    threads = os.cpu_count() or 1
    data = [mujoco.MjData(unwrapped.model) for _ in range(threads)]
    control = np.zeros((len(states), unwrapped.frame_skip, actions.shape[2]))
    trace = np.zeros((len(states), unwrapped.frame_skip, states.shape[1]))
    steps = 0
    with rollout.Rollout(nthread=threads) as engine:
        began = time.perf_counter()
        while steps < least:
            now = states.copy()
            for row in actions:
                control[:] = row[:, None]
                engine.rollout(unwrapped.model, data, now, control, nstep=unwrapped.frame_skip, state=trace)
                now[:] = trace[:, -1]
                steps += len(states)
        return steps / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="hopper")
    parser.add_argument("--environment", default="Hopper-v5", help="the task's Gymnasium id, for its model")
    parser.add_argument("--policy", type=Path, default=Path(ultra.__file__).parent / "policies" / "hopper")
    parser.add_argument("--states", type=int, default=64)
    parser.add_argument("--horizon", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    task, policy = get_task(options.task), load_policy(options.policy)
    rng = np.random.default_rng(0)
    episodes = collect(task, policy, [1, 2, 3, 4], 0.99, longest=400)
    space = task.action_space
    replay = task.make_local_batch(1)
    starts = []
    for _ in range(options.states):
        episode = episodes[int(rng.integers(len(episodes)))]
        starts.append(episode.snapshot(int(rng.integers(len(episode))), replay, space)[0])
    replay.close()
    batch = task.make_batch(BRANCHES_TOGETHER)
    proposals = [Proposal(random_plan(space, 16, rng), start) for start in starts]
    recorded = record(batch, policy, starts, options.horizon, rng)
    ratios, rates = [], []
    for repeat in range(options.repeats + 1):
        budget = StepBudget(10**9)
        bench = Bench(batch, policy, 0.99, options.horizon, budget, "verify", 10**9, np.random.default_rng(repeat))
        began = time.perf_counter()
        verify(proposals, bench, VerifyConfig(branches=16))
        verified = budget.used / (time.perf_counter() - began)
        raw = raw_rate(options.environment, recorded, budget.used)
        if repeat:  # the first one compiles
            ratios.append(verified / raw)
            rates.append((verified, raw))
    batch.close()
    for verified, raw in rates:
        print(f"verify {verified:8,.0f} steps/s   raw {raw:8,.0f} steps/s   ratio {verified / raw:.2f}")
    print(f"median ratio {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
