"""Advice in use, verified again under the policy as training has changed it."""

from __future__ import annotations

from collections.abc import Sequence

from ultra.advice.records import Entry, Verification
from ultra.common.streams import stream
from ultra.config import VerifyConfig
from ultra.policies.policy import Policy
from ultra.simulation.budget import StepBudget
from ultra.simulation.paired import Candidate, PairedEvaluator
from ultra.tasks.batch import Batch
from ultra.verification.verdicts import verify

CHECKS = (0.25, 0.5, 0.75)
"""Advice in use is verified again at these fractions of the time for which it is used."""


class Recheck:
    """Verifies advice that training uses again, under the current policy.

    Args:
        batch: environments for the branches.
        entries: the whole book of advice, in which rows are counted.
        config: most pairs, and confidence.
        gamma: discount.
        horizon: longest branch in steps.
        budget: charged for `verify`.
        allowance: most steps, over all checks.
        key: of the random stream; each check draws from its own (`ultra.common.streams`).
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
        key: Sequence[int | str],
    ) -> None:
        self._batch, self._entries, self._config = batch, entries, config
        self._gamma, self._horizon, self._budget = gamma, horizon, budget
        self._allowance, self._key = allowance, tuple(key)
        self._done = self._spent = 0

    def due(self, fraction: float) -> bool:
        """Whether the next check is due, at a fraction in [0, 1] of the time for which advice is used."""
        return self._done < len(CHECKS) and fraction >= CHECKS[self._done]

    def run(self, policy: Policy, rows: Sequence[int]) -> list[Verification | None]:
        """Verify entries in order of precedence; None for those for which the allowance did not last."""
        allowance = self._allowance // len(CHECKS)
        evaluator = PairedEvaluator(
            self._batch,
            policy,
            self._gamma,
            self._horizon,
            self._budget,
            "verify",
            allowance,
            stream(*self._key, "check", self._done),
        )
        before = evaluator.left
        entries = [self._entries[row] for row in rows]
        candidates = [Candidate(entry.advice.plan, entry.snapshot) for entry in entries]
        found = verify(candidates, evaluator, self._config, [entry.advice.strength for entry in entries])
        self._done += 1
        self._spent += before - evaluator.left
        return found

    def state(self) -> dict[str, int]:
        """State for a checkpoint."""
        return {"done": self._done, "spent": self._spent}

    def load_state(self, state: dict[str, int]) -> None:
        """Inverse of `state`; the steps that were taken are charged again."""
        self._done, self._spent = state["done"], state["spent"]
        self._budget.charge("verify", self._spent)
