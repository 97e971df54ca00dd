"""Programs of a person's own: the file's form, the verb that checks it, the analyst that proposes it, the examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ultra.analysts.programs_file import ProgramsFile
from ultra.analysts.registry import get_analyst
from ultra.cli import main as cli
from ultra.common.errors import UltraError
from ultra.policies.policy import Architecture, create_policy
from ultra.programs.compiled import Controller, compile_programs
from ultra.simulation.budget import StepBudget
from ultra.simulation.paired import PairedEvaluator
from ultra.tasks import Task, get_task

EXAMPLES = Path(__file__).parent.parent / "examples" / "programs"
GOOD = {"name": "lean", "rules": [{"when": "torso_pitch > 0.1", "add": {"thigh_torque": "0.3"}}]}
BAD = {"name": "odd", "rules": [{"when": "pitch > 0.1", "add": {"thigh_torque": "0.3"}}]}


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_the_verb_names_each_program_and_what_is_wrong_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        tmp_path / "p.json", {"programs": [GOOD, BAD], "potentials": [{"name": "far", "expression": "x_position"}]}
    )
    assert cli.run(["programs", "check", str(path), "--task", "hopper"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "programs[0] lean: ok"
    assert lines[1].startswith("programs[1] odd: program 'odd', rules[0].when 'pitch > 0.1': pitch is not a fact")
    assert lines[2] == "potentials[0] far: ok"
    write(path, {"programs": [GOOD]})
    assert cli.run(["programs", "check", str(path), "--task", "hopper", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"where": "programs[0]", "name": "lean", "ok": True, "problem": ""}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("{", "line 1, column 2: not valid JSON"),
        ("[]", 'holds a JSON list, not an object {"programs": [...]}'),
        ({"program": [GOOD]}, "unknown part 'program': known are programs and potentials"),
        ({"programs": GOOD}, "programs is a JSON dict, not a list"),
        ({"programs": []}, "holds no program"),
        ('{"programs": [], "programs": []}', "'programs' is given twice in one object"),
    ],
)
def test_a_file_that_is_not_of_the_form_is_refused_when_it_is_named(value: Any, problem: str, tmp_path: Path) -> None:
    """Before anything is simulated."""
    path = write(tmp_path / "p.json", value)
    with pytest.raises(UltraError) as caught:
        get_analyst(f"programs:{path}")
    assert str(path) in str(caught.value) and problem in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UltraError, match=r"cannot read .*missing\.json"):
        get_analyst(f"programs:{tmp_path / 'missing.json'}")
    with pytest.raises(UltraError, match="which file"):
        get_analyst("programs:")


def test_what_is_wrong_for_the_task_is_said_with_the_verb_that_says_more(tmp_path: Path) -> None:
    file = ProgramsFile(write(tmp_path / "p.json", {"programs": [GOOD, BAD, BAD]}))
    with pytest.raises(
        UltraError, match=r"programs\[1\]: .*pitch is not a fact.*\(and 1 more\); `ultra programs check"
    ):
        file.proposals(get_task("hopper"))


def test_the_analyst_proposes_its_file_in_the_first_turn_alone(tmp_path: Path) -> None:
    """It names no critical states and gives no advice."""
    path = write(tmp_path / "p.json", {"programs": [GOOD], "potentials": [{"name": "far", "expression": "x_position"}]})
    analyst, case = get_analyst(f"programs:{path}"), _Case(get_task("hopper"))
    assert analyst.identify(case) == [] and analyst.advise(case, []) == []  # type: ignore[arg-type]
    first = analyst.propose(case, [], None)  # type: ignore[arg-type]
    assert [(p.program.name, p.source, p.turn) for p in first.programs] == [("lean", f"programs:{path}", 1)]
    assert [p.name for p in first.potentials] == ["far"]
    assert analyst.propose(case, [], object()).programs == ()  # type: ignore[arg-type]


class _Case:
    def __init__(self, task: Task) -> None:
        self.task = task


@pytest.mark.parametrize(
    ("name", "task_name", "episodes", "longest", "least"),
    [("swimmer", "Swimmer-v5", 2, 1000, 200), ("reacher", "reacher", 16, 50, -4.4), ("pong", "pong", 2, 1500, 0)],
)
def test_shipped_examples_fit_their_tasks_and_play_well_untuned(
    name: str, task_name: str, episodes: int, longest: int, least: float
) -> None:
    task = get_task(task_name)
    proposals = ProgramsFile(EXAMPLES / f"{name}.json").proposals(task)
    actions = [action.name for action in task.card.actions]
    compiled = [
        compile_programs([item.program], task.card.fact_names, actions, task.action_space)
        for item in proposals.programs
    ]
    policy = create_policy(Architecture(task.observation_size, task.action_space, (8,)), np.random.default_rng(0))
    batch = task.make_batch(min(8, episodes * len(compiled)), workers=1)
    budget = StepBudget(10**6)
    evaluator = PairedEvaluator(batch, policy, 1.0, longest, budget, "verify", 10**6, np.random.default_rng(0))
    returns = evaluator.play([Controller.of(item) for item in compiled], range(9000, 9000 + episodes)).returns
    batch.close()
    assert returns.mean(axis=1).max() > least
