"""The figures of a study: for each task in returns, over all tasks in normalised scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.common.statistics import (
    Estimate,
    difference_interval,
    interquartile_mean,
    interval_remark,
    normalize,
    probability_of_improvement,
    stratified_bootstrap,
)
from ultra.common.streams import stream
from ultra.pipeline.run import Run
from ultra.studies.claims import Claim, TaskTest, make_claim
from ultra.studies.plan import Contender, Job, Study, StudyTask
from ultra.studies.work import seconds_of

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Finished:
    """A finished refinement of a study."""

    task: str
    contender: str
    seed: int
    path: Path
    result: dict[str, Any]

    @property
    def score(self) -> float:
        """Mean return of its last policy."""
        return float(self.result["return"]["last"]["mean"])

    @property
    def seconds(self) -> float:
        """Wall-clock seconds that it took."""
        return seconds_of(self.path)


@dataclass(frozen=True)
class TaskScale:
    """Scale of normalised scores on a task.

    Attributes:
        task: its name in the study.
        start: mean return of the starting policy over all seeds.
        reference: the return that counts as a score of 1.
        source: of the reference.
    """

    task: str
    start: float
    reference: float
    source: str

    @property
    def usable(self) -> bool:
        """Whether scores can be normalised by it."""
        return self.reference > self.start

    def __str__(self) -> str:
        text = f"{self.task}: 0 is the starting policy's {self.start:.1f}, 1 is {self.reference:.1f} ({self.source})"
        return text if self.usable else f"{text}: no score, because the reference is not above the start"


@dataclass(frozen=True)
class Line:
    """A contender on one task, in returns; or over all tasks, in scores.

    Attributes:
        name: the contender.
        values: one for each seed; over all tasks: (seeds, tasks).
        center: interquartile mean with its bootstrap interval; None without two seeds.
        better: probability of improvement over the baseline with its interval.
        gap: mean difference to the baseline with Welch's interval (one task only).
        improved: runs that are better than their start with confidence.
        test: of that difference, Holm-adjusted over the tasks (one task only).
    """

    name: str
    values: Array
    center: Estimate | None
    better: Estimate | None
    gap: Estimate | None = None
    improved: int = 0
    test: TaskTest | None = None


@dataclass(frozen=True)
class Summary:
    """All figures of a study.

    Attributes:
        study: the plan.
        finished: runs that are done, in the study's order.
        missing: runs that are not, with the error of those that failed.
        scales: of each task that has a finished run.
        tasks: lines of each of those tasks.
        together: tasks that are scored together.
        overall: lines over these tasks, in normalised scores.
        claims: the study's main comparison, if it has one, and each contender against the baseline.
        remarks: caveats, shown before the figures.
    """

    study: Study
    finished: list[Finished]
    missing: list[tuple[Job, str]]
    scales: dict[str, TaskScale]
    tasks: dict[str, list[Line]]
    together: list[str]
    overall: list[Line]
    claims: list[Claim]
    remarks: list[str]


def summarize(study: Study, out: Path) -> Summary:
    """The figures of a study, finished or not.

    Raises:
        RunDirectoryError: if a run is damaged.
    """
    finished, missing = [], []
    for seed, task, contender in study.grid():
        job = study.job(out, task, contender, seed)
        if job.finished:
            finished.append(Finished(task.name, contender.name, seed, job.path, Run.open(job.path).read_result()))
        else:
            missing.append((job, job.error))
    known = [task for task in study.tasks if any(run.task == task.name for run in finished)]
    scales = {task.name: _scale(task, [run for run in finished if run.task == task.name]) for task in known}
    together = _together(finished, scales)
    claims = _claims(study, finished, scales, together)
    tests = {claim.method: claim.tests for claim in claims if claim.against == study.baseline}
    tasks = {
        task.name: [
            replace(line, test=tests.get(line.name, {}).get(task.name))
            for line in _lines(study, [run for run in finished if run.task == task.name])
        ]
        for task in known
    }
    overall = _overall(study, finished, scales, together) if together else []
    remarks = _remarks(study, finished, missing, together)
    return Summary(study, finished, missing, scales, tasks, together, overall, claims, remarks)


def _claims(
    study: Study, finished: Sequence[Finished], scales: dict[str, TaskScale], together: Sequence[str]
) -> list[Claim]:
    """The main comparison first, then all contenders against the baseline."""
    pairs = [(contender.name, study.baseline) for contender in study.contenders if contender.name != study.baseline]
    if study.planned:
        pairs = [study.planned, *(pair for pair in pairs if pair != study.planned)]
    names = [task.name for task in study.tasks]

    def returns(task: str, contender: str) -> Array:
        return np.array([run.score for run in finished if (run.task, run.contender) == (task, contender)])

    def scores(contender: str) -> Array:
        return scores_of(finished, study, scales, together, contender) if together else np.zeros((0, 0))

    claims = [
        make_claim(
            method,
            against,
            {name: (returns(name, method), returns(name, against)) for name in names},
            names,
            (scores(method), scores(against)),
            main=(method, against) == study.planned,
        )
        for method, against in pairs
    ]
    return [claim for claim in claims if claim.tests]


def _together(finished: Sequence[Finished], scales: dict[str, TaskScale]) -> list[str]:
    """The tasks that are scored together, of which a study that was stopped may have done too little.

    They have a scale, and more than half as many seeds that every contender has finished as the task with most:
    otherwise the last task, just begun, would take all but its few seeds from the others.
    """
    everyone = {run.contender for run in finished}
    whole = {}
    for name in scales:
        done = Counter(run.seed for run in finished if run.task == name)
        whole[name] = sum(count == len(everyone) for count in done.values())
    most = max(whole.values(), default=0)
    return [name for name, scale in scales.items() if scale.usable and whole[name] > most / 2]


def scores_of(
    finished: Sequence[Finished], study: Study, scales: dict[str, TaskScale], names: Sequence[str], contender: str
) -> Array:
    """Normalised scores (seeds, tasks) of the seeds with which a contender has finished on all of some tasks."""
    found = {(run.task, run.seed): run.score for run in finished if run.contender == contender}
    seeds = [seed for seed in study.seeds if all((name, seed) in found for name in names)]
    columns = [
        normalize(np.array([found[name, seed] for seed in seeds]), scales[name].start, scales[name].reference)
        for name in names
    ]
    return np.stack(columns, axis=1)


def _scale(task: StudyTask, runs: Sequence[Finished]) -> TaskScale:
    starts = {run.seed: float(run.result["return"]["start"]["mean"]) for run in runs}
    start = float(np.mean(list(starts.values())))
    if task.reference is not None:
        return TaskScale(task.name, start, task.reference, "given in the study")
    means = {name: float(np.mean([run.score for run in runs if run.contender == name]))
             for name in dict.fromkeys(run.contender for run in runs)}  # fmt: skip
    best = max(means, key=lambda name: means[name])
    return TaskScale(task.name, start, means[best], f"the best mean in this study, of {best}")


def _lines(study: Study, runs: Sequence[Finished]) -> list[Line]:
    values = {c.name: _values(runs, c) for c in study.contenders}
    base = values[study.baseline]
    lines = []
    for name, own in values.items():
        if not len(own):
            continue
        center, better, gap = _center(own[:, None]), None, None
        if name != study.baseline and min(len(own), len(base)) >= 2:
            gap = difference_interval(own.tolist(), base.tolist())
            better = _better(own[:, None], base[:, None])
        improved = sum(bool(run.result["improved"]) for run in runs if run.contender == name)
        lines.append(Line(name, own, center, better, gap, improved))
    return lines


def _values(runs: Sequence[Finished], contender: Contender) -> Array:
    return np.array([run.score for run in runs if run.contender == contender.name])


def _overall(
    study: Study, finished: Sequence[Finished], scales: dict[str, TaskScale], together: Sequence[str]
) -> list[Line]:
    tables = {c.name: scores_of(finished, study, scales, together, c.name) for c in study.contenders}
    base = tables[study.baseline]
    lines = []
    for name, table in tables.items():
        if not len(table):
            continue
        better = _better(table, base) if name != study.baseline and min(len(table), len(base)) >= 2 else None
        lines.append(Line(name, table, _center(table), better))
    return lines


def _center(table: Array) -> Estimate | None:
    if len(table) < 2:
        return None
    return stratified_bootstrap(interquartile_mean, table, rng=stream("bootstrap", "interquartile mean"))


def _better(table: Array, base: Array) -> Estimate:
    return stratified_bootstrap(probability_of_improvement, table, base, rng=stream("bootstrap", "improvement"))


def _interval_remarks(finished: Sequence[Finished]) -> list[str]:
    """What to say about intervals, by the fewest seeds that a contender has finished on each task."""
    counts = Counter((run.task, run.contender) for run in finished)
    fewest: dict[int, list[str]] = {}
    for name in dict.fromkeys(run.task for run in finished):
        fewest.setdefault(min(count for (task, _), count in counts.items() if task == name), []).append(name)
    found = {", ".join(names): interval_remark(count) for count, names in sorted(fewest.items())}
    return [f"{names}: {remark}" if len(found) > 1 else remark for names, remark in found.items() if remark]


def _remarks(
    study: Study, finished: Sequence[Finished], missing: Sequence[tuple[Job, str]], together: Sequence[str]
) -> list[str]:
    remarks = []
    failed = sum(bool(error) for _, error in missing)
    if missing:
        remarks.append(
            f"{len(missing)} of {len(missing) + len(finished)} runs are missing, {failed} of them failed: the figures "
            "are of those that finished. Repeat `ultra study` to do the rest."
        )
    remarks += _interval_remarks(finished)
    left_out = [task.name for task in study.tasks if task.name not in together]
    if finished and left_out:
        remarks.append(
            f"Scores over all tasks leave out {', '.join(left_out)}: too few seeds were finished by all methods, or "
            "the reference is not above the start."
        )
    versions = {tuple(sorted(run.result["versions"].items())) for run in finished}
    if len(versions) > 1:
        remarks.append(f"The runs were made with {len(versions)} different sets of versions: see runs.json.")
    return remarks
