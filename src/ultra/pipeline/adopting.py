"""How verified programs become part of the policy: grafted, distilled, or kept as programs. Nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ultra.adoption.distil import distil
from ultra.adoption.graft import GraftError, graft
from ultra.adoption.reading import with_observed_facts
from ultra.analysts.base import Case
from ultra.collection.trajectories import visited
from ultra.common.errors import UltraError
from ultra.common.statistics import mean_interval
from ultra.common.streams import stream
from ultra.config import RefineConfig
from ultra.pipeline.program_search import Verified, episode_lengths
from ultra.pipeline.schedule import Round
from ultra.policies.acting import missing_facts
from ultra.policies.policy import Policy
from ultra.programs.attached import AttachedPrograms
from ultra.programs.compiled import Controller, compile_programs
from ultra.simulation.paired import PairedEvaluator

ADOPTED = "adopted.json"
"""In a round's folder: what became part of the policy, and how."""
NONE: dict[str, Any] = {"how": "none", "programs": [], "verification": None, "attempts": []}
COMPARED = 8
"""Episodes in which a network that was taught programs is compared with them, where the steps last for so many."""
FEWEST_COMPARED = 3
"""Whole ones are compared where the steps last for so many; else so many that are cut short."""
LOSS = 0.1
"""A taught network may lose this share of what the programs gain, at most."""


@dataclass(frozen=True)
class Adopted:
    """What became part of a policy.

    Attributes:
        policy: the outcome.
        how: `graft`, `distil`, `program` or `none`.
        verified: the programs with their tuned numbers, and what verification found; None if there are none.
        attempts: what was tried before and why it did not do, for people.
    """

    policy: Policy
    how: str
    verified: Verified | None = None
    attempts: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the policy."""
        found = self.verified.to_json() if self.verified else {"programs": [], "verification": None}
        return {"how": self.how, **found, "attempts": list(self.attempts)}


def read_adopted(folders: Sequence[Path]) -> dict[str, Any]:
    """What was adopted last, by the rounds' folders: the `adopted` entry of `result.json`."""
    for folder in reversed(list(folders)):
        path = folder / ADOPTED
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else NONE
        if found["how"] != "none":
            return found
    return NONE


def adopt(
    case: Case, plan: Round, config: RefineConfig, verified: Sequence[Verified], say: Callable[[str], None]
) -> Adopted:
    """Make the best verified programs part of the policy.

    Args:
        case: analysis context of the round.
        plan: the round's shares of the budget.
        config: of the run.
        verified: programs with their verification, the best first.
        say: prints a line.
    """
    best = next((item for item in verified if item.helps), None)
    if best is None:
        say("adopt     no program helps verifiably")
        return Adopted(case.policy, "none")
    task = case.task
    actions = tuple(action.name for action in task.card.actions)
    names = " + ".join(program.name for program in best.programs)
    controller = Controller.of(compile_programs(best.programs, task.card.fact_names, actions, task.action_space))
    wanted = config.programs.adopt
    attempts: list[str] = []
    if case.policy.attached is not None:
        attempts.append("graft: the policy has programs already, on top of which these were tried")
    elif wanted in ("auto", "graft"):
        try:
            observations, facts = visited(case.episodes)
            number = np.repeat(np.arange(len(case.episodes)), [len(episode.observations) for episode in case.episodes])
            policy = graft(case.policy, controller, task.card.fact_names, observations, facts, number)
            say(f"adopt     {names}: now part of the network, exactly (graft)")
            return Adopted(policy, "graft", best)
        except GraftError as error:
            attempts.append(f"graft: {error}")
    if case.policy.attached is not None:
        attempts.append("distil: the policy has programs already")
    elif wanted in ("auto", "distil"):
        taught, words = _taught(case, plan, config, controller)
        if taught is not None:
            say(f"adopt     {names}: taught to the network (distil); {words}")
            return Adopted(taught, "distil", best, tuple(attempts))
        attempts.append(f"distil: {words}")
    attached = case.policy.attached or AttachedPrograms((), task.card.fact_names, actions)
    policy = replace(case.policy, attached=attached.on_top(best.programs))
    policy = with_observed_facts(policy, task.card, case.episodes)
    say(f"adopt     {names}: kept as part of the policy (program)")
    for reason in attempts:
        say(f"          {reason}")
    hidden = missing_facts(policy)
    if hidden:
        say(f"          it acts where facts are given, not on observations alone, which lack {', '.join(hidden)}")
    return Adopted(policy, "program", best, tuple(attempts))


def _taught(case: Case, plan: Round, config: RefineConfig, controller: Controller) -> tuple[Policy | None, str]:
    """The network that learned to do what the programs do, if it is about as good; and what was found."""
    rng = stream(config.seed, "round", plan.number, "distil")
    horizon, _ = episode_lengths(case)
    most = int(config.programs.distil * config.programs.share * config.steps)
    allowance = min(most, case.budget.remaining)
    compared = min(allowance // 2, 3 * COMPARED * horizon)  # the agent, the programs and the student
    try:
        found = distil(
            case.task, case.policy, controller, case.policy, allowance - compared, rng, workers=case.workers or None
        )
    except UltraError as error:
        return None, str(error)
    case.budget.charge("train", found.steps)
    left = allowance - found.steps
    agent, student = (_evaluator(case, policy, horizon, left, rng) for policy in (case.policy, found.policy))
    episodes = int(np.clip(left // (3 * horizon), FEWEST_COMPARED, COMPARED))
    longest = min(horizon, left // (3 * episodes))
    if longest < 1:
        return None, "too few steps to compare the network with the programs"
    seeds = agent.seeds(episodes)
    alone, wanted = agent.play([None, controller], seeds, longest).returns
    got = student.play([None], seeds, longest).returns[0]
    gain = float((wanted - alone).mean())
    loss = mean_interval((wanted - got).tolist())
    words = f"{loss.mean:+.3g} [{loss.low:+.3g}, {loss.high:+.3g}] worse than the programs, which gain {gain:+.3g}"
    close = loss.mean <= LOSS * max(gain, 0.0) and float((got - alone).mean()) > 0
    return (found.policy if close else None), words


def _evaluator(case: Case, policy: Policy, horizon: int, allowance: int, rng: np.random.Generator) -> PairedEvaluator:
    return PairedEvaluator(
        case.batch, policy, 1.0, horizon, case.budget, "verify", allowance, rng, sampled=case.task.sampled_evaluation
    )
