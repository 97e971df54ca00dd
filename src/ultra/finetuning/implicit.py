"""Implicit rewards of advice, for following it or for repeating the policy's own action, at each step of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.advice.records import Advice
from ultra.tasks.plans import PlanTable
from ultra.tasks.spaces import Actions, ActionSpace, Continuous

KERNEL_WIDTH = 0.5
"""Width of the Gaussian kernel on continuous actions scaled to [-1, 1]."""


def similarity(space: ActionSpace, actions: Actions, targets: Actions) -> NDArray[np.float64]:
    """Likeness of actions, 0 to 1: equal or not; for continuous ones a Gaussian kernel.

    Args:
        space: of the actions; continuous ones are scaled to [-1, 1] by its bounds.
        actions: (...,) or (..., dim).
        targets: likewise, of a shape that broadcasts with that of `actions`.
    """
    if not isinstance(space, Continuous):
        return np.equal(actions, targets).astype(np.float64)
    gaps = (actions - targets) / space.half_range
    likeness: NDArray[np.float64] = np.exp(np.square(gaps).sum(axis=-1) * (-0.5 / (space.size * KERNEL_WIDTH**2)))
    return likeness


class ImplicitRewards:
    """Equation 2's r_LLM of many pieces of advice, precomputed for lookup.

    The reward of a piece of advice is spread evenly over its plan. At each step the executed
    action is compared with the advised one and with the one that the policy took at the critical
    state. A change of the policy's action is added to what the policy took there.

    Args:
        advice: of the table.
        taken: what the policy did at each critical state of the table, (L,) or (L, dim): shorter than the plan
            where the episode ended.
        table: their plans.
        space: of the actions.
    """

    def __init__(
        self, advice: Sequence[Advice], taken: Sequence[NDArray[Any]], table: PlanTable, space: ActionSpace
    ) -> None:
        self._space = space
        shape = table.steps.shape[:2]
        own, known = np.zeros_like(table.steps), np.zeros(shape, dtype=np.bool_)
        for row, actions in enumerate(taken):
            length = min(len(actions), shape[1])
            own[row, :length] = space.clip(actions[:length])
            known[row, :length] = True
        rows, positions = np.indices(shape)
        flat = own.reshape(-1, *own.shape[2:])
        advised = table.apply(rows.ravel(), positions.ravel(), flat).reshape(own.shape)
        follow = np.array([a.reward_follow for a in advice]) / table.lengths
        repeat = np.array([a.reward_taken for a in advice]) / table.lengths
        self._targets = np.stack([advised, own], axis=2)
        """(n_advice, steps, 2) or (n_advice, steps, 2, dim): the advised action and the one taken."""
        self._worth = np.stack([follow[:, None] * known, repeat[:, None] * known], axis=2)
        """(n_advice, steps, 2): rewards of the one and the other."""
        self._executed = follow
        """(n_advice,): reward of each step of an executed plan, whatever the policy's own action was."""

    def of(
        self,
        rows: NDArray[np.intp],
        positions: NDArray[np.int64],
        executed: NDArray[np.bool_],
        actions: Actions,
    ) -> NDArray[np.float64]:
        """What a step earns (k,).

        Args:
            rows: (k,) indices of advice.
            positions: (k,) steps into their plans.
            executed: (k,) whether the plan is being executed.
            actions: (k,) or (k, dim), what was done.
        """
        earned = self._worth[rows, positions] * similarity(
            self._space, actions[:, None], self._targets[rows, positions]
        )
        earned[:, 0] = np.where(executed, self._executed[rows], earned[:, 0])
        result: NDArray[np.float64] = earned.sum(axis=1)
        return result
