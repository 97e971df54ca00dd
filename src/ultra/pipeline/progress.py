"""What a long command shows: stages, progress bars with steps/s and ETA, TensorBoard logs, curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ultra.pipeline.run import CurveFile
from ultra.ppo.train import Iteration


class Reporter:
    """Shows the progress of a command; with `quiet` only warnings."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False, stderr=True)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text)

    def warn(self, text: str) -> None:
        """What may be wrong: shown in any case."""
        Console(highlight=False, stderr=True).print(f"warning: {text}", markup=False)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """A progress bar over steps; yields a function of the steps so far and a remark."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[remark]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, disable=self.console.quiet, transient=False) as progress:
            task: TaskID = progress.add_task(f"{title:<9}", total=total, rate="", remark="")
            first: int | None = None

            def update(steps: int, remark: str) -> None:
                nonlocal first
                first = steps if first is None else first
                elapsed = progress.tasks[0].elapsed or 0.0
                rate = f"{(steps - first) / elapsed:,.0f}/s" if elapsed > 0.5 and steps > first else ""
                progress.update(task, completed=steps, rate=rate, remark=remark)

            yield update
            progress.update(task, total=progress.tasks[0].completed)


class TrainingLog:
    """Writes TensorBoard events and the learning curve of a training.

    Args:
        run: the run directory.
        offset: environment steps that were spent before this training.
        update: the progress bar.
    """

    def __init__(self, run: Path, offset: int, update: Callable[[int, str], None]) -> None:
        from tensorboardX import SummaryWriter

        self._writer: Any = SummaryWriter(str(run / "tensorboard"), flush_secs=30)
        self._curve = CurveFile(run / "curve.csv")
        self._offset = offset
        self._update = update

    def __call__(self, iteration: Iteration) -> None:
        """Note one iteration."""
        steps = self._offset + iteration.steps
        for name, value in iteration.metrics.items():
            self._writer.add_scalar(name, value, steps)
        remark = ""
        if iteration.returns:
            mean, spread = float(np.mean(iteration.returns)), float(np.std(iteration.returns))
            self._curve.add(steps, mean, spread, len(iteration.returns))
            remark = f"return {mean:.1f}"
        self._update(iteration.steps, remark)

    def close(self) -> None:
        """Flush everything to disk."""
        self._writer.close()
        self._curve.close()
