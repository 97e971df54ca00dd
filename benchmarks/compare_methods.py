"""Compare ULTRA-A, ULTRA-R and ULTRA-RA, with two analysts, to plain PPO at equal step budgets.

    python benchmarks/compare_methods.py hopper --seeds 0 1 2 --out docs/results

Every run refines the policy that ships with the package, in a run directory of its own under
`--runs`; finished runs are not repeated, so that a stopped comparison goes on where it was.
`random` is the control: random states, plans and rewards, used unverified as in the paper.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ultra import refine
from ultra.config import EvaluateConfig, GuidanceConfig, Method, RefineConfig
from ultra.quickstart import DEFAULTS, POLICIES
from ultra.reporting import markdown_table
from ultra.run import versions
from ultra.statistics import difference_interval, mean_interval, probability_of_improvement

CONTENDERS: list[tuple[Method, str]] = [
    ("ppo", ""),
    ("ultra-a", "search"),
    ("ultra-r", "search"),
    ("ultra-ra", "search"),
    ("ultra-a", "random"),
    ("ultra-r", "random"),
    ("ultra-ra", "random"),
]


def one_run(
    task: str, method: Method, analyst: str, seed: int, steps: int, episodes: int, runs: Path
) -> dict[str, Any]:
    """One refinement on one core."""
    config = replace(
        DEFAULTS[task],
        policy=str(POLICIES / task),
        method=method,
        analyst=analyst or "search",
        seed=seed,
        steps=steps,
        workers=1,
        evaluate=EvaluateConfig(episodes=episodes),
        guidance=GuidanceConfig(trust="all" if analyst == "random" else "helps"),
    )
    return refine(config, runs / f"{task}-{method}-{analyst or 'none'}-{seed}")


def name_of(method: str, analyst: str) -> str:
    """A contender in tables."""
    return f"{method} ({analyst}{', unverified' if analyst == 'random' else ''})" if analyst else method


def table_of(scores: dict[str, list[float]]) -> str:
    """Contenders with their mean over seeds, interval, and comparison with PPO."""
    rows = []
    for name, values in scores.items():
        estimate = mean_interval(values)
        row = [name, f"{estimate.mean:.1f}", f"[{estimate.low:.1f}, {estimate.high:.1f}]"]
        row.append(", ".join(f"{value:.0f}" for value in values))
        if name == "ppo":
            row += ["", ""]
        else:
            gap = difference_interval(values, scores["ppo"])
            better = probability_of_improvement(np.array(values)[:, None], np.array(scores["ppo"])[:, None])
            row += [f"{gap.mean:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]", f"{better:.2f}"]
        rows.append(row)
    header = ["method", "mean return", "95% interval", "by seed", "minus ppo [95%]", "P(better than ppo)"]
    return markdown_table(header, rows)


def audit_of(results: list[dict[str, Any]]) -> str:
    """What verification found of the analysts' advice, over all runs that verified."""
    found = [r["audit"] for r in results if r["audit"] and r["audit"]["verification_steps"]]
    total = {key: sum(a[key] for a in found) for key in ("advices", "helps", "harms", "unclear", "untried")}
    return ", ".join(f"{value} {key}" for key, value in total.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(DEFAULTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=0, help="budget of each run; 0 takes the quickstart's")
    parser.add_argument("--episodes", type=int, default=20, help="episodes of each evaluation")
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    base: RefineConfig = DEFAULTS[options.task]
    steps = options.steps or base.steps
    jobs = [(method, analyst, seed) for seed in options.seeds for method, analyst in CONTENDERS]
    options.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(one_run, options.task, *job, steps, options.episodes, options.runs) for job in jobs]
        results = []
        for job, future in zip(jobs, futures, strict=True):
            results.append(future.result())
            print(*job, f"{results[-1]['return']['last']['mean']:.1f}", flush=True)
    scores: dict[str, list[float]] = {}
    for (method, analyst, _), result in zip(jobs, results, strict=True):
        scores.setdefault(name_of(method, analyst), []).append(result["return"]["last"]["mean"])
    start = mean_interval([result["return"]["start"]["mean"] for result in results])
    made = ", ".join(f"{key} {value}" for key, value in versions().items())
    text = f"""# {options.task}: methods at {steps:,} environment steps in all

Made by `python benchmarks/compare_methods.py {options.task} --seeds {" ".join(map(str, options.seeds))} \
--steps {steps} --episodes {options.episodes}` on {datetime.now(UTC):%Y-%m-%d}; {made}; {platform.machine()},
{os.cpu_count()} cores.
Starting policy: {start.mean:.1f}. Each score is the mean return of the last policy over
{results[0]["return"]["last"]["episodes"]} episodes on fresh seeds in Gymnasium's own environment. Intervals are
Student-t over {len(options.seeds)} seeds.

{table_of(scores)}
Advice of `search` under verification, all runs together: {audit_of(results)}.
"""
    (options.out / f"methods-{options.task}.md").write_text(text, encoding="utf-8")
    with (options.out / f"methods-{options.task}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "analyst", "seed", "start", "last", "collect", "analyse", "verify", "train", "used"])
        for (method, analyst, seed), result in zip(jobs, results, strict=True):
            budget = result["budget"]
            returns = [result["return"][key]["mean"] for key in ("start", "last")]
            spent = [budget[key] for key in ("collect", "analyse", "verify", "train", "used")]
            writer.writerow([method, analyst, seed, *returns, *spent])
    print(text)


if __name__ == "__main__":
    main()
