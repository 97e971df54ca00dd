"""Rules that the simulator finds: one threshold on a fact, one small change of action wherever it holds.

There are hundreds of such rules and steps for few, so they are screened twice. The episodes that were
collected screen for nothing: where actions drawn in a rule's direction, at states where its guard holds,
turned out better than expected (the policy gradient, read as a score). Then paired branches from visited
states, with the rule held throughout, compare the best of these by sequential halving.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ultra.advice import Rule
from ultra.analysts.base import Case
from ultra.expression import parse
from ultra.plans import Plan, Segment
from ultra.simulate import Habit
from ultra.spaces import Actions, Continuous
from ultra.trajectories import Trajectory
from ultra.verification import Bench, Proposal, Trial

QUANTILES = (0.25, 0.5, 0.75)
"""Thresholds of a fact: these quantiles of its values, and 0 where it changes its sign."""
RAREST = 0.1
"""A guard that holds in a smaller share of states is left out: whatever it does, it is little."""
CHANGE = 0.3
"""Size of a relative change, as a share of half the actuator's range."""
ARMS = 8
"""Rules that branches compare."""


@dataclass(frozen=True)
class _Candidate:
    """A rule that may be tried, with the states of the collected episodes where it would act."""

    guard: str
    plan: Plan
    holds: NDArray[np.bool_]


def search_rules(case: Case, bench: Bench, sign: float, source: str, kept: int = 1) -> list[Rule]:
    """The rules that won against the others, if the outcome got better in the mean.

    Args:
        case: policy, episodes and means to look closer.
        bench: branches, with the steps that may be spent.
        sign: 1 looks for rules that help, -1 for those that harm, and these are praised with rewards.
        source: who proposes them.
        kept: rules at most.
    """
    candidates = _candidates(case)
    scores = sign * _scores(case, candidates)
    ranked = [candidates[i] for i in np.argsort(-scores, kind="stable")]
    alive = _apart(ranked)
    differences: list[NDArray[np.float64]] = [np.zeros(0)] * len(alive)
    starts = [state for episode in case.episodes for _, state in episode.snapshots]
    rounds = int(np.log2(ARMS / kept))
    share = bench.left // rounds
    names = case.task.card.fact_names
    for _ in range(rounds):
        pairs = share // (case.config.horizon * (len(alive) + 1))
        if pairs < 1 or not bench.affordable(pairs * (len(alive) + 1)):
            break
        case.progress(f"comparing {len(alive)} rules")
        states = [starts[i] for i in case.rng.integers(0, len(starts), pairs)]
        seeds = bench.seeds(pairs)
        trials = [
            Trial(Proposal(start=state, habits=(Habit(parse(rule.guard, names), rule.plan),)), 1.0, (seed,))
            for rule in alive
            for state, seed in zip(states, seeds, strict=True)
        ]
        found = sign * np.array([paired.differences[0] for paired in bench.run(trials)]).reshape(len(alive), pairs)
        differences = [np.concatenate(both) for both in zip(differences, found, strict=True)]
        order = np.argsort([-values.mean() for values in differences], kind="stable")[: max(kept, len(alive) // 2)]
        alive, differences = [alive[i] for i in order], [differences[i] for i in order]
    best = list(zip(alive, differences, strict=True))[:kept]
    return [
        Rule(
            guard=rule.guard,
            plan=rule.plan,
            reward=1.0 if sign < 0 else 0.0,
            explanation=(
                f"{case.task.card.describe_plan(rule.plan, case.task.action_space)}, in {rule.holds.mean():.0%} of "
                f"the visited states: the best of {ARMS} rules that were compared by branches, out of "
                f"{len(candidates)} that the episodes were read for"
            ),
            source=source,
        )
        for rule, values in best
        if len(values) and values.mean() > 0
    ]


def _candidates(case: Case) -> list[_Candidate]:
    """Every threshold of every fact, both sides of it, with every single change of action."""
    facts = np.concatenate([episode.facts[:-1] for episode in case.episodes])
    plans = _plans(case)
    result = []
    for column in case.task.card.matched:
        name, values = case.task.card.fact_names[column], facts[:, column]
        thresholds = {float(f"{np.quantile(values, q):.4g}") for q in QUANTILES}
        if values.min() < 0 < values.max():
            thresholds.add(0.0)
        for threshold in sorted(thresholds):
            above = values >= threshold
            for guard, holds in ((f"{name} >= {threshold:g}", above), (f"{name} < {threshold:g}", ~above)):
                if RAREST <= holds.mean() <= 1 - RAREST:
                    result += [_Candidate(guard, plan, holds) for plan in plans]
    return result


def _plans(case: Case) -> list[Plan]:
    """Each discrete action, or each actuator a little up and down, for one step."""
    space = case.task.action_space
    if not isinstance(space, Continuous):
        return [Plan((Segment(action),)) for action in range(space.n)]
    half = CHANGE * (np.array(space.high) - np.array(space.low)) / 2
    changes = [side * row for row in np.diag(half) for side in (1.0, -1.0)]
    return [Plan((Segment(tuple(change.tolist())),), relative=True) for change in changes]


def _scores(case: Case, candidates: list[_Candidate]) -> NDArray[np.float64]:
    """How much better than expected went what the policy happened to do in each rule's direction."""
    surprise = np.concatenate([_advantages(episode, case.gamma) for episode in case.episodes])
    surprise = (surprise - surprise.mean()) / max(float(surprise.std()), 1e-9)
    leaning = {plan: _leaning(case, plan) for plan in {candidate.plan for candidate in candidates}}
    scores = []
    for rule in candidates:
        here = leaning[rule.plan][rule.holds]
        # Against the mean of the same states: where a guard holds says nothing of what to do there.
        scores.append(float(((here - here.mean()) * surprise[rule.holds]).sum()) / np.sqrt(rule.holds.sum()))
    return np.array(scores)


def _leaning(case: Case, plan: Plan) -> NDArray[np.float64]:
    """How far each action (steps,) that was drawn went in a plan's direction, in standard deviations."""
    towards = plan.expand()[0]
    drawn: Actions = np.concatenate([episode.actions for episode in case.episodes])
    if not plan.relative:
        took: NDArray[np.float64] = (drawn == towards).astype(np.float64)
    else:
        observations = np.concatenate([episode.observations[:-1] for episode in case.episodes])
        quiet = np.zeros((len(drawn), case.task.action_space.size), np.float32)
        took = (drawn - case.policy.decide(observations, quiet).actions) @ np.sign(towards).astype(np.float64)
    return took / max(float(took.std()), 1e-9)


def _advantages(episode: Trajectory, gamma: float, decay: float = 0.95) -> NDArray[np.float64]:
    """The generalised advantage estimate (arXiv 1506.02438) of every step (T,)."""
    values = episode.values.astype(np.float64).copy()
    if episode.terminated:
        values[-1] = 0.0
    errors = episode.rewards + gamma * values[1:] - values[:-1]
    result, later = np.zeros(len(episode)), 0.0
    for t in range(len(episode) - 1, -1, -1):
        later = errors[t] + gamma * decay * later
        result[t] = later
    return result


def _apart(ranked: list[_Candidate]) -> list[_Candidate]:
    """The first few that are not much the same: no guard comes twice, nor a plan in most of the same states."""
    chosen: list[_Candidate] = []
    for rule in ranked:
        if len(chosen) == ARMS:
            break
        alike = any(
            rule.guard == other.guard
            or (rule.plan == other.plan and (rule.holds & other.holds).sum() > 0.8 * (rule.holds | other.holds).sum())
            for other in chosen
        )
        if not alike:
            chosen.append(rule)
    return chosen
