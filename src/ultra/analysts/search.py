"""The embedded analyst: no language model, only the simulator.

Critical states are those where replacing the policy's actions for a few steps improves the outcome most. Advice is
the plan that wins a sequential halving over random plans; every comparison uses paired branches with common random
numbers. The winner's measured advantage is flattered by having won: only `ultra.verification.verdicts`, on fresh
branches, says what it is worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ultra.advice.records import Advice, CriticalState
from ultra.analysts.base import Case, Proposals
from ultra.analysts.random import random_plan
from ultra.analysts.structures import search_proposals
from ultra.analysts.turns import TurnReport
from ultra.collection.describe import largest_facts
from ultra.collection.trajectories import Trajectory
from ultra.simulation.halving import sequential_halving
from ultra.simulation.paired import Candidate, PairedEvaluator, Trial
from ultra.tasks.batch import Snapshot
from ultra.tasks.plans import Plan

IDENTIFY_SHARE = 0.4
"""Share of the points' allowance for finding critical states; the rest compares plans at them."""
SCREENED = 4
"""Candidate states for each critical state that is wanted."""
SPACING = 4
"""Candidates of one episode lie at least so many steps apart."""
PROPOSED = 12
"""Programs for the whole policy that are proposed."""
LOOK_AHEAD = 24
"""Steps over which a fall of the critic's estimate makes a state a likely candidate."""


def disappointment(episode: Trajectory, gamma: float, ahead: int = LOOK_AHEAD) -> NDArray[np.float64]:
    """How much worse than expected each state turned out (T,), 0 where it went as well or better.

    The negative part of the k-step advantage: discounted reward over the next `ahead` steps plus
    the critic's value after them, minus the critic's value now.
    """
    steps = len(episode)
    result = np.zeros(steps)
    for t in range(steps):
        end = min(t + ahead, steps)
        discounts = gamma ** np.arange(end - t)
        outcome = discounts @ episode.rewards[t:end] + gamma ** (end - t) * episode.values[end]
        result[t] = max(0.0, episode.values[t] - outcome)
    return result


@dataclass
class _Screened:
    """A candidate state, with what random plans changed there."""

    state: CriticalState
    snapshot: Snapshot
    effects: list[float] = field(default_factory=list)

    @property
    def promise(self) -> float:
        """How much other actions improved the outcome: the mean positive part of their effects.

        The mean absolute effect would favour states where any disturbance does harm and nothing helps.
        """
        return float(np.maximum(0.0, self.effects).mean()) if self.effects else 0.0


@dataclass
class _Arm:
    """A plan at a state, with what its pairs gave so far."""

    place: int
    plan: Plan
    differences: NDArray[np.float64]

    @property
    def mean(self) -> float:
        return float(self.differences.mean()) if len(self.differences) else 0.0


class SearchAnalyst:
    """Looks for critical states and good plans by simulating branches.

    Args:
        adverse: look for what harms most and praise it: the adversary, with which trust is tested.
    """

    def __init__(self, adverse: bool = False) -> None:
        self.name = "worst" if adverse else "search"
        self._sign = -1.0 if adverse else 1.0

    def identify(self, case: Case) -> list[CriticalState]:
        """Screen candidate states: where do random plans change the outcome most?

        Candidates are drawn in proportion to disappointment. In each round every remaining state
        tries fresh random plans; the half that they improve less drops out.
        """
        case = _nearer(case)
        candidates = self._candidates(case)
        screened = [_Screened(state, case.snapshot(state)) for state in candidates]
        evaluator = self._evaluator(case, IDENTIFY_SHARE * case.allowance)
        wanted, space = case.config.states, case.task.action_space
        rounds = max(1, math.ceil(math.log2(max(2, len(screened) / wanted))))
        affordable = evaluator.left // rounds // (2 * case.config.horizon)

        def play(alive: list[_Screened], _: int) -> bool:
            case.progress(f"screening {len(alive)} states")
            pairs = max(1, affordable // len(alive))
            if not evaluator.affordable(2 * pairs * len(alive)):
                return False
            trials = [
                Trial(Candidate(random_plan(space, case.config.plan_steps, case.rng), item.snapshot), 1.0, (seed,))
                for item in alive
                for seed in evaluator.seeds(pairs)
            ]
            results = evaluator.run(trials)
            for place, item in enumerate(alive):
                tried = results[place * pairs : (place + 1) * pairs]
                item.effects += [self._sign * float(paired.differences[0]) for paired in tried]
            return True

        best = sequential_halving(
            screened[: max(1, affordable)],  # the most disappointing ones, if not all can be tried
            rounds,
            play,
            lambda item: item.promise,
            keep=lambda count: max(wanted, math.ceil(count / 2)),
        )[:wanted]
        largest = max((item.promise for item in best), default=0.0) or 1.0
        return [
            replace(
                item.state,
                importance=item.promise / largest,
                explanation=self._explain_state(case, item.state, item.effects),
            )
            for item in best
        ]

    def advise(self, case: Case, states: Sequence[CriticalState]) -> list[Advice]:
        """Compare random plans at all states by sequential halving, an equal budget in each round."""
        case = _nearer(case)
        space, config = case.task.action_space, case.config
        snapshots = [case.snapshot(state) for state in states]
        evaluator = self._evaluator(case, (1 - IDENTIFY_SHARE) * case.allowance)
        rounds = max(1, math.ceil(math.log2(config.candidates)))
        share = evaluator.left // rounds
        # One round must afford one pair for every plan; the runs without a plan are shared.
        places = min(len(states), share // (config.horizon * (config.candidates + 1)))
        arms = [
            _Arm(place, random_plan(space, config.plan_steps, case.rng), np.zeros(0))
            for place in range(places)
            for _ in range(config.candidates)
        ]

        def play(alive: list[_Arm], _: int) -> bool:
            case.progress(f"comparing {len(alive)} plans at {places} states")
            return self._compare(alive, places, snapshots, evaluator, share)

        arms = sequential_halving(arms, rounds, play, lambda arm: arm.mean, group=lambda arm: arm.place)
        best = [max((a for a in arms if a.place == place), key=lambda a: a.mean) for place in range(places)]
        largest = max((abs(arm.mean) for arm in best), default=0.0) or 1.0
        return [self._advice(case, states[arm.place], arm, largest) for arm in best if arm.mean > 0]

    def propose(self, case: Case, states: Sequence[CriticalState], report: TurnReport | None) -> Proposals:
        """Structures that follow from the card, once: the race tunes their numbers. The adversary proposes none."""
        wanted = report is None and self._sign > 0
        return Proposals(tuple(search_proposals(case, PROPOSED)) if wanted else ())

    def _compare(
        self, arms: list[_Arm], places: int, snapshots: list[Snapshot], evaluator: PairedEvaluator, share: int
    ) -> bool:
        """The same number of pairs for every arm, on the same seeds at each state; False if none is affordable."""
        runs = len(arms) + places  # those without a plan are shared by a state's arms
        pairs = min(max(1, share // (evaluator.horizon * runs)), evaluator.left // (evaluator.horizon * runs))
        if pairs < 1:
            return False
        seeds = [evaluator.seeds(pairs) for _ in range(places)]
        trials = [Trial(Candidate(arm.plan, snapshots[arm.place]), 1.0, seeds[arm.place]) for arm in arms]
        for arm, paired in zip(arms, evaluator.run(trials), strict=True):
            arm.differences = np.concatenate([arm.differences, self._sign * paired.differences])
        return True

    @staticmethod
    def _evaluator(case: Case, allowance: float) -> PairedEvaluator:
        return PairedEvaluator(
            case.batch,
            case.policy,
            case.gamma,
            case.config.horizon,
            case.budget,
            "analyse",
            int(allowance),
            case.rng,
        )

    @staticmethod
    def _candidates(case: Case) -> list[CriticalState]:
        """States drawn without replacement, likelier where things turned out worse than expected."""
        weights = [disappointment(episode, case.gamma) for episode in case.episodes]
        floor = 0.1 * max(float(np.concatenate(weights).mean()), 1e-9)
        chosen: list[tuple[float, int, int]] = []
        left = [weight + floor for weight in weights]
        for _ in range(SCREENED * case.config.states):
            together = np.concatenate(left)
            if not together.any():
                break
            place = int(case.rng.choice(len(together), p=together / together.sum()))
            episode = 0
            while place >= len(left[episode]):
                place -= len(left[episode])
                episode += 1
            chosen.append((float(weights[episode][place]), episode, place))
            left[episode][max(0, place - SPACING + 1) : place + SPACING] = 0.0
        chosen.sort(reverse=True)
        return [CriticalState(episode, t, 0.0, "") for _, episode, t in chosen]

    @staticmethod
    def _explain_state(case: Case, state: CriticalState, effects: list[float]) -> str:
        episode = case.episodes[state.episode]
        value = episode.values[state.t]
        later = episode.values[min(state.t + LOOK_AHEAD, len(episode))]
        unusual = largest_facts(case.task.card, case.episodes, state.episode, state.t)
        tried = (
            f"Other actions for a few steps changed the discounted return by {np.abs(effects).mean():.3g} on average "
            f"(best {max(effects):+.3g}); "
            if effects
            else ""
        )
        return (
            f"{unusual}. {tried}the critic's estimate went from {value:.3g} to {later:.3g} within {LOOK_AHEAD} steps."
        )

    def _advice(self, case: Case, state: CriticalState, arm: _Arm, largest: float) -> Advice:
        worth = float(np.clip(arm.mean / largest, -1, 1))
        words = case.task.card.describe_plan(arm.plan, case.task.action_space)
        return Advice(
            state=state,
            plan=arm.plan,
            reward_follow=worth,
            reward_taken=-worth,
            explanation=(f"{words}; it won against {case.config.candidates - 1} other plans."),
            source=self.name,
        )


def _nearer(case: Case) -> Case:
    """The case with a shorter horizon, for comparisons."""
    horizon = max(case.config.plan_steps + 1, int(case.config.compared * case.config.horizon))
    return replace(case, config=replace(case.config, horizon=horizon))


def adversary() -> SearchAnalyst:
    """The search turned round, with which trust is tested."""
    return SearchAnalyst(adverse=True)
