"""The way through the house: collect -> identify -> advise -> verify -> fine-tune -> evaluate.

Each stage reads the files of the one before from the run directory and writes its own, so that a
stage can be run, looked at, replaced or resumed alone. `refine` runs them all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ultra.advice import (
    Advice,
    AdviceBook,
    Entry,
    Rule,
    Verification,
    calibrate,
    load_advice,
    load_rules,
    load_states,
    save_advice,
    save_rules,
    save_states,
    trusted,
)
from ultra.analysts import Case, get_analyst
from ultra.analysts.random import random_plan
from ultra.collection import collect, collect_within
from ultra.config import RefineConfig
from ultra.errors import UltraError
from ultra.evaluation import evaluate, evaluation_seeds
from ultra.expression import parse
from ultra.files import write_json
from ultra.guidance.base import Guidance, NoGuidance
from ultra.guidance.methods import STAGES as METHOD_STAGES
from ultra.guidance.methods import STARTS, allowance_of, analysis_of, analyst_of, baseline
from ultra.guidance.ultra import UltraGuidance
from ultra.opening import open_policy
from ultra.policy import Policy, check_fits, load_policy, save_policy
from ultra.ppo import train
from ultra.progress import Reporter, TrainingLog
from ultra.run import STAGES, Run, versions
from ultra.simulate import Habit
from ultra.starting import Start, load_start, measure_start
from ultra.statistics import difference_interval
from ultra.tasks import Task, get_task
from ultra.tasks.batch import Batch
from ultra.trajectories import Episodes, save_trajectory
from ultra.usage import usage_of
from ultra.verification import FIRST_LOOK, Bench, Proposal, Recheck, audit, audit_of, verify, verify_rules

BRANCHES_TOGETHER = 64


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
            run = Run.start(path, "refine", config)
            for line in (*found.notes, *(f"warning: {warning}" for warning in found.warnings)):
                reporter.say(line)
            if task.snapshots in ("replay", "remake"):
                reporter.say(f"{task.name} cannot be saved: its states are brought back by replaying actions (slower)")
            save_policy(found.policy, path / "policy" / "start", {"copied_from": config.policy})
            return cls(run, reporter)
        return cls(Run.start(path, "refine", config), reporter)

    # -- the way through -----------------------------------------------------------------------

    def run_all(self) -> dict[str, Any]:
        """Run every stage that is not done yet, then evaluate; returns the contents of `result.json`."""
        if self.task.note:
            self.reporter.say(f"task      {self.task.name}: {self.task.note}")
        self.measure_start()
        for number in range(1, self.config.rounds + 1):
            for stage in METHOD_STAGES[self.config.method]:
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
        order = [f"round-{r}/{s}" for r in range(1, number + 1) for s in METHOD_STAGES[self.config.method]]
        name = f"round-{number}/{stage}"
        if name not in order:
            raise UltraError(f"method {self.config.method!r} has no stage {stage!r}")
        place = order.index(name)
        return order[place - 1] if place else None

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
        allowance = int(settings.share * self._round_steps)
        longest = max(1, allowance // settings.episodes)
        rng, workers = self._rng(number, "collect"), self.config.workers
        with self.reporter.bar("collect", allowance) as update:

            def tell(steps: int) -> None:
                update(steps, "")

            if self.config.method in STARTS:
                most = self.config.rice.episodes
                trajectories = collect_within(
                    self.task, policy, rng, gamma, allowance, most=most, workers=workers, progress=tell
                )
            else:
                seeds = rng.integers(2**31, size=settings.episodes).tolist()
                trajectories = collect(self.task, policy, seeds, gamma, longest=longest, workers=workers, progress=tell)
        self.budget.charge("collect", sum(len(trajectory) for trajectory in trajectories))
        folder = self.run.round(number) / "trajectories"
        folder.mkdir(exist_ok=True)
        for index, trajectory in enumerate(trajectories):
            save_trajectory(trajectory, folder / f"episode-{index:03d}.npz")
        mean = np.mean([trajectory.total_reward for trajectory in trajectories])
        self.reporter.say(f"          {len(trajectories)} episodes, mean return {mean:.1f} (actions sampled)")

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
        folder, config = self.run.round(number), self.config
        advice, rules = load_advice(folder / "advice.jsonl"), load_rules(folder / "rules.jsonl")
        advice, rules = self._carry_over(number, advice, rules)
        control: list[Verification] = []
        if config.guidance.trust == "helps" and (advice or rules):
            with self.case(number, "verify") as case:
                allowance = int(config.verify.share * self._round_steps)
                rules, spent = self._verify_rules(case, rules, allowance // 2 if advice else allowance)
                advice, control = self._verify_advice(case, number, advice, allowance - spent)
        save_advice(advice, folder / "verified.jsonl")
        save_rules(rules, folder / "verified-rules.jsonl")
        write_json(folder / "control.json", [asdict(found) for found in control])
        for found, name in ((audit(advice), "advices"), (audit(rules), "rules")):
            if found["tried"] or found["untried"]:
                self.reporter.say(
                    f"          {found['tried'] + found['untried']} {name}: {found['helps']} help, "
                    f"{found['harms']} harm, {found['unclear']} unclear, {found['untried']} not tried"
                )

    def _verify_advice(
        self, case: Case, number: int, advice: list[Advice], allowance: int
    ) -> tuple[list[Advice], list[Verification]]:
        """Advice with what was found of it, and of random plans at the same states if they are asked for."""
        config = self.config.verify
        proposals = [Proposal(entry.advice.plan, entry.snapshot) for entry in self._entries(case, number, advice)]
        bench = self._bench(case, allowance * 2 // 3 if config.control else allowance)
        found = verify(proposals, bench, config)
        control: list[Verification | None] = []
        if config.control:
            space, longest = self.task.action_space, self.config.analyse.plan_steps
            drawn = [Proposal(random_plan(space, longest, case.rng), proposal.start) for proposal in proposals]
            control = verify(drawn, self._bench(case, allowance // 3), config)
        return (
            [replace(item, verification=result) for item, result in zip(advice, found, strict=True)],
            [result for result in control if result is not None],
        )

    def _verify_rules(self, case: Case, rules: list[Rule], allowance: int) -> tuple[list[Rule], int]:
        """Rules with what was found of them in paired whole episodes, and the steps that it took."""
        tried = [(rule, rule.plan) for rule in rules if rule.plan is not None]
        if not tried:
            return rules, 0
        names = self.task.card.fact_names
        habits = {rule.guard: Habit(parse(rule.guard, names), plan) for rule, plan in tried}
        # Episodes are cut where the allowance would not last for a first look at every rule and at two sets.
        affordable = allowance // (FIRST_LOOK * (len(habits) + 4))
        longest = min(self.task.time_limit, max(self.config.analyse.horizon, affordable))
        bench = self._bench(case, allowance, longest, gamma=1.0)
        found = verify_rules(habits, bench, self.config.verify)
        return [replace(rule, **found.get(rule.guard, {})) for rule in rules], allowance - bench.left

    def _bench(self, case: Case, allowance: int, horizon: int = 0, gamma: float | None = None) -> Bench:
        return Bench(
            case.batch,
            case.policy,
            case.gamma if gamma is None else gamma,
            horizon or self.config.analyse.horizon,
            self.budget,
            "verify",
            allowance,
            case.rng,
        )

    def _carry_over(self, number: int, advice: list[Advice], rules: list[Rule]) -> tuple[list[Advice], list[Rule]]:
        """What helped in the round before comes first, and is tried again under the new policy."""
        if number == 1 or self.config.guidance.trust == "all":
            return advice, rules
        earlier = self.run.round(number - 1)
        old = [item for item in load_advice(earlier / "verified.jsonl") if item.verdict == "helps"]
        known = [replace(rule, together=None) for rule in load_rules(earlier / "verified-rules.jsonl") if rule.together]
        guards = {rule.guard for rule in known}
        return [*old, *advice], [*known, *(rule for rule in rules if rule.guard not in guards)]

    def _finetune(self, number: int) -> None:
        config = self.config
        last_round = number == config.rounds
        folder = self.run.round(number)
        # Guidance first: bringing back critical states may cost steps of the same budget.
        with ExitStack() as stack:
            guidance: Guidance = NoGuidance()
            reserved = 0
            if config.method.startswith("ultra"):
                guidance, reserved = self._guidance(number, stack)
            elif config.method != "ppo":
                guidance = self._baseline(number)
            share = self.budget.remaining if last_round else number * self._round_steps - self.budget.used
            share -= reserved
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
                    budget=self.budget,
                    observer=log,
                    checkpoint=folder / "checkpoint.npz",
                    workers=config.workers,
                )
        save_policy(policy, folder / "policy", {"round": number, "method": config.method})

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
            last = self._policy(config.rounds + 1)
            last_estimate, last_returns, steps = evaluate(self.task, last, seeds, workers=config.workers)
            self.budget.evaluation += steps
        gain = difference_interval(last_returns.tolist(), start_returns)
        improved = gain.low > 0
        save_policy(last, folder / "last")
        save_policy(last if improved else start, folder / "best")
        result = {
            "task": config.task,
            "method": config.method,
            "analyst": config.analyst if config.method.startswith("ultra") else None,
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
            "audit": self.audit(),
            "llm": usage_of(self.run),
            "versions": versions(),
        }
        write_json(self.run.result, result)
        self.run.complete("evaluate", self.budget)
        return result

    # -- what stages share ---------------------------------------------------------------------

    @property
    def _round_steps(self) -> int:
        return self.config.steps // self.config.rounds

    def _rng(self, number: int, stage: str) -> np.random.Generator:
        """A generator of the stage's own, so that stages can be run alone and repeated."""
        return np.random.default_rng([self.config.seed, number, STAGES.index(stage)])

    def _policy(self, number: int) -> Policy:
        """The policy with which a round begins."""
        if number == 1:
            return load_policy(self.run.path / "policy" / "start")
        return load_policy(self.run.round(number - 1) / "policy")

    def case(self, number: int, stage: str) -> _CaseContext:
        """What an analyst is given in a stage of a round, as a context."""
        return _CaseContext(self, number, stage)

    def _entries(self, case: Case, number: int, advice: list[Advice]) -> list[Entry]:
        """Advice with the facts, snapshots and actions of its states, each from its own round's episodes."""
        rounds = {number: case} | {
            item.state.round: replace(case, episodes=self._episodes(item.state.round)) for item in advice
        }
        entries = []
        for item in advice:
            origin = rounds[item.state.round]
            episode = origin.episodes[item.state.episode]
            t = item.state.t
            taken = episode.actions[t : t + len(item.plan)]
            entries.append(Entry(item, episode.facts[t], origin.snapshot(item.state), taken))
        return entries

    def _episodes(self, number: int) -> Episodes:
        return Episodes(self.run.round(number) / "trajectories")

    def _failed(self, number: int) -> list[Advice]:
        """Advice of the round before that was tried and did not help, the most harmful first."""
        path = self.run.path / f"round-{number - 1}" / "verified.jsonl"
        if number == 1 or not path.is_file():
            return []
        tried = [(item.verification.advantage, item) for item in load_advice(path) if item.verification is not None]
        return [item for _, item in sorted(tried, key=lambda pair: pair[0]) if item.verdict != "helps"]

    def _baseline(self, number: int) -> Guidance:
        """The guidance of a method that uses no advice."""
        rng = np.random.default_rng([self.config.seed, number, len(STAGES)])
        with self.case(number, "finetune") as case:
            return baseline(self.config, case, self.run.round(number) / "states.jsonl", rng)

    def _guidance(self, number: int, stack: ExitStack) -> tuple[UltraGuidance, int]:
        """The guidance of a round, and the steps that it may take for trying advice again."""
        config, folder = self.config, self.run.round(number)
        with self.case(number, "finetune") as case:
            advice = load_advice(folder / "verified.jsonl")
            columns = self.task.card.matched
            scale, radius = calibrate([episode.facts for episode in case.episodes], columns)
            radius = config.guidance.radius or radius
            book = AdviceBook(tuple(self._entries(case, number, advice)), columns, scale, radius)
        names = self.task.card.fact_names
        rules = [(rule, parse(rule.guard, names)) for rule in load_rules(folder / "verified-rules.jsonl")]
        on_actions = config.method in ("ultra-a", "ultra-ra")
        reserved, recheck = 0, None
        if on_actions and config.guidance.trust == "helps" and any(item.verdict == "helps" for item in advice):
            reserved = int(config.verify.recheck * self._round_steps)
            batch = self.task.make_batch(2 * FIRST_LOOK, config.workers or None)
            stack.callback(batch.close)
            seed = [config.seed, number, len(STAGES) + 1]
            gamma, horizon = config.ppo.gamma, config.analyse.horizon
            recheck = Recheck(batch, book.entries, config.verify, gamma, horizon, self.budget, reserved, seed)
        kept = [
            sum(trusted(item, config.guidance.trust) for item in items) for items in (advice, [r for r, _ in rules])
        ]
        self.reporter.say(
            f"guide     {kept[0]} of {len(book)} advices, matching radius {radius:.2f} in standardised facts; "
            f"{kept[1]} of {len(rules)} rules"
        )
        guidance = UltraGuidance(
            book,
            self.task.action_space,
            config.guidance,
            config.ppo.environments,
            on_actions=on_actions,
            on_rewards=config.method in ("ultra-r", "ultra-ra"),
            rng=np.random.default_rng([config.seed, number, len(STAGES)]),
            rules=rules,
            recheck=recheck,
        )
        return guidance, reserved

    def audit(self) -> dict[str, Any] | None:
        """The audit of all rounds' advice, rules and controls so far, or None if the method uses no advice."""
        if not self.config.method.startswith("ultra"):
            return None
        numbers = [n for n in range(1, self.config.rounds + 1) if self.run.finished(f"round-{n}/verify")]
        folders = [self.run.round(number) for number in numbers]
        advice = [item for folder in folders for item in load_advice(folder / "verified.jsonl")]
        rules = [rule for folder in folders for rule in load_rules(folder / "verified-rules.jsonl")]
        control = [Verification(**item) for folder in folders for item in _read_control(folder)]
        usage, found = usage_of(self.run), audit(advice)
        helpful = found["helps"] + audit(rules)["helps"]
        return found | {
            "rules": audit(rules),
            "random_control": audit_of(control) if control else None,
            "tokens_per_helpful": usage["tokens"] / helpful if helpful and usage["used"] else None,
            "cost_per_helpful": usage["cost"] / helpful if helpful and usage["used"] else None,
        }


class _CaseContext:
    """Opens what an analyst is given, and frees the environments afterwards."""

    def __init__(self, refinement: Refinement, number: int, stage: str) -> None:
        self._refinement, self._number, self._stage = refinement, number, stage
        self._batches: list[Batch] = []

    def __enter__(self) -> Case:
        own = self._refinement
        config = own.config
        self._batches.append(own.task.make_batch(BRANCHES_TOGETHER, config.workers or None))
        self._batches.append(own.task.make_local_batch(1))
        title = f"{self._stage:<9} "
        episodes = Episodes(own.run.round(self._number) / "trajectories")
        return Case(
            task=own.task,
            policy=own._policy(self._number),
            episodes=episodes,
            config=analysis_of(config, len(episodes)),
            gamma=config.ppo.gamma,
            batch=self._batches[0],
            replay=self._batches[1],
            budget=own.budget,
            allowance=int(allowance_of(config) * own._round_steps),
            rng=own._rng(self._number, self._stage),
            progress=lambda text: own.reporter.say(title + text),
            llm=config.llm,
            folder=own.run.round(self._number),
            run=own.run.identity,
            failed=own._failed(self._number),
            statemask=config.statemask,
            ppo=config.ppo,
            workers=config.workers,
        )

    def __exit__(self, *error: object) -> None:
        for batch in self._batches:
            batch.close()


def _read_control(folder: Path) -> list[dict[str, Any]]:
    """What was found of random plans at the states of a round."""
    found: list[dict[str, Any]] = json.loads((folder / "control.json").read_text(encoding="utf-8"))
    return found


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


def task_of(config: Any) -> Task:
    """The task of a configuration, with its options."""
    options = {name: getattr(config, name) for name in ("sticky", "threshold") if getattr(config, name)}
    return get_task(config.task, **options, **config.env.options())
