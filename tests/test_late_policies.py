"""The best of a training's last policies goes on: what is kept, what is chosen, and what it costs."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policies import same

from ultra.config import PPOConfig
from ultra.evaluation.late_policies import BEFORE, LAST, LatePolicies, choose
from ultra.pipeline.reporting import comparison
from ultra.policies.io import SHIPPED, load_policy
from ultra.policies.policy import Architecture, Policy, create_policy
from ultra.ppo.train import Iteration, train
from ultra.simulation.budget import PURPOSES, StepBudget, steps_for
from ultra.tasks import Task, shipped


@pytest.fixture(scope="module")
def task() -> Task:
    return replace(shipped.hopper(), time_limit=100)


@pytest.fixture(scope="module")
def good() -> Policy:
    return load_policy(SHIPPED / "hopper")


@pytest.fixture(scope="module")
def poor(task: Task) -> Policy:
    return create_policy(Architecture(task.observation_size, task.action_space), np.random.default_rng(0))


@given(iterations=st.integers(1, 500), most=st.integers(2, 12))
def test_so_many_are_kept_of_the_last_part_and_the_last_one_always(iterations: int, most: int) -> None:
    late = LatePolicies(Path("unused"), most)
    kept = [number for number in range(1, iterations + 1) if late.wants(number, iterations)]
    assert kept[-1] == iterations
    assert len(kept) <= most
    assert kept == [iterations] or kept[0] > (1 - LAST) * iterations - 1
    assert len(set(np.diff(kept).tolist())) <= 1


@given(iterations=st.integers(1, 500), most=st.integers(2, 12))
def test_policies_from_all_of_a_training_can_be_kept(iterations: int, most: int) -> None:
    late = LatePolicies(Path("unused"), most, last=1.0)
    kept = [number for number in range(1, iterations + 1) if late.wants(number, iterations)]
    assert kept[-1] == iterations
    assert len(kept) <= most
    apart = -(-iterations // most)
    assert kept[0] <= apart
    assert set(np.diff(kept).tolist()) <= {apart}


def test_training_keeps_its_last_policies_and_names_them_by_their_steps(
    task: Task, good: Policy, tmp_path: Path
) -> None:
    config = PPOConfig(environments=4, rollout_steps=32)
    late = LatePolicies(tmp_path / "late", 2)
    last = train(task, good, config, 10 * config.samples, np.random.default_rng(0), late=late, workers=1)
    named = late.load()
    assert [name for name, _ in named] == ["after 1,280 steps", "after 1,152 steps"]
    assert same(named[0][1], last)
    assert not same(named[1][1], last)


def test_a_training_that_is_resumed_between_two_of_them_keeps_the_same(
    task: Task, good: Policy, tmp_path: Path
) -> None:
    config = PPOConfig(environments=4, rollout_steps=32)
    run = partial(train, task, good, config, 10 * config.samples, workers=1, checkpoint=tmp_path / "checkpoint.npz")
    whole, late = LatePolicies(tmp_path / "whole", 2), LatePolicies(tmp_path / "late", 2)
    train(task, good, config, 10 * config.samples, np.random.default_rng(0), workers=1, late=whole)

    def interrupt(iteration: Iteration) -> None:
        if iteration.steps == 9 * config.samples:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(np.random.default_rng(0), late=late, observer=interrupt)
    run(np.random.default_rng(1), late=late)
    assert [name for name, _ in late.load()] == [name for name, _ in whole.load()]
    assert all(same(one, other) for (_, one), (_, other) in zip(late.load(), whole.load(), strict=True))


def test_the_better_policy_is_chosen_within_the_allowance(
    task: Task, good: Policy, poor: Policy, tmp_path: Path
) -> None:
    budget, told = StepBudget(10_000), list[str]()
    named = [("after 300 steps", poor), ("after 200 steps", good), ("after 100 steps", poor), (BEFORE, poor)]
    chosen = choose(
        named, task, 2000, budget, np.random.default_rng(0), workers=1, record=tmp_path / "late.json", say=told.append
    )
    assert same(chosen, good)
    assert 0 < budget.spent["choose"] == budget.used <= 2000
    found = json.loads((tmp_path / "late.json").read_text())
    assert [len(means) for means in found["rounds"]] == [4, 3]
    decisive = found["rounds"][1]
    assert f"of 4 policies the one after 200 steps: {decisive['after 200 steps']:.1f} in an episode" in told[0]
    assert told[0].endswith(f"the last one {decisive['after 300 steps']:.1f}")


def test_where_nothing_tells_policies_apart_the_last_one_stays(task: Task, good: Policy, poor: Policy) -> None:
    alike = [("after 200 steps", good), ("after 100 steps", replace(good))]
    assert choose(alike, task, 2000, StepBudget(2000), np.random.default_rng(0), workers=1) is good
    nothing_left = [("after 200 steps", poor), ("after 100 steps", good)]
    assert choose(nothing_left, task, 1, StepBudget(2000), np.random.default_rng(0), workers=1) is poor


def test_results_from_before_choosing_was_counted_by_itself_are_read() -> None:
    old = {"total": 1000, "collect": 300, "analyse": 50, "verify": 100, "train": 500, "used": 950, "evaluation": 70}
    budget = StepBudget.from_dict(old)
    assert (budget.spent["choose"], budget.spent["collect"], budget.used, budget.audit) == (0, 300, 950, 0)
    assert StepBudget.from_dict(budget.as_dict()) == budget
    assert [steps_for(old, purpose) for purpose in PURPOSES] == [300, 50, 100, 500, 0]
    returns = {"mean": 1.0, "ci95": [0.0, 2.0]}
    result = {"method": "ppo", "analyst": None, "budget": old, "return": {"start": returns, "last": returns}}
    header, rows = comparison([result])
    assert dict(zip(header, rows[1], strict=True)) == {
        "": "ppo", "mean return [95%]": "1.0 [0.0, 2.0]", "collect": "300", "analyse": "50", "verify": "100",
        "train": "500", "choose": "0", "total": "950",
    }  # fmt: skip
