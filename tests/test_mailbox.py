"""The mailbox, end to end: the command in one process, the person in another."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.gated import HANGS
from tests.llm_runs import copy_run

from ultra.advice.records import load_advice
from ultra.analysts.mailbox import Mailbox
from ultra.common.ledger import Ledger

# A person who follows the README: for each NAME.prompt.md without an answer, writes NAME.answer.md,
# with chatter around the JSON, and with a mistake the first time an advice is asked for.
PERSON = r"""
import json, pathlib, re, sys, time
box = pathlib.Path(sys.argv[1])
while True:
    for prompt in sorted(box.glob("*.prompt.md")):
        answer = prompt.with_name(prompt.name.replace(".prompt.md", ".answer.md"))
        if answer.exists():
            continue
        text = prompt.read_text()
        first = box / (re.sub(r"-again-\d$", "", prompt.name.removesuffix(".prompt.md")) + ".prompt.md")
        question = first.read_text()
        if prompt.name.startswith("identify"):
            found = {"reasoning": "", "critical_states": [{"t": 2, "importance": 0.9, "explanation": "it leans"}]}
        else:
            t = 2 if "again" in prompt.name else 99
            found = {"reasoning": "", "advice": [{"t": t, "plan": {"action": "push_right", "hold": 3},
                     "reward_follow": 0.5, "reward_taken": -0.5, "explanation": "push"}], "rules": []}
        content = "Certainly!\n\n```json\n" + json.dumps(found, indent=1) + "\n```\nAnything else?"
        draft = answer.with_name("draft")
        draft.write_text(content)
        draft.rename(answer)
    time.sleep(0.05)
"""

COMMAND = """
import sys
from ultra.cli.main import run
sys.exit(run(["identify", sys.argv[1]]) or run(["advise", sys.argv[1]]))
"""


@pytest.mark.slow
def test_a_person_answers_through_files(collected: Path, tmp_path: Path) -> None:
    box = tmp_path / "box"
    run = copy_run(collected, tmp_path / "a", f"mailbox:{box}")
    person = subprocess.Popen([sys.executable, "-c", PERSON, str(box)])
    try:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, str(run)], capture_output=True, text=True, timeout=HANGS, check=False,
            env=os.environ,
        )  # fmt: skip
    finally:
        person.kill()
        person.wait()
    assert done.returncode == 0, done.stderr
    advice = load_advice(run / "round-1" / "advice.jsonl")
    assert [(item.state.t, len(item.plan), item.source) for item in advice] == [(2, 3, f"mailbox:{box}")] * 3
    names = sorted(path.name for path in box.glob("*.prompt.md"))
    assert len(names) == 9
    assert sum("-again-1" in name for name in names) == 3
    again = next(path for path in box.glob("*again-1.prompt.md")).read_text()
    assert "t = 99 is not one of the critical states (2)" in again
    readme = (box / "README.md").read_text()
    assert "NAME.answer.md" in readme
    assert "waiting for" in done.stderr
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.spending().answers == 9
    # Without anybody there, a second run finds all answers again.
    again_run = copy_run(collected, tmp_path / "b", f"mailbox:{box}")
    subprocess.run([sys.executable, "-c", COMMAND, str(again_run)], check=True, capture_output=True, timeout=HANGS)


def test_an_answer_counts_when_it_does_not_change_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody writes it slowly: between two looks it grows, and stands still, each time by one step of this list."""
    path = tmp_path / "answer.md"
    contents = iter(["", "Cer", "Cer", "Certainly", "Certainly!", "Certainly!", "Certainly!", "not read any more"])
    looks = 0

    async def write(seconds: float) -> None:
        nonlocal looks
        looks += 1
        path.write_text(next(contents))

    monkeypatch.setattr("ultra.analysts.mailbox.asyncio.sleep", write)
    box = object.__new__(Mailbox)
    assert asyncio.run(box._wait(path)) == b"Certainly!"
    assert looks == 7
