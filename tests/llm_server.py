"""A server on loopback that speaks the wire formats of language models, well or badly, for tests."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    """One request as the server sees it."""

    path: str
    text: str
    """Everything that was said, in one string."""
    number: int
    """How often this very conversation has been asked, from 0."""
    total: int
    """Requests before this one."""
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def about(self) -> str:
        if '"programs"' in self.text:
            return "programs"
        return "advise" if '"advice"' in self.text else "identify"

    @property
    def again(self) -> bool:
        return "cannot be used as it is" in self.text


@dataclass(frozen=True)
class Answer:
    """What the server does."""

    content: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    """The whole body, in the place of a well-formed one."""
    after: threading.Event | None = None
    """Answer only when this is set."""
    then: Callable[[], None] | None = None
    """What to do when the answer has been sent."""
    drop: bool = False
    """Close the connection without a word."""


def good(request: Request) -> Answer:
    """A valid answer."""
    return Answer(json.dumps(good_content(request)))


def good_content(request: Request) -> dict[str, Any]:
    if request.about == "identify":
        return {
            "reasoning": "It leans.",
            "critical_states": [{"t": t, "importance": 0.5, "explanation": f"at {t} it leaned"} for t in (2, 4)],
        }
    if request.about == "programs":
        return {"reasoning": "It leans.", "programs": [balance()], "potentials": []}
    times = [int(t) for t in re.findall(r"- t = (\d+):", request.text)]
    name = "control0" if "control0" in request.text else "push_right"
    segment = {"change": {name: 0.5}, "steps": 2} if name == "control0" else {"action": name, "steps": 2}
    return {
        "reasoning": "Push.",
        "advice": [
            {"t": t, "plan": [segment], "reward_follow": 0.5, "reward_taken": -0.5, "explanation": "push right"}
            for t in times
        ],
    }


def balance() -> dict[str, Any]:
    """A program for CartPole."""
    return {
        "name": "balance",
        "explanation": "push under the pole",
        "parameters": {"g": {"value": 0.5, "low": 0, "high": 1}},
        "rules": [
            {"when": "pole_angle + g * pole_velocity > 0", "action": "push_right"},
            {"when": "pole_angle + g * pole_velocity < 0", "action": "push_left"},
        ],
    }


class Server:
    """Runs while used as a context; `behave` decides on each answer."""

    def __init__(self, behave: Callable[[Request], Answer] = good) -> None:
        self.behave = behave
        self.requests: list[Request] = []
        self.paid: Counter[str] = Counter()
        """Answers with status 200 by conversation, counted before they are sent."""
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                owner.serve(self, body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that are killed do not say goodbye

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def serve(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        text = "\n".join(_strings(body))
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        with self._lock:
            headers = {name.lower(): value for name, value in handler.headers.items()}
            request = Request(handler.path, text, self._seen[key], len(self.requests), body, headers)
            self._seen[key] += 1
            self.requests.append(request)
        answer = self.behave(request)
        if answer.after is not None:
            answer.after.wait()
        if answer.drop:
            handler.close_connection = True
            handler.connection.close()
            return
        content = answer.raw if answer.raw is not None else json.dumps(_wrap(handler.path, answer)).encode()
        if answer.status == 200:
            with self._lock:
                self.paid[key] += 1
        try:
            handler.send_response(answer.status)
            for name, value in ({"content-type": "application/json"} | answer.headers).items():
                handler.send_header(name, value)
            handler.send_header("content-length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)
            handler.wfile.flush()
        except OSError:
            handler.close_connection = True
        if answer.then is not None:
            answer.then()


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in parts for text in _strings(part)]


def _wrap(path: str, answer: Answer) -> dict[str, Any]:
    if answer.status != 200:
        return {"error": {"message": answer.content or "no", "type": "error", "code": answer.status}}
    if path.endswith("/chat/completions"):
        return {
            "id": "c", "object": "chat.completion", "created": 1, "model": "tiny-1",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer.content}}
            ],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
        }  # fmt: skip
    if path.endswith("/messages"):
        return {
            "id": "m", "type": "message", "role": "assistant", "model": "claude-haiku-4-5", "stop_reason": "end_turn",
            "stop_sequence": None, "content": [{"type": "text", "text": answer.content}],
            "usage": {"input_tokens": 1000, "output_tokens": 100},
        }  # fmt: skip
    return {
        "candidates": [
            {"content": {"role": "model", "parts": [{"text": answer.content}]}, "finishReason": "STOP", "index": 0}
        ],
        "usageMetadata": {"promptTokenCount": 1000, "candidatesTokenCount": 100, "totalTokenCount": 1100},
        "modelVersion": "gemini-2.5-flash", "responseId": "r",
    }  # fmt: skip
