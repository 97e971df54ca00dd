"""Keys stay out of files, logs and messages: whatever a server says is redacted before it is kept."""

from __future__ import annotations

import os
import re

_NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")
_SHORTEST = 8
HIDDEN = "[redacted]"


def _secrets() -> list[str]:
    found = [value for name, value in os.environ.items() if _NAMES.search(name) and len(value) >= _SHORTEST]
    return sorted(found, key=len, reverse=True)


def redact(text: str) -> str:
    """A text without the values of environment variables that hold keys."""
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    return text


def redact_bytes(content: bytes) -> bytes:
    """The same for bytes."""
    for secret in _secrets():
        content = content.replace(secret.encode(), HIDDEN.encode())
    return content
