"""The report of a study: every run as CSV and JSON, tables in Markdown, pictures, and one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ultra.common import html
from ultra.common.errors import RunDirectoryError
from ultra.common.files import make_directory, to_json_text, write_atomically, write_json
from ultra.common.statistics import Estimate
from ultra.pipeline.reporting import markdown_table, row_of, write_csv
from ultra.simulation.budget import PURPOSES, steps_for
from ultra.studies.claims import LEVEL, p_words
from ultra.studies.figures import draw_profiles, draw_task_curves
from ultra.studies.plan import slug
from ultra.studies.runner import plain, read_manifest
from ultra.studies.summary import Finished, Line, Summary, summarize
from ultra.verification.verdicts import suggestions_of

OVERALL = "All tasks"
"""Title of the table of normalised scores; a task's table has the task's name."""
Table = tuple[str, list[str], list[list[str]]]
"""Title, header and rows."""


def write_study_report(study: Path, out: Path) -> Path:
    """Write `runs.csv`, `runs.json`, `table.md`, `curves-TASK.png`, `profiles.png` and `report.html`.

    Raises:
        RunDirectoryError: if no run has finished.
    """
    summary = summarize(read_manifest(study), study)
    if not summary.finished:
        raise RunDirectoryError(f"{study} has no finished run yet: repeat `ultra study`")
    make_directory(out)
    write_csv(out / "runs.csv", [_row(run) for run in summary.finished])
    runs = [{"contender": run.contender, "seconds": run.seconds, **run.result} for run in summary.finished]
    missing = [{"run": job.name, "error": error} for job, error in summary.missing]
    write_json(out / "runs.json", {"study": plain(summary.study), "runs": runs, "missing": missing})
    pictures = {task: out / f"curves-{slug(task)}.png" for task in summary.tasks}
    for task, path in pictures.items():
        draw_task_curves(summary, task, path)
    if summary.overall:
        pictures[OVERALL] = out / "profiles.png"
        draw_profiles(summary, pictures[OVERALL])
    write_atomically(out / "table.md", _markdown(summary).encode())
    write_atomically(out / "report.html", _page(summary, pictures).encode())
    return out


def _row(run: Finished) -> dict[str, Any]:
    llm = run.result.get("llm", {})
    return {
        **row_of(run.result), "task": run.task, "contender": run.contender, "seconds": f"{run.seconds:.1f}",
        **{name: steps_for(run.result["budget"], name) for name in (*PURPOSES, "evaluation", "audit")},
        "llm_tokens": llm.get("tokens", 0), "llm_cost": llm.get("cost", 0.0),
    }  # fmt: skip


def tables(summary: Summary) -> list[Table]:
    """All tables of the report."""
    found = []
    base = summary.study.baseline
    if summary.overall:
        header = ["method", "score, interquartile mean [95%]", "mean score", f"P(better than {base}) [95%]", "seeds"]
        rows = [
            [
                line.name,
                _figure(line.center, 2),
                f"{line.values.mean():.2f}",
                _figure(line.better, 2),
                str(len(line.values)),
            ]
            for line in summary.overall
        ]
        found.append((OVERALL, header, rows))
    for task, lines in summary.tasks.items():
        header = [
            "method", "mean", "standard deviation", "interquartile mean [95%]", f"minus {base} [95%]",
            f"better than {base}, Holm-adjusted over the tasks", f"P(better than {base}) [95%]",
            "better than the start", "by seed",
        ]  # fmt: skip
        found.append((task, header, [_task_row(line, (line.name, base) == summary.study.planned) for line in lines]))
    found.append(_spending(summary))
    if failed := [[job.name, error] for job, error in summary.missing if error]:
        found.append(("Runs that failed", ["run", "why"], failed))
    return found


def _task_row(line: Line, main: bool) -> list[str]:
    """A contender's cells; what is not the study's main comparison is called exploratory."""
    values = line.values
    gap = f"{line.gap.mean:+.1f} [{line.gap.low:+.1f}, {line.gap.high:+.1f}]" if line.gap else ""
    return [
        line.name,
        f"{values.mean():.1f}",
        f"{values.std(ddof=1):.1f}" if len(values) > 1 else "",
        _figure(line.center, 1),
        gap,
        f"{line.test.finding or 'not shown'}, {p_words(line.test.adjusted)}{'' if main else ', exploratory'}"
        if line.test
        else "",
        _figure(line.better, 2),
        f"{line.improved} of {len(values)}",
        ", ".join(f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" for value in values),
    ]


def _spending(summary: Summary) -> Table:
    """What each contender used, over all its runs, and the verdicts on its suggestions."""
    header = ["method", "runs", "steps", "of them training", "core hours"]
    asked = any(run.result.get("llm", {}).get("tokens") for run in summary.finished)
    header += ["LLM tokens", "LLM cost"] if asked else []
    header += ["suggestions under verification"]
    rows = []
    for contender in summary.study.contenders:
        runs = [run for run in summary.finished if run.contender == contender.name]
        if not runs:
            continue
        used, trained = (sum(run.result["budget"][name] for run in runs) for name in ("used", "train"))
        hours = sum(run.seconds for run in runs) * summary.study.cores / 3600
        usage = [run.result.get("llm", {}) for run in runs]
        tokens, cost = (sum(entry.get(name, 0) for entry in usage) for name in ("tokens", "cost"))
        paid = [f"{tokens:,}", f"${cost:.2f}"] if asked else []
        rows.append([contender.name, f"{len(runs)}", f"{used:,}", f"{trained:,}", f"{hours:.2f}", *paid, _audit(runs)])
    return "What it took", header, rows


def _audit(runs: Sequence[Finished]) -> str:
    found = [run.result["audit"] for run in runs if run.result.get("audit")]
    if not found:
        return ""
    total = {name: sum(audit[name] for audit in found) for name in ("helps", "harms", "unclear", "untried")}
    total = {"suggestions": sum(suggestions_of(audit) for audit in found), **total}
    text = ", ".join(f"{number} {name}" for name, number in total.items())
    scores = [audit["fidelity"] for audit in found if audit.get("fidelity")]
    own = [score["score"] for score in scores if score["score"] is not None]
    chance = [score["random"]["score"] for score in scores if score["random"]["score"] is not None]
    if own:
        text += f"; fidelity {sum(own) / len(own):+.2f}"
        text += f", by chance {sum(chance) / len(chance):+.2f}" if chance else ""
    return text


def notes(summary: Summary) -> list[str]:
    """Notes above the tables: claims, caveats, how scores are normalised, what intervals mean, versions."""
    first = summary.finished[0].result
    made = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    numbers = {run.task: run.result["return"]["last"]["episodes"] for run in summary.finished}
    episodes = str(set(numbers.values()).pop())
    if len(set(numbers.values())) > 1:
        episodes = ", ".join(f"{number} ({task})" for task, number in numbers.items())
    return [
        *map(str, summary.claims),
        *summary.remarks,
        f"Each run's score is the mean return of its last policy over {episodes} episodes on fresh seeds, in "
        "Gymnasium's own environment. Steps are environment steps of all purposes but evaluation.",
        "Normalised scores are (return - start) / (reference - start). "
        + "; ".join(map(str, summary.scales.values())) + ".",
        "Interquartile means and probabilities of improvement have 95% stratified bootstrap intervals over seeds "
        "(arXiv 2108.13264); differences have Welch's, not adjusted. Over all tasks only seeds that finished on every "
        "task count.",
        "Claims about single tasks rest on Welch's test, Holm-adjusted over all tasks of the study: where two methods "
        f"are equally good on every task, any such claim is made with at most {LEVEL:.0%} probability. A comparison "
        "that the study's plan does not name as its main one is exploratory: there are several, and they are not "
        "adjusted for each other.",
        f"Made with {made}.",
    ]  # fmt: skip


def _figure(estimate: Estimate | None, digits: int) -> str:
    if estimate is None:
        return ""
    return f"{estimate.mean:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _markdown(summary: Summary) -> str:
    parts = ["\n\n".join([*_about(summary), *notes(summary)])]
    parts += [f"## {title}\n\n{markdown_table(header, rows)}" for title, header, rows in tables(summary)]
    return "\n\n".join(parts)


def _page(summary: Summary, pictures: Mapping[str, Path]) -> str:
    parts = [*map(html.paragraph, _about(summary)), html.bullets(notes(summary))]
    for title, header, rows in tables(summary):
        parts += [html.heading(title), html.table(header, rows)]
        if title in pictures:
            parts.append(html.image(pictures[title], title))
    results = [{"contender": run.contender, **run.result} for run in summary.finished]
    parts.append(html.folded("Results as JSON", to_json_text(results, "the report", "indented")))
    names = ", ".join(task.name for task in summary.study.tasks)
    return html.page(f"ULTRA study: {names}", parts)


def _about(summary: Summary) -> list[str]:
    return [summary.study.about] if summary.study.about else []
