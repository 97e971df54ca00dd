"""Answers: their JSON schemas, and reading them, part by part, with precise problems.

Everything that a model sends is checked against the episode, the action space and the task's facts; what is valid
is kept, and every problem says where it is, the value, and what would be right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ultra.advice.records import Advice, CriticalState
from ultra.analysts.answers import MOST_ITEMS, BrokenAnswer, find_json, number_of, salvage
from ultra.analysts.conversation import Parsed
from ultra.common.errors import UltraError
from ultra.programs.compiled import compile_potential, compile_programs
from ultra.programs.records import Potential, Program, clean
from ultra.tasks import Task
from ultra.tasks.plans import MOST_CONTINUOUS_STEPS, MOST_DISCRETE_STEPS, Plan, Segment
from ultra.tasks.spaces import Discrete
from ultra.tuning.entrants import Proposal


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


_TEXT, _NUMBER, _INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}


def identify_schema() -> dict[str, Any]:
    """Of the answer that names critical states."""
    return _object(reasoning=_TEXT, critical_states=_list(_object(t=_INTEGER, importance=_NUMBER, explanation=_TEXT)))


def advise_schema(task: Task) -> dict[str, Any]:
    """Of the answer that gives advice."""
    names = [action.name for action in task.card.actions]
    if isinstance(task.action_space, Discrete):
        segment = _object(action={"type": "string", "enum": names}, steps=_INTEGER)
    else:
        segment = _object(change=_object(**dict.fromkeys(names, _NUMBER)), steps=_INTEGER)
    plan = _list(segment)
    return _object(
        reasoning=_TEXT,
        advice=_list(_object(t=_INTEGER, plan=plan, reward_follow=_NUMBER, reward_taken=_NUMBER, explanation=_TEXT)),
    )


def programs_schema(task: Task) -> dict[str, Any]:
    """Of the answer that proposes programs and potentials; parts that are not needed may be left out."""
    discrete = isinstance(task.action_space, Discrete)
    effect = {"action": _TEXT} if discrete else {"set": _map(_TEXT), "add": _map(_TEXT)}
    rule = _object(when=_TEXT) | {"properties": {"when": _TEXT, **effect}}
    parts = {
        "parameters": _map(_object(value=_NUMBER, low=_NUMBER, high=_NUMBER)),
        "clocks": _map(_TEXT),
        "memory": _map(_object(start=_NUMBER, update=_TEXT)),
        "let": _map(_TEXT),
    }
    program = _object(name=_TEXT, explanation=_TEXT, rules=_list(rule))
    program["properties"] = {"name": _TEXT, "explanation": _TEXT, **parts, "rules": _list(rule)}
    potential = _object(name=_TEXT, explanation=_TEXT, expression=_TEXT)
    return _object(reasoning=_TEXT, programs=_list(program), potentials=_list(potential))


def _map(values: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values}


class _Item:
    """One item of a list in an answer; notes what had to be repaired in it."""

    def __init__(self, fields: dict[str, Any], where: str) -> None:
        self.fields, self.where = fields, where
        self.repaired: list[str] = []

    def number(self, name: str) -> Any:
        """What stands there, a number also where it was written as text."""
        value = self.fields.get(name)
        number = number_of(value)
        if number is None:
            return value
        self.repaired.append(f"{self.where}.{name}: the text {_show(value)} was read as a number")
        return int(number) if number.is_integer() and abs(number) < 1e9 else number

    def integer(self, name: str) -> int:
        value = self.number(name)
        if isinstance(value, float) and value.is_integer() and abs(value) < 1e9:
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UltraError(f"{name} is {_show(value)}, not a whole number")
        return value

    def bounded(self, name: str, low: float, high: float) -> float:
        value = self.number(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise UltraError(f"{name} is {_show(value)}, not a number between {low} and {high}")
        return float(value)

    def text(self, name: str) -> str:
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise UltraError(f"{name} is {_show(value)}, not a text")
        return clean(value)


def read_states(text: str, index: int, steps: int) -> Parsed:
    """Critical states of episode `index`, which lasted `steps` steps."""
    seen: set[int] = set()

    def state(item: _Item) -> CriticalState:
        t = item.integer("t")
        if not 0 <= t < steps:
            raise UltraError(f"t = {t} is outside the episode (0 to {steps - 1})")
        if t in seen:
            raise UltraError(f"t = {t} is named twice")
        found = CriticalState(index, t, item.bounded("importance", 0, 1), item.text("explanation"))
        seen.add(t)
        return found

    return _read(text, {"critical_states": state}, mark="t")


def read_advice(text: str, task: Task, states: Sequence[CriticalState], source: str) -> Parsed:
    """Advice at the given states of one episode."""
    open_states = {state.t: state for state in states}
    done: set[int] = set()

    def advice(item: _Item) -> Advice:
        t = item.integer("t")
        if t not in open_states:
            known = ", ".join(map(str, open_states))
            raise UltraError(f"t = {t} is not one of the critical states ({known})")
        if t in done:
            raise UltraError(f"t = {t} is advised twice: give one advice for each state")
        found = Advice(
            state=open_states[t],
            plan=_plan(item, task),
            reward_follow=item.bounded("reward_follow", -1, 1),
            reward_taken=item.bounded("reward_taken", -1, 1),
            explanation=item.text("explanation"),
            source=source,
        )
        done.add(t)
        return found

    return _read(text, {"advice": advice}, mark="t")


def check_program(value: Any, task: Task) -> Program:
    """A program in the contract's form, compiled against a task.

    Raises:
        UltraError: naming the place, the value and what would be right.
    """
    found = Program.from_json(value)
    names = [action.name for action in task.card.actions]
    compile_programs([found], task.card.fact_names, names, task.action_space)
    return found


def check_potential(value: Any, task: Task) -> Potential:
    """A potential in the contract's form, compiled against a task.

    Raises:
        UltraError: naming the place, the value and what would be right.
    """
    found = Potential.from_json(value)
    compile_potential(found, task.card.fact_names)
    return found


def read_programs(text: str, task: Task, source: str, turn: int) -> Parsed:
    """Programs (as proposals) and potentials, each compiled against the task.

    Args:
        text: the answer.
        task: whose facts and actions they may name.
        source: who proposes them.
        turn: of the conversation, from 1.
    """
    names: set[str] = set()

    def unique(name: str) -> None:
        if name in names:
            raise UltraError(f"the name {name!r} is used twice: every program and potential needs its own")
        names.add(name)

    def program(item: _Item) -> Proposal:
        found = check_program(_with_numbers(item), task)
        unique(found.name)
        return Proposal(found, source, turn)

    def potential(item: _Item) -> Potential:
        found = check_potential(item.fields, task)
        unique(found.name)
        return found

    return _read(text, {"programs": program, "potentials": potential}, optional=("potentials",), mark="rules")


def _with_numbers(item: _Item) -> dict[str, Any]:
    """A program's fields with numbers where they were written as text."""
    fields = dict(item.fields)
    for part, names in (("parameters", ("value", "low", "high")), ("memory", ("start",))):
        entries = fields.get(part)
        if not isinstance(entries, dict):
            continue
        fields[part] = dict(entries)
        for name, entry in entries.items():
            if isinstance(entry, dict):
                inner = _Item(entry, f"{item.where}.{part}.{name}")
                fields[part][name] = entry | {key: inner.number(key) for key in names if key in entry}
                item.repaired += inner.repaired
    return fields


def _read(
    text: str, readers: dict[str, Callable[[_Item], Any]], optional: Sequence[str] = (), mark: str = ""
) -> Parsed:
    problems: list[str] = []
    repaired: list[str] = []
    items: list[Any] = []
    try:
        found = find_json(text, list(readers), mark)
        answer = found.value
        repaired += found.repaired
    except UltraError as error:
        if not isinstance(error, BrokenAnswer):
            return Parsed((), (str(error),))
        problems.append(str(error))
        answer = {name: salvage(text, name) for name in readers}
    for name, reader in readers.items():
        entries = answer.get(name)
        if entries is None and name in optional:
            continue
        if not isinstance(entries, list):
            problems.append(f"{name} is {_show(entries)}, not a list")
            continue
        if len(entries) > MOST_ITEMS:
            problems.append(f"{name} has {len(entries)} items; the first {MOST_ITEMS} are read")
        for place, entry in enumerate(entries[:MOST_ITEMS]):
            where = f"{name}[{place}]"
            try:
                if not isinstance(entry, dict):
                    raise UltraError(f"{_show(entry)} is not an object")
                item = _Item(entry, where)
                items.append(reader(item))
                repaired += item.repaired
            except UltraError as error:
                problems.append(f"{where}: {error}")
    return Parsed(tuple(items), tuple(problems), tuple(repaired))


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plan(item: _Item, task: Task) -> Plan:
    """A plan from a list of segments; one segment, or the name of an action, is the short form."""
    value = item.fields.get("plan")
    pieces = value if isinstance(value, list) else [value]
    if not pieces or len(pieces) > MOST_ITEMS:
        raise UltraError(f"plan has {len(pieces)} segments; it needs 1 to {MOST_ITEMS}")
    segments = []
    for place, piece in enumerate(pieces):
        part = _Item(piece if isinstance(piece, dict) else {"action": piece}, f"{item.where}.plan[{place}]")
        segments.append(_segment(part, task, f"plan[{place}]"))
        item.repaired += part.repaired
    plan = Plan(tuple(segments), relative=not isinstance(task.action_space, Discrete))
    plan.check(task.action_space)
    return plan


def _segment(piece: _Item, task: Task, where: str) -> Segment:
    held = [name for name in ("steps", "hold") if name in piece.fields]
    steps = piece.integer(held[0]) if held else 1
    most = MOST_DISCRETE_STEPS if isinstance(task.action_space, Discrete) else MOST_CONTINUOUS_STEPS
    if not 1 <= steps <= most:
        raise UltraError(f"{where}: steps is {steps}, not between 1 and {most}")
    action = piece.fields.get("change", piece.fields.get("action"))
    if isinstance(task.action_space, Discrete):
        return Segment(_discrete(action, task, where), steps)
    return Segment(_change(action, task, where, piece), steps)


def _discrete(value: Any, task: Task, where: str) -> int:
    names = [action.name for action in task.card.actions]
    if isinstance(value, str):
        matches = [number for number, name in enumerate(names) if name.lower() == value.strip().lower()]
        if matches:
            return matches[0]
    elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
        return value
    raise UltraError(f"{where}: action {_show(value)} is not one of {', '.join(names)}")


def _change(value: Any, task: Task, where: str, piece: _Item) -> tuple[float, ...]:
    space, names = task.action_space, [action.name for action in task.card.actions]
    assert not isinstance(space, Discrete)
    if isinstance(value, dict):
        unknown = sorted(set(value) - set(names))
        if unknown:
            raise UltraError(f"{where}: {_show(unknown[0])} is not one of {', '.join(names)}")
        inner = _Item(value, f"{piece.where}.change")
        value = [inner.number(name) if name in value else 0.0 for name in names]
        piece.repaired += inner.repaired
    if not isinstance(value, list) or len(value) != len(names):
        raise UltraError(f"{where}: change {_show(value)} needs a number for each of {', '.join(names)}")
    for name, number, low, high in zip(names, value, space.low, space.high, strict=True):
        good = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        if not good or abs(number) > high - low:
            raise UltraError(
                f"{where}: change of {name} is {_show(number)}, not between {low - high:g} and {high - low:g}"
            )
    return tuple(float(number) for number in value)
