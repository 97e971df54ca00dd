"""Programs from a file to the refined policy: raced, verified, adopted, kept, resumed; and harmless where worthless."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.llm_runs import make_policy
from tests.policies import same
from tests.short_tasks import registered

from ultra import api
from ultra.cli.main import run as cli
from ultra.config import (
    AnalyseConfig,
    AuditConfig,
    CollectConfig,
    EvaluateConfig,
    PPOConfig,
    ProgramsConfig,
    RefineConfig,
)
from ultra.pipeline import program_search, refinement
from ultra.pipeline.program_search import ProgramSearch
from ultra.pipeline.run import Run
from ultra.policies.io import load_policy
from ultra.tasks import Task, get_task

TASK = "short-cartpole"
BALANCE = {
    "name": "balance",
    "explanation": "push to the side to which the pole falls",
    "parameters": {"lead": {"value": 0.1, "low": 0.0, "high": 1.0}},
    "let": {"tilt": "pole_angle + lead * pole_velocity"},
    "rules": [{"when": "tilt > 0", "action": "push_right"}, {"when": "tilt <= 0", "action": "push_left"}],
}
HARM = [
    {"name": f"harm {k}", "rules": [{"when": f"pole_angle > {-k / 100}", "action": "push_left"}]} for k in range(6)
] + [{"name": f"stuck {k}", "rules": [{"action": action}]} for k, action in enumerate(("push_left", "push_right"))]


def short_cartpole() -> Task:
    return replace(get_task("CartPole-v1"), name=TASK, time_limit=200, target="", options={})


@pytest.fixture(scope="module", autouse=True)
def _tasks() -> Iterator[None]:
    with registered({TASK: f"{__name__}:short_cartpole"}):
        yield


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh policy, which soon falls."""
    return make_policy(tmp_path_factory.mktemp("policy"), "CartPole-v1", (16, 16))


def written(path: Path, programs: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps({"programs": programs}))
    return f"programs:{path}"


@pytest.fixture(scope="module")
def config(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> RefineConfig:
    """Programs first, with little training after them."""
    path = tmp_path_factory.mktemp("programs") / "programs.json"
    return RefineConfig(
        task=TASK,
        policy=str(policy),
        analyst=written(path, [*HARM[:2], BALANCE]),
        steps=24_000,
        workers=1,
        collect=CollectConfig(episodes=8),
        analyse=AnalyseConfig(states=2, candidates=2, plan_steps=4, horizon=8),
        audit=AuditConfig(replays=0),
        programs=ProgramsConfig(share=0.7, ask="first", structures=False, distil=0.3),
        ppo=PPOConfig(environments=4, rollout_steps=32, minibatch=32, epochs=1),
        evaluate=EvaluateConfig(episodes=6),
    )


@pytest.fixture(scope="module")
def whole(config: RefineConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    api.refine(config, path)
    return path


def result_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "result.json").read_text())
    return found


def test_a_program_that_helps_becomes_part_of_the_policy(whole: Path, config: RefineConfig) -> None:
    result = result_of(whole)
    assert result["improved"]
    assert result["return"]["last"]["mean"] > 150
    assert result["budget"]["used"] <= config.steps
    adopted = result["adopted"]
    assert adopted["how"] in ("graft", "distil", "program")
    assert [program["name"] for program in adopted["programs"]] == ["balance"]
    assert 0 <= adopted["programs"][0]["parameters"]["lead"]["value"] <= 1
    assert adopted["verification"]["verdict"] == "helps"
    assert adopted["verification"]["pairs"] >= 8


def test_what_became_of_every_proposal_is_told_once(whole: Path, config: RefineConfig) -> None:
    proposals = result_of(whole)["proposals"]
    names = [item["name"] for item in proposals["programs"]]
    assert sorted(names) == ["balance", "harm 0", "harm 1"]
    counts = proposals["by_source"][config.analyst]
    assert (counts["proposed"], counts["raced"], counts["adopted"]) == (3, 3, 1)
    assert all(item["episodes"] > 0 for item in proposals["programs"])


def test_the_report_tells_of_every_program(whole: Path, tmp_path: Path) -> None:
    folder = api.report(whole, tmp_path / "report")
    page, table = (folder / "report.html").read_text(), (folder / "table.md").read_text()
    for name in ("balance", "harm 0", "harm 1"):
        assert page.count(f'<td class="text">{name}</td>') == 1
        assert table.count(f"| {name} |") == 1
    assert "push to the side to which the pole falls</td>" in page
    assert "Adopted, " in table


def test_the_refined_policy_is_as_good_as_was_said_wherever_it_is_used(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = whole / "policy" / "best"
    assert cli(["evaluate", str(best), "--task", TASK, "--episodes", "4", "--seed", "99", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean"] > 150


def test_programs_that_stay_programs_are_saved_refined_and_collected_with(config: RefineConfig, tmp_path: Path) -> None:
    kept = replace(config, programs=replace(config.programs, adopt="program"), steps=16_000)
    result = api.refine(kept, tmp_path / "first")
    assert result["adopted"]["how"] == "program"
    assert result["return"]["last"]["mean"] > 150
    best = load_policy(tmp_path / "first" / "policy" / "best")
    assert best.attached is not None
    assert [program.name for program in best.attached.programs] == ["balance"]
    assert best.act([[0, 0, 0.1, 0], [0, 0, -0.1, 0]]).tolist() == [1, 0]
    again = replace(kept, policy=str(tmp_path / "first" / "policy" / "best"), method="none")
    assert api.refine(again, tmp_path / "second")["return"]["start"]["mean"] > 150


def test_the_same_command_gives_the_same_result(whole: Path, config: RefineConfig, tmp_path: Path) -> None:
    again = api.refine(config, tmp_path / "again")
    first = result_of(whole)
    for name in ("return", "returns", "budget", "adopted", "proposals"):
        assert again[name] == first[name]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        pytest.param(ProgramSearch, "turn", id="after a turn"),
        pytest.param(program_search, "race", id="racing"),
        pytest.param(ProgramSearch, "prove", id="after verification"),
        pytest.param(refinement, "adopt", id="adopting"),
    ],
)
def test_an_interrupted_search_for_programs_goes_on_to_the_same_end(
    owner: object, name: str, whole: Path, config: RefineConfig, tmp_path: Path
) -> None:
    original = getattr(owner, name)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        original(*arguments, **options)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            api.refine(config, tmp_path / "run")
    result = api.refine(config, tmp_path / "run")
    first = result_of(whole)
    for part in ("return", "returns", "budget", "adopted", "proposals"):
        assert result[part] == first[part]
    assert same(load_policy(tmp_path / "run" / "policy" / "last"), load_policy(whole / "policy" / "last"))


def test_harmful_programs_are_not_adopted(config: RefineConfig, tmp_path: Path) -> None:
    harmful = replace(config, analyst=written(tmp_path / "harm.json", HARM), steps=8000)
    result = api.refine(harmful, tmp_path / "run")
    assert result["adopted"] == {"how": "none", "programs": [], "verification": None, "attempts": []}
    assert result["return"]["best"]["mean"] >= result["return"]["start"]["mean"]
    assert result["budget"]["train"] > 0


@pytest.mark.parametrize(("ask", "rounds"), [("first", 1), ("last", 2)])
def test_programs_come_before_or_after_training(
    config: RefineConfig, ask: Any, rounds: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ordered = replace(config, programs=replace(config.programs, ask=ask, share=0.5), steps=8000)
    result = api.refine(ordered, tmp_path / "run")
    assert result["order"]["programs"] == ask
    stages = [name for name in Run.open(tmp_path / "run").done if name.endswith("/verify")]
    assert stages == [f"round-{number}/verify" for number in range(1, rounds + 1)]
