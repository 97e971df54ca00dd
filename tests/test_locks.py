"""One process at a time writes into a run directory, and who it is is said to the others."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.gated import TASK, Gate

from ultra.cli.main import run as cli
from ultra.common.errors import UltraError
from ultra.common.locks import hold_directory

SMALL = [
    "--steps", "512", "--workers", "1", "--ppo.environments", "2", "--ppo.rollout-steps", "64", "--ppo.minibatch", "64",
    "--ppo.epochs", "1", "--evaluate.episodes", "2",
]  # fmt: skip


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate", tmp_path / "run")


def command(gate: Gate, out: Path) -> list[str]:
    return ["train", TASK, *gate.options, *SMALL, "--out", str(out), "--quiet"]


def begin(gate: Gate, out: Path) -> subprocess.Popen[str]:
    """`ultra train` in a process of its own, which has come to the gate in the middle of training."""
    process = subprocess.Popen([sys.executable, "-m", "ultra", *command(gate, out)], stderr=subprocess.PIPE, text=True)
    gate.wait_for(1, process)
    return process


@pytest.mark.slow
def test_a_second_command_in_a_run_directory_is_refused_until_the_first_has_ended(
    gate: Gate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    first = begin(gate, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert cli(command(gate, out)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    who = f"is in use by process {first.pid} on {re.escape(platform.node())} since 20..-..-.. ..:..:.."
    assert re.search(who, error), error
    assert cli(["verify", str(out), "--quiet"]) == 2
    assert f"process {first.pid}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    gate.open()
    assert first.wait(timeout=300) == 0
    assert not {"lock", "lock.json"} & {path.name for path in out.iterdir()}
    assert cli(command(gate, out)) == 0


@pytest.mark.slow
def test_what_a_killed_process_left_keeps_nobody_out(gate: Gate, tmp_path: Path) -> None:
    """Neither the lock's file nor a holder that is named there: only the operating system's lock counts."""
    out = tmp_path / "run"
    first = begin(gate, out)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert json.loads((out / "lock.json").read_text())["process"] == first.pid
    gate.open()
    assert cli(command(gate, out)) == 0


@pytest.mark.parametrize("left", ['{"process": 1, "host": "elsewhere", "since": "2020-01-01"}', "", "[]", "{"])
def test_the_holders_file_only_informs(left: str, tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "lock.json").write_text(left)
    with hold_directory(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["process"] == os.getpid()
        (tmp_path / "lock.json").write_text(left)
        said = pytest.raises(UltraError, match=r"is in use by (another process|process 1 on elsewhere since 2020)")
        with said, hold_directory(tmp_path):
            pass


def test_a_directory_that_was_only_made_to_be_held_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    with hold_directory(tmp_path / "a" / "b"), hold_directory(tmp_path / "full"):
        pass
    with hold_directory(tmp_path / "c" / "d"):
        (tmp_path / "c" / "d" / "result").touch()
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert found == ["c", "c/d", "c/d/result", "full", "full/thesis.tex"]
