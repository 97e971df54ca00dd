"""Action spaces: the two kinds that the engine knows, as plain records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import UltraError

FloatArray = NDArray[np.float32] | NDArray[np.float64]
Actions = NDArray[Any]
"""(n,) int64 for discrete actions, (n, dim) float32 for continuous ones."""


MOST_JOINT_ACTIONS = 1024
"""Most combinations of a multi-part action."""


@dataclass(frozen=True)
class Discrete:
    """One of `n` actions, numbered from 0.

    Attributes:
        n: number of actions.
        parts: for actions of several independent choices, the network's outputs for each: as many as
            the choice has options, or 1 for a switch that is off or on. Every combination is one of
            the `n` actions; the last part changes fastest.

    Raises:
        UltraError: if there is nothing to choose, or more combinations than can be listed.
    """

    n: int
    parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.n < 2:
            raise UltraError(f"a discrete action space needs at least 2 actions, not {self.n}")
        if self.parts and (min(self.parts) < 1 or math.prod(self.choices) != self.n):
            raise UltraError(f"parts with {self.choices} choices do not make {self.n} actions")
        if self.parts and self.n > MOST_JOINT_ACTIONS:
            raise UltraError(
                f"actions of {len(self.parts)} parts have {self.n:,} combinations, more than {MOST_JOINT_ACTIONS}: "
                "wrap the environment so that fewer are offered"
            )

    @property
    def size(self) -> int:
        """Size of the policy's noise: one entry for each action."""
        return self.n

    @property
    def outputs(self) -> int:
        """Outputs that a policy network needs: logits of the actions, or of their parts."""
        return sum(self.parts) or self.n

    @property
    def choices(self) -> tuple[int, ...]:
        """Options of each part."""
        return tuple(2 if part == 1 else part for part in self.parts)

    def split(self, actions: Actions) -> Actions:
        """The choices (n, len(parts)) that joint actions (n,) stand for."""
        return np.stack(np.unravel_index(actions, self.choices), axis=-1)

    def clip(self, actions: Actions) -> Actions:
        """Discrete actions are always inside their space."""
        return actions

    def __str__(self) -> str:
        if not self.parts:
            return f"Discrete({self.n})"
        return f"MultiBinary({len(self.parts)})" if max(self.parts) == 1 else f"MultiDiscrete({list(self.choices)})"


@dataclass(frozen=True)
class Continuous:
    """A box of real actions; `low` and `high` have one finite entry for each dimension."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or not self.low:
            raise UltraError(f"action bounds differ in length: low {self.low}, high {self.high}")
        if not all(np.isfinite([*self.low, *self.high])) or not all(
            a < b for a, b in zip(self.low, self.high, strict=True)
        ):
            raise UltraError(f"action bounds must be finite with low < high: low {self.low}, high {self.high}")

    @property
    def size(self) -> int:
        """Dimensions of an action."""
        return len(self.low)

    @property
    def outputs(self) -> int:
        """Outputs that a policy network needs: the mean of each dimension."""
        return len(self.low)

    @cached_property
    def bounds(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The lowest and the highest values (dim,)."""
        return np.array(self.low, np.float32), np.array(self.high, np.float32)

    @cached_property
    def half_range(self) -> NDArray[np.float64]:
        """Half the distance between the bounds (dim,): a unit where actions are scaled to [-1, 1]."""
        return np.subtract(self.high, self.low) / 2

    def clip(self, actions: Actions) -> Actions:
        """Clip actions (..., dim) to the bounds."""
        low, high = self.bounds
        return np.minimum(np.maximum(actions, low), high)  # np.clip takes longer for so few

    def __str__(self) -> str:
        alike = len({*self.low}) == len({*self.high}) == 1
        low, high = (
            str(bounds[0]) if alike else f"({', '.join(map(str, bounds))})"
            for bounds in (np.array(self.low, np.float32), np.array(self.high, np.float32))
        )
        return f"Box({self.size},) from {low} to {high}"


ActionSpace = Discrete | Continuous


@cache
def mixing(parts: tuple[int, ...]) -> NDArray[np.float32]:
    """Matrix (outputs, n) that makes logits of joint actions out of the logits of their parts.

    Choices are independent, so the logit of a combination is the sum of its parts' logits.
    """
    joint = Discrete(math.prod(2 if part == 1 else part for part in parts), parts)
    chosen = joint.split(np.arange(joint.n))
    columns = [
        (chosen[:, [k]] == 1) if part == 1 else (chosen[:, [k]] == np.arange(part)) for k, part in enumerate(parts)
    ]
    return np.concatenate(columns, axis=1).T.astype(np.float32)


def from_gymnasium(space: object) -> ActionSpace:
    """Convert a Gymnasium action space.

    Raises:
        UltraError: for a space that is neither a discrete one nor a one-dimensional `Box`.
    """
    import gymnasium

    if isinstance(space, gymnasium.spaces.Discrete) and space.start == 0:
        return Discrete(int(space.n))
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1:
        return Continuous(tuple(map(float, space.low)), tuple(map(float, space.high)))
    if isinstance(space, gymnasium.spaces.MultiDiscrete) and space.nvec.ndim == 1 and not space.start.any():
        parts = tuple(map(int, space.nvec))
        if min(parts) > 1:
            return Discrete(math.prod(parts), parts)
    if isinstance(space, gymnasium.spaces.MultiBinary) and len(space.shape) == 1:
        return Discrete(2 ** int(space.shape[0]), (1,) * int(space.shape[0]))
    found = " ".join(str(space).split())
    raise UltraError(
        f"actions of {found} are not supported: a Discrete, MultiDiscrete or MultiBinary space that counts from 0, "
        "or a one-dimensional Box, is needed"
    )


def to_json(space: ActionSpace) -> dict[str, Any]:
    """Describe an action space in plain JSON values."""
    if isinstance(space, Discrete):
        return {"kind": "discrete", "n": space.n} | ({"parts": list(space.parts)} if space.parts else {})
    return {"kind": "continuous", "low": list(space.low), "high": list(space.high)}


def from_json(value: dict[str, Any]) -> ActionSpace:
    """Inverse of `to_json`.

    Raises:
        UltraError: if the kind is unknown or the numbers make no action space.
        KeyError, TypeError, ValueError: if entries are missing or of another type.
    """
    kind = value["kind"]
    if kind == "discrete":
        return Discrete(index(value["n"]), tuple(map(index, value.get("parts", ()))))
    if kind == "continuous":
        return Continuous(tuple(map(float, value["low"])), tuple(map(float, value["high"])))
    raise UltraError(f"unknown kind of actions {kind!r}: known are 'continuous' and 'discrete'")
