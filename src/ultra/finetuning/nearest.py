"""The nearest entry of a table, looked up for a batch of states between two steps of the simulator."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ultra.advice.records import AdviceBook
from ultra.tasks.batch import Facts

BY_ONE_THREAD = 2**19 - 1
"""Multiplications that OpenBLAS does not share out among threads. Those would spin on for a tenth of
a second afterwards, which takes a third of the simulator's speed."""


class Nearest:
    """Finds the entry of a book that is nearest to a state, if it lies within the book's radius.

    |x - p|^2 is least where x p - |p|^2 / 2 is greatest: one matrix product compares all states with
    all entries. Facts have a dozen dimensions, in which a k-d tree visits most of its nodes; it takes
    two to five times as long for up to 10,000 entries. The product is made of float32, so which of two
    entries at nearly the same distance counts is a matter of rounding; the radius is not.

    Args:
        book: with at least one entry.
    """

    def __init__(self, book: AdviceBook) -> None:
        self._columns, self._radius = book.columns, book.radius
        self._facts = np.stack([entry.facts for entry in book.entries])[:, book.columns]
        self._weights = 1 / np.square(book.scale)
        self._centre = self._facts.mean(axis=0)
        points = self._facts - self._centre
        halves = 0.5 * np.square(points) @ self._weights
        self._table = np.vstack([(points * self._weights).T, -halves]).astype(np.float32)

    def of(self, facts: Facts, rows: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Which of some `rows` (k,) of `facts` (n, n_facts) are near an entry, and for each the nearest one."""
        states = facts[rows[:, None], self._columns]
        left = np.empty((len(states), len(self._table)), dtype=np.float32)
        left[:, -1] = 1
        np.subtract(states, self._centre, out=left[:, :-1], casting="same_kind")
        likeness = np.empty((len(states), len(self._facts)), dtype=np.float32)
        width = max(1, BY_ONE_THREAD // left.size)
        for start in range(0, len(self._facts), width):
            part = slice(start, start + width)
            np.matmul(left, self._table[:, part], out=likeness[:, part])
        found = likeness.argmax(axis=1)
        near = np.square(states - self._facts[found]) @ self._weights < self._radius**2
        return rows[near], found[near]
