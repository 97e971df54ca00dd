"""The refinement pipeline: collect -> identify -> advise -> verify -> fine-tune, in rounds, then evaluate.

Each stage reads the files of the one before from the run directory and writes its own, so that a stage can be run,
looked at, replaced or resumed alone. `Refinement.run_all` runs them all. What each round does and may spend stands in
`ultra.pipeline.schedule`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ultra.advice.records import Advice, CriticalState, load_advice, load_states, save_advice, save_states
from ultra.analysts.base import Case
from ultra.analysts.registry import get_analyst
from ultra.collection.collect import collect, collect_within
from ultra.collection.trajectories import Trajectory, save_trajectory
from ultra.common.errors import UltraError
from ultra.common.files import write_json
from ultra.common.statistics import difference_interval
from ultra.common.streams import stream
from ultra.config import AnchorConfig, RefineConfig, takes_advice
from ultra.evaluation.evaluate import evaluate, evaluation_seeds
from ultra.evaluation.late_policies import BEFORE, CHOSEN, LAST, LatePolicies, choose
from ultra.evaluation.starting import Start, load_start, measure_start
from ultra.finetuning.methods import STAGES as METHOD_STAGES
from ultra.finetuning.methods import STARTS, analyst_of, baseline, check_budget
from ultra.pipeline import order
from ultra.pipeline.adopting import ADOPTED, Adopted, adopt, read_adopted
from ultra.pipeline.audit import audit_of_run, proposals_of_run
from ultra.pipeline.checks import check_analyst, check_snapshots, task_of, with_discount
from ultra.pipeline.context import opened_case
from ultra.pipeline.program_search import POTENTIALS, ProgramSearch, read_potentials, read_verified
from ultra.pipeline.progress import Reporter, TrainingLog
from ultra.pipeline.round_advice import RoundAdvice
from ultra.pipeline.run import ANALYSIS_STAGES, Run, versions
from ultra.pipeline.schedule import Round, describe, schedule
from ultra.pipeline.sharing import share_analysis
from ultra.pipeline.usage import READERS, usage_of
from ultra.policies.io import load_policy, save_policy
from ultra.policies.opening import open_policy
from ultra.policies.policy import Policy, check_fits
from ultra.ppo.guidance import Guidance, NoGuidance
from ultra.ppo.train import train

EPISODES_TOGETHER = 256
"""Episodes collected before they are written to disk, which bounds memory."""


class Refinement:
    """One refinement in progress: its run directory, task and budget, and a method for each stage.

    Args:
        run: its directory.
        reporter: tells a person how far it is.
        shared: folder of analyses that runs with different seeds share; None if this one does its own.
    """

    def __init__(self, run: Run, reporter: Reporter, shared: Path | None = None) -> None:
        self.run, self.reporter, self.shared = run, reporter, shared
        self.config: RefineConfig = run.config
        self.task = task_of(self.config)
        self.budget = run.budget()

    @classmethod
    def start(cls, path: Path, config: RefineConfig, reporter: Reporter, shared: Path | None = None) -> Refinement:
        """Begin a refinement, or continue the one that the same command began.

        Nothing is written before the task and the policy have been checked.

        Raises:
            UltraError: if the task is unknown, the policy does not fit, or the directory is another's.
        """
        if not (path / "policy" / "start" / "policy.json").exists():
            task = task_of(config)
            if not config.policy:
                raise UltraError("which policy? Give --policy DIR (`ultra train` makes one) or a Stable-Baselines3 zip")
            found = open_policy(config.policy, config.vecnormalize, trust_pickle=config.trust_pickle)
            policy = found.policy
            check_fits(policy, task.name, task.observation_size, task.action_space, task.card.fact_names)
            check_snapshots(task, config.method)
            check_budget(config)
            check_analyst(config, task)
            run = Run.start(path, "refine", with_discount(config, found.gamma))
            for line in found.notes:
                reporter.say(line)
            for warning in found.warnings:
                reporter.warn(warning)
            if task.snapshots in ("replay", "remake"):
                reporter.say(f"{task.name} cannot be saved: its states are brought back by replaying actions (slower)")
            about = {"copied_from": config.policy, "gamma": run.config.ppo.discount}
            save_policy(policy, path / "policy" / "start", about)
            known = order.from_settings(config) or order.from_curve(Path(config.policy))
            if known is not None:
                known.save(path)
            return cls(run, reporter, shared)
        begun = Run.open(path).config.ppo.gamma
        return cls(Run.start(path, "refine", with_discount(config, begun)), reporter, shared)

    # -- the whole run -------------------------------------------------------------------------

    def run_all(self) -> dict[str, Any]:
        """Run every stage that is not done yet, then evaluate; returns the contents of `result.json`."""
        check_budget(self.config)
        if self.task.note:
            self.reporter.say(f"task      {self.task.name}: {self.task.note}")
        self.measure_start()
        self.reporter.say(f"order     {self.decision.why}")
        for line in describe(self.rounds, self.config):
            self.reporter.say(f"plan      {line}")
        self._share_analysis()
        for plan in self.rounds:
            for stage in plan.stages:
                self.run_stage(stage, plan.number)
        return self.evaluate()

    def _share_analysis(self) -> None:
        """Where other runs differ in the seed alone, one of them analyses the starting policy for all."""
        if self.shared is None or self.config.analysis_seed is None or self._goes_on_from_probe:
            return
        share_analysis(self.shared, self.run, self.rounds[0], self.decision.order, self.run_stage, self.reporter.say)

    @cached_property
    def decision(self) -> order.Decision:
        """Whether programs come before training; where a short training is to decide it, it is done now."""
        found = order.load_decision(self.run.path)
        if found is None:
            steps = order.probe_steps(self.config)
            found = self._probe(steps) if steps else order.from_episodes(self._start_ends_early())
            found.save(self.run.path)
            if found.steps:
                self.run.complete("probe", self.budget)
        return found

    def _probe(self, steps: int) -> order.Decision:
        """Train plainly for a short time. Where training is to come first anyway, the first round goes on from it."""
        self.budget = self.run.budget()
        self.reporter.say(f"probe     does the policy still learn? {steps:,} steps of plain PPO")
        with ExitStack() as stack:
            policy = self._trained(self._start_policy, steps, NoGuidance(), "probe", self.run.path / "probe.npz", stack)
        save_policy(policy, self.run.path / "policy" / "probe", {"training_steps": steps})
        return order.from_probe(self.run.curve, steps)

    def _start_ends_early(self) -> bool:
        measured = self.measure_start()
        return measured.steps < (len(measured.returns) + len(measured.chance)) * self.task.time_limit

    @cached_property
    def rounds(self) -> tuple[Round, ...]:
        """What each round does, and may spend."""
        return schedule(self.config, self.decision.order, self.task.time_limit, self.decision.steps)

    def run_stage(self, stage: str, number: int = 1) -> None:
        """Run one stage of one round, unless it is done.

        Raises:
            RunDirectoryError: if the stage before it is not done.
        """
        name = f"round-{number}/{stage}"
        if self.run.finished(name):
            return
        needed = self._before(stage, number)
        if needed is not None:
            self.run.require(needed, f"ultra {needed.split('/')[1]} {self.run.path}")
        self.measure_start()
        # A stage that was interrupted begins anew, and so does its part of the budget.
        self.budget = self.run.budget()
        stages: dict[str, Callable[[Round], None]] = {
            "collect": self._collect,
            "identify": self._identify,
            "advise": self._advise,
            "verify": self._verify,
            "finetune": self._finetune,
        }
        stages[stage](self.rounds[number - 1])
        self.run.complete(name, self.budget)

    def _before(self, stage: str, number: int) -> str | None:
        if stage not in METHOD_STAGES[self.config.method]:
            raise UltraError(f"method {self.config.method!r} has no stage {stage!r}")
        names = [f"round-{plan.number}/{part}" for plan in self.rounds for part in plan.stages]
        place = names.index(f"round-{number}/{stage}")
        return names[place - 1] if place else None

    def measure_start(self) -> Start:
        """The starting return, which is measured and shown before anything else."""
        path = self.run.path / "start.json"
        if not self.run.finished("start"):
            self.budget = self.run.budget()
            seeds = evaluation_seeds(self.config.seed, self.config.evaluate.episodes)
            self.reporter.say(f"start     {len(seeds)} episodes of the starting policy, in Gymnasium's own environment")
            start = measure_start(self.task, self._start_policy, seeds, self.config.workers)
            start.save(path)
            self.budget.evaluation += start.steps
            self.run.complete("start", self.budget)
            self.reporter.say(f"          return {start.estimate} (mean and 95% interval)")
            if start.warning:
                self.reporter.warn(start.warning)
        return load_start(path)

    # -- stages --------------------------------------------------------------------------------

    def _collect(self, plan: Round) -> None:
        settings, policy, gamma = self.config.collect, self._policy(plan.number), self.config.ppo.discount
        longest = max(1, plan.collect // settings.episodes)
        rng, workers = self._rng(plan.number, "collect"), self.config.workers
        folder = self.run.round(plan.number) / "trajectories"
        folder.mkdir(exist_ok=True)
        returns: list[float] = []
        steps = 0
        with self.reporter.bar("collect", plan.collect) as update:

            def tell(count: int) -> None:
                update(steps + count, "")

            def keep(trajectories: list[Trajectory]) -> None:
                nonlocal steps
                for trajectory in trajectories:
                    save_trajectory(trajectory, folder / f"episode-{len(returns):03d}.npz")
                    returns.append(trajectory.total_reward)
                    steps += len(trajectory)

            if self.config.method in STARTS:
                most, allowance = self.config.rice.episodes, plan.collect
                keep(
                    collect_within(self.task, policy, rng, gamma, allowance, most=most, workers=workers, progress=tell)
                )
            else:
                seeds = rng.integers(2**31, size=settings.episodes).tolist()
                for first in range(0, len(seeds), EPISODES_TOGETHER):
                    part = seeds[first : first + EPISODES_TOGETHER]
                    keep(collect(self.task, policy, part, gamma, longest=longest, workers=workers, progress=tell))
        self.budget.charge("collect", steps)
        self.reporter.say(f"          {len(returns)} episodes, mean return {np.mean(returns):.1f} (actions sampled)")

    def _identify(self, plan: Round) -> None:
        analyst = get_analyst(analyst_of(self.config))
        states: list[CriticalState] = []
        # Where only programs are wanted, critical states are for those who read.
        if plan.points or not plan.programs or analyst.name.startswith(READERS):
            with self.case(plan.number, "identify") as case:
                states = analyst.identify(case)
        if not states and plan.points:
            raise UltraError(f"analyst {analyst.name!r} found no critical state: raise --analyse.share")
        states = [replace(state, round=plan.number) for state in states]
        save_states(states, self.run.round(plan.number) / "states.jsonl")

    def _advise(self, plan: Round) -> None:
        folder = self.run.round(plan.number)
        advice: list[Advice] = []
        if plan.points:
            states = load_states(folder / "states.jsonl")
            with self.case(plan.number, "advise") as case:
                advice = get_analyst(self.config.analyst).advise(case, states)
            for item in advice:
                item.plan.check(self.task.action_space)
        save_advice(advice, folder / "advice.jsonl")

    def _verify(self, plan: Round) -> None:
        if plan.points:
            with self.case(plan.number, "verify") as case:
                advice = RoundAdvice(self.run, case, plan)
                advice.verify(self.reporter.say)
                self.budget.audit += advice.measure_fidelity(self.reporter.say)
        else:
            save_advice([], self.run.round(plan.number) / "verified.jsonl")
        if plan.programs:
            self._search_programs(plan)
        elif plan.points and self.config.method == "ultra-r" and self.config.guidance.trust == "helps":
            self._ask_for_potentials(plan)

    def _ask_for_potentials(self, plan: Round) -> None:
        """Where rewards alone are changed, programs are not asked for, but what the analyst thinks of states is."""
        states = load_states(self.run.round(plan.number) / "states.jsonl")
        with self.case(plan.number, "verify") as case:
            potentials = get_analyst(self.config.analyst).propose(case, states, None).potentials
        write_json(self.run.round(plan.number) / POTENTIALS, [potential.to_json() for potential in potentials])

    def _search_programs(self, plan: Round) -> None:
        """Turns of programs, each kept when it is done, then verification of the best."""
        states = load_states(self.run.round(plan.number) / "states.jsonl")
        analyst = get_analyst(self.config.analyst)
        before = self.budget.used
        verified = load_advice(self.run.round(plan.number) / "verified.jsonl")
        with self.case(plan.number, "verify") as case:
            search = ProgramSearch(
                replace(case, verified=verified),
                plan,
                self.config.programs,
                self.config.verify,
                self.config.seed_of_analysis,
                self.reporter.say,
            )
            for turn in range(1, search.turns_of(analyst) + 1):
                left = min(plan.race - (self.budget.used - before), self.budget.remaining)
                if not search.turn(turn, analyst, states, left):
                    break
            search.prove(plan.prove + max(0, plan.race - (self.budget.used - before)))
        if not plan.train and read_potentials(self.run.round(plan.number)):
            self.reporter.say("potentials are kept but not used: no training follows; --ask first trains with them")

    def _finetune(self, plan: Round) -> None:
        policy = self._policy(plan.number)
        anchored = False
        if plan.programs:
            found = self._adopt(plan)
            policy, anchored = found.policy, found.how != "none"
        trains = plan.train > 0
        if plan.programs and not plan.train and not anchored:
            # Nothing was found: the steps that are left are worth more in training.
            plan = replace(plan, choose=int(self.config.late.share * self.config.steps))
            trains = self.budget.remaining - plan.choose >= self.config.ppo.samples
        if trains:
            policy = self._train(plan, policy, anchored)
        about = {"round": plan.number, "method": self.config.method, "gamma": self.config.ppo.discount}
        save_policy(policy, self.run.round(plan.number) / "policy", about)

    def _adopt(self, plan: Round) -> Adopted:
        """Make the verified programs part of the policy, and keep how that was done."""
        folder = self.run.round(plan.number)
        with self.case(plan.number, "finetune") as case:
            found = adopt(case, plan, self.config, read_verified(folder), self.reporter.say)
        write_json(folder / ADOPTED, found.to_json())
        return found

    def _train(self, plan: Round, policy: Policy, anchored: bool) -> Policy:
        """Train with the round's guidance, and choose among the policies that training passed through.

        Args:
            plan: what the round may spend.
            policy: where training begins.
            anchored: whether training is held to that policy, because programs made it better.
        """
        config, folder = self.config, self.run.round(plan.number)
        # Guidance first: bringing back critical states may cost steps of the same budget.
        with ExitStack() as stack:
            guidance, reserved = self._guidance(plan, stack)
            late = None
            if plan.choose:
                late = LatePolicies(folder / "late", config.late.policies, 1.0 if anchored else LAST)
            share = plan.end - self.budget.used - reserved - plan.choose
            keep = config.keep if anchored else None
            name, checkpoint = f"round {plan.number}", folder / "checkpoint.npz"
            last = self._trained(policy, share, guidance, name, checkpoint, stack, late, keep)
        return last if late is None else self._choose(plan, late, policy)

    def _guidance(self, plan: Round, stack: ExitStack) -> tuple[Guidance, int]:
        """What modulates a round's training, and the steps that it may take."""
        config = self.config
        if takes_advice(config.method) and (plan.points or plan.programs):
            with self.case(plan.number, "finetune") as case:
                return RoundAdvice(self.run, case, plan).guidance(stack, self.reporter.say)
        if config.method == "ppo" or takes_advice(config.method):
            return NoGuidance(), 0
        return self._baseline(plan.number), 0

    def _trained(
        self,
        policy: Policy,
        steps: int,
        guidance: Guidance,
        name: str,
        checkpoint: Path,
        stack: ExitStack,
        late: LatePolicies | None = None,
        keep: AnchorConfig | None = None,
    ) -> Policy:
        """One training, with its progress and curve; what it writes is closed by `stack`."""
        config = self.config
        with self.reporter.bar("train", steps) as update:
            log = TrainingLog(self.run.path, self.budget.used, update)
            stack.callback(log.close)
            return train(
                self.task,
                policy,
                config.ppo,
                steps,
                stream(config.seed, name, "training"),
                guidance=guidance,
                standardized=config.standardize,
                budget=self.budget,
                observer=log,
                checkpoint=checkpoint,
                late=late,
                keep=keep,
                workers=config.workers,
            )

    def _choose(self, plan: Round, late: LatePolicies, before: Policy) -> Policy:
        """The best of a round's last policies and the one with which training began."""
        return choose(
            [*late.load(), (BEFORE, before)],
            self.task,
            plan.choose,
            self.budget,
            self._rng(plan.number, "choose"),
            workers=self.config.workers,
            record=self.run.round(plan.number) / CHOSEN,
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
            last = self._policy(len(self.rounds) + 1)
            last_estimate, last_returns, steps = evaluate(self.task, last, seeds, workers=config.workers)
            self.budget.evaluation += steps
        gain = difference_interval(last_returns.tolist(), start_returns)
        improved = gain.low > 0
        about = {"gamma": config.ppo.discount}
        save_policy(last, folder / "last", about)
        save_policy(last if improved else start, folder / "best", about)
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
            "order": {"programs": self.decision.order, "why": self.decision.why} if config.uses_programs else None,
            "audit": audit_of_run(self.run),
            "adopted": read_adopted([self.run.round(plan.number) for plan in self.rounds]),
            "proposals": proposals_of_run(self.run),
            "llm": usage_of(self.run),
            "versions": versions(),
        }
        write_json(self.run.result, result)
        self.run.complete("evaluate", self.budget)
        return result

    # -- what stages share ---------------------------------------------------------------------

    def _rng(self, number: int, stage: str) -> np.random.Generator:
        """A generator of the stage's own, so that stages can be run alone and repeated."""
        config = self.config
        seed = config.seed_of_analysis if stage in ANALYSIS_STAGES else config.seed
        return stream(seed, "round", number, stage)

    @property
    def _start_policy(self) -> Policy:
        return load_policy(self.run.path / "policy" / "start")

    def _policy(self, number: int) -> Policy:
        """The policy with which a round begins."""
        if number > 1:
            return load_policy(self.run.round(number - 1) / "policy")
        return load_policy(self.run.path / "policy" / "probe") if self._goes_on_from_probe else self._start_policy

    @property
    def _goes_on_from_probe(self) -> bool:
        """Whether the first round begins with the policy that was trained to decide the order."""
        return self.decision.probe and self.decision.order == "last"

    def case(self, number: int, stage: str) -> AbstractContextManager[Case]:
        """What an analyst is given in a stage of a round, as a context."""
        return opened_case(
            self.run,
            self.task,
            self._policy(number),
            self.rounds[number - 1],
            stage,
            self.budget,
            self._rng(number, stage),
            self.reporter,
            failed=self._failed(number),
            stuck=self.decision.order == "first",
        )

    def _failed(self, number: int) -> list[Advice]:
        """Advice of the round before that was tried and did not help, the most harmful first."""
        path = self.run.path / f"round-{number - 1}" / "verified.jsonl"
        if number == 1 or not path.is_file():
            return []
        tried = [(item.verification.advantage, item) for item in load_advice(path) if item.verification is not None]
        return [item for _, item in sorted(tried, key=lambda pair: pair[0]) if item.verdict != "helps"]

    def _baseline(self, number: int) -> Guidance:
        """The guidance of a method that uses no advice."""
        rng = self._rng(number, "guidance")
        with self.case(number, "finetune") as case:
            return baseline(self.config, case, self.run.round(number) / "states.jsonl", rng)
