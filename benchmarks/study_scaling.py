"""How a study's throughput grows with the number of workers on this machine.

    python benchmarks/study_scaling.py --workers 1 2 --steps 60000 --runs 4

The same study (plain PPO on Hopper, a run for each seed, a core for each run) is done once with each number of
workers, in a fresh directory each time. Printed are wall-clock seconds, environment steps per second over all
runs (start-up, compilation and evaluation included), the efficiency (steps/s per worker against those of the
first row), for local runs the core-seconds and the most memory of a run, and the machine's load average before:
if other work fills the cores, wall-clock figures say little, while core-seconds still hold.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import yaml

from ultra import study
from ultra.pipeline.reporting import markdown_table


def measure(workers: int, runs: int, steps: int, on: Literal["local", "ray"], folder: Path) -> tuple[float, int]:
    """Do the study; returns its seconds and the environment steps of all runs."""
    value = {
        "tasks": {"hopper": {"reference": 3000}},
        "methods": ["ppo"],
        "seeds": list(range(runs)),
        "settings": {"steps": steps, "evaluate": {"episodes": 2}},
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(value), encoding="utf-8")
    began = time.monotonic()
    outcome = study(file, folder / "out", on, jobs=workers)
    if outcome.failed:
        raise SystemExit("\n".join(outcome.failed.values()))
    return time.monotonic() - began, runs * steps


def on_ray(workers: int, runs: int, steps: int, folder: Path) -> tuple[float, int]:
    """The same on a Ray cluster of this machine, with so many one-core nodes; its start is not counted."""
    ray: Any = importlib.import_module("ray")
    memory = 80_000_000
    head = {"num_cpus": 0, "object_store_memory": memory}
    cluster: Any = importlib.import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(workers):
            cluster.add_node(num_cpus=1, object_store_memory=memory)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        return measure(workers, runs, steps, "ray", folder)
    finally:
        ray.shutdown()
        cluster.shutdown()


def cpu_seconds() -> float:
    """Core-seconds of all runs that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=4, help="runs of the study")
    parser.add_argument("--steps", type=int, default=60_000, help="environment steps of each run")
    parser.add_argument("--on", choices=("local", "ray"), default="local")
    options = parser.parse_args()
    rows: list[list[str]] = []
    first = 0.0
    for workers in options.workers:
        before, load = cpu_seconds(), os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as folder:
            if options.on == "ray":
                seconds, steps = on_ray(workers, options.runs, options.steps, Path(folder))
            else:
                seconds, steps = measure(workers, options.runs, options.steps, "local", Path(folder))
        cores = f"{(cpu_seconds() - before) / options.runs:.1f}" if options.on == "local" else ""
        rate = steps / seconds
        first = first or rate / workers
        row = [str(workers), f"{seconds:.0f}", f"{rate:,.0f}", f"{rate / workers / first:.0%}"]
        rows.append([*row, cores, f"{load:.1f}"])
    print(f"{options.on}, {options.runs} runs of {options.steps:,} steps, {os.cpu_count()} cores\n")
    print(markdown_table(["workers", "seconds", "steps/s", "efficiency", "core-seconds of a run", "load before"], rows))
    if options.on == "local":
        print(f"most memory of a run: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:,.0f} MiB (Linux)")


if __name__ == "__main__":
    main()
