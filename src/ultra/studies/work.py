"""One run of a study, in a process of its own: what it is doing, what it says and why it failed are files."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from rich.console import Console

from ultra.common.errors import UltraError
from ultra.common.files import to_json_text, write_atomically
from ultra.common.locks import LOCK_FILES, hold_directory
from ultra.config import RefineConfig
from ultra.pipeline.progress import Reporter
from ultra.pipeline.refinement import Refinement
from ultra.pipeline.training import train_policy
from ultra.studies.plan import Job

ATTEMPTS = "attempts.jsonl"
"""In a run directory: when and where the run was tried, and how long that took."""
BETWEEN = 2.0
"""Seconds between two notes of a run's progress."""


def thread_limits(cores: int) -> dict[str, str]:
    """Environment variables that limit a process and its children to a number of cores."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NPROC")
    eigen = f"--xla_cpu_multi_thread_eigen={'true' if cores > 1 else 'false'}"
    return {**dict.fromkeys(names, str(cores)), "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {eigen}".strip()}


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    stage: str
    steps: int = 0
    total: int = 0
    rate: float = 0.0
    remark: str = ""

    @classmethod
    def of(cls, run: Path, since: float) -> Progress | None:
        """What a run noted last, unless that was before the time `since`."""
        path = run / "progress.json"
        with suppress(OSError, ValueError, TypeError):
            if path.stat().st_mtime >= since:
                return cls(**json.loads(path.read_text(encoding="utf-8")))
        return None


class NotedProgress(Reporter):
    """Writes what a run says into its log, and how far it is into `progress.json`."""

    def __init__(self, run: Path, log: IO[bytes]) -> None:
        super().__init__(quiet=True)
        self._run, self._log = run, log
        self._console = Console(file=open(log.fileno(), "w", closefd=False, encoding="utf-8"), highlight=False)  # noqa: SIM115

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False, soft_wrap=True)
        if text[:1].strip():
            self.note(Progress(text.split(maxsplit=1)[0]))

    def warn(self, text: str) -> None:
        """What may be wrong."""
        self.say(f"warning: {text}")

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Notes about a stage that counts steps, not more often than every two seconds."""
        first: int | None = None
        began = last = time.monotonic()
        self.say(f"{title:<9} {total:,} steps")

        def update(steps: int, remark: str) -> None:
            nonlocal first, last
            now = time.monotonic()
            first = steps if first is None else first
            if now - last >= BETWEEN:
                last = now
                self.note(Progress(title.strip(), steps, total, (steps - first) / (now - began), remark))

        yield update

    def note(self, progress: Progress) -> None:
        """Put the progress where the study looks for it."""
        if (self._run / "run.json").is_file():  # before that, the directory must stay empty
            temporary = self._run / ".progress.tmp"
            temporary.write_text(to_json_text(asdict(progress), "progress.json"), encoding="utf-8")
            temporary.replace(self._run / "progress.json")


def work(job: Job) -> str:
    """Do one run, or go on with it; returns its error in one line, or nothing.

    Another process that has begun the same run and is still alive is waited for, so that a run that was given
    up too early is never done twice.
    """
    if not job.log.parent.is_dir():
        return f"{job.log.parent} is not visible on this machine: --out must lie on a file system that all share"
    with hold_directory(job.path, patience=math.inf), job.log.open("ab") as log:
        if job.finished:
            return ""
        _tidy(job.path)
        began, failure = time.time(), ""
        try:
            _run(job, NotedProgress(job.path, log))
        except Exception as error:
            log.write(traceback.format_exc().encode())
            failure = record_error(job, describe_error(error))
        attempt = {"host": platform.node(), "began": began, "seconds": time.time() - began, "error": failure}
        with (job.path / ATTEMPTS).open("a", encoding="utf-8") as file:
            file.write(to_json_text(attempt, ATTEMPTS) + "\n")
        (job.path / "progress.json").unlink(missing_ok=True)
        return failure


def describe_error(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UltraError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def record_error(job: Job, error: str) -> str:
    """Keep the error of a run in its directory; returns it."""
    with suppress(OSError, UltraError):
        job.path.mkdir(parents=True, exist_ok=True)
        write_atomically(job.path / "error.txt", f"{error}\n".encode())
    return error


def _run(job: Job, reporter: NotedProgress) -> None:
    if isinstance(job.config, RefineConfig):
        Refinement.start(job.path, job.config, reporter, job.shared).run_all()
    else:
        train_policy(job.path, job.config, reporter)


def _tidy(run: Path) -> None:
    """Take away what an earlier try left: its error, and all files of a run that had not begun yet."""
    if not (run / "run.json").is_file():
        for path in run.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in LOCK_FILES:
                path.unlink()
    (run / "error.txt").unlink(missing_ok=True)


def seconds_of(run: Path) -> float:
    """Wall-clock seconds that a run took, without tries that were killed."""
    path = run / ATTEMPTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return float(sum(json.loads(line)["seconds"] for line in lines))
