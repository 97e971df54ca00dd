"""What programs are worth: examples from files, `search` alone, and a pool of harmful ones, beside plain PPO.

    python benchmarks/programs.py --out runs/programs [--part examples search harmful others] [--jobs 2]

A finished run is kept in its directory and not done again; the tables are written from what is there. The plan was
written before the first run: docs/results/programs.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ultra import api
from ultra.common.files import write_json
from ultra.common.locks import hold_directory
from ultra.common.statistics import difference_interval, mean_interval
from ultra.common.streams import stream
from ultra.config import (
    AnalyseConfig,
    CollectConfig,
    EvaluateConfig,
    PPOConfig,
    RefineConfig,
    TrainConfig,
    VerifyConfig,
)
from ultra.tasks import get_task
from ultra.tasks.spaces import Continuous

STEPS = 200_000
EXAMPLES = Path(__file__).parent.parent / "examples" / "programs"
STARTS: dict[str, str | tuple[str, int]] = {
    "hopper": "shipped:hopper",
    "pong": "shipped:pong",
    "walker2d": ("walker2d", 100_000),
    "halfcheetah": ("halfcheetah", 100_000),
    "reacher": ("reacher", 100_000),
    "Swimmer-v5": ("Swimmer-v5", 300_000),
}
"""Starting policies: shipped ones, or plain PPO from scratch, so many steps, seed 7."""
TRAINING_SEED = 7
HARMFUL = 20


@dataclass(frozen=True)
class Job:
    """One refinement."""

    part: str
    task: str
    name: str
    seed: int
    config: RefineConfig

    def path(self, out: Path) -> Path:
        """Its run directory."""
        return out / "runs" / f"{self.part}-{self.task}-{self.name}-{self.seed}"


def start_of(task: str, out: Path) -> str:
    """The starting policy of a task, trained if need be."""
    start = STARTS[task]
    if isinstance(start, str):
        return start
    path = out / "starts" / f"{start[0]}-{start[1]}"
    if not (path / "result.json").is_file():
        api.train(TrainConfig(task=start[0], steps=start[1], seed=TRAINING_SEED), path)
    return str(path)


def harmful(task: str, out: Path) -> Path:
    """A file of programs that hold actuators still or push them hard, whatever the state: worthless or harmful."""
    card, rng = get_task(task).card, stream("harmful programs", task)
    names = [action.name for action in card.actions]
    programs = []
    for number in range(HARMFUL):
        fact = card.fact_names[rng.integers(len(card.fact_names))]
        when = "true" if number % 2 else f"{fact} > prev({fact})"
        action = names[rng.integers(len(names))]
        push: dict[str, Any] = {"action": action}
        if isinstance(get_task(task).action_space, Continuous):
            kind, value = ("set", "add")[number % 3 == 0], float(rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0]))
            push = {kind: {action: value or 0.9}}
        programs.append({"name": f"harmful {number}", "rules": [{"when": when, **push}]})
    write_json(out / f"harmful-{task}.json", {"programs": programs})
    return out / f"harmful-{task}.json"


def base(task: str, policy: str, seed: int) -> RefineConfig:
    """Settings that all runs of a task share."""
    episodes = {"reacher": 200, "pong": 10}.get(task, 30)
    config = RefineConfig(
        task=task,
        policy=policy,
        steps=STEPS,
        seed=seed,
        workers=1,
        collect=CollectConfig(share=0.05 if task == "pong" else 0.02),
        analyse=AnalyseConfig(share=0.02),
        verify=VerifyConfig(share=0.05),
        evaluate=EvaluateConfig(episodes=episodes),
    )
    return replace(config, ppo=PPOConfig(entropy=0.01)) if task == "pong" else config


def jobs(part: str, out: Path) -> Iterator[Job]:
    """The refinements of a part, seed by seed."""
    tasks, seeds = {
        "examples": (("Swimmer-v5", "reacher", "pong"), range(2101, 2106)),
        "search": (("hopper", "walker2d"), range(2201, 2211)),
        "others": (("halfcheetah", "reacher", "pong"), range(2301, 2306)),
        "harmful": (("hopper", "pong"), range(2401, 2406)),
    }[part]
    analysts = {
        "examples": lambda task: f"programs:{EXAMPLES / (task.split('-')[0].lower() + '.json')}",
        "harmful": lambda task: f"programs:{harmful(task, out)}",
    }
    for seed in seeds:
        for task in tasks:
            plain = base(task, start_of(task, out), seed)
            analyst = analysts.get(part, lambda task: "search")(task)
            yield Job(part, task, "ppo", seed, replace(plain, method="ppo"))
            yield Job(part, task, "ultra-ra", seed, replace(plain, method="ultra-ra", analyst=analyst))


def run(job: Job, out: Path) -> dict[str, Any]:
    """Refine, unless it has been done."""
    path = job.path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    return api.refine(job.config, path)


def table(part: str, out: Path) -> list[str]:
    """The results of a part in Markdown, of the runs that are done."""
    lines = [
        "| task | start | PPO | ULTRA-RA | by seed (PPO; ULTRA-RA) | difference [95%] | P(better) | adopted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found: dict[str, dict[str, list[tuple[int, dict[str, Any]]]]] = {}
    for job in jobs(part, out):
        path = job.path(out) / "result.json"
        if path.is_file():
            found.setdefault(job.task, {}).setdefault(job.name, []).append((job.seed, json.loads(path.read_text())))
    for task, runs in found.items():
        if len(runs) < 2:
            continue
        both = sorted({seed for seed, _ in runs["ppo"]} & {seed for seed, _ in runs["ultra-ra"]})
        ppo, ultra = ([dict(runs[name])[seed] for seed in both] for name in ("ppo", "ultra-ra"))
        ours, theirs = ([run["return"]["last"]["mean"] for run in group] for group in (ultra, ppo))
        if len(both) < 2:
            continue
        gap = difference_interval(ours, theirs)
        better = float(np.mean([(a > b) + 0.5 * (a == b) for a in ours for b in theirs]))
        adopted = [run["adopted"]["how"] for run in ultra]
        start = mean_interval([run["return"]["start"]["mean"] for run in ultra]).mean
        counts = ", ".join(f"{how} {adopted.count(how)}" for how in sorted(set(adopted)))
        each = [" ".join(f"{value:.4g}" for value in values) for values in (theirs, ours)]
        lines.append(
            f"| {task} | {start:.4g} | {np.mean(theirs):.4g} | **{np.mean(ours):.4g}** | {each[0]}; {each[1]} | "
            f"{gap.mean:+.4g} [{gap.low:+.4g}, {gap.high:+.4g}] | {better:.2f} | {counts} |"
        )
    return lines


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/programs"))
    parser.add_argument("--part", nargs="+", default=["examples", "search", "harmful", "others"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.tables:
        with hold_directory(options.out), ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
            waiting = [pool.submit(run, job, options.out) for part in options.part for job in jobs(part, options.out)]
            for number, future in enumerate(waiting, 1):
                result = future.result()
                last = result["return"]["last"]["mean"]
                print(f"{number}/{len(waiting)} {result['task']} {result['method']} {result['seed']}: {last:.4g}")
    for part in options.part:
        print(f"\n## {part}\n")
        print("\n".join(table(part, options.out)))
    write_json(options.out / "done.json", {"parts": options.part})


if __name__ == "__main__":
    main()
