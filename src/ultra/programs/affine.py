"""Which programs are affine: sums of facts and the agent's own actions, each times a number.

With given settings, a place of a tape may be an affine form of the present facts and of the agent's action, and a
condition may be an intersection of half-spaces of the facts. Such programs can become part of a network exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import UltraError
from ultra.programs.compiled import Controller
from ultra.programs.tape import AGENT, CLOCKS, FACTS, MEMORY, PREVIOUS, SETTINGS, START, Instruction, compute


class NotAffineError(UltraError):
    """A place of a program that is no affine form, or no intersection of half-spaces; the message says why."""


@dataclass(frozen=True, eq=False)
class Form:
    """facts @ weights + agent @ gains + constant."""

    weights: NDArray[np.float64]
    """(n_facts,)"""
    gains: NDArray[np.float64]
    """(n_actions,), of the agent's own action."""
    constant: float

    @property
    def is_constant(self) -> bool:
        """Whether it depends on nothing."""
        return not self.weights.any() and not self.gains.any()

    def plus(self, other: Form, factor: float = 1.0) -> Form:
        """The sum of this and a multiple of another."""
        return Form(
            self.weights + factor * other.weights,
            self.gains + factor * other.gains,
            self.constant + factor * other.constant,
        )

    def times(self, factor: float) -> Form:
        """A multiple."""
        return Form(factor * self.weights, factor * self.gains, factor * self.constant)


@dataclass(frozen=True, eq=False)
class HalfSpace:
    """Where weights @ facts + constant is positive; `closed` if also where it is zero."""

    weights: NDArray[np.float64]
    """(n_facts,)"""
    constant: float
    closed: bool


_ELSEWHERE = {
    PREVIOUS: "looks back with prev(...)",
    START: "reads the episode's start",
    CLOCKS: "reads a clock",
    MEMORY: "reads memory",
}
_SMALLER, _OPPOSITE = ("<", "<="), {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}


class Affine:
    """Affine forms of a program's rules.

    Args:
        controller: the program, with values for its parameters.
        facts: number of facts.
        actions: number of actions that `agent(...)` may take.
    """

    def __init__(self, controller: Controller, facts: int, actions: int) -> None:
        self._tape, self._settings = controller.program.rules, controller.settings
        self._facts, self._actions = facts, actions
        self._forms: dict[int, Form | NotAffineError] = {}

    def form(self, place: int) -> Form:
        """The form at a place.

        Raises:
            NotAffineError: saying what makes it another function.
        """
        if place not in self._forms:
            try:
                self._forms[place] = self._computed(place)
            except NotAffineError as error:
                self._forms[place] = error
        found = self._forms[place]
        if isinstance(found, NotAffineError):
            raise found
        return found

    def half_spaces(self, place: int, holds: bool = True) -> list[HalfSpace] | None:
        """The half-spaces whose intersection a condition (or, if not `holds`, its opposite) is.

        Returns:
            None where it never holds; an empty list where it always does.

        Raises:
            NotAffineError: if it is anything else.
        """
        instruction = self._tape.instructions[place]
        operation, operands = instruction.operation, instruction.operands
        if operation in ("true", "false"):
            return [] if (operation == "true") == holds else None
        if operation == "not":
            return self.half_spaces(operands[0], not holds)
        if operation in ("and", "or"):
            return self._joined(operands, holds, every=(operation == "and") == holds)
        if operation not in _OPPOSITE:
            raise NotAffineError(f"a guard compares by {operation}, which no half-spaces express")
        sign = operation if holds else _OPPOSITE[operation]
        low, high = operands if sign in _SMALLER else operands[::-1]
        return self._compared(low, high, closed="=" in sign)

    def _joined(self, operands: Sequence[int], holds: bool, every: bool) -> list[HalfSpace] | None:
        """Both conditions together; or either of them, if one of the two is constant."""
        found: list[HalfSpace] = []
        left = []
        for operand in operands:
            halves = self.half_spaces(operand, holds)
            if every and halves is None:
                return None
            if not every and halves == []:
                return []
            if halves:
                left.append(halves)
                found += halves
        if every or len(left) == 1:
            return found
        if not left:
            return None
        raise NotAffineError("a guard holds where either of two conditions does, which is no intersection")

    def _compared(self, low: int, high: int, closed: bool) -> list[HalfSpace] | None:
        """Where one place is smaller than the other."""
        halves = []
        for upper in self._each_of(high, "min"):
            for lower in self._each_of(low, "max"):
                gap = upper.plus(lower, -1.0)
                if gap.gains.any():
                    raise NotAffineError("a guard reads the agent's own action")
                if gap.weights.any():
                    halves.append(HalfSpace(gap.weights, gap.constant, closed))
                elif not (gap.constant > 0 or (closed and gap.constant == 0)):
                    return None
        return halves

    def _each_of(self, place: int, joint: str) -> list[Form]:
        """The forms of all parts of a largest (or smallest) value; |a| is the larger of a and -a."""
        instruction = self._tape.instructions[place]
        if instruction.operation == joint:
            return [form for operand in instruction.operands for form in self._each_of(operand, joint)]
        if instruction.operation == "abs" and joint == "max":
            inner = self.form(instruction.operands[0])
            return [inner, inner.times(-1.0)]
        return [self.form(place)]

    def _computed(self, place: int) -> Form:
        instruction = self._tape.instructions[place]
        if instruction.source >= 0:
            return self._read(instruction)
        if not instruction.operands:
            return self._number(instruction.value)
        if instruction.operation == "if":
            return self._choice(*instruction.operands)
        if instruction.operation == "as number":
            return self._number(float(self._settled(instruction.operands[0])))
        if instruction.operation == "setting":
            raise NotAffineError("it is a plan of several steps")
        forms = [self.form(operand) for operand in instruction.operands]
        if all(form.is_constant for form in forms):
            values = [np.float64(form.constant) for form in forms]
            return self._number(float(compute(instruction.operation, values)))
        combine = _LINEAR.get(instruction.operation)
        if combine is None:
            raise NotAffineError(f"{instruction.operation} of facts or actions is not linear")
        return combine(*forms)

    def _read(self, instruction: Instruction) -> Form:
        source, column = instruction.source, instruction.column
        if source in _ELSEWHERE:
            raise NotAffineError(f"it {_ELSEWHERE[source]}")
        form = self._number(float(self._settings[column]) if source == SETTINGS else 0.0)
        if source in (FACTS, AGENT):
            (form.weights if source == FACTS else form.gains)[column] = 1.0
        return form

    def _number(self, value: float) -> Form:
        return Form(np.zeros(self._facts), np.zeros(self._actions), value)

    def _choice(self, test: int, body: int, other: int) -> Form:
        return self.form(body if self._settled(test) else other)

    def _settled(self, condition: int) -> bool:
        """Whether a condition on constants holds."""
        for holds in (True, False):
            try:
                halves = self.half_spaces(condition, holds)
            except NotAffineError:
                continue
            if halves is None or halves == []:
                return (halves == []) == holds
        raise NotAffineError("what it does depends on a condition")


def _product(left: Form, right: Form) -> Form:
    if left.is_constant:
        return right.times(left.constant)
    if right.is_constant:
        return left.times(right.constant)
    raise NotAffineError("a product of two facts or actions is not linear")


def _quotient(left: Form, right: Form) -> Form:
    if not right.is_constant or right.constant == 0:
        raise NotAffineError("a division by facts or actions, or by zero, is not linear")
    return left.times(1.0 / right.constant)


_LINEAR: dict[str, Callable[..., Form]] = {
    "+": Form.plus,
    "-": lambda left, right: left.plus(right, -1.0),
    "negative": lambda form: form.times(-1.0),
    "*": _product,
    "/": _quotient,
}
