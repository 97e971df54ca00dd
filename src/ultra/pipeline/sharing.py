"""One analysis for many seeds: runs that differ in `seed` alone share the analysis of the starting policy.

The run that comes first does the analysis and leaves a copy. The others take the copy and are charged what it cost,
so that each of them ends as if it had done the analysis itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ultra.common.files import write_json
from ultra.common.ledger import canonical
from ultra.common.locks import hold_directory
from ultra.config import RefineConfig
from ultra.pipeline.run import ANALYSIS_STAGES, Run, relevant_settings, versions
from ultra.pipeline.schedule import Round
from ultra.simulation.budget import PURPOSES, StepBudget

MANIFEST = "analysis.json"
"""In the folder of an analysis: who did it, and what each stage cost. It is written last."""
COPY = "round"
"""In the same folder: the round's files as they were after verification."""


def share_analysis(
    place: Path,
    run: Run,
    plan: Round,
    order: str,
    analyse: Callable[[str], None],
    say: Callable[[str], None],
) -> None:
    """Finish the stages of a round up to verification: by a copy, or else by doing them and leaving one.

    Whoever comes while another run is at the same analysis waits for it; if that run is interrupted, the next one does
    the analysis.

    Args:
        place: folder of the analyses that runs share.
        run: whose round begins with the starting policy.
        plan: of the round.
        order: of programs and training, which the analyst is told.
        analyse: runs one stage of the round, unless it is done.
        say: tells a person.
    """
    stages = [stage for stage in plan.stages if stage in ANALYSIS_STAGES]
    if not stages or run.finished(_name(plan, stages[-1])):
        return
    folder = place / _identity(run, plan, order)[:16]
    with hold_directory(folder, patience=math.inf):
        if (folder / MANIFEST).is_file():
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            _take(folder, manifest, run, plan)
            say(f"analysis  as in {manifest['run']}, which differs in the seed alone; its steps are charged here too")
            return
        for stage in stages:
            analyse(stage)
        _leave(folder, run, plan, stages)


def _name(plan: Round, stage: str) -> str:
    return f"round-{plan.number}/{stage}"


def _identity(run: Run, plan: Round, order: str) -> str:
    """A hash of everything on which an analysis depends: settings, files that they name, policy, budget, versions."""
    config: RefineConfig = run.config
    settings = relevant_settings(config)
    settings = {name: value for name, value in settings.items() if name not in ("seed", "policy")}
    named = {name: settings[name] for name in ("env.card", "env.module")}
    named["analyst"] = config.analyst.partition(":")[2]
    start = run.path / "policy" / "start"
    header = json.loads((start / "policy.json").read_text(encoding="utf-8"))
    header.pop("about", None)
    first = next((_name(plan, stage) for stage in plan.stages if run.finished(_name(plan, stage))), None)
    before = list(run.done)[: list(run.done).index(first)] if first else list(run.done)
    value = {
        "settings": settings,
        "files": {name: _digest(Path(text)) for name, text in named.items() if text and Path(text).is_file()},
        "policy": [header, _digest(start / "weights.safetensors")],
        "round": plan.number,
        "order": order,
        "used": StepBudget.from_dict(run.done[before[-1]]).used if before else 0,
        "versions": versions(),
    }
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _leave(folder: Path, run: Run, plan: Round, stages: list[str]) -> None:
    """Copy the round's files and what each stage cost."""
    copy = folder / COPY
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run.round(plan.number), copy)
    costs, names = {}, list(run.done)
    for stage in stages:
        place = names.index(_name(plan, stage))
        before = run.done[names[place - 1]] if place else StepBudget(run.config.steps).as_dict()
        costs[stage] = {name: run.done[names[place]][name] - before[name] for name in (*PURPOSES, "audit")}
    write_json(folder / MANIFEST, {"run": run.path.name, "costs": costs})


def _take(folder: Path, manifest: Mapping[str, Any], run: Run, plan: Round) -> None:
    """Take the files of an analysis, and be charged for it."""
    own, fresh = run.round(plan.number), run.path / f".round-{plan.number}.copy"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(folder / COPY, fresh)
    for path in fresh.glob("asked-*.json"):  # another run bought these answers
        asked = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, asked | {"bought": 0, "reused": asked["reused"] + asked["bought"]})
    shutil.rmtree(own)
    fresh.rename(own)
    for stage, costs in manifest["costs"].items():
        if run.finished(_name(plan, stage)):
            continue
        budget = run.budget()
        for purpose in PURPOSES:
            budget.charge(purpose, costs[purpose])
        budget.audit += costs["audit"]
        run.complete(_name(plan, stage), budget)
