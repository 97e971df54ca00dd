"""A conversation of several turns at the mailbox, exported and replayed: the same run, without anybody there."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.policies import same
from tests.short_tasks import registered
from tests.test_programs_run import BALANCE, HARM, TASK

from ultra import api
from ultra.analysts import mailbox
from ultra.cli.main import run as cli
from ultra.common.errors import UltraError
from ultra.config import (
    AnalyseConfig,
    AuditConfig,
    CollectConfig,
    EvaluateConfig,
    LLMConfig,
    PPOConfig,
    ProgramsConfig,
    RefineConfig,
)
from ultra.policies.io import load_policy, save_policy
from ultra.policies.policy import Architecture, create_policy
from ultra.tasks import get_task

pytestmark = pytest.mark.slow

SLOW = {**BALANCE, "name": "slow", "parameters": {"lead": {"value": 0.9, "low": 0.8, "high": 1.0}}}
TURNS = [[HARM[0]], [SLOW, HARM[1]], [BALANCE]]
"""What is proposed, turn by turn."""


def answered(name: str) -> dict[str, Any]:
    """The answer to the question in a file of this name."""
    if name.startswith("identify"):
        states = [{"t": 2, "importance": 0.9, "explanation": "it leans, and the push goes the wrong way"}]
        return {"reasoning": "", "critical_states": states}
    if name.startswith("advise"):
        return {"reasoning": "", "advice": []}
    turn = int(name.split("-turn-")[1][0]) if "-turn-" in name else 1
    return {"reasoning": "", "programs": TURNS[turn - 1], "potentials": []}


@contextmanager
def correspondent(box: Path) -> Iterator[None]:
    """Somebody who answers at a mailbox."""
    over = threading.Event()

    def answer() -> None:
        while not over.is_set():
            for prompt in box.glob("*.prompt.md"):
                path = prompt.with_name(prompt.name.replace(".prompt.md", ".answer.md"))
                if not path.exists():
                    path.write_text(json.dumps(answered(prompt.name)))
            time.sleep(0.02)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module", autouse=True)
def _tasks() -> Iterator[None]:
    with registered({TASK: "tests.test_programs_run:short_cartpole"}), pytest.MonkeyPatch.context() as patch:
        patch.setattr(mailbox, "LOOK_EVERY", 0.02)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RefineConfig:
    policy, folder = tmp_path_factory.mktemp("policy"), tmp_path_factory.mktemp("box")
    task = get_task("CartPole-v1")
    shape = Architecture(task.observation_size, task.action_space, (16, 16))
    save_policy(create_policy(shape, np.random.default_rng(0)), policy)
    return RefineConfig(
        task=TASK,
        policy=str(policy),
        analyst=f"mailbox:{folder / 'box'}",
        steps=24_000,
        analysis_seed=4,
        workers=1,
        collect=CollectConfig(episodes=2),
        analyse=AnalyseConfig(states=2),
        audit=AuditConfig(replays=0),
        llm=LLMConfig(ledger=str(folder / "ledger.sqlite")),
        programs=ProgramsConfig(share=0.7, ask="first", structures=False, adopt="program"),
        ppo=PPOConfig(environments=4, rollout_steps=32, minibatch=32, epochs=1),
        evaluate=EvaluateConfig(episodes=4),
    )


@pytest.fixture(scope="module")
def asked(config: RefineConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that asked somebody, over three turns."""
    out = tmp_path_factory.mktemp("asked") / "run"
    with correspondent(Path(config.analyst.partition(":")[2])):
        api.refine(config, out)
    return out


@pytest.fixture(scope="module")
def export(asked: Path, config: RefineConfig) -> Path:
    path = asked.parent / "answers.jsonl"
    assert cli(["ledger", "export", str(path), "--ledger", config.llm.ledger, "--run", str(asked)]) == 0
    return path


def without_names(value: Any, export: Path, config: RefineConfig) -> str:
    """A result as text, without who was asked and what that took."""
    kept = {name: item for name, item in value.items() if name not in ("llm", "analyst", "seed")}
    audit = {name: item for name, item in kept["audit"].items() if not name.endswith("_per_helpful")}
    text = json.dumps(kept | {"audit": audit})
    return text.replace(f"recorded:{export}", "X").replace(config.analyst, "X")


def test_each_turn_is_asked_with_what_became_of_those_before(asked: Path) -> None:
    result = json.loads((asked / "result.json").read_text())
    assert [item["turn"] for item in result["proposals"]["programs"]] == [1, 2, 2, 3]
    assert [program["name"] for program in result["adopted"]["programs"]]
    turns = json.loads((asked / "round-1" / "conversation.json").read_text())
    assert ["harm 0" in turns[0]["report"], "slow" in turns[1]["report"], turns[2]["report"]] == [True, True, ""]


def test_a_recording_replays_all_turns(asked: Path, config: RefineConfig, export: Path, tmp_path: Path) -> None:
    replayed = api.refine(replace(config, analyst=f"recorded:{export}"), tmp_path / "run")
    first = json.loads((asked / "result.json").read_text())
    assert without_names(replayed, export, config) == without_names(first, export, config)
    assert same(load_policy(tmp_path / "run" / "policy" / "last"), load_policy(asked / "policy" / "last"))
    assert replayed["llm"]["reused"] == 2 + 2 + 3  # states and advice of two episodes, three turns


def test_a_recording_replays_for_another_training_seed(config: RefineConfig, export: Path, tmp_path: Path) -> None:
    other = api.refine(replace(config, analyst=f"recorded:{export}", seed=9), tmp_path / "run")
    assert len(other["proposals"]["programs"]) == 4


def test_a_missing_turn_is_named_and_compared(
    asked: Path, config: RefineConfig, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for line in export.read_text().splitlines() if json.loads(line)["title"] != "programs, turn 2"]
    assert len(lines) == len(export.read_text().splitlines()) - 1
    cut, out = tmp_path / "cut.jsonl", tmp_path / "run"
    cut.write_text("\n".join(lines) + "\n")
    with pytest.raises(UltraError, match="holds no answer to the question 'programs, turn 2'"):
        api.refine(replace(config, analyst=f"recorded:{cut}"), out)
    assert cli(["ledger", "why-miss", str(out), "--against", str(cut)]) == 0
    said = capsys.readouterr().out
    assert "\nprograms: answered\nprograms, turn 2: no answer; the nearest is 'programs, turn 3', which " in said
    assert "differs in answer 2: is missing; what was said of answer 2: is missing" in said
    assert cli(["ledger", "why-miss", str(asked)]) == 0
    assert capsys.readouterr().out.endswith(
        "programs: answered\nprograms, turn 2: answered\nprograms, turn 3: answered\n"
    )


def test_a_turn_that_was_told_something_else_says_what(
    config: RefineConfig, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UltraError, match="no answer to the question 'programs, turn 2'"):
        changed = replace(config.programs, structures=True)
        api.refine(replace(config, analyst=f"recorded:{export}", programs=changed), out)
    assert cli(["ledger", "why-miss", str(out), "--against", str(export)]) == 0
    assert "'programs, turn 2', which differs in what was said of answer 1: line" in capsys.readouterr().out
