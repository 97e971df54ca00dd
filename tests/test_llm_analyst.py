"""Language models as analysts against a server that behaves well, and every way it may misbehave."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.llm_runs import copy_run
from tests.llm_server import Answer, Request, Server, good, good_content

from ultra import api
from ultra.advice.records import load_advice, load_states
from ultra.cli.main import run as cli
from ultra.common.errors import LanguageModelError, UltraError
from ultra.common.ledger import Ledger, Row
from ultra.pipeline.progress import Reporter

QUICK = {"attempts": 3, "timeout": 300.0, "longest_wait": 5.0}


def rows(path: Path) -> list[Row]:
    with Ledger(path.parent / "ledger.sqlite") as ledger:
        return list(ledger.rows())


def annotate(run: Path) -> Path:
    api.identify(run)
    return api.advise(run)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between retries that no server asked for are short."""
    monkeypatch.setattr("ultra.analysts.llm.guarded.random.uniform", lambda low, high: 0.01)


def local(source: Path, path: Path, server: Server, **llm: object) -> Path:
    return copy_run(source, path, "llm:local/tiny", base_url=f"{server.url}/v1", **(QUICK | llm))


def test_a_good_model_gives_states_and_advice_and_a_second_run_buys_nothing(collected: Path, tmp_path: Path) -> None:
    with Server() as server:
        run = local(collected, tmp_path / "a", server)
        folder = annotate(run)
        states, advice = load_states(folder / "states.jsonl"), load_advice(folder / "advice.jsonl")
        assert {(state.episode, state.t) for state in states} == {(e, t) for e in range(3) for t in (2, 4)}
        assert len(advice) == 6
        assert advice[0].source == "llm:local/tiny"
        assert len(server.requests) == 6
        assert all(row.state == "answered" and row.valid and row.input_tokens == 1000 for row in rows(run))
        again = annotate(local(collected, tmp_path / "b", server))
        assert len(server.requests) == 6
        assert (again / "advice.jsonl").read_bytes() == (folder / "advice.jsonl").read_bytes()


@pytest.mark.parametrize("mode", ["native", "tool", "prompted"])
def test_each_output_mode_sends_the_schema_its_own_way(collected: Path, tmp_path: Path, mode: str) -> None:
    with Server() as server:
        api.identify(local(collected, tmp_path / "a", server, output_mode=mode))
        body = server.requests[0].body
    assert ("response_format" in body) == (mode == "native")
    assert ("tools" in body) == (mode == "tool")
    assert '"critical_states"' in server.requests[0].text


def first_only(bad: Answer) -> Callable[[Request], Answer]:
    return lambda request: bad if request.number == 0 and not request.again else good(request)


def reply(change: Callable[[dict[str, object]], object], about: str = "identify") -> Callable[[Request], Answer]:
    """A good answer with a mistake; the mistake is mended when it is objected to."""

    def behave(request: Request) -> Answer:
        content = good_content(request)
        if request.about == about and not request.again:
            change(content)
        return Answer(json.dumps(content))

    return behave


@pytest.mark.parametrize(
    "bad",
    [
        Answer(status=429, headers={"retry-after": "0.05"}),
        Answer(status=500),
        Answer(status=503),
        Answer(drop=True),
        Answer(raw=b"<html><body>Bad gateway</body></html>", headers={"content-type": "text/html"}),
        Answer(raw=b'{"id": "c", "object": "chat.comp'),
        Answer(content=""),
    ],
    ids=["429", "500", "503", "dropped", "html", "broken-envelope", "empty"],
)
def test_a_request_that_fails_once_is_repeated(collected: Path, tmp_path: Path, bad: Answer) -> None:
    with Server(first_only(bad)) as server:
        run = local(collected, tmp_path / "a", server, concurrency=8)
        folder = annotate(run)
    assert len(load_advice(folder / "advice.jsonl")) == 6
    states: list[str] = [row.state for row in rows(run)]
    assert states.count("answered") == 6
    received = bad.status == 200 and not bad.drop
    failed = "unusable" if received else "lost" if bad.drop else "rejected"
    assert states.count(failed) == 6


def test_a_request_whose_time_is_up_is_repeated_and_counted_as_lost(
    collected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is let go off by the server while it holds the first answer back, not by a clock."""
    limit, plain = 4711.0, asyncio.timeout
    deadlines: list[tuple[asyncio.AbstractEventLoop, asyncio.Timeout]] = []
    never = threading.Event()

    def timeout(seconds: float | None) -> asyncio.Timeout:
        if seconds != limit:
            return plain(seconds)
        deadlines.append((asyncio.get_running_loop(), plain(None)))
        return deadlines[-1][1]

    def behave(request: Request) -> Answer:
        if request.number:
            return good(request)
        loop, deadline = deadlines[-1]
        loop.call_soon_threadsafe(lambda: deadline.reschedule(loop.time()))
        return Answer(after=never)

    monkeypatch.setattr("ultra.analysts.llm.guarded.asyncio.timeout", timeout)
    with Server(behave) as server:
        folder = annotate(local(collected, tmp_path / "a", server, timeout=limit, concurrency=1))
    assert len(load_advice(folder / "advice.jsonl")) == 6
    assert Counter(row.state for row in rows(folder.parent)) == {"answered": 6, "lost": 6}
    never.set()


def test_who_is_being_waited_for_is_said_at_once_and_then_now_and_then(
    collected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model answers nothing until the reminder has come."""
    monkeypatch.setattr("ultra.analysts.reader.REMIND_EVERY", 0.01)
    reminded = threading.Event()
    said: list[str] = []

    class Listener(Reporter):
        def say(self, text: str) -> None:
            said.append(text)
            if "still waiting" in text:
                reminded.set()

    with Server(lambda request: replace(good(request), after=reminded)) as server:
        api.identify(local(collected, tmp_path / "a", server, timeout=300.0), Listener(quiet=True))
    first, second = [text for text in said if "waiting" in text][:2]
    clock = r"\d\d:\d\d:\d\d"
    assert re.search(rf"waiting since {clock} for llm:local/tiny: 0 of 3 answered", first)
    assert re.search(rf"still waiting, since {clock}, for llm:local/tiny: 0 of 3 answered", second)


@pytest.mark.parametrize(
    ("change", "about", "objection"),
    [
        (lambda a: a["critical_states"][0].update(t=10**6), "identify", "t = 1000000 is outside the episode"),
        (lambda a: a["critical_states"][0].update(importance=float("nan")), "identify", "importance is nan"),
        (lambda a: a["critical_states"][0].update(importance=1e308), "identify", "importance is 1e+308"),
        (lambda a: a.update(critical_states={"t": 1}), "identify", "critical_states is {'t': 1}, not a list"),
        (lambda a: a["advice"][0].update(plan=[{"action": "JUMP", "steps": 2}]), "advise", "action 'JUMP' is not one"),
        (
            lambda a: a["advice"][0].update(plan=[{"action": 0, "steps": 17}]),
            "advise",
            "steps is 17, not between 1 and 16",
        ),
        (lambda a: a["advice"][0].update(reward_follow=2), "advise", "reward_follow is 2, not a number between"),
        (lambda a: a["advice"][0].update(t=3), "advise", "t = 3 is not one of the critical states (2, 4)"),
    ],
)
def test_a_mistake_is_objected_to_precisely_and_mended(
    collected: Path, tmp_path: Path, change: Callable[[dict[str, object]], object], about: str, objection: str
) -> None:
    with Server(reply(change, about)) as server:
        run = local(collected, tmp_path / "a", server)
        folder = annotate(run)
        again = [request for request in server.requests if request.again]
    assert len(again) == 3
    assert all(objection in request.text for request in again)
    assert len(load_advice(folder / "advice.jsonl")) == 6
    assert sum(row.valid is False for row in rows(run)) == 3


@pytest.mark.parametrize(
    "dress",
    [
        lambda text: f"```json\n{text}\n```",
        lambda text: f"Here is my answer:\n\n{text}\n\nI hope this helps {{a lot}}.",
        lambda text: f"I think in sets {{x}}.\n```\n{text}\n```\n",
    ],
    ids=["fenced", "text-around", "fenced-after-braces"],
)
def test_json_is_found_in_what_surrounds_it(collected: Path, tmp_path: Path, dress: Callable[[str], str]) -> None:
    with Server(lambda request: Answer(dress(good(request).content))) as server:
        folder = annotate(local(collected, tmp_path / "a", server))
        assert len(server.requests) == 6
    assert len(load_advice(folder / "advice.jsonl")) == 6


def test_after_two_objections_what_is_valid_is_kept_and_the_rest_reported(collected: Path, tmp_path: Path) -> None:
    def stubborn(request: Request) -> Answer:
        content = good_content(request)
        if request.about == "advise":
            content["advice"][0]["reward_taken"] = "bad"
        return Answer(json.dumps(content))

    with Server(stubborn) as server:
        folder = annotate(local(collected, tmp_path / "a", server))
        assert len(server.requests) == 3 + 3 * 3
    assert len(load_advice(folder / "advice.jsonl")) == 3
    asked = json.loads((folder / "asked-advise.json").read_text())
    assert asked["reasked"] == 6
    assert len(asked["dropped"]) == 3
    assert "advice[0]: reward_taken is 'bad', not a number between -1 and 1" in asked["dropped"][0]


def test_an_answer_that_breaks_off_is_salvaged(collected: Path, tmp_path: Path) -> None:
    def cut(request: Request) -> Answer:
        text = good(request).content
        return Answer(text if request.about == "identify" else text[: text.index('"t": 4') + 9])

    with Server(cut) as server:
        folder = annotate(local(collected, tmp_path / "a", server))
    assert [item.state.t for item in load_advice(folder / "advice.jsonl")] == [2, 2, 2]


def test_an_enormous_answer_of_one_episode_does_not_stop_the_others(collected: Path, tmp_path: Path) -> None:
    first: list[str] = []

    def enormous(request: Request) -> Answer:
        if request.about == "identify":
            first.append(request.text[:0] + request.text.split("# The episode")[1][:200])
            if request.text.split("# The episode")[1][:200] == first[0]:
                return Answer("x" * 5_000_000)
        return good(request)

    with Server(enormous) as server:
        run = local(collected, tmp_path / "a", server, concurrency=1)
        folder = annotate(run)
    assert len(load_advice(folder / "advice.jsonl")) == 4
    assert sum(len(row.answer or "") >= 5_000_000 for row in rows(run)) == 3
    assert max(len(request.text) for request in server.requests) < 60_000


def test_garbage_alone_is_one_clear_line(collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html = Answer(raw=b"<html>hello</html>", headers={"content-type": "text/html"})
    with Server(lambda request: html) as server:
        run = local(collected, tmp_path / "a", server)
        assert cli(["identify", str(run), "--quiet"]) == 2
        assert "could be used" in capsys.readouterr().err
        assert [row.state for row in rows(run)] == ["unusable"] * len(server.requests)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(status=500), "cannot be reached at"),
        (Answer(status=401), "the key was refused (401)"),
        (Answer(status=404), "does not know this model"),
        (Answer(status=400, content="response_format is not supported"), "try another --output-mode"),
        (Answer(status=429, headers={"retry-after": "3600"}), "its limit is reached"),
        (Answer(drop=True), "cannot be reached at"),
    ],
    ids=["500", "401", "404", "400", "429", "dropped"],
)
def test_a_model_out_of_reach_ends_with_status_3_and_one_line(
    collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: Answer, said: str
) -> None:
    with Server(lambda request: answer) as server:
        run = local(collected, tmp_path / "a", server)
        assert cli(["identify", str(run), "--quiet"]) == 3
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_nobody_listening_ends_with_status_3(
    collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server() as server:
        run = local(collected, tmp_path / "a", server)
    assert cli(["identify", str(run), "--quiet"]) == 3
    assert "cannot be reached" in capsys.readouterr().err
    assert {row.state for row in rows(run)} == {"rejected"}


def test_after_an_outage_only_what_is_missing_is_sent(collected: Path, tmp_path: Path) -> None:
    broken = True

    def outage(request: Request) -> Answer:
        return Answer(status=500) if broken and request.total >= 2 else good(request)

    with Server(outage) as server:
        run = local(collected, tmp_path / "a", server, concurrency=1)
        with pytest.raises(LanguageModelError):
            api.identify(run)
        assert sum(server.paid.values()) == 2
        broken = False
        annotate(run)
        assert sum(server.paid.values()) == 6
        assert set(server.paid.values()) == {1}


def test_the_budget_stops_before_a_request_not_after(collected: Path, tmp_path: Path) -> None:
    with Server() as server:
        run = local(
            collected, tmp_path / "a", server, budget=0.05, price_input=10.0, price_output=10.0, max_tokens=500,
            concurrency=4,
        )  # fmt: skip
        with pytest.raises(UltraError, match=r"--llm-budget 0\.05"):
            annotate(run)
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            assert 0 < ledger.spending().cost <= 0.05
        paid = sum(server.paid.values())
        manifest = json.loads((run / "run.json").read_text())
        manifest["config"]["llm"]["budget"] = 5.0
        (run / "run.json").write_text(json.dumps(manifest))
        if (run / "round-1" / "states.jsonl").exists():
            api.advise(run)
        else:
            annotate(run)
        assert sum(server.paid.values()) == 6
        assert paid >= 1


def test_a_token_limit_holds_where_no_price_is_known(collected: Path, tmp_path: Path) -> None:
    with Server() as server:
        run = local(collected, tmp_path / "a", server, tokens=4000, max_tokens=200)
        with pytest.raises(UltraError, match="--llm-tokens 4,000"):
            annotate(run)
        assert sum(server.paid.values()) <= 3


def test_the_key_is_in_no_file_and_no_message(
    collected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "sk-marked-4711-do-not-leak"
    monkeypatch.setenv("ULTRA_LOCAL_API_KEY", key)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-0815-do-not-leak")
    leaky = first_only(Answer(status=500, content=f"your key {key} is fine"))

    def behave(request: Request) -> Answer:
        content = good_content(request)
        content["reasoning"] = f"my key is {key}"
        return leaky(request) if request.number == 0 else Answer(json.dumps(content))

    with Server(behave) as server:
        run = local(collected, tmp_path / "a", server)
        annotate(run)
        assert all(request.headers["authorization"] == f"Bearer {key}" for request in server.requests)
        server.behave = lambda request: Answer(status=401, content=f"bad key {key}")
        other = local(collected, tmp_path / "b", server, draw=1)
        with pytest.raises(LanguageModelError) as caught:
            cli(["identify", str(other), "--traceback"])
    import traceback

    texts = "".join(traceback.format_exception(caught.value)) + "".join(capsys.readouterr())
    assert "do-not-leak" not in texts
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"do-not-leak" not in path.read_bytes(), path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("analyst", "path", "variable"),
    [
        ("llm:anthropic/claude-haiku-4-5", "", "ANTHROPIC_API_KEY"),
        ("llm:google/gemini-2.5-flash", "", "GOOGLE_API_KEY"),
    ],
)
def test_other_wire_formats(
    collected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, analyst: str, path: str, variable: str
) -> None:
    monkeypatch.setenv(variable, "marked-4711-do-not-leak")
    spoiled: set[str] = set()

    def behave(request: Request) -> Answer:
        if request.number == 0 and not request.again:
            return Answer(status=429, headers={"retry-after": "0"})
        if request.about == "identify" and not request.again:
            spoiled.add(request.text)
            return Answer('{"critical_states": [{"t": 2, ')
        if request.about == "advise" and request.number == 1:
            return Answer(raw=b"<html>", headers={"content-type": "text/html"})
        return good(request)

    with Server(behave) as server:
        run = copy_run(collected, tmp_path / "a", analyst, base_url=server.url + path, **QUICK)
        folder = annotate(run)
    assert len(load_advice(folder / "advice.jsonl")) == 6
    found = rows(run)
    assert [row.state for row in found].count("rejected") == 6
    assert [row.state for row in found].count("unusable") == 3
    answered = [row for row in found if row.state == "answered"]
    assert len(answered) == 9
    assert all(row.cost is not None and row.cost > 0 and row.input_tokens == 1000 for row in answered)


def test_check_says_what_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(lambda request: Answer('{"sum": 42, "word": "ok"}')) as server:
        assert cli(["llm", "check", "llm:local/tiny", "--base-url", f"{server.url}/v1"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("asking        local/tiny")
        assert "output mode   native works" in out
        assert "wrong" not in out
        assert "price         not known" in out
        server.behave = lambda request: Answer('{"sum": 41, "word": "ok"}')
        assert cli(["llm", "check", "llm:local/tiny", "--base-url", f"{server.url}/v1"]) == 0
        out = capsys.readouterr().out
        assert "output mode   native works" in out
        assert "answer        wrong: What is 19 + 23? 42, not 41" in out
        server.behave = lambda request: Answer("The sum is 42.")
        assert cli(["llm", "check", "local/tiny", "--base-url", f"{server.url}/v1"]) == 0
        assert "does not work" in capsys.readouterr().out
    assert cli(["llm", "check", "local/tiny", "--base-url", f"{server.url}/v1", "--llm.attempts", "1"]) == 3
    assert cli(["llm", "check", "openai/gpt-5"]) == 2
    assert "OPENAI_API_KEY" in capsys.readouterr().err
    assert cli(["llm", "check", "mystery/x"]) == 2
    assert cli(["llm", "check", "local/x"]) == 2
