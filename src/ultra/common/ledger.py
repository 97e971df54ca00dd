"""The ledger: every request to a language model and every answer, on disk before it is used.

Append-only SQLite, committed with a full sync. The order of writing is the point: the intent before
the call, the raw response before anything looks at it, then usage and price, then what parsing made
of it. An answer that was paid for can so be lost only between the provider and the disk, and such
requests are listed as possibly billed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from platformdirs import user_data_path

from ultra.common.errors import UltraError
from ultra.common.files import to_json_text

State = Literal["answered", "unusable", "rejected", "lost", "open"]
"""answered: has text. unusable: received, but no answer (a refusal, an error page). rejected: the
server declined, which costs nothing. lost: sent, no answer received. open: no word of it since."""

POSSIBLY_BILLED = ("lost", "open")

_TABLES = """
CREATE TABLE IF NOT EXISTS intents (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, key_json TEXT NOT NULL, title TEXT NOT NULL,
    run TEXT NOT NULL, created TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS intents_by_key ON intents (key);
CREATE INDEX IF NOT EXISTS intents_by_run ON intents (run);
CREATE TABLE IF NOT EXISTS responses (
    intent INTEGER PRIMARY KEY REFERENCES intents (id), received TEXT NOT NULL,
    content_type TEXT NOT NULL, raw BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS outcomes (
    intent INTEGER PRIMARY KEY REFERENCES intents (id), state TEXT NOT NULL, answer TEXT, model TEXT,
    input_tokens INTEGER, output_tokens INTEGER, cost REAL, note TEXT NOT NULL, finished TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS verdicts (
    intent INTEGER PRIMARY KEY REFERENCES intents (id), valid INTEGER NOT NULL, problems TEXT NOT NULL);
"""


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return to_json_text(value, "a request", "canonical")


def key_of(fields: Mapping[str, Any]) -> str:
    """The SHA-256 of a key's fields."""
    return hashlib.sha256(canonical(fields).encode()).hexdigest()


def default_path() -> Path:
    """Where the user's ledger lies: `ULTRA_LEDGER`, or the platform's folder for data."""
    named = os.environ.get("ULTRA_LEDGER")
    if named:
        return Path(named)
    return user_data_path("ultra", appauthor=False) / "ledger.sqlite"


@dataclass(frozen=True)
class Stored:
    """An answer in the ledger."""

    intent: int
    answer: str | None
    """Its text; None if the process ended before the raw response was read."""
    raw: bytes
    content_type: str


@dataclass(frozen=True)
class Row:
    """One request, as lists and exports show it."""

    id: int
    key: str
    fields: dict[str, Any]
    title: str
    run: str
    created: str
    state: State
    answer: str | None
    model: str
    input_tokens: int
    output_tokens: int
    cost: float | None
    note: str
    valid: bool | None


@dataclass(frozen=True)
class Spending:
    """What requests have cost."""

    requests: int = 0
    answers: int = 0
    unusable: int = 0
    retries: int = 0
    """Requests that were rejected or lost."""
    possibly_billed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    unpriced: int = 0
    """Answers of models whose price is not known; they are not in `cost`."""


class Ledger:
    """An open ledger."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_TABLES)
            for table in ("intents", "responses", "outcomes", "verdicts"):
                for event in ("UPDATE", "DELETE"):
                    self._db.execute(
                        f"CREATE TRIGGER IF NOT EXISTS {table}_no_{event.lower()} BEFORE {event} ON {table} "
                        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
                    )
        except (sqlite3.Error, OSError) as error:
            raise UltraError(f"cannot open the ledger {self.path} ({error}): name another with --ledger") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self, statement: str, values: tuple[Any, ...]) -> int:
        try:
            return int(self._db.execute(statement, values).lastrowid or 0)
        except sqlite3.Error as error:
            raise UltraError(f"cannot write to the ledger {self.path} ({error}): free some space") from error

    # -- writing, in this order ----------------------------------------------------------------

    def intend(self, fields: Mapping[str, Any], title: str, run: str) -> int:
        """Note that a request is about to be sent; returns its number."""
        return self._write(
            "INSERT INTO intents (key, key_json, title, run, created) VALUES (?, ?, ?, ?, ?)",
            (key_of(fields), canonical(fields), title, run, _now()),
        )

    def receive(self, intent: int, raw: bytes, content_type: str) -> None:
        """Keep a response as it came."""
        self._write("INSERT INTO responses VALUES (?, ?, ?, ?)", (intent, _now(), content_type, raw))

    def settle(
        self,
        intent: int,
        state: State,
        *,
        answer: str | None = None,
        model: str = "",
        usage: tuple[int, int] = (0, 0),
        cost: float | None = None,
        note: str = "",
    ) -> None:
        """Note what became of a request: its state, text, tokens (input, output) and price in US dollars."""
        self._write(
            "INSERT INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (intent, state, answer, model, *usage, cost, note, _now()),
        )

    def judge(self, intent: int, problems: Iterable[str]) -> None:
        """Note whether an answer was valid; one that is not stays a step of its conversation only."""
        found = list(problems)
        self._write("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?)", (intent, not found, "\n".join(found)))

    # -- reading -------------------------------------------------------------------------------

    def find(self, key: str) -> Stored | None:
        """The answer to a request that was made before, if there is a usable one."""
        row = self._db.execute(
            "SELECT i.id, o.answer, r.raw, r.content_type FROM intents i JOIN responses r ON r.intent = i.id "
            "LEFT JOIN outcomes o ON o.intent = i.id WHERE i.key = ? AND (o.state = 'answered' OR o.state IS NULL) "
            "ORDER BY o.state IS NULL, i.id LIMIT 1",
            (key,),
        ).fetchone()
        return None if row is None else Stored(*row)

    def rows(self, run: str | None = None) -> Iterator[Row]:
        """All requests, oldest first; with `run`, those of one run."""
        cursor = self._db.execute(
            "SELECT i.id, i.key, i.key_json, i.title, i.run, i.created, o.state, o.answer, o.model, o.input_tokens, "
            "o.output_tokens, o.cost, o.note, v.valid FROM intents i LEFT JOIN outcomes o ON o.intent = i.id "
            "LEFT JOIN verdicts v ON v.intent = i.id WHERE ? IS NULL OR i.run = ? ORDER BY i.id",
            (run, run),
        )
        for (
            number,
            key,
            fields,
            title,
            of,
            created,
            state,
            answer,
            model,
            tokens_in,
            tokens_out,
            cost,
            note,
            ok,
        ) in cursor:
            valid = None if ok is None else bool(ok)
            yield Row(
                number, key, json.loads(fields), title, of, created, state or self._unsettled(number), answer,
                model or "", tokens_in or 0, tokens_out or 0, cost, note or "", valid,
            )  # fmt: skip

    def _unsettled(self, intent: int) -> State:
        """A request without an outcome: its response may have come all the same."""
        received = self._db.execute("SELECT 1 FROM responses WHERE intent = ?", (intent,)).fetchone()
        return "unusable" if received else "open"

    def spending(self, run: str | None = None) -> Spending:
        """What a run, or everything, has cost."""
        rows = list(self.rows(run))
        states = [row.state for row in rows]
        paid = [row for row in rows if row.state in ("answered", "unusable")]
        return Spending(
            requests=len(rows),
            answers=states.count("answered"),
            unusable=states.count("unusable"),
            retries=states.count("rejected") + states.count("lost"),
            possibly_billed=sum(state in POSSIBLY_BILLED for state in states),
            input_tokens=sum(row.input_tokens for row in paid),
            output_tokens=sum(row.output_tokens for row in paid),
            cost=sum(row.cost or 0.0 for row in paid),
            unpriced=sum(row.cost is None for row in paid),
        )

    # -- moving answers between machines ---------------------------------------------------------

    def export(self, run: str | None = None, model: str | None = None) -> Iterator[str]:
        """Answers as JSON Lines, for `import` and the `recorded:` analyst."""
        for row in self.rows(run):
            if row.state == "answered" and (model is None or row.fields["who"].get("model") == model):
                yield canonical(
                    {
                        "key": row.key, "fields": row.fields, "title": row.title, "answer": row.answer,
                        "model": row.model, "input_tokens": row.input_tokens, "output_tokens": row.output_tokens,
                        "cost": row.cost, "created": row.created,
                    }
                )  # fmt: skip

    def take(self, lines: Iterable[str], source: str) -> int:
        """Take answers from an export; returns how many were new.

        Raises:
            UltraError: naming the line that is damaged.
        """
        added = 0
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for record in read_export(lines, source):
                if self.find(record["key"]) is not None:
                    continue
                intent = self.intend(record["fields"], record["title"], "imported")
                answer = record["answer"]
                self.receive(intent, answer.encode(), "text/plain")
                usage = (int(record["input_tokens"]), int(record["output_tokens"]))
                self.settle(
                    intent, "answered", answer=answer, model=record["model"], usage=usage, cost=record["cost"],
                    note=f"imported; bought {record['created']}",
                )  # fmt: skip
                added += 1
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        return added


def read_export(lines: Iterable[str], source: str) -> Iterator[dict[str, Any]]:
    """The records of an export.

    Raises:
        UltraError: naming the line that is damaged.
    """
    needed = {"key", "fields", "title", "answer", "model", "input_tokens", "output_tokens", "cost", "created"}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not needed <= set(record) or not isinstance(record["answer"], str):
                raise ValueError("a field is missing")
            if key_of(record["fields"]) != record["key"]:
                raise ValueError("the key does not match its fields")
        except (ValueError, TypeError) as error:
            raise UltraError(f"{source}, line {number} is damaged ({error}): export the ledger again") from error
        yield record


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
