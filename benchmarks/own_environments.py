"""Refinement from end to end on environments of every kind, with `search` and with a stand-in for a language model.

    python benchmarks/own_environments.py [NAME ...] [--steps N] [--out docs/results/own-environments.md]

Budgets are tiny: this shows that every stage works, not that refinement pays. The stand-in answers on
loopback with fixed advice; for MountainCar-v0 it gives the rule "push the way you are moving", and the
refined policy is compared with plain PPO at the same budget. Box2D and MiniGrid: pip install 'ultra-refine[envs]'.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.llm_server import Answer, Request, Server
from tests.test_own_environment import FIELD

from ultra import api
from ultra.common.errors import UltraError
from ultra.config import (
    AnalyseConfig,
    CollectConfig,
    EnvironmentConfig,
    EvaluateConfig,
    LLMConfig,
    PPOConfig,
    RefineConfig,
    TrainConfig,
    VerifyConfig,
)
from ultra.pipeline.run import versions
from ultra.policies.io import save_policy
from ultra.policies.policy import Architecture, create_policy
from ultra.tasks import Task, get_task
from ultra.tasks.spaces import Discrete

ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "CartPole-v1": (),
    "Acrobot-v1": (),
    "MountainCar-v0": (),
    "LunarLander-v3": (),
    "MiniGrid-Empty-5x5-v0": (),
    "ALE/Breakout-v5": ("obs_type=ram", "repeat_action_probability=0.0"),
    "Ant-v5": (),
    "Field-v0": ("size=5",),
}
"""Gymnasium ids with arguments; Field-v0 is a module of the user's own with a Dict observation."""

MOUNTAIN_CAR = [("velocity > 0", "push_right"), ("velocity < 0", "push_left")]


def stand_in(task: Task, rules: list[tuple[str, str]]) -> Any:
    """What the stand-in answers: two states, a push of the first action, and the rules."""

    def behave(request: Request) -> Answer:
        first = task.card.actions[-1].name
        segment: dict[str, Any] = {"action": first, "steps": 3}
        if not isinstance(task.action_space, Discrete):
            segment = {"change": {first: 0.3}, "steps": 3}
        if request.about == "identify":
            states = [{"t": t, "importance": 0.5, "explanation": "it does little here"} for t in (2, 4)]
            return Answer(json.dumps({"reasoning": "", "critical_states": states}))
        times = [int(t) for t in re.findall(r"## t = (\d+):", request.text)]
        advice = [
            {"t": t, "plan": [segment], "reward_follow": 0.5, "reward_taken": -0.5, "explanation": "push"}
            for t in times
        ]
        given = [
            {"guard": guard, "plan": [{"action": action, "steps": 1}], "reward": 0.0, "explanation": "push on"}
            for guard, action in rules
        ]
        return Answer(json.dumps({"reasoning": "", "advice": [] if rules else advice, "rules": given}))

    return behave


def row(way: str, result: dict[str, Any], seconds: float) -> str:
    """Cells of the table: what was done, and what came out."""
    returns, audit = result["return"], result["audit"] or {}

    def verdicts(found: dict[str, Any]) -> str:
        return " / ".join(str(found.get(key, 0)) for key in ("helps", "harms", "unclear", "untried"))

    gain = returns["gain"]
    return (
        f"{way} | {returns['start']['mean']:.1f} | {returns['last']['mean']:.1f} | "
        f"{gain['mean']:+.1f} [{gain['ci95'][0]:.1f}, {gain['ci95'][1]:.1f}] | {verdicts(audit)} | "
        f"{verdicts(audit.get('rules', {}))} | {seconds:.0f}"
    )


def run(name: str, folder: Path, steps: int, seed: int) -> list[str]:
    """Train a moment, then refine in each way; returns the table's rows."""
    ppo = PPOConfig(environments=8, rollout_steps=64, minibatch=128, entropy=0.01)
    env = EnvironmentConfig(kwargs=ENVIRONMENTS[name], module=str(folder / "field.py") if name == "Field-v0" else "")
    evaluate = EvaluateConfig(episodes=5)
    short = name.replace("/", "-")
    task = get_task(name, **env.options())
    if name == "MountainCar-v0":  # untrained and without statistics: plain PPO gets stuck at -200
        fresh = create_policy(Architecture(task.observation_size, task.action_space), np.random.default_rng(seed))
        save_policy(fresh, folder / short / "policy")
    else:
        train = TrainConfig(name, steps=1024, seed=seed, workers=1, env=env, ppo=ppo, evaluate=evaluate)
        api.train(train, folder / short / "policy")
    config = RefineConfig(
        task=name, policy=str(folder / short / "policy"), steps=steps, seed=seed, workers=1, env=env, ppo=ppo,
        evaluate=evaluate, collect=CollectConfig(episodes=3),
        analyse=AnalyseConfig(states=2, horizon=40, plan_steps=8, share=0.2),
        verify=VerifyConfig(share=0.3, branches=16),
    )  # fmt: skip
    rows = []

    def refine(way: str, config: RefineConfig) -> None:
        began = time.monotonic()
        result = api.refine(config, folder / short / way.replace(" ", "-"))
        cells = row(way, result, time.monotonic() - began)
        rows.append(f"| {name} | {task.snapshots} | {len(task.card.facts)} | {cells} |")
        print(rows[-1], flush=True)

    refine("search", config)
    rules = MOUNTAIN_CAR if name == "MountainCar-v0" else []
    with Server(stand_in(task, rules)) as server:
        if rules:  # these alone, tried in whole episodes
            config = replace(config, verify=VerifyConfig(share=0.5, branches=16))
        llm = LLMConfig(base_url=f"{server.url}/v1", budget=0, ledger=str(folder / "ledger.sqlite"))
        refine("stand-in", replace(config, analyst="llm:local/stand-in", llm=llm))
    if rules:
        refine("plain PPO", replace(config, method="ppo"))
    return rows


def page(rows: list[str], command: str, seconds: float) -> str:
    """The table, with how it was made."""
    known = versions() | {"minigrid": version("minigrid"), "box2d": version("Box2D")}
    names = ("ultra-refine", "jax", "numpy", "gymnasium", "mujoco", "ale-py", "minigrid", "box2d")
    return "\n".join(
        [
            "# Environments of every kind, from end to end",
            "",
            f"Made by `{command}` on {time.strftime('%Y-%m-%d')} in {seconds:.0f} s: one of two cores "
            f"({platform.machine()}), Python {platform.python_version()}, "
            f"{', '.join(f'{name} {known[name]}' for name in names)}.",
            "",
            "| environment | snapshots by | facts | analyst | start | last | gain [95%] | advice helps / harms / "
            "unclear / untried | rules, likewise | s |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    """Run what is named, or everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(ENVIRONMENTS))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "field.py").write_text(FIELD)
        for environment in options.names:
            try:
                rows += run(environment, folder, options.steps, options.seed)
            except UltraError as error:
                print(f"{environment}: {error}")
    if options.out:
        command = " ".join(["python", "benchmarks/own_environments.py", "--steps", str(options.steps)])
        options.out.write_text(page(rows, command, time.monotonic() - began), encoding="utf-8")


if __name__ == "__main__":
    main()
