"""Verified advice on processes small enough to be solved exactly: verdicts are right, and heeding them pays.

A process has a few states and random transitions; each action leads to one state and pays a reward.
Its policy is random, so that every branch is noisy, but values and advantages follow from linear
equations.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from ultra.advice.records import Verification
from ultra.config import VerifyConfig
from ultra.policies.policy import Architecture, Policy, actor_critic, create_policy
from ultra.simulation.budget import StepBudget
from ultra.simulation.paired import Candidate, PairedEvaluator
from ultra.tasks import Snapshot, Step
from ultra.tasks.batch import Facts, Indices, Live, Observations
from ultra.tasks.plans import Plan, Segment
from ultra.tasks.spaces import Actions, Discrete
from ultra.verification.verdicts import verify

pytestmark = pytest.mark.slow

Array = NDArray[np.float64]

STATES, ACTIONS = 8, 3
GAMMA = 0.8
HORIZON = 40
"""What lies beyond is worth less than a thousandth."""
PROCESSES, ADVICES = 10, 100
CONFIDENCE = 0.95


class Process:
    """A random process as a batch; a snapshot is the state's number."""

    def __init__(self, seed: int, size: int = 64) -> None:
        rng = np.random.default_rng(seed)
        self.leads_to = rng.integers(0, STATES, (STATES, ACTIONS))
        self.pays = rng.normal(size=(STATES, ACTIONS))
        self.state = np.zeros(size, np.int64)

    @property
    def size(self) -> int:
        return len(self.state)

    def observe(self, states: NDArray[np.int64]) -> Observations:
        return np.eye(STATES, dtype=np.float32)[states]

    def reset(self, indices: Indices, seeds: Sequence[int]) -> Observations:
        self.state[indices] = 0
        return self.observe(self.state[indices])

    def step(self, actions: Actions, live: Live = None) -> Step:
        rewards = self.pays[self.state, actions]
        self.state = self.leads_to[self.state, actions]
        never = np.zeros(self.size, np.bool_)
        return Step(self.observe(self.state), rewards, never, never)

    def facts(self) -> Facts:
        return self.state[:, None].astype(np.float64)

    def snapshots(self, indices: Indices) -> list[Snapshot]:
        return [self.state[i].tobytes() for i in indices]

    def restore(self, indices: Indices, snapshots: Sequence[Snapshot]) -> Observations:
        self.state[indices] = np.frombuffer(b"".join(snapshots), np.int64)
        return self.observe(self.state[indices])

    def restart_clock(self, indices: Indices) -> None:
        pass

    def close(self) -> None:
        pass

    def values(self, chances: Array) -> Array:
        """Exact values (STATES,) of a policy given by its probabilities (STATES, ACTIONS)."""
        moves = np.zeros((STATES, STATES))
        for state in range(STATES):
            np.add.at(moves[state], self.leads_to[state], chances[state])
        return np.linalg.solve(np.eye(STATES) - GAMMA * moves, (chances * self.pays).sum(axis=1))

    def advantage(self, state: int, plan: Plan, values: Array) -> float:
        """Exact gain of executing a plan at a state and then going on with the policy."""
        now, total, discount = state, 0.0, 1.0
        for action in plan.expand():
            total += discount * self.pays[now, action]
            now, discount = int(self.leads_to[now, action]), discount * GAMMA
        return total + discount * float(values[now]) - float(values[state])


def chances_of(policy: Policy) -> Array:
    outputs, _ = actor_critic(policy.params, jnp.eye(STATES))
    return np.asarray(jax.nn.softmax(outputs), np.float64)


Case = tuple[Process, Array, list[int], list[Plan], list[Verification]]


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Random plans of one to three steps at random states of random processes, verified."""
    result = []
    for seed in range(PROCESSES):
        rng = np.random.default_rng([seed, 1])
        process = Process(seed)
        policy = create_policy(Architecture(STATES, Discrete(ACTIONS), (8,)), rng)
        states = rng.integers(0, STATES, ADVICES).tolist()
        plans = [
            Plan(tuple(Segment(int(action)) for action in rng.integers(0, ACTIONS, rng.integers(1, 4))))
            for _ in range(ADVICES)
        ]
        candidates = [Candidate(plan, np.int64(state).tobytes()) for plan, state in zip(plans, states, strict=True)]
        evaluator = PairedEvaluator(process, policy, GAMMA, HORIZON, StepBudget(10**9), "verify", 10**9, rng)
        found = verify(candidates, evaluator, VerifyConfig(branches=32, confidence=CONFIDENCE))
        result.append((process, chances_of(policy), states, plans, [v for v in found if v is not None]))
    return result


def test_verdicts_agree_with_the_true_advantage(cases: list[Case]) -> None:
    """Of 1,000 suggestions, the wrong verdicts on either side are at most the stated share."""
    truths, verdicts = [], []
    for process, chances, states, plans, found in cases:
        values = process.values(chances)
        truths += [process.advantage(state, plan, values) for state, plan in zip(states, plans, strict=True)]
        verdicts += [v.verdict for v in found]
    truth, verdict = np.array(truths), np.array(verdicts)
    assert len(truth) == PROCESSES * ADVICES
    stated = (1 - CONFIDENCE) / 2
    for wrong, side in (
        ((verdict == "helps") & (truth <= 0), truth <= 0),
        ((verdict == "harms") & (truth >= 0), truth >= 0),
    ):
        slack = 3 * np.sqrt(stated * (1 - stated) / side.sum())
        assert wrong.sum() / side.sum() <= stated + slack
    # And they do say something: most suggestions are clear.
    assert np.mean(verdict != "unclear") > 0.5
    assert np.mean(verdict[truth > 1] == "helps") > 0.9


def test_heeding_helpful_advice_never_lowers_the_return(cases: list[Case]) -> None:
    """At each state the first action of one-step advice that helps replaces the policy's choice."""
    gains = []
    for process, chances, states, plans, found in cases:
        heeded = chances.copy()
        for state, plan, verification in zip(states, plans, found, strict=True):
            if verification.verdict == "helps" and len(plan) == 1:
                heeded[state] = np.eye(ACTIONS)[plan.expand()[0]]
        gains.append(process.values(heeded) - process.values(chances))
    assert np.min(gains) > -0.05
    assert np.mean(gains) > 0.5


def test_heeding_all_advice_would_lower_it_somewhere(cases: list[Case]) -> None:
    """What verification is good for."""
    losses = []
    for process, chances, states, plans, _ in cases:
        heeded = chances.copy()
        for state, plan in zip(states, plans, strict=True):
            if len(plan) == 1:
                heeded[state] = np.eye(ACTIONS)[plan.expand()[0]]
        losses.append((process.values(heeded) - process.values(chances)).min())
    assert min(losses) < -0.5
