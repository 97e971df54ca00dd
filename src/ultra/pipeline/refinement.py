"""The way through the house: collect -> identify -> advise -> verify -> fine-tune -> evaluate.

Each stage reads the files of the one before from the run directory and writes its own, so that a
stage can be run, looked at, replaced or resumed alone. `refine` runs them all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ultra.advice.graft import GraftError, check_takes_rules
from ultra.advice.records import Advice, load_advice, load_states, save_advice, save_states
from ultra.analysts.base import Case
from ultra.analysts.registry import get_analyst
from ultra.collection.collect import collect, collect_within
from ultra.collection.trajectories import Episodes, Trajectory, save_trajectory
from ultra.common.errors import UltraError
from ultra.common.files import write_json
from ultra.common.statistics import difference_interval, rises
from ultra.common.streams import stream
from ultra.config import RefineConfig, takes_advice
from ultra.evaluation.evaluate import evaluate, evaluation_seeds
from ultra.evaluation.late_policies import BEFORE, CHOSEN, LatePolicies, choose
from ultra.evaluation.starting import Start, load_start, measure_start
from ultra.finetuning.methods import STAGES as METHOD_STAGES
from ultra.finetuning.methods import STARTS, allowance_of, analysis_of, analyst_of, baseline, check_budget
from ultra.pipeline.progress import Reporter, TrainingLog
from ultra.pipeline.round_advice import RoundAdvice, audit_of_run, verification_needed
from ultra.pipeline.run import Run, read_curve, versions
from ultra.pipeline.usage import usage_of
from ultra.policies.io import load_policy, save_policy
from ultra.policies.opening import open_policy
from ultra.policies.policy import Policy, check_fits
from ultra.ppo.guidance import Guidance, NoGuidance
from ultra.ppo.train import train
from ultra.tasks import Task, get_task
from ultra.tasks.batch import Batch
from ultra.tasks.spaces import Continuous

BRANCHES_TOGETHER = 64
"""Environments for branches, where they step as one array."""
SINGLE_BRANCHES = 16
"""The same where each is an object of its own: more take long to make and step no faster."""
EPISODES_TOGETHER = 256
"""Episodes that are collected before they are written, so that memory does not grow with their number."""
STILL_LEARNS = "the curve still rises, and no episode ends early"
"""Why a finishing round may only train."""
FINISHING_EPISODES = 4
"""Episodes of the trained policy in the finishing round: they show where its facts lie."""


class Refinement:
    """One refinement in progress: its run directory, task and budget, and a method for each stage."""

    def __init__(self, run: Run, reporter: Reporter) -> None:
        self.run, self.reporter = run, reporter
        self.config: RefineConfig = run.config
        self.task = task_of(self.config)
        self.budget = run.budget()

    @classmethod
    def start(cls, path: Path, config: RefineConfig, reporter: Reporter) -> Refinement:
        """Begin a refinement, or continue the one that the same command began.

        Nothing is written before the task and the policy have been found to be good.

        Raises:
            UltraError: if the task is unknown, the policy does not fit, or the directory is another's.
        """
        if not (path / "policy" / "start" / "policy.json").exists():
            task = task_of(config)
            if not config.policy:
                raise UltraError("which policy? Give --policy DIR (`ultra train` makes one) or a Stable-Baselines3 zip")
            found = open_policy(config.policy, config.vecnormalize, trust_pickle=config.trust_pickle)
            check_fits(found.policy, task.name, task.observation_size, task.action_space)
            check_snapshots(task, config.method)
            config, notes = decided(config, found.policy)
            run = Run.start(path, "refine", config)
            for line in (*found.notes, *notes, *(f"warning: {warning}" for warning in found.warnings)):
                reporter.say(line)
            if task.snapshots in ("replay", "remake"):
                reporter.say(f"{task.name} cannot be saved: its states are brought back by replaying actions (slower)")
            save_policy(found.policy, path / "policy" / "start", {"copied_from": config.policy})
            return cls(run, reporter)
        return cls(Run.start(path, "refine", config), reporter)

    # -- the way through -----------------------------------------------------------------------

    def run_all(self) -> dict[str, Any]:
        """Run every stage that is not done yet, then evaluate; returns the contents of `result.json`.

        Raises:
            UltraError: before anything is spent, if the budget cannot do for training.
        """
        check_budget(self.config)
        if self.task.note:
            self.reporter.say(f"task      {self.task.name}: {self.task.note}")
        self.measure_start()
        for number in range(1, self.config.last_round + 1):
            for stage in self._stages(number):
                self.run_stage(stage, number)
        return self.evaluate()

    def run_stage(self, stage: str, number: int = 1) -> None:
        """Run one stage of one round, unless it is done.

        Raises:
            RunDirectoryError: if the stage before it is not done.
        """
        name = f"round-{number}/{stage}"
        if self.run.finished(name):
            return
        needed = self._before(stage, number)
        if stage not in self._stages(number):
            self.reporter.say(f"{stage:<9} left out: {STILL_LEARNS}")
            return
        if needed is not None:
            self.run.require(needed, f"ultra {needed.split('/')[1]} {self.run.path}")
        self.measure_start()
        # A stage that was interrupted begins anew, and so does its part of the budget.
        self.budget = self.run.budget()
        stages: dict[str, Callable[[int], None]] = {
            "collect": self._collect,
            "identify": self._identify,
            "advise": self._advise,
            "verify": self._verify,
            "finetune": self._finetune,
        }
        stages[stage](number)
        self.run.complete(name, self.budget)

    def _before(self, stage: str, number: int) -> str | None:
        if stage not in METHOD_STAGES[self.config.method]:
            raise UltraError(f"method {self.config.method!r} has no stage {stage!r}")
        order = [f"round-{r}/{s}" for r in range(1, number + 1) for s in self._stages(r)]
        name = f"round-{number}/{stage}"
        place = order.index(name) if name in order else 0
        return order[place - 1] if place else None

    def _stages(self, number: int) -> tuple[str, ...]:
        """The stages of a round: of the finishing one only the last where training simply goes on."""
        stages, config = METHOD_STAGES[self.config.method], self.config
        trained = config.finishes(number) and self.run.finished(f"round-{config.rounds}/finetune")
        return stages[-1:] if trained and self._still_learns else stages

    @cached_property
    def _still_learns(self) -> bool:
        """Whether the steps of the finishing round are worth more in training; asked when the rounds before it trained.

        So it is where the curve rises and small changes of the action can prevent no early end (docs/method-notes.md).
        """
        config = self.config
        trained = config.rounds * config.round_steps
        folder = self.run.round(config.rounds) / "trajectories"
        return (
            isinstance(self.task.action_space, Continuous)
            and rises([row for row in read_curve(self.run.curve) if row[0] <= trained])
            and not any(episode.terminated for episode in Episodes(folder))
        )

    def measure_start(self) -> Start:
        """The starting return, which is measured and shown before anything else."""
        path = self.run.path / "start.json"
        if not self.run.finished("start"):
            self.budget = self.run.budget()
            seeds = evaluation_seeds(self.config.seed, self.config.evaluate.episodes)
            self.reporter.say(f"start     {len(seeds)} episodes of the starting policy, in Gymnasium's own environment")
            start = measure_start(self.task, self._policy(1), seeds, self.config.workers)
            start.save(path)
            self.budget.evaluation += start.steps
            self.run.complete("start", self.budget)
            self.reporter.say(f"          return {start.estimate} (mean and 95% interval)")
            if start.warning:
                self.reporter.say(f"warning: {start.warning}")
        return load_start(path)

    # -- stages --------------------------------------------------------------------------------

    def _collect(self, number: int) -> None:
        settings, policy, gamma = self.config.collect, self._policy(number), self.config.ppo.gamma
        finishing = self.config.finishes(number)
        episodes = min(settings.episodes, FINISHING_EPISODES) if finishing else settings.episodes
        allowance = self.budget.remaining // 8 if finishing else int(settings.share * self.config.round_steps)
        longest = max(1, allowance // episodes)
        rng, workers = self._rng(number, "collect"), self.config.workers
        folder = self.run.round(number) / "trajectories"
        folder.mkdir(exist_ok=True)
        returns: list[float] = []
        steps = 0
        with self.reporter.bar("collect", allowance) as update:

            def tell(count: int) -> None:
                update(steps + count, "")

            def keep(trajectories: list[Trajectory]) -> None:
                nonlocal steps
                for trajectory in trajectories:
                    save_trajectory(trajectory, folder / f"episode-{len(returns):03d}.npz")
                    returns.append(trajectory.total_reward)
                    steps += len(trajectory)

            if self.config.method in STARTS:
                most = self.config.rice.episodes
                keep(
                    collect_within(self.task, policy, rng, gamma, allowance, most=most, workers=workers, progress=tell)
                )
            else:
                seeds = rng.integers(2**31, size=episodes).tolist()
                for first in range(0, len(seeds), EPISODES_TOGETHER):
                    part = seeds[first : first + EPISODES_TOGETHER]
                    keep(collect(self.task, policy, part, gamma, longest=longest, workers=workers, progress=tell))
        self.budget.charge("collect", steps)
        self.reporter.say(f"          {len(returns)} episodes, mean return {np.mean(returns):.1f} (actions sampled)")

    def _identify(self, number: int) -> None:
        with self.case(number, "identify") as case:
            states = get_analyst(analyst_of(self.config)).identify(case)
        if not states:
            raise UltraError(f"analyst {analyst_of(self.config)!r} found no critical state: raise --analyse.share")
        states = [replace(state, round=number) for state in states]
        save_states(states, self.run.round(number) / "states.jsonl")

    def _advise(self, number: int) -> None:
        states = load_states(self.run.round(number) / "states.jsonl")
        with self.case(number, "advise") as case:
            advice = get_analyst(self.config.analyst).advise(case, states)
        for item in advice:
            item.plan.check(self.task.action_space)
        save_advice(advice, self.run.round(number) / "advice.jsonl")

    def _verify(self, number: int) -> None:
        with self.case(number, "verify") as case:
            advice = RoundAdvice(self.run, case, number)
            advice.verify(self.reporter.say)
            if not self.config.finishes(number):
                self.budget.audit += advice.measure_fidelity(self.reporter.say)

    def _finetune(self, number: int) -> None:
        policy = self._finish(number) if self.config.finishes(number) else self._train(number)
        save_policy(policy, self.run.round(number) / "policy", {"round": number, "method": self.config.method})

    def _finish(self, number: int) -> Policy:
        """The policy with what helps in its network; where nothing does, trained on with the steps that are left."""
        if self._still_learns:
            return self._train(number)
        with self.case(number, "finetune") as case:
            grafted = RoundAdvice(self.run, case, number).grafted(self.reporter.say)
        if grafted is not None:
            return grafted
        enough = self.budget.remaining - self._for_choice(number) >= self.config.ppo.samples
        return self._train(number) if enough else self._policy(number)

    def _for_choice(self, number: int) -> int:
        """Steps that a round keeps for choosing one of its last policies."""
        config, finishing = self.config, self.config.finishes(number)
        if not config.finishing or number < config.rounds or config.late.policies < 2:
            return 0
        if finishing and self._still_learns:
            return 0
        # The finishing round trains shortly, if at all, and passes through fewer.
        return int(config.late.share * config.steps) // (2 if finishing else 1)

    def _train(self, number: int) -> Policy:
        """Train with the round's advice or the method's guidance; in the finishing round plainly, to the end."""
        config = self.config
        folder = self.run.round(number)
        # Guidance first: bringing back critical states may cost steps of the same budget.
        with ExitStack() as stack:
            guidance: Guidance = NoGuidance()
            reserved = 0
            end = number * config.round_steps
            if config.finishes(number):
                end = config.steps
                reason = f": {STILL_LEARNS}" if self._still_learns else ""
                self.reporter.say(f"finish    training goes on with the steps that are left{reason}")
            elif takes_advice(config.method):
                with self.case(number, "finetune") as case:
                    advice = RoundAdvice(self.run, case, number)
                    guidance, reserved = advice.guidance(stack, self.reporter.say)
            elif config.method != "ppo":
                guidance = self._baseline(number)
            choosing = self._for_choice(number)
            late = LatePolicies(folder / "late", config.late.policies) if choosing else None
            share = end - self.budget.used - reserved - choosing
            offset = self.budget.used
            with self.reporter.bar("train", share) as update:
                log = TrainingLog(self.run.path, offset, update)
                stack.callback(log.close)
                policy = train(
                    self.task,
                    self._policy(number),
                    config.ppo,
                    share,
                    self._rng(number, "finetune"),
                    guidance=guidance,
                    standardized=config.standardize,
                    budget=self.budget,
                    observer=log,
                    checkpoint=folder / "checkpoint.npz",
                    late=late,
                    workers=config.workers,
                )
        return policy if late is None or self._still_learns else self._choose(number, late, choosing)

    def _choose(self, number: int, late: LatePolicies, allowance: int) -> Policy:
        """The best of a round's last policies and the one with which it began."""
        rng = stream(self.config.seed, "round", number, "choose")
        return choose(
            [*late.load(), (BEFORE, self._policy(number))],
            self.task,
            allowance,
            self.budget,
            rng,
            workers=self.config.workers,
            record=self.run.round(number) / CHOSEN,
            say=self.reporter.say,
        )

    def evaluate(self) -> dict[str, Any]:
        """Compare the starting policy and the last one on fresh seeds; keep the better; write the result."""
        if self.run.finished("evaluate"):
            return self.run.read_result()
        measured = self.measure_start()
        self.budget = self.run.budget()
        config, folder = self.config, self.run.path / "policy"
        seeds = evaluation_seeds(config.seed, config.evaluate.episodes)
        start, start_estimate, start_returns = load_policy(folder / "start"), measured.estimate, measured.returns
        last, last_estimate, last_returns = start, start_estimate, np.array(start_returns)
        if METHOD_STAGES[config.method]:
            self.reporter.say(f"evaluate  {len(seeds)} episodes of the refined policy, in Gymnasium's own environment")
            last = self._policy(config.last_round + 1)
            last_estimate, last_returns, steps = evaluate(self.task, last, seeds, workers=config.workers)
            self.budget.evaluation += steps
        gain = difference_interval(last_returns.tolist(), start_returns)
        improved = gain.low > 0
        save_policy(last, folder / "last")
        save_policy(last if improved else start, folder / "best")
        result = {
            "task": config.task,
            "method": config.method,
            "analyst": config.analyst if takes_advice(config.method) else None,
            "seed": config.seed,
            "improved": improved,
            "return": {
                "start": start_estimate.as_dict(),
                "last": last_estimate.as_dict(),
                "best": (last_estimate if improved else start_estimate).as_dict(),
                "gain": {"mean": gain.mean, "ci95": [gain.low, gain.high]},
            },
            "returns": {"start": list(start_returns), "last": last_returns.tolist()},
            "budget": self.budget.as_dict(),
            "audit": audit_of_run(self.run),
            "llm": usage_of(self.run),
            "versions": versions(),
        }
        write_json(self.run.result, result)
        self.run.complete("evaluate", self.budget)
        return result

    # -- what stages share ---------------------------------------------------------------------

    def _rng(self, number: int, stage: str) -> np.random.Generator:
        """A generator of the stage's own, so that stages can be run alone and repeated."""
        return stream(self.config.seed, "round", number, stage)

    def _policy(self, number: int) -> Policy:
        """The policy with which a round begins."""
        if number == 1:
            return load_policy(self.run.path / "policy" / "start")
        return load_policy(self.run.round(number - 1) / "policy")

    def case(self, number: int, stage: str) -> _CaseContext:
        """What an analyst is given in a stage of a round, as a context."""
        return _CaseContext(self, number, stage)

    def _allowance(self, number: int) -> int:
        """Steps for a round's analysis; in the finishing round what verification, which comes last, can spare."""
        if not self.config.finishes(number):
            return int(allowance_of(self.config) * self.config.round_steps)
        return max(0, self.budget.remaining - verification_needed(self.config, self.budget, self.task.time_limit))

    def _failed(self, number: int) -> list[Advice]:
        """Advice of the round before that was tried and did not help, the most harmful first."""
        path = self.run.path / f"round-{number - 1}" / "verified.jsonl"
        if number == 1 or not path.is_file():
            return []
        tried = [(item.verification.advantage, item) for item in load_advice(path) if item.verification is not None]
        return [item for _, item in sorted(tried, key=lambda pair: pair[0]) if item.verdict != "helps"]

    def _baseline(self, number: int) -> Guidance:
        """The guidance of a method that uses no advice."""
        rng = stream(self.config.seed, "round", number, "guidance")
        with self.case(number, "finetune") as case:
            return baseline(self.config, case, self.run.round(number) / "states.jsonl", rng)


class _CaseContext:
    """Opens what an analyst is given, and frees the environments afterwards."""

    def __init__(self, refinement: Refinement, number: int, stage: str) -> None:
        self._refinement, self._number, self._stage = refinement, number, stage
        self._batches: list[Batch] = []

    def __enter__(self) -> Case:
        own = self._refinement
        config = own.config
        together = BRANCHES_TOGETHER if own.task.make_threaded_batch else min(SINGLE_BRANCHES, BRANCHES_TOGETHER)
        self._batches.append(own.task.make_batch(together, config.workers or None))
        self._batches.append(own.task.make_local_batch(1))
        title = f"{self._stage:<9} "
        episodes = Episodes(own.run.round(self._number) / "trajectories")
        finishing = config.finishes(self._number)
        return Case(
            task=own.task,
            policy=own._policy(self._number),
            episodes=episodes,
            config=analysis_of(config, len(episodes), finishing=finishing),
            gamma=config.ppo.gamma,
            batch=self._batches[0],
            replay=self._batches[1],
            budget=own.budget,
            allowance=own._allowance(self._number),
            rng=own._rng(self._number, self._stage),
            progress=lambda text: own.reporter.say(title + text),
            llm=config.llm,
            folder=own.run.round(self._number),
            run=own.run.identity,
            failed=own._failed(self._number),
            statemask=config.statemask,
            ppo=config.ppo,
            workers=config.workers,
            finishing=finishing,
        )

    def __exit__(self, *error: object) -> None:
        for batch in self._batches:
            batch.close()


def check_snapshots(task: Task, method: str) -> None:
    """Check that a method which restores states can be used in a task.

    Raises:
        UltraError: if the environment does not repeat itself.
    """
    if task.snapshots == "none" and method not in ("none", "ppo", "jsrl"):
        raise UltraError(
            f"{task.name} does not repeat itself: the same seed and actions lead elsewhere, so advice cannot be tried; "
            "use --method ppo, or draw all randomness from self.np_random (docs/own-environment.md)"
        )


def decided(config: RefineConfig, policy: Policy) -> tuple[RefineConfig, tuple[str, ...]]:
    """The configuration without a finishing round that the policy cannot have, and what to tell of it.

    Raises:
        GraftError: if a finishing round was asked for.
    """
    if config.finishing:
        try:
            check_takes_rules(policy)
        except GraftError as error:
            if config.finish:
                raise GraftError(f"--finish {config.finish:g}: {error}; give --finish 0") from error
            return replace(config, finish=0.0), (f"no finishing round: {error}",)
    return config, ()


def task_of(config: Any) -> Task:
    """The task of a configuration, with its options."""
    options = {name: getattr(config, name) for name in ("sticky", "threshold") if getattr(config, name)}
    return get_task(config.task, **options, **config.env.options())
