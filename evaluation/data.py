"""Where benchmark data comes from: a local path, or one pinned revision on the Hugging Face Hub.

Plain sets on the Hub are read by the `datasets` library. It cannot read LongBench, whose loader is a script: there the
original zip is fetched. Local files are read here.
"""

from __future__ import annotations

import gzip
import re
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.evaluation import strictjson


@dataclass(frozen=True)
class HubSet:
    """A data set of plain files on the Hub, at one commit, read by `datasets`.

    Attributes:
        repo: its name on the Hub, or a local folder with the same files.
        revision: the commit it is pinned to.
    """

    repo: str
    revision: str

    def table(
        self, file: str, text: Sequence[str], json: Sequence[str] = (), revision: str | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Rows of a file that `datasets` reads as a table: a JSON list of objects, CSV or Parquet.

        Args:
            file: path inside the data set.
            text: the columns that hold text.
            json: the columns that hold any other JSON value, such as lists.
            revision: another revision than the pinned one.
            options: further arguments of `load_dataset`.

        Raises:
            ValueError: the rows cannot be had; the message says how to use a local copy.
        """
        datasets = _datasets()
        # without them `datasets` would guess, and for example take text that looks like a date for one
        kinds = {name: datasets.Value("string") for name in text} | {name: datasets.Json() for name in json}
        wanted = revision or self.revision
        with _fetching(self.repo, file, wanted):
            found = datasets.load_dataset(
                self.repo,
                data_files={"test": file},
                split="test",
                revision=wanted,
                features=datasets.Features(kinds),
                **options,
            )
            _check_revision(found, wanted)
        return [dict(row) for row in found]

    def json_lines(self, file: str, revision: str | None = None) -> list[dict[str, Any]]:
        """Rows of a file with one JSON object per line, every value with exactly the type that it has in the file.

        `datasets` reads the lines as text. Its JSON reader would turn 88 into 88.0 and "00123" into 123, and scorers
        tell these apart.

        Args:
            file: path inside the data set.
            revision: another revision than the pinned one.

        Raises:
            ValueError: the rows cannot be had, or a line is not a JSON object.
        """
        wanted = revision or self.revision
        with _fetching(self.repo, file, wanted):
            place = self._place(file, wanted)
            found = _datasets().load_dataset("text", data_files={"test": place}, split="test", keep_linebreaks=True)
        return parse_jsonl((row["text"] for row in found), f"{self.repo} {file}")

    def _place(self, file: str, revision: str) -> str:
        """Where `file` of exactly that revision is: in a local folder, in the Hub's cache, or on the Hub."""
        if Path(self.repo).is_dir():
            return str(Path(self.repo) / file)
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(self.repo, file, revision=revision, repo_type="dataset")
        return cached if isinstance(cached, str) else f"hf://datasets/{self.repo}@{revision}/{file}"


@dataclass(frozen=True)
class HubFile:
    """One file of a data set repository that `datasets` cannot read, at one commit."""

    repo: str
    path: str
    revision: str

    def download(self, revision: str | None = None) -> Path:
        """Local path of the file, fetched if it is not in the Hub's cache.

        Args:
            revision: another revision than the pinned one.

        Raises:
            ValueError: the file cannot be had; the message says how to use a local copy.
        """
        from huggingface_hub import hf_hub_download

        wanted = revision or self.revision
        with _fetching(self.repo, self.path, wanted):
            return Path(hf_hub_download(self.repo, self.path, repo_type="dataset", revision=wanted))

    def parquet(self, columns: Sequence[str], revision: str | None = None) -> list[dict[str, Any]]:
        """Rows of the file, which is a Parquet file; some of its columns.

        Raises:
            ValueError: as `download`.
        """
        return read_parquet(self.download(revision), columns)


def read_parquet(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Some columns of a Parquet file as rows.

    Raises:
        ValueError: it cannot be read, or lacks a column.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("data: got no package `pyarrow`; allowed is pip install 'distill-llm[eval]'") from error
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path, columns=list(columns)).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path}: got a file that cannot be read ({error}); allowed is Parquet") from error
    return list(require_columns(rows, columns, str(path)))


@contextmanager
def _fetching(repo: str, file: str, revision: str) -> Iterator[None]:
    """Turns the many errors of fetching and reading a file of the Hub into one that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    # what `datasets` itself raises are plain exceptions of its own
    except (OSError, ValueError, HfHubHTTPError) as error:
        problem: Exception = error
    except Exception as error:
        if not type(error).__module__.startswith("datasets."):
            raise
        problem = error
    else:
        return
    reason = f"{type(problem).__name__}: {problem.__cause__ or problem}".partition("\n")[0][:300]
    raise ValueError(
        f"data: got no {file} of the data set {repo} (revision {revision}; {reason}); allowed instead is a local copy "
        "with --data-path"
    ) from problem


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            "data: got no package `datasets` to read the Hub with; allowed are local files with --data-path, or "
            "pip install 'distill-llm[eval]'"
        ) from error
    return datasets


def _check_revision(found: Any, revision: str) -> None:
    """Refuses rows of another commit: without a network `datasets` offers whatever it read last of that data set."""
    for file in found.cache_files:
        commit = Path(file["filename"]).parent.name
        if re.fullmatch(r"[0-9a-f]{40}", commit) and re.fullmatch(r"[0-9a-f]{40}", revision) and commit != revision:
            raise ValueError(f"only the revision {commit} is at hand")


def parse_jsonl(lines: Iterable[bytes | str], name: str) -> list[dict[str, Any]]:
    """The objects of JSON lines; blank lines are allowed.

    Args:
        lines: the lines, with or without their ends.
        name: where they come from, for the error.

    Raises:
        ValueError: a line is not a JSON object; the message names file and line.
    """
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        row = strictjson.loads(line, where)
        if not isinstance(row, dict):
            raise ValueError(f"{where}: got a {type(row).__name__}; allowed is a JSON object")
        rows.append(row)
    return rows


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl or .jsonl.gz file.

    Raises:
        ValueError: as `parse_jsonl`.
    """
    return parse_jsonl(_content(path).split(b"\n"), str(path))


def read_json_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .json file that holds a list of objects, or of a .jsonl file; either may be gzipped.

    Raises:
        ValueError: the file holds neither.
    """
    if ".jsonl" in path.suffixes:
        return read_jsonl(path)
    rows = strictjson.loads(_content(path), str(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: got a {type(rows).__name__}; allowed is a JSON list of objects")
    return rows


def read_zip_member(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a .jsonl file inside a zip.

    Args:
        path: the zip.
        names: names that the file may have, most wanted first.

    Raises:
        ValueError: the file is no zip, or has none of them.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for wanted in names:
                for member in archive.namelist():
                    if (member == wanted or member.endswith("/" + wanted)) and not member.startswith("__MACOSX"):
                        return parse_jsonl(archive.read(member).split(b"\n"), f"{path}:{member}")
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: got a file that cannot be read ({error}); allowed is a zip") from error
    raise ValueError(f"{path}: got no member {' or '.join(names)}; allowed are zips that have it")


def read_rows(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows from a local data path.

    Args:
        path: a .json or .jsonl file (also gzipped), a .zip, or a folder that holds one of those.
        names: the file names to look for in a folder or zip, most wanted first.

    Raises:
        ValueError: nothing is there; the message names the path and the expected files.
    """
    _check_there(path)
    if path.is_file():
        return read_zip_member(path, names) if path.suffix == ".zip" else read_json_rows(path)
    for name in names:
        for candidate in (path / name, path / f"{name}.gz", path / "data" / name):
            if candidate.is_file():
                return read_json_rows(candidate)
    if (path / "data.zip").is_file():
        return read_zip_member(path / "data.zip", names)
    raise ValueError(f"--data-path: got {path}; allowed are folders with {' or '.join(names)}")


def read_text(path: Path, names: Sequence[str]) -> str:
    """A text from a local data path.

    Args:
        path: the file (also gzipped), or a folder that holds it.
        names: the file names to look for in a folder, most wanted first.

    Raises:
        ValueError: nothing is there, or it is not UTF-8.
    """
    _check_there(path)
    found = [path] if path.is_file() else [path / f"{name}{end}" for name in names for end in ("", ".gz")]
    for file in found:
        if file.is_file():
            return _text(file)
    raise ValueError(f"--data-path: got {path}; allowed are folders with {' or '.join(names)}")


def read_document(path: Path, names: Sequence[str]) -> Any:
    """The value of one JSON file; arguments and errors as `read_text`."""
    return strictjson.loads(read_text(path, names), str(path))


def read_texts(path: Path) -> str:
    """All .txt and .txt.gz files of a folder in sorted order, or one file, joined by newlines.

    Raises:
        ValueError: the path is missing, holds no text, or text that is not UTF-8.
    """
    _check_there(path)
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.name.endswith((".txt", ".txt.gz")))
    texts = []
    for file in files:
        texts.append(_text(file))
    text = "\n".join(texts)
    if not text.strip():
        raise ValueError(f"--data-path: got {path}; allowed are folders that hold text in .txt or .txt.gz files")
    return text


def require_columns(
    rows: Sequence[dict[str, Any]], columns: Iterable[str], name: str, nullable: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """The rows, each checked to have the columns. Copies of a data set with other columns than the original fail here.

    Args:
        rows: the rows.
        columns: names of the columns.
        name: the data set, for the error.
        nullable: columns that may be null.

    Raises:
        ValueError: a row lacks one, or has null in it.
    """
    wanted = list(columns)
    for number, row in enumerate(rows, 1):
        for column in wanted:
            if column not in row or (row[column] is None and column not in nullable):
                there = ", ".join(key for key, value in row.items() if value is not None)
                raise ValueError(
                    f"{name}, row {number}: got no {column!r}, only {there}; allowed are rows that have it"
                )
        yield row


def _check_there(path: Path) -> None:
    if not path.exists():
        raise ValueError(f"--data-path: got {path}; allowed are files and folders that exist")


def _text(path: Path) -> str:
    try:
        text = _content(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: got bytes that are not UTF-8 ({error}); allowed is text in UTF-8") from error
    # as Python reads text files: every end of a line becomes "\n"
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _content(path: Path) -> bytes:
    """What is in a file, unpacked if it is gzipped."""
    data = path.read_bytes()
    if not path.name.endswith(".gz"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: got a file that cannot be unpacked ({error}); allowed is a whole gzip file"
        ) from error
