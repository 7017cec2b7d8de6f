"""The folder of a training run: the options it began with, its checkpoint, its log, and one process that writes it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

OPTIONS, CHECKPOINT, LOG, LOCK = "options.json", "checkpoint.pt", "log.jsonl", "lock"


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Writes a file completely or not at all, even if the process is killed or the machine loses power meanwhile.

    Args:
        file: where the content shall stand.
        write: is called with another path in the same folder, and writes the content there. The finished file then
            takes the place of the old one in a single step.
    """
    new = file.with_name(f"new-{file.name}")
    try:
        write(new)
        with open(new, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(new, file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _lock(handle: IO[str]) -> None:
    """Takes a lock that the operating system gives up when the process ends, however it ends."""
    if sys.platform == "win32":
        msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class RunFolder:
    """A folder that holds one run and may be written by one process at a time, until `close`.

    Args:
        path: the folder; made if absent.
        options: everything that decides the outcome of the run, as values that JSON can hold. The first process writes
            them down; a later one must bring the same.
        write: whether this process writes. Of processes that train together only one does; in the others the methods
            that write do nothing, and the folder has to be there.

    Raises:
        ValueError: the folder holds a run with another option, another process is writing it, or what lies in it
            cannot be read.
    """

    def __init__(self, path: str | Path, options: Mapping[str, Any], write: bool = True) -> None:
        self.path = Path(path)
        self._handle: IO[str] | None = None
        if not write:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._handle = open(self.path / LOCK, "a")  # noqa: SIM115 - the lock lives as long as the file is open
        try:
            self._claim(json.loads(json.dumps(dict(options))))
        except BaseException:
            self.close()
            raise

    def _claim(self, options: dict[str, Any]) -> None:
        assert self._handle is not None
        try:
            _lock(self._handle)
        except OSError:
            raise ValueError(
                f"out: got {self.path}; another process is writing this run, choose another folder or wait for its end"
            ) from None
        file = self.path / OPTIONS
        if not file.exists():
            write_whole(file, lambda new: new.write_text(json.dumps(options, indent=1)))
        before = _json(file.read_text(), str(file))
        if not isinstance(before, dict):
            raise ValueError(f"{file}: got {type(before).__name__}; allowed are JSON objects")
        for name in [*before, *(name for name in options if name not in before)]:
            if name not in options or name not in before or options[name] != before[name]:
                raise ValueError(
                    f"{name}: got {options.get(name)!r}; {self.path} holds a run with {before.get(name)!r}, choose "
                    "another --out"
                )

    def save(self, state: Mapping[str, Any]) -> None:
        """Replaces the checkpoint.

        Args:
            state: tensors, numbers, strings, and dicts, lists and tuples of them.
        """
        if self._handle is None:
            return
        write_whole(self.path / CHECKPOINT, lambda new: torch.save(dict(state), new))

    def load(self, device: str = "cpu") -> dict[str, Any] | None:
        """The checkpoint, or None before the first one.

        Args:
            device: where its tensors go.

        Raises:
            ValueError: the file is no checkpoint, or holds more than tensors and plain values (it is never executed).
        """
        file = self.path / CHECKPOINT
        if not file.exists():
            return None
        try:
            state = torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # a damaged file can make the reader fail in any way
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"{file}: got an unreadable file ({reason}); allowed are checkpoints of a run") from None
        if not isinstance(state, dict):
            raise ValueError(f"{file}: got {type(state).__name__}; allowed are checkpoints of a run")
        return state

    def log(self, figures: Mapping[str, Any]) -> None:
        """Appends one line of figures to the log."""
        if self._handle is None:
            return
        with open(self.path / LOG, "a") as handle:
            handle.write(json.dumps(dict(figures)) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """The lines of the log. A last line without its line end was cut off by a kill and is left out.

        Raises:
            ValueError: a line that is no JSON object, with file and line number.
        """
        file = self.path / LOG
        if not file.exists():
            return []
        lines = file.read_bytes().split(b"\n")[:-1]
        found = []
        for number, line in enumerate(lines, 1):
            where = f"{file}:{number}"
            row = _json(line.decode(errors="replace"), where)
            if not isinstance(row, dict):
                raise ValueError(f"{where}: got {type(row).__name__}; allowed are JSON objects")
            found.append(row)
        return found

    def keep_rows(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drops the lines of the log that `keep` refuses."""
        if self._handle is None:
            return
        text = "".join(json.dumps(row) + "\n" for row in self.rows() if keep(row))
        write_whole(self.path / LOG, lambda new: new.write_text(text))

    def close(self) -> None:
        """Lets other processes write this folder."""
        if self._handle is not None:
            self._handle.close()


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: got {text[:60]!r}; allowed are lines of JSON ({error})") from None
