"""Rules that the simulator finds, on the shipped Hopper policy: what harms is easily found, and found out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.short_tasks import registered

import ultra
from ultra.advice import Rule, load_advice, load_rules
from ultra.config import AnalyseConfig, CollectConfig, EvaluateConfig, RefineConfig, VerifyConfig
from ultra.expression import parse
from ultra.pipeline import Refinement
from ultra.progress import Reporter
from ultra.tasks import Task, shipped

CONFIG = RefineConfig(
    task="short-hopper",
    policy=str(Path(ultra.__file__).parent / "policies" / "hopper"),
    steps=30_000,
    workers=1,
    collect=CollectConfig(episodes=4),
    analyse=AnalyseConfig(states=2, share=0.2, candidates=2, horizon=48, rules=0.8),
    verify=VerifyConfig(share=0.4, branches=8),
    evaluate=EvaluateConfig(episodes=2),
)


def short_hopper() -> Task:
    return replace(shipped.hopper(), name="short-hopper", time_limit=200)


@pytest.fixture(autouse=True)
def _short_task() -> Iterator[None]:
    with registered({"short-hopper": f"{__name__}:short_hopper"}):
        yield


def verified(config: RefineConfig, path: Path) -> tuple[list[Rule], Refinement]:
    """The rules of a refinement that went as far as verification."""
    refinement = Refinement.start(path, config, Reporter(quiet=True))
    for stage in ("collect", "identify", "advise", "verify"):
        refinement.run_stage(stage)
    return load_rules(path / "round-1" / "verified-rules.jsonl"), refinement


def test_an_adversary_praises_rules_that_harm_and_is_found_out(tmp_path: Path) -> None:
    rules, refinement = verified(replace(CONFIG, analyst="worst"), tmp_path / "run")
    assert 1 <= len(rules) <= 2
    assert "harms" in {rule.verdict for rule in rules}
    for rule in rules:
        assert rule.source == "worst"
        assert rule.reward > 0
        assert rule.verdict != "helps"
        assert rule.together is None
    spent = refinement.budget.spent
    # Beyond the allowance come only the steps that bring back critical states.
    assert spent["analyse"] <= CONFIG.analyse.share * CONFIG.steps + CONFIG.analyse.states * 4 * 16
    assert spent["verify"] <= CONFIG.verify.share * CONFIG.steps


def test_a_rule_of_search_is_one_threshold_and_one_small_change(tmp_path: Path) -> None:
    rules, refinement = verified(CONFIG, tmp_path / "run")
    names = refinement.task.card.fact_names
    assert len(rules) <= 1
    for rule in rules:
        assert rule.reward == 0
        assert rule.plan is not None
        assert rule.plan.relative
        assert len(parse(rule.guard, names).facts) == 1
        assert len(rule.plan.expand()[0].nonzero()[0]) == 1
    again, _ = verified(CONFIG, tmp_path / "again")
    assert again == rules


def test_without_a_share_for_rules_there_are_none(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=4_000, analyse=replace(CONFIG.analyse, rules=0.0, horizon=20))
    rules, _ = verified(config, tmp_path / "run")
    assert rules == []
    assert load_advice(tmp_path / "run" / "round-1" / "verified.jsonl") is not None
