"""The benchmark of scaling curves, with tiny settings: it measures, resumes and writes its page."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def curves(out: Path, *options: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "curves.py"), "--tiny", "--rounds", "1", "--seconds", "0.05"]
    command += ["--out", str(out), *options]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | paths, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_curves_are_measured_once_and_what_a_person_wrote_stays(tmp_path: Path) -> None:
    out = tmp_path / "curves.md"
    kinds = ("environments", "unguided", "guidance", "memory", "help")
    only = [word for kind in kinds for word in ("--only", kind)]
    first = curves(out, *only)
    assert [line.split()[2] for line in first.splitlines() if line.startswith("round")] == list(kinds)
    with out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["quantity"] for row in rows} == {"collection", "simulator", "loop", "matching", "megabytes", "steps",
                                                 "seconds"}  # fmt: skip
    assert all(float(row["value"]) > 0 for row in rows)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    out.write_text(out.read_text() + "As expected.\n")
    assert "round" not in curves(out, *only)
    text = out.read_text()
    assert text.count("As expected.") == 1
    assert "| 8 |" in text
    assert "| 10 | " in text
    assert "`ultra --help`, seconds" in text
