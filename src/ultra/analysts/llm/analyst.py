"""The analyst `llm:PROVIDER/MODEL`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ultra.analysts.base import Case
from ultra.analysts.conversation import Correspondent
from ultra.analysts.llm.models import INSTALL, ModelName
from ultra.analysts.reader import ReadingAnalyst
from ultra.common.errors import UltraError
from ultra.common.ledger import Ledger


def llm_analyst(text: str) -> ReadingAnalyst:
    """Make the analyst of a model, `PROVIDER/MODEL`.

    Raises:
        UltraError: if the provider is unknown.
    """
    name = ModelName.parse(text)

    @asynccontextmanager
    async def opened(case: Case) -> AsyncIterator[Correspondent]:
        try:
            from ultra.analysts.llm.correspondent import open_model
        except ImportError as error:
            raise UltraError(f"--analyst llm:{name} needs packages that are not installed: {INSTALL}") from error
        with Ledger(Path(case.llm.ledger) if case.llm.ledger else None) as ledger:
            async with open_model(name, case.llm, ledger, case.run) as (correspondent, _):
                yield correspondent

    return ReadingAnalyst(f"llm:{name}", opened)
