"""The run directory: what was asked for, which stages are done, and where their files lie."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from ultra.common.errors import RunDirectoryError, UltraError
from ultra.common.files import check_finite, to_json_text, write_atomically, write_json
from ultra.common.locks import LOCK_FILES
from ultra.common.records import record_from
from ultra.config import RefineConfig, TrainConfig
from ultra.simulation.budget import StepBudget

FORMAT = 2
"""Of run directories. Format 1 is that of runs which do not name theirs."""
STAGES = ("collect", "identify", "advise", "verify", "finetune")
"""Stages of one round, in order."""
ANALYSIS_STAGES = STAGES[:-1]
"""Those that depend on the policy and the analysis's seed alone."""

_IRRELEVANT = (
    "workers", "llm.budget", "llm.tokens", "llm.price_input", "llm.price_output", "llm.concurrency",
    "llm.timeout", "llm.attempts", "llm.longest_wait", "llm.ledger", "llm.permits",
)  # fmt: skip
"""Settings that may differ when a command is repeated: they do not change the result. The new ones hold."""


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    names = ("ultra-refine", "jax", "numpy", "gymnasium", "mujoco", "ale-py")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Settings as one level: `ppo.gamma`, ..."""
    items = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    result: dict[str, Any] = {}
    for name, item in items.items():
        if isinstance(item, Mapping):
            result |= _flat(item, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = list(item) if isinstance(item, tuple) else item
    return result


def relevant_settings(config: RefineConfig | TrainConfig) -> dict[str, Any]:
    """The settings that decide the result, as one level: `ppo.gamma`, ..."""
    return {name: value for name, value in _flat(config).items() if name not in _IRRELEVANT}


def seen_from(run: Path, config: RefineConfig | TrainConfig) -> str:
    """Where the starting policy lies as seen from a run directory; empty if there is none."""
    policy = config.policy if isinstance(config, RefineConfig) else ""
    return os.path.relpath(policy, run) if policy else ""


def _damaged(manifest: Path, error: Exception) -> RunDirectoryError:
    reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
    return RunDirectoryError(f"{manifest} is damaged ({reason}): use another --out")


@dataclass
class Run:
    """A run directory.

    Attributes:
        path: where it lies.
        command: `refine` or `train`.
        config: what was asked for.
        done: budget after each finished stage, in the order in which they finished.
        policy: where the starting policy lies as seen from the run directory, so that both can be moved together.
    """

    path: Path
    command: str
    config: Any
    done: dict[str, dict[str, int]]
    policy: str = ""

    @classmethod
    def open(cls, path: Path, command: str = "refine") -> Run:
        """Open a run directory that exists.

        Raises:
            RunDirectoryError: if it is missing, damaged, or of another command.
        """
        manifest = path / "run.json"
        if not manifest.is_file():
            raise RunDirectoryError(f"{path} is not a run directory (no run.json): start one with `ultra {command}`")
        try:
            raw = json.loads(manifest.read_text(encoding="utf-8"))
            if not isinstance(raw, Mapping):
                raise TypeError(f"it holds {to_json_text(raw)[:40]}, not an object")
            form, maker = raw.get("format", 1), raw["versions"]["ultra-refine"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise _damaged(manifest, error) from error
        if form != FORMAT:
            raise RunDirectoryError(
                f"{path} has run format {form}, made by ultra-refine {maker}; this version reads format {FORMAT}: "
                "finish or report it with the version that made it, or repeat its command with another --out"
            )
        found = raw.get("command")
        if found not in ("refine", "train"):
            raise _damaged(manifest, ValueError(f"its command is {found!r}"))
        if found != command:
            raise RunDirectoryError(f"{path} belongs to `ultra {found}`, not `ultra {command}`: choose another --out")
        try:
            settings = record_from(RefineConfig if command == "refine" else TrainConfig, raw["config"])
            done = {str(stage): StepBudget.from_dict(budget).as_dict() for stage, budget in raw["done"].items()}
            policy = str(raw.get("policy", ""))
        except (UltraError, LookupError, TypeError, AttributeError) as error:
            raise _damaged(manifest, error) from error
        return cls(path, command, settings, done, policy)

    @classmethod
    def start(cls, path: Path, command: str, config: RefineConfig | TrainConfig) -> Run:
        """Make a run directory, or continue the one that the same command made.

        Raises:
            RunDirectoryError: if it belongs to a command with other settings; the first difference is named.
        """
        if (path / "run.json").exists():
            run = cls.open(path, command)
            run.check(config)
            run.config, run.policy = config, seen_from(path, config)
            run._write()
            return run
        if path.exists() and (not path.is_dir() or {item.name for item in path.iterdir()} - LOCK_FILES):
            raise RunDirectoryError(f"{path} exists and is not a run directory: choose another --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(f"cannot make {path}: {error.strerror}; choose another --out") from error
        run = cls(path, command, config, {}, seen_from(path, config))
        run._write()
        return run

    def check(self, config: RefineConfig | TrainConfig) -> None:
        """Check that a configuration asks for what this run does.

        Raises:
            RunDirectoryError: naming the first difference.
        """
        old, new = relevant_settings(self.config), relevant_settings(config)
        if self.policy and self.policy == seen_from(self.path, config):
            old["policy"] = new["policy"]
        if new["ppo.gamma"] is None:  # settled when the run began
            new["ppo.gamma"] = old.get("ppo.gamma")
        for name in new:
            if old.get(name) != new[name]:
                raise RunDirectoryError(
                    f"{self.path} belongs to another command: there {name} is {old.get(name)}, here {new[name]}; "
                    "choose another --out, or repeat that command to continue it"
                )

    def _write(self) -> None:
        write_json(
            self.path / "run.json",
            {
                "format": FORMAT,
                "command": self.command,
                "config": asdict(self.config),
                "policy": self.policy,
                "versions": versions(),
                "done": self.done,
            },
        )

    def finished(self, stage: str) -> bool:
        """Whether a stage is done."""
        return stage in self.done

    def complete(self, stage: str, budget: StepBudget) -> None:
        """Note that a stage is done, with the budget after it."""
        self.done[stage] = budget.as_dict()
        self._write()

    def budget(self) -> StepBudget:
        """The budget after the last finished stage."""
        if not self.done:
            return StepBudget(self.config.steps)
        return StepBudget.from_dict(list(self.done.values())[-1])

    def require(self, stage: str, hint: str) -> None:
        """Check that a stage is done.

        Raises:
            RunDirectoryError: naming what to run first.
        """
        if not self.finished(stage):
            raise RunDirectoryError(f"{self.path}: stage {stage!r} is not done yet: run `{hint}` first")

    def round(self, number: int) -> Path:
        """Folder of one round's files."""
        path = self.path / f"round-{number}"
        path.mkdir(exist_ok=True)
        return path

    @property
    def identity(self) -> str:
        """A name of this run that no other has, under which the ledger keeps its requests."""
        path = self.path / "identity"
        if not path.is_file():
            write_atomically(path, secrets.token_hex(8).encode())
        return path.read_text(encoding="utf-8")

    @property
    def curve(self) -> Path:
        """The learning curve as CSV."""
        return self.path / "curve.csv"

    @property
    def result(self) -> Path:
        """What came out."""
        return self.path / "result.json"

    def read_result(self) -> dict[str, Any]:
        """The contents of `result.json`.

        Raises:
            RunDirectoryError: if the run has not finished.
        """
        if not self.result.is_file():
            raise RunDirectoryError(f"{self.path} has no result.json yet: repeat the command that began it")
        value: dict[str, Any] = json.loads(self.result.read_text(encoding="utf-8"))
        return value


CURVE_COLUMNS = ("steps", "return_mean", "return_std", "episodes")


class CurveFile:
    """A learning curve on disk, line by line: total environment steps against recent training returns.

    A line is written as soon as it is known, so that a process that is killed loses none that its
    last checkpoint counts on.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def add(self, steps: int, mean: float, spread: float, episodes: int) -> None:
        """Add a line; later ones, of steps that a resumed training takes again, are dropped."""
        if self._file is None:
            buffer = io.StringIO()
            writer = csv.writer(buffer, lineterminator="\n")
            writer.writerow(CURVE_COLUMNS)
            kept = [row for row in read_curve(self._path) if row[0] < steps]
            writer.writerows([int(row[0]), row[1], row[2], int(row[3])] for row in kept)
            write_atomically(self._path, buffer.getvalue().encode())
            self._file = self._path.open("a", encoding="utf-8", newline="")
        row = [steps, mean, spread, episodes]
        check_finite(row, self._path.name)
        csv.writer(self._file, lineterminator="\n").writerow(row)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_curve(path: Path) -> list[list[float]]:
    """Rows of a learning curve; an empty list if there is none. A last line that is not whole is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]
    return [[float(x) for x in row] for row in csv.reader(line for line in lines if line.endswith("\n"))]
