"""Advice in use, tried again under the policy as it has become."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ultra.advice.records import Entry, Verification
from ultra.config import VerifyConfig
from ultra.policies.policy import Policy
from ultra.simulation.budget import StepBudget
from ultra.simulation.paired import Candidate, PairedEvaluator
from ultra.tasks.batch import Batch
from ultra.verification.verdicts import verify

CHECKS = (0.25, 0.5, 0.75)
"""Advice in use is tried again at these shares of the time in which it is used."""


class Recheck:
    """Tries advice that training uses again, under the policy as it has become.

    Args:
        batch: where.
        entries: the book, before anything was left out of it.
        config: pairs and confidence.
        gamma: discount.
        horizon: longest branch.
        budget: charged `verify` steps.
        allowance: most steps, over all checks.
        seed: of a random generator for each check.
    """

    def __init__(
        self,
        batch: Batch,
        entries: Sequence[Entry],
        config: VerifyConfig,
        gamma: float,
        horizon: int,
        budget: StepBudget,
        allowance: int,
        seed: Sequence[int],
    ) -> None:
        self._batch, self._entries, self._config = batch, entries, config
        self._gamma, self._horizon, self._budget = gamma, horizon, budget
        self._allowance, self._seed = allowance, list(seed)
        self._done = self._spent = 0

    def due(self, fraction: float) -> bool:
        """Whether it is time again, at this share of the time in which advice is used."""
        return self._done < len(CHECKS) and fraction >= CHECKS[self._done]

    def run(self, policy: Policy, rows: Sequence[int]) -> list[Verification | None]:
        """What is found of these entries, the first ones first; None where the allowance did not last."""
        rng = np.random.default_rng([*self._seed, self._done])
        allowance = self._allowance // len(CHECKS)
        bench = PairedEvaluator(self._batch, policy, self._gamma, self._horizon, self._budget, "verify", allowance, rng)
        advice = [(self._entries[row].advice, self._entries[row].snapshot) for row in rows]
        proposals = [Candidate(item.plan, start) for item, start in advice]
        found = verify(proposals, bench, self._config, [item.strength for item, _ in advice])
        self._done += 1
        self._spent += allowance - bench.left
        return found

    def state(self) -> dict[str, int]:
        """What a checkpoint must hold."""
        return {"done": self._done, "spent": self._spent}

    def load_state(self, state: dict[str, int]) -> None:
        """Inverse of `state`; the steps that were taken are charged again."""
        self._done, self._spent = state["done"], state["spent"]
        self._budget.charge("verify", self._spent)
