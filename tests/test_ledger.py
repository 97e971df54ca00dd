"""The ledger: append-only, exported and imported; recordings; why a question has no answer."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from tests.llm_runs import copy_run
from tests.llm_server import Server

from ultra import api
from ultra.cli.main import run as cli
from ultra.common.errors import UltraError
from ultra.common.ledger import Ledger, key_of

FIELDS = {"who": {"provider": "x", "model": "m"}, "question": {"prompt": "p\nq"}, "draw": 0}


def annotate(run: Path) -> Path:
    api.identify(run)
    return api.advise(run)


@pytest.fixture
def bought(collected: Path, tmp_path: Path) -> Path:
    """A run whose answers are in the ledger."""
    with Server() as server:
        run = copy_run(collected, tmp_path / "bought", "llm:local/tiny", base_url=f"{server.url}/v1")
        annotate(run)
    return run


def test_nothing_is_changed_or_deleted(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        intent = ledger.intend(FIELDS, "t", "r")
        ledger.receive(intent, b"raw", "text/plain")
        ledger.settle(intent, "answered", answer="yes")
    database = sqlite3.connect(tmp_path / "l.sqlite")
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    for statement in ("UPDATE outcomes SET cost = 0", "DELETE FROM intents", "DELETE FROM responses"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            database.execute(statement)


def test_an_answer_is_found_from_the_moment_it_was_received(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        key = key_of(FIELDS)
        intent = ledger.intend(FIELDS, "t", "r")
        assert ledger.find(key) is None
        assert [row.state for row in ledger.rows()] == ["open"]
        ledger.receive(intent, b"raw", "text/plain")
        found = ledger.find(key)
        assert found is not None
        assert (found.raw, found.answer) == (b"raw", None)
        ledger.settle(intent, "answered", answer="yes", usage=(3, 4), cost=0.5)
        again = ledger.find(key)
        assert again is not None
        assert again.answer == "yes"
        assert ledger.spending().cost == 0.5


def test_a_response_that_was_kept_but_not_read_is_read_without_asking(collected: Path, tmp_path: Path) -> None:
    with Server() as server:
        run = copy_run(collected, tmp_path / "a", "llm:local/tiny", base_url=f"{server.url}/v1")
        annotate(run)
        # As if the process had died between keeping the responses and reading them.
        database = sqlite3.connect(tmp_path / "ledger.sqlite")
        database.execute("DROP TRIGGER outcomes_no_delete")
        database.execute("DELETE FROM outcomes")
        database.commit()
        database.close()
        asked = len(server.requests)
        again = copy_run(collected, tmp_path / "b", "llm:local/tiny", base_url=f"{server.url}/v1")
        assert (annotate(again) / "advice.jsonl").read_bytes() == (run / "round-1" / "advice.jsonl").read_bytes()
        assert len(server.requests) == asked


def test_a_recording_replays_a_run_without_network_and_key(
    bought: Path, collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = tmp_path / "answers.jsonl"
    assert cli(["ledger", "export", str(export), "--model", "tiny"]) == 0
    replay = copy_run(collected, tmp_path / "replay", f"recorded:{export}")
    folder = annotate(replay)
    advice = [json.loads(line) | {"source": ""} for line in (folder / "advice.jsonl").read_text().splitlines()]
    original = (bought / "round-1" / "advice.jsonl").read_text().splitlines()
    assert advice == [json.loads(line) | {"source": ""} for line in original]
    other = copy_run(collected, tmp_path / "other", f"recorded:{export}")
    other_manifest = json.loads((other / "run.json").read_text())
    other_manifest["config"]["analyse"]["states"] = 3
    (other / "run.json").write_text(json.dumps(other_manifest))
    capsys.readouterr()
    assert cli(["identify", str(other), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "holds no answer to the question 'identify, episode 0'" in error
    assert cli(["ledger", "why-miss", str(other), "--against", str(export)]) == 0
    assert "Name at most 5 critical states" in capsys.readouterr().out


def test_import_takes_an_export_once(bought: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export, other = tmp_path / "answers.jsonl", tmp_path / "other.sqlite"
    assert cli(["ledger", "export", str(export)]) == 0
    assert cli(["ledger", "import", str(export), "--ledger", str(other)]) == 0
    assert cli(["ledger", "import", str(export), "--ledger", str(other)]) == 0
    out = capsys.readouterr().out
    assert "6 new answers" in out
    assert "0 new answers" in out
    export.write_text(export.read_text().replace("push right", "push left"))
    export.write_text(export.read_text().replace('"draw":0', '"draw":7'))
    assert cli(["ledger", "import", str(export), "--ledger", str(other)]) == 2
    assert "line 1 is damaged" in capsys.readouterr().err


def test_list_and_cost_show_every_request(bought: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["ledger", "list", "--run", str(bought)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert "identify, episode 0" in lines[0] + lines[1] + lines[2]
    assert cli(["ledger", "cost", "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)
    assert (cost["requests"], cost["input_tokens"], cost["unpriced"]) == (6, 6000, 6)


def test_why_miss_says_what_differs(
    bought: Path, collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["ledger", "why-miss", str(bought)]) == 0
    assert capsys.readouterr().out.count(": answered") == 6
    url = json.loads((bought / "run.json").read_text())["config"]["llm"]["base_url"]
    other = copy_run(collected, tmp_path / "other", "llm:local/huge", base_url=url)
    assert cli(["ledger", "why-miss", str(other)]) == 0
    out = capsys.readouterr().out
    assert out.count("no answer") == 3
    assert "who.model: was 'tiny', is 'huge'" in out


def test_a_place_that_cannot_hold_a_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database" * 100)
    with pytest.raises(UltraError, match="--ledger"):
        Ledger(tmp_path / "file" / "ledger.sqlite")
    with pytest.raises(UltraError, match="--ledger"):
        Ledger(tmp_path / "file")


def test_prompts_are_equal_byte_for_byte_and_the_ones_that_are_sent(
    collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    with Server() as server:
        for name in ("a", "b"):
            run = copy_run(collected, tmp_path / name, "llm:local/tiny", base_url=f"{server.url}/v1", draw=1)
            assert cli(["prompt", str(run), "--episode", "1"]) == 0
            shown.append(capsys.readouterr().out)
        annotate(run)
        assert cli(["prompt", str(run), "--episode", "1"]) == 0
    after = capsys.readouterr().out
    assert shown[0] == shown[1]
    assert after.startswith(shown[0])
    assert "advise, episode 1" in after
    sent = [message["content"] for request in server.requests for message in request.body["messages"]]
    for part in after.split("===== ")[1:]:
        text = part.split(" =====\n\n", 1)[1]
        assert any(text.rstrip("\n").endswith(content) for content in sent)
        assert any(text.startswith(content) for content in sent)
