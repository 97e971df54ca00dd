"""The verbs `ultra llm ...`, `ultra ledger ...`, `ultra card` and `ultra export`, and `ultra prompt --count`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultra.cli.arguments import (
    CardArguments,
    CheckArguments,
    ExportArguments,
    LedgerArguments,
    LedgerCostArguments,
    LedgerExportArguments,
    LedgerImportArguments,
    ProgramsCheckArguments,
    WhyMissArguments,
)
from ultra.common.errors import UltraError
from ultra.common.files import to_json_text, write_atomically
from ultra.common.ledger import Ledger
from ultra.pipeline.run import Run

if TYPE_CHECKING:
    from ultra.tasks import Task

LARGE_OBSERVATION = 10_000
"""Entries of an observation from which on a smaller kind is worth a remark."""
MOST_LINES = 60
"""Lines of an environment's own description that go into a card."""


def print_token_counts(run: Path, number: int) -> int:
    """Print the estimated tokens of all prompts of a run, and their sum."""
    from ultra.cli.prompt import questions_of_run
    from ultra.collection.describe import count_tokens

    total = 0
    for questions in questions_of_run(run, number).values():
        for question in questions:
            tokens = count_tokens(question.text)
            total += tokens
            print(f"{tokens:>8,}  {question.title}")
    print(f"{total:>8,}  tokens in all, estimated")
    return 0


def _check(options: CheckArguments) -> int:
    from ultra.analysts.llm.check import check

    for line in check(options.model.removeprefix("llm:"), options.llm):
        print(line, flush=True)
    return 0


def _identity(run: Path | None) -> str | None:
    return Run.open(run).identity if run is not None else None


def _existing(path: Path | None) -> Ledger:
    from ultra.common.ledger import default_path

    path = path or default_path()
    if not path.is_file():
        raise UltraError(f"there is no ledger at {path}: no language model was asked yet, or give --ledger")
    return Ledger(path)


def _list(options: LedgerArguments) -> int:
    with _existing(options.ledger) as ledger:
        for row in ledger.rows(_identity(options.run)):
            if options.json:
                print(to_json_text(asdict(row)))
                continue
            who = row.fields["who"]
            cost = "price unknown" if row.cost is None else f"${row.cost:.4f}"
            state = f"{row.state}, not valid" if row.valid is False else row.state
            if row.state in ("open", "lost"):
                state += ", possibly billed"
            print(
                f"{row.id:>6}  {row.created}  {row.key[:8]}  {who['provider']}/{who.get('model', '')}  {row.title}  "
                f"{state}  {row.input_tokens}+{row.output_tokens} tokens  {cost}"
                + (f"  {row.note}" if row.note else "")
            )
    return 0


def _cost(options: LedgerArguments) -> int:
    with _existing(options.ledger) as ledger:
        spending = ledger.spending(_identity(options.run))
        path = ledger.path
    if options.json:
        print(to_json_text(asdict(spending)))
        return 0
    print(f"ledger            {path}")
    print(f"requests          {spending.requests}")
    print(f"answers           {spending.answers}, and {spending.unusable} that could not be read")
    print(f"retries           {spending.retries}")
    print(f"possibly billed   {spending.possibly_billed} (sent, no answer received)")
    print(f"tokens            {spending.input_tokens:,} in, {spending.output_tokens:,} out")
    unpriced = f", and {spending.unpriced} answers of unknown price" if spending.unpriced else ""
    print(f"cost              ${spending.cost:.4f}{unpriced}")
    return 0


def _export_answers(options: LedgerExportArguments) -> int:
    with _existing(options.ledger) as ledger:
        lines = list(ledger.export(_identity(options.run), options.model))
    write_atomically(options.out, "".join(f"{line}\n" for line in lines).encode())
    print(f"{len(lines)} answers in {options.out}")
    return 0


def _import(options: LedgerImportArguments) -> int:
    try:
        with options.file.open(encoding="utf-8") as lines, Ledger(options.ledger) as ledger:
            added = ledger.take(lines, str(options.file))
            print(f"{added} new answers in {ledger.path}")
    except UnicodeDecodeError as error:
        raise UltraError(
            f"{options.file} is not an export ({error.reason}): `ultra ledger export` makes one"
        ) from error
    return 0


def _why_miss(options: WhyMissArguments) -> int:
    from ultra.cli.misses import explain_misses

    for line in explain_misses(options.run, options.ledger, options.against):
        print(line)
    return 0


def _card(options: CardArguments) -> int:
    from ultra.tasks import get_task
    from ultra.tasks.card import write_card

    task = get_task(options.env_id, **options.env.options())
    text = "".join(f"# {line}".rstrip() + "\n" for line in _about(task)) + write_card(task.card)
    if options.out is None:
        print(text, end="")
        return 0
    if options.out.exists():
        raise UltraError(f"{options.out} exists and may hold your work: choose another --out, or delete it")
    write_atomically(options.out, text.encode())
    print(f"{options.out}: {len(task.card.facts)} facts, {len(task.card.actions)} actions")
    return 0


def _about(task: Task) -> list[str]:
    """What is to be known of a task beside its card; its own words where there is nothing better."""
    from ultra.tasks.card import UNKNOWN_GOAL
    from ultra.tasks.gymnasium import TIME_LIMIT

    how = {
        "state": "its state, bit for bit",
        "replay": "repeating the episode's actions (slower)",
        "remake": "repeating the episode's actions in a new environment (slower)",
        "none": "nothing: it does not repeat itself, so advice cannot be tried",
    }
    own = ", given by ULTRA where the environment has none" if task.time_limit == TIME_LIMIT else ""
    lines = [
        f"Complete this card and give it with --card. Snapshots of {task.name} by {how[task.snapshots]}.",
        f"Actions: {task.action_space}; entries of an observation: {task.observation_size}; "
        f"time limit: {task.time_limit} steps{own}.",
    ]
    if task.note:
        lines.append(f"{task.note[0].upper()}{task.note[1:]}.")
    env = task.make_environment().unwrapped
    if hasattr(env, "ale"):
        if task.snapshots != "state":
            lines.append("Snapshots are fast without sticky actions: --env-kwargs repeat_action_probability=0.0")
        if task.observation_size > LARGE_OBSERVATION:
            lines.append("Observations are screens; the console's memory is smaller: --env-kwargs obs_type=ram")
    if task.card.goal == UNKNOWN_GOAL:
        words = inspect.cleandoc(type(env).__doc__ or "").splitlines()[:MOST_LINES]
        lines += ["", "The environment says of itself:", "", *words] if words else []
    return lines


def _export(options: ExportArguments) -> int:
    import sys

    from ultra.api import export
    from ultra.policies.opening import open_policy
    from ultra.tasks import get_task

    found = open_policy(options.policy, options.vecnormalize, trust_pickle=options.trust_pickle)
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    task = get_task(options.task, **options.env.options()) if options.task else None
    for path in export(found.policy, options.out, task):
        print(path)
    return 0


def _check_programs(options: ProgramsCheckArguments) -> int:
    from ultra.analysts.programs_file import ProgramsFile
    from ultra.common.files import to_json_text
    from ultra.tasks import get_task

    file = ProgramsFile(options.file)
    checked = file.check(get_task(options.task, **options.env.options()))
    for item in checked:
        if options.json:
            line = {"where": item.where, "name": item.name, "ok": not item.problem, "problem": item.problem}
            print(to_json_text(line, str(options.file)))
        else:
            name = f" {item.name}" if item.name.isprintable() else ""
            print(f"{item.where}{name[:80]}: {item.problem or 'ok'}")
    return 2 if any(item.problem for item in checked) else 0


Group = dict[str, tuple[type[Any], Callable[[Any], int]]]

GROUPS: dict[str, Group] = {
    "llm": {"check": (CheckArguments, _check)},
    "ledger": {
        "list": (LedgerArguments, _list),
        "cost": (LedgerCostArguments, _cost),
        "export": (LedgerExportArguments, _export_answers),
        "import": (LedgerImportArguments, _import),
        "why-miss": (WhyMissArguments, _why_miss),
    },
    "programs": {"check": (ProgramsCheckArguments, _check_programs)},
}
"""Verbs that have verbs of their own: what each takes and does."""

VERBS: Group = {"card": (CardArguments, _card), "export": (ExportArguments, _export)}
"""Verbs of their own: what each takes and does."""
