"""Study files, validated before anything runs, and the runs that follow from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ultra.common.errors import PolicyError, UltraError
from ultra.common.records import canonical, closest, record_from
from ultra.config import RefineConfig, TrainConfig, takes_advice
from ultra.policies.opening import SHIPPED_PREFIX, shipped

DECIDED = ("task", "policy", "vecnormalize", "trust_pickle", "method", "analyst", "seed", "workers")
"""Settings that the study decides for each run."""


@dataclass(frozen=True)
class StudyTask:
    """A task of a study, and the policy that all methods start from there."""

    name: str
    """In tables and directories."""
    task: str = ""
    """A known task or a Gymnasium id; default: the name."""
    policy: str = ""
    """The starting policy, a directory of ours or a zip of Stable-Baselines3, relative to the study file, or
    `shipped:NAME`; default: the shipped one."""
    vecnormalize: str = ""
    """VecNormalize statistics of a zip, relative to the study file; by default they are looked for beside it."""
    trust_pickle: bool = False
    """Run the pickle of the statistics, with whatever code it holds, if it cannot be read without."""
    train: Mapping[str, Any] | None = None
    """Settings of `ultra train`, if the study is to train the starting policy itself; perhaps on another `task`."""
    reference: float | None = None
    """The return that counts as a normalised score of 1; default: the best method's mean in the study."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `ultra refine` for this task."""
    turn: int = 1
    """All seeds of the tasks of an earlier turn come before those of a later one."""

    @property
    def environment(self) -> str:
        """The task's name on the command line."""
        return self.task or self.name

    @property
    def start(self) -> tuple[Any, ...]:
        """What decides which policy all runs start from, and where."""
        return self.environment, self.policy, self.vecnormalize, self.train


@dataclass(frozen=True)
class StudyMethod:
    """A method of a study."""

    name: str
    """In tables and directories."""
    method: str = ""
    """As in `ultra refine --method`; default: the name."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `ultra refine` for this method."""

    @property
    def advised(self) -> bool:
        """Whether it takes an analyst's advice."""
        return takes_advice(self.method or self.name)


@dataclass(frozen=True)
class StudyAnalyst:
    """An analyst of a study."""

    name: str
    """In tables and directories."""
    analyst: str = ""
    """As in `ultra refine --analyst`; default: the name."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `ultra refine` for this analyst."""


@dataclass(frozen=True)
class MainComparison:
    """The comparison for which a study is made; all others are exploratory."""

    method: str
    """A method of the study, with its analyst as tables show it: `ultra-ra (search)`."""
    against: str = ""
    """What it is compared with; default: the baseline."""


@dataclass(frozen=True)
class Contender:
    """A method with its analyst, if it takes advice."""

    method: StudyMethod
    analyst: StudyAnalyst | None = None

    @property
    def name(self) -> str:
        """As tables and legends show it."""
        return f"{self.method.name} ({self.analyst.name})" if self.analyst else self.method.name


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        name: of its directory.
        path: the run directory.
        log: what the run prints; whoever holds this file's lock holds the run.
        config: settings of training a starting policy, or of refining one.
        shared: folder of the analyses that runs share; None for runs that do their own.
    """

    name: str
    path: Path
    log: Path
    config: RefineConfig | TrainConfig
    shared: Path | None = None

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.path / "result.json").is_file()

    @property
    def error(self) -> str:
        """Why it failed when it was last tried, in one line; empty if it did not."""
        path = self.path / "error.txt"
        return path.read_text(encoding="utf-8").strip() if path.is_file() and not self.finished else ""


@dataclass(frozen=True)
class Study:
    """A study file."""

    tasks: tuple[StudyTask, ...]
    """A list of names, or a mapping from names to their settings; so are `methods` and `analysts`."""
    methods: tuple[StudyMethod, ...]
    """Methods to compare."""
    analysts: tuple[StudyAnalyst, ...] = (StudyAnalyst("search"),)
    """Analysts for the methods that take advice."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each contender runs once with each."""
    baseline: str = "ppo"
    """The method that the others are compared with."""
    main: MainComparison | None = None
    """The comparison that was planned; without one all are reported as exploratory."""
    about: str = ""
    """What the study is for; shown in the report."""
    cores: int = 1
    """Cores of one run."""
    llm_requests: int = 8
    """Requests to language models under way at once, over all runs together."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `ultra refine` for all runs; those of task, method and analyst take precedence, in this order."""

    def __post_init__(self) -> None:
        for axis in ("tasks", "methods", "analysts", "seeds"):
            values = getattr(self, axis)
            if not values and axis != "analysts":
                raise UltraError(f"{axis} is empty: name at least one")
            names = [value if axis == "seeds" else slug(value.name) for value in values]
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise UltraError(f"{axis} has {twice[0]!r} twice: give each its own name")
        for name in ("cores", "llm_requests"):
            if getattr(self, name) < 1:
                raise UltraError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if not self.contenders:
            raise UltraError("every method takes advice and analysts is empty: name at least one analyst")
        for task in self.tasks:
            for contender in self.contenders:
                self.config(task, contender, self.seeds[0], Path())
            if task.train is not None:
                self.training(task)
        names = [contender.name for contender in self.contenders]
        if self.baseline not in names:
            hint = closest(self.baseline, names)
            raise UltraError(f"baseline {self.baseline!r} is not in the study: {hint} (set `baseline`)")
        self._check_planned(names)

    def _check_planned(self, names: list[str]) -> None:
        for part, name in zip(("method", "against"), self.planned or (), strict=False):
            if name not in names:
                raise UltraError(f"main.{part} {name!r} is not in the study: {closest(name, names)}")
        if self.planned and self.planned[0] == self.planned[1]:
            raise UltraError(f"main compares {self.planned[0]!r} with itself: give another `against`")

    @property
    def planned(self) -> tuple[str, str] | None:
        """The contenders of the main comparison."""
        return (self.main.method, self.main.against or self.baseline) if self.main else None

    @property
    def contenders(self) -> list[Contender]:
        """Methods, times analysts where they take advice."""
        return [
            Contender(method, analyst)
            for method in self.methods
            for analyst in (self.analysts if method.advised else (None,))
        ]

    def config(self, task: StudyTask, contender: Contender, seed: int, policies: Path) -> RefineConfig:
        """The settings of one run."""
        method, analyst = contender.method, contender.analyst
        layers = [(self.settings, "settings"), (task.settings, f"tasks.{task.name}.settings")]
        layers.append((method.settings, f"methods.{method.name}.settings"))
        if analyst:
            layers.append((analyst.settings, f"analysts.{analyst.name}.settings"))
        merged: dict[str, Any] = {}
        for layer, where in layers:
            _refuse_decided(layer, where)
            record_from(RefineConfig, {"task": task.environment, **layer}, where)  # an error names its own layer
            merged = _merge(merged, canonical(RefineConfig, layer, where))
        decided = {
            "task": task.environment, "policy": str(policies / slug(task.name)), "method": method.method or method.name,
            "seed": seed, "workers": self.cores,
        }  # fmt: skip
        if analyst:
            decided["analyst"] = analyst.analyst or analyst.name
        return record_from(RefineConfig, merged | decided, f"{task.name}, {contender.name}")

    def training(self, task: StudyTask) -> TrainConfig:
        """The settings with which the starting policy of a task is trained."""
        where = f"tasks.{task.name}.train"
        settings = dict(task.train or {})
        if "workers" in settings:
            raise UltraError(f"{where}.workers cannot be set: `cores` of the study decides it")
        return record_from(TrainConfig, {"task": task.environment, **settings, "workers": self.cores}, where)

    def trainings(self, out: Path) -> list[Job]:
        """The runs that make starting policies."""
        tasks = [task for task in self.tasks if task.train is not None]
        return [
            Job(name, out / "policies" / slug(task.name), out / "logs" / f"{name}.txt", self.training(task))
            for task in tasks
            for name in [f"train-{slug(task.name)}"]
        ]

    def refinements(self, out: Path) -> list[Job]:
        """The runs that are compared, in the order of the grid."""
        return [self.job(out, task, contender, seed) for seed, task, contender in self.grid()]

    def grid(self) -> list[tuple[int, StudyTask, Contender]]:
        """Seed, task and contender of every refinement.

        Within a turn seeds go outermost, so that a study that is stopped has compared all methods on fewer seeds.
        """
        return [
            (seed, task, contender)
            for turn in sorted({task.turn for task in self.tasks})
            for seed in self.seeds
            for task in self.tasks
            if task.turn == turn
            for contender in self.contenders
        ]

    def job(self, out: Path, task: StudyTask, contender: Contender, seed: int) -> Job:
        """One refinement."""
        parts = [task.name, contender.method.name, *([contender.analyst.name] if contender.analyst else []), str(seed)]
        name = "-".join(slug(part) for part in parts)
        config = self.config(task, contender, seed, out / "policies")
        config = replace(config, llm=replace(config.llm, permits=str(out / "permits")))
        shared = None if config.analysis_seed is None else out / "analyses"
        return Job(name, out / "runs" / name, out / "logs" / f"{name}.txt", config, shared)


def read_study(value: Any, source: str) -> Study:
    """A study from the plain values of its file.

    Args:
        value: what the file holds.
        source: the file, for errors.

    Raises:
        UltraError: naming what is wrong and where.
    """
    if not isinstance(value, Mapping):
        raise UltraError(f"{source} must hold a study (tasks, methods, seeds, ...), not {value!r}")
    try:
        plain = {name: _entries(name, item) if name in ("tasks", "methods", "analysts") else item
                 for name, item in value.items()}  # fmt: skip
        return record_from(Study, plain)
    except UltraError as error:
        raise UltraError(f"{source}: {error}") from error


def load_study(path: Path) -> Study:
    """Read a study file (YAML)."""
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UltraError(f"cannot read the study {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UltraError(f"the study {path} is no YAML: {' '.join(str(error).split())}") from error
    return read_study(raw, str(path))


def shipped_policy(task: StudyTask, folder: Path) -> Path:
    """Where the starting policy of a task lies.

    Args:
        task: whose.
        folder: that of the study file.

    Raises:
        UltraError: if none is named and none ships with the package.
    """
    name = task.policy.removeprefix(SHIPPED_PREFIX) or task.environment
    if task.policy and not task.policy.startswith(SHIPPED_PREFIX):
        return folder / task.policy
    try:
        return shipped(name)
    except PolicyError as error:
        raise UltraError(
            f"tasks.{task.name}: {error}: give `policy: DIR`, or `train: {{steps: N}}` to train one"
        ) from error


def slug(name: str) -> str:
    """A name as part of a directory's name."""
    return re.sub(r"[^A-Za-z0-9.+]+", "_", name).strip("_.") or "_"


def _entries(axis: str, value: Any) -> Any:
    """Names, or names with settings, as records' plain values."""
    if isinstance(value, Mapping):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = [(name, None) for name in value]
    else:
        raise UltraError(f"{axis} is {value!r}, but must be a list of names, or a mapping from names to settings")
    for name, item in entries:
        if not isinstance(item, Mapping | None):
            raise UltraError(f"{axis}.{name} must hold settings by name, not {item!r}")
    kind: type[Any] = {"tasks": StudyTask, "methods": StudyMethod, "analysts": StudyAnalyst}[axis]
    return [record_from(kind, {**(item or {}), "name": str(name)}, f"{axis}.{name}") for name, item in entries]


def _refuse_decided(settings: Mapping[str, Any], where: str) -> None:
    for name in DECIDED:
        if name in settings:
            raise UltraError(f"{where}.{name} cannot be set: the study decides it for each run")


def _merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in which the second ones take precedence, section by section."""
    merged = dict(first)
    for name, value in second.items():
        old = merged.get(name)
        merged[name] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
