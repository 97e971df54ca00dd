"""Plans: short sequences of actions that are executed or added to the policy's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import UltraError
from ultra.tasks.spaces import Actions, ActionSpace, Continuous, Discrete

MOST_DISCRETE_STEPS = 16
MOST_CONTINUOUS_STEPS = 30


@dataclass(frozen=True)
class Segment:
    """One action, held for some steps."""

    action: int | tuple[float, ...]
    """The number of a discrete action; or one value for each dimension of a continuous one."""
    steps: int = 1
    """For how many steps."""


@dataclass(frozen=True)
class Plan:
    """What to do for a few steps.

    Attributes:
        segments: actions with the number of steps each is held.
        relative: whether the values are added to the policy's own continuous action (so that its
            gait survives) or replace it. Discrete actions always replace.
    """

    segments: tuple[Segment, ...]
    relative: bool = False

    def __post_init__(self) -> None:
        if not self.segments or any(
            not isinstance(segment.steps, int) or segment.steps < 1 for segment in self.segments
        ):
            raise UltraError(f"a plan needs segments of at least one step each, not {self.segments}")
        if self.relative and isinstance(self.segments[0].action, int):
            raise UltraError("a plan of discrete actions cannot be relative")

    def __len__(self) -> int:
        return sum(segment.steps for segment in self.segments)

    def check(self, space: ActionSpace) -> None:
        """Check the plan against an action space.

        Raises:
            UltraError: naming the segment and its value, if an action lies outside or the plan is too long.
        """
        most = MOST_DISCRETE_STEPS if isinstance(space, Discrete) else MOST_CONTINUOUS_STEPS
        if len(self) > most:
            raise UltraError(f"a plan of {len(self)} steps is too long: at most {most}")
        for segment in self.segments:
            action = segment.action
            if isinstance(space, Discrete):
                if not isinstance(action, int) or not 0 <= action < space.n:
                    raise UltraError(f"action {action} is not one of 0 to {space.n - 1}")
            elif isinstance(action, int) or len(action) != space.size:
                raise UltraError(f"action {action} needs {space.size} values")
            elif not np.isfinite(action).all():
                raise UltraError(f"action {action} holds a value that is not finite")

    def expand(self) -> NDArray[Any]:
        """The actions step by step: (L,) int64, or (L, dim) float32."""
        kind = np.int64 if isinstance(self.segments[0].action, int) else np.float32
        return np.repeat(
            np.array([segment.action for segment in self.segments], dtype=kind),
            [segment.steps for segment in self.segments],
            axis=0,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        segments = [{"action": s.action, "steps": s.steps} for s in self.segments]
        return {"segments": segments, "relative": self.relative}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """Inverse of `to_json`."""
        segments = tuple(
            Segment(s["action"] if isinstance(s["action"], int) else tuple(s["action"]), s["steps"])
            for s in value["segments"]
        )
        return cls(segments, value["relative"])


class PlanTable:
    """Many plans as padded arrays, to apply them to a batch of environments at once."""

    def __init__(self, plans: list[Plan], strengths: list[float], space: ActionSpace) -> None:
        self._space = space
        self.lengths = np.array([len(plan) for plan in plans], dtype=np.int64)
        longest = int(self.lengths.max(initial=1))
        width = () if isinstance(space, Discrete) else (space.size,)
        kind = np.int64 if isinstance(space, Discrete) else np.float32
        self.steps = np.zeros((len(plans), longest, *width), dtype=kind)
        self.relative = np.array([plan.relative for plan in plans], dtype=np.bool_)
        for row, (plan, strength) in enumerate(zip(plans, strengths, strict=True)):
            expanded = plan.expand()
            self.steps[row, : len(plan)] = expanded * np.float32(strength) if plan.relative else expanded

    def apply(self, rows: NDArray[np.intp], positions: NDArray[np.int64], actions: Actions) -> Actions:
        """What is executed where plan `rows[i]` is at step `positions[i]` and the policy chose `actions[i]`.

        Args:
            rows: (k,) plans.
            positions: (k,) steps into them.
            actions: (k,) or (k, dim), the policy's own choice.
        """
        planned = self.steps[rows, positions]
        if isinstance(self._space, Continuous):
            base = np.where(self.relative[rows, None], actions, np.float32(0))
            return self._space.clip(base + planned)
        return planned
