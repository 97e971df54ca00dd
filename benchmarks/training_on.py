"""Training on without forgetting: what PPO makes of a policy whose last layer was tuned in the simulator.

    python benchmarks/training_on.py [--tasks hopper walker2d] [--seeds 1000 1001] [--settings plain kl-1 ...]

Every seed trains a policy with PPO, tunes offsets and gains of its last layer by CMA-ES in whole episodes of most
likely actions, and then lets PPO go on from the result in several ways. Everything lands in `--out`, and what is
there already is not done again; the table is printed at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from cmaes import CMA
from numpy.typing import NDArray

from ultra.common.files import write_json
from ultra.common.streams import stream
from ultra.config import AnchorConfig, PPOConfig
from ultra.evaluation.late_policies import LatePolicies, choose
from ultra.policies.io import SHIPPED, load_policy, save_policy
from ultra.policies.policy import Architecture, Policy, create_policy
from ultra.ppo.train import train
from ultra.programs.compiled import Controller, compile_programs
from ultra.programs.records import Assignment, Program
from ultra.simulation.branches import Branch, simulate
from ultra.simulation.budget import StepBudget
from ultra.tasks import get_task
from ultra.tasks.task import Task

FIRST_STEPS, BASE_STEPS = {"hopper": 134_000, "walker2d": 400_000}, 134_000
"""Steps of training from scratch (with fewer, tuning makes nothing of Walker2d), and of a refinement's training."""
TUNE_STEPS, STEPS = 40_000, 60_000
"""Steps of the tuning, and of training on."""
POPULATION = 15
EPISODES = 16
"""Fresh whole episodes, with most likely actions, in which a policy is measured."""
PAIRS = {"hopper": (0, 1, 2), "walker2d": (0, 1, 2, 0, 1, 2)}
"""The number that each action shares with its counterpart on the other side."""


LATE, CHOICE_STEPS = 5, 20_000
"""Policies that are kept on the way, and most steps for comparing them with the adopted one."""


@dataclass(frozen=True)
class Setting:
    """A way to train on."""

    words: str
    keep: AnchorConfig | None = None
    learning_rate: float = 3e-4
    residual: bool = False
    """Whether the untuned network is trained with the tuned numbers as a program underneath."""


FREE = AnchorConfig(critic_rollouts=0, noise=1e6, weight=0.0)
CRITIC, QUIET = replace(FREE, critic_rollouts=5), replace(FREE, noise=0.1)
CAREFUL = replace(CRITIC, noise=0.1)
SETTINGS = {
    "plain": Setting("plain PPO"),
    "critic": Setting("critic first (5 rollouts)", CRITIC),
    "quiet": Setting("noise 0.1", QUIET),
    "careful": Setting("critic first, noise 0.1", CAREFUL),
    "slow": Setting("critic first, noise 0.1, learning rate 3e-5", CAREFUL, learning_rate=3e-5),
    "kl-0.3": Setting("critic first, noise 0.1, KL 0.3", replace(CAREFUL, weight=0.3)),
    "kl-1": Setting("critic first, noise 0.1, KL 1", replace(CAREFUL, weight=1.0)),
    "kl-10": Setting("critic first, noise 0.1, KL 10", replace(CAREFUL, weight=10.0)),
    "kl-0.3-loud": Setting("critic first, KL 0.3", replace(CRITIC, weight=0.3)),
    "kl-1-half": Setting("critic first, noise 0.3, KL 1", replace(CRITIC, noise=0.3, weight=1.0)),
    "kl-1-loud": Setting("critic first, KL 1", replace(CRITIC, weight=1.0)),
    "kl-1-back": Setting(
        "critic first, noise 0.1, KL 1 the other way", replace(CAREFUL, weight=1.0, direction="policy")
    ),
    "residual": Setting("residual: the program underneath, critic first, noise 0.1", CAREFUL, residual=True),
}


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


def trained(task: Task, seed: int, folder: Path, *, refined: bool) -> Policy:
    """PPO from scratch, with the settings of `ultra train`; or as `ultra refine` trains a sub-optimal policy."""
    if not (folder / "policy.json").is_file():
        if refined:
            start = SHIPPED / "hopper" if task.name == "hopper" else folder.parents[1] / f"{task.name}-start"
            if not (start / "policy.json").is_file():
                save_policy(from_scratch(task, 1000, 200_000), start)
            rng = stream(seed, "training on", "base")
            policy = train(task, load_policy(start), PPOConfig(), BASE_STEPS, rng, standardized=True, workers=1)
        else:
            policy = from_scratch(task, seed, FIRST_STEPS[task.name])
        save_policy(policy, folder, {"returns": measured(task, policy, seed)})
    return load_policy(folder)


def from_scratch(task: Task, seed: int, steps: int) -> Policy:
    """A policy of PPO that learns its statistics too."""
    rng = np.random.default_rng(seed)
    fresh = create_policy(Architecture(task.observation_size, task.action_space), rng)
    return train(task, fresh, PPOConfig(), steps, rng, learn_statistics=True, workers=1)


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


def underneath(task: Task, numbers: NDArray[np.float64]) -> Controller:
    """The tuned numbers as a program: what `last_layer` puts into the network."""
    shared = list(PAIRS[task.name])
    offsets, gains = (part[shared] for part in np.split(numbers, 2))
    actions = [action.name for action in task.card.actions]
    rows = zip(actions, offsets.tolist(), gains.tolist(), strict=True)
    rule = Assignment(add=tuple((name, f"{offset:.17g} + {gain:.17g} * agent({name})") for name, offset, gain in rows))
    facts = [fact.name for fact in task.card.facts]
    return Controller.of(compile_programs([Program("tuned", (rule,))], facts, actions, task.action_space))


def trained_on(task: Task, seed: int, folder: Path, name: str) -> dict[str, Any]:
    """What a setting makes of the tuned policy: returns of the last policy, and of the best one on the way."""
    setting, result = SETTINGS[name], folder / f"{name}.json"
    if result.is_file():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    adopted = load_policy(folder / "tuned")
    numbers = np.array(json.loads((folder / "tuned" / "policy.json").read_text())["about"]["numbers"])
    begin = load_policy(folder / "base") if setting.residual else adopted
    late = LatePolicies(folder / name, LATE, 1.0)
    last = train(
        task, begin, PPOConfig(learning_rate=setting.learning_rate), STEPS, stream(seed, "training on", "ppo"),
        keep=setting.keep, late=late, underneath=(underneath(task, numbers),) if setting.residual else None, workers=1,
    )  # fmt: skip
    # The program is affine in the network's actions: with it in the last layer, the policy does the same by itself.
    whole = (
        (lambda policy: last_layer(policy, numbers, PAIRS[task.name])) if setting.residual else lambda policy: policy
    )
    named = [(label, whole(policy)) for label, policy in late.load()]
    budget = StepBudget(CHOICE_STEPS)
    rng = stream(seed, "training on", "choice")
    best = choose([*named, ("adopted", adopted)], task, CHOICE_STEPS, budget, rng, workers=1)
    returns = {label: measured(task, policy, seed) for label, policy in (("last", whole(last)), ("best", best))}
    found = returns | {"choice": budget.used}
    write_json(result, found)
    shutil.rmtree(folder / name)
    return found


def folder_of(out: Path, task: str, seed: int, refined: bool) -> Path:
    """Where the policies of a task and a seed lie."""
    return out / f"{task}{'-refined' if refined else ''}-{seed}"


def table(out: Path, tasks: Sequence[str], seeds: Sequence[int], names: Sequence[str], refined: bool) -> list[str]:
    """The mean returns of each setting, and how often the adopted policy stays the best."""
    lines = ["| task | setting | last | best | by seed: last | by seed: best | adopted stays |", "|" + "---|" * 7]
    for task in tasks:
        folders = [folder_of(out, task, seed, refined) for seed in seeds]
        about = [json.loads((folder / "tuned" / "policy.json").read_text())["about"] for folder in folders]
        means = [float(np.mean(one["returns"])) for one in about]
        listed = ", ".join(f"{value:,.0f}" for value in means)
        lines.append(f"| {task} | the adopted policy | {np.mean(means):,.0f} | | {listed} | | |")
        for name in names:
            paths = [folder / f"{name}.json" for folder in folders]
            if not all(path.is_file() for path in paths):
                continue
            found = [json.loads(path.read_text()) for path in paths]
            last, best = ([float(np.mean(one[label])) for one in found] for label in ("last", "best"))
            by_seed = " | ".join(", ".join(f"{value:,.0f}" for value in values) for values in (last, best))
            stays = sum(one["best"] == before["returns"] for one, before in zip(found, about, strict=True))
            lines.append(
                f"| | {SETTINGS[name].words} | {np.mean(last):,.0f} | {np.mean(best):,.0f} | {by_seed} | "
                f"{stays} of {len(found)} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["hopper", "walker2d"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1000, 1001, 1002])
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--out", type=Path, default=Path("runs/training-on"))
    parser.add_argument("--refined", action="store_true", help="start from sub-optimal policies, refined by PPO")
    options = parser.parse_args()
    for name, seed in product(options.tasks, options.seeds):
        task, folder = get_task(name), folder_of(options.out, name, seed, options.refined)
        base = trained(task, seed, folder / "base", refined=options.refined)
        tuned(task, base, seed, folder / "tuned")
    for setting, name, seed in product(options.settings, options.tasks, options.seeds):
        began = time.monotonic()
        found = trained_on(get_task(name), seed, folder_of(options.out, name, seed, options.refined), setting)
        means = ", ".join(f"{label} {np.mean(found[label]):,.0f}" for label in ("last", "best"))
        print(f"{name} {seed} {setting}: {means} ({time.monotonic() - began:.0f} s)", flush=True)
    print("\n".join(table(options.out, options.tasks, options.seeds, options.settings, options.refined)))


if __name__ == "__main__":
    main()
