"""How good the analyst was: its advice, its critical states and its programs, from the files of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ultra.advice.records import Verification, load_advice
from ultra.config import takes_advice
from ultra.pipeline.adopting import read_adopted
from ultra.pipeline.program_search import Verified, read_turn, read_verified
from ultra.pipeline.round_advice import FIDELITY
from ultra.pipeline.run import Run
from ultra.pipeline.usage import usage_of
from ultra.verification.verdicts import audit, audit_of


def finished_rounds(run: Run, stage: str) -> list[Path]:
    """Folders of the rounds in which a stage is done, in order."""
    numbers = sorted(int(name.split("/")[0].removeprefix("round-")) for name in run.done if name.endswith(f"/{stage}"))
    return [run.round(number) for number in numbers]


def audit_of_run(run: Run) -> dict[str, Any] | None:
    """The audit of all rounds' advice and controls so far, or None if the method uses no advice."""
    if not takes_advice(run.config.method):
        return None
    folders = finished_rounds(run, "verify")
    advice = [item for folder in folders for item in load_advice(folder / "verified.jsonl")]
    control = [Verification(**item) for folder in folders for item in _read_list(folder / "control.json")]
    usage, found = usage_of(run), audit(advice)
    helpful = found["helps"] + sum(item.helps for folder in folders for item in read_verified(folder))
    return found | {
        "fidelity": _read_fidelity(folders),
        "random_control": audit_of(control) if control else None,
        "tokens_per_helpful": usage["tokens"] / helpful if helpful and usage["used"] else None,
        "cost_per_helpful": usage["cost"] / helpful if helpful and usage["used"] else None,
    }


def proposals_of_run(run: Run) -> dict[str, Any] | None:
    """What became of every program that was proposed, each counted once; None if programs are not asked for.

    `by_source` counts for each source the programs proposed, raced (played at all), tuned (played with other numbers
    than given), verified (in fresh episodes), found to help, and adopted.
    """
    if not run.config.uses_programs:
        return None
    items: list[dict[str, Any]] = []
    for folder in finished_rounds(run, "verify"):
        verified = read_verified(folder)
        adopted = read_adopted([folder])
        seen: set[tuple[int, str]] = set()
        for turn in turns_of(folder):
            for entrant in turn["entrants"]:
                which = entrant["turn"], entrant["program"]["name"]
                if which in seen:
                    continue  # carried over from an earlier turn
                seen.add(which)
                items.append(_fate(entrant, folder, verified, adopted))
    sources: dict[str, dict[str, int]] = {}
    for item in items:
        counts = sources.setdefault(
            item["source"], dict.fromkeys(("proposed", "raced", "tuned", "verified", "helps", "adopted"), 0)
        )
        for name, holds in (
            ("proposed", True), ("raced", item["episodes"] > 0), ("tuned", item["tuned"]),
            ("verified", item["verdict"] is not None), ("helps", item["verdict"] == "helps"),
            ("adopted", item["adopted"]),
        ):  # fmt: skip
            counts[name] += bool(holds)
    return {"by_source": sources, "programs": items}


def turns_of(folder: Path) -> list[dict[str, Any]]:
    """The turns of a round, in order."""
    return [read_turn(path) for path in sorted(folder.glob("turn-*.json"), key=lambda path: int(path.stem[5:]))]


def _fate(
    entrant: dict[str, Any], folder: Path, verified: Sequence[Verified], adopted: dict[str, Any]
) -> dict[str, Any]:
    name = entrant["program"]["name"]
    episodes = gain = in_set = None
    played = 0
    for turn in turns_of(folder):
        same = [item for item in turn["entrants"] if (item["turn"], item["program"]["name"]) == (entrant["turn"], name)]
        for other in same:
            played += other["episodes"]
            gain = other["gain"] if other["gain"] is not None else gain
        if not same:  # another of this name, in another turn
            continue
        for standing in turn["standings"]:
            names = [program["name"] for program in standing["programs"]]
            mean = sum(standing["differences"]) / len(standing["differences"])
            if names == [name]:
                gain, episodes = mean, len(standing["differences"])
            elif name in names and (in_set is None or mean > in_set):
                in_set = mean
    found = [item for item in verified if any(program.name == name for program in item.programs)]
    seen = found[0].verification if found else None
    taken = any(program["name"] == name for program in adopted["programs"])
    return {
        "name": name,
        "explanation": entrant["program"].get("explanation", ""),
        "source": entrant["source"],
        "round": int(folder.name.removeprefix("round-")),
        "turn": entrant["turn"],
        "episodes": played,
        "tuned": bool(entrant["program"].get("parameters")) and played > 1,
        "gain": gain,
        "compared_episodes": episodes,
        "gain_in_set": in_set,
        "verdict": seen.verdict if seen else None,
        "verified_gain": seen.advantage if seen else None,
        "verified_ci95": [seen.low, seen.high] if seen else None,
        "verified_pairs": seen.pairs if seen else None,
        "verified_with": [program.name for program in found[0].programs if program.name != name] if seen else [],
        "adopted": taken,
        "how": adopted["how"] if taken else None,
    }


def _read_fidelity(folders: Sequence[Path]) -> dict[str, Any] | None:
    """The fidelity of the last round in which it was measured."""
    for folder in reversed(folders):
        for found in _read_list(folder / FIDELITY):
            return {"round": int(folder.name.removeprefix("round-")), **found}
    return None


def _read_list(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return found
