"""Refine a policy that ships with the package, offline, in a few minutes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ultra.api import refine
from ultra.config import AnalyseConfig, CollectConfig, EvaluateConfig, PPOConfig, RefineConfig
from ultra.pipeline.progress import Reporter
from ultra.pipeline.reporting import advice_of, comparison, draw_curves, explain, programs_summary, write_report
from ultra.pipeline.run import Run
from ultra.policies.io import SHIPPED

DEFAULTS = {
    "hopper": RefineConfig(task="hopper", steps=200_000),
    "pong": RefineConfig(
        task="pong",
        steps=120_000,
        collect=CollectConfig(share=0.05),
        analyse=AnalyseConfig(share=0.1),
        ppo=PPOConfig(entropy=0.01),
        evaluate=EvaluateConfig(episodes=10),
    ),
}
"""What `ultra quickstart TASK` does."""


def quickstart(task: str, out: Path, steps: int, seed: int, reporter: Reporter) -> None:
    """Refine a shipped policy with ULTRA-RA and with plain PPO at the same total budget.

    Args:
        task: `hopper` or `pong`.
        out: directory for the runs and the picture.
        steps: environment steps for each method; 0 takes the task's default.
        seed: of all randomness.
        reporter: shows progress.
    """
    console = Console(highlight=False)
    config = replace(DEFAULTS[task], policy=str(SHIPPED / task), seed=seed)
    if steps:
        config = replace(config, steps=steps)
    folder = out / task
    console.print(f"Refining a sub-optimal {task} policy with {config.steps:,} environment steps for each method.\n")
    runs, results = [], []
    for method in ("ppo", "ultra-ra"):
        reporter.say(f"--- {method} ---")
        path = folder / f"{method}-{seed}"
        results.append(refine(replace(config, method=method), path, reporter))
        runs.append(Run.open(path))
    console.print("\nWhere the policy fails, the most critical states first:\n")
    for item in advice_of(runs[-1])[:3]:
        console.print(explain(item), end="\n\n", markup=False)
    header, rows = comparison(results)
    table = Table(title=f"{task}, one seed", title_style="bold")
    for place, name in enumerate(header):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    told = programs_summary(results[-1])
    if told:
        console.print(f"\n{told}", markup=False)
    picture = folder / f"curves-{seed}.png"
    draw_curves(runs, picture)
    report = write_report(runs, folder / f"report-{seed}")
    console.print(
        f"\nLearning curves: {picture}; everything on one page: {report / 'report.html'}\n"
        "One seed proves nothing: docs/results compares the methods over several.\n"
        "No language model was used: the `search` analyst tries plans in the simulator. `ultra prompt "
        f"{folder / ('ultra-ra-' + str(seed))}` prints what a language model would be sent about this policy."
    )
