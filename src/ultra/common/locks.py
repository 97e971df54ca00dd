"""Locks on files: they bound what processes do at the same time, on one machine or a shared file system.

The operating system takes a lock back when the process that holds it ends, however it ends, so that
nothing is to be cleaned up after a crash. On network file systems this needs working `flock`
(NFS 4 has it).
"""

from __future__ import annotations

import asyncio
import fcntl
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO

from ultra.common.errors import UltraError

PAUSES = (0.2, 3.0)
"""Seconds, about, between the first two looks for a free permit, and between later ones."""
TRIED = 4
"""Permits that a look tries: many processes must not wear out a network's file server."""


def make_permits(folder: Path, number: int) -> None:
    """Make a folder with so many permits, no more and no fewer."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"permit-{k:04d}" for k in range(number)}
    for path in folder.glob("permit-*"):
        if path.name not in wanted:
            path.unlink()
    for name in wanted:
        (folder / name).touch()


class Permits:
    """Permits that processes share: whoever locks one of the folder's files may go on.

    Args:
        folder: made by `make_permits`; None needs no permits.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold a permit, after waiting until one is free."""
        if self.folder is None:
            yield
            return
        pause, longest = PAUSES
        file = self._take()
        while file is None:
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(1.5 * pause, longest)
            file = self._take()
        with file:
            yield

    def _take(self) -> IO[bytes] | None:
        assert self.folder is not None
        paths = sorted(self.folder.glob("permit-*"))
        if not paths:
            raise UltraError(f"there are no permits in {self.folder}: repeat `ultra study`, which makes them")
        for path in random.sample(paths, min(TRIED, len(paths))):
            file = path.open("ab")
            if _lock(file, wait=False):
                return file
            file.close()
        return None


@contextmanager
def hold_file(path: Path, busy: str = "") -> Iterator[IO[bytes]]:
    """Hold a file's lock, open for appending.

    Args:
        path: the file; made if it does not exist.
        busy: what to say if another process holds it; without, wait until it is free.

    Raises:
        UltraError: with `busy`, or if the file system knows no locks.
    """
    with path.open("ab") as file:
        if not _lock(file, wait=not busy):
            raise UltraError(busy)
        yield file


def _lock(file: IO[bytes], *, wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise UltraError(
            f"cannot lock {file.name} ({error.strerror}): put --out on a file system with locks, such as NFS 4"
        ) from error
    return True
