"""Training from scratch: the same PPO loop, with statistics that are still learned."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ultra.common.files import write_json
from ultra.common.streams import stream
from ultra.config import TrainConfig
from ultra.evaluation.evaluate import evaluate, evaluation_seeds
from ultra.pipeline.checks import task_of
from ultra.pipeline.progress import Reporter, TrainingLog
from ultra.pipeline.run import Run, versions
from ultra.policies.io import load_policy, save_policy
from ultra.policies.policy import Architecture, create_policy
from ultra.ppo.train import check_rollouts, train


def train_policy(path: Path, config: TrainConfig, reporter: Reporter) -> dict[str, Any]:
    """Train in a run directory, which becomes a policy directory; continues where it was interrupted.

    Nothing is written before the task and the settings have been checked.

    Returns:
        The contents of `result.json`.
    """
    config = replace(config, ppo=replace(config.ppo, gamma=config.ppo.discount))
    task = task_of(config)
    check_rollouts(config.steps, config.ppo)
    rng = stream(config.seed, "train")
    hidden = tuple(config.hidden) if task.image is None else ()
    fresh = create_policy(Architecture(task.observation_size, task.action_space, hidden, task.image), rng)
    run = Run.start(path, "train", config)
    config = run.config
    if task.note:
        reporter.say(f"task      {task.name}: {task.note}")
    budget = run.budget()
    if not run.finished("train"):
        with reporter.bar("train", config.steps) as update:
            log = TrainingLog(run.path, 0, update)
            try:
                policy = train(
                    task,
                    fresh,
                    config.ppo,
                    config.steps,
                    rng,
                    learn_statistics=config.normalize,
                    budget=budget,
                    observer=log,
                    checkpoint=run.path / "checkpoint.npz",
                    workers=config.workers,
                )
            finally:
                log.close()
        save_policy(policy, run.path, {"made_by": "ultra train", "config": asdict(config), "versions": versions()})
        run.complete("train", budget)
    if run.finished("evaluate"):
        return run.read_result()
    seeds = evaluation_seeds(config.seed, config.evaluate.episodes)
    reporter.say(f"evaluate  {len(seeds)} episodes in Gymnasium's own environment")
    estimate, returns, steps = evaluate(task, load_policy(run.path), seeds, workers=config.workers)
    budget.evaluation += steps
    result = {
        "task": config.task,
        "method": "train",
        "seed": config.seed,
        "return": {"last": estimate.as_dict()},
        "returns": {"last": returns.tolist()},
        "budget": budget.as_dict(),
        "versions": versions(),
    }
    write_json(run.result, result)
    run.complete("evaluate", budget)
    return result
