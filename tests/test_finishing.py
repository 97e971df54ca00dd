"""The finishing round: rules that verifiably help become part of the policy; nothing else does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.policies import same
from tests.short_tasks import registered

import ultra
from ultra import api
from ultra.advice import ADOPTED, Rule, Verification, load_rules, save_rules
from ultra.config import (
    AnalyseConfig,
    CollectConfig,
    EvaluateConfig,
    GuidanceConfig,
    PPOConfig,
    RefineConfig,
    VerifyConfig,
)
from ultra.errors import RunDirectoryError
from ultra.graft import GraftError
from ultra.pipeline import Refinement
from ultra.plans import Plan, Segment
from ultra.policy import Architecture, Policy, create_policy
from ultra.policy_files import load_policy, save_policy
from ultra.progress import Reporter
from ultra.run import STAGES, Run
from ultra.tasks import Task, shipped

pytestmark = pytest.mark.slow

CONFIG = RefineConfig(
    task="short-hopper",
    policy=str(Path(ultra.__file__).parent / "policies" / "hopper"),
    steps=12_000,
    workers=1,
    finish=0.5,
    collect=CollectConfig(episodes=2),
    analyse=AnalyseConfig(states=2, candidates=2, horizon=32),
    verify=VerifyConfig(share=0.2, branches=8),
    ppo=PPOConfig(environments=4, rollout_steps=64),
    evaluate=EvaluateConfig(episodes=2),
)
UNSPENT = CONFIG.ppo.samples + int(CONFIG.late.share * CONFIG.steps)
"""What no rollout fits in, and what choosing between policies may leave."""
HELPS = Verification(5.0, 1.0, 9.0, 8, 1.0, "helps", 100)


def short_hopper() -> Task:
    return replace(shipped.hopper(), name="short-hopper", time_limit=100)


def short_cheetah() -> Task:
    return replace(shipped.halfcheetah(), name="short-cheetah", time_limit=50)


@pytest.fixture(autouse=True, scope="module")
def _short_task() -> Iterator[None]:
    tasks = {"short-hopper": f"{__name__}:short_hopper", "short-cheetah": f"{__name__}:short_cheetah"}
    with registered(tasks), pytest.MonkeyPatch.context() as patch:
        patch.setattr("ultra.pipeline.rises", lambda rows: False)  # so few rows tell nothing
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finishing") / "run"
    api.refine(CONFIG, path)
    return path


def result_of(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((path / "result.json").read_text())
    return result


def test_the_budget_holds_with_a_finishing_round(whole: Path) -> None:
    budget = result_of(whole)["budget"]
    assert budget["used"] <= CONFIG.steps
    assert budget["train"] > 0
    assert budget["verify"] <= CONFIG.verify.share * CONFIG.steps
    assert same(load_policy(whole / "policy" / "last"), load_policy(whole / "round-2" / "policy"))
    assert all(rule.verification for rule in load_rules(whole / "round-2" / "verified-rules.jsonl"))
    assert result_of(whole)["audit"]["rules"]["adopted"] == len(load_rules(whole / "round-2" / ADOPTED))


def test_either_rules_are_adopted_or_training_goes_on_to_the_end_of_the_budget(whole: Path) -> None:
    adopted = load_rules(whole / "round-2" / ADOPTED)
    trained, last = load_policy(whole / "round-1" / "policy"), load_policy(whole / "policy" / "last")
    late = [load_policy(path) for path in sorted((whole / "round-2" / "late").glob("*"))]
    assert adopted or any(same(last, one) for one in (*late, trained))
    assert (last.architecture.hidden[0] > trained.architecture.hidden[0]) == bool(adopted)
    budget = result_of(whole)["budget"]
    assert adopted or budget["total"] - budget["used"] < UNSPENT


def test_stage_by_stage_gives_the_same(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    Refinement.start(path, CONFIG, Reporter(quiet=True))
    for _ in range(2):
        for stage in STAGES:
            api.run_stage(path, stage)
    wanted, found = result_of(whole), result_of(path)
    assert found["returns"] == wanted["returns"]
    assert found["budget"] == wanted["budget"]
    assert found["audit"] == wanted["audit"]


def chosen(path: Path, rules: list[Rule]) -> Policy:
    """The policy of a finishing round in which verification chose these rules."""
    refinement = Refinement.start(path, replace(CONFIG, analyst="random"), Reporter(quiet=True))
    for number, stages in ((1, STAGES), (2, STAGES[:-1])):
        for stage in stages:
            refinement.run_stage(stage, number)
    save_rules(rules, path / "round-2" / "verified-rules.jsonl")
    refinement.run_stage("finetune", 2)
    return load_policy(path / "round-2" / "policy")


def test_rules_that_were_chosen_act_in_the_policy_and_are_told(tmp_path: Path) -> None:
    push = Plan((Segment((0.0, 0.0, -0.2)),), relative=True)
    rules = [
        Rule("x_velocity >= 0.1", push, 0.0, "push less when fast", "test", HELPS, HELPS),
        Rule("x_velocity < 0.5", push, 0.0, "not chosen", "test", HELPS),
    ]
    path = tmp_path / "run"
    after, before = chosen(path, rules), load_policy(path / "round-1" / "policy")
    assert load_rules(path / "round-2" / ADOPTED) == rules[:1]
    task = shipped.hopper()
    column = task.card.fact_names.index("x_velocity")
    batch = task.make_batch(64)
    seen = batch.reset(range(64), list(range(64)))
    rng = np.random.default_rng(0)
    for _ in range(12):
        seen = batch.step(rng.uniform(-1, 1, (64, 3)).astype(np.float32)).observations
    fast = batch.facts()[:, column] >= 0.1
    batch.close()
    quiet = np.zeros((64, 3), np.float32)
    change = after.decide(seen, quiet).actions - before.decide(seen, quiet).actions
    assert 0 < fast.sum() < 64
    assert np.allclose(change, np.where(fast[:, None], np.array([0, 0, -0.2], np.float32), 0), atol=1e-4)
    result = Refinement.start(path, replace(CONFIG, analyst="random"), Reporter(quiet=True)).run_all()
    assert result["audit"]["rules"]["adopted"] == 1
    from ultra.reporting import adopted_rules, explain_rules, rules_of

    run = Run.open(path)
    text = explain_rules(rules_of(run), adopted_rules(run))
    assert text.count("Part of the refined policy") == 1


def test_what_cannot_become_part_of_a_policy_is_left_out_and_training_goes_on(tmp_path: Path) -> None:
    push = Plan((Segment((0.0, 0.0, -0.2)),), relative=True)
    after = chosen(tmp_path / "run", [Rule("prev(x_velocity) > 1", push, 0.0, "looks back", "test", HELPS, HELPS)])
    before = load_policy(tmp_path / "run" / "round-1" / "policy")
    assert after.architecture == before.architecture
    assert list((tmp_path / "run" / "round-2" / "late").iterdir())
    assert load_rules(tmp_path / "run" / "round-2" / ADOPTED) == []
    assert Run.open(tmp_path / "run").budget().remaining < UNSPENT


def test_where_the_curve_still_rises_and_no_episode_ends_early_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ultra.pipeline.rises", lambda rows: True)
    task, path = short_cheetah(), tmp_path / "run"
    start = create_policy(Architecture(task.observation_size, task.action_space), np.random.default_rng(0))
    save_policy(start, tmp_path / "start")
    config = replace(CONFIG, task=task.name, policy=str(tmp_path / "start"))
    result = Refinement.start(path, config, Reporter(quiet=True)).run_all()
    assert result["budget"]["total"] - result["budget"]["used"] < UNSPENT
    assert result["audit"]["rules"]["adopted"] == 0
    assert (path / "round-2" / "policy").is_dir()
    assert not any((path / "round-2" / name).exists() for name in ("trajectories", "late"))
    assert not (path / "round-1" / "late.json").exists()
    # Stage by stage it is the same, and each stage that is left out says why.
    told = list[str]()
    reporter = Reporter(quiet=True)
    monkeypatch.setattr(reporter, "say", told.append)
    other = tmp_path / "other"
    Refinement.start(other, config, reporter)
    with pytest.raises(RunDirectoryError, match="finetune"):
        Refinement(Run.open(other), reporter).run_stage("collect", 2)
    for _ in range(2):
        for stage in STAGES:
            api.run_stage(other, stage, reporter)
    assert [line.split()[0] for line in told if "left out" in line] == list(STAGES[:-1])
    assert result_of(other)["returns"] == result["returns"]


def test_of_an_adversary_s_rules_none_is_adopted_that_was_not_found_to_help(tmp_path: Path) -> None:
    path = tmp_path / "run"
    api.refine(replace(CONFIG, analyst="worst"), path)
    rules = load_rules(path / "round-2" / "verified-rules.jsonl")
    assert "harms" in {rule.verdict for rule in rules}
    adopted = load_rules(path / "round-2" / ADOPTED)
    # Half of a harmful rule may be good: what was adopted was tried as it is.
    assert all(rule.together is not None and rule.together.low > 0 for rule in adopted)
    after, before = (load_policy(path / f"round-{number}" / "policy") for number in (2, 1))
    assert (after.architecture == before.architecture) == (not adopted)


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, finish=None, analyst="random"),
        replace(CONFIG, finish=None, method="ultra-r"),
        replace(CONFIG, finish=None, method="ppo"),
        replace(CONFIG, finish=None, guidance=GuidanceConfig(trust="all")),
        replace(CONFIG, finish=None, guidance=GuidanceConfig(strength=0)),
        replace(CONFIG, finish=0.0),
    ],
)
def test_there_is_none_where_nothing_may_change_what_the_policy_does(config: RefineConfig) -> None:
    assert config.finishing == 0
    assert config.last_round == 1
    assert config.round_steps == CONFIG.steps


def test_a_network_that_takes_no_rules_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = shipped.hopper()
    shape = Architecture(task.observation_size, task.action_space, (8, 8), activation="elu")
    save_policy(create_policy(shape, np.random.default_rng(0)), tmp_path / "elu")
    open_end = replace(CONFIG, policy=str(tmp_path / "elu"), finish=None)
    refinement = Refinement.start(tmp_path / "run", open_end, Reporter())
    assert refinement.config.last_round == 1
    assert "no finishing round" in capsys.readouterr().err
    # The same command continues it; one that asks for a finishing round does not fit.
    assert Refinement.start(tmp_path / "run", open_end, Reporter(quiet=True)).config.last_round == 1
    with pytest.raises(RunDirectoryError, match="finish is 0"):
        Refinement.start(tmp_path / "run", replace(open_end, finish=0.3), Reporter(quiet=True))
    with pytest.raises(GraftError, match="finish 0"):
        Refinement.start(tmp_path / "other", replace(open_end, finish=0.3), Reporter(quiet=True))
    assert not (tmp_path / "other").exists()
