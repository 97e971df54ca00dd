"""The one executor of programs, rules and plans: in simulated branches, in training and in evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.programs.compiled import Compiled
from ultra.programs.tape import PREVIOUS, START, Frame
from ultra.tasks.spaces import Actions, ActionSpace, Continuous

NONE = -1
"""An environment in which no program is followed."""


class Executor:
    """Follows programs in n environments: each environment one of them, with settings of its own.

    What happens in an environment depends on its own program, settings, facts and actions alone, not on the other
    environments or on what was followed in it before.

    Args:
        programs: what may be followed; sets of programs are compiled as one.
        space: of the actions.
        size: number of environments n.
    """

    def __init__(self, programs: Sequence[Compiled], space: ActionSpace, size: int) -> None:
        self.programs = list(programs)
        self._space, self._size = space, size

        def widest(counts: Sequence[int]) -> int:
            return max(counts, default=0)

        self._which = np.full(size, NONE, dtype=np.int64)
        self._settings = np.zeros((size, widest([len(item.settings) for item in programs])))
        self._clocks = np.zeros((size, widest([len(item.clocks) for item in programs])))
        self._memory = np.zeros((size, widest([len(item.memory) for item in programs])))
        self._fresh = np.ones(size, dtype=np.bool_)
        self._episode = np.ones(size, dtype=np.bool_)
        self._looks_back = any(item.reads(PREVIOUS) for item in programs)
        self._looks_to_start = any(item.reads(START) for item in programs)
        self._previous: NDArray[np.float64] | None = None
        self._start: NDArray[np.float64] | None = None
        self._groups: list[tuple[Compiled, slice | NDArray[np.intp]]] | None = None

    @property
    def active(self) -> bool:
        """Whether a program is followed in any environment, so that facts are needed."""
        return bool((self._which >= 0).any())

    def begin(self, environments: Any) -> None:
        """Episodes begin in these environments: clocks, memory and the facts of the start are new."""
        self._fresh[environments] = True
        self._episode[environments] = True

    def assign(self, environments: Any, program: int, settings: Any = None) -> None:
        """Follow a program from the next step on, with the given settings (n_settings,) or its own.

        Its clocks and memory begin there; `start(...)` is the state in that step, as at an episode's beginning.
        """
        compiled = self.programs[program]
        self._which[environments] = program
        self._settings[environments, : len(compiled.settings)] = compiled.settings if settings is None else settings
        self._fresh[environments] = True
        self._groups = None

    def release(self, environments: Any) -> None:
        """Follow nothing in these environments."""
        self._which[environments] = NONE
        self._groups = None

    def act(self, facts: NDArray[np.float64], actions: Actions) -> tuple[Actions, NDArray[np.bool_]]:
        """One step of all environments.

        Args:
            facts: (n, n_facts) of the present states; left unchanged, and kept for the next step.
            actions: (n,) or (n, dim), the agent's own.

        Returns:
            What is done, (n,) or (n, dim), not yet clipped to the bounds; and where a guard held (n,).
        """
        previous = self._look(facts)
        held = np.zeros(self._size, dtype=np.bool_)
        if self._groups is None:
            self._groups = self._grouped()
        if not self._groups:
            return actions, held
        done = actions.copy()
        for compiled, rows in self._groups:
            start = facts if self._start is None else self._start
            agent = self._agent(compiled, actions[rows])
            width = len(compiled.settings), len(compiled.clocks), len(compiled.memory)
            frame = Frame(
                facts[rows],
                previous[rows],
                start[rows],
                agent,
                self._settings[rows, : width[0]],
                self._clocks[rows, : width[1]],
                self._memory[rows, : width[2]],
            )
            if width[1] or width[2]:
                frame = self._advanced(compiled, rows, frame)
            with np.errstate(all="ignore"):  # what is no number is not done, what is infinite is clipped
                done[rows], held[rows] = self._followed(compiled, frame, actions[rows])
        self._fresh[:] = False
        return done, held

    def _look(self, facts: NDArray[np.float64]) -> NDArray[np.float64]:
        """The facts one step before; those of the start are kept."""
        if self._looks_to_start:
            if self._start is None:
                self._start = facts.copy()
            self._start[self._fresh] = facts[self._fresh]
        if not self._looks_back:
            return facts
        previous = facts if self._previous is None else self._previous
        if self._previous is not None and self._episode.any():
            previous = previous.copy()  # it is the caller's array of the last step
            previous[self._episode] = facts[self._episode]
        self._previous = facts
        self._episode[:] = False
        return previous

    def _grouped(self) -> list[tuple[Compiled, slice | NDArray[np.intp]]]:
        groups: list[tuple[Compiled, slice | NDArray[np.intp]]] = []
        for number in np.unique(self._which[self._which >= 0]).tolist():
            rows = np.flatnonzero(self._which == number)
            groups.append((self.programs[number], slice(None) if len(rows) == self._size else rows))
        return groups

    def _agent(self, compiled: Compiled, actions: Actions) -> NDArray[Any]:
        """What programs may read of the agent's own actions."""
        if isinstance(self._space, Continuous) or not compiled.reads_agent:
            agent = actions if actions.ndim == 2 else actions[:, None]
        else:
            agent = actions[:, None] == np.arange(self._space.n)
        return agent.astype(np.float64) if compiled.reads_agent else agent

    def _advanced(self, compiled: Compiled, rows: slice | NDArray[np.intp], frame: Frame) -> Frame:
        """The frame with clocks and memory of this step, which are kept."""
        fresh = self._fresh[rows]
        values = compiled.updates.run(frame)
        clocks, memory = frame.clocks.copy(), frame.memory.copy()
        for column, place in enumerate(compiled.clocks):
            with np.errstate(over="ignore"):
                advanced = clocks[:, column] + values[place]
            kept = np.where(np.isfinite(advanced), advanced, clocks[:, column])
            clocks[:, column] = np.where(fresh, 0.0, kept)
        for column, place in enumerate(compiled.memory):
            value = np.broadcast_to(values[place], fresh.shape)
            kept = np.where(np.isfinite(value), value, memory[:, column])
            memory[:, column] = np.where(fresh, compiled.starts[column], kept)
        self._clocks[rows, : clocks.shape[1]] = clocks
        self._memory[rows, : memory.shape[1]] = memory
        return frame._replace(clocks=clocks, memory=memory)

    def _followed(self, compiled: Compiled, frame: Frame, actions: Actions) -> tuple[Actions, NDArray[np.bool_]]:
        """Actions with a program's assignments, and where a guard held."""
        values = compiled.rules.run(frame)
        done = actions.copy()
        held = np.zeros(len(actions), dtype=np.bool_)
        for effect in compiled.effects:
            value = values[effect.value]
            if effect.adds:
                value = done[:, effect.column] + value
            where = ~np.isnan(value)  # what is no number is not done
            if not compiled.rules.is_true(effect.when):
                where = where & values[effect.when]
            held |= where
            if isinstance(self._space, Continuous):
                np.copyto(done[:, effect.column], value, where=where, casting="same_kind")
            elif effect.column < 0:
                np.copyto(done, value, where=where, casting="unsafe")
            else:
                parts = self._space.split(done)
                np.copyto(parts[:, effect.column], value, where=where, casting="unsafe")
                done = np.ravel_multi_index(tuple(parts.T), self._space.choices)
        return done, held

    def state(self) -> dict[str, Any]:
        """Plain JSON values, for a checkpoint."""
        arrays = {name: getattr(self, f"_{name}") for name in _STATE}
        return {name: None if array is None else _plain(array) for name, array in arrays.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        for name in _STATE:
            kind = np.bool_ if name in ("fresh", "episode") else np.int64 if name == "which" else np.float64
            value = state[name]
            shape = getattr(getattr(self, f"_{name}"), "shape", None)
            array = None if value is None else np.array(value, dtype=kind)
            setattr(self, f"_{name}", array if array is None or shape is None else array.reshape(shape))
        self._groups = None


def _plain(array: NDArray[Any]) -> list[Any]:
    """An array as lists. What JSON does not have (plans end in no numbers, facts may be infinite) becomes text."""
    if array.dtype == np.float64 and not np.isfinite(array).all():
        return [[value if math.isfinite(value) else str(value) for value in row] for row in array.tolist()]
    plain: list[Any] = array.tolist()
    return plain


_STATE = ("which", "settings", "clocks", "memory", "fresh", "episode", "previous", "start")
