"""Results in files: CSV, JSON Lines and Parquet, written as they come and read again to resume.

CSV and JSON Lines can be read at any moment, also after the process is killed: what is there is
whole lines, but for the last. Parquet has its index at the end, so it takes its name only when it
is closed, which an interruption (Ctrl-C) does.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow
import pyarrow.parquet

from .compare import FIELDS, Result

_ROW_GROUP = 8192  # results that are in memory until Parquet writes them


class ResultsError(ValueError):
    """A file of results that cannot be read, or was made in another way."""


class Writer(Protocol):
    """A file of results that is being written."""

    def write(self, results: list[Result]) -> None:
        """Add results, so that they are in the file."""

    def close(self) -> None:
        """No more come."""

    def abandon(self) -> None:
        """Close it where writing has failed."""


# ---- text: one result a line ----


class _TextWriter:
    def __init__(self, path: Path, append: bool, fields: Iterable[str] = FIELDS) -> None:
        self._fields = tuple(fields)
        self._file: IO[str] = path.open("a" if append else "w", encoding="utf-8", newline="")
        if not append or self._file.tell() == 0:
            self._file.write(self._header())
            self._file.flush()

    def _header(self) -> str:
        return ""

    def _line(self, result: Result) -> str:
        raise NotImplementedError

    def write(self, results: list[Result]) -> None:
        self._file.write("".join(map(self._line, results)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def abandon(self) -> None:
        with contextlib.suppress(OSError):  # what is not yet written fails once more
            self._file.close()


class _OneLine:
    """For csv.writer: what it writes last."""

    line = ""

    def write(self, line: str) -> None:
        self.line = line


class CsvWriter(_TextWriter):
    """A column for each field; an infinite PSNR is ``inf``, what there is not is empty."""

    def __init__(self, path: Path, append: bool, fields: Iterable[str] = FIELDS) -> None:
        self._out = _OneLine()
        self._csv = csv.writer(self._out, lineterminator="\n")
        super().__init__(path, append, fields)

    def _header(self) -> str:
        self._csv.writerow(self._fields)
        return self._out.line

    def _line(self, result: Result) -> str:
        self._csv.writerow([result[name] for name in self._fields])
        return self._out.line


class JsonWriter(_TextWriter):
    """An object a line; an infinite PSNR, which JSON does not have, is null."""

    def _line(self, result: Result) -> str:
        return json.dumps({name: _finite(result[name]) for name in self._fields}) + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _whole_lines(file: IO[str]) -> Iterator[str]:
    """Lines but for one that a killed process did not finish."""
    return (line for line in file if line.endswith("\n"))


def _read_csv(path: Path) -> Iterator[Result]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(_whole_lines(file))
        header = next(rows, list(FIELDS))
        if header != list(FIELDS):
            raise ResultsError(f"{path}: its columns are not those of results: {header}")
        for row in rows:
            if len(row) != len(FIELDS):
                raise ResultsError(f"{path}, line {rows.line_num}: must have {len(FIELDS)} columns")
            texts = zip(FIELDS.items(), row)
            yield {name: _parsed(kind, text) for (name, kind), text in texts}


def _parsed(kind: type, text: str) -> Any:
    return None if text == "" else kind(text)


def _read_json(path: Path) -> Iterator[Result]:
    with path.open(encoding="utf-8") as file:
        for line in _whole_lines(file):
            result = json.loads(line)
            if not isinstance(result, dict) or set(result) != set(FIELDS):
                raise ResultsError(f"{path}: is not made of results")
            if result["mse"] == 0:
                result["psnr"] = math.inf
            yield result


def _check_regular(path: Path) -> None:
    """No device or pipe is where a file takes its place."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is not a regular file", str(path))


# ---- Parquet ----

_ARROW = {str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int64()}
_SCHEMA = pyarrow.schema([(name, _ARROW[kind]) for name, kind in FIELDS.items()])


class ParquetWriter:
    """FIELDS as columns. Written beside ``path``, whose name it takes when it is closed."""

    def __init__(self, path: Path, append: bool) -> None:
        _check_regular(path)
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._rows: list[Result] = []
        self._file: Any = None
        try:
            self._file = pyarrow.parquet.ParquetWriter(self._part, _SCHEMA)
            if append and path.exists():
                self._copy(path)
        except OSError:
            self.abandon()
            raise

    def _copy(self, path: Path) -> None:
        with pyarrow.parquet.ParquetFile(path) as before:
            for batch in before.iter_batches():
                self._file.write_batch(batch)

    def write(self, results: list[Result]) -> None:
        """Add results."""
        self._rows += results
        if len(self._rows) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        self._file.write_table(pyarrow.Table.from_pylist(self._rows, _SCHEMA))
        self._rows = []

    def close(self) -> None:
        """Make it a file that can be read."""
        if self._rows:
            self._flush()
        self._file.close()
        os.replace(self._part, self._path)

    def abandon(self) -> None:
        """Without its index it cannot be read: it goes."""
        with contextlib.suppress(OSError, pyarrow.ArrowException):
            if self._file is not None:
                self._file.close()
        self._part.unlink(missing_ok=True)


def _read_parquet(path: Path) -> Iterator[Result]:
    with pyarrow.parquet.ParquetFile(path) as file:
        if file.schema_arrow.names != list(FIELDS):
            raise ResultsError(f"{path}: its columns are not those of results")
        for batch in file.iter_batches(batch_size=_ROW_GROUP):
            yield from batch.to_pylist()


# ---- all kinds ----

_READERS = {"csv": _read_csv, "json": _read_json, "parquet": _read_parquet}
_WRITERS: dict[str, Callable[[Path, bool], Writer]] = {
    "csv": CsvWriter,
    "json": JsonWriter,
    "parquet": ParquetWriter,
}
KINDS = tuple(_WRITERS)


def open_writer(kind: str, path: Path, append: bool = False) -> Writer:
    """Write results to a file, or add them to what it holds: kind "csv", "json" or "parquet"."""
    return _WRITERS[kind](path, append)


def read_results(kind: str, path: Path) -> Iterator[Result]:
    """The results in a file; nothing where there is none.

    Raises:
        ResultsError: it holds something else.
    """
    if not path.exists():
        return
    try:
        yield from _READERS[kind](path)
    except (ValueError, csv.Error, pyarrow.ArrowException) as error:
        if isinstance(error, ResultsError):
            raise
        raise ResultsError(f"{path}: cannot be read: {error}") from None


def rewrite(kind: str, path: Path, results: Iterable[Result]) -> None:
    """A file of these results in place of one that may be read for them."""
    _check_regular(path)
    new = path.with_name(path.name + ".new")
    writer = open_writer(kind, new)
    block: list[Result] = []
    for result in results:
        block.append(result)
        if len(block) == _ROW_GROUP:
            writer.write(block)
            block = []
    writer.write(block)
    writer.close()
    os.replace(new, path)


def key_of(input: str | None, target: str | None) -> int:
    """A number that stands for a pair, so that a million of them need little memory."""
    names = f"{input or ''}\0{target or ''}".encode(errors="surrogateescape")
    return int.from_bytes(blake2b(names, digest_size=8).digest(), "big")
