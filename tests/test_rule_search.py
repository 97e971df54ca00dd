"""Rules that the simulator finds, on the shipped Hopper policy: what harms is easily found, and found out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tests.short_tasks import registered

import ultra
from ultra.advice import Rule, load_advice, load_rules
from ultra.analysts.base import Case
from ultra.analysts.rule_ideas import Idea, ideas
from ultra.analysts.rule_search import search_rules
from ultra.budget import StepBudget
from ultra.collection import collect
from ultra.config import AnalyseConfig, CollectConfig, EvaluateConfig, RefineConfig, VerifyConfig
from ultra.expression import parse
from ultra.graft import graft
from ultra.pipeline import Refinement
from ultra.policy import Policy
from ultra.policy_files import load_policy
from ultra.progress import Reporter
from ultra.simulate import Branch, Habit, simulate
from ultra.tasks import Task, get_task, shipped
from ultra.tasks.batch import Batch
from ultra.trajectories import Trajectory

pytestmark = pytest.mark.slow

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


@pytest.fixture(autouse=True, scope="module")
def _short_task() -> Iterator[None]:
    with registered({"short-hopper": f"{__name__}:short_hopper"}):
        yield


def case_of(task: Task, policy: Policy, batch: Batch, episodes: list[Trajectory], steps: int) -> Case:
    """What an analyst is given, with a budget of its own."""
    return Case(
        task=task,
        policy=policy,
        episodes=episodes,
        config=AnalyseConfig(),
        gamma=0.99,
        batch=batch,
        replay=batch,
        budget=StepBudget(steps),
        allowance=0,
        rng=np.random.default_rng(0),
    )


def verified(config: RefineConfig, path: Path) -> tuple[list[Rule], Refinement]:
    """The rules of a refinement that went as far as verification."""
    refinement = Refinement.start(path, config, Reporter(quiet=True))
    for stage in ("collect", "identify", "advise", "verify"):
        refinement.run_stage(stage)
    return load_rules(path / "round-1" / "verified-rules.jsonl"), refinement


def test_an_adversary_praises_rules_that_harm_and_is_found_out(tmp_path: Path) -> None:
    rules, refinement = verified(replace(CONFIG, analyst="worst"), tmp_path / "run")
    assert 1 <= len({rule.group for rule in rules}) <= 2
    assert "harms" in {rule.verdict for rule in rules}
    for rule in rules:
        assert rule.source == "worst"
        assert rule.reward > 0
        # Half of a harmful rule may be good: nothing is used that was not found to help as it is.
        assert rule.together is None or rule.together.low > 0
    spent = refinement.budget.spent
    # Beyond the allowance come only the steps that bring back critical states.
    assert spent["analyse"] <= CONFIG.analyse.share * CONFIG.steps + CONFIG.analyse.states * 4 * 16
    assert spent["verify"] <= CONFIG.verify.share * CONFIG.steps


def test_rules_of_search_are_one_threshold_and_one_small_change(tmp_path: Path) -> None:
    rules, refinement = verified(CONFIG, tmp_path / "run")
    names = refinement.task.card.fact_names
    assert len({rule.group for rule in rules}) == 1
    assert len({fact for rule in rules for fact in parse(rule.guard, names).facts}) <= 1
    for rule in rules:
        assert rule.reward == 0
        assert rule.plan is not None
        assert rule.plan.relative
        assert len(rule.plan.expand()[0].nonzero()[0]) == 1
    again, _ = verified(CONFIG, tmp_path / "again")
    assert again == rules


@pytest.fixture(scope="module")
def hopper() -> Iterator[Case]:
    """The finishing round's case of the shipped Hopper policy."""
    task, policy = short_hopper(), load_policy(Path(CONFIG.policy))
    batch = task.make_batch(8)
    case = case_of(task, policy, batch, collect(task, policy, [1, 2], 0.99), steps=10**6)
    yield replace(case, finishing=True)
    batch.close()


def test_rules_on_top_of_rules_do_in_the_network_what_they_did_as_rules(hopper: Case) -> None:
    case = replace(hopper, budget=StepBudget(20_000), rng=np.random.default_rng(0))
    found = search_rules(case, 20_000, 1.0, "search")
    assert case.budget.used <= 20_000
    names = case.task.card.fact_names
    assert len(found) > 1
    assert {rule.group for rule in found} == {"climb"}
    assert len({rule.guard for rule in found}) == len(found)
    held = [parse(rule.guard, names).evaluate(case.episodes[0].facts) for rule in found]
    assert np.sum(held, axis=0).max() > 1  # their changes add up

    def lengths(policy: Policy, habits: tuple[Habit, ...]) -> list[float]:
        branches = [Branch(seed, 200, reset_seed=seed, habits=habits) for seed in range(8)]
        return [outcome.reward for outcome in simulate(case.batch, policy, branches, 1.0, deterministic=True)]

    habits = tuple(Habit(parse(rule.guard, names), rule.plan, adds=True) for rule in found if rule.plan)
    followed = lengths(case.policy, habits)
    assert np.mean(followed) > np.mean(lengths(case.policy, ()))
    assert lengths(graft(case.policy, found, names, case.episodes), ()) == pytest.approx(followed, rel=0.02)


def test_no_threshold_is_drawn_where_a_joint_rests_at_its_limit(hopper: Case) -> None:
    names = hopper.task.card.fact_names
    column = names.index("foot_angle")
    episodes = []
    for episode in hopper.episodes:
        facts = episode.facts.copy()
        facts[:, column] = 0.789 + 1e-6 * hopper.rng.normal(size=len(facts))
        facts[::2, column] = hopper.rng.normal(size=len(facts[::2]))
        episodes.append(replace(episode, facts=facts))
    case = replace(hopper, episodes=episodes, rng=np.random.default_rng(0))
    guards = {guard for idea in islice(ideas(case, [column], 0), 40) for guard in idea.guards}
    assert "foot_angle >= 0" in guards
    assert not any("0.789" in guard for guard in guards)


def test_without_a_share_for_rules_there_are_none(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=4_000, analyse=replace(CONFIG.analyse, rules=0.0, horizon=20))
    rules, _ = verified(config, tmp_path / "run")
    assert rules == []
    assert load_advice(tmp_path / "run" / "round-1" / "verified.jsonl") is not None


@pytest.fixture(scope="module")
def pong() -> Iterator[tuple[Case, list[Idea]]]:
    """A case of the shipped Pong policy, and what is tried there."""
    task, policy = get_task("pong"), load_policy(Path(ultra.__file__).parent / "policies" / "pong")
    batch = task.make_batch(4, 1)
    episodes = collect(task, policy, [1, 2, 3], 0.99, longest=400, workers=1)
    case = case_of(task, policy, batch, episodes, steps=10_000)
    yield case, list(ideas(case, case.task.card.matched, 2_000))
    batch.close()


def test_in_pong_the_paddle_is_steered_toward_the_ball_by_what_was_measured(pong: tuple[Case, list[Idea]]) -> None:
    case, found = pong
    assert 0 < case.budget.spent["analyse"] <= 2_000
    assert len({idea.parts for idea in found}) == len(found)
    steering = [dict(idea.parts) for idea in found if any("ball_dx > 0" in guard for guard in idea.guards)]
    toward = [rules for rules in steering if all("ball_y - paddle_y" in guard for guard in rules)]
    assert toward
    actions = {action.name: number for number, action in enumerate(case.task.card.actions)}
    for rules in toward:
        for guard, plan in rules.items():
            wanted = "STAY" if "abs" in guard else "DOWN" if ">" in guard.split(" and ")[1] else "UP"
            assert plan.expand().tolist() == [actions[wanted]]


def test_guards_of_one_idea_exclude_each_other(pong: tuple[Case, list[Idea]]) -> None:
    case, found = pong
    facts = np.concatenate([episode.facts for episode in case.episodes])
    for idea in found:
        held = [habit.guard.evaluate(facts) for habit in idea.habits(case.task.card.fact_names)]
        assert np.sum(held, axis=0).max() <= 1
