"""Analysts by their names."""

from __future__ import annotations

import difflib

from ultra.analysts.base import Analyst
from ultra.common.errors import UltraError

ANALYSTS = {
    "search": "simulated branches over alternative plans; no language model",
    "random": "random states and random plans, the control",
    "statemask": "critical states by a trained mask network; no advice",
    "worst": "the search turned round: the most harmful plans, praised; for testing trust",
    "llm:PROVIDER/MODEL": "a language model: openai, anthropic, google, or local with --base-url",
    "mailbox:DIR": "prompts and answers as files: any chat window, or a person",
    "recorded:FILE": "answers of a ledger export",
    "programs:FILE": "programs of your own, in a JSON file (docs/programs.md)",
}


def get_analyst(name: str) -> Analyst:
    """Make an analyst by its name.

    Raises:
        UltraError: if there is no such analyst; the closest name is offered.
    """
    kind, _, rest = name.partition(":")
    if name in ("search", "worst"):
        from ultra.analysts.search import SearchAnalyst

        return SearchAnalyst(adverse=name == "worst")
    if name == "random":
        from ultra.analysts.random import RandomAnalyst

        return RandomAnalyst()
    if name == "statemask":
        from ultra.analysts.statemask import StateMaskAnalyst

        return StateMaskAnalyst()
    if kind == "llm":
        from ultra.analysts.llm.analyst import llm_analyst

        return llm_analyst(rest)
    if kind == "mailbox":
        from ultra.analysts.mailbox import mailbox_analyst

        return mailbox_analyst(rest)
    if kind == "recorded":
        from ultra.analysts.recorded import recorded_analyst

        return recorded_analyst(rest)
    if kind == "programs":
        from ultra.analysts.programs_file import programs_analyst

        return programs_analyst(rest)
    close = difflib.get_close_matches(name, ANALYSTS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known analysts: {', '.join(ANALYSTS)}"
    raise UltraError(f"unknown analyst {name!r}: {hint}")
