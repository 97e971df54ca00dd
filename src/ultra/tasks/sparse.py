"""Sparse rewards for MuJoCo's runners: nothing but 1 for each step far enough from the start.

The task's physics, observations, facts, starts and termination stay as they are (RICE, arXiv 2405.03064).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np

from ultra.tasks.mujoco import Array, Physics


def sparse(physics: Physics, threshold: float) -> Physics:
    """The same physics with a reward of 1 for each step that ends with |x| >= `threshold` metres, else 0."""

    def reward(before: Array, after: Array, actions: Array, seconds: float) -> Array:
        return (np.abs(after[:, 0]) >= threshold).astype(np.float64)

    return replace(physics, reward=reward, alive=0.0)


class SparseReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gymnasium's own environment with the same sparse reward, for evaluation."""

    def __init__(self, env_id: str, threshold: float) -> None:
        super().__init__(gymnasium.make(env_id))
        self._threshold = threshold

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment; its own reward is dropped."""
        observation, _, terminated, truncated, info = self.env.step(action)
        x: float = self.unwrapped.data.qpos[0]  # type: ignore[attr-defined]
        return observation, float(abs(x) >= self._threshold), terminated, truncated, info
