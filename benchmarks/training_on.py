"""Training on without forgetting: what PPO makes of a policy whose last layer was tuned in the simulator.

    python benchmarks/training_on.py [--tasks hopper walker2d] [--seeds 1000 1001] [--settings plain kl-1 ...]

Every seed trains a policy with PPO, tunes offsets and gains of its last layer by CMA-ES in whole episodes of most
likely actions, and then lets PPO go on from the result in several ways. Everything lands in `--out`, and what is
there already is not done again; `--page` writes the table.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from cmaes import CMA
from numpy.typing import NDArray

from ultra.common.streams import stream
from ultra.config import PPOConfig
from ultra.policies.io import load_policy, save_policy
from ultra.policies.policy import Architecture, Policy, create_policy
from ultra.ppo.train import train
from ultra.simulation.branches import Branch, simulate
from ultra.tasks import get_task
from ultra.tasks.task import Task

BASE_STEPS = {"hopper": 134_000, "walker2d": 400_000}
"""Steps of the first training: with fewer, tuning makes nothing of Walker2d that could be forgotten."""
TUNE_STEPS, STEPS = 40_000, 60_000
"""Steps of the tuning, and of training on."""
POPULATION = 15
EPISODES = 16
"""Fresh whole episodes, with most likely actions, in which a policy is measured."""
PAIRS = {"hopper": (0, 1, 2), "walker2d": (0, 1, 2, 0, 1, 2)}
"""The number that each action shares with its counterpart on the other side."""


def last_layer(policy: Policy, numbers: NDArray[np.float64], shared: Sequence[int]) -> Policy:
    """The policy whose actions are (1 + gain) * action + offset; `numbers` are offsets, then gains."""
    offsets, gains = (part[list(shared)].astype(np.float32) for part in np.split(numbers, 2))
    *rest, last = policy.params["actor"]
    tuned = {"w": last["w"] * (1 + gains), "b": last["b"] * (1 + gains) + offsets}
    actor = [*rest, {name: jnp.asarray(array) for name, array in tuned.items()}]
    return replace(policy, params={**policy.params, "actor": actor})


def play(task: Task, policies: Sequence[Policy], seeds: Sequence[int]) -> tuple[NDArray[np.float64], int]:
    """Returns (policies, seeds) of whole episodes with most likely actions, and the steps taken."""
    batch = task.make_batch(len(seeds), 1)
    branches = [Branch(seed, task.time_limit, reset_seed=seed) for seed in seeds]
    played = [simulate(batch, policy, branches, 1.0, deterministic=True) for policy in policies]
    batch.close()
    steps = sum(outcome.steps for outcomes in played for outcome in outcomes)
    return np.array([[outcome.reward for outcome in outcomes] for outcomes in played]), steps


def measured(task: Task, policy: Policy, seed: int) -> list[float]:
    """Returns of fresh episodes."""
    seeds = stream(seed, "training on", "evaluation").integers(2**31, size=EPISODES).tolist()
    returns: list[float] = play(task, [policy], seeds)[0][0].tolist()
    return returns


def trained(task: Task, seed: int, folder: Path) -> Policy:
    """PPO from scratch, with the settings of `ultra train`."""
    if not (folder / "policy.json").is_file():
        rng = np.random.default_rng(seed)
        fresh = create_policy(Architecture(task.observation_size, task.action_space), rng)
        policy = train(task, fresh, PPOConfig(), BASE_STEPS[task.name], rng, learn_statistics=True, workers=1)
        save_policy(policy, folder, {"returns": measured(task, policy, seed)})
    return load_policy(folder)


def tuned(task: Task, policy: Policy, seed: int, folder: Path) -> Policy:
    """The policy with offsets and gains of its last layer found by CMA-ES."""
    if not (folder / "policy.json").is_file():
        rng = stream(seed, "training on", "tuning")
        size = 2 * len(set(PAIRS[task.name]))
        search = CMA(np.zeros(size), 0.2, population_size=POPULATION, seed=int(rng.integers(2**31)))
        left = TUNE_STEPS
        while left > POPULATION * task.time_limit // 2:
            asked = [search.ask() for _ in range(POPULATION)]
            policies = [last_layer(policy, numbers, PAIRS[task.name]) for numbers in asked]
            returns, steps = play(task, policies, [int(rng.integers(2**31))])
            search.tell([(numbers, -float(value)) for numbers, value in zip(asked, returns[:, 0], strict=True)])
            left -= steps
        found = last_layer(policy, search.mean, PAIRS[task.name])
        about = {"returns": measured(task, found, seed), "numbers": search.mean.tolist()}
        save_policy(found, folder, about)
    return load_policy(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["hopper", "walker2d"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1000, 1001, 1002])
    parser.add_argument("--out", type=Path, default=Path("runs/training-on"))
    options = parser.parse_args()
    for seed in options.seeds:
        for name in options.tasks:
            task, folder = get_task(name), options.out / f"{name}-{seed}"
            began = time.monotonic()
            base = trained(task, seed, folder / "base")
            middle = time.monotonic()
            tuned(task, base, seed, folder / "tuned")
            for stage in ("base", "tuned"):
                about = json.loads((folder / stage / "policy.json").read_text())
                print(name, seed, stage, {k: about[k] for k in about if k in ("returns",)} or list(about), flush=True)
            print(f"{middle - began:.0f} s, {time.monotonic() - middle:.0f} s", flush=True)


if __name__ == "__main__":
    main()
