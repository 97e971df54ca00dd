"""The expression language of guards, programs and potentials: whitelisted, and never run as code.

    ball_dx > 0 and ball_x > 130 and abs(paddle_y - ball_y) > 8
    clip(k * (target - angle) - d * angle_velocity, -1, 1) if abs(angle) > 0.1 else agent(torque)

The text is read by Python's parser into a tree. Every node is checked against a whitelist and becomes an
instruction on arrays, one entry for each environment; equal subexpressions become one instruction. There is one
evaluator, `Tape.run`, for guards, actions and potentials alike.

Numbers follow IEEE arithmetic: dividing zero by zero gives no number (NaN), and a comparison with no number does
not hold. A condition that is used as a number counts as 1 or 0.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import UltraError
from ultra.programs.tape import (
    AGENT,
    ARITHMETIC,
    COMPARISONS,
    FACTS,
    FUNCTIONS,
    PREVIOUS,
    START,
    Instruction,
    Tape,
    Values,
    frame,
)

MAX_LENGTH = 600
"""Most characters of an expression."""
MAX_DEPTH = 24
"""Most levels of nesting."""
MAX_NUMBER = 1e9
"""Largest magnitude of a number that is written in an expression."""

LONGEST_MESSAGE = 4000
"""Characters of an error, which shows parts of what was given."""


def printable(text: str) -> str:
    """A text on one line, without characters that terminals or pages might obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class ExpressionError(UltraError):
    """An expression that is not allowed; the message names the part and what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message[:LONGEST_MESSAGE]))


_READS = {"prev": PREVIOUS, "start": START}
RESERVED = frozenset({*FUNCTIONS, *_READS, "agent", "true", "false", "pi", "and", "or", "not", "if", "else"})
"""Names that parameters, clocks, registers and lets may not have."""
SYNTAX = (
    "+ - * / % **, comparisons, and, or, not, x if condition else y, "
    f"{', '.join(FUNCTIONS)}, prev(fact), start(fact), agent(action), true, false, pi, and known names"
)
"""What may stand in an expression, for messages and prompts."""


class Reader:
    """Turns text into instructions of a tape; whatever it does not know is an error that names it.

    Args:
        tape: to which instructions are appended.
        facts: names of the facts, by column.
        actions: names that `agent(...)` may take; empty where there is no agent.
        names: further names (parameters, clocks, registers, lets), each with what makes its instructions.
        what: what is being read, for messages: `guard`, `rules[2].set.thigh`.
    """

    def __init__(
        self,
        tape: Tape,
        facts: Sequence[str],
        actions: Sequence[str] = (),
        names: Mapping[str, Callable[[], int]] | None = None,
        what: str = "guard",
    ) -> None:
        self.tape, self.what = tape, what
        self._facts = {name: column for column, name in enumerate(facts)}
        self._actions = {name: column for column, name in enumerate(actions)}
        self._names = names or {}
        self._text = ""

    def condition(self, text: str, what: str = "") -> int:
        """The place of an expression that is true or false.

        Raises:
            ExpressionError: naming the part that is not allowed, and what is.
        """
        node = self._parse(text, what)
        place = self._read(node, 0)
        if not self.tape.is_condition(place):
            raise self._error(node, "is not a condition: compare it with something, for instance `> 0`")
        return place

    def number(self, text: str, what: str = "") -> int:
        """The place of an expression that is a number; a condition counts as 1 or 0.

        Raises:
            ExpressionError: naming the part that is not allowed, and what is.
        """
        return self._number(self._parse(text, what), 0)

    def value(self, text: str, what: str = "") -> int:
        """The place of an expression that is a number or a condition.

        Raises:
            ExpressionError: naming the part that is not allowed, and what is.
        """
        return self._read(self._parse(text, what), 0)

    def _parse(self, text: str, what: str) -> ast.expr:
        self.what = what or self.what
        if not isinstance(text, str) or not text.strip():
            raise ExpressionError(f"{self.what} is empty: write an expression such as `x > 0`")
        if len(text) > MAX_LENGTH:
            raise ExpressionError(
                f"{self.what} has {len(text)} characters: at most {MAX_LENGTH} are allowed; split it with `let`"
            )
        self._text = text.strip()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse(self._text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
            raise ExpressionError(
                f"{self.what} {printable(self._text)!r} does not parse ({reason}): known are {SYNTAX}"
            ) from None

    def _error(self, node: ast.AST, reason: str) -> ExpressionError:
        part = ast.get_source_segment(self._text, node) if isinstance(node, ast.expr) else None
        shown = part or repr(type(node).__name__)
        return ExpressionError(f"{self.what} {printable(self._text)!r}: {shown} {reason}")

    def _number(self, node: ast.expr, depth: int) -> int:
        place = self._read(node, depth)
        return self.tape.add(Instruction("as number", (place,))) if self.tape.is_condition(place) else place

    def _condition(self, node: ast.expr, depth: int) -> int:
        place = self._read(node, depth)
        if not self.tape.is_condition(place):
            raise self._error(node, "is not a condition: compare it with something, for instance `> 0`")
        return place

    def _read(self, node: ast.expr, depth: int) -> int:
        """The place of a node's value."""
        if depth >= MAX_DEPTH:
            raise self._error(node, f"is nested too deeply: at most {MAX_DEPTH} levels")
        depth += 1
        match node:
            case ast.Constant():
                place = self._constant(node)
            case ast.Name():
                place = self._name(node)
            case ast.BoolOp():
                place = self._joined(node, depth)
            case ast.UnaryOp(op=ast.Not()):
                place = self.tape.add(Instruction("not", (self._condition(node.operand, depth),)))
            case ast.UnaryOp(op=ast.UAdd()):
                place = self._number(node.operand, depth)
            case ast.UnaryOp(op=ast.USub()):
                place = self.tape.add(Instruction("negative", (self._number(node.operand, depth),)))
            case ast.Compare():
                place = self._comparison(node, depth)
            case ast.BinOp():
                place = self._arithmetic(node, depth)
            case ast.IfExp():
                place = self._choice(node, depth)
            case ast.Call():
                place = self._call(node, depth)
            case _:
                raise self._error(node, f"is not allowed: known are {SYNTAX}")
        return place

    def _constant(self, node: ast.Constant) -> int:
        value = node.value
        if isinstance(value, bool):
            raise self._error(node, f"is written {str(value).lower()} here")
        if not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER:
            raise self._error(node, f"is not a number of at most {MAX_NUMBER:g}")
        return self.tape.number(float(value))

    def _name(self, node: ast.Name) -> int:
        name = node.id
        if name in ("true", "false"):
            return self.tape.add(Instruction(name))
        if name == "pi":
            return self.tape.number(math.pi)
        if name in self._facts:
            return self.tape.read(FACTS, self._facts[name])
        if name in self._names:
            return self._names[name]()
        if name in self._actions:
            raise self._error(node, f"is an action: what the agent itself does is agent({name})")
        known = ", ".join([*self._facts, *self._names])
        raise self._error(node, f"is not a fact or a known name: known are {known}")

    def _joined(self, node: ast.BoolOp, depth: int) -> int:
        join = "and" if isinstance(node.op, ast.And) else "or"
        place, *others = [self._condition(value, depth) for value in node.values]
        for other in others:
            place = self.tape.add(Instruction(join, (place, other)))
        return place

    def _comparison(self, node: ast.Compare, depth: int) -> int:
        sides = [self._number(side, depth) for side in (node.left, *node.comparators)]
        place = -1
        for op, pair in zip(node.ops, pairwise(sides), strict=True):
            if type(op) not in COMPARISONS:
                raise self._error(node, f"compares by {type(op).__name__}: known are < <= > >= == !=")
            held = self.tape.add(Instruction(COMPARISONS[type(op)][0], pair))
            place = held if place < 0 else self.tape.add(Instruction("and", (place, held)))
        return place

    def _arithmetic(self, node: ast.BinOp, depth: int) -> int:
        if type(node.op) not in ARITHMETIC:
            raise self._error(node, f"uses {type(node.op).__name__}: known are + - * / % **")
        operands = self._number(node.left, depth), self._number(node.right, depth)
        return self.tape.add(Instruction(ARITHMETIC[type(node.op)][0], operands))

    def _choice(self, node: ast.IfExp, depth: int) -> int:
        test = self._condition(node.test, depth)
        return self.tape.add(
            Instruction("if", (test, self._number(node.body, depth), self._number(node.orelse, depth)))
        )

    def _call(self, node: ast.Call, depth: int) -> int:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if node.keywords or (name not in FUNCTIONS and name not in (*_READS, "agent")):
            raise self._error(
                node, f"calls something unknown: functions are {', '.join([*FUNCTIONS, *_READS, 'agent'])}"
            )
        if name in FUNCTIONS:
            least, most, _ = FUNCTIONS[name]
            if not least <= len(node.args) <= most:
                wanted = str(least) if least == most else f"{least} to {most}"
                raise self._error(node, f"has {len(node.args)} arguments: {name} takes {wanted}")
            operands = tuple(self._number(argument, depth) for argument in node.args)
            return self.tape.add(Instruction(name, operands))
        table, kind = (self._actions, "action") if name == "agent" else (self._facts, "fact")
        argument = node.args[0] if len(node.args) == 1 else None
        if not isinstance(argument, ast.Name) or argument.id not in table:
            known = ", ".join(table) or f"none here, {name} cannot be used"
            raise self._error(node, f"must name one {kind}: {name}({kind}); {kind}s are {known}")
        return self.tape.read(AGENT if name == "agent" else _READS[name], table[argument.id])


@dataclass(frozen=True)
class Condition:
    """A checked guard over facts alone.

    Attributes:
        text: as it was written.
        names: facts that exist, in the order of the columns.
        tape, place: its instructions.
    """

    text: str
    names: tuple[str, ...]
    tape: Tape = field(repr=False, compare=False)
    place: int = field(repr=False, compare=False)

    @property
    def facts(self) -> frozenset[str]:
        """Facts that it speaks of."""
        columns = self.tape.reads(FACTS) | self.tape.reads(PREVIOUS) | self.tape.reads(START)
        return frozenset(self.names[column] for column in columns)

    def evaluate(self, facts: Values, previous: Values | None = None) -> NDArray[np.bool_]:
        """Where the guard holds (n,).

        Args:
            facts: (n, n_facts), columns as in `names`.
            previous: (n, n_facts) one step earlier; without it, `prev` sees the same step.

        Raises:
            ExpressionError: if the arrays do not have a column for each name.
        """
        before = facts if previous is None else previous
        if facts.ndim != 2 or facts.shape[1] != len(self.names) or before.shape != facts.shape:
            raise ExpressionError(
                f"facts of shapes {facts.shape} and {before.shape} do not fit the {len(self.names)} names of a guard"
            )
        held = self.tape.run(frame(facts, before))[self.place]
        return np.broadcast_to(held, (len(facts),)).astype(np.bool_)


def parse(text: str, names: Sequence[str]) -> Condition:
    """Read and check a guard over facts.

    Args:
        text: the guard.
        names: facts that it may speak of.

    Raises:
        ExpressionError: naming the part that is not allowed, and what is.
    """
    tape = Tape()
    place = Reader(tape, names).condition(text)
    return Condition(text.strip(), tuple(names), tape, place)
