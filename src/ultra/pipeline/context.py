"""The analysis context of a stage: what an analyst is given, with environments that are closed afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ultra.advice.records import Advice
from ultra.analysts.base import Case
from ultra.collection.trajectories import Episodes
from ultra.finetuning.methods import analysis_of
from ultra.pipeline.progress import Reporter
from ultra.pipeline.run import Run
from ultra.pipeline.schedule import Round
from ultra.policies.policy import Policy
from ultra.simulation.budget import StepBudget
from ultra.tasks import Task

BRANCHES_TOGETHER = 64
"""Environments for branches, where they are stepped as one array."""
SINGLE_BRANCHES = 16
"""The same where each is an object of its own: more would take long to make and step no faster."""


@contextmanager
def opened_case(
    run: Run,
    task: Task,
    policy: Policy,
    plan: Round,
    stage: str,
    budget: StepBudget,
    rng: np.random.Generator,
    reporter: Reporter,
    *,
    failed: Sequence[Advice],
    stuck: bool,
) -> Iterator[Case]:
    """The context of one stage of a round.

    Args:
        run: whose files are read and written.
        task: of the run.
        policy: with which the round begins.
        plan: what the round does, and may spend.
        stage: of the round.
        budget: charged with what the analyst simulates.
        rng: of the stage.
        reporter: shows the progress.
        failed: advice of the round before that did not help.
        stuck: whether the policy no longer learns.
    """
    config = run.config
    together = BRANCHES_TOGETHER if task.make_threaded_batch else SINGLE_BRANCHES
    folder = run.round(plan.number)
    episodes = Episodes(folder / "trajectories")
    batch, replay = task.make_batch(together, config.workers or None), task.make_local_batch(1)
    try:
        yield Case(
            task=task,
            policy=policy,
            episodes=episodes,
            config=analysis_of(config, len(episodes)),
            gamma=config.ppo.discount,
            batch=batch,
            replay=replay,
            budget=budget,
            allowance=plan.analyse,
            rng=rng,
            progress=lambda text: reporter.say(f"{stage:<9} {text}"),
            llm=config.llm,
            folder=folder,
            run=run.identity,
            failed=failed,
            statemask=config.statemask,
            ppo=config.ppo,
            workers=config.workers,
            stuck=stuck,
            turns=config.programs.turns,
            race_steps=plan.race // config.programs.turns,
            verify_steps=plan.prove,
        )
    finally:
        batch.close()
        replay.close()
