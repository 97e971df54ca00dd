"""Tasks of a test file, known by name for as long as its tests run, with few environments for branches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from ultra.pipeline import context
from ultra.tasks import register
from ultra.tasks import task as registry


@contextmanager
def registered(targets: Mapping[str, str]) -> Iterator[None]:
    """Make tasks known: name -> `module:function`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registry", dict(registry._registry))
        patch.setattr(context, "BRANCHES_TOGETHER", 2)
        for name, target in targets.items():
            register(name, target, "cut off early")
        yield
