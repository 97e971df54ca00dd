"""How a run spends its budget: its rounds, what each does, and the shares of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ultra.config import RefineConfig
from ultra.finetuning.methods import STAGES, allowance_of
from ultra.verification.verdicts import FIRST_LOOK

Order = Literal["first", "last"]
"""Whether programs are asked for before training or after it."""

MOST_PROVED = 0.3
"""Most of a programs' share that is kept for verifying one of them in whole episodes, where these are long."""
EPISODES_SHARE = 0.125
"""Most of a programs' share that goes into episodes, where a round is for programs alone."""


@dataclass(frozen=True)
class Round:
    """One round of a run.

    Attributes:
        number: from 1.
        stages: in order.
        points: whether advice at critical states is asked for, verified and trained with.
        programs: whether programs are asked for, raced and adopted.
        end: steps of the whole budget that may have been used when it is over.
        collect, analyse, verify, race, prove, choose: most steps for episodes, the analyst's simulations, verifying
            advice, racing programs, verifying them, choosing among policies.
        train: steps that are left for training if all of that is used up; 0 where nothing is trained.
    """

    number: int
    stages: tuple[str, ...]
    points: bool
    programs: bool
    end: int
    collect: int = 0
    analyse: int = 0
    verify: int = 0
    race: int = 0
    prove: int = 0
    choose: int = 0
    train: int = 0


def schedule(config: RefineConfig, order: Order, time_limit: int, used: int = 0) -> tuple[Round, ...]:
    """The rounds of a run.

    Args:
        config: of the run.
        order: of programs and training.
        time_limit: of the task, in steps.
        used: steps that were used before the first round.
    """
    steps = config.steps - used
    share = config.programs.share if config.uses_programs else 0.0
    last = share > 0 and order == "last"
    training = int((1 - share) * steps) if last else steps
    each = training // config.rounds
    rounds = [
        _training_round(config, number, each, used + number * each, 0.0 if last else share, time_limit)
        for number in range(1, config.rounds + 1)
    ]
    if last:
        left = config.steps - used - config.rounds * each
        rounds.append(_programs_round(config, config.rounds + 1, left, time_limit))
    return tuple(rounds)


def _programs_parts(config: RefineConfig, steps: int, time_limit: int) -> dict[str, int]:
    """How steps for programs are divided: what the race finds must not be lost for lack of steps to verify it."""
    enough = min(2 * FIRST_LOOK * time_limit, int(MOST_PROVED * steps))
    prove = max(enough, int(config.programs.verify * steps))
    return {"prove": prove, "race": steps - prove}


def _training_round(config: RefineConfig, number: int, steps: int, end: int, share: float, time_limit: int) -> Round:
    stages = STAGES[config.method]
    points = "advise" in stages and not config.analyst.startswith("programs:")
    parts: dict[str, int] = {}
    if "collect" in stages:
        parts["collect"] = int(config.collect.share * steps)
    if "identify" in stages and (points or "advise" not in stages):
        parts["analyse"] = int(allowance_of(config) * steps)
    if points and config.guidance.trust == "helps":
        # Programs are verified out of their own share.
        parts["verify"] = int(config.verify.share * (0.5 if config.uses_programs else 1.0) * steps)
    if share:
        parts |= _programs_parts(config, int(share * steps), time_limit)
    if config.uses_programs and number == config.rounds and config.late.policies > 1:
        parts["choose"] = int(config.late.share * config.steps)
    train = steps - sum(parts.values()) if "finetune" in stages else 0
    return Round(number, stages, points, share > 0, end, **parts, train=max(0, train))


def _programs_round(config: RefineConfig, number: int, steps: int, time_limit: int) -> Round:
    episodes = int(EPISODES_SHARE * steps)
    parts = _programs_parts(config, steps - episodes, time_limit)
    return Round(number, STAGES[config.method], False, True, config.steps, collect=episodes, **parts)


def describe(rounds: tuple[Round, ...], config: RefineConfig) -> list[str]:
    """The plan of the budget, a line for each round."""
    words = {
        "collect": "episodes",
        "analyse": "analysis",
        "verify": "verifying advice",
        "race": "racing and tuning programs",
        "prove": "verifying programs",
        "choose": "choosing a policy",
        "train": "training",
    }
    lines = []
    for item in rounds:
        parts = [f"{words[name]} {getattr(item, name):,}" for name in words if getattr(item, name)]
        if parts:
            lines.append(f"round {item.number} of {len(rounds)}, at most: {', '.join(parts)}")
    return lines
