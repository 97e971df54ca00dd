"""Instructions on arrays: what expressions are turned into, and the one evaluator that runs them.

An instruction works on whole arrays, one entry for each environment; equal ones are one instruction. Nothing is run
as code.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]
"""(n,) floats or booleans, or a scalar that holds for all n."""


class Frame(NamedTuple):
    """What expressions may read in one step of n environments."""

    facts: Values
    """(n, n_facts) of the states."""
    previous: Values
    """(n, n_facts) one step earlier; in an episode's first state, that state itself."""
    start: Values
    """(n, n_facts) of the states in which the episodes began."""
    agent: Values
    """(n, n_actions): the agent's own action; for discrete actions 1 for the one it chose, 0 for the others."""
    settings: Values
    """(n, n_settings): values of the parameters."""
    clocks: Values
    """(n, n_clocks) in radians."""
    memory: Values
    """(n, n_registers)."""


FACTS, PREVIOUS, START, AGENT, SETTINGS, CLOCKS, MEMORY = range(7)


def _differ(left: Values, right: Values) -> Values:
    """Not equal, where both are numbers; other comparisons do not hold without that anyway."""
    result: Values = (left != right) & ~np.isnan(left) & ~np.isnan(right)
    return result


def _wrap(angle: Values) -> Values:
    """An angle moved into -pi..pi."""
    result: Values = np.mod(angle + np.pi, 2 * np.pi) - np.pi
    return result


def _clip(value: Values, low: Values, high: Values) -> Values:
    return np.minimum(np.maximum(value, low), high)


def _pick(index: Values, *options: Values) -> Values:
    """The option at the whole part of an index; no number where there is none."""
    place = np.floor(index)
    valid = (place >= 0) & (place < len(options))
    table = np.stack(np.broadcast_arrays(*(np.asarray(option, np.float64) for option in options)))
    row = np.where(valid, place, 0).astype(np.intp)
    picked = table[row] if table.ndim == 1 else table[row, np.arange(table.shape[1])]
    return np.where(valid, picked, np.nan)


def _as_number(condition: Values) -> Values:
    return np.asarray(condition, dtype=np.float64)


COMPARISONS: dict[type[ast.cmpop], tuple[str, Callable[..., Values]]] = {
    ast.Lt: ("<", np.less),
    ast.LtE: ("<=", np.less_equal),
    ast.Gt: (">", np.greater),
    ast.GtE: (">=", np.greater_equal),
    ast.Eq: ("==", np.equal),
    ast.NotEq: ("!=", _differ),
}
ARITHMETIC: dict[type[ast.operator], tuple[str, Callable[..., Values]]] = {
    ast.Add: ("+", np.add),
    ast.Sub: ("-", np.subtract),
    ast.Mult: ("*", np.multiply),
    ast.Div: ("/", np.divide),
    ast.Mod: ("%", np.mod),
    ast.Pow: ("**", np.power),
}
FUNCTIONS: dict[str, tuple[int, int, Callable[..., Values]]] = {
    "abs": (1, 1, np.abs),
    "sign": (1, 1, np.sign),
    "sin": (1, 1, np.sin),
    "cos": (1, 1, np.cos),
    "tan": (1, 1, np.tan),
    "atan2": (2, 2, np.arctan2),
    "sqrt": (1, 1, np.sqrt),
    "exp": (1, 1, np.exp),
    "log": (1, 1, np.log),
    "tanh": (1, 1, np.tanh),
    "floor": (1, 1, np.floor),
    "wrap": (1, 1, _wrap),
    "clip": (3, 3, _clip),
    "min": (2, 32, np.minimum),
    "max": (2, 32, np.maximum),
    "pick": (2, 64, _pick),
}
"""Least and most arguments, and the function on arrays."""
CONDITIONS = frozenset({"and", "or", "not", "true", "false", *(sign for sign, _ in COMPARISONS.values())})
"""Operations whose result is a condition, not a number."""


class Instruction(NamedTuple):
    """One operation on arrays."""

    operation: str
    """A function or sign; `number`, `read`, or `setting` (a setting at a computed place)."""
    operands: tuple[int, ...] = ()
    """Places of earlier instructions."""
    value: float = 0.0
    """Of a number."""
    source: int = -1
    """Of a read: which array of the frame."""
    column: int = -1
    """Of a read: which column."""
    table: tuple[int, int, int] = (0, 0, 0)
    """Of a setting at a computed place: its first column, its length, and the columns between two entries."""


class Tape:
    """Instructions in order; an expression is the place of its last one."""

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self._places: dict[Instruction, int] = {}
        self._code: list[tuple[int, Any, Any]] = []

    def __len__(self) -> int:
        return len(self.instructions)

    def add(self, instruction: Instruction) -> int:
        """The place of an instruction, which is appended unless it is there already; constants are folded."""
        operands = [self.instructions[place] for place in instruction.operands]
        if operands and instruction.operation != "setting" and all(_is_constant(operand) for operand in operands):
            value = compute(instruction.operation, [_constant(operand) for operand in operands])
            if instruction.operation in CONDITIONS:
                return self.add(Instruction("true" if value else "false"))
            return self.number(float(value))
        place = self._places.get(instruction)
        if place is None:
            place = len(self.instructions)
            self.instructions.append(instruction)
            self._code.append(_compiled(instruction))
            self._places[instruction] = place
        return place

    def number(self, value: float) -> int:
        """The place of a constant; negative zero becomes zero, to which it compares equal."""
        return self.add(Instruction("number", value=value + 0.0))

    def read(self, source: int, column: int) -> int:
        """The place of what stands in a column of one of the frame's arrays."""
        return self.add(Instruction("read", source=source, column=column))

    def is_condition(self, place: int) -> bool:
        """Whether the value at a place is true or false, not a number."""
        return self.instructions[place].operation in CONDITIONS

    def is_true(self, place: int) -> bool:
        """Whether the value at a place is the constant `true`."""
        return self.instructions[place].operation == "true"

    def reads(self, source: int) -> frozenset[int]:
        """Columns of one of the frame's arrays that are read."""
        return frozenset(item.column for item in self.instructions if item.source == source)

    def run(self, frame: Frame) -> list[Values]:
        """The value at every place, (n,) each or a scalar."""
        values: list[Values] = []
        append = values.append
        with np.errstate(all="ignore"):
            for kind, function, operands in self._code:
                if kind == 2:
                    append(function(values[operands[0]], values[operands[1]]))
                elif kind == 1:
                    append(function(values[operands]))
                elif kind == 0:
                    append(frame[function][:, operands])
                elif kind == -1:
                    append(operands)
                elif kind == -2:
                    append(_setting_at(frame.settings, values[operands[0]], *operands[1:]))
                else:
                    append(function(*[values[operand] for operand in operands]))
        return values


def _is_constant(instruction: Instruction) -> bool:
    return instruction.operation in ("number", "true", "false")


def _constant(instruction: Instruction) -> Any:
    return np.float64(instruction.value) if instruction.operation == "number" else instruction.operation == "true"


def _many(function: Callable[..., Values]) -> Callable[..., Values]:
    """A function of two arguments, for two or more."""

    def call(*values: Values) -> Values:
        result = function(values[0], values[1])
        for value in values[2:]:
            result = function(result, value)
        return result

    return call


_OPERATIONS: dict[str, Callable[..., Values]] = {
    **dict(COMPARISONS.values()),
    **dict(ARITHMETIC.values()),
    **{name: function for name, (_, _, function) in FUNCTIONS.items()},
    "min": _many(np.minimum),
    "max": _many(np.maximum),
    "negative": np.negative,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "if": np.where,
    "as number": _as_number,
}


def compute(operation: str, values: Sequence[Any]) -> Any:
    """One operation on numbers, (n,) each or scalars."""
    with np.errstate(all="ignore"):
        return _OPERATIONS[operation](*values)


def _setting_at(settings: Values, index: Values, first: int, count: int, stride: int) -> Values:
    """Settings of each row at a computed place of a table in them; no number beyond its ends."""
    place = np.floor(index)
    valid = (place >= 0) & (place < count)
    columns = first + stride * np.where(valid, place, 0).astype(np.intp)
    return np.where(valid, settings[np.arange(len(settings)), columns], np.nan)


def _compiled(instruction: Instruction) -> tuple[int, Any, Any]:
    operation, operands = instruction.operation, instruction.operands
    if operation == "read":
        return 0, instruction.source, instruction.column
    if operation == "setting":
        return -2, None, (operands[0], *instruction.table)
    if not operands:
        return -1, None, _constant(instruction)
    function = _OPERATIONS[operation]
    if len(operands) == 1:
        return 1, function, operands[0]
    return len(operands), function, operands


def frame(facts: Values, previous: Values | None = None, start: Values | None = None) -> Frame:
    """A frame of facts alone."""
    nothing = np.zeros((len(facts), 0))
    before = facts if previous is None else previous
    return Frame(facts, before, facts if start is None else start, nothing, nothing, nothing, nothing)
