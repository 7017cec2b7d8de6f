"""Where benchmark data comes from: a local path, or one pinned revision on the Hugging Face Hub.

No `datasets` library: version 4 and later cannot load LongBench's script, and its type inference turns integers into
floats. Files are fetched with `huggingface_hub` and parsed here.
"""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any


@dataclass(frozen=True)
class HubFile:
    """One file of a data set repository, at one commit."""

    repo: str
    path: str
    revision: str

    def download(self, revision: str | None = None) -> Path:
        """Local path of the file, fetched if it is not in the Hub cache.

        Args:
            revision: another revision than the pinned one.

        Raises:
            ValueError: the file cannot be had; the message says how to use a local copy.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.repo, self.path, repo_type="dataset", revision=revision or self.revision))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ValueError(
                f"data not found: {self.path} of the data set {self.repo} (revision {revision or self.revision}) "
                f"could not be fetched ({type(error).__name__}); give a local copy with --data-path"
            ) from error


def parse_jsonl(lines: Iterable[str], name: str) -> list[dict[str, Any]]:
    """The objects of JSON lines; blank lines are allowed.

    Raises:
        ValueError: a line is not a JSON object; the message names file and line.
    """
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{name}, line {number}: expected an object, found {type(row).__name__}")
        rows.append(row)
    return rows


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl or .jsonl.gz file. Raises ValueError as `parse_jsonl`."""
    with _open_text(path) as file:
        return parse_jsonl(file, str(path))


def read_json_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .json file that holds a list, or of a .jsonl file; either may be gzipped.

    Raises:
        ValueError: the file holds neither.
    """
    if ".jsonl" in path.suffixes:
        return read_jsonl(path)
    with _open_text(path) as file:
        try:
            rows = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of rows, found {type(rows).__name__}")
    return rows


def read_zip_member(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the first of the .jsonl files `names` inside a zip.

    Raises:
        ValueError: the zip has none of them.
    """
    with zipfile.ZipFile(path) as archive:
        for wanted in names:
            for member in archive.namelist():
                if (member == wanted or member.endswith("/" + wanted)) and not member.startswith("__MACOSX"):
                    with archive.open(member) as raw:
                        return parse_jsonl(io.TextIOWrapper(raw, encoding="utf-8"), f"{path}:{member}")
    raise ValueError(f"{path} has no member {' or '.join(names)}")


def read_rows(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows from a local data path.

    Args:
        path: a .json or .jsonl file (also gzipped), a .zip, or a folder that holds one of those.
        names: the file names to look for in a folder or zip, most wanted first.

    Raises:
        ValueError: nothing is there; the message names the path and the expected files.
    """
    if not path.exists():
        raise ValueError(f"data path not found: {path}")
    if path.is_file():
        return read_zip_member(path, names) if path.suffix == ".zip" else read_json_rows(path)
    for name in names:
        for candidate in (path / name, path / f"{name}.gz", path / "data" / name):
            if candidate.is_file():
                return read_json_rows(candidate)
    if (path / "data.zip").is_file():
        return read_zip_member(path / "data.zip", names)
    raise ValueError(f"data path {path} has none of {', '.join(names)}")


def read_texts(path: Path) -> str:
    """All .txt and .txt.gz files of a folder in sorted order, or one file, joined by newlines.

    Raises:
        ValueError: the path is missing or holds no text.
    """
    if not path.exists():
        raise ValueError(f"data path not found: {path}")
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.name.endswith((".txt", ".txt.gz")))
    texts = []
    for file in files:
        with _open_text(file) as handle:
            texts.append(handle.read())
    text = "\n".join(texts)
    if not text.strip():
        raise ValueError(f"data path {path} holds no .txt or .txt.gz text")
    return text


def require_columns(rows: Sequence[dict[str, Any]], columns: Iterable[str], name: str) -> Iterator[dict[str, Any]]:
    """The rows, each checked to have the columns.

    Raises:
        ValueError: a row lacks one; the message says which. (A re-cut mirror of the data shows here.)
    """
    wanted = list(columns)
    for number, row in enumerate(rows, 1):
        missing = [column for column in wanted if column not in row]
        if missing:
            raise ValueError(f"{name}, row {number}: lacks the column {missing[0]!r}; it has {', '.join(row)}")
        yield row


def _open_text(path: Path) -> IO[str]:
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")
