"""The guard language: conditions over named facts, parsed against a whitelist and never run as code.

    ball_dx > 0 and ball_x > 130 and abs(paddle_y - ball_y) > 8
    prev(torso_pitch) < torso_pitch and not height > 1.2

Known are comparisons (also chained), + - * / and unary minus, `and`, `or`, `not`, parentheses, the
functions `abs`, `sign`, `min`, `max`, facts by name, and `prev(fact)`, a fact one step earlier.
The text is read by Python's parser into a tree; every node of it is checked, then evaluated here on
whole arrays. Dividing by zero gives no number, and a comparison with no number does not hold.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import UltraError

LONGEST = 500
"""Characters of a guard."""
DEEPEST = 20
"""Levels of nesting."""
LARGEST = 1e9
"""Numbers in a guard may be so large."""

Values = NDArray[np.float64]


def _differ(left: Values, right: Values) -> NDArray[np.bool_]:
    """Not equal, where both are numbers; other comparisons do not hold without that anyway."""
    result: NDArray[np.bool_] = (left != right) & ~np.isnan(left) & ~np.isnan(right)
    return result


_Evaluator = Callable[[Values, Values], NDArray[np.generic]]

_COMPARISONS: dict[type[ast.cmpop], Callable[[Values, Values], NDArray[np.bool_]]] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: _differ,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Values, Values], Values]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
}
_FUNCTIONS: dict[str, tuple[int, Callable[..., Values]]] = {
    "abs": (1, np.abs),
    "sign": (1, np.sign),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
}
_SYNTAX = "comparisons, + - * /, and, or, not, abs, min, max, sign, prev(fact) and facts by name"


class ExpressionError(UltraError):
    """A guard that does not parse; the message names the part and what is allowed."""


class Term(NamedTuple):
    """A fact by its column, or a number."""

    column: int | None
    back: bool = False
    """Whether the fact of one step earlier is meant."""
    number: float = 0.0


class Test(NamedTuple):
    """A comparison of two facts, or of a fact and a number."""

    left: Term
    comparison: type[ast.cmpop]
    right: Term

    @property
    def upright(self) -> Test:
        """The same with > in place of <, and >= in place of <=."""
        comparison = {ast.Lt: ast.Gt, ast.LtE: ast.GtE}.get(self.comparison)
        return self if comparison is None else Test(self.right, comparison, self.left)


@dataclass(frozen=True)
class Expression:
    """A checked guard.

    Attributes:
        text: as it was written.
        names: facts that exist, in the order of the columns.
        facts: facts that it speaks of.
        uses_previous: whether it looks one step back.
        tests: where the guard says no more than that all of these hold; else empty.
    """

    text: str
    names: tuple[str, ...]
    facts: frozenset[str]
    uses_previous: bool
    tests: tuple[Test, ...]
    _evaluate: _Evaluator

    def evaluate(self, facts: Values, previous: Values | None = None) -> NDArray[np.bool_]:
        """Where the guard holds.

        Args:
            facts: (n, n_facts), columns as in `names`.
            previous: (n, n_facts) one step earlier; without it, `prev` sees the same step.

        Returns:
            (n,) booleans.

        Raises:
            ExpressionError: if the arrays do not have a column for each name.
        """
        before = facts if previous is None else previous
        if facts.ndim != 2 or facts.shape[1] != len(self.names) or before.shape != facts.shape:
            raise ExpressionError(
                f"facts of shapes {facts.shape} and {before.shape} do not fit the {len(self.names)} names of a guard"
            )
        with np.errstate(all="ignore"):
            holds = self._evaluate(facts, before)
        return np.broadcast_to(holds, (len(facts),)).astype(np.bool_)


class _Alike(NamedTuple):
    """Tests that make the same comparison, all with numbers or all with facts."""

    compare: Callable[[Values, Values], NDArray[np.bool_]]
    places: NDArray[np.intp]
    """Which of all tests they are."""
    left: NDArray[np.intp]
    """Columns of facts, those of one step before behind the present ones."""
    right: NDArray[np.intp] | None
    """Likewise; None where the tests compare with numbers."""
    signs: Values
    """1, or -1 where both sides change their sign: -x > -1 is x < 1."""
    numbers: Values

    def evaluate(self, seen: Values) -> NDArray[np.bool_]:
        """Where each holds: (n, tests), for facts (n, columns)."""
        if self.right is not None:
            return self.compare(seen[:, self.left], seen[:, self.right])
        return self.compare(seen[:, self.left] * self.signs, self.numbers)


class Guards:
    """Several guards of the same facts, evaluated together.

    Most guards join comparisons of facts and numbers by `and`: fifty of them take the same few array operations as one.
    """

    def __init__(self, guards: Sequence[Expression]) -> None:
        self._guards = list(guards)
        self.looks_back = any(guard.uses_previous for guard in guards)
        """Whether any guard speaks of facts one step earlier."""
        tests = [[test.upright for test in guard.tests] for guard in guards]
        simple = [bool(part) and not any(a.column is b.column is None for a, _, b in part) for part in tests]
        self._joined = np.flatnonzero(simple)
        self._others = [i for i, joined in enumerate(simple) if not joined]
        lengths = [len(tests[i]) for i in self._joined]
        self._starts = np.cumsum([0, *lengths])[:-1]
        width = len(guards[0].names) if guards else 0
        self._kinds = _alike([test for i in self._joined for test in tests[i]], width)
        self._order = np.argsort([place for kind in self._kinds for place in kind.places])

    def __len__(self) -> int:
        return len(self._guards)

    def evaluate(self, facts: Values, before: Values) -> NDArray[np.bool_]:
        """Where each guard holds: (n, guards), for facts (n, n_facts) and those one step before."""
        if not self._others:
            return self._together(facts, before)
        held = np.empty((len(facts), len(self._guards)), dtype=np.bool_)
        if self._kinds:
            held[:, self._joined] = self._together(facts, before)
        for number in self._others:
            held[:, number] = self._guards[number].evaluate(facts, before)
        return held

    def _together(self, facts: Values, before: Values) -> NDArray[np.bool_]:
        """Where each guard holds that joins tests: (n, guards)."""
        seen = np.concatenate([facts, before], axis=1) if self.looks_back else facts
        true = [kind.evaluate(seen) for kind in self._kinds]
        tests = true[0] if len(true) == 1 else np.concatenate(true, axis=1)[:, self._order]
        held: NDArray[np.bool_] = np.logical_and.reduceat(tests, self._starts, axis=1)
        return held


def _alike(tests: Sequence[Test], width: int) -> list[_Alike]:
    """Sort upright tests by what they compare and how; there are `width` facts, and one or two in each test."""
    groups: dict[tuple[type[ast.cmpop], bool], list[int]] = {}
    for place, (left, comparison, right) in enumerate(tests):
        groups.setdefault((comparison, left.column is None or right.column is None), []).append(place)

    def columns(terms: list[Term]) -> NDArray[np.intp]:
        return np.array([(term.column or 0) + width * term.back for term in terms], dtype=np.intp)

    result = []
    for (comparison, with_number), places in groups.items():
        sides = [(tests[i].left, tests[i].right) for i in places]
        signs = np.array([1.0 if left.column is not None else -1.0 for left, _ in sides])  # 1 > x is -x > -1
        facts = columns([left if left.column is not None else right for left, right in sides])
        others = None if with_number else columns([right for _, right in sides])
        numbers = signs * np.array([right.number if left.column is not None else left.number for left, right in sides])
        result.append(_Alike(_COMPARISONS[comparison], np.array(places), facts, others, signs, numbers))
    return result


class StepBefore:
    """Facts one step earlier, of n environments whose episodes begin at different times.

    In the state with which an episode begins, `prev` sees that state itself.
    """

    def __init__(self, size: int) -> None:
        self._facts: Values | None = None
        self._fresh = np.ones(size, dtype=np.bool_)

    def begin(self, environments: Sequence[int] | int | NDArray[np.intp]) -> None:
        """Episodes begin in these environments, or in this one."""
        self._fresh[environments] = True

    def of(self, facts: Values) -> Values:
        """What stood one step before `facts` (n, n_facts), which are kept for the next step: leave them unchanged."""
        before = facts if self._facts is None else self._facts
        if self._facts is not None and self._fresh.any():
            before[self._fresh] = facts[self._fresh]
        self._facts = facts
        self._fresh[:] = False
        return before

    def state(self) -> dict[str, Any]:
        """Plain JSON values, for a checkpoint."""
        return {"facts": None if self._facts is None else self._facts.tolist(), "fresh": self._fresh.tolist()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self._facts = None if state["facts"] is None else np.array(state["facts"])
        self._fresh[:] = state["fresh"]


def parse(text: str, names: Sequence[str]) -> Expression:
    """Read and check a guard.

    Args:
        text: the guard.
        names: facts that it may speak of.

    Raises:
        ExpressionError: naming the part that is not allowed, and what is.
    """
    if not isinstance(text, str) or not text.strip():
        raise ExpressionError("a guard is empty: write a condition such as `x > 0`")
    if len(text) > LONGEST:
        raise ExpressionError(f"a guard of {len(text)} characters is too long: at most {LONGEST}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ExpressionError(f"guard {text!r} does not parse ({reason}): known are {_SYNTAX}") from None
    reader = _Reader(text, tuple(names))
    evaluate = reader.condition(tree.body, 0)
    tests = reader.tests(tree.body)
    return Expression(text.strip(), reader.names, frozenset(reader.used), reader.looks_back, tests, evaluate)


def _number(node: ast.expr) -> float | None:
    """The value of a number, perhaps with a sign; None for anything else."""
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return float(value) if isinstance(value, int | float) else None


class _Reader:
    """Turns a tree into functions on arrays, node by node; whatever it does not know is an error."""

    def __init__(self, text: str, names: tuple[str, ...]) -> None:
        self.text, self.names = text, names
        self.used: set[str] = set()
        self.looks_back = False

    def _error(self, node: ast.AST, reason: str) -> ExpressionError:
        part = ast.get_source_segment(self.text.strip(), node) if isinstance(node, ast.expr) else None
        return ExpressionError(f"guard {self.text!r}: {part or type(node).__name__!r} {reason}")

    def _deeper(self, node: ast.AST, depth: int) -> int:
        if depth >= DEEPEST:
            raise self._error(node, f"is nested too deeply: at most {DEEPEST} levels")
        return depth + 1

    def tests(self, node: ast.expr) -> tuple[Test, ...]:
        """The comparisons of facts and numbers that a checked condition consists of, or nothing."""
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            parts = [self.tests(value) for value in node.values]
            return tuple(test for part in parts for test in part) if all(parts) else ()
        if not isinstance(node, ast.Compare):
            return ()
        terms = [self._term(side) for side in (node.left, *node.comparators)]
        pairs = [(left, right) for left, right in pairwise(terms) if left is not None and right is not None]
        if len(pairs) < len(node.ops):
            return ()
        return tuple(Test(left, type(op), right) for (left, right), op in zip(pairs, node.ops, strict=True))

    def _term(self, node: ast.expr) -> Term | None:
        """A fact, a fact one step before or a number; None for anything that must be computed."""
        number = _number(node)
        if number is not None:
            return Term(None, number=number)
        back = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "prev"
        name = node.args[0] if isinstance(node, ast.Call) and back else node
        return Term(self._column(name), back) if isinstance(name, ast.Name) else None

    def condition(self, node: ast.expr, depth: int) -> _Evaluator:
        """A node that is true or false."""
        depth = self._deeper(node, depth)
        if isinstance(node, ast.BoolOp):
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            parts = [self.condition(value, depth) for value in node.values]
            return lambda now, before: reduce(join, [part(now, before) for part in parts])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.condition(node.operand, depth)
            return lambda now, before: np.logical_not(inner(now, before))
        if isinstance(node, ast.Compare):
            return self._comparison(node, depth)
        raise self._error(node, "is not a condition: compare it with something, for instance `> 0`")

    def _comparison(self, node: ast.Compare, depth: int) -> _Evaluator:
        unknown = next((op for op in node.ops if type(op) not in _COMPARISONS), None)
        if unknown is not None:
            raise self._error(node, f"compares by {type(unknown).__name__}: known are < <= > >= == !=")
        sides = [self.number(side, depth) for side in (node.left, *node.comparators)]
        tests = [_COMPARISONS[type(op)] for op in node.ops]

        def compare(now: Values, before: Values) -> NDArray[np.generic]:
            values = [side(now, before) for side in sides]
            held = [test(left, right) for test, (left, right) in zip(tests, pairwise(values), strict=True)]
            return reduce(np.logical_and, held)

        return compare

    def number(self, node: ast.expr, depth: int) -> Callable[[Values, Values], Values]:
        """A node that is a number."""
        depth = self._deeper(node, depth)
        if isinstance(node, ast.Constant):
            return self._constant(node)
        if isinstance(node, ast.Name):
            column = self._column(node)
            return lambda now, before: now[:, column]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            inner, sign = self.number(node.operand, depth), -1.0 if isinstance(node.op, ast.USub) else 1.0
            return lambda now, before: sign * inner(now, before)
        if isinstance(node, ast.BinOp):
            if type(node.op) not in _ARITHMETIC:
                raise self._error(node, f"uses {type(node.op).__name__}: known are + - * /")
            operate = _ARITHMETIC[type(node.op)]
            left, right = self.number(node.left, depth), self.number(node.right, depth)
            return lambda now, before: operate(left(now, before), right(now, before))
        if isinstance(node, ast.Call):
            return self._call(node, depth)
        raise self._error(node, f"is not allowed in a guard: known are {_SYNTAX}")

    def _constant(self, node: ast.Constant) -> Callable[[Values, Values], Values]:
        value = node.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise self._error(node, f"is not a number of at most {LARGEST:g}")
        constant = np.asarray(float(value))
        return lambda now, before: constant

    def _column(self, node: ast.expr) -> int:
        if not isinstance(node, ast.Name) or node.id not in self.names:
            raise self._error(node, f"is not a fact: facts are {', '.join(self.names)}")
        self.used.add(node.id)
        return self.names.index(node.id)

    def _call(self, node: ast.Call, depth: int) -> Callable[[Values, Values], Values]:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if node.keywords or (name != "prev" and name not in _FUNCTIONS):
            raise self._error(node, "calls something unknown: functions are abs, min, max, sign and prev")
        if name == "prev":
            if len(node.args) != 1:
                raise self._error(node, "must name one fact: prev(fact)")
            column = self._column(node.args[0])
            self.looks_back = True
            return lambda now, before: before[:, column]
        least, function = _FUNCTIONS[name]
        arguments = [self.number(argument, depth) for argument in node.args]
        if len(arguments) < least or (least == 1 and len(arguments) > 1):
            raise self._error(
                node, f"has {len(arguments)} arguments: {name} takes {'one' if least == 1 else '2 or more'}"
            )

        def call(now: Values, before: Values) -> Values:
            values = [argument(now, before) for argument in arguments]
            result = function(*values[:least])
            for value in values[least:]:
                result = function(result, value)
            return result

        return call
