"""The analyst `programs:FILE`: a person's own programs, proposed once; no critical states, no language model.

The file's form is a contract (docs/programs.md): `{"programs": [...], "potentials": [...]}`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultra.advice.records import Advice, CriticalState
from ultra.analysts.base import Case, Proposals
from ultra.analysts.schema import check_potential, check_program
from ultra.analysts.turns import TurnReport
from ultra.common.errors import UltraError
from ultra.programs.records import Potential, Program
from ultra.tasks.task import Task
from ultra.tuning.entrants import Proposal

LARGEST = 4_000_000
"""Bytes of a file that are read."""
_KNOWN = ("programs", "potentials", "reasoning")


@dataclass(frozen=True)
class Checked:
    """One program or potential of a file.

    Attributes:
        where: its place, for instance `programs[0]`.
        name: as it is called, if it can be told.
        found: what it is; None if something is wrong.
        problem: what is wrong, with the place and the remedy; empty if nothing is.
    """

    where: str
    name: str
    found: Program | Potential | None
    problem: str = ""


class ProgramsFile:
    """Programs and potentials of a file, not yet checked against a task.

    Raises:
        UltraError: if the file cannot be read or is not of the contract's form.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts = _read(path)

    def check(self, task: Task) -> list[Checked]:
        """Every program and potential, compiled against a task."""
        result: list[Checked] = []
        names: set[str] = set()
        for part, check in (("programs", check_program), ("potentials", check_potential)):
            for place, value in enumerate(self._parts[part]):
                where = f"{part}[{place}]"
                name = value.get("name") if isinstance(value, dict) else None
                name = name if isinstance(name, str) else ""
                try:
                    found = check(value, task)
                    if found.name in names:
                        raise UltraError(f"the name {found.name!r} is used twice: give each its own")
                    names.add(found.name)
                    result.append(Checked(where, name, found))
                except UltraError as error:
                    result.append(Checked(where, name, None, str(error)))
        return result

    def proposals(self, task: Task) -> Proposals:
        """All of them as proposals.

        Raises:
            UltraError: naming the first that is wrong for the task.
        """
        checked = self.check(task)
        wrong = [item for item in checked if item.problem]
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise UltraError(
                f"{self.path}, {wrong[0].where}: {wrong[0].problem}{more}; "
                f"`ultra programs check {self.path} --task {task.name}` names all"
            )
        source = f"programs:{self.path}"
        return Proposals(
            tuple(Proposal(item.found, source, 1) for item in checked if isinstance(item.found, Program)),
            tuple(item.found for item in checked if isinstance(item.found, Potential)),
        )


def _read(path: Path) -> dict[str, list[Any]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise UltraError(f"{path}: {name!r} is given twice in one object: join them")
        return dict(pairs)

    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise UltraError(f"{path} is larger than {LARGEST:,} bytes: it is no file of programs")
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise UltraError(f"cannot read {path} ({error.strerror}): write --analyst programs:FILE.json") from error
    except json.JSONDecodeError as error:
        raise UltraError(f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UltraError(f"{path} is not JSON: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise UltraError(f'{path} holds a JSON {type(value).__name__}, not an object {{"programs": [...]}}')
    unknown = sorted(set(value) - set(_KNOWN))
    if unknown:
        raise UltraError(f"{path} has an unknown part {unknown[0]!r}: known are programs and potentials")
    parts = {name: value.get(name, []) for name in ("programs", "potentials")}
    for name, items in parts.items():
        if not isinstance(items, list):
            raise UltraError(f"{path}: {name} is a JSON {type(items).__name__}, not a list")
    if not any(parts.values()):
        raise UltraError(f"{path} holds no program: docs/programs.md describes the form")
    return parts


class ProgramsAnalyst:
    """Proposes what a file holds, in the first turn alone."""

    def __init__(self, file: ProgramsFile) -> None:
        self.name = f"programs:{file.path}"
        self._file = file

    def check(self, task: Task) -> None:
        """Raise an UltraError if something in the file is wrong for a task, before anything is spent."""
        self._file.proposals(task)

    def identify(self, case: Case) -> list[CriticalState]:
        """None: programs are for all states."""
        return []

    def advise(self, case: Case, states: Sequence[CriticalState]) -> list[Advice]:
        """None."""
        return []

    def propose(self, case: Case, states: Sequence[CriticalState], report: TurnReport | None) -> Proposals:
        """The file's programs and potentials; nothing in later turns."""
        return self._file.proposals(case.task) if report is None else Proposals()


def programs_analyst(text: str) -> ProgramsAnalyst:
    """Make the analyst of a file.

    Raises:
        UltraError: if no file is named, or it is not of the contract's form.
    """
    if not text:
        raise UltraError("which file? Write --analyst programs:FILE.json (docs/programs.md describes its form)")
    return ProgramsAnalyst(ProgramsFile(Path(text)))
