"""The advice of one round: tried in stage 3, modulating training in stage 4, audited at the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ultra.advice.expression import parse
from ultra.advice.graft import GraftError, graft
from ultra.advice.records import (
    ADOPTED,
    Advice,
    AdviceBook,
    Entry,
    Rule,
    Verification,
    calibrate,
    load_advice,
    load_rules,
    save_advice,
    save_rules,
    trusted,
)
from ultra.analysts.base import SHORTEST_FINISHING, Case, whole_episodes
from ultra.analysts.fidelity import AUDIT_SHARE, AUDIT_STEPS, fidelity_of_case
from ultra.analysts.random import random_plan
from ultra.collection.trajectories import Episodes, visited
from ultra.common.files import write_json
from ultra.common.streams import stream
from ultra.config import RefineConfig, takes_advice
from ultra.finetuning.ultra import UltraGuidance
from ultra.pipeline.reporting import adopted_rules, describe_fidelity
from ultra.pipeline.run import Run
from ultra.pipeline.usage import usage_of
from ultra.policies.policy import Policy
from ultra.simulation.branches import Habit
from ultra.simulation.budget import StepBudget
from ultra.simulation.paired import Candidate, PairedEvaluator
from ultra.tasks.plans import Plan
from ultra.verification.recheck import Recheck
from ultra.verification.rules import rule_units, verify_rules
from ultra.verification.verdicts import FIRST_LOOK, audit, audit_of, verify

MOST_EPISODES = 2 * FIRST_LOOK
"""Pairs of whole episodes for a rule, at most: more looks at so few would widen its interval for nothing."""
FIDELITY = "fidelity.json"
"""In a round's folder: how well its critical states explain its episodes."""
BEFORE_FINISHING = 0.25
"""Part of verification's share that training rounds may use where a finishing round follows."""


class RoundAdvice:
    """What analysts said in a round, with the policy, episodes and environments of the round.

    Args:
        run: whose files are read and written.
        case: what the round's analyst was given.
        number: of the round.
    """

    def __init__(self, run: Run, case: Case, number: int) -> None:
        self.run, self.case, self.number = run, case, number
        self.config: RefineConfig = run.config
        self.folder = run.round(number)

    def verify(self, say: Callable[[str], None]) -> None:
        """Stage 3: try the round's advice and rules, and what helped in the round before; write what was found.

        In the finishing round only rules count.
        """
        folder, config = self.folder, self.config
        advice, rules = self._carry_over(load_advice(folder / "advice.jsonl"), load_rules(folder / "rules.jsonl"))
        if self.case.finishing:
            advice = []
        control: list[Verification] = []
        if config.guidance.trust == "helps" and (advice or rules):
            allowance = verification_allowance(config, self.number, self.case.budget)
            rules, spent = self._verify_rules(rules, allowance // 2 if advice else allowance)
            advice, control = self._verify_advice(advice, allowance - spent)
        lacking = config.guidance.trust == "helps"
        save_advice(advice, folder / "verified.jsonl")
        save_rules(rules, folder / "verified-rules.jsonl")
        write_json(folder / "control.json", [asdict(found) for found in control])
        for found, name in ((audit(advice), "pieces of advice"), (audit(rules), "rules")):
            if found["tried"] or found["untried"]:
                say(
                    f"          {found['tried'] + found['untried']} {name}: {found['helps']} help, "
                    f"{found['harms']} harm, {found['unclear']} unclear, {found['untried']} not tried"
                    + (" (for lack of steps: raise --verify-budget)" if lacking and found["untried"] else "")
                )

    def measure_fidelity(self, say: Callable[[str], None]) -> int:
        """For the audit: how well the critical states explain the round's episodes; returns the steps that it took."""
        if not self.config.audit.replays:
            return 0
        rng = fidelity_rng(self.config.seed, self.number)
        replays = self.config.audit.replays
        found = fidelity_of_case(self.case, rng, shares=[AUDIT_SHARE], replays=replays, longest=AUDIT_STEPS)
        write_json(self.folder / FIDELITY, found)
        lines = [describe_fidelity(item) for item in found]
        for line in lines or ["fidelity not measured: every episode has return 0, or none has a critical state"]:
            say(f"          {line}")
        return sum(int(item["steps"]) for item in found)

    def grafted(self, say: Callable[[str], None]) -> Policy | None:
        """The round's policy with the chosen rules in its network; None if none helps or fits in."""
        case, policy = self.case, self.case.policy
        chosen = [rule for rule in load_rules(self.folder / "verified-rules.jsonl") if rule.together is not None]
        save_rules([], self.folder / ADOPTED)
        if not chosen:
            say("finish    no rule helps verifiably")
            return None
        try:
            policy = graft(policy, chosen, case.task.card.fact_names, *visited(case.episodes))
        except GraftError as error:
            say(f"finish    the rules that help cannot become part of the network: {error}")
            return None
        save_rules(chosen, self.folder / ADOPTED)
        say(f"finish    {len(chosen)} rule{'s' * (len(chosen) > 1)} that help became part of the policy:")
        for words in dict.fromkeys(rule.explanation for rule in chosen):  # rules of one idea share theirs
            say(f"          {words}")
        return policy

    def _verify_advice(self, advice: list[Advice], allowance: int) -> tuple[list[Advice], list[Verification]]:
        """Advice with what was found of it, and of random plans at the same states if they are asked for."""
        config = self.config.verify
        proposals = [Candidate(entry.advice.plan, entry.snapshot) for entry in self.entries(advice)]
        bench = self._bench(allowance * 2 // 3 if config.control else allowance)
        found = verify(proposals, bench, config)
        control: list[Verification | None] = []
        if config.control:
            space, longest = self.case.task.action_space, self.config.analyse.plan_steps
            drawn = [Candidate(random_plan(space, longest, self.case.rng), proposal.start) for proposal in proposals]
            control = verify(drawn, self._bench(allowance // 3), config)
        return (
            [replace(item, verification=result) for item, result in zip(advice, found, strict=True)],
            [result for result in control if result is not None],
        )

    def _verify_rules(self, rules: list[Rule], allowance: int) -> tuple[list[Rule], int]:
        """Rules with what was found of them in paired whole episodes, and the steps that it took."""
        tried = [(rule, rule.plan) for rule in rules if rule.plan is not None]
        if not tried:
            return rules, 0
        names = self.case.task.card.fact_names
        habits = {rule.guard: Habit(parse(rule.guard, names), plan, self._adds(plan)) for rule, plan in tried}
        groups = {rule.guard: rule.group for rule, _ in tried}
        # The allowance must last for a first look at every group and at two sets; where episodes go on, for two looks.
        units = len(rule_units(groups))
        first = 2 * FIRST_LOOK * (units + (2 if units > 1 else 0))
        bench = whole_episodes(self.case, "verify", allowance, first, 2 * first)
        config = replace(self.config.verify, branches=min(self.config.verify.branches, MOST_EPISODES))
        found = verify_rules(habits, groups, bench, config)
        return [replace(rule, **found.get(rule.guard, {})) for rule in rules], allowance - bench.left

    def _adds(self, plan: Plan) -> bool:
        """Whether a rule's changes add up with others', as they will in the network."""
        return self.case.finishing and plan.relative and len(plan) == 1

    def _bench(self, allowance: int) -> PairedEvaluator:
        case, horizon = self.case, self.config.analyse.horizon
        return PairedEvaluator(case.batch, case.policy, case.gamma, horizon, case.budget, "verify", allowance, case.rng)

    def _carry_over(self, advice: list[Advice], rules: list[Rule]) -> tuple[list[Advice], list[Rule]]:
        """What helped in the round before comes first, and is tried again under the new policy."""
        if self.number == 1 or self.config.guidance.trust == "all":
            return advice, rules
        earlier = self.run.round(self.number - 1)
        old = [item for item in load_advice(earlier / "verified.jsonl") if item.verdict == "helps"]
        known = [replace(rule, together=None) for rule in load_rules(earlier / "verified-rules.jsonl") if rule.together]
        guards = {rule.guard for rule in known}
        return [*old, *advice], [*known, *(rule for rule in rules if rule.guard not in guards)]

    def entries(self, advice: list[Advice]) -> list[Entry]:
        """Advice with the facts, snapshots and actions of its states, each from its own round's episodes."""
        rounds = {item.state.round: replace(self.case, episodes=self._episodes(item.state.round)) for item in advice}
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

    def guidance(self, stack: ExitStack, say: Callable[[str], None]) -> tuple[UltraGuidance, int]:
        """What modulates training, and the steps that it may take for trying advice again.

        Args:
            stack: closes the environments for that when training ends.
            say: tells a person.
        """
        config, folder, number = self.config, self.folder, self.number
        advice = load_advice(folder / "verified.jsonl")
        columns = self.case.task.card.matched
        scale, radius = calibrate([episode.facts for episode in self.case.episodes], columns)
        radius = config.guidance.radius or radius
        book = AdviceBook(tuple(self.entries(advice)), columns, scale, radius)
        names = self.case.task.card.fact_names
        rules = [(rule, parse(rule.guard, names)) for rule in load_rules(folder / "verified-rules.jsonl")]
        on_actions = config.method in ("ultra-a", "ultra-ra")
        reserved, recheck = 0, None
        if on_actions and config.guidance.trust == "helps" and any(item.verdict == "helps" for item in advice):
            reserved = int(config.verify.recheck * self.config.round_steps)
            batch = self.case.task.make_batch(2 * FIRST_LOOK, config.workers or None)
            stack.callback(batch.close)
            key = (config.seed, "round", number, "recheck")
            gamma, horizon = config.ppo.gamma, config.analyse.horizon
            recheck = Recheck(batch, book.entries, config.verify, gamma, horizon, self.case.budget, reserved, key)
        kept = [
            sum(trusted(item, config.guidance.trust) for item in items) for items in (advice, [r for r, _ in rules])
        ]
        say(
            f"guide     {kept[0]} of {len(book)} pieces of advice, matching radius {radius:.2f} in standardised facts; "
            f"{kept[1]} of {len(rules)} rules"
        )
        guidance = UltraGuidance(
            book,
            self.case.task.action_space,
            config.guidance,
            config.ppo.environments,
            on_actions=on_actions,
            on_rewards=config.method in ("ultra-r", "ultra-ra"),
            rng=stream(config.seed, "round", number, "guidance"),
            rules=rules,
            recheck=recheck,
        )
        return guidance, reserved


def verification_left(config: RefineConfig, budget: StepBudget) -> int:
    """Steps that verification may still take of its share of the whole budget."""
    return max(0, int(config.verify.share * config.steps) - budget.spent["verify"])


def verification_needed(config: RefineConfig, budget: StepBudget, time_limit: int) -> int:
    """Steps that are kept for verification in the finishing round: for one idea, and no more than it may take."""
    longest = max(2 * MOST_EPISODES * min(time_limit, SHORTEST_FINISHING), 2 * FIRST_LOOK * time_limit)
    return min(longest, verification_left(config, budget))


def verification_allowance(config: RefineConfig, number: int, budget: StepBudget) -> int:
    """Steps for verification in a round: where there is a finishing round, most is kept for it."""
    if config.finishes(number):
        return min(budget.remaining, verification_left(config, budget))
    share = config.verify.share * (BEFORE_FINISHING if config.finishing else 1)
    return int(share * config.round_steps)


def fidelity_rng(seed: int, number: int) -> np.random.Generator:
    """The source of random actions for a round's fidelity: apart from all others, so that it changes nothing else."""
    return stream(seed, "round", number, "fidelity")


def audit_of_run(run: Run) -> dict[str, Any] | None:
    """The audit of all rounds' advice, rules and controls so far, or None if the method uses no advice."""
    if not takes_advice(run.config.method):
        return None
    numbers = [n for n in range(1, run.config.last_round + 1) if run.finished(f"round-{n}/verify")]
    folders = [run.round(number) for number in numbers]
    advice = [item for folder in folders for item in load_advice(folder / "verified.jsonl")]
    rules = [rule for folder in folders for rule in load_rules(folder / "verified-rules.jsonl")]
    control = [Verification(**item) for folder in folders for item in _read_control(folder)]
    usage, found, of_rules = usage_of(run), audit(advice), audit(rules)
    helpful = found["helps"] + of_rules["helps"]
    return found | {
        "fidelity": _read_fidelity(run, numbers),
        "rules": of_rules | {"adopted": len(adopted_rules(run))},
        "random_control": audit_of(control) if control else None,
        "tokens_per_helpful": usage["tokens"] / helpful if helpful and usage["used"] else None,
        "cost_per_helpful": usage["cost"] / helpful if helpful and usage["used"] else None,
    }


def _read_fidelity(run: Run, numbers: list[int]) -> dict[str, Any] | None:
    """The fidelity of the last round in which it was measured."""
    for number in reversed(numbers):
        path = run.round(number) / FIDELITY
        for found in json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []:
            return {"round": number, **found}
    return None


def _read_control(folder: Path) -> list[dict[str, Any]]:
    """What was found of random plans at the states of a round."""
    found: list[dict[str, Any]] = json.loads((folder / "control.json").read_text(encoding="utf-8"))
    return found
