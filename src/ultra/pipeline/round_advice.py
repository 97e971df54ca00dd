"""The advice of one round: tried in stage 3, modulating training in stage 4."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace

import numpy as np

from ultra.advice.records import (
    Advice,
    AdviceBook,
    Entry,
    Verification,
    calibrate,
    load_advice,
    save_advice,
    trusted,
)
from ultra.analysts.base import Case
from ultra.analysts.fidelity import AUDIT_SHARE, AUDIT_STEPS, fidelity_of_case
from ultra.analysts.random import random_plan
from ultra.collection.trajectories import Episodes
from ultra.common.files import write_json
from ultra.common.streams import stream
from ultra.config import RefineConfig
from ultra.finetuning.potentials import ShapedGuidance, scaled
from ultra.finetuning.ultra import UltraGuidance
from ultra.pipeline.program_search import read_potentials
from ultra.pipeline.reporting import describe_fidelity
from ultra.pipeline.run import Run
from ultra.pipeline.schedule import Round
from ultra.ppo.guidance import Guidance
from ultra.programs.compiled import compile_potential
from ultra.simulation.paired import Candidate, PairedEvaluator
from ultra.verification.recheck import Recheck
from ultra.verification.verdicts import FIRST_LOOK, audit, verify

FIDELITY = "fidelity.json"
"""In a round's folder: how well its critical states explain its episodes."""


class RoundAdvice:
    """What analysts said in a round, with the policy, episodes and environments of the round.

    Args:
        run: whose files are read and written.
        case: analysis context of the round.
        plan: schedule of the round.
    """

    def __init__(self, run: Run, case: Case, plan: Round) -> None:
        self.run, self.case, self.plan = run, case, plan
        self.config: RefineConfig = run.config
        self.folder = run.round(plan.number)

    def verify(self, say: Callable[[str], None]) -> None:
        """Stage 3: try the round's advice, and what helped in the round before; write what was found."""
        folder, trust = self.folder, self.config.guidance.trust
        advice = self._carry_over(load_advice(folder / "advice.jsonl"))
        control: list[Verification] = []
        if trust == "helps" and advice:
            advice, control = self._verify_advice(advice, self.plan.verify)
        save_advice(advice, folder / "verified.jsonl")
        write_json(folder / "control.json", [asdict(found) for found in control])
        found = audit(advice)
        if advice:
            lacking = trust == "helps" and found["untried"]
            say(
                f"          {len(advice)} pieces of advice: {found['helps']} help, {found['harms']} harm, "
                f"{found['unclear']} unclear, {found['untried']} not tried"
                + (" (for lack of steps: raise --verify-budget)" if lacking else "")
            )

    def measure_fidelity(self, say: Callable[[str], None]) -> int:
        """For the audit: how well the critical states explain the round's episodes; returns the steps that it took."""
        if not self.config.audit.replays:
            return 0
        rng = fidelity_rng(self.config.seed_of_analysis, self.plan.number)
        replays = self.config.audit.replays
        found = fidelity_of_case(self.case, rng, shares=[AUDIT_SHARE], replays=replays, longest=AUDIT_STEPS)
        write_json(self.folder / FIDELITY, found)
        lines = [describe_fidelity(item) for item in found]
        for line in lines or ["fidelity not measured: every episode has return 0, or none has a critical state"]:
            say(f"          {line}")
        return sum(int(item["steps"]) for item in found)

    def _verify_advice(self, advice: list[Advice], allowance: int) -> tuple[list[Advice], list[Verification]]:
        """Advice with what was found of it, and of random plans at the same states if they are asked for."""
        config = self.config.verify
        candidates = [Candidate(entry.advice.plan, entry.snapshot) for entry in self.entries(advice)]
        evaluator = self._evaluator(allowance * 2 // 3 if config.control else allowance)
        found = verify(candidates, evaluator, config)
        control: list[Verification | None] = []
        if config.control:
            space, longest = self.case.task.action_space, self.config.analyse.plan_steps
            drawn = [Candidate(random_plan(space, longest, self.case.rng), candidate.start) for candidate in candidates]
            control = verify(drawn, self._evaluator(allowance // 3), config)
        return (
            [replace(item, verification=result) for item, result in zip(advice, found, strict=True)],
            [result for result in control if result is not None],
        )

    def _evaluator(self, allowance: int) -> PairedEvaluator:
        case, horizon = self.case, self.config.analyse.horizon
        return PairedEvaluator(case.batch, case.policy, case.gamma, horizon, case.budget, "verify", allowance, case.rng)

    def _carry_over(self, advice: list[Advice]) -> list[Advice]:
        """What helped in the round before comes first, and is tried again under the new policy."""
        if self.plan.number == 1 or self.config.guidance.trust == "all":
            return advice
        earlier = self.run.round(self.plan.number - 1)
        return [*(item for item in load_advice(earlier / "verified.jsonl") if item.verdict == "helps"), *advice]

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

    def guidance(self, stack: ExitStack, say: Callable[[str], None]) -> tuple[Guidance, int]:
        """The guidance of training, and the steps reserved for rechecking advice.

        Args:
            stack: closes the environments for that when training ends.
            say: prints a line.
        """
        config, folder, number = self.config, self.folder, self.plan.number
        advice = load_advice(folder / "verified.jsonl")
        columns = self.case.task.card.matched
        scale, radius = calibrate([episode.facts for episode in self.case.episodes], columns)
        radius = config.guidance.radius or radius
        book = AdviceBook(tuple(self.entries(advice)), columns, scale, radius)
        on_actions = config.method in ("ultra-a", "ultra-ra")
        reserved, recheck = 0, None
        if on_actions and config.guidance.trust == "helps" and any(item.verdict == "helps" for item in advice):
            reserved = int(config.verify.recheck * self.plan.train)
            batch = self.case.task.make_batch(2 * FIRST_LOOK, config.workers or None)
            stack.callback(batch.close)
            gamma, horizon = config.ppo.discount, config.analyse.horizon
            recheck = Recheck(
                batch, book.entries, config.verify, gamma, horizon, self.case.budget, reserved, (config.seed, number)
            )
        used = sum(trusted(item, config.guidance.trust) for item in advice)
        if len(book):
            say(f"guide     {used} of {len(book)} pieces of advice, matching radius {radius:.2f} in standardised facts")
        guidance = UltraGuidance(
            book,
            self.case.task.action_space,
            config.guidance,
            config.ppo.environments,
            on_actions=on_actions,
            on_rewards=config.method in ("ultra-r", "ultra-ra"),
            rng=stream(config.seed, "round", number, "guidance"),
            recheck=recheck,
        )
        return self._shaped(guidance, say), reserved

    def _shaped(self, guidance: UltraGuidance, say: Callable[[str], None]) -> Guidance:
        """The guidance with the round's potentials, where rewards are changed."""
        config, settings = self.config, self.config.guidance
        strength = settings.strength * settings.lam
        potentials = read_potentials(self.folder)
        if config.method == "ultra-a" or not potentials or strength == 0:
            return guidance
        names, episodes = self.case.task.card.fact_names, self.case.episodes
        found = scaled(
            [compile_potential(potential, names) for potential in potentials],
            [(episode.facts, episode.rewards) for episode in episodes],
            config.ppo.discount,
            lambda name, reason: say(f"guide     potential {name} is left out: {reason}"),
        )
        if found is None:
            return guidance
        say(f"guide     {len(found.parts)} of {len(potentials)} potentials shape the reward")
        return ShapedGuidance(
            guidance,
            found,
            config.ppo.discount,
            config.ppo.environments,
            strength=strength,
            anneal_until=settings.anneal_until,
        )


def fidelity_rng(seed: int, number: int) -> np.random.Generator:
    """The source of random actions for a round's fidelity: apart from all others, so that it changes nothing else."""
    return stream(seed, "round", number, "fidelity")
