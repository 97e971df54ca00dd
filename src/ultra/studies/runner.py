"""Run a study: prepare its directory, then do the runs that are missing or failed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ultra.common.errors import RunDirectoryError, UltraError
from ultra.common.files import make_directory, write_json
from ultra.common.locks import LOCK_FILES, hold_directory, make_permits
from ultra.config import RefineConfig
from ultra.finetuning.methods import check_budget
from ultra.pipeline.checks import task_of
from ultra.pipeline.run import Run
from ultra.policies.io import save_policy
from ultra.policies.opening import open_policy
from ultra.policies.policy import check_fits
from ultra.studies.display import Display
from ultra.studies.plan import Job, Study, StudyTask, read_study, shipped_policy, slug
from ultra.studies.pool import Pool
from ultra.studies.work import record_error

MANIFEST = "study.json"


@dataclass(frozen=True)
class Outcome:
    """How the runs of a study ended."""

    done: int
    """Runs that have finished, trainings of starting policies included."""
    failed: dict[str, str]
    """Why runs failed, in one line each."""
    compared: int
    """Runs that have finished and that a report compares."""


def run_study(study: Study, source: Path, out: Path, pool: Pool, display: Display) -> Outcome:
    """Do every run of a study that is not finished; runs that failed before are tried again.

    Args:
        study: the study.
        source: folder of the study file, from which policies are looked up.
        out: the study's directory.
        pool: executes the runs.
        display: shows their progress.

    Raises:
        UltraError: if something in the study cannot work, before anything runs.
        KeyboardInterrupt: after all runs have been ended; repeating the command goes on.
    """
    _claim(out)
    with hold_directory(out):
        try:
            for line in prepare(study, source, out):
                display.say(line)
            trainings, refinements = study.trainings(out), study.refinements(out)
            with display:
                display.expect([*trainings, *refinements])
                _do([job for job in trainings if not job.finished], pool, display)
                ready, failed = _split(refinements)
                for job, error in failed:
                    display.ended(job, record_error(job, error))
                _do(ready, pool, display)
        finally:
            pool.stop()
        jobs = [*trainings, *refinements]
        return Outcome(
            done=sum(job.finished for job in jobs),
            failed={job.name: job.error for job in jobs if not job.finished},
            compared=sum(job.finished for job in refinements),
        )


def _claim(out: Path) -> None:
    """Make the study's directory, unless it is something else's."""
    mine = (out / MANIFEST).is_file() or not out.exists()
    if not mine and (not out.is_dir() or {path.name for path in out.iterdir()} - LOCK_FILES):
        raise RunDirectoryError(f"{out} exists and is not a study: choose another --out")
    make_directory(out)


def prepare(study: Study, source: Path, out: Path) -> list[str]:
    """Check a study against its parts and against what was done in its directory, and make the directory ready.

    Returns:
        What to know about starting policies that were read, one line each.

    Raises:
        UltraError: naming what cannot work.
    """
    from ultra.analysts.registry import get_analyst

    before = read_manifest(out) if (out / MANIFEST).is_file() else None
    write_json(out / MANIFEST, plain(before or study))  # from here on the directory is a study's
    for contender in study.contenders:
        if contender.analyst:
            get_analyst(contender.analyst.analyst or contender.analyst.name)
    for job in study.refinements(out):
        _check_budget(job)
    remarks = [line for task in study.tasks for line in _prepare_policy(study, task, source, out, before)]
    for job in [*study.trainings(out), *study.refinements(out)]:
        if (job.path / "run.json").is_file():
            Run.open(job.path, "refine" if isinstance(job.config, RefineConfig) else "train").check(job.config)
    for name in ("runs", "logs"):
        make_directory(out / name)
    make_permits(out / "permits", study.llm_requests)
    write_json(out / MANIFEST, plain(study))
    return remarks


def _check_budget(job: Job) -> None:
    assert isinstance(job.config, RefineConfig)
    try:
        check_budget(job.config)
    except UltraError as error:
        raise UltraError(f"{job.name}: {error}") from error


def plain(study: Study) -> dict[str, Any]:
    """A study as its file would say it, defaults included."""
    values = asdict(study)
    for axis in ("tasks", "methods", "analysts"):
        values[axis] = {entry.pop("name"): entry for entry in values[axis]}
    return values


def read_manifest(out: Path) -> Study:
    """The study of a study's directory.

    Raises:
        RunDirectoryError: if there is none, or it is damaged.
    """
    path = out / MANIFEST
    try:
        return read_study(json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        raise RunDirectoryError(
            f"{out} is no study (no {MANIFEST}): make one with `ultra study FILE --out {out}`"
        ) from None
    except ValueError as error:
        raise RunDirectoryError(f"{path} is damaged ({error}): repeat `ultra study`") from error


def _prepare_policy(study: Study, task: StudyTask, source: Path, out: Path, before: Study | None) -> list[str]:
    """Check a task and copy its starting policy, so that all machines find it; returns remarks about it."""
    old = next((entry for entry in before.tasks if entry.name == task.name), None) if before else None
    if old and old.start != task.start:
        raise RunDirectoryError(
            f"{out} has runs of tasks.{task.name} with another task, policy or training: give it another name, "
            "or choose another --out"
        )
    environment = task_of(study.config(task, study.contenders[0], study.seeds[0], out))
    if task.train is not None:
        if task.policy:
            raise UltraError(f"tasks.{task.name} has both policy and train: leave one out")
        return []
    copy = out / "policies" / slug(task.name)
    if (copy / "policy.json").is_file():
        return []
    place = shipped_policy(task, source)
    statistics = str(source / task.vecnormalize) if task.vecnormalize else ""
    try:
        found = open_policy(place, statistics, trust_pickle=task.trust_pickle)
        space, facts = environment.action_space, environment.card.fact_names
        check_fits(found.policy, environment.name, environment.observation_size, space, facts)
    except UltraError as error:
        raise UltraError(f"tasks.{task.name}: {error}") from error
    save_policy(found.policy, copy, {"copied_from": str(place), "gamma": found.gamma})
    return [f"{task.name}: {line}" for line in (*found.notes, *(f"warning: {text}" for text in found.warnings))]


def _split(jobs: Sequence[Job]) -> tuple[list[Job], list[tuple[Job, str]]]:
    """Runs that are to be done, and those that cannot be because their starting policy is missing."""
    ready, failed = [], []
    for job in jobs:
        assert isinstance(job.config, RefineConfig)
        if job.finished:
            continue
        if (Path(job.config.policy) / "policy.json").is_file():
            ready.append(job)
        else:
            failed.append((job, "its starting policy could not be trained"))
    return ready, failed


def _do(jobs: Sequence[Job], pool: Pool, display: Display) -> None:
    for job in jobs:
        pool.submit(job)
    left = len(jobs)
    while left:
        for job, error in pool.wait(1.0):
            display.ended(job, error)
            left -= 1
        display.update()
