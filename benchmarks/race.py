"""What the race of `search`'s structures makes of trained policies: before and after, on fresh episodes.

    python benchmarks/race.py TASK POLICY [POLICY ...] [--steps 50000] [--proposals 12] [--seed 1000]

A policy is a directory that `ultra train` or `ultra refine` made. What is measured is the race alone: no verification,
no adoption. Steps are those of the race; the episodes that show where facts lie, and the fresh ones, come on top.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ultra.analysts.base import Case
from ultra.analysts.structures import search_proposals
from ultra.collection.collect import collect_within
from ultra.common.streams import stream
from ultra.config import AnalyseConfig
from ultra.policies.io import load_policy
from ultra.policies.policy import Policy
from ultra.programs.compiled import Compiled, Controller, compile_programs
from ultra.programs.records import Program
from ultra.simulation.branches import Branch, simulate
from ultra.simulation.budget import StepBudget
from ultra.simulation.paired import PairedEvaluator
from ultra.tasks import Batch, Task, get_task
from ultra.tuning.entrants import enter
from ultra.tuning.race import race

TOGETHER = 64
"""Environments of the batch."""
COLLECTED = 6_000
"""Steps for the episodes that show where facts lie."""
FRESH = 16
"""Episodes with which policies are evaluated."""


def main() -> None:
    """Race for each policy, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("policies", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--proposals", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1000)
    arguments = parser.parse_args()
    task = get_task(arguments.task)
    batch = task.make_batch(TOGETHER)
    print("| policy | before | after | claimed | programs | tried | steps |\n|---|---|---|---|---|---|---|")
    changes = []
    for number, path in enumerate(arguments.policies):
        rng = stream(arguments.seed, "race", number)
        before, after, row = raced(task, load_policy(path), batch, arguments.steps, arguments.proposals, rng)
        changes.append(after.mean() - before.mean())
        print(f"| {path.name} | {before.mean():.5g} | {after.mean():.5g} | {row} |", flush=True)
    error = np.std(changes) / np.sqrt(max(1, len(changes) - 1))
    print(f"\nmean change {np.mean(changes):+.4g} +- {error:.2g}")


def raced(
    task: Task, policy: Policy, batch: Batch, steps: int, count: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], str]:
    """Returns before and after in fresh episodes, and the rest of a row of the table."""
    names = [action.name for action in task.card.actions]

    def compile_all(programs: Sequence[Program]) -> Compiled:
        return compile_programs(programs, task.card.fact_names, names, task.action_space)

    budget = StepBudget(steps)
    episodes = collect_within(task, policy, rng, 0.99, COLLECTED, most=8)
    case = Case(task, policy, episodes, AnalyseConfig(), 0.99, batch, batch, budget, steps, rng)
    entrants = enter(search_proposals(case, count), compile_all, rng)
    ends = any(episode.terminated for episode in episodes)
    usual = float(np.mean([len(episode) for episode in episodes])) if ends else None
    evaluator = PairedEvaluator(
        batch, policy, 1.0, task.time_limit, budget, "analyse", steps, rng, sampled=task.sampled_evaluation
    )
    found = race(entrants, evaluator, steps, usual, compile_all)
    best = next((standing for standing in found.standings if standing.gain > 0), None)
    controllers = [None, Controller.of(compile_all(best.programs)) if best else None]
    seeds = rng.integers(2**31, size=FRESH).tolist()
    before, after = (
        np.array([
            outcome.reward
            for outcome in simulate(
                batch,
                policy,
                [Branch(seed, task.time_limit, reset_seed=seed, controller=controller) for seed in seeds],
                1.0,
                deterministic=not task.sampled_evaluation,
            )
        ])
        for controller in controllers
    )  # fmt: skip
    tried = sum(entrant.tried for entrant in entrants)
    claimed = f"{best.gain:+.4g} ({len(best.differences)})" if best else "nothing"
    programs = " + ".join(program.name for program in best.programs) if best else ""
    return before, after, f"{claimed} | {programs} | {tried} of {len(entrants)} | {found.steps:,}"


if __name__ == "__main__":
    main()
