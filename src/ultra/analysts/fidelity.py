"""The fidelity score of an explanation (StateMask, NeurIPS 2023; RICE, arXiv 2405.03064).

If a stretch of an episode is as important as an explanation says, random actions there must change the
return much. For a window of l of an episode's L steps, with the mean change d of the return,

    score = log(d / d_max) - log(l / L);

higher is better. Any importance can be scored, a language model's as well as a mask network's. What a
score is worth shows against windows that are placed by chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.advice.records import CriticalState, load_states
from ultra.analysts.base import Case
from ultra.analysts.mask import importance, random_action
from ultra.collection.trajectories import Trajectory
from ultra.common.errors import UltraError
from ultra.common.files import finite_or_none
from ultra.common.statistics import mean_interval, stratified_bootstrap
from ultra.common.streams import stream
from ultra.policies.io import load_policy
from ultra.policies.policy import Policy
from ultra.programs.compiled import Controller
from ultra.simulation.branches import Branch, simulate
from ultra.tasks.batch import Batch, Snapshot
from ultra.tasks.plans import Plan, Segment
from ultra.tasks.spaces import ActionSpace, Discrete
from ultra.tasks.task import Task

SHARES = (0.1, 0.2, 0.3, 0.4)
"""Lengths of the windows, as shares of the episode."""
AUDIT_SHARE = 0.2
"""Length of the windows in a run's audit."""
AUDIT_STEPS = 500
"""Longest branch in a run's audit: long games are not played to their ends."""
FEWEST = 12
"""Replays of each kind, where the analyst explained fewer episodes."""
MOST_TOGETHER = 32


@dataclass(frozen=True)
class Fidelity:
    """What random actions in the most important windows of a length did."""

    share: float
    """Length of the windows, as a share of the episodes."""
    score: float
    """Higher is better; minus infinity if the return never changed."""
    low: float
    """Lower end of the score's 95% bootstrap interval over replays."""
    high: float
    """Upper end."""
    change: float
    """Mean absolute change of the return, d."""
    largest: float
    """The change to which it is compared, d_max."""
    episodes: int
    steps: int
    """Environment steps that it took."""
    changes: tuple[float, ...] = ()
    """Absolute change of the return in each replay."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON; a score of minus infinity, or an end of its interval, is none."""
        score, low, high = map(finite_or_none, (self.score, self.low, self.high))
        return {
            "share": self.share, "score": score, "ci95": [low, high] if len(self.changes) > 1 else None,
            "change": self.change, "largest": self.largest, "episodes": self.episodes, "replays": len(self.changes),
            "steps": self.steps,
        }  # fmt: skip


def importance_of_states(states: Sequence[CriticalState], episodes: Sequence[Trajectory]) -> list[NDArray[np.float64]]:
    """The importance (T,) of every step of each episode by a list of critical states: 0 where none is named."""
    importances = [np.zeros(len(episode)) for episode in episodes]
    for state in states:
        importances[state.episode][min(state.t, len(importances[state.episode]) - 1)] = state.importance
    return importances


def importance_by_chance(episodes: Sequence[Trajectory], rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """An importance (T,) of every step of each episode that says nothing: the control."""
    return [rng.random(len(episode)) for episode in episodes]


def most_important_window(importance: NDArray[np.float64], length: int) -> int:
    """Where the window of `length` steps with the highest mean importance begins; the first of equals."""
    sums = np.cumsum(np.concatenate([[0.0], importance]))
    return int(np.argmax(np.round(sums[length:] - sums[:-length], 9)))


def fidelity(
    task: Task,
    policy: Policy,
    episodes: Sequence[Trajectory],
    importances: Sequence[NDArray[np.float64]],
    rng: np.random.Generator,
    *,
    shares: Sequence[float] = SHARES,
    largest: float | None = None,
    workers: int = 0,
) -> list[Fidelity]:
    """Score an explanation of a policy's episodes.

    From the beginning of each episode's window the simulator branches: random actions through the
    window and then the policy, and the policy alone, with common random numbers.

    Args:
        task: where.
        policy: whose episodes they are; it samples its actions, as it did in them.
        episodes: to be explained.
        importances: (T,) of each episode's steps.
        rng: source of the random actions and the policy's randomness.
        shares: lengths of the windows, between 0 and 1.
        largest: d_max; by default the largest absolute return of the episodes.
        workers: cores for stepping; 0 uses all.

    Returns:
        One score for each share.

    Raises:
        UltraError: if an importance does not fit its episode, or there is nothing to compare changes with.
    """
    for number, (episode, values) in enumerate(zip(episodes, importances, strict=True)):
        if len(values) != len(episode):
            raise UltraError(f"episode {number} has {len(episode)} steps, but {len(values)} importances")
    largest = largest_return(episodes) if largest is None else largest
    if largest <= 0:
        raise UltraError("every episode has return 0: say with `largest` which change of the return is large")
    batch, replay = task.make_batch(min(MOST_TOGETHER, 2 * len(episodes)), workers or None), task.make_local_batch(1)
    try:
        bench = _Bench(task, policy, batch, replay, largest, task.time_limit, rng)
        return [bench.score(episodes, importances, share) for share in shares]
    finally:
        batch.close()
        replay.close()


def largest_return(episodes: Sequence[Trajectory]) -> float:
    """The largest absolute return of some episodes."""
    return max(abs(episode.total_reward) for episode in episodes)


def explained(case: Case) -> tuple[list[Trajectory], list[NDArray[np.float64]]]:
    """The episodes of a round that its analyst explained, with the importance (T,) of their steps.

    A mask network says how important every step is; any other analyst names critical states, and
    episodes in which it named none are left out.
    """
    if (case.folder / "mask").is_dir():
        mask = load_policy(case.folder / "mask")
        return list(case.episodes), [importance(mask, episode.observations[:-1]) for episode in case.episodes]
    values = importance_of_states(load_states(case.folder / "states.jsonl"), case.episodes)
    found = [number for number, of_steps in enumerate(values) if of_steps.any()]
    return [case.episodes[number] for number in found], [values[number] for number in found]


def fidelity_of_case(
    case: Case,
    rng: np.random.Generator,
    *,
    shares: Sequence[float] = SHARES,
    replays: int | None = None,
    longest: int | None = None,
) -> list[dict[str, Any]]:
    """Score the explanation of a round's episodes, and one by chance of the same episodes.

    Args:
        case: the round, with its environments and its folder.
        rng: a generator of its own, so that nothing else changes.
        shares: lengths of the windows.
        replays: of the explained episodes in turn; by default each of them, and at least `FEWEST` in all.
        longest: branches at most this long; by default to the ends of the episodes.

    Returns:
        For each length the figures of `Fidelity.as_dict`, those by chance as `random`, and
        `more_than_random`, by how much more the return changed, with its 95% interval over paired
        replays; nothing if no episode was explained or every return is 0.
    """
    episodes, importances = explained(case)
    largest = largest_return(episodes) if episodes else 0.0
    if largest <= 0:
        return []
    drawn = np.resize(rng.permutation(len(episodes)), replays or max(FEWEST, len(episodes)))
    episodes, importances = [episodes[n] for n in drawn], [importances[n] for n in drawn]
    limit = min(case.task.time_limit, longest or case.task.time_limit)
    bench = _Bench(case.task, case.policy, case.batch, case.replay, largest, limit, rng)
    results = []
    for share in shares:
        own = bench.score(episodes, importances, share)
        chance = bench.score(episodes, importance_by_chance(episodes, rng), share)
        results.append({**own.as_dict(), "steps": own.steps + chance.steps, **_compared(own, chance)})
    return results


def _compared(own: Fidelity, chance: Fidelity) -> dict[str, Any]:
    """An explanation against one by chance, on the same episodes."""
    control = {name: value for name, value in chance.as_dict().items() if name in ("score", "ci95", "change")}
    gaps = [a - b for a, b in zip(own.changes, chance.changes, strict=True)]
    gap = mean_interval(gaps) if len(gaps) > 1 else None
    more = {"mean": own.change - chance.change, "ci95": [gap.low, gap.high] if gap else None}
    return {"random": control, "more_than_random": more}


@dataclass(frozen=True)
class _Bench:
    """What windows are tried with."""

    task: Task
    policy: Policy
    batch: Batch
    replay: Batch
    largest: float
    longest: int
    rng: np.random.Generator

    def score(
        self, episodes: Sequence[Trajectory], importances: Sequence[NDArray[np.float64]], share: float
    ) -> Fidelity:
        """Random actions in each episode's most important window of a length."""
        branches: list[Branch] = []
        relative, replayed = [], 0
        for episode, values in zip(episodes, importances, strict=True):
            length = max(1, round(share * len(episode)))
            begin = most_important_window(values, length)
            start, steps = episode.snapshot(begin, self.replay, self.task.action_space)
            relative.append(length / len(episode))
            branches += self._pair(start, begin, length)
            replayed += steps
        outcomes = simulate(self.batch, self.policy, branches, gamma=1.0)
        changes = np.array([abs(a.reward - b.reward) for a, b in zip(outcomes[::2], outcomes[1::2], strict=True)])
        # The score rises with the change, so the ends of the change's interval give those of the score's.
        change = stratified_bootstrap(
            lambda table: float(table.mean()), changes[:, None], rng=stream("bootstrap", "fidelity"), draws=2000
        )
        portion = math.log(float(np.mean(relative)))
        score, low, high = (
            math.log(value / self.largest) - portion if value > 0 else -math.inf
            for value in (change.mean, change.low, change.high)
        )
        spent = replayed + sum(outcome.steps for outcome in outcomes)
        different, found = len({episode.seed for episode in episodes}), tuple(changes.tolist())
        return Fidelity(share, score, low, high, change.mean, self.largest, different, spent, found)

    def _pair(self, start: Snapshot, begin: int, length: int) -> list[Branch]:
        """The branch with random actions through the window, and the one without."""
        seed = int(self.rng.integers(2**31))
        rest = max(1, min(self.longest, self.task.time_limit - begin))
        plan = _random_actions(self.task.action_space, min(length, rest), self.rng)
        controller = Controller.of_plan(plan, self.task.action_space)
        return [Branch(seed, rest, start, controller=controller), Branch(seed, rest, start)]


def _random_actions(space: ActionSpace, length: int, rng: np.random.Generator) -> Plan:
    """A fresh random action at every step."""
    actions = (random_action(space, rng) for _ in range(length))
    if isinstance(space, Discrete):
        return Plan(tuple(Segment(int(action)) for action in actions))
    return Plan(tuple(Segment(tuple(map(float, action))) for action in actions))
