"""Finding the JSON of an answer, however it is wrapped, without guesses that could change what it means.

Models think aloud, draft before they answer, put fences and prose around JSON, wrap it, or write numbers as text.
All of that is read. What was repaired is said; what could be read in two ways is a problem, and is asked for again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ultra.common.errors import UltraError

LONGEST_ANSWER = 200_000
"""Characters; more is no answer to these questions."""
MOST_ITEMS = 64
"""Items of a list that are read."""
PATIENCE = 1_000_000
"""Characters that are looked at, over all attempts to find JSON: hostile texts have many beginnings."""
DEEPEST_WRAPPING = 3

_TAG = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_STRING_OR_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=\s*[}\]])', re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


class BrokenAnswer(UltraError):
    """An answer whose JSON is broken or breaks off, so that only parts of it can be read."""


@dataclass(frozen=True)
class Found:
    """The JSON object of an answer.

    Attributes:
        value: with the wanted keys at its top.
        repaired: what had to be done to read it, for people.
    """

    value: dict[str, Any]
    repaired: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    start: int
    end: int
    value: Any
    repaired: tuple[str, ...]


def find_json(text: str, wanted: Sequence[str] = (), mark: str = "") -> Found:
    """The JSON object in an answer: the last complete one that holds a wanted key.

    Args:
        text: the answer; thinking in tags is left out, as is prose around the JSON.
        wanted: keys, the most important one first; without any, the last object counts.
        mark: key of every item of the first wanted list: a bare list of such items stands for it.

    Raises:
        UltraError: saying what is wrong with the text; a BrokenAnswer if parts of it may be read.
    """
    if not text.strip():
        raise UltraError("the answer is empty")
    if len(text) > LONGEST_ANSWER:
        raise UltraError(f"the answer has {len(text):,} characters; at most {LONGEST_ANSWER:,} are read: be brief")
    said = without_thinking(text)
    if not said.strip():
        raise UltraError("the answer is empty after its thinking: answer after it")
    values = list(_values(said))
    if not wanted:
        objects = [item for item in values if isinstance(item.value, dict)]
        if objects:
            return Found(objects[-1].value, objects[-1].repaired)
        raise _problem(said, values)
    last = _last_written(said, wanted)
    for item in reversed(values):
        if item.end <= last:
            break  # a later answer was begun: an earlier draft must not stand for it
        found = _unwrapped(item, wanted)
        if found is not None:
            return found
    lists = [item for item in values if isinstance(item.value, list) and item.value]
    if mark and last < 0 and lists and all(isinstance(entry, dict) and mark in entry for entry in lists[-1].value):
        note = f"the answer was a bare list: it was read as {wanted[0]!r}"
        return Found({wanted[0]: lists[-1].value}, (*lists[-1].repaired, note))
    raise _problem(said, values, wanted)


def without_thinking(text: str) -> str:
    """What is said after or between thinking in tags; also where only the closing tag was sent."""
    if _is_object(text):
        return text  # tags in it are part of what it says
    said: list[str] = []
    depth = place = 0
    for tag in _TAG.finditer(text):
        if tag[1]:
            if depth == 0:
                said = []
            depth, place = max(0, depth - 1), tag.end()
        else:
            if depth == 0:
                said.append(text[place : tag.start()])
            depth, place = depth + 1, tag.end()
    return " ".join([*said, text[place:]])  # a tag that is never closed hides nothing


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text, strict=False), dict)
    except (ValueError, RecursionError):
        return False


def salvage(text: str, name: str) -> list[Any]:
    """The complete items of the last list of that name, in JSON that breaks off later or is broken elsewhere."""
    if len(text) > LONGEST_ANSWER:
        return []
    said = without_thinking(text)
    starts = list(re.finditer(rf'"{re.escape(name)}"\s*:\s*\[', said))
    place = starts[-1].end() if starts else len(said)
    decoder = json.JSONDecoder(strict=False)
    items: list[Any] = []
    while len(items) < MOST_ITEMS:
        while place < len(said) and said[place] in " \t\r\n,":
            place += 1
        try:
            item, place = decoder.raw_decode(said, place)
        except (ValueError, RecursionError):
            break
        items.append(item)
    return items


def number_of(value: Any) -> float | None:
    """A number that was written as text, such as "0.5"; None if it is none, or can be read in two ways."""
    if not isinstance(value, str) or len(value) > 40 or not _NUMBER.fullmatch(value.strip()):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _values(text: str) -> Iterator[_Candidate]:
    """Complete JSON objects and lists, in order, none within another."""
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [name for name, _ in pairs]
            twice.extend(name for name in value if names.count(name) > 1)
        return value

    decoder = json.JSONDecoder(strict=False, object_pairs_hook=unique)
    place, left = 0, PATIENCE
    for bracket in re.finditer(r"[{\[]", text):
        start = bracket.start()
        if start < place:
            continue
        if left <= 0:
            return
        twice.clear()
        left -= 200
        try:
            value, place = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            left -= error.pos - start + error.pos // 20
            if _trailing(text, error.pos):
                left -= len(text) - start
                mended = _mended(text, start)
                if mended is not None:
                    place = mended.end
                    yield mended
        except (ValueError, RecursionError):
            left -= PATIENCE // 100
        else:
            names = dict.fromkeys(twice)
            note = tuple(f"{name[:40]!r} was given twice in one object: the last one was read" for name in names)
            yield _Candidate(start, place, value, note)


def _trailing(text: str, place: int) -> bool:
    """Whether what is wrong at a place is a comma before a closing bracket."""
    before, after = text[max(0, place - 64) : place].rstrip(), text[place : place + 64].lstrip()
    return bool(re.match(r",\s*[}\]]", after) or (before.endswith(",") and after[:1] in ("}", "]")))


def _mended(text: str, start: int) -> _Candidate | None:
    """The value with commas left out that stand before closing brackets: they cannot mean anything else."""
    dropped: list[int] = []

    def drop(match: re.Match[str]) -> str:
        if match[0] != ",":
            return match[0]
        dropped.append(match.start())
        return " "

    mended = text[:start] + _STRING_OR_COMMA.sub(drop, text[start:])
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(mended, start)
    except (ValueError, RecursionError):
        return None
    count = sum(start + at < end for at in dropped)
    note = f"{count} comma{'s' * (count > 1)} before a closing bracket left out"
    return _Candidate(start, end, value, (note,))


def _unwrapped(item: _Candidate, wanted: Sequence[str]) -> Found | None:
    """The object that holds a wanted key: the value itself, or the only such object within it."""
    layer: list[tuple[tuple[str, ...], Any]] = [((), item.value)]
    for depth in range(DEEPEST_WRAPPING + 1):
        holding = [(path, value) for path, value in layer if isinstance(value, dict) and set(wanted) & set(value)]
        if len(holding) == 1:
            path, value = holding[0]
            notes = (f"the answer was wrapped in {'.'.join(path)!r}",) if depth else ()
            return Found(value, (*item.repaired, *notes))
        if holding:
            return None
        inner: list[tuple[tuple[str, ...], Any]] = []
        for path, value in layer:
            if isinstance(value, list) and len(value) == 1:
                inner.append(((*path, "[0]"), value[0]))
            elif isinstance(value, dict):
                inner += [((*path, str(name)), _parsed(part)) for name, part in list(value.items())[:MOST_ITEMS]]
        layer = inner
    return None


def _parsed(value: Any) -> Any:
    """JSON that was written as text within JSON."""
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        try:
            return json.loads(value, strict=False)
        except (ValueError, RecursionError):
            return value
    return value


def _last_written(text: str, wanted: Sequence[str]) -> int:
    """Where a wanted key is written last, -1 if nowhere."""
    keys = "|".join(map(re.escape, wanted))
    return max((match.start() for match in re.finditer(rf'"(?:{keys})"\s*:', text)), default=-1)


def _problem(text: str, values: Sequence[_Candidate], wanted: Sequence[str] = ()) -> UltraError:
    last = _last_written(text, wanted) if wanted else -1
    end = max((item.end for item in values if item.end <= last), default=0)
    start = text.find("{", end)
    if start >= 0:
        try:
            json.JSONDecoder(strict=False).raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            return BrokenAnswer(f"the answer is not valid JSON ({error}); was it cut off?")
    if not values:
        return UltraError("the answer holds no JSON object")
    value = values[-1].value
    if not isinstance(value, dict):
        return UltraError(f"the answer is a JSON {type(value).__name__}, not an object")
    held = ", ".join(repr(name)[:40] for name in list(value)[:6]) or "nothing"
    return UltraError(f"the answer's JSON object holds {held}, not {' or '.join(map(repr, wanted))}")
