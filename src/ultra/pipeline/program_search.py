"""Programs in a round: proposed in turns, raced and tuned, and the best verified in fresh whole episodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.advice.records import CriticalState, Verification
from ultra.analysts.base import Analyst, Case
from ultra.analysts.structures import search_proposals
from ultra.analysts.turns import Summary, Trace, Tried, TurnReport
from ultra.collection.collect import collect
from ultra.common.files import write_json
from ultra.common.statistics import mean_interval
from ultra.common.streams import stream
from ultra.config import ProgramsConfig, VerifyConfig
from ultra.pipeline.schedule import Round
from ultra.pipeline.usage import READERS
from ultra.programs.compiled import Compiled, Controller, compile_potential, compile_programs
from ultra.programs.records import Potential, Program
from ultra.simulation.paired import Candidate, PairedEvaluator
from ultra.tuning.entrants import Proposal, enter
from ultra.tuning.race import Race, Standing, first_episodes, race
from ultra.verification.verdicts import FIRST_LOOK, verify

CARRIED = 3
"""Programs that go on to the next turn with their tuned numbers."""
STRUCTURES = 12
"""Most structures of `search` that race in the first turn beside another analyst's programs."""
SCREENED = 2
"""Fewer of them race where the steps would not last for so many episodes of the first wave for every program."""
VERIFIED = 3
"""Winners of turns that are verified in fresh episodes."""
MOST_PAIRS = 32
"""Pairs of whole episodes for one of them, at most."""
FEW = 3
"""Whole episodes below which the comparison at a turn's end decides nothing."""
PROGRAMS = "programs.json"
"""In a round's folder: what became of every proposal, and what was verified."""
POTENTIALS = "potentials.json"


@dataclass(frozen=True)
class Verified:
    """Programs that are followed together, and what fresh whole episodes said of them."""

    programs: tuple[Program, ...]
    verification: Verification | None

    @property
    def helps(self) -> bool:
        """Whether they were found to help."""
        return self.verification is not None and self.verification.verdict == "helps"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = asdict(self.verification) if self.verification else None
        return {"programs": [program.to_json() for program in self.programs], "verification": found}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Verified:
        """Inverse of `to_json`."""
        found = value["verification"]
        programs = tuple(Program.from_json(item) for item in value["programs"])
        return cls(programs, Verification(**found) if found else None)


class ProgramSearch:
    """The programs of one round.

    Args:
        case: analysis context of the round.
        plan: the round's shares of the budget.
        config: settings of programs.
        verify_config: settings of verification.
        seed: of the analysis.
        say: prints a line.
    """

    def __init__(
        self,
        case: Case,
        plan: Round,
        config: ProgramsConfig,
        verify_config: VerifyConfig,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self.case, self.plan, self.config, self.say = case, plan, config, say
        self._verify_config, self._seed = verify_config, seed
        self._names = case.task.card.fact_names
        self._actions = tuple(action.name for action in case.task.card.actions)
        self.horizon, self.usual = episode_lengths(case)

    def compile(self, programs: Sequence[Program]) -> Compiled:
        """Instructions of programs that are followed together."""
        return compile_programs(programs, self._names, self._actions, self.case.task.action_space)

    def _evaluator(self, purpose: str, allowance: int, longest: int, *key: int | str) -> PairedEvaluator:
        case, rng = self.case, stream(self._seed, "programs", self.plan.number, *key)
        return PairedEvaluator(
            case.batch, case.policy, 1.0, longest, case.budget, purpose, allowance, rng,
            sampled=case.task.sampled_evaluation,
        )  # fmt: skip

    # -- turns -----------------------------------------------------------------------------------

    def turns_of(self, analyst: Analyst) -> int:
        """Turns of a conversation with this analyst: those that read nothing have one."""
        return self.config.turns if analyst.name.startswith(READERS) else 1

    def turn_path(self, turn: int) -> Path:
        """Where a turn is kept."""
        return self.case.folder / f"turn-{turn}.json"

    def turn(self, turn: int, analyst: Analyst, states: Sequence[CriticalState], left: int) -> bool:
        """Ask, race, and keep what came of it; returns whether anything was proposed.

        Args:
            turn: from 1.
            analyst: who proposes.
            states: the round's critical states.
            left: steps for this turn and those to come.
        """
        earlier = [read_turn(self.turn_path(k)) for k in range(1, turn)]
        report = self._report(earlier[-1], left) if earlier else None
        proposed = analyst.propose(self.case, states, report)
        potentials = self._checked(proposed.potentials)
        new = [replace(item, turn=turn) for item in proposed.programs]
        if not new and turn > 1:
            return False
        pool = [*carried(earlier), *new]
        share = left // (self.turns_of(analyst) - turn + 1)
        if self.config.structures and analyst.name not in ("search", "worst", "random") and turn == 1:
            played = share / (SCREENED * first_episodes(self.usual, self.horizon)[1])
            pool += search_proposals(self.case, int(np.clip(played - len(pool), 0, STRUCTURES)))
        if not pool:
            return False
        entrants = enter(pool, self.compile, stream(self._seed, "programs", self.plan.number, "tuning", turn))
        evaluator = self._evaluator("analyse", share, self.horizon, "race", turn)
        found = race(entrants, evaluator, evaluator.left, self.usual, self.compile, self.say, incumbents(earlier))
        self._tell(turn, found)
        write_json(self.turn_path(turn), self._record(turn, found, potentials))
        return bool(new)

    def _checked(self, potentials: Sequence[Potential]) -> list[Potential]:
        for potential in potentials:
            compile_potential(potential, self._names)
        return list(potentials)

    def _tell(self, turn: int, found: Race) -> None:
        tried = sum(entrant.tried for entrant in found.entrants)
        self.say(f"programs  turn {turn}: {tried} of {len(found.entrants)} programs tried in {found.steps:,} steps")
        for standing in found.standings[:3]:
            names = " + ".join(program.name for program in standing.programs)
            self.say(f"          {names}: {standing.gain:+.3g} over {len(standing.differences)} common episodes")

    def _record(self, turn: int, found: Race, potentials: Sequence[Potential]) -> dict[str, Any]:
        entrants = [
            {
                **entrant.proposal.to_json(),
                "episodes": entrant.episodes,
                "gain": _finite(entrant.gain),
                "gain_in_set": _finite(entrant.gain_in_set),
                "tuned": entrant.best.to_json() if entrant.best else None,
            }
            for entrant in found.entrants
        ]
        standings = [
            {
                "programs": [program.to_json() for program in standing.programs],
                "differences": standing.differences.tolist(),
                "lengths": standing.lengths.tolist(),
                "ended": standing.ended,
            }
            for standing in found.standings
        ]
        return {
            "turn": turn,
            "steps": found.steps,
            "alone": found.alone.tolist(),
            "entrants": entrants,
            "standings": standings,
            "potentials": [potential.to_json() for potential in potentials],
        }

    def _report(self, turn: dict[str, Any], left: int) -> TurnReport:
        """What the analyst is told of a turn."""
        alone = np.array(turn["alone"])
        standings = [_standing(item) for item in turn["standings"]]
        agent = self._traces(None, 1)
        best = standings[0] if standings else None
        traces = self._traces(best.programs, 3) if best else []
        traces.sort(key=lambda trace: trace.total_reward)
        tried = tuple(self._tried(item, standings, alone) for item in turn["entrants"])
        return TurnReport(
            turn=turn["turn"],
            turns=self.config.turns,
            alone=self._summary(agent, alone),
            tried=tried,
            steps=turn["steps"],
            left=left,
            best=traces[-1] if traces else None,
            best_name=" + ".join(program.name for program in best.programs) if best else "",
            median=traces[len(traces) // 2] if len(traces) > 1 else None,
        )

    def _traces(self, programs: Sequence[Program] | None, count: int) -> list[Trace]:
        """A few recorded episodes, charged as analysis."""
        seeds = stream(self._seed, "programs", self.plan.number, "traces").integers(2**31, size=count).tolist()
        longest = min(self.horizon, 1000)
        if count * longest > self.case.budget.remaining:
            return []
        controller = Controller.of(self.compile(programs)) if programs else None
        episodes = collect(
            self.case.task, self.case.policy, seeds, self.case.gamma, longest=longest, controller=controller,
            deterministic=not self.case.task.sampled_evaluation, workers=self.case.workers,
        )  # fmt: skip
        self.case.budget.charge("analyse", sum(map(len, episodes)))
        return [Trace(e.facts, e.actions, e.rewards, e.terminated) for e in episodes]

    def _summary(self, traces: Sequence[Trace], returns: NDArray[np.float64]) -> Summary:
        if not traces:
            return Summary(len(returns), 0.0, float(returns.mean()) if len(returns) else 0.0, 0.0)
        facts = np.concatenate([trace.facts for trace in traces]).mean(axis=0)
        return Summary(
            episodes=max(len(returns), len(traces)),
            steps=float(np.mean([len(trace) for trace in traces])),
            total_reward=float(returns.mean()) if len(returns) else float(np.mean([t.total_reward for t in traces])),
            ended=float(np.mean([trace.terminated for trace in traces])),
            facts=tuple(zip(self._names, facts.tolist(), strict=True)),
        )

    def _tried(self, item: dict[str, Any], standings: Sequence[Standing], alone: NDArray[np.float64]) -> Tried:
        proposal = Proposal.from_json(item)
        tuned = Program.from_json(item["tuned"]) if item["tuned"] else proposal.program
        own = [s for s in standings if len(s.programs) == 1 and s.programs[0].name == proposal.program.name]
        if not own:
            changed = tuned != proposal.program
            return Tried(replace(proposal, program=tuned), item["episodes"], difference=item["gain"], tuned=changed)
        best = own[0]
        pairs = len(best.differences)
        spread = mean_interval(best.differences.tolist()) if pairs > 1 else None
        steps = float(best.lengths.mean())
        summary = Summary(
            len(best.differences), steps, float((alone[: len(best.differences)] + best.differences).mean()), best.ended
        )
        return Tried(
            replace(proposal, program=best.programs[0]),
            item["episodes"],
            summary,
            best.gain,
            spread.low if spread else None,
            spread.high if spread else None,
            pairs,
            tuned=best.programs[0] != proposal.program,
        )

    # -- verification ------------------------------------------------------------------------------

    def prove(self, allowance: int) -> list[Verified]:
        """Verify the winners in fresh paired episodes, the best first; what was found is kept.

        Episodes are whole where the allowance lasts for `FIRST_LOOK` pairs of them, else cut so that it does.
        """
        turns = self.turns()
        allowance = min(allowance, self.case.budget.remaining)
        affordable = max(1, allowance // (2 * FIRST_LOOK * self.horizon))
        best = winners(turns)[: min(VERIFIED, affordable)]
        longest = min(self.horizon, allowance // (2 * FIRST_LOOK))
        if best and longest < self.horizon:
            self.say(f"verify    in episodes of {longest:,} steps, for lack of steps: raise --programs-share")
        evaluator = self._evaluator("verify", allowance, longest, "prove")
        candidates = [Candidate(controller=Controller.of(self.compile(programs))) for programs in best]
        config = replace(self._verify_config, branches=min(MOST_PAIRS, self._verify_config.branches))
        found = verify(candidates, evaluator, config) if candidates else []
        verified = [Verified(programs, item) for programs, item in zip(best, found, strict=True)]
        verified.sort(key=lambda item: -item.verification.advantage if item.verification else np.inf)
        write_json(self.case.folder / PROGRAMS, {"verified": [item.to_json() for item in verified]})
        potentials = {item["name"]: item for turn in turns for item in turn["potentials"]}
        write_json(self.case.folder / POTENTIALS, list(potentials.values()))
        for item in verified:
            names = " + ".join(program.name for program in item.programs)
            seen = item.verification
            words = "not tried for lack of steps" if seen is None else (
                f"{seen.verdict}, {seen.advantage:+.3g} [{seen.low:+.3g}, {seen.high:+.3g}] over {seen.pairs} pairs"
            )  # fmt: skip
            self.say(f"verify    {names}: {words}")
        return verified

    def turns(self) -> list[dict[str, Any]]:
        """The turns so far."""
        paths = [self.turn_path(k) for k in range(1, self.config.turns + 1)]
        return [read_turn(path) for path in paths if path.is_file()]


def read_turn(path: Path) -> dict[str, Any]:
    """A turn as it was kept."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def read_verified(folder: Path) -> list[Verified]:
    """The verified programs of a round; an empty list if there are none."""
    path = folder / PROGRAMS
    if not path.is_file():
        return []
    return [Verified.from_json(item) for item in json.loads(path.read_text(encoding="utf-8"))["verified"]]


def read_potentials(folder: Path) -> list[Potential]:
    """The potentials of a round; an empty list if there are none."""
    path = folder / POTENTIALS
    return (
        [Potential.from_json(item) for item in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []
    )


def carried(turns: Sequence[dict[str, Any]]) -> list[Proposal]:
    """The best programs of earlier turns with their tuned numbers: first those that were compared in whole episodes,
    then, where the steps did not last for that, those that did best in the short ones."""
    found: dict[str, Proposal] = {}
    for turn in reversed(turns):
        sources = {item["program"]["name"]: item for item in turn["entrants"]}
        for standing in turn["standings"]:
            if len(standing["programs"]) == 1 and float(np.mean(standing["differences"])) > 0:
                program = Program.from_json(standing["programs"][0])
                origin = sources.get(program.name)
                if origin is not None:
                    found.setdefault(program.name, Proposal(program, origin["source"], origin["turn"]))
    for turn in reversed(turns):
        for item in _promising(turn):
            found.setdefault(item["program"]["name"], Proposal(_tuned(item), item["source"], item["turn"]))
    return list(found.values())[:CARRIED]


def incumbents(turns: Sequence[dict[str, Any]]) -> list[tuple[Program, ...]]:
    """What led the comparison of each earlier turn, the latest first."""
    leaders = [_standing(turn["standings"][0]) for turn in reversed(turns) if turn["standings"]]
    return list(dict.fromkeys(leader.programs for leader in leaders if leader.gain > 0))


def winners(turns: Sequence[dict[str, Any]]) -> list[tuple[Program, ...]]:
    """What is worth verifying, the most promising first.

    Later turns compare with the best of earlier ones, so their winners come first. Where no turn has one, for lack of
    steps or because one whole episode went badly, verification decides about what did best in short episodes.
    """
    found = incumbents(turns)
    if not found:
        found = [(_tuned(item),) for turn in reversed(turns) for item in _promising(turn)]
    return list(dict.fromkeys(found))


def _promising(turn: dict[str, Any]) -> list[dict[str, Any]]:
    """Entrants that looked better than the agent alone, the best first, in a turn without a proper comparison."""
    if turn["standings"] and len(turn["standings"][0]["differences"]) >= FEW:
        return []
    better = [item for item in turn["entrants"] if item["gain"] is not None and item["gain"] > 0]
    return sorted(better, key=lambda item: -item["gain"])


def _tuned(entrant: dict[str, Any]) -> Program:
    return Program.from_json(entrant["tuned"] or entrant["program"])


def _standing(item: dict[str, Any]) -> Standing:
    programs = tuple(Program.from_json(program) for program in item["programs"])
    return Standing(programs, np.array(item["differences"]), np.array(item["lengths"]), item["ended"])


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def episode_lengths(case: Case) -> tuple[int, int | None]:
    """The longest episode that programs are tried in, and how long the policy's own last where survival pays.

    Where episodes end early and each step is worth something, as in walking, whoever lasts longer wins late: such
    episodes must not be cut. A game that is being lost is not worth more when it lasts.
    """
    limit = case.task.time_limit
    lengths = [len(episode) for episode in case.episodes]
    rewards = [float(episode.rewards.mean()) for episode in case.episodes]
    if any(episode.terminated for episode in case.episodes):
        if np.mean(rewards) > 0:
            return limit, int(np.mean(lengths))
        return min(limit, max(lengths)), None
    return min(limit, max(lengths)) if limit >= NO_LIMIT else limit, None


NO_LIMIT = 10_000
"""Time limits from which on an episode's own length says more."""
