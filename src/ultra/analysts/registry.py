"""Analysts by their names."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ultra.analysts.base import Analyst
from ultra.common.errors import UltraError

if TYPE_CHECKING:
    from ultra.config import LLMConfig

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


_MAKERS = {
    "search": "search:SearchAnalyst",
    "worst": "search:adversary",
    "random": "random:RandomAnalyst",
    "statemask": "statemask:StateMaskAnalyst",
    "llm": "llm.analyst:llm_analyst",
    "mailbox": "mailbox:mailbox_analyst",
    "recorded": "recorded:recorded_analyst",
    "programs": "programs_file:programs_analyst",
}
"""What makes each analyst, imported when it is asked for: some need packages of an extra."""


def get_analyst(name: str) -> Analyst:
    """Make an analyst by its name.

    Raises:
        UltraError: if there is no such analyst; the closest name is offered.
    """
    kind, colon, rest = name.partition(":")
    takes_argument = {label.partition(":")[0]: ":" in label for label in ANALYSTS}
    if takes_argument.get(kind) != bool(colon):
        close = difflib.get_close_matches(name, ANALYSTS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known analysts: {', '.join(ANALYSTS)}"
        raise UltraError(f"unknown analyst {name!r}: {hint}")
    module, _, function = _MAKERS[kind].partition(":")
    make: Callable[..., Analyst] = getattr(import_module(f"ultra.analysts.{module}"), function)
    return make(rest) if colon else make()


def check_ready(name: str, settings: LLMConfig) -> None:
    """Check that an analyst can be asked, before anything is spent on what it is to be asked about.

    Args:
        name: as for `get_analyst`.
        settings: of language models.

    Raises:
        UltraError: if there is no such analyst, or something that it needs is missing.
        LanguageModelError: if a language model cannot be reached.
    """
    get_analyst(name)
    kind, _, rest = name.partition(":")
    if kind == "llm":
        from ultra.analysts.llm.models import ModelName
        from ultra.analysts.llm.ready import check_model

        check_model(ModelName.parse(rest), settings)
    elif kind == "recorded":
        from ultra.analysts.recorded import Recording

        Recording(Path(rest), settings.draw)
    elif kind == "mailbox" and Path(rest).exists() and not Path(rest).is_dir():
        raise UltraError(f"the mailbox {rest} is a file: name a folder, --analyst mailbox:DIR")
