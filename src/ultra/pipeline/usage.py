"""What a run has asked language models and what that cost, from its own files and the ledger."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ultra.common.ledger import Ledger, Spending
from ultra.config import takes_advice
from ultra.pipeline.run import Run

READERS = ("llm:", "mailbox:", "recorded:")
"""Analysts that read; the others use no language model."""


def uses_llm(run: Run) -> bool:
    """Whether a run's analyst is a language model, or stands for one."""
    method: str = run.config.method
    analyst: str = run.config.analyst
    return takes_advice(method) and analyst.startswith(READERS)


def usage_of(run: Run) -> dict[str, Any]:
    """The `llm` entry of `result.json`: questions, requests, tokens, cost, retries, dropped answers."""
    usage: dict[str, Any] = {"used": uses_llm(run), "questions": 0, "reused": 0, "reasked": 0, "dropped": []}
    spending = Spending()
    if usage["used"]:
        for path in sorted(run.path.glob("round-*/asked-*.json")):
            asked = json.loads(path.read_text(encoding="utf-8"))
            for name in ("questions", "reused", "reasked", "dropped"):
                usage[name] += asked[name]
        if not run.config.analyst.startswith("recorded:"):
            with Ledger(Path(run.config.llm.ledger) if run.config.llm.ledger else None) as ledger:
                spending = ledger.spending(run.identity)
    return usage | asdict(spending) | {"tokens": spending.input_tokens + spending.output_tokens}


def describe_usage(usage: dict[str, Any]) -> str:
    """Usage in one or two sentences, for the report."""
    if not usage.get("used"):
        return "No language model was used."
    cost = f"${usage['cost']:.4f}"
    if usage["unpriced"]:
        cost = f"{cost} and {usage['unpriced']} answers of unknown price" if usage["cost"] else "price unknown"
    text = (
        f"Language model: {usage['questions']} questions, {usage['requests']} requests sent, {usage['reused']} answers "
        f"reused; {usage['input_tokens']:,} tokens in, {usage['output_tokens']:,} out, {cost}; "
        f"{usage['retries']} retries, asked again {usage['reasked']} times, "
        f"{len(usage['dropped'])} parts of answers dropped."
    )
    if usage["possibly_billed"]:
        text += f" {usage['possibly_billed']} requests got no answer and may have been billed."
    return "\n".join([text, *(f"  dropped: {problem}" for problem in usage["dropped"][:20])])
