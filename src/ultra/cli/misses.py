"""Why a question has no answer yet: what differs from the nearest one that has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ultra.cli.prompt import conversations_of_run
from ultra.common.ledger import Ledger, key_of, read_export
from ultra.pipeline.run import Run


def explain_misses(path: Path, ledger: Path | None, against: Path | None) -> Iterator[str]:
    """Lines that say, for each question of a run, whether it is answered, and if not, why not.

    Args:
        path: run directory.
        ledger: file of the ledger, or None for the run's own.
        against: an export to compare with instead.
    """
    run = Run.open(path)
    settings = run.config.llm
    if against is not None:
        with against.open(encoding="utf-8") as lines:
            known = [(record["title"], record["fields"]) for record in read_export(lines, str(against))]
    else:
        named = ledger or (Path(settings.ledger) if settings.ledger else None)
        with Ledger(named) as opened:
            known = [(row.title, row.fields) for row in opened.rows() if row.state == "answered"]
    who = _who(run)
    if who is None or against is not None:  # a recording is found by its question alone
        known = [(title, fields | {"who": None}) for title, fields in known]
        who = None
    keys = {key_of(fields) for _, fields in known}
    for conversation in conversations_of_run(path):
        fields = {"who": who, "question": conversation.fields(), "draw": settings.draw}
        if key_of(fields) in keys:
            yield f"{conversation.title}: answered"
        elif not known:
            yield f"{conversation.title}: no answer, and none to any other question"
        else:
            yield f"{conversation.title}: no answer; {_difference(conversation.title, fields, known)}"


def _who(run: Run) -> dict[str, Any] | None:
    kind, _, rest = run.config.analyst.partition(":")
    if kind == "llm":
        from ultra.analysts.llm.models import ModelName, identity

        return identity(ModelName.parse(rest), run.config.llm)
    if kind == "mailbox":
        from ultra.analysts.mailbox import WHO

        return dict(WHO)
    return None


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    who = {f"who.{name}": value for name, value in (fields["who"] or {}).items()}
    question = {f"question.{name}": value for name, value in fields["question"].items()}
    for number, (answer, said) in enumerate(question.pop("question.turns"), start=1):
        question |= {f"answer {number}": answer, f"what was said of answer {number}": said}
    return who | question | {"draw": fields["draw"]}


def _difference(title: str, fields: dict[str, Any], known: list[tuple[str, dict[str, Any]]]) -> str:
    wanted = _flat(fields)

    def likeness(candidate: tuple[str, dict[str, Any]]) -> tuple[int, bool]:
        found = _flat(candidate[1])
        return sum(found.get(name) == value for name, value in wanted.items()), candidate[0] == title

    nearest_title, nearest = max(known, key=likeness)
    found = _flat(nearest)
    parts = []
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            parts.append(f"{name}: {_contrast(found.get(name), wanted.get(name))}")
    return f"the nearest is {nearest_title!r}, which differs in {'; '.join(parts)}"


def _contrast(before: Any, now: Any) -> str:
    """Two values, or the first lines in which two texts differ."""
    if before is None or now is None:
        return "is new" if before is None else "is missing"
    if isinstance(before, str) and isinstance(now, str) and "\n" in before + now:
        old, new = before.splitlines(), now.splitlines()
        for number, (left, right) in enumerate(zip(old, new, strict=False), start=1):
            if left != right:
                return f"line {number} was {left[:100]!r}, is {right[:100]!r}"
        return f"{len(old)} lines before, {len(new)} now"
    return f"was {str(before)[:100]!r}, is {str(now)[:100]!r}"
