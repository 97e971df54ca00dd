"""How speed, memory and start-up grow: with environments, with the network, with the table of advice.

    python benchmarks/curves.py --out docs/results/scaling-curves.md

On Hopper-v5, every measurement in a process of its own, points of a curve in turn; the page gives medians and
ranges over the rounds, and a picture. Finished measurements are kept in a CSV file beside the page and
skipped when the command is given again, so `--minutes` can divide the work. What a person wrote below the
heading "Reading" of the page stays.
How the cost of a study grows with its runs and with cores is measured by `benchmarks/study_scaling.py`.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.speed import (
    PACKAGES,
    READING,
    collecting,
    fresh_policy,
    guidance_over,
    known,
    machine,
    measured,
    rate_of,
    raw,
    visited_facts,
)

TASK = "hopper"
Measured = dict[str, float]

ENVIRONMENTS = (8, 16, 32, 64, 128, 256, 512)
WIDTHS = (64, 128, 256, 512)
ENTRIES = (10, 100, 1_000, 10_000)
TOGETHER = 64
"""States that are matched at once."""
LIMITS = {"memory": ("megabytes", 1536.0), "help": ("seconds", 0.3), "import": ("seconds", 0.2)}


# What is measured: each returns its figures by name


def environments(seconds: float, count: int) -> Measured:
    """The simulator alone, and rollouts of a fresh policy, with so many environments."""
    batch, rollout = collecting(TASK, count, max(16, 2048 // count))
    collection = rate_of(rollout, seconds)
    return {"collection": collection, "simulator": raw(batch, rollout, seconds)["rate"]}


def width(seconds: float, units: int) -> Measured:
    """The whole loop with two layers of so many units."""
    import numpy as np

    from ultra.policies.policy import Architecture, create_policy
    from ultra.ppo.guidance import NoGuidance

    found = known(TASK)
    shape = Architecture(found.observation_size, found.action_space, (units, units))
    policy = create_policy(shape, np.random.default_rng(0))
    return {"loop": loop_rate(policy, NoGuidance(), seconds * WIDTHS[0] / units)}  # wide ones are slow


def unguided(seconds: float) -> Measured:
    """The whole loop without guidance, to compare the next ones with."""
    from ultra.ppo.guidance import NoGuidance

    return {"loop": loop_rate(fresh_policy(TASK), NoGuidance(), seconds)}


def guidance(seconds: float, entries: int) -> Measured:
    """The whole loop with a table, and matching alone."""
    import numpy as np

    from ultra.config import PPOConfig

    found, visited = known(TASK), visited_facts(TASK, TOGETHER)
    table = guidance_over(TASK, visited, entries, TOGETHER, away=1e3)  # so that all states are looked up
    actions = np.zeros((TOGETHER, found.action_space.size), np.float32)

    def match() -> int:
        for facts in visited:
            table.act(np.zeros((TOGETHER, found.observation_size), np.float32), facts, actions)
            table.reward(facts, actions, np.zeros(TOGETHER))
        return len(visited)

    matching = 1e6 / rate_of(match, seconds)
    whole = guidance_over(TASK, visited, entries, PPOConfig().environments, anneal_until=1.0)
    return {"matching": matching, "loop": loop_rate(fresh_policy(TASK), whole, seconds)}


def memory(seconds: float, episodes: int) -> Measured:
    """Peak memory of a run whose first stage collects so many episodes; `seconds` does not matter."""
    import ultra
    from ultra.config import CollectConfig, RefineConfig
    from ultra.pipeline.progress import Reporter
    from ultra.pipeline.refinement import Refinement

    policy = Path(ultra.__file__).parent / "policies" / "shipped" / TASK
    steps = 10 * episodes * known(TASK).time_limit
    config = RefineConfig(TASK, policy=str(policy), steps=steps, collect=CollectConfig(episodes=episodes, share=0.1))
    with tempfile.TemporaryDirectory() as folder:
        refinement = Refinement.start(Path(folder) / "run", config, Reporter(quiet=True))
        refinement.run_stage("collect")
        collected = float(refinement.budget.spent["collect"])
    return {"megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "steps": collected}


def start_up(seconds: float, *command: str) -> Measured:
    """Seconds until a command has ended: median of seven; `seconds` does not matter."""
    times = []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return {"seconds": statistics.median(times)}


def loop_rate(policy: Any, guidance: Any, seconds: float) -> float:
    """Steps per second of the whole loop with our defaults; the first iteration, which compiles, does not count."""
    import numpy as np

    from ultra.config import PPOConfig
    from ultra.ppo.train import Iteration, train

    config, seen = PPOConfig(), []
    iterations = max(3, round(seconds * 5))

    def look(iteration: Iteration) -> None:
        seen.append(iteration)

    rng = np.random.default_rng(0)
    train(known(TASK), policy, config, iterations * config.samples, rng, guidance=guidance, observer=look)
    return (seen[-1].steps - seen[0].steps) / sum(iteration.seconds for iteration in seen[1:])


KINDS: dict[str, tuple[Callable[..., Measured], tuple[str, ...]]] = {
    "environments": (environments, ("count",)),
    "width": (width, ("units",)),
    "unguided": (unguided, ()),
    "guidance": (guidance, ("entries",)),
    "memory": (memory, ("episodes",)),
    "help": (lambda seconds: start_up(seconds, "-m", "ultra", "--help"), ()),
    "import": (lambda seconds: start_up(seconds, "-c", "import ultra"), ()),
}
COLUMNS = ("kind", "point", "round", "quantity", "value")


def points(tiny: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Every point of every curve; `tiny` takes the smallest of each, to see that the command works."""
    if tiny:
        return [("environments", (8,)), ("width", (64,)), ("unguided", ()), ("guidance", (10,)), ("memory", (2,)),
                ("help", ()), ("import", ())]  # fmt: skip
    return [
        *(("environments", (count,)) for count in ENVIRONMENTS), *(("width", (units,)) for units in WIDTHS),
        ("unguided", ()), *(("guidance", (entries,)) for entries in ENTRIES),
        ("memory", (1000,)), ("help", ()), ("import", ()),
    ]  # fmt: skip


# Measuring


def measured_before(path: Path) -> list[dict[str, str]]:
    """The rows of the CSV file; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def save(path: Path, rows: list[dict[str, str]]) -> None:
    """All rows as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# The page


class Figures:
    """What was measured, by kind, point and quantity."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self._values: dict[tuple[str, str, str], list[float]] = {}
        for row in rows:
            self._values.setdefault((row["kind"], row["point"], row["quantity"]), []).append(float(row["value"]))

    def points(self, kind: str) -> list[str]:
        """Points of a curve that were measured."""
        return list(dict.fromkeys(point for one, point, _ in self._values if one == kind))

    def values(self, kind: str, point: str, quantity: str) -> list[float]:
        """One for each round."""
        return self._values.get((kind, point, quantity), [])

    def cell(self, kind: str, point: str, quantity: str, digits: int = 0) -> str:
        """Median and range."""
        values = self.values(kind, point, quantity)
        if not values:
            return ""
        low, high = min(values), max(values)
        return f"{statistics.median(values):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"

    def median(self, kind: str, point: str, quantity: str) -> float:
        """The median."""
        return statistics.median(self.values(kind, point, quantity))


def page(figures: Figures, rounds: int, picture: str, reading: str) -> str:
    """The Markdown page."""
    installed = []
    for name in PACKAGES:
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    lines = [
        "# Scaling curves", "",
        f"Made by `python benchmarks/curves.py --rounds {rounds}` on {date.today()}: {machine()}, "
        f"Python {platform.python_version()}, {', '.join(installed)}.", "",
        "Hopper-v5; medians of the rounds, with their range in brackets; every measurement in a process of its own, "
        "points in turn. How a study grows with its runs and with cores: `python benchmarks/study_scaling.py`, "
        "[scaling](../scaling.md).", "", f"![Curves]({picture})", "",
        "## Environments", "",
        "Steps/s of rollouts with a fresh policy of 64 x 64, and of the simulator alone over the same states and "
        "actions.", "",
        "| environments | collection | simulator alone | share |", "|---|---|---|---|",
    ]  # fmt: skip
    for point in figures.points("environments"):
        share = figures.median("environments", point, "collection") / figures.median("environments", point, "simulator")
        cells = [figures.cell("environments", point, name) for name in ("collection", "simulator")]
        lines.append(f"| {point} | {cells[0]} | {cells[1]} | {share:.0%} |")
    lines += ["", "## Width of the network", "", "Two hidden layers each for actor and critic; our defaults.", "",
              "| units | whole loop, steps/s |", "|---|---|"]  # fmt: skip
    lines += [f"| {point} | {figures.cell('width', point, 'loop')} |" for point in figures.points("width")]
    lines += [
        "", "## Table of advice", "",
        f"In the loop entries lie near visited states, so that nearly every state is critical. "
        f"Guidance lasts for the whole training here (by default for its first 60%). The share is against the loop "
        f"without guidance: {figures.cell('unguided', '', 'loop')} steps/s. Matching is what one step of {TOGETHER} "
        "states takes by itself, none of which is found: then all are looked up again at the next step.", "",
        "| entries | whole loop, steps/s | share | matching, us |", "|---|---|---|---|",
    ]  # fmt: skip
    for point in figures.points("guidance"):
        share = figures.median("guidance", point, "loop") / figures.median("unguided", "", "loop")
        cells = [figures.cell("guidance", point, name) for name in ("loop", "matching")]
        lines.append(f"| {int(point):,} | {cells[0]} | {share:.0%} | {cells[1]} |")
    lines += ["", "## Memory and start-up", "", "| | | target | |", "|---|---|---|---|"]
    for kind, words in (("memory", "MB at most, a run that collects {} episodes"),
                        ("help", "`ultra --help`, seconds"), ("import", "`import ultra`, seconds")):  # fmt: skip
        for point in figures.points(kind):
            quantity, limit = LIMITS[kind]
            met = "met" if figures.median(kind, point, quantity) < limit else "missed"
            cell = figures.cell(kind, point, quantity, 0 if kind == "memory" else 2)
            lines.append(f"| {words.format(point)} | {cell} | {limit:,g} | {met} |")
    return "\n".join(lines) + f"\n\n{READING}\n{reading}"


def draw(figures: Figures, path: Path) -> None:
    """The three curves as PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(10.5, 3.2), dpi=110, layout="constrained")

    def curve(axes: Any, kind: str, quantity: str, name: str) -> None:
        found = figures.points(kind)
        if not found:
            return
        x = [int(point.split()[0]) for point in found]
        middle = [figures.median(kind, point, quantity) for point in found]
        (line,) = axes.plot(x, middle, "o-", label=name, markersize=3)
        ends = [figures.values(kind, point, quantity) for point in found]
        axes.fill_between(x, [min(v) for v in ends], [max(v) for v in ends], color=line.get_color(), alpha=0.15)

    curve(panels[0], "environments", "simulator", "simulator alone")
    curve(panels[0], "environments", "collection", "collection")
    curve(panels[1], "width", "loop", "whole loop")
    curve(panels[2], "guidance", "loop", "whole loop")
    for axes, words in zip(panels, ("environments", "units in a layer", "entries of the table"), strict=True):
        axes.set_xscale("log", base=10 if "entries" in words else 2)
        axes.set_xlabel(words)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("steps/s")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results/scaling-curves.md"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement of a rate, about")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after so many minutes")
    parser.add_argument("--only", choices=KINDS, action="append", help="only these curves")
    parser.add_argument("--tiny", action="store_true", help="one point of each, to see that it works")
    parser.add_argument("--measure", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--at", type=int, nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        function, names = KINDS[options.measure]
        print(json.dumps(function(options.seconds, **dict(zip(names, options.at, strict=True)))))
        return
    data = options.out.with_suffix(".csv")
    rows = measured_before(data)
    done = {(row["kind"], row["point"], row["round"]) for row in rows}
    end = time.monotonic() + 60 * options.minutes
    for number in range(options.rounds):
        for kind, point in points(options.tiny):
            key = (kind, " ".join(map(str, point)), str(number))
            if key in done or kind not in (options.only or KINDS) or time.monotonic() > end:
                continue
            found = measured(__file__, "--measure", kind, "--at", *map(str, point), "--seconds", str(options.seconds))
            rows += [dict(zip(COLUMNS, (*key, name, f"{value:.6g}"), strict=True)) for name, value in found.items()]
            save(data, rows)
            said = ", ".join(f"{name} {value:,.5g}" for name, value in found.items())
            print(f"round {number} {kind:<13} {key[1]:<9} {said}", flush=True)
    reading = "\n"
    if options.out.is_file() and READING in (text := options.out.read_text(encoding="utf-8")):
        reading = text.split(READING, 1)[1].lstrip("\n").join(["\n", ""])
    figures, picture = Figures(rows), options.out.with_suffix(".png")
    draw(figures, picture)
    options.out.write_text(page(figures, options.rounds, picture.name, reading), encoding="utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
