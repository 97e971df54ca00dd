"""The protocol of analysts, which name critical states, give advice and propose programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from ultra.advice.records import Advice, CriticalState
from ultra.analysts.turns import TurnReport
from ultra.collection.trajectories import Trajectory
from ultra.config import AnalyseConfig, LLMConfig, PPOConfig, StateMaskConfig
from ultra.policies.policy import Policy
from ultra.programs.records import Potential
from ultra.simulation.budget import StepBudget
from ultra.tasks.batch import Batch, Snapshot
from ultra.tasks.task import Task
from ultra.tuning.entrants import Proposal


@dataclass(frozen=True)
class Case:
    """Analysis context: a policy, its episodes, and what is needed to simulate more."""

    task: Task
    policy: Policy
    episodes: Sequence[Trajectory]
    config: AnalyseConfig
    gamma: float
    batch: Batch
    """Environments for simulated branches; their states may be overwritten."""
    replay: Batch
    """One environment, for replaying to states between snapshots."""
    budget: StepBudget
    """Charged `analyse` steps."""
    allowance: int
    """Most environment steps for identifying and advising together."""
    rng: np.random.Generator
    progress: Callable[[str], None] = lambda text: None
    """Called with a short status message."""
    llm: LLMConfig = field(default_factory=LLMConfig)
    """Settings of language models."""
    folder: Path = Path()
    """The round's folder, for the analyst's own files."""
    run: str = ""
    """The run's identity in the ledger."""
    failed: Sequence[Advice] = ()
    """Advice of the previous round that did not help, with its verification."""
    statemask: StateMaskConfig = field(default_factory=StateMaskConfig)
    """Settings of the mask network."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Settings of analysts that train."""
    workers: int = 0
    """Cores for stepping environments; 0 uses all."""
    stuck: bool = False
    """Whether the policy no longer learns, so that whole controllers are wanted most."""
    turns: int = 1
    """Most turns of programs."""
    race_steps: int = 0
    """Environment steps for racing and tuning the programs of one turn; 0 if not known."""
    verify_steps: int = 0
    """Environment steps for verifying programs in fresh episodes; 0 if not known."""
    verified: Sequence[Advice] = ()
    """Verified advice of this round, with the verdicts."""

    @property
    def ends(self) -> bool:
        """Whether some episodes end by themselves, before their time limit."""
        return any(episode.terminated for episode in self.episodes)

    def snapshot(self, state: CriticalState) -> Snapshot:
        """The complete state behind a critical state; replayed steps are charged."""
        space = self.task.action_space
        found, steps = self.episodes[state.episode].snapshot(state.t, self.replay, space)
        self.budget.charge("analyse", steps)
        return found


@dataclass(frozen=True)
class Proposals:
    """What an analyst proposes for the whole policy in one turn."""

    programs: tuple[Proposal, ...] = ()
    potentials: tuple[Potential, ...] = ()


class Analyst(Protocol):
    """Names critical states, gives advice at them, and proposes programs."""

    @property
    def name(self) -> str:
        """As on the command line."""
        ...

    def identify(self, case: Case) -> list[CriticalState]:
        """Name the critical states, the most important first."""
        ...

    def advise(self, case: Case, states: Sequence[CriticalState]) -> list[Advice]:
        """Suggest what to do at critical states; some may get no advice."""
        ...

    def propose(self, case: Case, states: Sequence[CriticalState], report: TurnReport | None) -> Proposals:
        """Propose programs and potentials for the whole policy.

        Args:
            case: analysis context of the round.
            states: critical states of the round.
            report: results of the previous turn; None in the first.

        Returns:
            The proposals of this turn; none when there is nothing more to propose, which ends the turns.
        """
        ...
