"""Reports of finished runs: tables (CSV, JSON, Markdown), learning curves (PNG), one HTML page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultra.advice.records import Advice, load_advice
from ultra.common import html
from ultra.common.files import check_finite, to_json_text, write_atomically, write_json
from ultra.pipeline.findings import (
    PROGRAMS_HEADER,
    STATES_HEADER,
    adoption_lines,
    program_rows,
    source_rows,
    state_rows,
    tried,
)
from ultra.pipeline.run import Run, read_curve
from ultra.pipeline.usage import describe_usage
from ultra.simulation.budget import PURPOSES, steps_for
from ultra.verification.verdicts import suggestions_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def label(result: dict[str, Any]) -> str:
    """A method as tables and legends name it."""
    return f"{result['method']} ({result['analyst']})" if result["analyst"] else str(result["method"])


def interval(estimate: dict[str, Any]) -> str:
    """A mean with its 95% interval."""
    return f"{estimate['mean']:.1f} [{estimate['ci95'][0]:.1f}, {estimate['ci95'][1]:.1f}]"


def row_of(result: dict[str, Any]) -> dict[str, Any]:
    """One run as a row of the CSV table."""
    start, last = result["return"]["start"], result["return"]["last"]
    return {
        "task": result["task"],
        "method": result["method"],
        "analyst": result["analyst"] or "",
        "seed": result["seed"],
        "start": start["mean"],
        "last": last["mean"],
        "last_low": last["ci95"][0],
        "last_high": last["ci95"][1],
        "improved": result["improved"],
        "steps": result["budget"]["used"],
        **_fidelity_cells(result),
    }


def _fidelity_cells(result: dict[str, Any]) -> dict[str, Any]:
    """The fidelity score for the CSV table; empty where it was not measured or the return never changed."""
    found = (result["audit"] or {}).get("fidelity") or {"score": None, "ci95": None, "random": {"score": None}}
    low, high = found["ci95"] or (None, None)
    return {
        "fidelity": found["score"], "fidelity_low": low, "fidelity_high": high,
        "fidelity_by_chance": found["random"]["score"],
    }  # fmt: skip


def comparison(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table that compares methods: returns, and steps by purpose."""
    header = ["", "mean return [95%]", *PURPOSES, "total"]
    first = results[0]
    rows = [["start", interval(first["return"]["start"]), *[""] * (1 + len(PURPOSES))]]
    for result in results:
        budget = result["budget"]
        steps = [f"{steps_for(budget, name):,}" for name in (*PURPOSES, "used")]
        rows.append([label(result), interval(result["return"]["last"]), *steps])
    return header, rows


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)]) + "\n"


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows with equal keys, in the order of the first."""
    buffer = io.StringIO()
    check_finite(list(rows), path.name)
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue().encode())


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and free it."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    pyplot.close(figure)
    write_atomically(path, buffer.getvalue())


def draw_curves(runs: Sequence[Run], path: Path) -> None:
    """Learning curves against total environment steps, one line for each run, as PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(7.5, 4.2), dpi=120, layout="constrained")
    results = [run.read_result() for run in runs]
    for number, (run, result) in enumerate(zip(runs, results, strict=True)):
        rows = read_curve(run.curve)
        colour = f"C{number}"
        if rows:
            steps, mean = [row[0] for row in rows], [row[1] for row in rows]
            axes.plot(steps, mean, color=colour, label=f"{label(result)}, while training")
        last = result["return"]["last"]
        error = [[last["mean"] - last["ci95"][0]], [last["ci95"][1] - last["mean"]]]
        end = result["budget"]["used"] * (1 + 0.01 * number)
        axes.errorbar([end], [last["mean"]], yerr=error, fmt="o", color=colour, capsize=4)
    start = results[0]["return"]["start"]
    axes.axhline(start["mean"], color="0.4", linestyle="--", linewidth=1, label="starting policy")
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes.set_xlabel("environment steps, of all purposes")
    axes.set_ylabel("return")
    axes.set_title(f"{results[0]['task']}: dots are final evaluations with 95% intervals", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def advice_of(run: Run) -> list[Advice]:
    """All advice of a run, the most helpful first; empty if it used none."""
    paths = sorted(run.path.glob("round-*/verified.jsonl"))
    advice = [item for path in paths for item in load_advice(path)]

    def worth(item: Advice) -> tuple[bool, float]:
        found = item.verification
        return item.verdict == "helps", found.advantage if found else item.state.importance

    return sorted(advice, key=worth, reverse=True)


def explain(item: Advice) -> str:
    """A piece of advice with its state and verdict, as a few lines of text."""
    state = item.state
    lines = [
        f"Episode {state.episode}, step {state.t} (importance {state.importance:.2f}): {state.explanation}",
        f"  Advice: {item.explanation}",
    ]
    if item.verification is not None:
        lines.append(f"  Tried: {tried(item)}.")
    return "\n".join(lines)


def describe_fidelity(found: dict[str, Any]) -> str:
    """A fidelity score in a sentence."""
    own, chance, more = found["score"], found["random"]["score"], found["more_than_random"]
    low, high = found["ci95"] or (None, None)
    ends = f" [{_score(low)}, {_score(high)}]" if found["ci95"] else ""
    gap = f" [{more['ci95'][0]:+.3g}, {more['ci95'][1]:+.3g}]" if more["ci95"] else ""
    return (
        f"fidelity {_score(own)}{ends}, by chance {_score(chance)}: random actions in the most important "
        f"{found['share']:.0%} of an episode change its return by {found['change']:.3g} of {found['largest']:.3g}, "
        f"{more['mean']:+.3g}{gap} more than elsewhere ({found['replays']} replays, explained episodes: "
        f"{found['episodes']}; {found['steps']:,} steps outside the budget)"
    )


def _score(value: float | None) -> str:
    return "minus infinity" if value is None else f"{value:+.2f}"


AUDIT_HEADER = ("", "helps", "harms", "unclear", "not tried", "mean advantage [95%]", "steps", "steps per helpful one")


def audit_parts(audit: dict[str, Any], analyst: str) -> tuple[list[list[str]], list[str]]:
    """The audit of an analyst: rows for its advice and for random plans at the same states, and remarks."""
    parts = {analyst: audit, "random plans there": audit["random_control"]}
    rows = []
    for name, part in parts.items():
        if part is None or not suggestions_of(part):
            continue
        counts = [str(part[key]) for key in ("helps", "harms", "unclear", "untried")]
        mean = "-"
        if part["mean_advantage"] is not None:
            mean = f"{part['mean_advantage']:+.3g}"
            if part["ci95"] is not None:
                mean += f" [{part['ci95'][0]:+.3g}, {part['ci95'][1]:+.3g}]"
        price = f"{part['steps_per_helpful']:,}" if part["steps_per_helpful"] else "-"
        rows.append([name, *counts, mean, f"{part['verification_steps']:,}", price])
    remarks = []
    if audit.get("fidelity"):
        remarks.append(f"Of the critical states of {analyst}: {describe_fidelity(audit['fidelity'])}.")
    if audit["tokens_per_helpful"] is not None:
        price = f"{audit['tokens_per_helpful']:,.0f} tokens, ${audit['cost_per_helpful']:.4f}"
        remarks.append(f"{price} for each suggestion that helps.")
    return rows, remarks


def audit_table(audit: dict[str, Any], analyst: str) -> str:
    """The audit of an analyst as a Markdown table with remarks."""
    rows, remarks = audit_parts(audit, analyst)
    text = markdown_table(AUDIT_HEADER, rows) if rows else "No advice was given.\n"
    return text + "".join(f"\n{remark}\n" for remark in remarks)


def programs_text(result: dict[str, Any]) -> str:
    """The programs of a run as a Markdown table, and what was adopted; empty if none were asked for."""
    rows = [[name, *rest] for name, _, *rest in program_rows(result)]
    table = markdown_table([PROGRAMS_HEADER[0], *PROGRAMS_HEADER[2:]], rows) if rows else ""
    return table + "".join(f"\n{line}\n" for line in adoption_lines(result))


def programs_summary(result: dict[str, Any]) -> str:
    """How many programs each source proposed, and what was adopted; empty if none were asked for."""
    sources = (result.get("proposals") or {}).get("by_source", {})
    counts = "".join(
        f"Programs of {source}: {', '.join(f'{count} {what}' for what, count in found.items())}.\n"
        for source, found in sources.items()
    )
    return counts + "".join(f"\n{line}\n" for line in adoption_lines(result))


def write_report(runs: Sequence[Run], out: Path) -> Path:
    """Write `runs.csv`, `runs.json`, `table.md`, `curves.png` and `report.html`.

    Raises:
        RunDirectoryError: if a run has not finished.
    """
    results = [run.read_result() for run in runs]
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "runs.csv", [row_of(result) for result in results])
    write_json(out / "runs.json", results)
    table = comparison(results)
    write_atomically(out / "table.md", "\n".join([markdown_table(*table), *_audits(results)]).encode())
    draw_curves(runs, out / "curves.png")
    write_atomically(out / "report.html", _page(runs, results, table, out / "curves.png").encode())
    return out


def _audits(results: Sequence[dict[str, Any]]) -> list[str]:
    """The audit and the programs of each run that used advice."""
    audits = [audit_table(item["audit"], item["analyst"]) for item in results if item.get("audit") is not None]
    return [*audits, *filter(None, map(programs_text, results))]


def _page(
    runs: Sequence[Run], results: Sequence[dict[str, Any]], table: tuple[list[str], list[list[str]]], picture: Path
) -> str:
    """One self-contained page: table, curves, audits, critical states, programs."""
    usage = "\n".join(f"{label(result)}: {describe_usage(result.get('llm', {}))}" for result in results)
    return html.page(
        f"ULTRA: {results[0]['task']}",
        [
            html.table(*table),
            html.image(picture, "Learning curves"),
            *(
                part
                for run, result in zip(runs, results, strict=True)
                for part in _findings(run, result, len(runs) > 1)
            ),
            html.heading("Language model"),
            html.preformatted(usage),
            html.folded("Results as JSON", to_json_text(results, "the report", "indented")),
        ],
    )


def _findings(run: Run, result: dict[str, Any], several: bool) -> list[str]:
    """Sections of one run: how good the analyst was, the critical states, the programs."""
    of = f" of {label(result)}" if several else ""
    parts: list[str] = []
    if result.get("audit") is not None:
        rows, remarks = audit_parts(result["audit"], result["analyst"])
        parts.append(html.heading(f"Audit of the advice{of}"))
        parts += [html.table(AUDIT_HEADER, rows)] if rows else [html.paragraph("No advice was given.")]
        parts += [html.paragraph(remark) for remark in remarks]
    states = state_rows(run)
    parts.append(html.heading(f"Critical states and advice{of}"))
    parts.append(
        html.table(STATES_HEADER, states) if states else html.paragraph("This method names no critical states.")
    )
    programs = program_rows(result)
    if result.get("proposals"):
        counts = source_rows(result)
        parts.append(html.heading(f"Programs{of}"))
        parts += map(html.paragraph, adoption_lines(result))
        parts += [html.table(counts[0], counts[1:]), html.table(PROGRAMS_HEADER, programs)] if programs else []
    return parts
