"""The pictures of a study's report: learning curves of each task, and performance profiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ultra.common.statistics import bootstrap_band, performance_profile
from ultra.common.streams import stream
from ultra.pipeline.reporting import save_figure
from ultra.pipeline.run import read_curve
from ultra.studies.summary import Finished, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
Curve = tuple[Array, Array, tuple[Array, Array] | None]
"""x (points,), y (points,), and the lower and upper end of its band, or None."""

POINTS = 120
DRAWS = 500
MOST_TOGETHER = 6
"""Lines that can be told apart in one picture; more get a panel each, with the baseline in grey."""
COLUMNS = 4
COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9")
"""Grey is the baseline's."""


@dataclass(frozen=True)
class Series:
    """What a picture shows of one contender."""

    name: str
    runs: int
    curve: Curve | None = None
    ends: tuple[Array, Array] | None = None
    """x (runs,) and y (runs,) of single dots."""


def draw_task_curves(summary: Summary, task: str, path: Path) -> None:
    """Learning curves against total environment steps: means over seeds, with 95% bootstrap bands."""
    from matplotlib import ticker

    series = []
    for contender in summary.study.contenders:
        runs = [run for run in summary.finished if (run.task, run.contender) == (task, contender.name)]
        if runs:
            ends = np.array([run.result["budget"]["used"] for run in runs]), np.array([run.score for run in runs])
            series.append(Series(contender.name, len(runs), mean_curve(runs), ends))
    start = summary.scales[task].start

    def dress(axes: Axes) -> None:
        axes.axhline(start, color="0.4", linestyle="--", linewidth=1)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))

    title = f"{task}: means over seeds with 95% bands; dots are final evaluations; dashed: the starting policy"
    labels = ("environment steps, of all purposes", "return while training")
    _draw(series, summary.study.baseline, title, labels, dress, path)


def draw_profiles(summary: Summary, path: Path) -> None:
    """Performance profiles: share of runs that score above a threshold, with 95% bootstrap bands."""
    tables = {line.name: line.values for line in summary.overall}
    everything = np.concatenate([table.ravel() for table in tables.values()])
    low, high = min(0.0, float(everything.min())), max(1.0, float(everything.max()))
    thresholds = np.linspace(low - 0.05, high + 0.05, 200)

    def profile(table: Array) -> Array:
        return performance_profile(table, thresholds)

    series = []
    for name, table in tables.items():
        band = None
        if len(table) > 1:
            band = bootstrap_band(profile, table, rng=stream("bootstrap", "profiles"), draws=DRAWS)
        series.append(Series(name, len(table), (thresholds, profile(table), band)))

    def dress(axes: Axes) -> None:
        for x in (0, 1):
            axes.axvline(x, color="0.8", linewidth=1, zorder=0)

    title = f"performance profiles over {', '.join(summary.together)}, with 95% bands"
    labels = ("normalised score: 0 is the starting policy, 1 the reference", "share of runs above it")
    _draw(series, summary.study.baseline, title, labels, dress, path)


def mean_curve(runs: Sequence[Finished]) -> Curve | None:
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
        band = bootstrap_band(mean, table, rng=stream("bootstrap", "curves"), draws=DRAWS)
    return steps, mean(table), band


def _draw(
    series: Sequence[Series],
    baseline: str,
    title: str,
    labels: tuple[str, str],
    dress: Callable[[Axes], None],
    path: Path,
) -> None:
    """Few contenders in one picture, or a panel for each of many."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    others = [one for one in series if one.name != baseline]
    colours: dict[str, Any] = {one.name: COLOURS[k % len(COLOURS)] for k, one in enumerate(others)}
    colours[baseline] = "black" if len(series) <= MOST_TOGETHER else "0.55"
    if len(series) <= MOST_TOGETHER:
        figure, axes = pyplot.subplots(figsize=(9, 4.2), dpi=120, layout="constrained")
        panels = [(axes, list(series))]
    else:
        base = [one for one in series if one.name == baseline]
        rows = -(-len(others) // COLUMNS)
        figure, grid = pyplot.subplots(
            rows, COLUMNS, figsize=(11, 0.6 + 2.4 * rows), dpi=120, layout="constrained", sharex=True, sharey=True
        )
        panels = [(axes, [*base, one]) for axes, one in zip(grid.flat, others, strict=False)]
        for axes in grid.flat[len(others) :]:
            axes.set_visible(False)
        title += f"; grey: {baseline}"
    for axes, shown in panels:
        for number, one in enumerate(shown):
            _draw_series(axes, one, colours[one.name], (number, len(shown)))
    for axes, shown in panels:
        dress(axes)  # its limits hold for panels that share their axes: only now is all in them
        axes.spines[["top", "right"]].set_visible(False)
        if len(panels) > 1:
            axes.set_title(f"{shown[-1].name} ({shown[-1].runs})", fontsize=9, color=colours[shown[-1].name])
            axes.tick_params(labelsize=8)
    if len(panels) == 1:
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.set_title(title, fontsize=9)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    else:
        figure.supxlabel(labels[0], fontsize=10)
        figure.supylabel(labels[1], fontsize=10)
        figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def _draw_series(axes: Axes, series: Series, colour: Any, place: tuple[int, int]) -> None:
    """One contender: its curve with its band, and a dot for each seed beyond the curves' end."""
    label = f"{series.name} ({series.runs})"
    if series.curve is not None:
        x, y, band = series.curve
        axes.plot(x, y, color=colour, label=label)
        if band is not None:
            axes.fill_between(x, *band, color=colour, alpha=0.18, linewidth=0)
    if series.ends is not None:
        x, y = series.ends
        number, of = place
        column = np.full(len(y), x.max() * (1.02 + 0.08 * number / of))
        axes.plot(column, y, "o", color=colour, markersize=3, alpha=0.6)
        only = label if series.curve is None else None
        axes.plot(column[:1], [y.mean()], "_", color=colour, markersize=12, markeredgewidth=2.5, label=only)
