"""The pictures of a study's report: learning curves of each task, and performance profiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ultra.reporting import save_figure
from ultra.run import read_curve
from ultra.statistics import bootstrap_band, performance_profile
from ultra.studies.summary import SEED, Finished, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

POINTS = 120
DRAWS = 500


def draw_task_curves(summary: Summary, task: str, path: Path) -> None:
    """Learning curves against total environment steps: means over seeds, with 95% bootstrap bands."""
    from matplotlib import ticker

    figure, axes = _axes()
    for number, contender in enumerate(summary.study.contenders):
        runs = [run for run in summary.finished if (run.task, run.contender) == (task, contender.name)]
        colour = f"C{number}" if number < 10 else None
        curve = mean_curve(runs)
        if curve is not None:
            steps, mean, band = curve
            (line,) = axes.plot(steps, mean, color=colour, label=f"{contender.name} ({len(runs)})")
            if band is not None:
                axes.fill_between(steps, *band, color=line.get_color(), alpha=0.15, linewidth=0)
        if runs:
            final = np.mean([run.score for run in runs])
            used = np.mean([run.result["budget"]["used"] for run in runs])
            axes.plot([used * (1 + 0.01 * number)], [final], "o", color=colour)
    axes.axhline(summary.scales[task].start, color="0.4", linestyle="--", linewidth=1, label="starting policy")
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes.set_xlabel("environment steps, of all purposes")
    axes.set_ylabel("return while training")
    axes.set_title(f"{task}: means over seeds (number in brackets); dots are final evaluations", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def draw_profiles(summary: Summary, path: Path) -> None:
    """Performance profiles: share of runs that score above a threshold, with 95% bootstrap bands."""
    figure, axes = _axes()
    tables = {line.name: line.values for line in summary.overall}
    everything = np.concatenate([table.ravel() for table in tables.values()])
    low, high = min(0.0, float(everything.min())), max(1.0, float(everything.max()))
    thresholds = np.linspace(low - 0.05, high + 0.05, 200)
    for name, table in tables.items():
        (line,) = axes.plot(thresholds, performance_profile(table, thresholds), label=f"{name} ({len(table)})")
        if len(table) > 1:
            band = bootstrap_band(
                lambda scores: performance_profile(scores, thresholds),
                table,
                rng=np.random.default_rng(SEED),
                draws=DRAWS,
            )
            axes.fill_between(thresholds, *band, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlabel("normalised score: 0 is the starting policy, 1 the reference")
    axes.set_ylabel("share of runs above it")
    axes.set_title("Performance profiles over all tasks (seeds in brackets)", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def mean_curve(runs: list[Finished]) -> tuple[Array, Array, tuple[Array, Array] | None] | None:
    """Mean of the learning curves of several seeds, where all of them have one.

    Returns:
        Total environment steps (points,), mean return (points,), and lower and upper end of its band,
        None with one seed; nothing if no run has trained.
    """
    curves = [np.array(rows) for rows in (read_curve(run.path / "curve.csv") for run in runs) if rows]
    if not curves:
        return None
    first, last = max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves)
    if first > last:
        return None
    steps = np.linspace(first, last, POINTS)
    table = np.stack([np.interp(steps, curve[:, 0], curve[:, 1]) for curve in curves])[:, None, :]

    def mean(values: Array) -> Array:
        return np.asarray(values.mean(axis=(0, 1)), dtype=np.float64)

    band = None
    if len(curves) > 1:
        band = bootstrap_band(mean, table, rng=np.random.default_rng(SEED), draws=DRAWS)
    return steps, mean(table), band


def _axes() -> tuple[Figure, Axes]:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.2), dpi=120, layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
