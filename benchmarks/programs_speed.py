"""What does following a program cost, beside the steps of the simulator?

    python benchmarks/programs_speed.py

A program of ten rules and six parameters is followed in 64 environments of Hopper, with other settings in each.
Its step (facts included) and a step of collection (simulator and policy) take turns, so that both see the same load
of the machine; medians and their ratios are printed. On a busy machine the ratio of wall-clock times flatters the
program, whose thread waits for nothing: the last column is its processor time as a share of collection's on all cores.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ultra.policies.policy import Architecture, create_policy
from ultra.programs.compiled import Controller, compile_programs
from ultra.programs.executor import Executor
from ultra.programs.records import Program
from ultra.tasks import get_task

PARAMETERS = {name: {"value": 0.2, "low": -1.0, "high": 1.0} for name in ("a", "b", "pitch", "damp", "limit", "lift")}
RULES = [
    {"when": "true", "add": {"{a0}": "a + pitch * {f2} + damp * {f8}", "{a1}": "b + pitch * {f2}"}},
    {"when": "air and sinking", "set": {"{a1}": "10 * (lift - {f4})", "{a2}": "-damp * {f11}"}},
    {"when": "air and not sinking", "add": {"{a0}": "lift * tanh({f3})"}},
    {"when": "abs({f2}) > limit", "add": {"{a0}": "-2 * wrap({f2})", "{a2}": "0.1"}},
    {"when": "{f6} < 1 and {f1} > 1.1", "add": {"{a0}": "0.5 * a"}},
    {"when": "{f5} > 0.3 or {f5} < -0.6", "set": {"{a2}": "clip(-4 * {f5} - damp * {f11}, -1, 1)"}},
    {"when": "prev({f1}) < {f1}", "add": {"{a1}": "0.3 * agent({a1})"}},
    {"when": "-0.1 < {f2} < 0.1", "add": {"{a0}": "0.2 * sin(3 * {f3})"}},
    {"when": "{f7} > 1", "add": {"{a1}": "min(b, 0.4) * {f9}"}},
    {"when": "{f10} * {f4} > 0", "add": {"{a2}": "b if {f10} > 0 else -b"}},
]


def filled(value: Any, names: dict[str, str]) -> Any:
    """The program with a task's own names."""
    if isinstance(value, dict):
        return {filled(key, names): filled(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, names) for item in value]
    return value.format_map(names) if isinstance(value, str) else value


def seconds(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Wall-clock and processor time of a call."""
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats, (time.process_time() - busy) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    size, rounds = vars(parser.parse_args()).values()
    task, rng = get_task("hopper"), np.random.default_rng(0)
    facts, actions = task.card.fact_names, [action.name for action in task.card.actions]
    names = {f"f{k}": name for k, name in enumerate(facts)} | {f"a{k}": name for k, name in enumerate(actions)}
    let = {"air": "{f1} > 1.2", "sinking": "{f7} < 0"}
    value = {"name": "ten rules", "parameters": PARAMETERS, "let": let, "rules": RULES}
    compiled = compile_programs([Program.from_json(filled(value, names))], facts, actions, task.action_space)
    print(f"{len(compiled.rules)} operations, {len(compiled.effects)} assignments")
    executor = Executor([compiled], task.action_space, size)
    executor.assign(slice(None), 0, Controller.of(compiled).settings * rng.uniform(0.5, 1.5, (size, 6)))
    policy, batch = create_policy(Architecture(task.observation_size, task.action_space), rng), task.make_batch(size)
    seen = [batch.reset(np.arange(size), list(range(size)))]
    state = {"seed": size}
    shape = (size, task.action_space.size)

    def collect() -> None:
        noise = policy.draw_noise(rng, (size,))
        step = batch.step(task.action_space.clip(policy.decide(seen[0], noise).actions))
        seen[0] = step.observations
        over = np.flatnonzero(step.done)
        if len(over):
            seen[0][over] = batch.reset(over, range(state["seed"], state["seed"] + len(over)))
            state["seed"] += len(over)

    own = rng.standard_normal(shape).astype(np.float32)
    contenders: dict[str, Callable[[], Any]] = {
        "collection": collect,
        "facts": batch.facts,
        "program": lambda: executor.act(batch.facts(), own),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            found[name].append(seconds(call, 30))
    medians = {name: np.median(times[1:], axis=0).tolist() for name, times in found.items()}
    wall, busy = medians["collection"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(f"{'':<12}{'us a step':>12}{'of it':>10}{'processor us':>15}{f'of it / {cores} cores':>20}")
    for name, (own_wall, own_busy) in medians.items():
        print(f"{name:<12}{1e6 * own_wall:12.1f}{own_wall / wall:10.1%}", end="")
        print(f"{1e6 * own_busy:15.1f}{own_busy / (busy / cores):20.1%}")
    batch.close()


if __name__ == "__main__":
    main()
