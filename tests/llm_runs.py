"""Small collected runs for tests of analysts that read: CartPole, whose card ships."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ultra.config import CollectConfig, RefineConfig
from ultra.pipeline.progress import Reporter
from ultra.pipeline.refinement import Refinement
from ultra.policies.io import save_policy
from ultra.policies.policy import Architecture, create_policy
from ultra.tasks import get_task

TASK = "CartPole-v1"


def make_policy(path: Path, task_name: str = TASK, hidden: tuple[int, ...] = (8,)) -> Path:
    task = get_task(task_name)
    architecture = Architecture(task.observation_size, task.action_space, hidden)
    save_policy(create_policy(architecture, np.random.default_rng(0)), path)
    return path


def make_run(path: Path, policy: Path, episodes: int, task: str = TASK, steps: int = 20_000) -> Path:
    """A run whose episodes have been collected."""
    config = RefineConfig(
        task=task, policy=str(policy), steps=steps, workers=1, collect=CollectConfig(episodes=episodes, share=0.3)
    )
    Refinement.start(path, config, Reporter(quiet=True)).run_stage("collect")
    return path


def copy_run(source: Path, path: Path, analyst: str, **llm: Any) -> Path:
    """A copy of a collected run, with another analyst and settings for it."""
    shutil.copytree(source, path)
    manifest = json.loads((path / "run.json").read_text())
    manifest["config"]["analyst"] = analyst
    manifest["config"]["llm"] |= {"ledger": str(path.parent / "ledger.sqlite")} | llm
    (path / "run.json").write_text(json.dumps(manifest))
    (path / "identity").unlink(missing_ok=True)
    return path
