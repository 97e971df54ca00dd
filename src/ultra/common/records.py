"""Frozen records from plain values (YAML, JSON): every name and type is checked, errors say where and what."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ultra.common.errors import UltraError

Record = TypeVar("Record")

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def record_from(kind: type[Record], value: Mapping[str, Any], where: str = "", missing: object = MISSING) -> Record:
    """Build a record from plain values, records within it too.

    Args:
        kind: a dataclass; other names of its fields may stand in its `ALIASES`.
        value: fields by name; what is left out keeps its default.
        where: path of the record, for errors (`tasks.hopper`).
        missing: what fields without a default get when they are left out; by default that is an error.

    Raises:
        UltraError: for an unknown name (the closest is offered), a missing one, or a value of another type.
    """
    if not isinstance(value, Mapping):
        raise UltraError(f"{where or 'the file'} must hold settings by name, not {value!r}")
    types = _types(kind)  # type: ignore[arg-type]
    value = canonical(kind, value, where)
    for name in value:
        if name not in types:
            known = [*types, *getattr(kind, "ALIASES", {})]
            raise UltraError(f"unknown setting {_join(where, name)!r}: {closest(str(name), known)}")
    values = {name: _convert(types[name], item, _join(where, name)) for name, item in value.items()}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.default is field.default_factory is MISSING and field.name not in values:
            if missing is MISSING:
                raise UltraError(f"setting {_join(where, field.name)!r} is missing")
            values[field.name] = missing
    return kind(**values)


def canonical(kind: type[Any], value: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Plain values with every alias replaced by its field's name, in records within them too.

    Raises:
        UltraError: if a field is given under both of its names.
    """
    aliases: Mapping[str, str] = getattr(kind, "ALIASES", {})
    types = _types(kind)  # type: ignore[arg-type]
    result: dict[str, Any] = {}
    for name, item in value.items():
        field = aliases.get(name, name)
        if field in result:
            names = " and ".join(repr(_join(where, given)) for given in value if aliases.get(given, given) == field)
            raise UltraError(f"{names} are the same setting: give it once")
        inner = types.get(field)
        nested = is_dataclass(inner) and isinstance(item, Mapping)
        result[field] = canonical(inner, item, _join(where, name)) if nested else item  # type: ignore[arg-type]
    return result


def closest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the closest known one, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(names))}"


@cache
def _types(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _join(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)


def _convert(kind: Any, value: Any, where: str) -> Any:
    """A plain value as a field's type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        return _convert(next(part for part in arguments if part is not NoneType), value, where)
    if origin is Literal and value not in arguments:
        raise UltraError(f"{where} is {value!r}: {closest(str(value), map(str, arguments))}")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UltraError(f"{where} is {value!r}, but must be a list")
        return tuple(_convert(arguments[0], item, f"{where}[{place}]") for place, item in enumerate(value))
    if is_dataclass(kind):
        return value if isinstance(value, kind) else record_from(kind, value, where)  # type: ignore[arg-type]
    if origin is Mapping and not isinstance(value, Mapping):
        raise UltraError(f"{where} must hold settings by name, not {value!r}")
    return _plain(kind, value, where)


def whole_number(text: str) -> int:
    """A whole number as people write it: `200000`, `200_000` or `2e5`.

    Raises:
        ValueError: if it is none.
    """
    try:
        return int(text)
    except ValueError:
        number = Decimal(text.replace("_", "")) if re.fullmatch(r"[-+]?[\d_]*\.?[\d_]+[eE]\+?\d{1,2}", text) else None
    if number is None or number != number.to_integral_value():
        raise ValueError(f"{text!r} is not a whole number")
    return int(number)


def _plain(kind: Any, value: Any, where: str) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind in (int, float) and isinstance(value, str):  # YAML reads 1e-5, without a point, as text
        with suppress(ValueError):
            return whole_number(value) if kind is int else float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is float and type(value) is int:
        return float(value)
    if kind in _NAMES and type(value) is not kind:
        raise UltraError(f"{where} is {value!r}, but must be {_NAMES[kind]}")
    return value
