"""Critical states, advice and what verification found of it; and the book in which advice is looked up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import RunDirectoryError, UltraError
from ultra.common.files import write_json_lines
from ultra.tasks.batch import Snapshot
from ultra.tasks.plans import Plan

Verdict = Literal["helps", "harms", "unclear"]
Record = TypeVar("Record")


@dataclass(frozen=True)
class CriticalState:
    """A state where the action has a significant effect on future reward (arXiv 2505.20671).

    Raises:
        UltraError: if the importance lies outside [0, 1].
    """

    episode: int
    t: int
    importance: float
    """From 0 to 1."""
    explanation: str
    round: int = 1
    """Round of the refinement in which the episode was collected."""

    def __post_init__(self) -> None:
        if not 0 <= self.importance <= 1:
            raise UltraError(f"importance of episode {self.episode}, t = {self.t} is {self.importance}, not in [0, 1]")


@dataclass(frozen=True)
class Verification:
    """What paired branches found of a suggestion.

    Attributes:
        advantage: mean paired difference of the discounted return, with advice minus without.
        low, high: confidence interval of the advantage.
        pairs: pairs of branches behind it.
        strength: factor of a relative plan's changes.
        verdict: whether the interval lies above zero, below zero, or around it.
        steps: environment steps taken.
    """

    advantage: float
    low: float
    high: float
    pairs: int
    strength: float
    verdict: Verdict
    steps: int


@dataclass(frozen=True)
class Advice:
    """What to do at a critical state, and what following it or not is worth.

    Raises:
        UltraError: if a reward lies outside [-1, 1].
    """

    state: CriticalState
    plan: Plan
    reward_follow: float
    """Implicit reward for following the plan, -1 to 1."""
    reward_taken: float
    """Implicit reward for the actions that the policy took, -1 to 1."""
    explanation: str
    source: str
    """Analyst that gave it."""
    verification: Verification | None = None

    def __post_init__(self) -> None:
        for name in ("reward_follow", "reward_taken"):
            value = getattr(self, name)
            if not -1 <= value <= 1:
                raise UltraError(
                    f"{name} of episode {self.state.episode}, t = {self.state.t} is {value}, not in [-1, 1]"
                )

    @property
    def verdict(self) -> Verdict | None:
        """What verification found, or None if it has not been tried."""
        return self.verification.verdict if self.verification else None

    @property
    def strength(self) -> float:
        """Factor of a relative plan: as verification chose, else 1."""
        return self.verification.strength if self.verification else 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "plan": self.plan.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Advice:
        """Inverse of `to_json`."""
        fields = dict(value)
        found = fields["verification"]
        fields |= {
            "state": CriticalState(**fields["state"]),
            "plan": Plan.from_json(fields["plan"]),
            "verification": Verification(**found) if found else None,
        }
        return cls(**fields)


def save_advice(advice: Iterable[Advice], path: Path) -> None:
    """Write advice as JSON Lines."""
    _save_lines((item.to_json() for item in advice), path)


def load_advice(path: Path) -> list[Advice]:
    """Read advice.

    Raises:
        RunDirectoryError: if the file is missing, or naming the line, if it is damaged.
    """
    return _load_lines(path, Advice.from_json, "advise")


def save_states(states: Iterable[CriticalState], path: Path) -> None:
    """Write critical states as JSON Lines."""
    _save_lines((asdict(state) for state in states), path)


def load_states(path: Path) -> list[CriticalState]:
    """Read critical states.

    Raises:
        RunDirectoryError: if the file is missing, or naming the line, if it is damaged.
    """
    return _load_lines(path, lambda value: CriticalState(**value), "identify")


def _save_lines(values: Iterable[dict[str, Any]], path: Path) -> None:
    """Write plain values as JSON Lines."""
    write_json_lines(path, values)


def _load_lines(path: Path, record: Callable[[Any], Record], verb: str) -> list[Record]:
    """Read JSON Lines of one kind of record, which `ultra VERB` writes."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RunDirectoryError(f"{path} is missing ({error.strerror}): run `ultra {verb}` first") from error
    except UnicodeDecodeError as error:
        raise RunDirectoryError(f"{path} is damaged ({error}): run `ultra {verb}` anew") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(record(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise RunDirectoryError(f"{path}, line {number} is damaged ({reason}): run `ultra {verb}` anew") from error
    return records


@dataclass(frozen=True)
class Entry:
    """A piece of advice with what is needed to recognise and restore its state."""

    advice: Advice
    facts: NDArray[np.float64]
    """(n_facts,) of the critical state."""
    snapshot: Snapshot
    taken: NDArray[Any]
    """(L,) or (L, dim): what the policy did there, for the length of the plan or until the episode's end."""


@dataclass(frozen=True)
class AdviceBook:
    """The lookup table of advice.

    Attributes:
        entries: advice with its states.
        columns: facts on which likeness depends.
        scale: (len(columns),) by which facts are standardised.
        radius: states nearer than this are the same, in standardised facts.
    """

    entries: tuple[Entry, ...]
    columns: NDArray[np.intp]
    scale: NDArray[np.float64]
    radius: float

    def __len__(self) -> int:
        return len(self.entries)

    def trusted(self, trust: Literal["helps", "all"]) -> AdviceBook:
        """The book without advice that harms or was not tried; with `all`, the whole book."""
        return replace(self, entries=tuple(entry for entry in self.entries if trusted(entry.advice, trust)))


def trusted(advice: Advice, trust: Literal["helps", "all"]) -> bool:
    """Whether advice takes part in training: not if it harms or was not tried, unless everything is trusted.

    Unclear advice still rewards, once for each visit of its state.
    """
    return trust == "all" or advice.verdict in ("helps", "unclear")


def calibrate(facts: Sequence[NDArray[np.float64]], columns: NDArray[np.intp]) -> tuple[NDArray[np.float64], float]:
    """Scale and matching radius from episodes.

    The scale is each fact's standard deviation over all states; the radius is the median distance
    between consecutive states, so that a state matches if it is about one step away.

    Args:
        facts: (T+1, n_facts) of each episode.
        columns: facts that count.

    Returns:
        The scale (len(columns),) and the radius.
    """
    together = np.concatenate(facts)[:, columns]
    deviation = together.std(axis=0)
    scale = np.where(deviation > 1e-9, deviation, 1.0)
    gaps = np.concatenate([np.linalg.norm(np.diff(f[:, columns], axis=0) / scale, axis=1) for f in facts])
    return scale, float(np.median(gaps))
