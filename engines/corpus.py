"""A function over a corpus on Ray Data: JSON lines or Parquet in, the same out, one model in each actor, resumable.

The corpus is cut into parts of a fixed number of rows, in the order of its files. Each part that is done is a file of
its own, which appears as a whole, so a run that was killed goes on with the parts that are missing, and the
result does not depend on how many workers there were.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distill.patches.checks import check_integer

SUFFIXES = (".jsonl", ".parquet")
#: what made the parts of a folder; a run with other settings is refused there
SETTINGS = "corpus.json"


@dataclass(frozen=True)
class Part:
    """Some rows of a corpus.

    Attributes:
        number: its place.
        files: the files that the rows lie in, each with its first row and the row behind its last.
    """

    number: int
    files: tuple[tuple[str, int, int], ...]


def files_of(folder: Path) -> list[Path]:
    """The files of a corpus, in order.

    Raises:
        ValueError: no folder, or none of its files, or files of both kinds.
    """
    found = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES) if folder.is_dir() else []
    if not found or len({path.suffix for path in found}) > 1:
        raise ValueError(f"corpus: got {folder}; allowed are folders of {' or of '.join(SUFFIXES)} files")
    return found


def count_rows(path: Path) -> int:
    """Rows of a file."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_metadata(path).num_rows
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def parts_of(counts: Sequence[tuple[str, int]], size: int) -> list[Part]:
    """Cuts files of so many rows into parts of `size` rows; the last has what is left."""
    parts: list[Part] = []
    pieces: list[tuple[str, int, int]] = []
    room = size
    for name, count in counts:
        start = 0
        while start < count:
            stop = min(count, start + room)
            pieces.append((name, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                parts.append(Part(len(parts), tuple(pieces)))
                pieces, room = [], size
    return [*parts, Part(len(parts), tuple(pieces))] if pieces else parts


def rows_of(part: Part) -> Iterator[dict[str, Any]]:
    """The rows of a part.

    Raises:
        ValueError: a line that is no JSON object.
    """
    for name, start, stop in part.files:
        if name.endswith(".parquet"):
            import pyarrow.parquet

            yield from pyarrow.parquet.read_table(name).slice(start, stop - start).to_pylist()
            continue
        with open(name, encoding="utf-8") as file:
            lines = (line for line in file if line.strip())
            for number, line in enumerate(lines):
                if start <= number < stop:
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"corpus: got a line of {name} that is no JSON object; allowed are objects")
                    yield row


def write_part(folder: Path, part: Part, rows: list[dict[str, Any]], suffix: str) -> None:
    """Writes a part as a whole, or not at all."""
    made = folder / f"part-{part.number:06d}{suffix}"
    beside = made.with_suffix(f"{suffix}.{os.getpid()}.writing")
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), beside)
    else:
        beside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    beside.replace(made)


class Worker:
    """An actor: makes its function once, with its model, and does parts."""

    def __init__(self, make: Callable[..., Any], settings: Mapping[str, Any], folder: str, suffix: str) -> None:
        self.function, self.folder, self.suffix = make(**settings), Path(folder), suffix

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Does the parts of a batch; how many rows each had."""
        counts = []
        for text in batch["part"]:
            value = json.loads(str(text))
            part = Part(value["number"], tuple(tuple(piece) for piece in value["files"]))
            rows = [self.function(row) for row in rows_of(part)]
            write_part(self.folder, part, rows, self.suffix)
            counts.append(len(rows))
        return {"rows": counts}


def run_corpus(
    source: Path,
    target: Path,
    make: Callable[..., Callable[[dict[str, Any]], dict[str, Any]]],
    settings: Mapping[str, Any],
    workers: int = 1,
    rows: int = 100,
    progress: bool = True,
) -> int:
    """Runs a function over the rows of a corpus; the number of rows done now.

    Args:
        source: a folder of `.jsonl` or of `.parquet` files.
        target: a folder; gets one file of the same kind for each part.
        make: called once in each actor with `settings`, gives a function of one row; found by its module's name.
        settings: JSON values.
        workers: actors, each with its own function; `1` runs in this process, without Ray.
        rows: rows of a part.
    Raises:
        ValueError: no corpus, or a target whose parts were made otherwise.
    """
    check_integer("workers", workers, 1)
    check_integer("rows", rows, 1)
    files = files_of(source)
    counts = [(str(path), count_rows(path)) for path in files]
    names = [[Path(name).name, count] for name, count in counts]
    made = {"function": f"{make.__module__}.{make.__qualname__}", "settings": dict(settings), "rows": rows}
    _claim(target, made | {"files": sha256(json.dumps(names).encode()).hexdigest()})
    suffix = files[0].suffix
    parts = parts_of(counts, rows)
    todo = [part for part in parts if not (target / f"part-{part.number:06d}{suffix}").exists()]
    if not todo:
        return 0
    items = [{"part": json.dumps(asdict(part))} for part in todo]
    done = 0
    with tqdm(total=sum(stop - start for part in todo for _, start, stop in part.files), unit="row",
              disable=not progress) as bar:  # fmt: skip
        for count in _counts(items, workers, (make, settings, str(target), suffix)):
            done += count
            bar.update(count)
    return done


def _claim(target: Path, made: dict[str, Any]) -> None:
    """Writes down what makes the parts of a folder, or raises a `ValueError` if that was something else."""
    target.mkdir(parents=True, exist_ok=True)
    place = target / SETTINGS
    text = json.dumps(made, indent=2, sort_keys=True)
    if place.exists():
        if place.read_text() != text:
            raise ValueError(f"output: got {target}, which was made with other settings; allowed is another folder")
        return
    if any(target.iterdir()):
        raise ValueError(f"output: got {target}, which holds other files; allowed is a new folder")
    place.write_text(text)


def _counts(items: list[dict[str, str]], workers: int, arguments: tuple[Any, ...]) -> Iterator[int]:
    """Rows of each part, as they are done."""
    if workers == 1:
        worker = Worker(*arguments)
        for item in items:
            yield from worker({"part": [item["part"]]})["rows"]
        return
    ray = start_ray("workers", workers)
    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.from_items(items, override_num_blocks=len(items))
    done = data.map_batches(
        Worker, fn_constructor_args=arguments, batch_size=1, compute=ray.data.ActorPoolStrategy(size=workers)
    )
    for row in done.iter_rows():
        yield int(row["rows"])


#: bytes for what Ray's processes hand to one another, on one machine: here these are the names of parts
_STORE = 100 * 2**20


def start_ray(flag: str, workers: int) -> Any:
    """Joins the cluster that `RAY_ADDRESS` names, or starts Ray on this machine, with a place for each worker.

    Returns:
        the module `ray`.
    Raises:
        ValueError: Ray is not installed; `flag` is what asked for it.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(f"{flag}: got {workers}, which need Ray: pip install 'distill-llm[ray]'") from error
    if ray.is_initialized():
        return ray
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    settings: dict[str, Any] = {"log_to_driver": False}
    if "RAY_ADDRESS" not in os.environ:
        # a worker takes one of Ray's CPUs, and would wait for ever where a machine has fewer
        cpus = max(workers, os.cpu_count() or 1) + 1
        settings |= {"include_dashboard": False, "num_cpus": cpus, "object_store_memory": _STORE}
    ray.init(**settings)
    return ray
