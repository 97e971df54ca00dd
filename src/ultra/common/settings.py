"""Settings with types and bounds: checked where they are made, the same from the command line, files and Python."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from ultra.common.errors import SettingError

_MISSING = (tyro.MISSING, tyro.constructors.MISSING_NONPROP)
"""Stand in for what the command line has not read yet."""


FAR = 20
"""Upper bounds beyond this are only told to who is above them."""


@dataclass(frozen=True)
class Bounds:
    """What a number must lie between; it must also be finite."""

    low: float
    high: float
    above: bool = False
    """Whether `low` itself is too low."""
    below: bool = False
    """Whether `high` itself is too high."""

    def hold(self, value: float) -> bool:
        """Whether a number lies inside; NaN does not."""
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def needed(self, value: float) -> str:
        """How the sentence "but must be ..." goes on for a number outside; a bound that is far off is left out."""
        low = f"{'above' if self.above else 'at least'} {self.low:,g}"
        high = f"{'below' if self.below else 'at most'} {self.high:,.15g}"
        if self.high > FAR:
            return high if value > self.low else low
        return f"{low} and {high}" if self.above or self.below else f"between {self.low:g} and {self.high:g}"


_deferred: ContextVar[list[SettingError] | None] = ContextVar("deferred", default=None)


@contextmanager
def checked_at_the_end() -> Iterator[None]:
    """Settings that are made in this context are refused when it ends: a parser in between prints no error of its own.

    Raises:
        SettingError: for the first that was refused.
    """
    found: list[SettingError] = []
    token = _deferred.set(found)
    try:
        yield
    finally:
        _deferred.reset(token)
    if found:
        raise found[0]


@dataclass(frozen=True)
class Settings:
    """A record whose fields have the types and `Bounds` that their annotations say.

    What means the same is accepted: whole numbers as floats, paths as text, lists as tuples, NumPy's numbers.

    Raises:
        SettingError: for a value of another type, or outside its bounds.
    """

    PREFIX: ClassVar[str] = ""
    """Where the record stands in that of all settings."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if any(value is missing for missing in _MISSING):
                continue
            try:
                object.__setattr__(self, field.name, _settled(_annotations(type(self))[field.name], value))  # type: ignore[arg-type]
            except _RefusedError as refused:
                self.refuse(field.name, value, refused.needed)

    def refuse(self, field: str, value: object, needed: str) -> None:
        """Say that a value cannot be.

        Args:
            field: name of the field.
            value: as it was given.
            needed: how the sentence "but must be ..." goes on.
        """
        own = _arg_of(type(self), field)  # type: ignore[arg-type]
        name = f"{self.PREFIX}.{own.name or field}" if self.PREFIX else own.name or field
        usual = f"--{name.replace('_', '-')}"
        short = tuple(alias for alias in own.aliases if "." not in alias)
        error = SettingError(name, (*short, usual, *own.aliases), f"is {_shown(value)}, but must be {needed}")
        found = _deferred.get()
        if found is None:
            raise error
        found.append(error)


def check(kind: Any, name: str, value: Any) -> Any:
    """A single value as an annotation says, with the same error as in a record.

    Raises:
        SettingError: if it is of another type, or outside its bounds.
    """
    try:
        return _settled(kind, value)
    except _RefusedError as refused:
        option = f"--{name.replace('_', '-')}"
        raise SettingError(name, (option,), f"is {_shown(value)}, but must be {refused.needed}") from None


class _RefusedError(Exception):
    def __init__(self, needed: str) -> None:
        self.needed = needed


@dataclass(frozen=True)
class _Arg:
    name: str | None
    aliases: tuple[str, ...]


@cache
def _arg_of(kind: type[Any], field: str) -> _Arg:
    """Names on the command line, from `tyro.conf.arg`."""
    for item in get_args(_annotations(kind)[field])[1:]:  # type: ignore[arg-type]
        if hasattr(item, "aliases"):
            return _Arg(item.name, tuple(item.aliases or ()))
    return _Arg(None, ())


@cache
def _annotations(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _settled(kind: Any, value: Any) -> Any:
    """A value as an annotation says."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        settled = _settled(arguments[0], value)
        for bounds in arguments[1:]:
            if isinstance(bounds, Bounds) and settled is not None and not bounds.hold(settled):
                raise _RefusedError(bounds.needed(settled))
        return settled
    if origin in (Union, UnionType):
        inner = next(part for part in arguments if part is not NoneType)
        return None if value is None and NoneType in arguments else _settled(inner, value)
    if origin is Literal:
        if value not in arguments:
            raise _RefusedError(f"one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise _RefusedError("a list")
        return tuple(_settled(arguments[0], item) for item in value)
    if is_dataclass(kind) and not isinstance(value, kind):  # type: ignore[arg-type]
        raise _RefusedError(f"a {kind.__name__}")  # type: ignore[union-attr]
    return _NATURAL[kind](value) if kind in _NATURAL else value


def _whole(value: Any) -> int:
    if not isinstance(value, bool):
        if isinstance(value, float) and value.is_integer():
            return int(value)
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise _RefusedError("a whole number")


def _real(value: Any) -> float:
    if isinstance(value, bool | str | bytes):
        raise _RefusedError("a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise _RefusedError("a number") from None
    return number


def _truth(value: Any) -> bool:
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    raise _RefusedError("true or false")


def _text(value: Any) -> str:
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        if isinstance(text, str):
            return text
    raise _RefusedError("text")


_NATURAL = {int: _whole, float: _real, bool: _truth, str: _text}


def _shown(value: object) -> str:
    if isinstance(value, tuple | list):
        value = " ".join(map(str, value)) or "empty"
    text = f"{value:,}" if isinstance(value, int) and abs(value) >= 10**6 else str(value)
    text = repr(value) if isinstance(value, str) and (not value or value != value.strip()) else " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:100]}..."
