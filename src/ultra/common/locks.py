"""Locks on files: they bound what processes do at the same time, on one machine or a shared file system.

The operating system takes a lock back when the process that holds it ends, however it ends, so that
nothing is to be cleaned up after a crash. On network file systems this needs working `flock`
(NFS 4 has it); on Windows it is `LockFileEx`.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ultra.common.errors import UltraError
from ultra.common.files import make_directory, write_json

LOCK, HOLDER = "lock", "lock.json"
"""In a directory that is held: the lock, and who holds it."""
LOCK_FILES = frozenset({LOCK, HOLDER})
"""What a directory may hold although nothing has been written into it yet."""
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
        lock = self._take()
        while lock is None:
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(1.5 * pause, longest)
            lock = self._take()
        try:
            yield
        finally:
            lock.release()

    def _take(self) -> FileLock | None:
        assert self.folder is not None
        paths = sorted(self.folder.glob("permit-*"))
        if not paths:
            raise UltraError(f"there are no permits in {self.folder}: repeat `ultra study`, which makes them")
        for path in random.sample(paths, min(TRIED, len(paths))):
            with suppress(Timeout):
                return _acquire(path, 0.0, keep_file=True)
        return None


@dataclass(frozen=True)
class Holder:
    """The process that holds a directory."""

    process: int
    host: str
    since: str
    """Local time with its offset from UTC."""

    @classmethod
    def this_process(cls) -> Holder:
        """The one that asks, from now on."""
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        return cls(os.getpid(), platform.node(), now)

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"


@contextmanager
def hold_directory(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a directory in which one process at a time may write.

    The lock is the operating system's and ends with the process. The file that names the holder only
    informs: what a process that crashed left in it keeps nobody out.

    Args:
        path: made if it does not exist, and taken away again if nothing was written into it.
        patience: seconds to wait for whoever holds it; may be infinite.

    Raises:
        UltraError: naming the process that holds it; or if the place cannot be written or knows no locks.
    """
    made = [place for place in (path, *path.parents) if not place.exists()]
    lock = _acquire_in(path, patience)
    try:
        write_json(path / HOLDER, asdict(Holder.this_process()))
        yield
    finally:
        # Deleted while it is still held: whoever waits for it notices, and locks the next one.
        for name in (HOLDER, LOCK):
            with suppress(OSError):
                (path / name).unlink()
        lock.release()
        with suppress(OSError):
            for place in made:
                place.rmdir()


def _acquire_in(path: Path, patience: float) -> FileLock:
    while True:
        make_directory(path)
        try:
            return _acquire(path / LOCK, patience, keep_file=False)
        except FileNotFoundError:
            continue  # whoever held it has taken the directory away again
        except Timeout:
            raise UltraError(
                f"{path} is in use by {_holder(path)}: wait until that has ended, or choose another directory"
            ) from None


def _holder(path: Path) -> Holder | str:
    """Who holds a directory, as far as its file can be read."""
    try:
        return Holder(**json.loads((path / HOLDER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return "another process"


def _acquire(path: Path, patience: float, *, keep_file: bool) -> FileLock:
    """Lock a file, which is made if it does not exist.

    Args:
        path: the file.
        patience: seconds to wait; may be infinite.
        keep_file: whether the file must stay when it is released, which Windows would delete.

    Raises:
        Timeout: if another holds it for longer.
        FileNotFoundError: if its directory does not exist.
        UltraError: if it cannot be locked.
    """
    lock = FileLock(
        path,
        timeout=patience,
        poll_interval=0.25,
        thread_local=False,
        fallback_to_soft=False,  # a file system without locks is an error: files instead of locks go stale
        preserve_lock_file=keep_file,
    )
    try:
        lock.acquire()
    except (Timeout, FileNotFoundError):
        raise
    except OSError as error:
        raise UltraError(
            f"cannot lock {path} ({error.strerror}): choose a directory that can be written, on a file system "
            "with locks, such as NFS 4"
        ) from error
    return lock
