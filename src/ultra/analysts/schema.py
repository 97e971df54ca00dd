"""Answers: their JSON schemas, and reading them, part by part, with precise problems.

Everything that a model sends is checked against the episode and the action space; what is valid is
kept, and every problem says where it is, the value, and what would be right.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from ultra.advice.expression import parse
from ultra.advice.records import Advice, CriticalState, Rule
from ultra.analysts.conversation import Parsed
from ultra.common.errors import UltraError
from ultra.tasks import Task
from ultra.tasks.plans import Plan, Segment
from ultra.tasks.spaces import Discrete

LONGEST_ANSWER = 200_000
"""Characters; more is no answer to these questions."""
LONGEST_TEXT = 2_000
"""Characters of an explanation that are kept."""
MOST_ITEMS = 64
"""Items of a list that are read."""

_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)


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
    """Of the answer that gives advice and rules."""
    names = [action.name for action in task.card.actions]
    if isinstance(task.action_space, Discrete):
        segment = _object(action={"type": "string", "enum": names}, steps=_INTEGER)
    else:
        segment = _object(change=_object(**dict.fromkeys(names, _NUMBER)), steps=_INTEGER)
    plan = _list(segment)
    return _object(
        reasoning=_TEXT,
        advice=_list(_object(t=_INTEGER, plan=plan, reward_follow=_NUMBER, reward_taken=_NUMBER, explanation=_TEXT)),
        rules=_list(_object(guard=_TEXT, plan=plan, reward=_NUMBER, explanation=_TEXT)),
    )


def read_states(text: str, index: int, steps: int) -> Parsed:
    """Critical states of episode `index`, which lasted `steps` steps."""
    seen: set[int] = set()

    def state(item: dict[str, Any]) -> CriticalState:
        t = _integer(item, "t")
        if not 0 <= t < steps:
            raise UltraError(f"t = {t} is outside the episode (0 to {steps - 1})")
        if t in seen:
            raise UltraError(f"t = {t} is named twice")
        importance = _bounded(item, "importance", 0, 1)
        found = CriticalState(index, t, importance, _text(item, "explanation"))
        seen.add(t)
        return found

    return _read(text, {"critical_states": state}, optional=())


def read_advice(text: str, task: Task, states: Sequence[CriticalState], source: str) -> Parsed:
    """Advice at the given states of one episode, and rules."""
    open_states = {state.t: state for state in states}
    done: set[int] = set()

    def advice(item: dict[str, Any]) -> Advice:
        t = _integer(item, "t")
        if t not in open_states:
            known = ", ".join(map(str, open_states))
            raise UltraError(f"t = {t} is not one of the critical states ({known})")
        if t in done:
            raise UltraError(f"t = {t} is advised twice: give one advice for each state")
        found = Advice(
            state=open_states[t],
            plan=_plan(item.get("plan"), task),
            reward_follow=_bounded(item, "reward_follow", -1, 1),
            reward_taken=_bounded(item, "reward_taken", -1, 1),
            explanation=_text(item, "explanation"),
            source=source,
        )
        done.add(t)
        return found

    def rule(item: dict[str, Any]) -> Rule:
        guard = item.get("guard")
        if not isinstance(guard, str):
            raise UltraError(f"guard is {_show(guard)}, not a text")
        plan = item.get("plan")
        return Rule(
            guard=parse(guard, task.card.fact_names).text,
            plan=_plan(plan, task) if plan else None,
            reward=_bounded(item, "reward", -1, 1) if "reward" in item else 0.0,
            explanation=_text(item, "explanation"),
            source=source,
            group=f"episode {states[0].episode}" if states else "",
        )

    return _read(text, {"advice": advice, "rules": rule}, optional=("rules",))


def find_json(text: str) -> dict[str, Any]:
    """The JSON object in an answer: alone, in a fence, or with text around it.

    Raises:
        UltraError: saying what is wrong with the text.
    """
    if not text.strip():
        raise UltraError("the answer is empty")
    if len(text) > LONGEST_ANSWER:
        raise UltraError(f"the answer has {len(text):,} characters; at most {LONGEST_ANSWER:,} are read: be brief")
    problem = "the answer holds no JSON object"
    starts = [text.find("{")] if "{" in text else []
    for candidate in (text, *_FENCE.findall(text), *(text[start:] for start in starts)):
        try:
            value, _ = json.JSONDecoder().raw_decode(candidate.strip())
        except (ValueError, RecursionError) as error:
            if candidate.lstrip().startswith("{"):
                problem = f"the answer is not valid JSON ({error}); was it cut off?"
            continue
        if isinstance(value, dict):
            return value
        problem = f"the answer is a JSON {type(value).__name__}, not an object"
    raise UltraError(problem)


def _read(text: str, readers: dict[str, Callable[[dict[str, Any]], Any]], optional: Sequence[str]) -> Parsed:
    problems: list[str] = []
    items: list[Any] = []
    try:
        answer = find_json(text)
    except UltraError as error:
        problems.append(str(error))
        answer = {name: _salvage(text, name) for name in readers}
    for name, reader in readers.items():
        found = answer.get(name)
        if found is None and name in optional:
            continue
        if not isinstance(found, list):
            problems.append(f"{name} is {_show(found)}, not a list")
            continue
        if len(found) > MOST_ITEMS:
            problems.append(f"{name} has {len(found)} items; the first {MOST_ITEMS} are read")
        for place, item in enumerate(found[:MOST_ITEMS]):
            try:
                if not isinstance(item, dict):
                    raise UltraError(f"{_show(item)} is not an object")
                items.append(reader(item))
            except UltraError as error:
                problems.append(f"{name}[{place}]: {error}")
    return Parsed(tuple(items), tuple(problems))


def _salvage(text: str, name: str) -> list[Any]:
    """The complete items of a list in JSON that breaks off later."""
    if len(text) > LONGEST_ANSWER:
        return []
    start = re.search(rf'"{name}"\s*:\s*\[', text)
    place = start.end() if start else len(text)
    decoder = json.JSONDecoder()
    items: list[Any] = []
    while len(items) < MOST_ITEMS:
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        try:
            item, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            break
        items.append(item)
    return items


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _integer(item: dict[str, Any], name: str) -> int:
    value = item.get(name)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e9:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UltraError(f"{name} is {_show(value)}, not a whole number")
    return value


def _bounded(item: dict[str, Any], name: str, low: float, high: float) -> float:
    value = item.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UltraError(f"{name} is {_show(value)}, not a number between {low} and {high}")
    return float(value)


def _text(item: dict[str, Any], name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UltraError(f"{name} is {_show(value)}, not a text")
    return " ".join("".join(c if c.isprintable() else " " for c in value[:LONGEST_TEXT]).split())


def _plan(value: Any, task: Task) -> Plan:
    """A plan from a list of segments; one segment, or the name of an action, is the short form."""
    pieces = value if isinstance(value, list) else [value]
    if not pieces or len(pieces) > MOST_ITEMS:
        raise UltraError(f"plan has {len(pieces)} segments; it needs 1 to {MOST_ITEMS}")
    plan = Plan(
        tuple(_segment(piece, task, f"plan[{place}]") for place, piece in enumerate(pieces)),
        relative=not isinstance(task.action_space, Discrete),
    )
    plan.check(task.action_space)
    return plan


def _segment(value: Any, task: Task, where: str) -> Segment:
    piece = value if isinstance(value, dict) else {"action": value}
    held = [name for name in ("steps", "hold") if name in piece]
    steps = _integer(piece, held[0]) if held else 1
    if not 1 <= steps <= 100:
        raise UltraError(f"{where}: steps is {steps}, not between 1 and 30")
    action = piece.get("change", piece.get("action"))
    if isinstance(task.action_space, Discrete):
        return Segment(_discrete(action, task, where), steps)
    return Segment(_change(action, task, where), steps)


def _discrete(value: Any, task: Task, where: str) -> int:
    names = [action.name for action in task.card.actions]
    if isinstance(value, str):
        matches = [number for number, name in enumerate(names) if name.lower() == value.strip().lower()]
        if matches:
            return matches[0]
    elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
        return value
    raise UltraError(f"{where}: action {_show(value)} is not one of {', '.join(names)}")


def _change(value: Any, task: Task, where: str) -> tuple[float, ...]:
    space, names = task.action_space, [action.name for action in task.card.actions]
    assert not isinstance(space, Discrete)
    if isinstance(value, dict):
        unknown = sorted(set(value) - set(names))
        if unknown:
            raise UltraError(f"{where}: {_show(unknown[0])} is not one of {', '.join(names)}")
        value = [value.get(name, 0.0) for name in names]
    if not isinstance(value, list) or len(value) != len(names):
        raise UltraError(f"{where}: change {_show(value)} needs a number for each of {', '.join(names)}")
    for name, number, low, high in zip(names, value, space.low, space.high, strict=True):
        good = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        if not good or abs(number) > high - low:
            raise UltraError(
                f"{where}: change of {name} is {_show(number)}, not between {low - high:g} and {high - low:g}"
            )
    return tuple(float(number) for number in value)
