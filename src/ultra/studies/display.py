"""What a study shows while it runs: a live table on a terminal, a line for each finished run elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from ultra.config import RefineConfig, takes_advice
from ultra.pipeline.progress import Reporter
from ultra.pipeline.reporting import interval
from ultra.studies.plan import Job
from ultra.studies.work import Progress

LOOKS = 200
"""Most progress files read in a second."""
MOST_SHOWN = 20
"""Rows of the live table, for runs under way and for the last ones that ended each."""


class Display:
    """Shows the progress of a study; a context manager.

    Args:
        reporter: on a terminal, and not quiet: a live table; quiet or elsewhere: lines; None: nothing.
    """

    def __init__(self, reporter: Reporter | None) -> None:
        live = reporter is not None and not reporter.console.quiet and reporter.console.is_terminal
        self.console = Console(quiet=reporter is None, stderr=True, highlight=False)
        self._live = Live(console=self.console, refresh_per_second=2) if live else None
        self._began, self._drawn = time.time(), 0.0
        self._jobs: list[Job] = []
        self._before = 0
        self._ended: list[tuple[Job, str]] = []

    def __enter__(self) -> Display:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._drawn = 0.0
            self.update()
            self._live.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def expect(self, jobs: Sequence[Job]) -> None:
        """Say which runs there will be; those that are done already are counted."""
        self._jobs = list(jobs)
        self._before = sum(job.finished for job in jobs)
        failed = sum(bool(job.error) for job in jobs)
        again = f", {failed} failed before and are tried again" if failed else ""
        self.console.print(f"{len(jobs)} runs: {self._before} done already{again}")
        asking = [job.config for job in jobs if isinstance(job.config, RefineConfig) and not job.finished]
        budgets = [config.llm.budget for config in asking if asks_for_money(config)]
        if budgets:
            most = f"${sum(budgets):,.2f} in all" if all(budgets) else "without a limit in money"
            self.console.print(
                f"{len(budgets)} of them ask a language model and may spend {most} (settings.llm.budget)"
            )

    def ended(self, job: Job, error: str) -> None:
        """Note that a run has ended, with its error if it failed."""
        self._ended.append((job, error))
        if not self._live:
            number = self._before + len(self._ended)
            outcome = f"failed: {error}" if error else f"done    {describe_result(job)}"
            self.console.print(f"[{number}/{len(self._jobs)}] {job.name}  {outcome}", markup=False, soft_wrap=True)

    def update(self) -> None:
        """Draw the table anew; less often if there are many runs, whose files must be looked at."""
        if self._live and time.time() - self._drawn >= len(self._jobs) / LOOKS:
            self._drawn = time.time()
            self._live.update(self._table(), refresh=True)

    # -- the live table ------------------------------------------------------------------------

    def _table(self) -> Group:
        table = Table("run", "stage", "steps", "steps/s", "", box=None, header_style="bold")
        for job, error in self._ended[-MOST_SHOWN:]:
            if error:
                table.add_row(job.name, "[red]failed[/red]", "", "", escape(error))
            else:
                table.add_row(job.name, "[green]done[/green]", "", "", escape(describe_result(job)))
        ended = {job.name for job, _ in self._ended}
        running = [(job, Progress.of(job.path, self._began)) for job in self._jobs if job.name not in ended]
        under_way = [(job, progress) for job, progress in running if progress is not None]
        for job, progress in under_way[:MOST_SHOWN]:
            steps = f"{progress.steps:,}/{progress.total:,}" if progress.total else ""
            rate = f"{progress.rate:,.0f}" if progress.rate else ""
            table.add_row(job.name, progress.stage, steps, rate, escape(progress.remark))
        return Group(table, self._summary(len(under_way)))

    def _summary(self, under_way: int) -> str:
        failed = sum(bool(error) for _, error in self._ended)
        done = self._before + len(self._ended) - failed
        text = f"{done} of {len(self._jobs)} done, {under_way} under way, {failed} failed"
        left = len(self._jobs) - done - failed
        if self._ended and left:
            hours = (time.time() - self._began) / len(self._ended) * left / 3600
            text += f"; about {hours * 60:.0f} min left" if hours < 2 else f"; about {hours:.1f} h left"
        return text


def asks_for_money(config: RefineConfig) -> bool:
    """Whether a run pays for a language model."""
    return takes_advice(config.method) and config.analyst.startswith("llm:")


def describe_result(job: Job) -> str:
    """The return of a finished run, and where it started from."""
    returns = json.loads((job.path / "result.json").read_text(encoding="utf-8"))["return"]
    start = f", from {returns['start']['mean']:.1f}" if "start" in returns else ""
    return f"return {interval(returns['last'])}{start}"
