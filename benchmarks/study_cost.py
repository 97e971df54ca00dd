"""What a study costs: core-hours, and hours on so many workers, from the measured cost of single runs.

    python benchmarks/study_cost.py measure                                      # a few minutes; writes the table below
    python benchmarks/study_cost.py studies/paper.yaml --workers 2 10 100 1000   # a minute of arithmetic

`measure` does five runs of each task as a study does them, on one core each, and solves for what the start of a run, a
step of training, a step of simulation alone and a step of evaluation cost in core-seconds. It writes
`docs/results/run-costs.csv`. A study's runs are then given to workers in their order, each to the next one that is
free. With `--models N --seeds M` the study has N language models as analysts beside its own, and M seeds.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from ultra.config import RefineConfig, TrainConfig
from ultra.finetuning.methods import STAGES, analyst_of
from ultra.pipeline.reporting import markdown_table
from ultra.pipeline.schedule import schedule
from ultra.policies.io import SHIPPED
from ultra.studies.display import asks_for_money
from ultra.studies.plan import Job, Study, StudyAnalyst, load_study
from ultra.studies.work import thread_limits
from ultra.tasks import get_task

Costs = dict[str, dict[str, float]]
COSTS = Path(__file__).parents[1] / "docs" / "results" / "run-costs.csv"
STEPS = {"hopper": 60_000, "walker2d": 60_000, "halfcheetah": 60_000, "reacher": 60_000, "pong": 24_000}
"""Of the longer measured runs."""
EPISODES = {"pong": 6}
"""Of the longer evaluation; 30 elsewhere."""
CHANCE_EPISODES = 5

QUESTIONS, SECONDS = 16, 15.0
"""Of a run that asks a language model (docs/llm.md), and how long an answer takes: assumed."""
TOKENS_IN, TOKENS_OUT = 90_000, 20_000
"""Of such a run: measured, and assumed."""
CORE_HOUR, MILLION_IN, MILLION_OUT = 0.04, 1.0, 5.0
"""Assumed prices in US dollars."""


def run_once(task: str, policy: Path, method: str, steps: int, episodes: int) -> tuple[float, dict[str, int]]:
    """Core-seconds of a run in a process of its own, and its budget."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "ultra", "refine", task, "--policy", str(policy), "--method", method]
        command += ["--steps", str(steps), "--evaluate.episodes", str(episodes), "--workers", "1", "--quiet"]
        used = core_seconds(command, out)
        budget: dict[str, int] = json.loads((out / "result.json").read_text())["budget"]
        return used, budget


def core_seconds(command: list[str], out: Path) -> float:
    """Core-seconds of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, "--out", str(out)], check=True, env=os.environ | thread_limits(1), capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(task: str, folder: Path) -> dict[str, float]:
    """What the parts of a run on a task cost."""
    policy, steps, many = SHIPPED / task, STEPS[task], EPISODES.get(task, 30)
    if not (policy / "policy.json").is_file():
        policy = folder / task
        command = [sys.executable, "-m", "ultra", "train", task, "--steps", "40000", "--evaluate.episodes", "2"]
        core_seconds([*command, "--workers", "1", "--quiet"], policy)
    run_once(task, policy, "ultra-ra", steps // 3, 2)  # compiled code is kept from here on
    runs = [("ppo", steps // 6, 2), ("ppo", steps, 2), ("ppo", steps, many), ("ultra-ra", steps, 2)]
    rows, seconds, length = [], [], 0.0
    for method, budget, episodes in runs:
        used, spent = run_once(task, policy, method, budget, episodes)
        simulated = sum(spent[name] for name in ("collect", "analyse", "verify", "choose", "audit"))
        rows.append([1, spent["train"], simulated, spent["evaluation"]])
        seconds.append(used)
        if episodes == many:
            length = spent["evaluation"] / (2 * many + CHANCE_EPISODES)
    fixed, train, simulate, evaluate = np.linalg.solve(np.array(rows, float), seconds)
    return {"fixed": fixed, "train": 1 / train, "simulate": 1 / simulate, "evaluate": 1 / evaluate, "episode": length}


def cost_of(job: Job, costs: Costs) -> float:
    """Core-seconds of one run of a study."""
    config = job.config
    cost = costs[config.task.removeprefix("sparse-")]
    limit = get_task(config.task).time_limit
    # A better policy of a task in which one falls plays longer: twice as long, say.
    length, longer = cost["episode"], min(limit, 2 * cost["episode"]) if limit > 50 else cost["episode"]
    if isinstance(config, TrainConfig):
        return cost["fixed"] + config.steps / cost["train"] + config.evaluate.episodes * length / cost["evaluate"]
    simulated = sum(shares(config).values()) * config.steps
    trained = config.steps - simulated if STAGES[config.method] else 0
    evaluated = config.evaluate.episodes * (length + (longer if trained else 0)) + CHANCE_EPISODES * length
    return cost["fixed"] + trained / cost["train"] + simulated / cost["simulate"] + evaluated / cost["evaluate"]


def shares(config: RefineConfig) -> dict[str, float]:
    """The most that a run may simulate without learning, as shares of its steps; a mask network learns."""
    parts: dict[str, float] = {}
    for plan in schedule(config, "last", get_task(config.task).time_limit):
        for name in ("collect", "analyse", "verify", "race", "prove", "choose"):
            part = 0 if name == "analyse" and analyst_of(config) in ("statemask", "random") else getattr(plan, name)
            parts[name] = parts.get(name, 0.0) + part / config.steps
    return parts


def makespan(seconds: list[float], workers: int) -> float:
    """Hours until the last run has ended, if each goes to the next worker that is free."""
    free = [0.0] * workers
    for needed in seconds:
        heapq.heappush(free, heapq.heappop(free) + needed)
    return max(free) / 3600


def with_models(study: Study, models: int, seeds: int) -> Study:
    """The study with so many language models as analysts beside its own."""
    more = tuple(StudyAnalyst(f"model {k}", f"llm:local/model-{k}") for k in range(models))
    return replace(study, analysts=study.analysts + more, seeds=tuple(range(seeds)) if seeds else study.seeds)


def describe(study: Study, workers: list[int], costs: Costs) -> str:
    """The cost of a study in words and a table."""
    trainings = [cost_of(job, costs) for job in study.trainings(Path("out"))]
    jobs = study.refinements(Path("out"))
    refinements = [cost_of(job, costs) for job in jobs]
    asking = sum(isinstance(job.config, RefineConfig) and asks_for_money(job.config) for job in jobs)
    total = (sum(trainings) + sum(refinements)) / 3600
    lines = [f"{len(jobs)} runs and {len(trainings)} trainings: {total:.1f} core-hours, ${total * CORE_HOUR:.2f}"]
    if asking:
        tokens = asking * (TOKENS_IN + TOKENS_OUT) / 1e6
        price = asking * (TOKENS_IN * MILLION_IN + TOKENS_OUT * MILLION_OUT) / 1e6
        answers = asking * QUESTIONS * SECONDS / 3600
        lines.append(f"{asking} ask a model: {tokens:,.0f} million tokens, ${price:,.0f}")
        lines += [f"hours of asking with {n} requests under way: {answers / n:.1f}" for n in (8, 200)]
        lines.append(f"hours of asking at 2 million tokens a minute: {tokens / 2 / 60:.1f}")
    rows = []
    for number in workers:
        hours = makespan(trainings, number) + makespan(refinements, number)
        rows.append([f"{number:,}", f"{hours:.2f}", f"{total / hours / number:.0%}"])
    lines.append(f"the longest run: {max(refinements) / 3600:.2f} hours")
    return "\n".join([*lines, "", markdown_table(["workers", "hours", "of them busy"], rows)])


def load() -> Costs:
    """What was measured."""
    with COSTS.open() as file:
        return {row.pop("task"): {k: float(v) for k, v in row.items()} for row in csv.DictReader(file)}


def save(costs: Costs) -> None:
    """Keep what was measured."""
    with COSTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", *next(iter(costs.values()))])
        writer.writerows([task, *(f"{value:.4g}" for value in cost.values())] for task, cost in costs.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", help="`measure`, or a study file")
    parser.add_argument("--tasks", nargs="+", default=list(STEPS), choices=list(STEPS), help="to measure")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 10, 100, 1000])
    parser.add_argument("--models", type=int, default=0, help="language models as further analysts")
    parser.add_argument("--seeds", type=int, default=0, help="seeds, if not the study's own")
    options = parser.parse_args()
    if options.what == "measure":
        with tempfile.TemporaryDirectory() as folder:
            save({**(load() if COSTS.is_file() else {}), **{t: measure(t, Path(folder)) for t in options.tasks}})
        print(COSTS.read_text())
        return
    costs = load()
    print(describe(with_models(load_study(Path(options.what)), options.models, options.seeds), options.workers, costs))


if __name__ == "__main__":
    main()
