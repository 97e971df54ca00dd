"""MountainCar-v0: the rule "push the way you are moving" against plain PPO at the same budget.

    python benchmarks/mountain_car.py [--seeds 0 1 2 3 4] [--steps 50000] [--out docs/results/mountain-car.md]

The starting policies never reach the goal (-200): they were trained for 50,000 steps without
normalisation, as Stable-Baselines3's defaults are. A stand-in for a language model, on loopback, gives
the two rules and nothing else; everything else is ULTRA's own way from the prompt to the evaluation.
Each method trains twice, with `--standardize` and without.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.own_environments import MOUNTAIN_CAR, stand_in
from tests.llm_server import Server

from ultra import api
from ultra.advice.records import Rule, load_rules
from ultra.config import CollectConfig, EvaluateConfig, LLMConfig, PPOConfig, RefineConfig, TrainConfig, VerifyConfig
from ultra.pipeline.run import versions
from ultra.tasks import get_task

TASK = "MountainCar-v0"
PPO = PPOConfig(environments=8, rollout_steps=64, entropy=0.01, learning_rate=1e-3, gae_lambda=0.98)
"""Small rollouts and large steps, because the budget is small; the same for both methods."""
SOLVED = -110.0
"""Mean return over 100 episodes that counts as solved (Gymnasium's `reward_threshold`)."""


def runs(seed: int, steps: int, folder: Path, server: Server) -> list[dict[str, Any]]:
    """Train a starting policy and refine it in each way; returns the results, PPO's first."""
    policy = folder / f"policy-{seed}"
    api.train(TrainConfig(TASK, steps=50_000, seed=seed, workers=1, normalize=False), policy)
    ppo = RefineConfig(
        task=TASK, policy=str(policy), method="ppo", steps=steps, seed=seed, workers=1, ppo=PPO,
        collect=CollectConfig(episodes=2), verify=VerifyConfig(share=0.3), evaluate=EvaluateConfig(episodes=100),
    )  # fmt: skip
    llm = LLMConfig(base_url=f"{server.url}/v1", budget=0, ledger=str(folder / "ledger.sqlite"))
    ultra = replace(ppo, method="ultra-ra", analyst="llm:local/stand-in", llm=llm)
    results = []
    for config in (ppo, ultra):
        for standardize in (True, False):
            name = f"{config.method}-{seed}-{standardize}"
            result = api.refine(replace(config, standardize=standardize), folder / name)
            print(name, f"{result['return']['last']['mean']:.1f}", result["budget"], flush=True)
            verified = folder / name / "round-1" / "verified-rules.jsonl"
            results.append(result | {"rules": load_rules(verified) if verified.is_file() else []})
    return results


def verdict(rules: list[Rule]) -> str:
    """What verification found of the rules, in a cell."""
    alone = ", ".join(str(rule.verdict) for rule in rules)
    chosen = next((rule.together for rule in rules if rule.together), None)
    size = sum(rule.together is not None for rule in rules)
    if chosen is None:
        return f"alone {alone}; no set helps"
    return f"alone {alone}; {size} together {chosen.advantage:+.0f} [{chosen.low:.0f}, {chosen.high:.0f}]"


def page(found: dict[int, list[dict[str, Any]]], command: str, seconds: float) -> str:
    """The table, with how it was made."""
    known = versions()
    named = ", ".join(
        f"{name} {known[name]}" for name in ("ultra-refine", "jax", "gymnasium", "numpy") if name in known
    )
    lines = [
        "# MountainCar-v0: two rules against plain PPO",
        "",
        f"Made by `{command}` on {time.strftime('%Y-%m-%d')} in {seconds:.0f} s: one core ({platform.machine()}), "
        f"Python {platform.python_version()}, {named}.",
        "",
        "| seed | start | PPO | ULTRA-RA | PPO, as it is | ULTRA-RA, as it is | the rules, tried in whole episodes |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed, (ppo, bare_ppo, ultra, bare_ultra) in found.items():
        cells = [f"{ppo['return']['start']['mean']:.0f}"]
        for result in (ppo, ultra, bare_ppo, bare_ultra):
            last = result["return"]["last"]
            cells.append(f"{last['mean']:.1f} [{last['ci95'][0]:.0f}, {last['ci95'][1]:.0f}]")
        cells.append(verdict(ultra["rules"]))
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    budget = next(iter(found.values()))[2]["budget"]
    spent = ", ".join(f"{name} {budget[name]:,}" for name in ("collect", "analyse", "verify", "train"))
    return "\n".join([*lines, "", f"ULTRA-RA's budget, first seed: {spent} steps of {budget['total']:,}.", ""])


def main() -> None:
    """Measure, print, and write the page's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, Server(stand_in(get_task(TASK), MOUNTAIN_CAR)) as server:
        found = {seed: runs(seed, options.steps, Path(name), server) for seed in options.seeds}
    command = "python benchmarks/mountain_car.py" + "".join(
        f" --{key} {value if isinstance(value, int) else ' '.join(map(str, value))}"
        for key, value in (("seeds", options.seeds), ("steps", options.steps))
    )
    text = page(found, command, time.monotonic() - began)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
