"""The Python API: the whole refinement, one function for each of its stages, and their neighbours.

Each function does what the command of the same name does; `reporter` is silent unless given.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ultra.config import RefineConfig, TrainConfig
from ultra.evaluation import evaluate as evaluate_policy
from ultra.evaluation import evaluation_seeds
from ultra.opening import open_policy
from ultra.pipeline import Refinement
from ultra.policy import Policy
from ultra.progress import Reporter
from ultra.reporting import write_report
from ultra.run import STAGES, Run
from ultra.statistics import Estimate
from ultra.tasks import Task, get_task
from ultra.training import train_policy

PathLike = str | os.PathLike[str]


def refine(config: RefineConfig, out: PathLike, reporter: Reporter | None = None) -> dict[str, Any]:
    """Refine a policy: collect, identify, advise, verify, fine-tune, evaluate.

    Args:
        config: what to do.
        out: run directory; if the same command began it, it is continued.
        reporter: tells a person how far it is.

    Returns:
        The contents of `result.json`.

    Raises:
        UltraError: for anything that the user can mend.
    """
    return Refinement.start(Path(out), config, reporter or Reporter(quiet=True)).run_all()


def train(config: TrainConfig, out: PathLike, reporter: Reporter | None = None) -> dict[str, Any]:
    """Train a policy from scratch with PPO; `out` becomes a policy directory.

    Returns:
        The contents of `result.json`.
    """
    return train_policy(Run.start(Path(out), "train", config), reporter or Reporter(quiet=True))


def evaluate(
    policy: Policy | PathLike, task: str | Task, episodes: int = 20, seed: int = 0, workers: int = 0
) -> Estimate:
    """Play episodes in Gymnasium's own environment; returns the mean return with its 95% interval."""
    loaded = policy if isinstance(policy, Policy) else open_policy(policy).policy
    known = task if isinstance(task, Task) else get_task(task)
    estimate, _, _ = evaluate_policy(known, loaded, evaluation_seeds(seed, episodes), workers=workers)
    return estimate


def report(run: PathLike, out: PathLike | None = None) -> Path:
    """Write tables, learning curve and one HTML page of a finished run; returns their folder."""
    path = Path(run)
    return write_report([Run.open(path)], Path(out) if out is not None else path / "report")


def collect(run: PathLike, reporter: Reporter | None = None) -> Path:
    """Stage 1 of a run: trajectories of the policy; returns the folder of the round's files."""
    return run_stage(run, "collect", reporter)


def identify(run: PathLike, reporter: Reporter | None = None) -> Path:
    """Stage 2a: critical states."""
    return run_stage(run, "identify", reporter)


def advise(run: PathLike, reporter: Reporter | None = None) -> Path:
    """Stage 2b: advice at the critical states."""
    return run_stage(run, "advise", reporter)


def verify(run: PathLike, reporter: Reporter | None = None) -> Path:
    """Stage 3: try the advice in the simulator."""
    return run_stage(run, "verify", reporter)


def finetune(run: PathLike, reporter: Reporter | None = None) -> Path:
    """Stage 4: train with the advice as guidance; after the last round, evaluate and write `result.json`."""
    return run_stage(run, "finetune", reporter)


def run_stage(run: PathLike, stage: str, reporter: Reporter | None = None) -> Path:
    """Run one stage in the first round where it is not done yet; nothing happens if it is done in all.

    Returns:
        The folder of the round's files.

    Raises:
        RunDirectoryError: if the stage before it is not done.
    """
    refinement = Refinement(Run.open(Path(run)), reporter or Reporter(quiet=True))
    rounds = refinement.config.rounds
    number = next((n for n in range(1, rounds) if not refinement.run.finished(f"round-{n}/{stage}")), rounds)
    refinement.run_stage(stage, number)
    if stage == STAGES[-1] and number == rounds:
        refinement.evaluate()
    return refinement.run.round(number)
