"""Programs and potentials as they are written in files and answers: frozen records, checked piece by piece.

A program is a list of guarded assignments to actions, with named constants whose size the simulator chooses.
The JSON form is a contract (docs/programs.md).
"""

from __future__ import annotations

import math
import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ultra.common.errors import UltraError
from ultra.programs.expression import LONGEST_MESSAGE, MAX_LENGTH, MAX_NUMBER, RESERVED, printable

MAX_PARAMETERS = 8
MAX_RULES = 24
MAX_LETS = 40
MAX_CLOCKS = 4
MAX_REGISTERS = 8
MAX_INSTRUCTIONS = 1500
"""Operations of a whole program, equal ones counted once."""
LIMITS = (
    f"at most {MAX_PARAMETERS} parameters, {MAX_RULES} rules, {MAX_LETS} lets, {MAX_CLOCKS} clocks, "
    f"{MAX_REGISTERS} memory registers; {MAX_LENGTH} characters an expression"
)
"""For messages and prompts."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,59}")
_PROGRAM_NAME = re.compile(r"[\w][\w .:+-]{0,79}")


class ProgramError(UltraError):
    """A program that is not well formed; the message says where, the value, and what would be right."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message[:LONGEST_MESSAGE]))


@dataclass(frozen=True)
class Parameter:
    """A named constant that the simulator chooses between `low` and `high`, beginning at `value`."""

    name: str
    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        numbers = (self.value, self.low, self.high)
        if not all(math.isfinite(number) for number in numbers) or not self.low < self.high:
            raise ProgramError(
                f"parameters.{self.name}: low {self.low:g} must be below high {self.high:g}, both finite"
            )
        if not self.low <= self.value <= self.high:
            raise ProgramError(
                f"parameters.{self.name}: value {self.value:g} is not between low {self.low:g} and high {self.high:g}"
            )


@dataclass(frozen=True)
class Register:
    """A number that is remembered: `start` at the episode's start, then `update` in every step.

    The update sees the present facts and last step's registers.
    """

    name: str
    start: float
    update: str


@dataclass(frozen=True)
class Assignment:
    """What is done where `when` holds.

    Attributes:
        when: a condition; `true` holds always.
        set: for each continuous action named, the expression that replaces it.
        add: for each continuous action named, what is added to what stands by then.
        action: the discrete action that is taken; or, for an action of several parts, the choices of some parts.
    """

    when: str = "true"
    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    action: str | tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Program:
    """Guarded assignments with free numbers, clocks, memory and named values."""

    name: str
    rules: tuple[Assignment, ...]
    explanation: str = ""
    parameters: tuple[Parameter, ...] = ()
    clocks: tuple[tuple[str, str], ...] = ()
    """Angles by name, each with the expression in radians by which it advances in every step."""
    memory: tuple[Register, ...] = ()
    let: tuple[tuple[str, str], ...] = ()
    """Named values, in order."""

    def __post_init__(self) -> None:
        if not _PROGRAM_NAME.fullmatch(self.name):
            raise ProgramError(f"name {self.name[:60]!r} is not 1 to 80 letters, digits, spaces or any of _.:+-")
        for what, items, most in (
            ("parameters", self.parameters, MAX_PARAMETERS),
            ("rules", self.rules, MAX_RULES),
            ("let", self.let, MAX_LETS),
            ("clocks", self.clocks, MAX_CLOCKS),
            ("memory", self.memory, MAX_REGISTERS),
        ):
            if len(items) > most:
                raise ProgramError(f"{what} has {len(items)} entries: at most {most} are allowed")
        if not self.rules:
            raise ProgramError("rules is empty: a program needs at least one rule")
        names = [*(p.name for p in self.parameters), *(n for n, _ in self.clocks), *(r.name for r in self.memory),
                 *(n for n, _ in self.let)]  # fmt: skip
        for name in names:
            if not _NAME.fullmatch(name):
                raise ProgramError(f"name {name[:60]!r} is not a letter followed by letters, digits or _")
            if name in RESERVED:
                raise ProgramError(f"name {name!r} means something in expressions: choose another")
            if names.count(name) > 1:
                raise ProgramError(f"name {name!r} is used twice")

    @property
    def values(self) -> tuple[float, ...]:
        """Values of the parameters, in order."""
        return tuple(parameter.value for parameter in self.parameters)

    def with_values(self, values: Sequence[float]) -> Program:
        """The program with other values of its parameters; those beyond a range are moved to its end."""
        pairs = zip(self.parameters, values, strict=True)
        tuned = tuple(replace(p, value=min(max(float(value), p.low), p.high)) for p, value in pairs)
        return replace(self, parameters=tuned)

    def to_json(self) -> dict[str, Any]:
        """The contract's form; parts that are empty are left out."""
        rules = []
        for rule in self.rules:
            action = rule.action if isinstance(rule.action, str) else dict(rule.action)
            body = {"set": dict(rule.set), "add": dict(rule.add), "action": action}
            rules.append({"when": rule.when} | {name: value for name, value in body.items() if value})
        parts = {
            "parameters": {p.name: {"value": p.value, "low": p.low, "high": p.high} for p in self.parameters},
            "clocks": dict(self.clocks),
            "memory": {r.name: {"start": r.start, "update": r.update} for r in self.memory},
            "let": dict(self.let),
        }
        head = {"name": self.name, "explanation": self.explanation}
        return head | {name: value for name, value in parts.items() if value} | {"rules": rules}

    @classmethod
    def from_json(cls, value: Any) -> Program:
        """Inverse of `to_json`.

        Raises:
            ProgramError: naming the place and the value.
        """
        fields = _mapping(value, "program", {"name", "explanation", "parameters", "clocks", "memory", "let", "rules"})
        rules = fields.get("rules")
        if not isinstance(rules, list):
            raise ProgramError(f"rules is {_show(rules)}, not a list")
        return cls(
            name=_text(fields.get("name"), "name"),
            explanation=clean(fields.get("explanation", "")),
            parameters=tuple(
                _parameter(name, item) for name, item in _mapping(fields.get("parameters", {}), "parameters").items()
            ),
            clocks=_expressions(fields.get("clocks", {}), "clocks"),
            memory=tuple(_register(name, item) for name, item in _mapping(fields.get("memory", {}), "memory").items()),
            let=_expressions(fields.get("let", {}), "let"),
            rules=tuple(_rule(item, f"rules[{place}]") for place, item in enumerate(rules)),
        )


@dataclass(frozen=True)
class Potential:
    """A number for each state, whose change is added to the reward (Ng, Harada and Russell, ICML 1999)."""

    name: str
    expression: str
    explanation: str = ""

    def __post_init__(self) -> None:
        if not _PROGRAM_NAME.fullmatch(self.name):
            raise ProgramError(f"name {self.name[:60]!r} is not 1 to 80 letters, digits, spaces or any of _.:+-")

    def to_json(self) -> dict[str, Any]:
        """The contract's form."""
        return {"name": self.name, "explanation": self.explanation, "expression": self.expression}

    @classmethod
    def from_json(cls, value: Any) -> Potential:
        """Inverse of `to_json`.

        Raises:
            ProgramError: naming the place and the value.
        """
        fields = _mapping(value, "potential", {"name", "explanation", "expression"})
        return cls(
            _text(fields.get("name"), "name"),
            _expression(fields.get("expression"), "expression"),
            clean(fields.get("explanation", "")),
        )


def clean(text: Any, longest: int = 2000) -> str:
    """A text on one line, without characters that terminals or pages might obey."""
    if not isinstance(text, str):
        return ""
    return printable(text[:longest])


class _Short(reprlib.Repr):
    """Shows any value in bounded time, however large or deeply nested."""

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 10**self.maxlong else f"a whole number of {x.bit_length()} bits"


_short = _Short()
_short.maxlevel, _short.maxstring, _short.maxother = 2, 60, 60


def _show(value: Any) -> str:
    text = _short.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number; whole numbers too large for one are not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # compares without converting, which overflows


def _mapping(value: Any, what: str, known: set[str] | None = None) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ProgramError(f"{what} is {_show(value)}, not an object")
    unknown = sorted(set(value) - known) if known else []
    if unknown:
        raise ProgramError(
            f"{what} has an unknown part {_show(unknown[0])}: known are {', '.join(sorted(known or ()))}"
        )
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ProgramError(f"{what} is {_show(value)}, not a text")
    return value.strip()


def _expression(value: Any, what: str) -> str:
    """An expression as text; a number stands for itself, true and false too."""
    if isinstance(value, bool):
        return str(value).lower()
    if _is_number(value):
        return repr(float(value) if abs(value) > MAX_NUMBER else value)
    return _text(value, what)


def _expressions(value: Any, what: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, _expression(item, f"{what}.{name}")) for name, item in _mapping(value, what).items())


def _number(value: Any, what: str) -> float:
    if not _is_number(value):
        raise ProgramError(f"{what} is {_show(value)}, not a number")
    return float(value)


def _whole(value: Any, what: str) -> int:
    number = _number(value, what)
    if not number.is_integer():
        raise ProgramError(f"{what} is {_show(value)}, not a whole number")
    return int(number)


def _parameter(name: str, value: Any) -> Parameter:
    fields = _mapping(value, f"parameters.{name}", {"value", "low", "high"})
    return Parameter(
        name, *(_number(fields.get(part), f"parameters.{name}.{part}") for part in ("value", "low", "high"))
    )


def _register(name: str, value: Any) -> Register:
    fields = _mapping(value, f"memory.{name}", {"start", "update"})
    start = _number(fields.get("start", 0.0), f"memory.{name}.start")
    return Register(name, start, _expression(fields.get("update"), f"memory.{name}.update"))


def _rule(value: Any, where: str) -> Assignment:
    fields = _mapping(value, where, {"when", "set", "add", "action"})
    action = fields.get("action", ())
    if isinstance(action, Mapping):
        chosen = _mapping(action, f"{where}.action")
        action = tuple((name, _whole(choice, f"{where}.action.{name}")) for name, choice in chosen.items())
    elif action != ():
        action = _text(action, f"{where}.action")
    rule = Assignment(
        when=_expression(fields.get("when", "true"), f"{where}.when"),
        set=_expressions(fields.get("set", {}), f"{where}.set"),
        add=_expressions(fields.get("add", {}), f"{where}.add"),
        action=action,
    )
    if not rule.set and not rule.add and not rule.action:
        raise ProgramError(f"{where} does nothing: give it `set`, `add` or `action`")
    return rule
