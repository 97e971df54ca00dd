"""What a run found, as rows of tables for its report: critical states with their advice, and programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ultra.advice.records import Advice, CriticalState, load_advice, load_states
from ultra.pipeline.run import Run

STATES_HEADER = ("where", "importance", "why it is critical", "advice", "when it was tried")
PROGRAMS_HEADER = (
    "program",
    "what it does",
    "proposed by",
    "episodes",
    "alone",
    "in a set",
    "in fresh episodes",
    "outcome",
)
HOW = {"graft": "part of the network (graft)", "distil": "taught to the network (distil)", "program": "acts with it"}


def state_rows(run: Run) -> list[list[str]]:
    """Critical states of all rounds, in order, each with its advice if there is any; what helps comes first."""
    rows: list[list[str]] = []
    for folder in sorted(run.path.glob("round-*"), key=lambda path: int(path.name.removeprefix("round-"))):
        paths = [folder / name for name in ("states.jsonl", "verified.jsonl", "advice.jsonl")]
        states = load_states(paths[0]) if paths[0].is_file() else []
        path = next((path for path in paths[1:] if path.is_file()), None)
        advice = load_advice(path) if path else []
        number = int(folder.name.removeprefix("round-"))
        advised = {_place(item.state) for item in advice if item.state.round == number}  # others are carried over
        rows += [_advice_row(item) for item in sorted(advice, key=_worth, reverse=True)]
        rows += [
            [_where(state), f"{state.importance:.2f}", state.explanation, "-", "-"]
            for state in sorted(states, key=lambda state: -state.importance)
            if _place(state) not in advised
        ]
    return rows


def _place(state: CriticalState) -> tuple[int, int]:
    return state.episode, state.t


def _where(state: CriticalState) -> str:
    return f"round {state.round}, episode {state.episode}, step {state.t}"


def _worth(item: Advice) -> tuple[bool, float]:
    found = item.verification
    return item.verdict == "helps", found.advantage if found else item.state.importance


def _advice_row(item: Advice) -> list[str]:
    state = item.state
    return [_where(state), f"{state.importance:.2f}", state.explanation, item.explanation, tried(item)]


def tried(item: Advice) -> str:
    """What verification found of an advice, in words."""
    found = item.verification
    if found is None:
        return "not tried"
    strength = f" at strength {found.strength:g}" if item.plan.relative else ""
    return (
        f"{found.verdict}{strength}, {found.advantage:+.2f} discounted return [{found.low:+.2f}, {found.high:+.2f}] "
        f"over {_many(found.pairs, 'paired branch', 'paired branches')}"
    )


def program_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Every program that was proposed in a run, once, the best first."""
    proposals = result.get("proposals")
    items = proposals["programs"] if proposals else []

    def worth(item: Mapping[str, Any]) -> tuple[bool, bool, float]:
        return item["adopted"], item["gain"] is not None, item["gain"] or 0.0

    return [_program_row(item) for item in sorted(items, key=worth, reverse=True)]


def _program_row(item: Mapping[str, Any]) -> list[str]:
    turn = f", turn {item['turn']}" if item["turn"] else ""
    rounds = f", round {item['round']}" if item["round"] > 1 else ""
    alone = "-"
    if item["gain"] is not None:
        common = item["compared_episodes"]
        over = f" over {_many(common, 'common episode')}" if common else ", first episodes"
        alone = f"{item['gain']:+.3g}{over}"
    in_set = f"{item['gain_in_set']:+.3g}" if item["gain_in_set"] is not None else "-"
    tuned = " (tuned)" if item["tuned"] else ""
    played = f"{item['episodes']:,}{tuned}" if item["episodes"] else "not tried, for lack of steps"
    source = f"{item['source']}{turn}{rounds}"
    words = item.get("explanation") or "-"
    return [item["name"], words, source, played, alone, in_set, _fresh(item), _outcome(item)]


def _fresh(item: Mapping[str, Any]) -> str:
    """What verification found."""
    if item["verdict"] is None:
        return "-"
    ends, pairs = item.get("verified_ci95"), item.get("verified_pairs")
    interval = f" [{ends[0]:+.3g}, {ends[1]:+.3g}]" if ends else ""
    over = f" over {_many(pairs, 'pair')}" if pairs else ""
    others = f", with {' and '.join(item['verified_with'])}" if item.get("verified_with") else ""
    return f"{item['verdict']}, {item['verified_gain']:+.3g}{interval}{over}{others}"


def _outcome(item: Mapping[str, Any]) -> str:
    if item["adopted"]:
        return f"adopted: {HOW.get(item.get('how', ''), 'part of the policy')}"
    if item["verdict"] == "helps":
        return "helps, but another was adopted"
    if item["verdict"] is not None:
        return "not shown to help"
    return "lost the race" if item["episodes"] else "not tried"


def adoption_lines(result: Mapping[str, Any]) -> list[str]:
    """What became part of the policy, with its numbers, and why it was not put there in another way."""
    adopted = result.get("adopted")
    if not result.get("proposals") or not adopted:
        return []
    if adopted["how"] == "none":
        return ["No program was adopted: none was shown to help in fresh episodes."]
    lines = []
    for program in adopted["programs"]:
        numbers = ", ".join(f"{name} = {item['value']:.4g}" for name, item in program.get("parameters", {}).items())
        words = f": {program['explanation']}" if program.get("explanation") else ""
        lines.append(f"Adopted, {HOW[adopted['how']]}: {program['name']}{words}" + (f" [{numbers}]" if numbers else ""))
    return [*lines, *(f"Not by {reason}" for reason in adopted["attempts"])]


def source_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """How many programs of each source were proposed, raced and so on; the first row holds the names of the counts."""
    sources = (result.get("proposals") or {}).get("by_source", {})
    if not sources:
        return []
    names = list(next(iter(sources.values())))
    return [
        ["source", *names],
        *([source, *(str(counts[name]) for name in names)] for source, counts in sources.items()),
    ]


def _many(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"
