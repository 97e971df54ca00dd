"""The HTTP client of all providers: every body that a server sends is in the ledger before anyone reads it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx2

from ultra.analysts.llm.secret import redact_bytes
from ultra.common.ledger import Ledger, Stored

LARGEST_BODY = 16_000_000
"""Bytes of a response that are read and kept."""
CONNECT_TIMEOUT = 10.0


@dataclass
class Attempt:
    """One try of a request, as the client sees it."""

    ledger: Ledger
    intent: int
    stored: Stored | None = None
    """A response from the ledger, to be read again instead of sending anything."""
    sent: bool = False
    """Whether the request has left this machine, so that it may be billed."""
    received: bool = False
    """Whether a response with a body of success is in the ledger."""


ATTEMPT: ContextVar[Attempt] = ContextVar("attempt")
"""The try that the current task is making."""


class RecordingClient(httpx2.AsyncClient):
    """An HTTP client that keeps successful responses in the ledger, byte for byte but for keys."""

    def __init__(self, timeout: float) -> None:
        super().__init__(timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)))

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request, or answer it from the ledger."""
        attempt = ATTEMPT.get()
        if attempt.stored is not None:
            return _response(request, 200, attempt.stored.raw, attempt.stored.content_type, {})
        attempt.sent = True
        try:
            response = await super().send(request, **(options | {"stream": True}))
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            attempt.sent = False
            raise
        body = bytearray()
        try:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > LARGEST_BODY:
                    break
        finally:
            await response.aclose()
        content = redact_bytes(bytes(body[:LARGEST_BODY]))
        kind = response.headers.get("content-type", "")
        if response.is_success:
            attempt.ledger.receive(attempt.intent, content, kind)
            attempt.received = True
        return _response(request, response.status_code, content, kind, dict(response.headers))


def _response(
    request: httpx2.Request, status: int, content: bytes, kind: str, headers: dict[str, str]
) -> httpx2.Response:
    dropped = ("content-encoding", "content-length", "transfer-encoding", "content-type")
    kept = {name: value for name, value in headers.items() if name.lower() not in dropped}
    return httpx2.Response(status, headers=kept | {"content-type": kind}, content=content, request=request)
