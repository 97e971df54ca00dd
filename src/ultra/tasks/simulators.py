"""`mujoco.rollout` on several threads, of which the calling one is the first."""

from __future__ import annotations

import weakref
from queue import SimpleQueue
from threading import Thread
from typing import Any

import mujoco
import numpy as np
from mujoco import rollout
from numpy.typing import NDArray

Array = NDArray[np.float64]

CHUNKS = 2
"""Pieces for each thread of a pool: the library's default of ten spends a tenth of the time on handing them out."""


class Simulators:
    """Steps states of one model, the first part of them on the calling thread, the rest beside it.

    The library's own pool lets the caller wait, and one thread more must wake up: with two threads that takes
    5 to 12% longer (Hopper and HalfCheetah, 20 to 128 states).

    Args:
        model: of all states.
        threads: how many work, the caller included.
    """

    def __init__(self, model: mujoco.MjModel, threads: int) -> None:
        self._threads = threads
        self._caller = _Part(model, 1)
        self._tasks: SimpleQueue[Any] = SimpleQueue()
        if threads > 1:
            beside = _Part(model, threads - 1)
            Thread(target=_work, args=(beside, self._tasks), name="simulators", daemon=True).start()
        self.close = weakref.finalize(self, self._tasks.put, None)
        """Stop the threads."""

    def step(self, states: Array, controls: Array, trace: Array) -> None:
        """Step n states, each by itself: the result does not depend on the number of threads.

        Args:
            states: (n, state size), full physics.
            controls: (n, physics steps, controls).
            trace: (n, physics steps, state size), filled with the states after each physics step.

        Raises:
            RuntimeError: after `close`.
        """
        if not self.close.alive:
            raise RuntimeError("a step was asked for after the simulators were closed")
        own = -(-len(states) // self._threads)
        if own == len(states):
            self._caller.step(states, controls, trace)
            return
        # A queue of its own: what an interrupted step leaves behind is not taken for the result of the next.
        result: SimpleQueue[BaseException | None] = SimpleQueue()
        self._tasks.put((result, states[own:], controls[own:], trace[own:]))
        self._caller.step(states[:own], controls[:own], trace[:own])
        if (error := result.get()) is not None:
            raise error


class _Part:
    """What steps one part of the states: the thread that calls it, or a pool of the library."""

    def __init__(self, model: mujoco.MjModel, threads: int) -> None:
        self._model = model
        self._data = [mujoco.MjData(model) for _ in range(threads)]
        self._rollout = rollout.Rollout(nthread=threads if threads > 1 else 0)

    def step(self, states: Array, controls: Array, trace: Array) -> None:
        if len(states):  # the library crashes on an empty batch
            self._rollout.rollout(
                [self._model] * len(states),
                self._data,
                states,
                controls,
                nstep=controls.shape[1],
                state=trace,
                chunk_size=-(-len(states) // (CHUNKS * len(self._data))),
                skip_checks=True,
            )


def _work(part: _Part, tasks: SimpleQueue[Any]) -> None:
    """The thread beside the caller's; it holds nothing of `Simulators`, so that these can be collected."""
    while (task := tasks.get()) is not None:
        result, *arrays = task
        try:
            part.step(*arrays)
            result.put(None)
        except BaseException as error:
            result.put(error)
