"""What each verb of the command line takes; docstrings are its `--help` texts."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from tyro.conf import Positional

from ultra.common.settings import Bounds, Settings
from ultra.config import (
    CORES,
    MOST,
    PART,
    SEED,
    WEIGHT,
    EnvironmentConfig,
    LLMConfig,
    RefineConfig,
    ScoreConfig,
    TrainConfig,
)

Config = TypeVar("Config", RefineConfig, TrainConfig)


@dataclass(frozen=True)
class TasksArguments(Settings):
    """List the known tasks."""


@dataclass(frozen=True)
class TrainArguments(TrainConfig):
    """Train a policy from scratch with PPO. The output directory can be given to `refine --policy`.

    Example: ultra train hopper --steps 300000 --out policies/hopper
    """

    task: Positional[str]
    """A known task (`ultra tasks`) or a Gymnasium id."""
    out: Path | None = None
    """Where the policy goes; default: runs/train-TASK-SEED."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True)
class RefineArguments(RefineConfig):
    """Refine a policy: collect, identify, advise, verify, fine-tune, evaluate. Repeat the command to resume.

    Example: ultra refine hopper --policy policies/hopper --method ultra-ra --steps 200000
    """

    task: Positional[str]
    """A known task (`ultra tasks`) or a Gymnasium id."""
    out: Path | None = None
    """Run directory; default: runs/TASK-METHOD-SEED."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True, kw_only=True)
class CollectArguments(RefineConfig):
    """Stage 1: let the policy play and record episodes. A new run directory also needs --task and --policy.

    Example: ultra collect runs/h --task hopper --policy policies/hopper; then ultra identify runs/h, and so on.
    """

    run: Positional[Path]
    """Run directory."""
    task: str = ""
    """A known task (`ultra tasks`) or a Gymnasium id, for a new run directory."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True)
class StageArguments(Settings):
    """One stage of a refinement, on its run directory. The stage before it must be done."""

    run: Positional[Path]
    """Run directory."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(ScoreConfig):
    """Score a policy: whole episodes in Gymnasium's own environment, most likely actions."""

    policy: Positional[Path]
    """Directory of the policy, a zip of Stable-Baselines3 (PPO or A2C), or `shipped:NAME`."""
    task: str
    """A known task (`ultra tasks`) or a Gymnasium id."""
    sticky: Annotated[float, PART] = 0.0
    """Probability that an Atari console repeats the previous action."""
    threshold: Annotated[float, WEIGHT] = 0.0
    """Distance in metres from which on sparse-* tasks reward each step; 0 is the task's default."""
    json: bool = False
    """Print one JSON object."""
    vecnormalize: str = ""
    """VecNormalize statistics of a zip; by default they are looked for beside it, under the usual names."""
    trust_pickle: bool = False
    """Run the pickle of the statistics, with whatever code it holds, if it cannot be read without."""
    env: EnvironmentConfig = field(default_factory=EnvironmentConfig)


@dataclass(frozen=True)
class ProgramsCheckArguments(Settings):
    """Check every program and potential of a file against a task; reports what is wrong, and where.

    Example: ultra programs check controller.json --task Swimmer-v5
    """

    file: Positional[Path]
    """File in the form of docs/programs.md."""
    task: str
    """A known task (`ultra tasks`) or a Gymnasium id."""
    json: bool = False
    """Print one JSON object for each."""
    env: EnvironmentConfig = field(default_factory=EnvironmentConfig)


@dataclass(frozen=True)
class ExportArguments(Settings):
    """Write a policy for use without ULTRA, by the ending of --out.

    NAME.py is one module that needs NumPy alone, with the policy's programs: `policy = Policy()`, `policy.reset()`,
    `policy.act(observation)`. NAME.zip is for Stable-Baselines3 2.x, with VecNormalize statistics where the policy has
    any; it has no place for programs.

    Example: ultra export runs/swimmer/policy/best --out swimmer.py
    """

    policy: Positional[Path]
    """Directory of the policy, a zip of Stable-Baselines3, or `shipped:NAME`."""
    out: Path
    """File to write, NAME.py or NAME.zip; statistics of a zip go beside it, as NAME_vecnormalize.pkl."""
    task: str = ""
    """A known task (`ultra tasks`) or a Gymnasium id, whose spaces are written into a zip. A module needs it only where
    it was not saved with the policy how its programs read their facts."""
    vecnormalize: str = ""
    """VecNormalize statistics of a zip; by default they are looked for beside it, under the usual names."""
    trust_pickle: bool = False
    """Run the pickle of the statistics, with whatever code it holds, if it cannot be read without."""
    env: EnvironmentConfig = field(default_factory=EnvironmentConfig)


@dataclass(frozen=True)
class CardArguments(Settings):
    """Describe an environment as far as possible, in a file to complete and pass to --card.

    Example: ultra card Ant-v5 --out ant.yaml
    """

    env_id: Positional[str]
    """A known task (`ultra tasks`) or a Gymnasium id."""
    out: Path | None = None
    """File to write; by default the card is printed."""
    env: EnvironmentConfig = field(default_factory=EnvironmentConfig)


@dataclass(frozen=True)
class StudyArguments(Settings):
    """Run tasks x methods x analysts x seeds of a study file. Repeat the command to do what is missing or failed.

    Example: ultra study studies/small.yaml --out runs/small
    """

    file: Positional[Path]
    """Study file (YAML)."""
    out: Path
    """Directory of the study; with --on ray on a file system that all machines share."""
    on: Literal["local", "ray"] = "local"
    """Processes on this machine, or tasks on a Ray cluster."""
    address: str = ""
    """Address of the Ray cluster; default: `RAY_ADDRESS`, or a cluster on this machine alone."""
    jobs: Annotated[int, CORES] = 0
    """Runs at once on this machine; 0 is as many as its cores allow."""
    quiet: bool = False
    """Print a line for each finished run instead of a live table."""


@dataclass(frozen=True)
class ReportArguments(Settings):
    """Write tables (CSV, JSON, Markdown), learning curves (PNG) and one HTML page of a finished run or a study."""

    run: Positional[Path]
    """Directory of a run or of a study; a study may be unfinished."""
    out: Path | None = None
    """Where to write; default: the folder `report` in that directory."""


@dataclass(frozen=True)
class FidelityArguments(Settings):
    """Score the critical states of a run: how much does the return change if random actions are taken there?

    The field's measure of an explanation (StateMask, RICE); higher is better. Works for every analyst. Uses windows of
    four lengths and all episodes, played to their ends, where the audit of a run takes a sample.
    """

    run: Positional[Path]
    """Run directory."""
    round: Annotated[int, Bounds(0, 1000)] = 0
    """Round; 0 is the last one with critical states."""
    json: bool = False
    """Print JSON Lines."""


@dataclass(frozen=True)
class PromptArguments(Settings):
    """Print exactly what a language model is sent about an episode, to be pasted into any chat window."""

    run: Positional[Path]
    """Run directory."""
    episode: Annotated[int, Bounds(0, 1_000_000)] = 0
    """Number of the collected episode, from 0."""
    round: Annotated[int, Bounds(0, 1000)] = 0
    """Round; 0 is the last one that has been collected."""
    count: bool = False
    """Print the estimated tokens of all episodes' prompts instead of the prompts."""


@dataclass(frozen=True)
class CheckArguments(Settings):
    """Send one tiny structured request and report what works: output mode, latency, tokens, price.

    Example: ultra llm check local/qwen3 --base-url http://127.0.0.1:11434/v1
    """

    model: Positional[str]
    """PROVIDER/MODEL, with or without `llm:` before it."""
    llm: LLMConfig = field(default_factory=LLMConfig)


@dataclass(frozen=True)
class LedgerArguments(Settings):
    """The requests and answers in the ledger, oldest first."""

    ledger: Path | None = None
    """File of the ledger; default: `ULTRA_LEDGER`, or the user's own data folder."""
    run: Path | None = None
    """Only requests of this run directory."""
    json: bool = False
    """Print JSON Lines."""


@dataclass(frozen=True)
class LedgerCostArguments(LedgerArguments):
    """Requests, answers and tokens in the ledger, and what they cost."""


@dataclass(frozen=True)
class LedgerExportArguments(Settings):
    """Write answers as JSON Lines, for `import` and for `--analyst recorded:FILE`."""

    out: Positional[Path]
    """File to write."""
    ledger: Path | None = None
    """File of the ledger; default: `ULTRA_LEDGER`, or the user's own data folder."""
    run: Path | None = None
    """Only answers that this run directory bought."""
    model: str | None = None
    """Only answers of this model, as it was named in PROVIDER/MODEL."""


@dataclass(frozen=True)
class LedgerImportArguments(Settings):
    """Add the answers of an export to the ledger; those it already has are left alone."""

    file: Positional[Path]
    """File that `ultra ledger export` wrote."""
    ledger: Path | None = None
    """File of the ledger; default: `ULTRA_LEDGER`, or the user's own data folder."""


@dataclass(frozen=True)
class WhyMissArguments(Settings):
    """For each unanswered question of a run, show what differs from the nearest answered one."""

    run: Positional[Path]
    """Run directory."""
    ledger: Path | None = None
    """File of the ledger; default: the run's own, `ULTRA_LEDGER`, or the user's own data folder."""
    against: Path | None = None
    """Compare with this export instead."""


@dataclass(frozen=True)
class QuickstartArguments(Settings):
    """Refine a policy that ships with the package, with ULTRA-RA and with plain PPO, offline."""

    task: Positional[Literal["hopper", "pong"]] = "hopper"
    """Shipped policy to refine."""
    out: Path = Path("quickstart")
    """Where the runs and the picture go."""
    steps: Annotated[int, Bounds(0, MOST)] = 0
    """Budget of environment steps for each method; 0 takes the task's default."""
    seed: Annotated[int, SEED] = 0
    """Seed of everything random."""
    quiet: bool = False
    """Show no progress."""


def settings_of(options: Config, kind: type[Config]) -> Config:
    """The settings of a verb as a plain record, without what only the command line needs."""
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})
