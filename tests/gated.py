"""CartPole behind a gate: once a learning curve has a given number of rows, steps wait until a file exists.

So a test can stop, kill or meet a command at an exact place, however fast the machine is.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

from ultra.pipeline.run import read_curve

TASK = "Gated-v0"
MODULE = str(Path(__file__))
HANGS = 300.0
"""Seconds after which a process that does nothing fails its test; no test passes because of it."""


class GatedCartPole(CartPoleEnv):
    """CartPole that waits until the file `gate` exists, once one of the files `curves` has so many rows."""

    def __init__(self, **options: Any) -> None:
        self.gate, self.curves, self.rows = (options.pop(name) for name in ("gate", "curves", "rows"))
        super().__init__(**options)

    def step(self, action: Any) -> Any:
        if not Path(self.gate).exists() and any(len(read_curve(path)) >= self.rows for path in self._found()):
            _wait(Path(self.gate))
        moved: Any = super().step(action)  # type: ignore[no-untyped-call]
        return moved

    def _found(self) -> list[Path]:
        """The learning curves; runs may be a pattern in the last part of their folder's path."""
        runs = Path(self.curves).parent
        return [run / "curve.csv" for run in runs.parent.glob(runs.name)]


def _wait(gate: Path) -> None:
    reached(gate, os.getpid()).touch()
    parent = os.getppid()
    while not gate.exists() and os.getppid() == parent:
        time.sleep(0.01)


if TASK not in gymnasium.registry:  # a test that has imported this module meets it again through --env-module
    gymnasium.register(TASK, GatedCartPole, max_episode_steps=500)


class Gate:
    """The test's side of a gate.

    Args:
        path: the file that opens it.
        runs: the run directory, or a pattern of several.
        rows: of the learning curve of one of them, after which environments wait.
    """

    def __init__(self, path: Path, runs: Path, rows: int = 2) -> None:
        self.path, self.curves, self.rows = path, runs / "curve.csv", rows

    @property
    def settings(self) -> dict[str, Any]:
        """The environment's settings of a run, as in a study file."""
        return {"module": MODULE, "kwargs": [f"gate={self.path}", f"curves={self.curves}", f"rows={self.rows}"]}

    @property
    def options(self) -> list[str]:
        """The same for the command line."""
        return ["--env-module", MODULE, "--env-kwargs", *self.settings["kwargs"]]

    def open(self) -> None:
        """Let everybody through."""
        self.path.touch()

    def waiting(self) -> set[int]:
        """Processes that have come to the gate."""
        return {int(path.suffix[1:]) for path in self.path.parent.glob(f"{self.path.name}.reached.*")}

    def wait_for(self, number: int = 1, process: subprocess.Popen[str] | None = None) -> set[int]:
        """Wait until so many processes have come to the gate; fail if `process` ends before."""
        until = time.monotonic() + HANGS
        while len(self.waiting()) < number:
            assert process is None or process.poll() is None, process.communicate()
            assert time.monotonic() < until, f"{len(self.waiting())} of {number} processes came to the gate"
            time.sleep(0.01)
        return self.waiting()


def reached(gate: Path, process: int) -> Path:
    """The file that says that a process waits."""
    return gate.with_name(f"{gate.name}.reached.{process}")
