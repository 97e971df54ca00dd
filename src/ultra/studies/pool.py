"""Execution of the runs of a study: the protocol, and a pool of processes on this machine."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Literal, Protocol

from ultra.common.errors import UltraError
from ultra.studies.plan import Job
from ultra.studies.work import record_error, thread_limits, work

PATIENCE = 10.0
"""Seconds that a run has to end after a signal."""


class Pool(Protocol):
    """Executes runs, several at once."""

    def submit(self, job: Job) -> None:
        """Queue a run."""

    def wait(self, timeout: float) -> list[tuple[Job, str]]:
        """Runs that have ended since the last call, each with its error in one line, empty if it succeeded.

        Args:
            timeout: seconds after which to return without one.
        """

    def stop(self) -> None:
        """End all runs, by force if need be; they can be continued later."""


def make_pool(on: Literal["local", "ray"], address: str, jobs: int, cores: int) -> Pool:
    """A pool on this machine or on a Ray cluster.

    Args:
        on: this machine or a Ray cluster.
        address: of the Ray cluster.
        jobs: runs at once on this machine; 0 is as many as its cores allow.
        cores: cores of each run.
    """
    if on == "ray":
        from ultra.studies.cluster import RayPool

        return RayPool(address, cores)
    if address:
        raise UltraError(f"--address {address} is for --on ray")
    if jobs < 0:
        raise UltraError(f"--jobs is {jobs}, but must be at least 0")
    return LocalPool(jobs or max(1, (os.cpu_count() or 1) // cores), cores)


class LocalPool:
    """One process for each run on this machine, several at once.

    Args:
        slots: runs at once.
        cores: cores of each.
    """

    def __init__(self, slots: int, cores: int) -> None:
        self._slots, self._cores = slots, cores
        self._waiting: deque[Job] = deque()
        self._running: dict[int, tuple[SpawnProcess, Job]] = {}

    def submit(self, job: Job) -> None:
        """Queue a run."""
        self._waiting.append(job)
        self._fill()

    def wait(self, timeout: float) -> list[tuple[Job, str]]:
        """Runs that have ended since."""
        ended = []
        for sentinel in wait(list(self._running), timeout):
            assert isinstance(sentinel, int)
            process, job = self._running.pop(sentinel)
            process.join()
            ended.append((job, _outcome(process, job)))
            process.close()
        self._fill()
        return ended

    def stop(self) -> None:
        """End all processes."""
        self._waiting.clear()
        for process, _ in self._running.values():
            process.terminate()
        for process, _ in self._running.values():
            process.join(PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
        self._running.clear()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._slots:
            job = self._waiting.popleft()
            process = get_context("spawn").Process(target=_child, args=(job,), name=job.name)
            # Ctrl-C reaches all processes of a terminal: the runs leave it to the study, from the start.
            with _environment(thread_limits(self._cores)), _blocked(signal.SIGINT):
                process.start()
            self._running[process.sentinel] = (process, job)


def _outcome(process: SpawnProcess, job: Job) -> str:
    if process.exitcode == 0:
        return ""
    code = process.exitcode or 0
    if code > 0 and job.error:
        return job.error
    how = f"was ended by signal {-code} (out of memory?)" if code < 0 else f"ended with status {code}"
    return record_error(job, f"the process {how}; the end of {job.log} may say why")


def _child(job: Job) -> None:
    """A run's process: what it prints goes into the log, and it does not outlive the study."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with job.log.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.exit(1 if work(job) else 0)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(PATIENCE)
        os._exit(1)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    """A signal waits meanwhile; processes that are started never get it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
