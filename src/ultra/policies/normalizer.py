"""Statistics by which a policy's observations are centred and rewards scaled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Normalizer:
    """Statistics by which observations are centred and rewards scaled.

    Attributes:
        mean, variance: (observation_size,) float64, of the observations seen.
        count: observations seen; 0 leaves observations as they are.
        reward_variance: mean square of the discounted return; rewards are divided by its root.
        reward_count: returns seen; 0 leaves rewards as they are.
        clip: normalised observations are cut to [-clip, clip].
        plain: entries of the observation that stay as they are, neither centred, scaled nor cut.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    count: float = 0.0
    reward_variance: float = 1.0
    reward_count: float = 0.0
    clip: float = 10.0
    plain: tuple[int, ...] = ()

    @classmethod
    def identity(cls, size: int) -> Normalizer:
        """Statistics that change nothing."""
        return cls(np.zeros(size), np.ones(size))

    @property
    def reward_scale(self) -> float:
        """What rewards are divided by before learning; the critic predicts returns in these units."""
        return float(np.sqrt(self.reward_variance + 1e-8)) if self.reward_count else 1.0

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Shift, factor (observation_size,) and clip (), or (observation_size,), as float32 for compiled functions."""
        if not self.count:
            shift, factor, clip = np.zeros_like(self.mean), np.ones_like(self.mean), np.float32(np.inf)
        else:
            shift, factor, clip = self.mean.copy(), 1.0 / np.sqrt(self.variance + 1e-8), np.float32(self.clip)
        if self.count and self.plain:
            entries = list(self.plain)
            shift[entries], factor[entries] = 0.0, 1.0
            clip = np.full(len(shift), self.clip, np.float32)  # type: ignore[assignment]
            clip[entries] = np.inf  # type: ignore[index]
        return shift.astype(np.float32), factor.astype(np.float32), clip  # type: ignore[return-value]

    def with_observations(self, observations: NDArray[Any]) -> Normalizer:
        """Update with observations (k, observation_size)."""
        sample = observations.mean(axis=0, dtype=np.float64), observations.var(axis=0, dtype=np.float64)
        mean, variance, count = _merge((self.mean, self.variance, self.count), (*sample, len(observations)))
        return replace(self, mean=mean, variance=variance, count=count)

    def with_returns(self, returns: NDArray[Any]) -> Normalizer:
        """Update with discounted returns since the start of episodes, of any shape."""
        old = (0.0, self.reward_variance, self.reward_count)
        _, variance, count = _merge(old, (0.0, float(np.square(returns).mean()), returns.size))
        return replace(self, reward_variance=float(variance), reward_count=float(count))


def _merge(a: tuple[Any, Any, float], b: tuple[Any, Any, float]) -> tuple[Any, Any, float]:
    """Mean, variance and count of two samples together (Chan et al., 1979)."""
    total = a[2] + b[2]
    gap = b[0] - a[0]
    mean = a[0] + gap * b[2] / total
    variance = (a[1] * a[2] + b[1] * b[2] + gap**2 * a[2] * b[2] / total) / total
    return mean, variance, total
