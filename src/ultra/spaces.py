"""Action spaces: the two kinds that the engine knows, as plain records."""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.errors import UltraError

FloatArray = NDArray[np.float32] | NDArray[np.float64]
Actions = NDArray[Any]
"""(n,) int64 for discrete actions, (n, dim) float32 for continuous ones."""


@dataclass(frozen=True)
class Discrete:
    """One of `n` actions, numbered from 0."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 2:
            raise UltraError(f"a discrete action space needs at least 2 actions, not {self.n}")

    @property
    def size(self) -> int:
        """Outputs that a policy network needs: one logit for each action."""
        return self.n

    def clip(self, actions: Actions) -> Actions:
        """Discrete actions are always inside their space."""
        return actions

    def __str__(self) -> str:
        return f"Discrete({self.n})"


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

    def clip(self, actions: Actions) -> Actions:
        """Move actions (..., dim) to the nearest ones inside the bounds."""
        return np.clip(actions, np.array(self.low, np.float32), np.array(self.high, np.float32))

    def scale(self, actions: Actions) -> NDArray[np.float64]:
        """Map actions (..., dim) from the bounds to [-1, 1]."""
        low, high = np.array(self.low), np.array(self.high)
        scaled: NDArray[np.float64] = 2.0 * (actions - low) / (high - low) - 1.0
        return scaled

    def __str__(self) -> str:
        alike = len({*self.low}) == len({*self.high}) == 1
        low, high = (self.low[0], self.high[0]) if alike else (self.low, self.high)
        return f"Box({self.size},) from {low} to {high}"


ActionSpace = Discrete | Continuous


def from_gymnasium(space: object) -> ActionSpace:
    """Convert a Gymnasium action space.

    Raises:
        UltraError: for a space that is neither `Discrete` nor a one-dimensional `Box`.
    """
    import gymnasium

    if isinstance(space, gymnasium.spaces.Discrete) and space.start == 0:
        return Discrete(int(space.n))
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1:
        return Continuous(tuple(map(float, space.low)), tuple(map(float, space.high)))
    raise UltraError(f"actions of {space} are not supported: a Discrete or a one-dimensional Box is needed")


def to_json(space: ActionSpace) -> dict[str, Any]:
    """Describe an action space in plain JSON values."""
    if isinstance(space, Discrete):
        return {"kind": "discrete", "n": space.n}
    return {"kind": "continuous", "low": list(space.low), "high": list(space.high)}


def from_json(value: dict[str, Any]) -> ActionSpace:
    """Inverse of `to_json`.

    Raises:
        UltraError: if the kind is unknown or the numbers make no action space.
        KeyError, TypeError, ValueError: if entries are missing or of another type.
    """
    kind = value["kind"]
    if kind == "discrete":
        return Discrete(index(value["n"]))
    if kind == "continuous":
        return Continuous(tuple(map(float, value["low"])), tuple(map(float, value["high"])))
    raise UltraError(f"unknown kind of actions {kind!r}: known are 'continuous' and 'discrete'")
