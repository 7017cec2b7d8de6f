"""One writer per run: a lock on the folder of a run.

The operating system keeps the lock for the process and drops it when the process ends, however it ends. The file in
the folder says which process it is; it stays behind, and means nothing without the lock.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
# what systems say when another process has the lock
TAKEN = (errno.EAGAIN, errno.EACCES)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds the lock on a folder, which is made if it is not there.

    Args:
        folder: the folder of a run.

    Raises:
        ValueError: another process holds it (nothing has been written then), or the folder cannot be written to.
    """
    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(
            f"folder of the run: got {folder}; allowed are folders that can be written to ({error})"
        ) from error
    try:
        try:
            _lock(file)
        except OSError as error:
            if error.errno in TAKEN:
                raise ValueError(
                    f"{folder}: got a second writer; allowed is one at a time, and process "
                    f"{_owner(path) or 'of another program'} writes this run now"
                ) from error
            logger.warning("%s: this file system has no locks (%s); let no second process write there", folder, error)
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        yield
    finally:
        # which also gives the lock back
        os.close(file)


def _owner(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _lock(file: int) -> None:
    """Takes the lock without waiting. An OSError says that it could not be had."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        # A byte far behind the content: on Windows nobody else could read a locked byte.
        os.lseek(file, 1 << 30, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        os.lseek(file, 0, os.SEEK_SET)
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
