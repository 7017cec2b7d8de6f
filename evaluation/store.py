"""Result files: JSON lines that survive a killed run and never hold a sample twice.

The first line of a file is its header: the settings of the run. Only a run with the same header may add to the file.
Then comes one line per sample, in the order of the data, and, when all samples are there, a summary as the last line.
Every line is written at once and as a whole. So a killed run leaves at most one torn line, at the end, which the next
run drops. Several processes each write a file of their own (a shard) beside the result file, and one of them merges
these.
"""

from __future__ import annotations

import logging
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.evaluation import strictjson

logger = logging.getLogger(__name__)

# what every record has, and of which kind
FIELDS: dict[str, type] = {
    "id": str,
    "prediction": str,
    "reference": dict,
    "group": dict,
    "prompt_tokens": int,
    "prompt_sha256": str,
    "new_tokens": int,
    "truncated": bool,
    "cost": dict,
}
# what some records have
OPTIONAL: dict[str, type] = {"reasoning": str, "kept": str, "tokens": list, "nats": list, "scored": int}
ABSENT = object()
COSTS = ("seconds", "ttft_seconds", "cache_bytes", "peak_cache_bytes")


@dataclass
class Results:
    """Content of one result file.

    Attributes:
        header: settings of the run.
        records: the samples' records by id, in the order of the file.
        summary: as `summarise` makes it; None if the run has not ended.
        path: the file, or None.
        lines: line of each record in the file, by id.
    """

    header: dict[str, Any]
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] | None = None
    path: Path | None = None
    lines: dict[str, int] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """File and line of a record, for an error."""
        return f"{self.path}, line {self.lines.get(key, '?')}"


def read_results(path: Path, torn_end: bool = False) -> Results:
    """Reads a result file and checks every line of it.

    Args:
        path: the file.
        torn_end: whether the last line may be torn, as a killed run leaves it; it is left out then.

    Raises:
        ValueError: the file is missing, a line is corrupt (named by file and line), or a sample occurs twice.
    """
    if not path.is_file():
        raise ValueError(f"result file: got {path}; allowed are files that exist")
    lines = path.read_bytes().split(b"\n")
    if torn_end and lines[-1]:
        logger.warning("%s: left out a torn last line (%d bytes) of an interrupted run", path, len(lines[-1]))
        lines.pop()
    results: Results | None = None
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        where = f"{path}, line {number}"
        row = strictjson.loads(line, where)
        if not isinstance(row, dict):
            raise ValueError(f"{where}: got a corrupt line, a {type(row).__name__}; allowed are JSON objects")
        if results is None:
            if set(row) != {"header"} or not isinstance(row["header"], dict):
                raise ValueError(
                    f"{where}: got {', '.join(row)}; allowed is a header, with which a result file starts"
                )
            results = Results(row["header"], path=path)
        elif results.summary is not None:
            raise ValueError(f"{where}: got a line behind the summary; allowed is none")
        elif set(row) == {"summary"} and isinstance(row["summary"], dict):
            results.summary = row["summary"]
        else:
            check_record(row, where)
            if row["id"] in results.records:
                first = results.lines[row["id"]]
                raise ValueError(
                    f"{where}: got the sample {row['id']!r} again; allowed is once, and line {first} has it"
                )
            _check_group(row, where, results)
            results.records[row["id"]] = row
            results.lines[row["id"]] = number
    if results is None:
        raise ValueError(f"{path}, line 1: got an empty file; allowed are files with a header")
    return results


def check_record(record: Mapping[str, Any], where: str) -> None:
    """Checks that a record has all fields, each of the right kind.

    Args:
        record: the record.
        where: file and line, for the error.

    Raises:
        ValueError: a field is missing or of another kind.
    """
    for name, kind in (FIELDS | {name: kind for name, kind in OPTIONAL.items() if name in record}).items():
        if name not in record:
            raise ValueError(f"{where}: got a corrupt record without {name!r}; allowed are records that have it")
        # in JSON true is no number, in Python it is
        if not isinstance(record[name], kind) or (kind is int and isinstance(record[name], bool)):
            found = type(record[name]).__name__
            raise ValueError(f"{where}: got a corrupt record, {name!r} is a {found}; allowed is a {kind.__name__}")
    for name in ("prompt_tokens", "new_tokens"):
        if record[name] < 0:
            raise ValueError(f"{where}: got a corrupt record, {name!r} is {record[name]}; allowed are numbers >= 0")
    for name in COSTS:
        cost = record["cost"].get(name)
        if isinstance(cost, bool) or not isinstance(cost, (int, float)) or cost < 0:
            raise ValueError(f"{where}: got a corrupt record, the cost {name!r} is {cost!r}; allowed are numbers >= 0")
    if ("kept" in record) != ("tokens" in record) or len(record.get("kept", "")) != len(record.get("tokens", [])):
        raise ValueError(f"{where}: got a corrupt record; allowed are as many digits in 'kept' as there are 'tokens'")
    if not all(isinstance(token, str) for token in record.get("tokens", [])):
        raise ValueError(f"{where}: got a corrupt record, 'tokens' holds something else; allowed are texts")
    if (
        ("nats" in record) != ("scored" in record)
        or record.get("scored", 1) < 1
        or not all(
            isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
            for value in record.get("nats", [])
        )
    ):
        raise ValueError(f"{where}: got a corrupt record; allowed are 'nats' >= 0 with 'scored' >= 1 beside them")
    if not set(record.get("kept", "")) <= set("0123456789"):
        raise ValueError(f"{where}: got a corrupt record, 'kept' holds something else; allowed are digits")


def _check_group(record: Mapping[str, Any], where: str, results: Results) -> None:
    """All samples of a task are grouped by the same properties, each of one kind."""
    if not results.records:
        return
    first = next(iter(results.records.values()))
    wanted = {key: type(value).__name__ for key, value in first["group"].items()}
    found = {key: type(value).__name__ for key, value in record["group"].items()}
    if found != wanted:
        raise ValueError(
            f"{where}: got a corrupt record with the group {found}; allowed is {wanted} as in line "
            f"{results.lines[first['id']]}"
        )


class ResultFile:
    """A result file that a run writes, alone or as one of several processes.

    Args:
        path: the file.
        header: settings of the run; a file with another header is not continued.
        rank, world: number of this process, and how many there are.

    Raises:
        ValueError: the header cannot be written as JSON.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], rank: int = 0, world: int = 1) -> None:
        # read back, because what a file holds will be compared with it
        self.header = strictjson.loads(strictjson.dumps(header, "header"), "header")
        self.path, self.rank, self.world = path, rank, world

    def discard(self) -> None:
        """Deletes what earlier runs left."""
        for path in (self.path, *self._shards()):
            path.unlink(missing_ok=True)

    def prepare(self, order: Sequence[str]) -> None:
        """Makes what earlier runs left into one file that this run can add to.

        Drops a torn last line, merges shards, and removes the summary. One process calls this before others read.

        Args:
            order: ids of all samples, in the order of the data.

        Raises:
            ValueError: a file was made with other settings (they are named), or is corrupt. Nothing is changed then.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        records: dict[str, dict[str, Any]] = {}
        sources = [self.path] if self.path.exists() else []
        for source in [*sources, *self._shards()]:
            if b"\n" not in source.read_bytes():
                logger.warning("%s: discarded, because an earlier run was killed before it had a header", source)
                continue
            found = read_results(source, torn_end=True)
            self._check_header(found.header, source)
            for key, record in found.records.items():
                records.setdefault(key, record)
        self._rewrite(records, order, None)

    def done(self) -> dict[str, dict[str, Any]]:
        """Records that are already there, by sample id.

        Raises:
            ValueError: as `read_results`.
        """
        return read_results(self.path).records

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one record, at once.

        Raises:
            ValueError: it is not a record that could be read back; nothing is written then.
        """
        check_record(record, f"{self.path}, a new record")
        target = self.path if self.world == 1 else self._shard(self.rank)
        text = self._line("header", self.header) if not target.exists() else ""
        text += strictjson.dumps(record, f"{self.path}, sample {record['id']!r}") + "\n"
        with target.open("ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, order: Sequence[str], summarise: Any) -> Results:
        """Merges shards, brings records into the order of the data, and adds the summary. One process calls this.

        Args:
            order: ids of all samples, in the order of the data.
            summarise: makes the summary from the list of records.

        Returns:
            What the file holds now.

        Raises:
            ValueError: as `prepare`.
        """
        self.prepare(order)
        records = self.done()
        self._rewrite(records, order, summarise(list(records.values())))
        return read_results(self.path)

    def _rewrite(self, records: Mapping[str, Mapping[str, Any]], order: Sequence[str], summary: Any) -> None:
        place = {key: i for i, key in enumerate(order)}
        # samples that this run was not asked for (a larger --limit before) are kept, behind the others
        keys = sorted(records, key=lambda key: place.get(key, len(place)))
        lines = [self._line("header", self.header)]
        lines += [strictjson.dumps(records[key], f"{self.path}, sample {key!r}") + "\n" for key in keys]
        if summary is not None:
            lines.append(self._line("summary", summary))
        write_whole(self.path, "".join(lines))
        for shard in self._shards():
            shard.unlink()

    def _line(self, kind: str, value: Any) -> str:
        return strictjson.dumps({kind: value}, f"{self.path}, {kind}") + "\n"

    def _check_header(self, found: Mapping[str, Any], source: Path) -> None:
        differing = sorted(_differences(found, self.header))
        if differing:
            name = differing[0]
            raise ValueError(
                f"{source}, line 1: got a run with other settings: {', '.join(differing)} "
                f"({name}: {_at(found, name)!r} there, {_at(self.header, name)!r} now); "
                "allowed are another --output, or --restart to discard it"
            )

    def _shard(self, rank: int) -> Path:
        return self.path.with_name(f"{self.path.stem}.shard{rank:03d}.jsonl")

    def _shards(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.shard[0-9][0-9][0-9].jsonl"))


def write_whole(path: Path, text: str) -> None:
    """Writes a file such that a reader, and a killed writer, sees the old content or the new one and nothing between.

    Args:
        path: the file.
        text: its new content.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Costs over the records of a file: n, seconds, median time to first token, cache bytes."""
    costs = [record["cost"] for record in records]
    if not costs:
        return {"n": 0}
    return {
        "n": len(costs),
        "seconds": sum(cost["seconds"] for cost in costs),
        "ttft_seconds": statistics.median(cost["ttft_seconds"] for cost in costs),
        "cache_bytes": statistics.mean(cost["cache_bytes"] for cost in costs),
        "peak_cache_bytes": max(cost["peak_cache_bytes"] for cost in costs),
        "truncated": sum(bool(record["truncated"]) for record in records),
    }


def _differences(old: Any, new: Any, prefix: str = "") -> set[str]:
    """Names of the entries in which two headers differ; the name of an entry of an entry has a dot in it."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: set[str] = set()
        for key in {*old, *new}:
            # an entry that is not there differs from one that is null
            found |= _differences(old.get(key, ABSENT), new.get(key, ABSENT), f"{prefix}{key}.")
        return found
    return set() if old == new else {prefix.rstrip(".")}


def _at(header: Any, name: str) -> Any:
    for part in name.split("."):
        header = header.get(part) if isinstance(header, Mapping) else None
    return header
