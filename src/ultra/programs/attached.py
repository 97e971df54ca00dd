"""Programs that act with a policy and are saved with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ultra.programs.compiled import Controller, compile_programs
from ultra.programs.records import Program
from ultra.tasks.spaces import ActionSpace


@dataclass(frozen=True)
class AttachedPrograms:
    """Programs on top of a policy's network, and the names that they speak of.

    Attributes:
        programs: followed together, in order, with the values of their parameters.
        facts: names of the task's facts, in the order of a batch's columns.
        actions: names of the task's actions.
    """

    programs: tuple[Program, ...]
    facts: tuple[str, ...]
    actions: tuple[str, ...]

    def controller(self, space: ActionSpace) -> Controller:
        """The programs as instructions.

        Raises:
            ProgramError: if they do not fit the names or the action space.
        """
        return Controller.of(compile_programs(self.programs, self.facts, self.actions, space))

    def on_top(self, programs: tuple[Program, ...]) -> AttachedPrograms:
        """Further programs after these."""
        return AttachedPrograms((*self.programs, *programs), self.facts, self.actions)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "programs": [program.to_json() for program in self.programs],
            "facts": list(self.facts),
            "actions": list(self.actions),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> AttachedPrograms:
        """Inverse of `to_json`.

        Raises:
            ProgramError, KeyError, TypeError: if it is damaged.
        """
        programs = tuple(Program.from_json(item) for item in value["programs"])
        return cls(programs, tuple(map(str, value["facts"])), tuple(map(str, value["actions"])))
