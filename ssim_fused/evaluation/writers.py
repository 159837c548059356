"""Results in files: CSV, JSON Lines and Parquet, written as they come and read again to resume.

CSV and JSON Lines can be read at any moment, also after the process is killed: what is there is
whole lines, but for the last. Parquet has its index at the end, so results go to a journal beside
it, which becomes a table when no more come or an interruption (Ctrl-C) ends the run.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import itertools
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

_ROW_GROUP = 8192  # results of a table that are in memory at once


class ResultsError(ValueError):
    """A file of results that cannot be read, or was made in another way."""


class NotWritten(ResultsError):
    """Results of earlier runs that cannot be brought together, as a file cannot be written."""


class Writer(Protocol):
    """A file of results that is being written."""

    def write(self, results: list[Result]) -> None:
        """Add results, so that they are in the file."""

    def close(self) -> None:
        """No more come."""

    def abandon(self) -> None:
        """Close it where writing has failed."""


# ---- text: one result a line ----

# bytes of a file's name that are not UTF-8 come and go as they are
_ENCODING: Any = {"encoding": "utf-8", "errors": "surrogateescape"}


class _TextWriter:
    def __init__(self, path: Path, append: bool, fields: Iterable[str] = FIELDS) -> None:
        self._fields = tuple(fields)
        self._file: IO[str] = path.open("a" if append else "w", newline="", **_ENCODING)
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
    """For csv.writer: what it writes last, which ends with a newline alone.

    csv.writer quotes a carriage return within a name only where it ends lines with one.
    """

    line = ""

    def write(self, line: str) -> None:
        self.line = line.removesuffix("\r\n") + "\n"


class CsvWriter(_TextWriter):
    """A column for each field; an infinite PSNR is ``inf``, what there is not is empty."""

    def __init__(self, path: Path, append: bool, fields: Iterable[str] = FIELDS) -> None:
        self._out = _OneLine()
        self._csv = csv.writer(self._out, lineterminator="\r\n")
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
        return json.dumps({name: finite(result[name]) for name in self._fields}) + "\n"


def finite(value: Any) -> Any:
    """None in place of infinity and NaN, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _whole_lines(file: IO[str]) -> Iterator[str]:
    """Lines but for one that a killed process did not finish."""
    return (line for line in file if line.endswith("\n"))


def _read_csv(path: Path) -> Iterator[Result]:
    with path.open(newline="\n", **_ENCODING) as file:  # a carriage return ends no line
        rows = csv.reader(_whole_lines(file))
        header = next(rows, list(FIELDS))
        if header != list(FIELDS):
            raise ResultsError(f"{path}: its columns are not those of results: {header}")
        for row in rows:
            if len(row) != len(FIELDS):
                line = rows.line_num
                if next(rows, None) is None:  # a killed process ended within a name of two lines
                    return
                raise ResultsError(f"{path}, line {line}: must have {len(FIELDS)} columns")
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


def _as_utf8(result: Result) -> Result:
    """With bytes of names that are not UTF-8, which Parquet does not have, as ``\\udcff``."""
    names = ("input", "target", "error")
    return result | {name: escaped(result[name]) for name in names if result[name] is not None}


def escaped(text: str) -> str:
    """Text that is UTF-8, of names that may not be."""
    return text.encode(errors="backslashreplace").decode()


JOURNAL = ".part"  # ends the name of a journal


def _journal_of(path: Path) -> Path:
    return path.with_name(path.name + JOURNAL)


class _Journal(_TextWriter):
    """An object a line, as Python's json has them: NaN and Infinity are numbers."""

    def _line(self, result: Result) -> str:
        return json.dumps({name: result[name] for name in self._fields}) + "\n"


class ParquetWriter:
    """FIELDS as columns. Until it is closed, results are in a journal beside it."""

    def __init__(self, path: Path, append: bool) -> None:
        _check_regular(path)
        self._path = path
        self._journal = _Journal(_journal_of(path), append)
        if not append:
            path.unlink(missing_ok=True)

    def write(self, results: list[Result]) -> None:
        """Add results to the journal."""
        self._journal.write(results)

    def close(self) -> None:
        """Make a table of what there was and of the journal; that stays where this fails."""
        self._journal.close()
        table = self._path.with_name(self._path.name + ".table")
        try:
            with pyarrow.parquet.ParquetWriter(table, _SCHEMA) as file:
                for block in _blocks(_read_parquet(self._path)):
                    rows = list(map(_as_utf8, block))
                    file.write_table(pyarrow.Table.from_pylist(rows, _SCHEMA))
            os.replace(table, self._path)
        finally:
            table.unlink(missing_ok=True)
        _journal_of(self._path).unlink()

    def abandon(self) -> None:
        """What is in the journal stays."""
        self._journal.abandon()


def _read_parquet(path: Path) -> Iterator[Result]:
    """What is in the table, then what is in the journal, where there are such."""
    if path.exists():
        with pyarrow.parquet.ParquetFile(path) as file:
            if file.schema_arrow.names != list(FIELDS):
                raise ResultsError(f"{path}: its columns are not those of results")
            for batch in file.iter_batches(batch_size=_ROW_GROUP):
                yield from batch.to_pylist()
    if _journal_of(path).exists():
        yield from _read_json(_journal_of(path))


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


def files_of(kind: str, path: Path) -> list[Path]:
    """The files that hold what was written to a path; none where nothing was."""
    files = [path, _journal_of(path)] if kind == "parquet" else [path]
    return [file for file in files if file.exists()]


def read_results(kind: str, path: Path) -> Iterator[Result]:
    """The results in a file; nothing where there is none.

    Raises:
        ResultsError: it holds something else.
    """
    if not files_of(kind, path):
        return
    try:
        yield from _READERS[kind](path)
    except (ValueError, csv.Error, pyarrow.ArrowException) as error:
        if isinstance(error, ResultsError):
            raise
        raise ResultsError(f"{path}: cannot be read: {error}") from None


def remove_results(kind: str, path: Path) -> None:
    """Remove what was written to a path; a device or a pipe stays."""
    for file in files_of(kind, path):
        if file.is_file():
            file.unlink()


def _blocks(results: Iterable[Result]) -> Iterator[list[Result]]:
    rest = iter(results)
    return iter(lambda: list(itertools.islice(rest, _ROW_GROUP)), [])


def rewrite(kind: str, path: Path, results: Iterable[Result]) -> None:
    """A file of these results in place of one that may be read for them."""
    _check_regular(path)
    new = path.with_name(path.name + ".new")
    writer = open_writer(kind, new)
    try:
        for block in _blocks(results):
            writer.write(block)
        writer.close()
        os.replace(new, path)
    except BaseException:  # what is read is refused, a full disk, Ctrl-C: it all is still in path
        writer.abandon()
        remove_results(kind, new)
        raise
    for file in files_of(kind, path):
        if file != path:  # what it held is in the new one
            file.unlink()


def key_of(input: str | None, target: str | None) -> int:
    """A number that stands for a pair, so that a million of them need little memory."""
    names = escaped(f"{input or ''}\0{target or ''}").encode()  # the same in files of all kinds
    return int.from_bytes(blake2b(names, digest_size=8).digest(), "big")
