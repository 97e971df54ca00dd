"""What each method is made of: its stages, who names its critical states, and its guidance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ultra.advice.records import CriticalState, load_states
from ultra.analysts.base import Case
from ultra.analysts.mask import check_mask_steps
from ultra.common.errors import UltraError
from ultra.config import AnalyseConfig, RefineConfig
from ultra.finetuning.jsrl import JSRLGuidance
from ultra.finetuning.novelty import Novelty
from ultra.finetuning.rice import RiceGuidance
from ultra.ppo.guidance import Guidance, NoGuidance

STARTS = {"random": "random", "statemask-r": "statemask", "rice": "statemask"}
"""Methods whose episodes start from critical states, and the analyst who names these."""

STAGES = {
    "none": (),
    "ppo": ("finetune",),
    "jsrl": ("collect", "finetune"),
    **dict.fromkeys(STARTS, ("collect", "identify", "finetune")),
    **dict.fromkeys(("ultra-a", "ultra-r", "ultra-ra"), ("collect", "identify", "advise", "verify", "finetune")),
}
"""The stages that each method goes through before evaluation."""


def analyst_of(config: RefineConfig) -> str:
    """Who names the critical states: the method's own analyst, or the one that was asked for."""
    return STARTS.get(config.method, config.analyst)


def analysis_of(config: RefineConfig, episodes: int) -> AnalyseConfig:
    """Settings of the analysis; a method that starts from critical states asks for one from each episode."""
    if config.method not in STARTS:
        return config.analyse
    return replace(config.analyse, states=config.rice.states or episodes)


def allowance_of(config: RefineConfig) -> float:
    """The analyst's share of the step budget."""
    return config.statemask.share if analyst_of(config) == "statemask" else config.analyse.share


def check_budget(config: RefineConfig) -> None:
    """Check that what a method trains gets at least one rollout, as far as that is known beforehand.

    Raises:
        UltraError: if it does not.
    """
    stages, rollout = STAGES[config.method], config.ppo.samples
    round_steps = int((1 - config.programs.share * config.uses_programs) * config.steps) // config.rounds
    if stages and round_steps < rollout:
        raise UltraError(
            f"{round_steps} steps a round are less than one rollout of {rollout}: "
            "raise --steps or lower --ppo.rollout-steps"
        )
    if "identify" in stages and analyst_of(config) == "statemask":
        check_mask_steps(int(allowance_of(config) * round_steps), config.ppo)


def baseline(config: RefineConfig, case: Case, states: Path, rng: np.random.Generator) -> Guidance:
    """The guidance of a method that uses no advice.

    Args:
        config: of the refinement.
        case: analysis context of the round.
        states: file of the critical states, for methods that start from them.
        rng: source of the guidance's randomness.
    """
    if config.method == "jsrl":
        lengths = [len(episode) for episode in case.episodes]
        return JSRLGuidance(
            case.policy,
            config.jsrl,
            config.ppo.environments,
            length=float(np.mean(lengths)),
            rng=rng,
        )
    if config.method in STARTS:
        return _from_states(config, case, load_states(states), rng)
    return NoGuidance()


def _from_states(
    config: RefineConfig, case: Case, states: list[CriticalState], rng: np.random.Generator
) -> RiceGuidance:
    """RICE; StateMask-R is RICE that always starts from critical states and has no bonus."""
    rice = config.rice
    if config.method == "statemask-r":
        rice = replace(rice, probability=1.0, bonus=0.0)
    case.progress(f"{rice.probability:.0%} of the episodes start from {len(states)} states; bonus {rice.bonus:g}")
    starts = [case.snapshot(state) for state in states] if rice.probability > 0 else []
    novelty = None
    if rice.bonus > 0:
        novelty = Novelty(case.policy.normalizer, rice.learning_rate, rng, case.policy.architecture.image)
    return RiceGuidance(starts, rice.probability, rice.bonus, novelty, rng)
