"""Refinements from end to end, tiny: every method, the same twice, stage by stage, interrupted, never worse."""

from __future__ import annotations

import csv
import html
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.policies import same
from tests.short_tasks import registered

import ultra
from ultra import api
from ultra.advice.records import load_advice
from ultra.cli import main as cli
from ultra.collection.trajectories import Episodes, Trajectory
from ultra.common.errors import RunDirectoryError, UltraError
from ultra.config import (
    AnalyseConfig,
    AuditConfig,
    CollectConfig,
    EvaluateConfig,
    GuidanceConfig,
    Method,
    PPOConfig,
    ProgramsConfig,
    RefineConfig,
    VerifyConfig,
)
from ultra.pipeline import refinement, reporting, round_advice
from ultra.pipeline.progress import Reporter, TrainingLog
from ultra.pipeline.refinement import Refinement
from ultra.pipeline.round_advice import RoundAdvice
from ultra.pipeline.run import STAGES, Run, read_curve
from ultra.policies.io import load_policy, save_policy
from ultra.policies.policy import create_policy
from ultra.simulation.budget import PURPOSES
from ultra.tasks import Task, shipped

POLICIES = Path(ultra.__file__).parent / "policies" / "shipped"

HOPPER = RefineConfig(
    task="short-hopper",
    policy=str(POLICIES / "hopper"),
    steps=1200,
    workers=1,
    collect=CollectConfig(episodes=2),
    analyse=AnalyseConfig(states=3, share=0.3, candidates=2, plan_steps=4, horizon=8),
    verify=VerifyConfig(share=0.2, branches=8),
    guidance=GuidanceConfig(imitation=0.0),
    ppo=PPOConfig(environments=2, rollout_steps=32, minibatch=32, epochs=2),
    evaluate=EvaluateConfig(episodes=2),
    programs=ProgramsConfig(share=0.0),  # tests/test_programs_run.py
)
PONG = replace(HOPPER, task="short-pong", policy=str(POLICIES / "pong"))


def short_hopper() -> Task:
    return replace(shipped.hopper(), name="short-hopper", time_limit=60)


def short_pong() -> Task:
    return replace(shipped.pong(), name="short-pong", time_limit=60)


@pytest.fixture(scope="module", autouse=True)
def _short_tasks() -> Iterator[None]:
    """The shipped tasks with episodes that are cut off early."""
    with registered({"short-hopper": f"{__name__}:short_hopper", "short-pong": f"{__name__}:short_pong"}):
        yield


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in ("return", "returns", "budget", "audit", "improved")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished refinement with the defaults: ULTRA-RA with the search analyst."""
    path = tmp_path_factory.mktemp("whole") / "run"
    api.refine(HOPPER, path)
    return path


# Every method


def check_result(config: RefineConfig, result: dict[str, Any], path: Path) -> None:
    """The documented keys, and that the figures agree with each other and with the files."""
    assert json.loads((path / "result.json").read_text()) == result
    assert result["task"] == config.task
    assert result["method"] == config.method
    assert result["analyst"] == (config.analyst if config.method.startswith("ultra") else None)
    assert result["seed"] == config.seed
    assert result["llm"]["used"] is False
    assert {result["llm"][name] for name in ("requests", "tokens", "cost")} == {0}
    assert {"ultra-refine", "python", "jax", "mujoco"} <= set(result["versions"])
    returns = result["return"]
    for name in ("start", "last"):
        assert returns[name]["mean"] == pytest.approx(np.mean(result["returns"][name]))
        assert returns[name]["ci95"][0] <= returns[name]["mean"] <= returns[name]["ci95"][1]
        assert returns[name]["episodes"] == len(result["returns"][name]) == config.evaluate.episodes
    assert returns["gain"]["mean"] == pytest.approx(returns["last"]["mean"] - returns["start"]["mean"])
    assert result["improved"] == (returns["gain"]["ci95"][0] > 0)
    assert returns["best"] == returns["last" if result["improved"] else "start"]

    budget = result["budget"]
    assert set(budget) == {"total", *PURPOSES, "used", "evaluation", "audit"}
    assert budget["total"] == config.steps
    assert budget["used"] == sum(budget[purpose] for purpose in PURPOSES) <= config.steps
    assert budget["train"] % config.ppo.samples == 0
    assert budget["evaluation"] > 0

    start, last, best = (load_policy(path / "policy" / name) for name in ("start", "last", "best"))
    assert same(start, load_policy(config.policy))
    assert same(best, last if result["improved"] else start)
    assert same(last, start) == (config.method == "none")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "method", "analyst"),
    [
        (HOPPER, "none", "search"),
        (HOPPER, "ppo", "search"),
        (HOPPER, "ultra-a", "random"),
        (HOPPER, "ultra-r", "search"),
        (HOPPER, "ultra-ra", "random"),
        (PONG, "none", "search"),
        (PONG, "ppo", "search"),
        (PONG, "ultra-r", "random"),
        (PONG, "ultra-ra", "search"),
    ],
    ids=lambda value: value.task if isinstance(value, RefineConfig) else value,
)
def test_a_method_refines_from_end_to_end(base: RefineConfig, method: Method, analyst: str, tmp_path: Path) -> None:
    config = replace(base, method=method, analyst=analyst)
    result = api.refine(config, tmp_path / "run")
    check_result(config, result, tmp_path / "run")
    budget, audit = result["budget"], result["audit"]
    if method == "none":
        assert budget["used"] == 0
    elif method == "ppo":
        assert budget["train"] == budget["used"] == config.steps // config.ppo.samples * config.ppo.samples
    # In so short a game of Pong nobody scores, so that there is no return to change.
    assert (budget["audit"] > 0) == (method.startswith("ultra") and base is HOPPER)
    if not method.startswith("ultra"):
        assert audit is None
        assert not (tmp_path / "run" / "round-1" / "trajectories").exists()
        return
    assert 0 < budget["collect"] <= 0.1 * config.steps
    assert 0 < budget["verify"] <= 0.2 * config.steps
    advice = load_advice(tmp_path / "run" / "round-1" / "verified.jsonl")
    assert audit["suggestions"] == len(advice) > 0
    assert audit["suggestions"] == sum(audit[verdict] for verdict in ("helps", "harms", "unclear", "untried"))
    assert audit["verification_steps"] <= budget["verify"]
    assert {item.source for item in advice} == {analyst}
    if analyst == "random":
        assert budget["analyse"] <= 15 * 4 * config.analyse.states  # nothing but replays between snapshots


def test_the_search_analyst_with_the_defaults(whole: Path) -> None:
    result = json.loads((whole / "result.json").read_text())
    check_result(HOPPER, result, whole)
    assert 0 < result["budget"]["analyse"] <= 0.3 * HOPPER.steps
    curve = read_curve(whole / "curve.csv")
    assert [row[0] for row in curve] == sorted({row[0] for row in curve})


def test_the_audit_says_how_well_the_critical_states_explain_the_episodes(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((whole / "result.json").read_text())
    found = result["audit"]["fidelity"]
    assert found["round"] == 1
    assert 1 <= found["episodes"] <= HOPPER.collect.episodes
    assert found["steps"] == result["budget"]["audit"] > 0
    assert found["change"] > 0
    assert found["replays"] == HOPPER.audit.replays
    assert found["ci95"][0] <= found["score"] <= found["ci95"][1]
    assert found["more_than_random"]["mean"] == pytest.approx(found["change"] - found["random"]["change"])
    assert cli.run(["verify", str(whole), "--quiet"]) == 0
    line = reporting.describe_fidelity(found)
    assert line in capsys.readouterr().out
    folder = api.report(whole, tmp_path / "report")
    assert line in (folder / "table.md").read_text()
    assert html.escape(line) in (folder / "report.html").read_text()
    with (folder / "runs.csv").open() as file:
        assert float(next(csv.DictReader(file))["fidelity"]) == pytest.approx(found["score"])


def test_measuring_fidelity_changes_nothing_else(whole: Path, tmp_path: Path) -> None:
    result = api.refine(replace(HOPPER, audit=AuditConfig(replays=0)), tmp_path / "run")
    measured = json.loads((whole / "result.json").read_text())
    assert result["audit"]["fidelity"] is None
    assert result["budget"]["audit"] == 0
    measured["audit"]["fidelity"], measured["budget"]["audit"] = None, 0
    assert comparable(result) == comparable(measured)
    assert (tmp_path / "run" / "curve.csv").read_bytes() == (whole / "curve.csv").read_bytes()
    assert same(load_policy(tmp_path / "run" / "policy" / "last"), load_policy(whole / "policy" / "last"))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (None, r"has run format 1, made by ultra-refine 0\.0\.9; this version reads format 2: finish or report it"),
        (99, r"has run format 99, made by ultra-refine 0\.0\.9; this version reads format 2: "),
    ],
)
def test_a_run_of_another_format_is_left_alone_and_says_who_made_it(
    whole: Path, tmp_path: Path, form: int | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(whole, tmp_path / "run"))
    manifest = json.loads((path / "run.json").read_text())
    assert manifest.pop("format") == 2
    manifest |= {"versions": {"ultra-refine": "0.0.9"}} | ({} if form is None else {"format": form})
    (path / "run.json").write_text(json.dumps(manifest))
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(RunDirectoryError, match=said) as error:
        api.refine(HOPPER, path)
    assert "\n" not in str(error.value)
    for command in (["report", str(path)], ["verify", str(path)], ["prompt", str(path)]):
        assert cli.run(command) == 2
        assert f"{path} has run format" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_many_episodes_are_collected_and_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def collected(path: Path) -> list[Trajectory]:
        Refinement.start(path, replace(HOPPER, collect=CollectConfig(episodes=5)), Reporter(quiet=True))
        return list(Episodes(api.collect(path) / "trajectories"))

    whole = collected(tmp_path / "whole")
    monkeypatch.setattr(refinement, "EPISODES_TOGETHER", 2)
    parts = collected(tmp_path / "parts")
    assert [episode.seed for episode in parts] == [episode.seed for episode in whole]
    for one, other in zip(parts, whole, strict=True):
        assert np.allclose(one.rewards, other.rewards, atol=1e-3)
    assert Run.open(tmp_path / "parts").budget().spent["collect"] == sum(map(len, parts))


def test_advice_may_be_trusted_blindly(tmp_path: Path) -> None:
    """The paper's behaviour: nothing is spent on verification."""
    guidance = GuidanceConfig(trust="all", estimator="paper", imitation=0.0)
    config = replace(HOPPER, analyst="random", guidance=guidance)
    result = api.refine(config, tmp_path / "run")
    check_result(config, result, tmp_path / "run")
    assert result["budget"]["verify"] == 0
    assert result["audit"]["untried"] == result["audit"]["suggestions"] == 3


def test_an_analyst_who_finds_nothing_to_advise_leaves_plain_training(tmp_path: Path) -> None:
    """So small a share affords no branch."""
    config = replace(HOPPER, analyse=replace(HOPPER.analyse, share=0.001))
    result = api.refine(config, tmp_path / "run")
    check_result(config, result, tmp_path / "run")
    assert result["audit"]["suggestions"] == 0


@pytest.mark.slow
def test_replayed_steps_are_paid_before_training_is_planned(tmp_path: Path) -> None:
    """Pong's states lie between snapshots: bringing them back for guidance costs steps of the same budget."""
    guidance = GuidanceConfig(trust="all", imitation=0.0)
    config = replace(
        PONG, method="ultra-a", analyst="random", steps=640, guidance=guidance
    )  # 64 to collect, 9 rollouts of 64
    check_result(config, api.refine(config, tmp_path / "run"), tmp_path / "run")


@pytest.mark.slow
def test_a_second_round_goes_on_from_the_first_ones_policy(tmp_path: Path) -> None:
    path = tmp_path / "run"
    config = replace(HOPPER, analyst="random", rounds=2, steps=1600)
    result = api.refine(config, path)
    check_result(config, result, path)
    done = Run.open(path).done
    assert list(done) == ["start"] + [f"round-{number}/{stage}" for number in (1, 2) for stage in STAGES] + ["evaluate"]
    assert 800 - config.ppo.samples < done["round-1/finetune"]["used"] <= 800
    assert 1600 - config.ppo.samples < done["round-2/finetune"]["used"] <= 1600
    advice = [load_advice(path / f"round-{number}" / "verified.jsonl") for number in (1, 2)]
    assert result["audit"]["suggestions"] == len(advice[0]) + len(advice[1])
    assert advice[0] != advice[1]
    assert same(load_policy(path / "round-2" / "policy"), load_policy(path / "policy" / "last"))
    assert not same(load_policy(path / "round-1" / "policy"), load_policy(path / "policy" / "last"))
    steps = [row[0] for row in read_curve(path / "curve.csv")]
    assert steps == sorted(set(steps))
    assert min(steps) < 800 < max(steps)


# The same twice


def test_the_same_command_gives_the_same_result(whole: Path, tmp_path: Path) -> None:
    again = api.refine(HOPPER, tmp_path / "again")
    assert comparable(again) == comparable(json.loads((whole / "result.json").read_text()))
    for name in ("round-1/states.jsonl", "round-1/verified.jsonl", "curve.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_another_seed_gives_another_result(whole: Path, tmp_path: Path) -> None:
    other = api.refine(replace(HOPPER, seed=1), tmp_path / "other")
    assert other["returns"] != json.loads((whole / "result.json").read_text())["returns"]
    mine, theirs = (load_advice(path / "round-1" / "advice.jsonl") for path in (whole, tmp_path / "other"))
    assert mine != theirs


def test_stage_by_stage_gives_the_same_as_in_one_go(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    Refinement.start(path, HOPPER, Reporter(quiet=True))
    for name in STAGES:
        stage: Callable[[Path], Path] = getattr(api, name)
        assert stage(path) == path / "round-1"
    result = api.refine(HOPPER, path)
    assert comparable(result) == comparable(json.loads((whole / "result.json").read_text()))
    assert same(load_policy(path / "policy" / "last"), load_policy(whole / "policy" / "last"))


@pytest.mark.parametrize(
    ("stage", "needed"), [("identify", "collect"), ("advise", "identify"), ("verify", "advise"), ("finetune", "verify")]
)
def test_a_stage_asks_for_the_one_before_it(stage: str, needed: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    Refinement.start(path, replace(HOPPER, analyst="random"), Reporter(quiet=True))
    for name in STAGES[: STAGES.index(stage) - 1]:
        api.run_stage(path, name)
    with pytest.raises(RunDirectoryError, match=rf"stage 'round-1/{needed}' is not done yet: run `ultra {needed} "):
        api.run_stage(path, stage)


def test_a_method_without_advice_has_no_such_stage(tmp_path: Path) -> None:
    Refinement.start(tmp_path / "run", replace(HOPPER, method="ppo"), Reporter(quiet=True))
    with pytest.raises(UltraError, match="method 'ppo' has no stage 'collect'"):
        api.collect(tmp_path / "run")


# Interrupted


def interrupt(patch: pytest.MonkeyPatch, owner: object, name: str, call: int) -> None:
    """Press Ctrl-C in the given call of a function, after it has done its work."""
    original = getattr(owner, name)
    calls = iter(range(1, 10**6))

    def interrupted(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        if next(calls) == call:
            raise KeyboardInterrupt
        return result

    patch.setattr(owner, name, interrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        pytest.param(TrainingLog, "__call__", 3, id="training"),
        pytest.param(refinement, "collect", 1, id="collecting"),
        pytest.param(round_advice, "verify", 1, id="verifying"),
        pytest.param(RoundAdvice, "measure_fidelity", 1, id="measuring fidelity"),
        pytest.param(refinement, "train", 1, id="after training"),
        pytest.param(refinement, "evaluate", 1, id="evaluating"),
    ],
)
def test_an_interrupted_refinement_goes_on_as_if_nothing_had_happened(
    owner: object, name: str, call: int, whole: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, owner, name, call)
        with pytest.raises(KeyboardInterrupt):
            api.refine(HOPPER, tmp_path / "run")
    result = api.refine(HOPPER, tmp_path / "run")
    assert comparable(result) == comparable(json.loads((whole / "result.json").read_text()))
    assert (tmp_path / "run" / "curve.csv").read_bytes() == (whole / "curve.csv").read_bytes()
    assert same(load_policy(tmp_path / "run" / "policy" / "last"), load_policy(whole / "policy" / "last"))


def test_training_that_was_interrupted_resumes_in_the_middle(tmp_path: Path) -> None:
    """Interrupted twice, and imitating: the steps of a resumed training are not taken again."""
    config = replace(HOPPER, analyst="random", guidance=GuidanceConfig(trust="all", imitation=0.0))
    seen: list[int] = []

    def watch(log: TrainingLog, iteration: Any) -> None:
        seen.append(iteration.steps)
        if len(seen) in (4, 6):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLog, "__call__", watch)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                api.refine(config, tmp_path / "run")
        api.refine(config, tmp_path / "run")
    rollout = config.ppo.samples
    assert seen[:7] == [rollout, 2 * rollout, 3 * rollout, 4 * rollout, 4 * rollout, 5 * rollout, 5 * rollout]
    assert seen[6:] == [rollout * k for k in range(5, len(seen) - 1)]


def test_a_finished_run_is_not_run_again(whole: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (refinement, "collect"),
            (round_advice, "verify"),
            (refinement, "train"),
            (refinement, "evaluate"),
        ):
            patch.setattr(owner, name, None)
        assert api.refine(HOPPER, whole) == json.loads((whole / "result.json").read_text())
        assert api.refine(replace(HOPPER, workers=2), whole)["seed"] == 0


# Never worse


def test_a_refinement_that_finds_nothing_better_keeps_the_starting_policy(tmp_path: Path) -> None:
    path = tmp_path / "run"
    result = api.refine(replace(HOPPER, task="hopper", method="ppo", steps=64), path)
    assert result["improved"] is False
    assert result["return"]["best"] == result["return"]["start"]
    best, last, start = (load_policy(path / "policy" / name) for name in ("best", "last", "start"))
    assert same(best, start)
    assert not same(last, start)


def test_a_refinement_that_is_better_keeps_the_refined_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh policy soon falls. Training a good one would take too long here: it is given."""
    good = load_policy(POLICIES / "hopper")
    monkeypatch.setattr(refinement, "train", lambda *arguments, **options: good)
    fresh = create_policy(good.architecture, np.random.default_rng(0))
    save_policy(fresh, tmp_path / "fresh")
    config = replace(HOPPER, task="hopper", policy=str(tmp_path / "fresh"), method="ppo")
    result = api.refine(replace(config, evaluate=EvaluateConfig(episodes=4)), tmp_path / "run")
    assert result["improved"] is True
    assert result["return"]["best"] == result["return"]["last"]
    best, last, start = (load_policy(tmp_path / "run" / "policy" / name) for name in ("best", "last", "start"))
    assert same(best, good)
    assert same(last, good)
    assert same(start, fresh)
