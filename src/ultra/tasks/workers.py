"""A batch spread over worker processes that share memory with this one.

For environments that cannot use several cores from one process. Arrays travel through a shared
file; commands, resets and snapshots through the workers' pipes. Workers are started as
`python -m ultra.tasks.workers`, so that scripts without a main guard and notebooks work as well.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from ultra.common.errors import UltraError, WorkerError
from ultra.tasks.batch import Batch, Facts, Indices, Live, Observations, Snapshot, Step
from ultra.tasks.card import Card
from ultra.tasks.spaces import Actions, ActionSpace, Discrete

_LENGTH = struct.Struct("<Q")


class Remakeable(Protocol):
    """What is to be known of a task, to step its environments in workers."""

    @property
    def name(self) -> str:
        """As on the command line."""

    @property
    def card(self) -> Card:
        """Its facts."""

    @property
    def observation_size(self) -> int:
        """Entries of an observation."""

    @property
    def action_space(self) -> ActionSpace:
        """Actions of the policy."""

    @property
    def image(self) -> tuple[int, int, int] | None:
        """Where observations are images."""

    @property
    def recipe(self) -> Callable[[], Any] | None:
        """Makes the task again in another process; None if no registered function made it."""


def _send(pipe: IO[bytes], message: object) -> None:
    payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(_LENGTH.pack(len(payload)) + payload)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    header = pipe.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    # Both ends are this program: parent and worker pickle only their own messages.
    return pickle.loads(pipe.read(_LENGTH.unpack(header)[0]))


class _Shared:
    """Views of the shared file; every row belongs to one environment."""

    def __init__(self, path: Path, task: Remakeable, size: int, create: bool) -> None:
        action_width = 1 if isinstance(task.action_space, Discrete) else task.action_space.size
        columns = {
            "observations": (np.uint8 if task.image else np.float32, task.observation_size),
            "actions": (np.float32, action_width),
            "rewards": (np.float64, 1),
            "ended": (np.float64, 2),
            "live": (np.float64, 1),
            "facts": (np.float64, len(task.card.facts)),
        }
        total = sum(np.dtype(kind).itemsize * width * size + 64 for kind, width in columns.values())
        if create:
            path.write_bytes(bytes(total))
        # As a plain array: every operation on views of a `memmap` costs microseconds more.
        memory = np.asarray(np.memmap(path, dtype=np.uint8, mode="r+", shape=(total,)))
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        offset = 0
        for name, (kind, width) in columns.items():
            length = np.dtype(kind).itemsize * width * size
            self.arrays[name] = memory[offset : offset + length].view(kind).reshape(size, width)
            offset += (length + 63) // 64 * 64


class WorkerBatch:
    """Environments of one task in `workers` processes, several in each.

    Args:
        task: made again by its recipe in each worker.
        maker: name of the task's method that makes a batch of a given size.
        size: environments in all.
        workers: processes.

    Raises:
        UltraError: if workers cannot make the task, or for errors the user can fix.
        WorkerError: when a worker fails or dies; its traceback is a note of the error.
    """

    def __init__(self, task: Remakeable, maker: str, size: int, workers: int) -> None:
        if task.recipe is None:
            raise UltraError(
                f"worker processes cannot make the task {task.name!r}, which no registered function made: "
                "see ultra.tasks.register, or use one worker (--workers 1)"
            )
        workers = min(size, workers)
        self._name = task.name
        self._discrete = isinstance(task.action_space, Discrete)
        self._bounds = [size * k // workers for k in range(workers + 1)]
        memory = Path("/dev/shm")  # a memory-backed folder where there is one
        folder = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
        handle, name = tempfile.mkstemp(prefix="ultra-", dir=folder)
        os.close(handle)
        path = Path(name)
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            self._shared = _Shared(path, task, size, create=True)
            self._size = size
            for _ in range(workers):
                command = [sys.executable, "-m", "ultra.tasks.workers"]
                self._processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            for k in range(workers):
                # What this process can import, a worker can import as well.
                self._post(k, sys.path, task.recipe, maker, size, *self._bounds[k : k + 2], name)
            for k in range(workers):
                self._reply(k)
        except BaseException:
            for process in self._processes:
                process.kill()  # they are still at work on their environments and would not see the pipe close
            self.close()
            raise
        finally:
            path.unlink()  # the mappings keep the memory alive

    @property
    def size(self) -> int:
        """Number of environments."""
        return self._size

    def _post(self, worker: int, *message: object) -> None:
        pipe = self._processes[worker].stdin
        assert pipe is not None
        try:
            _send(pipe, message)
        except BrokenPipeError as error:
            raise self._ended(worker) from error

    def _reply(self, worker: int) -> Any:
        pipe = self._processes[worker].stdout
        assert pipe is not None
        try:
            kind, value = _receive(pipe)
        except EOFError as error:
            raise self._ended(worker) from error
        if kind == "refused":
            raise UltraError(
                f"worker processes cannot make the task: {value}; what a script registers must lie in a module that "
                "they can import (a Gymnasium id as `module:id`), or use one worker (--workers 1)"
            )
        if kind in ("wrong", "error"):
            text, trace = value
            wrong = UltraError(text) if kind == "wrong" else WorkerError(f"environment worker {worker} failed: {text}")
            wrong.add_note(f"In the worker:\n{trace}")
            raise wrong
        return value

    def _ended(self, worker: int) -> WorkerError:
        """What is known of a worker that is gone."""
        try:
            status = self._processes[worker].wait(timeout=5)
        except subprocess.TimeoutExpired:
            return WorkerError(f"{self._name}: environment worker {worker} has closed its pipes")
        if status >= 0:
            return WorkerError(f"{self._name}: environment worker {worker} has ended with status {status}")
        known = {
            signal.SIGSEGV: ", a crash in the environment's native code",
            signal.SIGABRT: ", a crash in the environment's native code",
            signal.SIGKILL: ", as the system does where memory runs out: fewer --workers need less",
        }
        try:
            number = signal.Signals(-status)
        except ValueError:
            return WorkerError(f"{self._name}: environment worker {worker} has ended by signal {-status}")
        why = known.get(number, "")
        return WorkerError(f"{self._name}: environment worker {worker} has ended by {number.name}{why}")

    def _all(self, command: str) -> None:
        for worker in range(len(self._processes)):
            self._post(worker, command)
        for worker in range(len(self._processes)):
            self._reply(worker)

    def _scatter(self, command: str, indices: Indices, values: Sequence[Any] | None) -> list[Any]:
        """Send each worker its environments; returns the answers in the order of `indices`."""
        wanted = np.asarray(indices, dtype=np.intp)
        owners = np.searchsorted(self._bounds, wanted, side="right") - 1
        busy = sorted(set(owners.tolist()))
        for worker in busy:
            places = np.flatnonzero(owners == worker)
            local = (wanted[places] - self._bounds[worker]).tolist()
            self._post(worker, command, local, None if values is None else [values[int(p)] for p in places])
        answers: list[Any] = [None] * len(wanted)
        for worker in busy:
            reply = self._reply(worker)
            if reply is not None:
                for place, answer in zip(np.flatnonzero(owners == worker), reply, strict=True):
                    answers[place] = answer
        return answers

    def reset(self, indices: Indices, seeds: Sequence[int]) -> Observations:
        """Start new episodes."""
        self._scatter("reset", indices, [int(seed) for seed in seeds])
        return self._observations()[np.asarray(indices, dtype=np.intp)]

    def _observations(self) -> Observations:
        observations: Observations = self._shared.arrays["observations"]
        return observations.copy()

    def step(self, actions: Actions, live: Live = None) -> Step:
        """Step the environments, each worker its own."""
        arrays = self._shared.arrays
        arrays["live"][:, 0] = True if live is None else live
        arrays["actions"][:] = actions[:, None] if self._discrete else actions
        self._all("step")
        ended = arrays["ended"] != 0
        return Step(self._observations(), arrays["rewards"][:, 0].copy(), ended[:, 0], ended[:, 1])

    def facts(self) -> Facts:
        """The named quantities of the current states."""
        self._all("facts")
        facts: Facts = self._shared.arrays["facts"].copy()
        return facts

    def snapshots(self, indices: Indices) -> list[Snapshot]:
        """Save the complete states of some environments."""
        return self._scatter("snapshots", indices, None)

    def restore(self, indices: Indices, snapshots: Sequence[Snapshot]) -> Observations:
        """Put saved states back."""
        self._scatter("restore", indices, snapshots)
        return self._observations()[np.asarray(indices, dtype=np.intp)]

    def restart_clock(self, indices: Indices) -> None:
        """Give some environments a full time limit again."""
        self._scatter("restart_clock", indices, None)

    def close(self) -> None:
        """End the workers."""
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # the worker may have ended already
                        pipe.close()
        for process in self._processes:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answer(batch: Batch, arrays: dict[str, Any], discrete: bool, message: tuple[Any, ...]) -> Any:
    """Carry out one command in a worker; `arrays` are the rows of its environments."""
    match message:
        case ("step",):
            actions = arrays["actions"]
            live = arrays["live"][:, 0] != 0
            step = batch.step(actions[:, 0].astype(np.int64) if discrete else actions, None if live.all() else live)
            arrays["observations"][:] = step.observations
            arrays["rewards"][:, 0] = step.rewards
            arrays["ended"][:, 0], arrays["ended"][:, 1] = step.terminated, step.truncated
        case ("facts",):
            arrays["facts"][:] = batch.facts()
        case ("reset", indices, seeds):
            arrays["observations"][indices] = batch.reset(indices, seeds)
        case ("restore", indices, snapshots):
            arrays["observations"][indices] = batch.restore(indices, snapshots)
        case ("snapshots", indices, None):
            return batch.snapshots(indices)
        case ("restart_clock", indices, None):
            batch.restart_clock(indices)
        case _:
            raise WorkerError(f"unknown command {message[0]!r}")
    return None


def _work() -> None:
    """A worker: make the environments, then answer commands until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    commands = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a simulator prints must not mix with the answers
    try:
        sys.path[:], recipe, maker, size, start, stop, path = _receive(commands)
        try:
            task = recipe()
            batch: Batch = getattr(task, maker)(stop - start)
        except UltraError as error:
            _send(answers, ("refused", str(error)))
            return
        discrete = isinstance(task.action_space, Discrete)
        shared = _Shared(Path(path), task, size, create=False)
        arrays = {key: array[start:stop] for key, array in shared.arrays.items()}
        _send(answers, ("done", None))
        while True:
            try:
                message = _receive(commands)
            except EOFError:
                break
            _send(answers, ("done", _answer(batch, arrays, discrete, message)))
        batch.close()
    except BrokenPipeError:
        pass  # the parent has gone
    except UltraError as error:  # user-fixable, as in the parent
        _send(answers, ("wrong", (str(error), traceback.format_exc())))
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        _send(answers, ("error", (text, traceback.format_exc())))


if __name__ == "__main__":
    _work()
