"""How fast is the engine, against the simulator alone and against other libraries?

    pip install "ultra-refine[sb3]" sbx-rl envpool      (what is not installed is left out, and said so)
    python benchmarks/speed.py --out docs/results/speed.md

Every measurement runs in a process of its own; contenders take turns, so that all see the same load of
the machine, and the table gives medians, ranges and ratios over the rounds. Finished measurements are
kept in a CSV file beside the page and skipped when the command is given again, so `--minutes` can divide
the work. What a person wrote below the heading "Reading" of the page stays.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ENVIRONMENTS = {"hopper": "Hopper-v5", "halfcheetah": "HalfCheetah-v5"}
SAME: dict[str, Any] = {"environments": 20, "rollout_steps": 2048, "minibatch": 64, "epochs": 10}
"""RICE's PPO settings, for every library."""
PACKAGES = ("jax", "numpy", "mujoco", "gymnasium", "torch", "stable-baselines3", "sbx-rl", "envpool")
READING = "## Reading"
Measured = dict[str, float]


# Contenders: each returns steps/s, and may add figures of its own


def raw(batch: Any, work: Callable[[], int], seconds: float = 4.0, **settings: Any) -> Measured:
    """`mujoco.rollout` alone: the same states and actions as in some work on a batch, recorded beforehand."""
    from mujoco import MjData, rollout

    simulators, recorded = batch._simulators, []

    class Recorder:
        def step(self, states: Any, controls: Any, trace: Any) -> None:
            recorded.append((states.copy(), controls.copy()))
            simulators.step(states, controls, trace)

    work()
    batch._simulators = Recorder()
    work()
    trace, model, threads = batch._trace.copy(), batch._model, os.cpu_count() or 1
    engine, data = rollout.Rollout(nthread=threads), [MjData(model) for _ in range(threads)]

    def again() -> int:
        for states, controls in recorded:
            out = trace[: len(states)]
            engine.rollout(model, data, states, controls, nstep=batch._frame_skip, state=out, **settings)
        return sum(len(states) for states, _ in recorded)

    return {"rate": rate_of(again, seconds)}


def collecting(task: str, count: int = 32, steps: int = 64) -> tuple[Any, Callable[[], int]]:
    """A batch, and rollouts in it with a fresh policy, without updates."""
    import numpy as np

    from ultra.ppo.guidance import NoGuidance
    from ultra.ppo.rollout import Environments

    policy, batch = fresh_policy(task), known(task).make_batch(count)
    environments = Environments(batch, NoGuidance(), np.random.default_rng(0))
    environments.begin()
    return batch, lambda: environments.rollout(policy, steps, 0.99).steps


def update(task: str) -> Measured:
    """Our update alone, with the settings that all libraries share."""
    import numpy as np

    from ultra.config import PPOConfig
    from ultra.ppo.checkpoint import Learner
    from ultra.ppo.guidance import NoGuidance
    from ultra.ppo.rollout import Environments
    from ultra.ppo.train import improve, optimizer

    config = PPOConfig(**SAME)
    policy, rng = fresh_policy(task), np.random.default_rng(0)
    environments = Environments(known(task).make_batch(config.environments), NoGuidance(), rng)
    environments.begin()
    rollout = environments.rollout(policy, config.rollout_steps, config.discount)
    learner = Learner(policy, optimizer(config).init(policy.params))

    def once() -> int:
        improve(learner, rollout, config, rng, NoGuidance(), 1e-5)
        return rollout.steps

    return {"rate": rate_of(once, 4.0)}


def loop(task: str, steps: int, settings: dict[str, Any], guide: Callable[[int], Any] | None = None) -> Measured:
    """Our whole PPO loop; the first iteration compiles and is listed apart.

    Args:
        task: where.
        steps: of the training.
        settings: of PPO.
        guide: makes the guidance for so many environments.
    """
    import numpy as np

    from ultra.config import PPOConfig
    from ultra.ppo.guidance import NoGuidance
    from ultra.ppo.train import Iteration, train

    config = PPOConfig(**settings)
    seen: list[Iteration] = []
    train(
        known(task),
        fresh_policy(task),
        config,
        steps,
        np.random.default_rng(0),
        guidance=guide(config.environments) if guide else NoGuidance(),
        observer=seen.append,
    )
    later = sum(iteration.seconds for iteration in seen[1:])
    return {
        "rate": (seen[-1].steps - seen[0].steps) / later,
        "first": seen[0].seconds - later / (len(seen) - 1),
    }


def visited_facts(task: str, count: int = 64) -> list[Any]:
    """Facts of states that a fresh policy comes to, every five steps of so many environments."""
    import numpy as np

    from ultra.ppo.guidance import NoGuidance
    from ultra.ppo.rollout import Environments

    policy, batch = fresh_policy(task), known(task).make_batch(count)
    environments = Environments(batch, NoGuidance(), np.random.default_rng(0))
    environments.begin()
    visited = []
    for _ in range(32):
        environments.rollout(policy, 5, 0.99)
        visited.append(batch.facts())
    batch.close()
    return visited


def guidance_over(
    task: str,
    visited: list[Any],
    entries: int,
    environments: int,
    away: float = 0.0,
    anneal_until: float = 0.6,
) -> Any:
    """ULTRA-RA with verified advice for states near visited ones.

    Args:
        task: where.
        visited: facts of visited states.
        entries: of the table; their plans last 4 steps and change nothing.
        environments: how many train together.
        away: by how much entries lie away from where they would; far away none is ever found.
        anneal_until: share of training after which it does nothing any more; by default as in a refinement.
    """
    import numpy as np

    from ultra.advice.records import Advice, AdviceBook, CriticalState, Entry, Verification, calibrate
    from ultra.config import GuidanceConfig
    from ultra.finetuning.ultra import UltraGuidance
    from ultra.tasks.plans import Plan, Segment

    found, rng = known(task), np.random.default_rng(0)
    good = Verification(1.0, 0.5, 1.5, 8, 1.0, "helps", 0)
    plan = Plan((Segment((0.0,) * found.action_space.size, 4),), relative=True)
    columns = found.card.matched
    scale, radius = calibrate(visited, columns)
    states = np.concatenate(visited)
    facts = states[rng.integers(len(states), size=entries)]
    facts = facts + 0.3 * states.std(axis=0) * rng.normal(size=facts.shape) + away
    advice = Advice(CriticalState(0, 0, 1.0, ""), plan, 0.5, -0.5, "", "benchmark", good)
    taken = np.zeros((4, found.action_space.size), np.float32)
    book = AdviceBook(tuple(Entry(advice, row, b"", taken) for row in facts), columns, scale, radius)
    settings = GuidanceConfig(restart=0.0, anneal_until=anneal_until)  # its states were never saved to start from
    return UltraGuidance(book, found.action_space, settings, environments, on_actions=True, on_rewards=True, rng=rng)


def guided(task: str, away: float) -> Measured:
    """Our whole loop with our defaults, 1,000 pieces of advice; states are critical unless they are far away."""
    visited = visited_facts(task)
    return loop(task, 60_000, {}, lambda environments: guidance_over(task, visited, 1000, environments, away))


def sb3(task: str, steps: int, settings: dict[str, Any], pool: bool = False) -> Measured:
    """Stable-Baselines3's PPO; its networks have 64 x 64 units too."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)  # more threads slow down networks as small as these
    count = settings["environments"]
    env = envpool_env(task, count) if pool else make_vec_env(ENVIRONMENTS[task], n_envs=count)
    return learn(PPO, env, steps, settings)


def sbx(task: str, steps: int, settings: dict[str, Any]) -> Measured:
    """SBX: the interface of Stable-Baselines3 on JAX."""
    from sbx import PPO
    from stable_baselines3.common.env_util import make_vec_env

    return learn(PPO, make_vec_env(ENVIRONMENTS[task], n_envs=settings["environments"]), steps, settings)


def learn(kind: Any, env: Any, steps: int, settings: dict[str, Any]) -> Measured:
    """The rate of a library with Stable-Baselines3's interface; its first iteration is listed apart."""
    model = kind(
        "MlpPolicy", env, n_steps=settings["rollout_steps"], batch_size=settings["minibatch"],
        n_epochs=settings["epochs"], device="cpu",
    )  # fmt: skip
    each = settings["environments"] * settings["rollout_steps"]
    times = []
    for _ in range(max(2, steps // each)):
        began = time.perf_counter()
        model.learn(each, reset_num_timesteps=False)
        times.append(time.perf_counter() - began)
    later = statistics.mean(times[1:])
    return {"rate": each / later, "first": times[0] - later}


def envpool_env(task: str, count: int) -> Any:
    """EnvPool behind Stable-Baselines3's interface of vectorised environments."""
    import envpool
    import numpy as np
    from stable_baselines3.common.vec_env import VecEnvWrapper, VecMonitor
    from stable_baselines3.common.vec_env.base_vec_env import VecEnv

    pool = envpool.make(ENVIRONMENTS[task], env_type="gymnasium", num_envs=count)

    class Pool(VecEnv):
        def __init__(self) -> None:
            super().__init__(count, pool.observation_space, pool.action_space)

        def reset(self) -> Any:
            return pool.reset()[0].astype(np.float32)

        def step_async(self, actions: Any) -> None:
            self._actions = actions

        def step_wait(self) -> Any:
            observations, rewards, terminated, truncated, _ = pool.step(self._actions)
            done = terminated | truncated
            infos = [{"TimeLimit.truncated": bool(t)} for t in truncated]
            for index in np.flatnonzero(done):
                infos[index]["terminal_observation"] = observations[index]
            if done.any():
                observations[done] = pool.reset(np.flatnonzero(done))[0]
            return observations.astype(np.float32), rewards, done, infos

        def close(self) -> None:
            pool.close()

        def get_attr(self, attr_name: str, indices: Any = None) -> Any:
            return [None] * count

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any: ...

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> Any:
            return [False] * count

    assert issubclass(VecMonitor, VecEnvWrapper)
    return VecMonitor(Pool())


def verifying(task: str) -> tuple[Any, Callable[[], int]]:
    """A batch, and the work of trying plans from 64 visited states in paired branches."""
    import numpy as np

    from ultra.analysts.random import random_plan
    from ultra.collection.collect import collect
    from ultra.config import VerifyConfig
    from ultra.pipeline.context import BRANCHES_TOGETHER
    from ultra.simulation.budget import StepBudget
    from ultra.simulation.paired import Candidate, PairedEvaluator
    from ultra.verification.verdicts import verify

    found, policy, rng = known(task), fresh_policy(task), np.random.default_rng(0)
    space = found.action_space
    episode = collect(found, policy, [1], 0.99, longest=100, workers=1)[0]
    replay = found.make_local_batch(1)
    starts = [episode.snapshot(t % len(episode), replay, space)[0] for t in range(64)]
    batch = found.make_batch(BRANCHES_TOGETHER)
    proposals = [Candidate(random_plan(space, 16, rng), start) for start in starts]

    def once() -> int:
        budget = StepBudget(10**9)
        evaluator = PairedEvaluator(batch, policy, 0.99, 64, budget, "verify", 10**9, rng)
        verify(proposals, evaluator, VerifyConfig(branches=8))
        return budget.used

    return batch, once


DEFAULT_SB3: dict[str, Any] = {"environments": 1, "rollout_steps": 2048, "minibatch": 64, "epochs": 10}
CONTENDERS: dict[str, tuple[str, Callable[[str], Measured]]] = {
    "raw": ("mujoco.rollout alone, on the states of these rollouts", lambda task: raw(*collecting(task))),
    "raw-chunks": (
        "the same, handed to the threads in pieces of 8",
        lambda task: raw(*collecting(task), chunk_size=8),
    ),
    "collection": ("ULTRA, rollouts without updates", lambda task: {"rate": rate_of(collecting(task)[1], 4.0)}),
    "raw-verification": (
        "mujoco.rollout alone, on the states of this verification",
        lambda task: raw(*verifying(task)),
    ),
    "verification": ("ULTRA, verification", lambda task: {"rate": rate_of(verifying(task)[1], 4.0)}),
    "update": ("ULTRA, updates alone (20 x 2,048, minibatch 64)", update),
    "ultra-same": ("ULTRA, 20 x 2,048, minibatch 64", lambda task: loop(task, 3 * 40_960, SAME)),
    "ultra": ("ULTRA, its defaults", lambda task: loop(task, 60_000, {})),
    "ultra-ra": ("the same with ULTRA-RA, which looks and finds nothing", lambda task: guided(task, 1e3)),
    "ultra-ra-busy": ("the same with ULTRA-RA, every state critical", lambda task: guided(task, 0.0)),
    "sb3-same": ("Stable-Baselines3, 20 x 2,048, minibatch 64", lambda task: sb3(task, 2 * 40_960, SAME)),
    "sb3": ("Stable-Baselines3, its defaults", lambda task: sb3(task, 6 * 2_048, DEFAULT_SB3)),
    "sb3-envpool": (
        "Stable-Baselines3 on EnvPool, 20 x 2,048, minibatch 64",
        lambda task: sb3(task, 2 * 40_960, SAME, pool=True),
    ),
    "sbx": ("SBX, 20 x 2,048, minibatch 64", lambda task: sbx(task, 3 * 40_960, SAME)),
}
RATIOS = (
    ("ultra-same", "sb3-same", "whole loop, equal settings, against Stable-Baselines3"),
    ("ultra-same", "sb3-envpool", "the same against Stable-Baselines3 with EnvPool"),
    ("ultra-same", "sbx", "the same against SBX"),
    ("ultra", "sb3", "defaults against defaults"),
    ("collection", "raw", "collection against the simulator alone"),
    ("collection", "raw-chunks", "collection against the simulator alone in pieces of 8"),
    ("verification", "raw-verification", "verification against the simulator alone"),
    ("ultra", "raw", "whole loop with our defaults against the simulator alone"),
    ("ultra-ra", "ultra", "ULTRA-RA that finds nothing against PPO"),
    ("ultra-ra-busy", "ultra", "ULTRA-RA where every state is critical against PPO"),
)


# Measuring


def known(task: str) -> Any:
    """The task."""
    from ultra.tasks import get_task

    return get_task(task)


def fresh_policy(task: str) -> Any:
    """An untrained policy of two layers of 64."""
    import numpy as np

    from ultra.policies.policy import Architecture, create_policy

    found = known(task)
    return create_policy(Architecture(found.observation_size, found.action_space), np.random.default_rng(0))


def rate_of(once: Callable[[], int], seconds: float) -> float:
    """Steps per second of a function that returns how many it took; the first call does not count."""
    once()
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        steps += once()
    return steps / (time.perf_counter() - began)


def measured(script: str, *options: str) -> Measured:
    """One measurement in a process of its own: what a script prints last, as JSON."""
    command = [sys.executable, script, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    found: Measured = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measured_before(path: Path) -> list[dict[str, Any]]:
    """The rows of the CSV file; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {"task": r["task"], "contender": r["contender"], "round": int(r["round"]),
             **{k: float(r[k]) for k in ("rate", "first", "megabytes")}}
            for r in csv.DictReader(file)
        ]  # fmt: skip


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """All rows as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ("task", "contender", "round", "rate", "first", "megabytes"), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def machine() -> str:
    """Cores and processor."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores ({', '.join([platform.machine(), *names[:1]])})"


def page(rows: list[dict[str, Any]], missing: dict[str, str], rounds: int, reading: str) -> str:
    """The Markdown page."""
    installed = []
    for name in PACKAGES:
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    lines = [
        "# Speed", "",
        f"Made by `python benchmarks/speed.py --rounds {rounds}` on {date.today()}: {machine()}, "
        f"Python {platform.python_version()}, {', '.join(installed)}.", "",
        "Environment steps per second, median of the rounds with their range; every measurement in a process of its "
        "own, contenders in turn. Networks of 64 x 64 units; memory is the process's peak; the first iteration's "
        "extra time is mostly compilation, which is kept on disk between runs.", "",
    ]  # fmt: skip
    for task in dict.fromkeys(row["task"] for row in rows):
        rates = {name: [row for row in rows if row["task"] == task and row["contender"] == name] for name in CONTENDERS}
        lines += [
            f"## {ENVIRONMENTS[task]}",
            "",
            "| | steps/s | range | MB | first iteration |",
            "|---|---|---|---|---|",
        ]
        for name, found in rates.items():
            if found:
                values = [row["rate"] for row in found]
                first = statistics.median(row["first"] for row in found)
                lines.append(
                    f"| {CONTENDERS[name][0]} | {statistics.median(values):,.0f} | {min(values):,.0f} to "
                    f"{max(values):,.0f} | {statistics.median(row['megabytes'] for row in found):,.0f} | "
                    f"{f'{first:+.1f} s' if first else ''} |"
                )
        lines += ["", "| ratio, by round | median | range |", "|---|---|---|"]
        for one, other, words in RATIOS:
            by_round = {row["round"]: row["rate"] for row in rates[other]}
            ratios = [row["rate"] / by_round[row["round"]] for row in rates[one] if row["round"] in by_round]
            if ratios:
                lines.append(f"| {words} | {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |")
        lines.append("")
    if missing:
        lines += ["Left out: " + "; ".join(f"{name} ({reason})" for name, reason in missing.items()) + ".", ""]
    return "\n".join(lines) + f"\n{READING}\n{reading}"


def main() -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/speed.md"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--task", choices=ENVIRONMENTS, action="append")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after so many minutes")
    parser.add_argument("--only", choices=CONTENDERS, action="append", help="only these contenders")
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    tasks = options.task or list(ENVIRONMENTS)
    if options.measure:
        found = CONTENDERS[options.measure][1](tasks[0])
        megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"first": 0.0, **found, "megabytes": megabytes}))
        return
    data = options.out.with_suffix(".csv")
    missing: dict[str, str] = {}
    rows = measured_before(data)
    done = {(row["task"], row["contender"], row["round"]) for row in rows}
    end = time.monotonic() + 60 * options.minutes
    for number in range(options.rounds):
        for task in tasks:
            for name in options.only or CONTENDERS:
                if (task, name, number) in done or name in missing or time.monotonic() > end:
                    continue
                try:
                    found = measured(__file__, "--measure", name, "--task", task)
                except RuntimeError as error:
                    missing[name] = str(error)
                    print(f"{name}: left out ({error})", flush=True)
                    continue
                rows.append({"task": task, "contender": name, "round": number, **found})
                save(data, rows)
                print(f"round {number} {task:<12} {name:<14} {found['rate']:10,.0f} steps/s", flush=True)
    reading = "\n"
    if options.out.is_file() and READING in (text := options.out.read_text(encoding="utf-8")):
        reading = text.split(READING, 1)[1].lstrip("\n").join(["\n", ""])
    options.out.write_text(page(rows, missing, options.rounds, reading), encoding="utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
