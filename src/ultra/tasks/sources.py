"""Where a card's facts come from: arithmetic over observations, attributes and simulator state.

    obs[3]                      an entry of the flattened observation
    argmax(obs[0:16])           which of some entries is largest: the value of a Discrete part
    atan2(obs[1], obs[0])       arithmetic: + - * /, abs, sign, sqrt, floor, sin, cos, atan2, min, max
    env.agent_pos[0]            an attribute of the environment, by names and numbers (no calls)
    qpos[2], qvel[2], xpos[1][2]   arrays of MuJoCo's data
    height[4], contact[4]       of a MuJoCo body: its lowest point above the floor, and whether it touches it
    ram[99]                     a byte of an Atari console
    objects['pong']['Ball'][0]['x']   an object of an Atari game, through OCAtari

The text is read by Python's parser into a tree whose every node is checked; it is never run as code.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import UltraError
from ultra.tasks.atari_objects import Objects

Envs = Sequence[gymnasium.Env[Any, Any]]
Reader = Callable[[Envs, NDArray[np.float32]], NDArray[np.float64]]
"""(environments, observations (n, observation_size)) -> values (n,), or (n, k) of k facts."""

_OPERATORS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "abs": (1, np.abs), "sign": (1, np.sign), "sqrt": (1, np.sqrt), "floor": (1, np.floor),
    "sin": (1, np.sin), "cos": (1, np.cos), "atan2": (2, np.arctan2), "min": (2, np.minimum), "max": (2, np.maximum),
}  # fmt: skip
_CALLS: dict[str, Callable[..., Any]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "negative": np.negative,
    **{name: function for name, (_, function) in _FUNCTIONS.items()},
}  # fmt: skip


def _ground() -> Any:
    """Imported when it is needed: MuJoCo may not be installed."""
    from ultra.tasks import ground

    return ground


_ROOTS: dict[str, Callable[[Any], Any]] = {
    "env": lambda base: base,
    "ram": lambda base: base.ale.getRAM(),
    "objects": Objects,
    "qpos": lambda base: base.data.qpos,
    "qvel": lambda base: base.data.qvel,
    "xpos": lambda base: base.data.xpos,
    "height": lambda base: _ground().Heights(base),
    "contact": lambda base: _ground().Touches(base),
}


Form = Any
"""A checked source: a number, or a tuple of an operation's name and its operands, forms or numbers themselves."""


class SourceError(UltraError):
    """A fact's source that cannot be read; the message names the part."""


def compile_source(text: str, observation_size: int) -> Reader:
    """Make a function of a source.

    Raises:
        SourceError: if it does not parse, or uses what is not known.
    """
    return _reader(parse_source(text, observation_size), text)


def parse_source(text: str, observation_size: int) -> Form:
    """Check a source, and take it apart: `atan2(obs[1], 2)` is `("atan2", ("obs", 1), 2.0)`.

    Raises:
        SourceError: if it does not parse, or uses what is not known.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SourceError(f"source {text!r} does not parse: {error}") from error
    return _parse(tree, text, observation_size)


def of_observation(form: Form) -> bool:
    """Whether a checked source reads nothing but the observation."""
    if not isinstance(form, tuple):
        return True
    return form[0] != "path" and all(of_observation(operand) for operand in form[1:])


def _parse(node: ast.expr, text: str, size: int) -> Form:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return "negative", _parse(operand, text, size)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            return _OPERATORS[type(operator)], _parse(left, text, size), _parse(right, text, size)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS or name == "argmax":
            return _function(name, args, text, size)
        case ast.Subscript(value=ast.Name(id="obs"), slice=ast.Constant(value=int() as entry)):
            if not 0 <= entry < size:
                raise SourceError(f"source {text!r}: the observation has entries 0 to {size - 1}")
            return "obs", entry
        case ast.Subscript() | ast.Attribute():
            return _path(node, text)
    raise SourceError(
        f"source {text!r}: {ast.unparse(node)!r} is not known; known are obs[i], {', '.join(_ROOTS)}, numbers, "
        f"+ - * /, argmax(obs[a:b]) and {', '.join(_FUNCTIONS)}"
    )


def _function(name: str, args: list[ast.expr], text: str, size: int) -> Form:
    if name == "argmax":
        return _largest(args, text, size)
    count, _ = _FUNCTIONS[name]
    if len(args) != count:
        raise SourceError(f"source {text!r}: {name} takes {count} values, not {len(args)}")
    return name, *(_parse(arg, text, size) for arg in args)


def _largest(args: list[ast.expr], text: str, size: int) -> Form:
    """Which of the entries `obs[a:b]` is the largest, from 0."""
    match args:
        case [
            ast.Subscript(
                value=ast.Name(id="obs"),
                slice=ast.Slice(lower=ast.Constant(value=int() as a), upper=ast.Constant(value=int() as b), step=None),
            )
        ] if 0 <= a < b <= size:
            return "argmax", a, b
    raise SourceError(f"source {text!r}: argmax takes entries of the observation, as obs[0:{size}]")


def _path(node: ast.expr, text: str) -> Form:
    """Attributes and entries of each environment, from one of the roots."""
    steps: list[tuple[bool, Any]] = []
    while not isinstance(node, ast.Name):
        match node:
            case ast.Attribute(value=value, attr=name) if not name.startswith("_"):
                steps.append((True, name))
            case ast.Subscript(value=value, slice=ast.Constant(value=int() | str() as key)):
                steps.append((False, key))
            case _:
                raise SourceError(f"source {text!r}: {ast.unparse(node)!r} is neither an attribute nor an entry")
        node = value
    if node.id not in _ROOTS:
        raise SourceError(f"source {text!r}: unknown name {node.id!r}; known are obs, {', '.join(_ROOTS)}")
    return "path", node.id, tuple(steps[::-1])


def _reader(form: Form, text: str) -> Reader:
    """The function of a checked source."""
    match form:
        case ("obs", entry):
            return lambda envs, observations: observations[:, entry].astype(np.float64)
        case ("argmax", first, last):
            return lambda envs, observations: observations[:, first:last].argmax(axis=1).astype(np.float64)
        case ("path", root, path):
            return lambda envs, observations: np.array(
                [_follow(_ROOTS[root], env.unwrapped, list(path), text) for env in envs], np.float64
            )
        case (name, *operands):
            function, parts = _CALLS[name], [_reader(operand, text) for operand in operands]
            return lambda envs, observations: function(*(part(envs, observations) for part in parts))
    return lambda envs, observations: np.full(len(observations), form)


def _follow(root: Callable[[Any], Any], base: Any, path: list[tuple[bool, Any]], text: str) -> float:
    try:
        value = root(base)
        for attribute, key in path:
            value = getattr(value, key) if attribute else value[key]
        return float(value)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise SourceError(f"source {text!r} cannot be read: {' '.join(str(error).split())}") from error
