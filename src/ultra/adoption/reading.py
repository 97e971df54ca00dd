"""How facts are read off observations: affine maps, fitted on some visited states and judged on others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import UltraError
from ultra.policies.policy import Policy
from ultra.programs.observed import FactReading, ObservedFacts
from ultra.tasks.card import Card, Fact
from ultra.tasks.sources import SourceError, of_observation, parse_source

EXACT = 1e-4
"""A fact is read correctly in a state if the reading is off by at most this share of the fact's deviation."""
OFF = 0.005
"""At most this share of the held-out states may be read wrongly: velocities, for instance, are clipped in a few."""
PER_INPUT = 3
"""States that are needed for each entry of the observation, both to fit and to judge."""
_MOST = 20_000
"""States that are fitted."""
_REFITS = 4
MOST_PAIRED = 128
"""Entries of an observation up to which sines and cosines are looked for."""


class Visited(Protocol):
    """States of an episode."""

    @property
    def observations(self) -> NDArray[Any]:
        """(T, observation_size)"""
        ...

    @property
    def facts(self) -> NDArray[np.float64]:
        """(T, n_facts) of the same states."""
        ...


class ReadingError(UltraError):
    """Facts that cannot be read off observations; the message says which, or what is missing."""


def held_out(count: int, episodes: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
    """Which of some states (count,) are held out: those of every third episode, or every third state.

    Args:
        count: number of states.
        episodes: (count,) the number of each state's episode; states of one episode stay together.
    """
    place = np.arange(count) if episodes is None else np.unique(episodes, return_inverse=True)[1]
    return np.equal(place % 3, 2) if place.max(initial=0) > 1 else np.equal(place, 1)


class Reading:
    """Affine maps from inputs to facts.

    Args:
        inputs: (n, n_inputs) observations, as they are or normalised.
        facts: (n, n_facts) of the same states.
        names: of the facts.
        episodes: (n,) the number of each state's episode; None if that is not known.

    Attributes:
        held_out: (n,) states that were not fitted.
        readable: (n_facts,) facts whose reading is right in the states held out.
        weights: (n_inputs, n_facts).
        constants: (n_facts,).

    Raises:
        ReadingError: if there are too few states for that: with few, least squares fits noise as well.
    """

    def __init__(
        self,
        inputs: NDArray[np.float64],
        facts: NDArray[np.float64],
        names: Sequence[str],
        episodes: NDArray[np.int64] | None = None,
    ) -> None:
        self.names, self.held_out = tuple(names), held_out(len(inputs), episodes)
        needed = PER_INPUT * (inputs.shape[1] + 1)
        fitted, judged = int((~self.held_out).sum()), int(self.held_out.sum())
        if min(fitted, judged) < needed:
            apart = "" if episodes is None else " of other episodes"
            raise ReadingError(
                f"{fitted} visited states to fit and {judged}{apart} to judge by are too few to tell which facts can "
                f"be read off {inputs.shape[1]} entries of an observation: at least {needed} each are needed"
            )
        design = np.column_stack([inputs, np.ones(len(inputs))])
        rows = np.flatnonzero(~self.held_out)[:: max(1, fitted // _MOST)]
        scale = _scale(facts[rows])
        finite = np.isfinite(facts).all(axis=0)
        found = np.zeros((design.shape[1], facts.shape[1]))
        found[:, finite] = _fitted(design[rows], facts[rows][:, finite], scale[finite])
        wrong = np.abs(design[self.held_out] @ found - facts[self.held_out]) > EXACT * scale
        self.readable: NDArray[np.bool_] = finite & (wrong.mean(axis=0) <= OFF)
        self.weights, self.constants = found[:-1], found[-1]

    def form(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """Weights of the inputs (n_inputs,) and a constant that make `facts @ weights`.

        Raises:
            ReadingError: if one of the facts cannot be read.
        """
        for column in np.flatnonzero(weights).tolist():
            if not self.readable[column]:
                raise ReadingError(f"fact {self.names[column]!r} cannot be read off the observation")
        return self.weights @ weights, float(self.constants @ weights)


def observed_facts(
    card: Card,
    needed: Sequence[int],
    observations: NDArray[Any],
    facts: NDArray[np.float64],
    episodes: NDArray[np.int64] | None = None,
) -> ObservedFacts:
    """How facts are read off observations: as the card says, where that is right in the visited states, else affinely,
    or as the angle of a sine and a cosine.

    An angle that is read off a sine and a cosine may be whole turns off: the observation does not say how often a
    joint has turned round. Programs that use it in `sin`, `cos` and `wrap` act alike all the same.

    Args:
        card: of the task; what it does not say of a fact is taken to be the entry of the observation at its place.
        needed: columns of the facts that are wanted.
        observations: (n, observation_size) of visited states.
        facts: (n, n_facts) of the same states.
        episodes: (n,) the number of each state's episode; None if that is not known.
    """
    size, scale = observations.shape[1], _scale(facts)
    try:
        affine = Reading(observations.astype(np.float64), facts, card.fact_names, episodes)
    except ReadingError:  # too few states: what the card says is all that is known
        affine = None
    readings: dict[str, FactReading] = {}
    for column in sorted(needed):
        fact = card.facts[column]

        def right(reading: FactReading, column: int = column, fact: Fact = fact) -> bool:
            read = ObservedFacts(size, {fact.name: reading}).read([fact.name], observations)[:, 0]
            off = read - facts[:, column]
            if fact.unit == "rad" and "atan2" in reading.source:
                off = (off + np.pi) % (2 * np.pi) - np.pi
            return bool(np.mean(~(np.abs(off) <= EXACT * scale[column])) <= OFF)

        said = _said(fact.source or f"obs[{column}]", size)
        if said is not None and right(said):
            readings[fact.name] = said
        elif affine is not None and affine.readable[column]:
            weights = tuple(affine.weights[:, column].tolist())
            readings[fact.name] = FactReading("", weights, float(affine.constants[column]))
        elif fact.unit == "rad" and affine is not None:
            found = next(filter(right, _angles(observations)), None)
            readings |= {} if found is None else {fact.name: found}
    return ObservedFacts(size, readings)


def _angles(observations: NDArray[Any]) -> Iterator[FactReading]:
    """Angles of which an observation holds the sine and the cosine: entries whose squares sum to one."""
    size = observations.shape[1]
    if size > MOST_PAIRED:
        return
    squares = np.square(observations.astype(np.float64))
    for sine in range(size):
        unit = np.mean(np.abs(squares[:, [sine]] + squares - 1) <= EXACT, axis=0) >= 1 - OFF
        for cosine in np.flatnonzero(unit).tolist():
            if cosine != sine:
                yield FactReading(f"atan2(obs[{sine}], obs[{cosine}])")


def with_observed_facts(policy: Policy, card: Card, episodes: Sequence[Visited]) -> Policy:
    """The policy with what is known of how the facts that its programs read are read off observations.

    Args:
        policy: with programs; one without them is returned as it is.
        card: of the task.
        episodes: in the task, of any policy.
    """
    attached = policy.attached
    if attached is None:
        return policy
    needed = {column for controller in policy.controllers for column in controller.program.facts}
    number = np.repeat(np.arange(len(episodes)), [len(episode.observations) for episode in episodes])
    observations = np.concatenate([episode.observations for episode in episodes])
    facts = np.concatenate([episode.facts for episode in episodes])
    found = observed_facts(card, sorted(needed), observations, facts, number)
    known = {} if attached.observed is None else attached.observed.readings
    wanted = {attached.facts[column] for column in needed}
    readings = {name: reading for name, reading in {**known, **found.readings}.items() if name in wanted}
    return replace(policy, attached=replace(attached, observed=replace(found, readings=readings)))


def _said(source: str, size: int) -> FactReading | None:
    """What the card says of a fact, if that is a function of the observation."""
    try:
        return FactReading(source) if of_observation(parse_source(source, size)) else None
    except SourceError:
        return None


def _scale(facts: NDArray[np.float64]) -> NDArray[np.float64]:
    """A unit for each fact (n_facts,): how far it varies."""
    with np.errstate(invalid="ignore"):
        spread, size = facts.std(axis=0), np.abs(facts).max(axis=0)
    return np.asarray(np.maximum(np.nan_to_num(np.maximum(spread, 1e-6 * size)), 1e-9), np.float64)


def _fitted(design: NDArray[np.float64], facts: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares; then, fact by fact, without the few states that stand out, such as those with clipped entries."""
    found = np.asarray(np.linalg.lstsq(design, facts, rcond=None)[0], np.float64)
    for column in range(facts.shape[1]):
        for _ in range(_REFITS):
            off = np.abs(design @ found[:, column] - facts[:, column])
            if off.max() <= EXACT * scale[column]:
                break
            rows = off <= max(10 * float(np.median(off)), EXACT * scale[column])
            if rows.all() or rows.mean() < 1 - 10 * OFF:
                break
            found[:, column] = np.linalg.lstsq(design[rows], facts[rows, column], rcond=None)[0]
    return found
