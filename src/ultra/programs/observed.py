"""How facts are read off observations, so that a policy with programs acts where there are observations alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import UltraError
from ultra.programs.records import ProgramError
from ultra.tasks.sources import compile_source, of_observation, parse_source

_compiled = cache(compile_source)


@dataclass(frozen=True)
class FactReading:
    """How one fact is read: by an expression over `obs[...]`, or as a weighted sum of the observation's entries.

    Attributes:
        source: the expression (`ultra.tasks.sources`); empty where it is a weighted sum.
        weights: (observation_size,) of the sum.
        constant: that is added to it.
    """

    source: str = ""
    weights: tuple[float, ...] = ()
    constant: float = 0.0


@dataclass(frozen=True)
class ObservedFacts:
    """The facts that can be read off an observation.

    Attributes:
        size: entries of an observation.
        readings: by the fact's name; facts that are not in the observation are missing.

    Raises:
        ProgramError: if a reading does not fit observations of that size.
    """

    size: int
    readings: Mapping[str, FactReading] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, reading in self.readings.items():
            if reading.source:
                try:
                    alone = of_observation(parse_source(reading.source, self.size))
                except UltraError as error:
                    raise ProgramError(f"reading of fact {name!r}: {error}") from error
                if not alone:
                    raise ProgramError(f"reading of fact {name!r}: {reading.source!r} reads more than the observation")
            elif len(reading.weights) != self.size or not all(map(math.isfinite, (*reading.weights, reading.constant))):
                raise ProgramError(
                    f"reading of fact {name!r} has {len(reading.weights)} weights, but needs {self.size} finite ones"
                )

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those of some facts that cannot be read."""
        return [name for name in names if name not in self.readings]

    def read(self, names: Sequence[str], observations: NDArray[Any]) -> NDArray[np.float64]:
        """Facts (n, len(names)) of observations (n, size); NaN for those that cannot be read."""
        facts = np.full((len(observations), len(names)), np.nan)
        for column, name in enumerate(names):
            reading = self.readings.get(name)
            if reading is None:
                continue
            if reading.source:
                with np.errstate(all="ignore"):  # as where a guard reads them: what is no number does nothing
                    facts[:, column] = _compiled(reading.source, self.size)((), observations)
            else:
                facts[:, column] = observations.astype(np.float64) @ reading.weights + reading.constant
        return facts

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        facts = {
            name: {"source": reading.source}
            if reading.source
            else {"weights": list(reading.weights), "constant": reading.constant}
            for name, reading in self.readings.items()
        }
        return {"observation_size": self.size, "facts": facts}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ObservedFacts:
        """Inverse of `to_json`.

        Raises:
            ProgramError, KeyError, TypeError, ValueError: if it is damaged.
        """
        readings = {}
        for name, item in value["facts"].items():
            if "source" in item:
                readings[str(name)] = FactReading(str(item["source"]))
            else:
                weights = tuple(map(float, item["weights"]))
                readings[str(name)] = FactReading("", weights, float(item["constant"]))
        return cls(int(value["observation_size"]), readings)
