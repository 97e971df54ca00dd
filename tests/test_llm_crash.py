"""Killing the process at any of its requests: no answer is bought twice, and what may be is listed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tests.gated import HANGS
from tests.llm_runs import copy_run
from tests.llm_server import Answer, Request, Server, good_content

from ultra.advice.records import load_advice
from ultra.common.ledger import Ledger

KILLS = 20

# One process that annotates again and again: each child is forked from it, so that the imports are
# paid for once, and every child runs the real command until it is killed.
PARENT = """
import os, sys
from ultra.cli.main import run
import ultra.pipeline.refinement, ultra.api, ultra.cli.prompt, ultra.analysts.llm.correspondent, ultra.analysts.reader
import pydantic_ai.models.openai, pydantic_ai.providers.openai_compatible, genai_prices
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = run(["identify", sys.argv[1], "--quiet"])
        os._exit(status or run(["advise", sys.argv[1], "--quiet"]))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Killer:
    """Kills the process that asks, at one of its requests: before it is answered, or after."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed = threading.Event()
        self._process = self._left = 0
        self._late = False

    def arm(self, process: int, requests: int, late: bool) -> None:
        """Kill this process at so many requests from now; 0 never does."""
        with self._lock:
            self._process, self._left, self._late = process, requests, late
        self._armed.set()

    def disarm(self) -> None:
        """Requests wait until the next process is known."""
        self._armed.clear()

    def meet(self, answer: Answer) -> Answer:
        """What becomes of a request."""
        self._armed.wait()
        with self._lock:
            self._left -= 1
            if self._left:
                return answer
            kill = partial(_kill, self._process)
            if self._late:
                return replace(answer, then=kill)
            kill()
            return answer


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


@pytest.mark.slow
def test_twenty_kills_during_annotation_buy_nothing_twice(collected_many: Path, tmp_path: Path) -> None:
    rng, killer = random.Random(4711), Killer()

    def behave(request: Request) -> Answer:
        content = good_content(request)
        # Every third conversation first gets an answer that is objected to: those are not bought twice either.
        if request.about == "identify" and not request.again and sum(request.text.encode()) % 3 == 0:
            content["critical_states"][0]["t"] = -1
        return killer.meet(Answer(json.dumps(content)))

    with Server(behave) as server:
        run = copy_run(
            collected_many, tmp_path / "a", "llm:local/tiny", base_url=f"{server.url}/v1", concurrency=4, attempts=2
        )
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        assert parent.stdin is not None
        assert parent.stdout is not None
        try:
            assert parent.stdout.readline().strip() == "ready"
            status, kills = -1, 0
            for number in range(KILLS + 1):
                killer.disarm()
                parent.stdin.write("go\n")
                parent.stdin.flush()
                child = int(parent.stdout.readline())
                killer.arm(child, rng.randint(1, 4) if number < KILLS else 0, rng.random() < 0.5)
                status = int(parent.stdout.readline())
                kills += status == -signal.SIGKILL
                if status == 0:
                    break
        finally:
            parent.stdin.close()
            parent.wait(HANGS)
    assert status == 0
    assert kills >= 5  # each lets at most four requests through, and three more that are under way
    assert len(load_advice(run / "round-1" / "advice.jsonl")) == 12
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        rows = list(ledger.rows())
    answered = Counter(row.key for row in rows if row.state == "answered")
    assert set(answered.values()) == {1}
    possibly_billed = sum(row.state in ("open", "lost") for row in rows)
    assert sum(server.paid.values()) - len(answered) <= possibly_billed
    repeated = sum(count - 1 for count in server.paid.values())
    assert repeated <= possibly_billed
    assert len(server.paid) == len(answered)
