"""The step budget: every environment step is charged to a purpose, against one total."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ultra.common.errors import BudgetExceededError, UltraError

PURPOSES = ("collect", "analyse", "verify", "train", "choose")
"""What environment steps are spent on. Evaluation and the audit measure and refine nothing: they are counted apart."""


def steps_for(budget: Mapping[str, int], purpose: str) -> int:
    """Steps for a purpose in a budget that was written; 0 if it was written before that purpose had a count of its own.

    Steps for `choose` were counted as `collect` then.
    """
    return int(budget.get(purpose, 0))


@dataclass
class StepBudget:
    """Environment steps (agent decisions, after frame skip) by purpose.

    Attributes:
        total: steps that may be spent on everything but evaluation.
        spent: steps spent so far for each purpose.
        evaluation: steps spent on evaluation, outside the total.
        audit: steps spent on measuring the analyst (fidelity), outside the total.
    """

    total: int
    spent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PURPOSES, 0))
    evaluation: int = 0
    audit: int = 0

    def __post_init__(self) -> None:
        if self.total < 1:
            raise UltraError(f"the step budget must be positive, not {self.total}: give --steps a larger number")

    @property
    def used(self) -> int:
        """Steps spent on all purposes, without evaluation and audit."""
        return sum(self.spent.values())

    @property
    def remaining(self) -> int:
        """Steps that are left."""
        return max(0, self.total - self.used)

    def charge(self, purpose: str, steps: int) -> None:
        """Count `steps` for `purpose`.

        Raises:
            BudgetExceededError: if fewer steps are left.
        """
        if purpose not in self.spent:
            raise UltraError(f"unknown purpose {purpose!r}: one of {', '.join(self.spent)}")
        if steps > self.remaining:
            raise BudgetExceededError(
                f"{steps} steps for {purpose} exceed the {self.remaining} left of {self.total}: "
                "raise --steps or lower that stage's share"
            )
        self.spent[purpose] += steps

    def as_dict(self) -> dict[str, int]:
        """The figures of `result.json`."""
        apart = {"evaluation": self.evaluation, "audit": self.audit}
        return {"total": self.total, **self.spent, "used": self.used, **apart}

    @classmethod
    def from_dict(cls, value: Mapping[str, int]) -> StepBudget:
        """Inverse of `as_dict`."""
        spent = {name: steps_for(value, name) for name in PURPOSES}
        return cls(value["total"], spent, int(value["evaluation"]), steps_for(value, "audit"))
