"""Result files: JSON lines that survive a kill and never hold a sample twice.

A file is a header line (everything that must be equal for two predictions to belong together), one line a sample in
the order of the data, and, once complete, a summary line. Each line is written whole and flushed, so a killed run
leaves at most one torn line at the end, which the next run removes. Several processes write shards beside the file,
which are merged in the order of the data.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


@dataclass
class Results:
    """Content of one result file. Attributes: header, records by sample id in file order, summary or None."""

    header: dict[str, Any]
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] | None = None


def read_results(path: Path) -> Results:
    """Reads a result file.

    Raises:
        ValueError: the file is missing, a line is corrupt (named by file and line), or a sample occurs twice.
    """
    if not path.is_file():
        raise ValueError(f"result file not found: {path}")
    results: Results | None = None
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line:
            continue
        where = f"{path}, line {number}"
        row = _parse(line, where)
        if results is None:
            if set(row) != {"header"}:
                raise ValueError(f"{where}: a result file starts with a header; this one does not")
            results = Results(row["header"])
        elif set(row) == {"summary"}:
            results.summary = row["summary"]
        else:
            if not isinstance(row.get("id"), str) or not isinstance(row.get("prediction"), str):
                raise ValueError(f"{where}: corrupt record: it lacks an id or a prediction")
            if row["id"] in results.records:
                raise ValueError(f"{where}: sample {row['id']!r} occurs twice")
            results.records[row["id"]] = row
    if results is None:
        raise ValueError(f"{path}: is empty")
    return results


class ResultFile:
    """A result file that a run writes, alone or as one of several processes.

    Args:
        header: settings of the run; a file with another header is not continued.
        rank, world: this process and the number of processes.

    Raises:
        ValueError: the file was made with other settings (they are named), or is corrupt.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], rank: int = 0, world: int = 1) -> None:
        self.path, self.header, self.rank, self.world = path, json.loads(json.dumps(header)), rank, world

    def prepare(self, order: Sequence[str]) -> None:
        """Mends what an earlier run left: a torn line, shards, a summary. For one process, before all others read."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        records: dict[str, dict[str, Any]] = {}
        sources = [self.path] if self.path.exists() else []
        for source in [*sources, *self._shards()]:
            _remove_torn_line(source)
            if source.stat().st_size == 0:
                continue
            found = read_results(source)
            self._check_header(found.header, source)
            for key, record in found.records.items():
                records.setdefault(key, record)
        self._rewrite(records, order, None)

    def done(self) -> dict[str, dict[str, Any]]:
        """Records that are already there, by sample id."""
        return read_results(self.path).records

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one record, at once."""
        target = self.path if self.world == 1 else self._shard(self.rank)
        fresh = not target.exists()
        with target.open("a", encoding="utf-8") as file:
            if fresh:
                file.write(_line({"header": self.header}))
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, order: Sequence[str], summarise: Any) -> Results:
        """Merges shards, brings records into the order of the data and adds the summary. For one process.

        Args:
            summarise: records -> summary.
        """
        self.prepare(order)
        records = self.done()
        summary = summarise(list(records.values()))
        self._rewrite(records, order, summary)
        return Results(self.header, records, summary)

    def _rewrite(self, records: Mapping[str, Mapping[str, Any]], order: Sequence[str], summary: Any) -> None:
        place = {key: i for i, key in enumerate(order)}
        # samples that this run was not asked for (a larger --limit before) are kept, behind the others
        keys = sorted(records, key=lambda key: place.get(key, len(place)))
        lines = [_line({"header": self.header}), *(_line(records[key]) for key in keys)]
        if summary is not None:
            lines.append(_line({"summary": summary}))
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(lines), encoding="utf-8")
        temporary.replace(self.path)
        for shard in self._shards():
            shard.unlink()

    def _check_header(self, found: Mapping[str, Any], source: Path) -> None:
        differing = sorted(_differences(found, self.header))
        if differing:
            name = differing[0]
            raise ValueError(
                f"{source} was made with other settings: {', '.join(differing)} "
                f"({name}: {_at(found, name)!r} there, {_at(self.header, name)!r} now); "
                "choose another --output, or --restart to discard it"
            )

    def _shard(self, rank: int) -> Path:
        return self.path.with_name(f"{self.path.stem}.shard{rank:03d}.jsonl")

    def _shards(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.shard[0-9][0-9][0-9].jsonl"))


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


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: corrupt: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: corrupt: expected an object, found {type(row).__name__}")
    return row


def _line(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # half of a surrogate pair, as some data sets have it, exists in JSON only escaped
        text = json.dumps(row)
    return text + "\n"


def _remove_torn_line(path: Path) -> None:
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        whole = data.rfind(b"\n") + 1
        logger.warning("%s: removed an incomplete last line (%d bytes) of an interrupted run", path, len(data) - whole)
        with path.open("r+b") as file:
            file.truncate(whole)


def _differences(old: Any, new: Any, prefix: str = "") -> set[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: set[str] = set()
        for key in {*old, *new}:
            found |= _differences(old.get(key), new.get(key), f"{prefix}{key}.")
        return found
    return set() if old == new else {prefix.rstrip(".")}


def _at(header: Any, name: str) -> Any:
    for part in name.split("."):
        header = header.get(part) if isinstance(header, Mapping) else None
    return header
