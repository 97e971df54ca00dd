"""ULTRA: find out why a reinforcement-learning policy fails, and make it better.

    import ultra

    config = ultra.RefineConfig(task="hopper", policy="policies/hopper", steps=200_000)
    result = ultra.refine(config, "runs/hopper")

`ultra.refine` runs all stages; `ultra.collect`, `identify`, `advise`, `verify` and `finetune` run
one each. A policy acts by itself:

    policy = ultra.load_policy("runs/hopper/policy/best")
    action = policy.act(observation)

Everything is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultra.api import (
        advise,
        collect,
        evaluate,
        export,
        finetune,
        identify,
        observe_facts,
        refine,
        report,
        study,
        train,
        verify,
    )
    from ultra.common.errors import UltraError
    from ultra.config import PPOConfig, RefineConfig, TrainConfig
    from ultra.policies.acting import Actor
    from ultra.policies.io import load_policy, save_policy
    from ultra.policies.policy import Policy
    from ultra.tasks import Task, get_task, register

__version__ = "0.1.0"

__all__ = [
    "Actor",
    "PPOConfig",
    "Policy",
    "RefineConfig",
    "Task",
    "TrainConfig",
    "UltraError",
    "advise",
    "collect",
    "evaluate",
    "export",
    "finetune",
    "get_task",
    "identify",
    "load_policy",
    "observe_facts",
    "refine",
    "register",
    "report",
    "save_policy",
    "study",
    "train",
    "verify",
]

_HOMES = {
    "ultra.config": ("PPOConfig", "RefineConfig", "TrainConfig"),
    "ultra.common.errors": ("UltraError",),
    "ultra.policies.acting": ("Actor",),
    "ultra.policies.policy": ("Policy",),
    "ultra.policies.io": ("load_policy", "save_policy"),
    "ultra.tasks": ("Task", "get_task", "register"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ultra' has no attribute {name!r}")
    import importlib

    home = next((module for module, names in _HOMES.items() if name in names), "ultra.api")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
