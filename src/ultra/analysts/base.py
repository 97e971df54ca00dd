"""The protocol of analysts: who reads episodes, names critical states and gives advice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from ultra.advice.records import Advice, CriticalState
from ultra.collection.trajectories import Trajectory
from ultra.config import AnalyseConfig, LLMConfig, PPOConfig, StateMaskConfig
from ultra.policies.policy import Policy
from ultra.simulation.budget import StepBudget
from ultra.simulation.paired import PairedEvaluator
from ultra.tasks.batch import Batch, Snapshot
from ultra.tasks.task import Task


@dataclass(frozen=True)
class Case:
    """What an analyst is given: a policy, its episodes, and means to look closer."""

    task: Task
    policy: Policy
    episodes: Sequence[Trajectory]
    config: AnalyseConfig
    gamma: float
    batch: Batch
    """For simulated branches; its states may be overwritten."""
    replay: Batch
    """One environment, for reaching states between snapshots."""
    budget: StepBudget
    """Charged `analyse` steps."""
    allowance: int
    """Most steps that the analyst may simulate, over both of its tasks."""
    rng: np.random.Generator
    progress: Callable[[str], None] = lambda text: None
    """Told in a few words what is being done."""
    llm: LLMConfig = field(default_factory=LLMConfig)
    """For analysts that are language models."""
    folder: Path = Path()
    """The round's folder, for files of the analyst's own."""
    run: str = ""
    """The run's identity in the ledger."""
    failed: Sequence[Advice] = ()
    """Advice of the round before that did not help, with what happened when it was tried."""
    statemask: StateMaskConfig = field(default_factory=StateMaskConfig)
    """For the mask network."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """For analysts that train."""
    workers: int = 0
    """Cores for stepping environments; 0 uses all."""
    finishing: bool = False
    """Whether rules are wanted that can become part of the policy's network."""

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


class Analyst(Protocol):
    """Reads episodes and gives advice."""

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
