"""The Python API: the whole refinement, one function for each of its stages, and their neighbours.

Each function does what the command of the same name does; `reporter` is silent unless given.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ultra.adoption.reading import with_observed_facts
from ultra.adoption.standalone import export_standalone
from ultra.analysts.fidelity import fidelity_of_case
from ultra.collection.collect import collect as play
from ultra.common.errors import UltraError
from ultra.common.files import make_directory, write_json
from ultra.common.locks import hold_directory
from ultra.common.statistics import Estimate
from ultra.config import RefineConfig, ScoreConfig, TrainConfig
from ultra.evaluation.evaluate import evaluate as evaluate_policy
from ultra.evaluation.evaluate import evaluation_seeds
from ultra.pipeline.progress import Reporter
from ultra.pipeline.refinement import Refinement
from ultra.pipeline.reporting import write_report
from ultra.pipeline.round_advice import fidelity_rng
from ultra.pipeline.run import STAGES, Run
from ultra.pipeline.training import train_policy
from ultra.policies.acting import missing_facts
from ultra.policies.opening import open_policy
from ultra.policies.policy import Policy, check_fits
from ultra.policies.sb3.exporting import export_policy
from ultra.tasks import Task, get_task

if TYPE_CHECKING:
    from ultra.studies.runner import Outcome

PathLike = str | os.PathLike[str]


def refine(config: RefineConfig, out: PathLike, reporter: Reporter | None = None) -> dict[str, Any]:
    """Refine a policy: collect, identify, advise, verify, fine-tune, evaluate.

    Args:
        config: settings.
        out: run directory; continued if it holds the same refinement.
        reporter: shows progress.

    Returns:
        The contents of `result.json`.

    Raises:
        UltraError: for anything the user can fix.
    """
    with hold_directory(Path(out)):
        return Refinement.start(Path(out), config, reporter or Reporter(quiet=True)).run_all()


def train(config: TrainConfig, out: PathLike, reporter: Reporter | None = None) -> dict[str, Any]:
    """Train a policy from scratch with PPO; `out` becomes a policy directory.

    Returns:
        The contents of `result.json`.
    """
    with hold_directory(Path(out)):
        return train_policy(Path(out), config, reporter or Reporter(quiet=True))


def evaluate(
    policy: Policy | PathLike, task: Task | str, episodes: int = 20, seed: int = 0, workers: int = 0
) -> Estimate:
    """Play episodes in Gymnasium's own environment; returns the mean return with its 95% interval."""
    asked = ScoreConfig(episodes, seed, workers)
    loaded = policy if isinstance(policy, Policy) else open_policy(policy).policy
    task = get_task(task) if isinstance(task, str) else task
    estimate, _, _ = evaluate_policy(task, loaded, evaluation_seeds(asked.seed, asked.episodes), workers=asked.workers)
    return estimate


def observe_facts(policy: Policy, task: Task | str, episodes: int = 16, seed: int = 0, workers: int = 0) -> Policy:
    """Find out how the facts that a policy's programs read are read off observations, by playing.

    Policies that `ultra refine` saved know it. What is not in the observation stays unknown.

    Args:
        policy: with programs.
        task: the one that the programs were made for.
        episodes: to play, with sampled actions.
        seed: of the episodes.
        workers: processes; 0 uses all cores.

    Returns:
        The policy, which acts on observations alone if nothing is missing.
    """
    task = get_task(task) if isinstance(task, str) else task
    check_fits(policy, task.name, task.observation_size, task.action_space, task.card.fact_names)
    seeds = evaluation_seeds(seed, episodes)
    longest = min(task.time_limit, 1000)
    return with_observed_facts(policy, task.card, play(task, policy, seeds, 0.99, longest=longest, workers=workers))


def export(policy: Policy | PathLike, out: PathLike, task: Task | str | None = None) -> list[Path]:
    """Write a policy for use without ULTRA: by its ending a Python module of NumPy alone, or a zip.

    Args:
        policy: perhaps with programs.
        out: `NAME.py` for a module with a class `Policy` of `reset()` and `act(observation)`, which may have programs;
            `NAME.zip` for Stable-Baselines3 2.x, which has no place for programs.
        task: whose spaces the zip names; for a module only where it was not saved how programs read their facts.

    Returns:
        The files that were written.

    Raises:
        UltraError: if the policy cannot be written in that form; the message says what can be done.
    """
    loaded = policy if isinstance(policy, Policy) else open_policy(policy).policy
    path, known = Path(out), get_task(task) if isinstance(task, str) else task
    if path.suffix == ".py":
        if known is not None and missing_facts(loaded):
            loaded = observe_facts(loaded, known)
        make_directory(path.parent)
        export_standalone(path, loaded)
        return [path]
    if known is None:
        raise UltraError(f"{path} is to be a zip of Stable-Baselines3: give the task, whose spaces it names (--task)")
    return export_policy(loaded, known, path)


def report(run: PathLike, out: PathLike | None = None) -> Path:
    """Write tables, learning curves and one HTML page of a finished run or a study; returns their folder."""
    path = Path(run)
    folder = Path(out) if out is not None else path / "report"
    if (path / "study.json").is_file():
        from ultra.studies.report import write_study_report

        return write_study_report(path, folder)
    return write_report([Run.open(path)], folder)


def study(
    file: PathLike,
    out: PathLike,
    on: Literal["local", "ray"] = "local",
    address: str = "",
    jobs: int = 0,
    reporter: Reporter | None = None,
) -> Outcome:
    """Run what is missing or failed of a study.

    Args:
        file: the study (YAML).
        out: its directory; with Ray on a file system that all machines share.
        on: processes of this machine, or tasks of a Ray cluster.
        address: of the Ray cluster.
        jobs: runs at once on this machine; 0 is as many as its cores allow.
        reporter: shows progress, on a terminal as a live table.

    Raises:
        UltraError: if something in the study cannot work, before anything runs.
    """
    from ultra.studies.display import Display
    from ultra.studies.plan import load_study
    from ultra.studies.pool import make_pool
    from ultra.studies.runner import run_study

    plan, folder = load_study(Path(file)), Path(out).resolve()
    pool = make_pool(on, address, jobs, plan.cores)
    return run_study(plan, Path(file).parent, folder, pool, Display(reporter))


def collect(run: PathLike, reporter: Reporter | None = None) -> Path:
    """Stage 1 of a run: trajectories of the policy; returns the folder of the round's files."""
    return run_stage(run, "collect", reporter)


def fidelity(run: PathLike, number: int = 0, reporter: Reporter | None = None) -> list[dict[str, Any]]:
    """Score how well a run's critical states explain its episodes; the scores are kept in the round's folder.

    The audit in full: windows of all four lengths, in all episodes that were explained, played to their
    ends, for any method with critical states. A mask network is scored by its importance of every step,
    any other analyst by that of its critical states. The steps it takes are reported, and are not part of
    the run's budget.

    Args:
        run: its directory.
        number: round; 0 is the last one with critical states.
        reporter: shows progress.

    Returns:
        A score for each length, with that of windows placed by chance.

    Raises:
        RunDirectoryError: if the round has no critical states yet.
        UltraError: if there is nothing to compare changes of the return with.
    """
    refinement = Refinement(Run.open(Path(run)), reporter or Reporter(quiet=True))
    rounds = range(1, len(refinement.rounds) + 1)
    if not number:
        number = max((n for n in rounds if refinement.run.finished(f"round-{n}/identify")), default=1)
    refinement.run.require(f"round-{number}/identify", f"ultra identify {run}")
    with refinement.case(number, "identify") as case:
        scores = fidelity_of_case(case, fidelity_rng(refinement.config.seed_of_analysis, number))
    if not scores:
        raise UltraError(
            f"{run}: every episode has return 0, or none was explained: there is no change to compare with"
        )
    write_json(refinement.run.round(number) / "fidelity-by-length.json", scores)
    return scores


def identify(run: PathLike, reporter: Reporter | None = None) -> Path:
    """Stage 2a: critical states."""
    return run_stage(run, "identify", reporter)


def advise(run: PathLike, reporter: Reporter | None = None) -> Path:
    """Stage 2b: advice at critical states."""
    return run_stage(run, "advise", reporter)


def verify(run: PathLike, reporter: Reporter | None = None) -> Path:
    """Stage 3: try advice and programs in the simulator."""
    return run_stage(run, "verify", reporter)


def finetune(run: PathLike, reporter: Reporter | None = None) -> Path:
    """Stage 4: adopt programs and train with advice; after the last round, evaluate and write `result.json`."""
    return run_stage(run, "finetune", reporter)


def run_stage(run: PathLike, stage: str, reporter: Reporter | None = None) -> Path:
    """Run a stage in the first round where it is not done; does nothing if it is done in all.

    Returns:
        The folder of the round's files.

    Raises:
        RunDirectoryError: if the stage before it is not done.
    """
    with hold_directory(Path(run)):
        refinement = Refinement(Run.open(Path(run)), reporter or Reporter(quiet=True))
        rounds = len(refinement.rounds)
        number = next((n for n in range(1, rounds) if not refinement.run.finished(f"round-{n}/{stage}")), rounds)
        refinement.run_stage(stage, number)
        if stage == STAGES[-1] and number == rounds:
            refinement.evaluate()
        return refinement.run.round(number)
