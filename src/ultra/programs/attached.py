"""Programs that act with a policy and are saved with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ultra.programs.compiled import Controller, compile_programs
from ultra.programs.observed import ObservedFacts
from ultra.programs.records import Program
from ultra.tasks.spaces import ActionSpace


@dataclass(frozen=True)
class AttachedPrograms:
    """Programs on top of a policy's network, and the names that they speak of.

    Attributes:
        layers: each of programs that are followed together, with the values of their parameters. What one layer makes
            of the action is the agent's own action to the next.
        facts: names of the task's facts, in the order of a batch's columns.
        actions: names of the task's actions.
        observed: how the facts that the programs read are read off observations; None if that is not known.
    """

    layers: tuple[tuple[Program, ...], ...]
    facts: tuple[str, ...]
    actions: tuple[str, ...]
    observed: ObservedFacts | None = None

    @property
    def programs(self) -> tuple[Program, ...]:
        """All programs, in order."""
        return tuple(program for layer in self.layers for program in layer)

    def controllers(self, space: ActionSpace) -> tuple[Controller, ...]:
        """The layers as instructions.

        Raises:
            ProgramError: if they do not fit the names or the action space.
        """
        return tuple(Controller.of(compile_programs(layer, self.facts, self.actions, space)) for layer in self.layers)

    def on_top(self, programs: tuple[Program, ...]) -> AttachedPrograms:
        """A further layer after these."""
        return replace(self, layers=(*self.layers, programs))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "layers": [[program.to_json() for program in layer] for layer in self.layers],
            "facts": list(self.facts),
            "actions": list(self.actions),
            **({} if self.observed is None else {"observed": self.observed.to_json()}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> AttachedPrograms:
        """Inverse of `to_json`.

        Raises:
            ProgramError, KeyError, TypeError: if it is damaged.
        """
        layers = tuple(tuple(Program.from_json(item) for item in layer) for layer in value["layers"])
        observed = ObservedFacts.from_json(value["observed"]) if "observed" in value else None
        return cls(layers, tuple(map(str, value["facts"])), tuple(map(str, value["actions"])), observed)
