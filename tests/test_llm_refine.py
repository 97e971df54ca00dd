"""A whole refinement with a language model: result, report, budget, resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.llm_server import Server

from ultra.cli.main import run as cli


@pytest.mark.slow
def test_a_whole_refinement_states_what_the_model_cost(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with Server() as server:
        command = [
            "refine", "CartPole-v1", "--policy", str(policy), "--out", str(out), "--quiet", "--workers", "1",
            "--analyst", "llm:local/tiny", "--base-url", f"{server.url}/v1", "--llm.price-input", "1",
            "--llm.price-output", "10", "--steps", "12000", "--rounds", "2", "--collect.episodes", "3",
            "--ppo.rollout-steps", "64", "--ppo.environments", "8", "--evaluate.episodes", "2",
            "--verify.branches", "8", "--llm.max-tokens", "500",
        ]  # fmt: skip
        assert cli([*command, "--llm-tokens", "2000"]) == 2
        assert "raise it and repeat the command" in capsys.readouterr().err
        assert cli(command) == 0
        asked = len(server.requests)
    usage = json.loads((out / "result.json").read_text())["llm"]
    assert usage["used"]
    assert usage["requests"] == asked == sum(server.paid.values())
    assert usage["tokens"] == 1100 * asked
    assert usage["cost"] == pytest.approx(asked * 0.002)
    assert json.loads((out / "result.json").read_text())["budget"]["analyse"] > 0
    page = (out / "report" / "report.html").read_text()
    assert f"{asked} requests sent" in page
    assert ">balance</td>" in page
    assert ">llm:local/tiny, turn 1, round 3</td>" in page


def test_an_analyst_that_does_not_exist_is_bad_usage(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["refine", "CartPole-v1", "--policy", str(policy), "--out", str(tmp_path / "r"), "--quiet"]
    assert cli([*command, "--analyst", "llm:openai"]) == 2
    assert "write llm:PROVIDER/MODEL" in capsys.readouterr().err
