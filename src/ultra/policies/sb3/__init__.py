"""Stable-Baselines3 in and out: policies of PPO and A2C with their VecNormalize statistics."""

from ultra.policies.sb3.importing import Imported, import_policy

__all__ = ["Imported", "import_policy"]
