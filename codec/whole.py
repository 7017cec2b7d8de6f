"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path, force: bool = False) -> Iterator[BinaryIO]:
    """A file to write to, which appears under its name when the block ends without an error.

    Where the system knows files without a name (Linux), a process that is killed leaves nothing behind at all;
    elsewhere a file `.NAME.*.part` may be left.

    Args:
        path: the name.
        force: replace a file of that name.

    Raises:
        ValueError: there is a file of that name, and `force` is off; before anything is written, and again at the end.
    """
    _refuse(path, force)
    descriptor, name = _open(path)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
            _refuse(path, force)
            if name is None:
                name = f"{path.parent}/.{path.name}.{os.getpid()}.part"
                # given a descriptor, Python follows the link to the file itself; the path is absolute and does without
                here = handle.fileno()
                os.link(f"/proc/self/fd/{here}", name, src_dir_fd=here)
        os.replace(name, path)
    except BaseException:
        if name is not None:
            Path(name).unlink(missing_ok=True)
        raise


def _refuse(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise ValueError(f"output: got {str(path)!r}, which exists; allowed are new files, or any with --force")


def _open(path: Path) -> tuple[int, str | None]:
    """A descriptor, and the name of the file if it has one."""
    folder = path.parent
    if not folder.is_dir():
        raise ValueError(f"output: got {str(path)!r}; there is no folder {str(folder)!r}")
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        try:
            return os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o644), None
        except OSError:
            pass  # a file system that has no such files
    return tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=folder)
