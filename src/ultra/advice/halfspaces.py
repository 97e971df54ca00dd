"""Guards as half-spaces: which linear forms of the facts must be positive where a guard holds."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ultra.advice.expression import Expression


@dataclass(frozen=True)
class HalfSpace:
    """Where weights @ facts + constant is positive; `closed` if also where it is zero."""

    weights: NDArray[np.float64]
    """(n_facts,)"""
    constant: float
    closed: bool


def half_spaces(guard: Expression) -> list[HalfSpace] | None:
    """The half-spaces whose intersection a guard is, or None if it is anything else.

    Such are comparisons (also chained) of sums and differences of facts, each times a number, and
    `abs(...) < ...`, joined by `and`.
    """
    return _condition(ast.parse(guard.text, mode="eval").body, guard.names)


_Form = tuple[NDArray[np.float64], float]
"""Weights of the facts, and a constant."""


def _condition(node: ast.expr, names: tuple[str, ...]) -> list[HalfSpace] | None:
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        parts = [_condition(value, names) for value in node.values]
        return None if any(part is None for part in parts) else [half for part in parts if part for half in part]
    if not isinstance(node, ast.Compare):
        return None
    found: list[HalfSpace] = []
    for sides, operator in zip(pairwise([node.left, *node.comparators]), node.ops, strict=True):
        if not isinstance(operator, ast.Gt | ast.GtE | ast.Lt | ast.LtE):
            return None
        low, high = sides[::-1] if isinstance(operator, ast.Gt | ast.GtE) else sides
        smaller, larger = _either_sign(low, names), _linear(high, names)
        if smaller is None or larger is None:
            return None
        closed = isinstance(operator, ast.LtE | ast.GtE)
        found += [HalfSpace(larger[0] - side[0], larger[1] - side[1], closed) for side in smaller]
    return found


def _either_sign(node: ast.expr, names: tuple[str, ...]) -> list[_Form] | None:
    """The form, or both signs of what `abs` is taken of: that is smaller where both are."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "abs":
        inner = _linear(node.args[0], names)
        return None if inner is None else [inner, (-inner[0], -inner[1])]
    form = _linear(node, names)
    return None if form is None else [form]


def _linear(node: ast.expr, names: tuple[str, ...]) -> _Form | None:
    """A node of a checked guard as weights and a constant; None if it is not linear."""
    form: _Form | None = None
    match node:
        case ast.Constant():
            form = np.zeros(len(names)), float(node.value)  # type: ignore[arg-type]
        case ast.Name():
            form = np.eye(len(names))[names.index(node.id)], 0.0
        case ast.UnaryOp():
            sign = -1.0 if isinstance(node.op, ast.USub) else 1.0
            form = _combined(ast.Mult(), (np.zeros(len(names)), sign), _linear(node.operand, names))
        case ast.BinOp():
            form = _combined(node.op, _linear(node.left, names), _linear(node.right, names))
    return form


def _combined(operator: ast.operator, left: _Form | None, right: _Form | None) -> _Form | None:
    """The sum, difference, product or quotient of two forms, if it is linear."""
    if left is None or right is None:
        return None
    if isinstance(operator, ast.Add | ast.Sub):
        sign = -1.0 if isinstance(operator, ast.Sub) else 1.0
        return left[0] + sign * right[0], left[1] + sign * right[1]
    if isinstance(operator, ast.Mult) and not left[0].any():
        left, right = right, left
    if right[0].any() or (isinstance(operator, ast.Div) and right[1] == 0):
        return None
    factor = 1 / right[1] if isinstance(operator, ast.Div) else right[1]
    return factor * left[0], factor * left[1]
