"""The runs of a study as tasks of a Ray cluster (extra `ray`).

Each run is one task. When the machine or process that does it dies, Ray does the task again
elsewhere, where it goes on from its run directory; that therefore lies on a file system that all
machines share. The worker of a run holds its lock, so that a machine that was given up too early and
its successor never write at the same time, and a result that is there is never made again.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any

from ultra.common.errors import UltraError
from ultra.config import RefineConfig
from ultra.studies.plan import Job
from ultra.studies.work import describe_error, record_error, thread_limits, work

RETRIES = 20
"""How often a run is given to another machine after one has died under it."""


class RayPool:
    """Tasks on a Ray cluster.

    Args:
        address: of the cluster; empty for `RAY_ADDRESS`, or a cluster of this machine alone.
        cores: cores of each run.

    Raises:
        UltraError: if Ray is not installed or the cluster cannot be reached.
    """

    def __init__(self, address: str, cores: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise UltraError("--on ray needs Ray: pip install 'ultra-refine[ray]'") from error
        self._ray: Any = ray
        self._started = not ray.is_initialized()
        if self._started:
            try:
                ray.init(address=address or None, log_to_driver=False, logging_level=logging.WARNING)
            except (ConnectionError, RuntimeError, ValueError) as error:
                where = address or os.environ.get("RAY_ADDRESS", "this machine")
                raise UltraError(
                    f"no Ray cluster can be used at {where} ({describe_error(error)}): start one with "
                    "`ray start --head` and give its --address"
                ) from error
        # One process for each task: what a run has allocated and its number of threads go with it.
        self._task: Any = ray.remote(num_cpus=cores, max_retries=RETRIES, max_calls=1)(work_on_cluster)
        self._cores = cores
        self._jobs: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        """Take on a run; Ray begins it when there is room."""
        job = with_own_ledger(job)
        self._jobs[self._task.remote(job, self._cores)] = job

    def wait(self, timeout: float) -> list[tuple[Job, str]]:
        """Runs that have ended since."""
        ready, _ = self._ray.wait(list(self._jobs), num_returns=1, timeout=timeout)
        return [(job, self._outcome(reference, job)) for reference in ready for job in [self._jobs.pop(reference)]]

    def stop(self) -> None:
        """Cancel what is left, and leave the cluster."""
        for reference in self._jobs:
            self._ray.cancel(reference, force=True)
        self._jobs.clear()
        if self._started:
            self._ray.shutdown()

    def _outcome(self, reference: Any, job: Job) -> str:
        try:
            error: str = self._ray.get(reference)
        except self._ray.exceptions.RayError as failure:
            return record_error(job, f"given up by Ray: {describe_error(failure)}")
        return error


def with_own_ledger(job: Job) -> Job:
    """The run with a ledger of its own in the study's directory, unless the study names one.

    The user's ledger lies on each machine's own disk and would be lost with it; and SQLite must not be
    shared over a network.
    """
    config = job.config
    if not isinstance(config, RefineConfig) or config.llm.ledger:
        return job
    ledger = job.path.parent.parent / "ledgers" / f"{job.name}.sqlite"
    return replace(job, config=replace(config, llm=replace(config.llm, ledger=str(ledger))))


def work_on_cluster(job: Job, cores: int) -> str:
    """Do one run in a Ray worker; returns its error in one line, or nothing."""
    os.environ.update(thread_limits(cores))
    return work(job)
