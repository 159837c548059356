"""Which pictures are compared: two files, two folders by name, or a list of pairs."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from .pictures import SUFFIXES

LISTS = (".csv", ".parquet")
# Excel begins a CSV with a mark; bytes of a file's name that are not UTF-8 come as they are
_ENCODING: Any = {"encoding": "utf-8-sig", "errors": "surrogateescape"}


class Pair(NamedTuple):
    """Two files, or one whose partner is missing, and why."""

    input: str
    target: str
    error: str | None = None


class PairsError(ValueError):
    """No pairs can be found: why."""


class Pairs(NamedTuple):
    """Pairs in their order, read as they are needed, and how many there are in all."""

    each: Iterable[Pair]
    total: int


def find_pairs(input: Path, target: Path | None) -> Pairs:
    """The pairs of two files, of two folders, or of a list (``target`` None).

    Folders are searched to any depth, links to folders included. Files are matched by their path
    within the folder, and what is left by its path without suffix where that is unique. Those
    without a partner are pairs with an ``error``, and so are folders that cannot be read.

    Raises:
        PairsError: a file meets a folder, a list is unreadable, or there is nothing to compare.
    """
    if target is None:
        if input.suffix.lower() not in LISTS:
            raise PairsError(f"{input}: give two pictures or folders, or a .csv or .parquet list")
        return _listed(input)
    if input.is_dir() != target.is_dir():
        kinds = ("a folder" if path.is_dir() else "not a folder" for path in (input, target))
        raise PairsError("{} is {}, but {} is {}".format(*_alternate((input, target), kinds)))
    if not input.is_dir():
        return Pairs([Pair(str(input), str(target))], 1)
    pairs = list(_matched(input, target))
    if not pairs:
        raise PairsError(f"no pictures ({', '.join(SUFFIXES)}) in {input} and {target}")
    return Pairs(pairs, len(pairs))


def _alternate(first: Iterable, second: Iterable) -> list:
    return [value for pair in zip(first, second) for value in pair]


# ---- folders ----


def _pictures(folder: Path) -> tuple[list[str], list[OSError]]:
    """Paths of the pictures within a folder, sorted; and what could not be read.

    A link to a folder is followed, unless that folder holds the link: there is no end to that.
    """
    errors: list[OSError] = []
    found = []
    above = {str(folder): {os.path.realpath(folder)}}  # a folder, and those that hold it
    for root, folders, files in os.walk(folder, onerror=errors.append, followlinks=True):
        holders = above.pop(root)
        inner = {name: os.path.realpath(os.path.join(root, name)) for name in folders}
        folders[:] = sorted(name for name in folders if inner[name] not in holders)
        above |= {os.path.join(root, name): holders | {inner[name]} for name in folders}
        inside = os.path.relpath(root, folder)
        for name in files:
            if name.lower().endswith(SUFFIXES):
                found.append(os.path.normpath(os.path.join(inside, name)))
    return sorted(found), errors


def _unique(names: Iterable[str]) -> dict[str, str]:
    """Names by what they are without suffix, where no two are the same."""
    found: dict[str, str | None] = {}
    for name in names:
        stem = os.path.splitext(name)[0]
        found[stem] = None if stem in found else name
    return {stem: name for stem, name in found.items() if name is not None}


def _matched(input: Path, target: Path) -> Iterator[Pair]:
    (ours, our_errors), (theirs, their_errors) = _pictures(input), _pictures(target)
    exact = set(theirs).intersection(ours)
    by_stem = _unique(name for name in theirs if name not in exact)
    alone = _unique(name for name in ours if name not in exact)
    partner = {name: by_stem[stem] for stem, name in alone.items() if stem in by_stem}
    for name in ours:
        match = name if name in exact else partner.get(name)
        if match is not None:
            yield Pair(str(input / name), str(target / match))
        else:
            yield Pair(str(input / name), "", f"{input / name}: has no partner in {target}")
    taken = exact.union(partner.values())
    for name in theirs:
        if name not in taken:
            yield Pair("", str(target / name), f"{target / name}: has no partner in {input}")
    for folder, errors in ((input, our_errors), (target, their_errors)):
        for error in errors:
            where = error.filename or str(folder)
            yield Pair(where, "", f"{where}: the folder cannot be read: {error.strerror}")


# ---- lists ----


def _listed(path: Path) -> Pairs:
    """Columns ``input`` and ``target``; a CSV without that header has two columns."""
    try:
        if path.suffix.lower() == ".parquet":
            return _of_parquet(path)
        with path.open(newline="", **_ENCODING) as file:
            count = sum(bool(row) for row in csv.reader(file))
            file.seek(0)
            first = next(csv.reader(file), [])
    except (OSError, ValueError, csv.Error, pyarrow.ArrowException) as error:
        raise PairsError(f"{path}: cannot be read: {error}") from None
    found = _columns(path, first)
    has_header = found is not None
    columns = found or (0, 1)
    count -= has_header
    if count <= 0:
        raise PairsError(f"{path}: holds no pairs")
    return Pairs(_CsvPairs(path, columns, has_header), count)


def _columns(path: Path, header: list[str]) -> tuple[int, int] | None:
    """Where the columns input and target are, in whatever case; None where neither is."""
    names = [name.strip().casefold() for name in header]
    there = [name for name in ("input", "target") if name in names]
    if len(there) == 1:
        raise _no_columns(path, header)
    return (names.index("input"), names.index("target")) if there else None


def _no_columns(path: Path, names: list[str]) -> PairsError:
    return PairsError(f"{path}: must have the columns input and target, got {', '.join(names)}")


class _CsvPairs:
    """The pairs of a CSV list, read anew by each iteration."""

    def __init__(self, path: Path, columns: tuple[int, int], has_header: bool) -> None:
        self.path = path
        self.columns = columns
        self.has_header = has_header

    def __iter__(self) -> Iterator[Pair]:
        with self.path.open(newline="", **_ENCODING) as file:
            rows = csv.reader(file)
            if self.has_header:
                next(rows)
            for row in filter(None, rows):
                names = [row[column] for column in self.columns if column < len(row)]
                yield _pair(self.path, f"line {rows.line_num}", names)


def _pair(path: Path, where: str, names: Iterable[str]) -> Pair:
    """A pair as a list names it: from the list's own folder on."""
    given = [os.path.normpath(path.parent / name) for name in names if name]
    if len(given) == 2:
        return Pair(*given)
    return Pair(", ".join(given), "", f"{path}, {where}: must name two files")


def _of_parquet(path: Path) -> Pairs:
    with pyarrow.parquet.ParquetFile(path) as file:
        names, count = file.schema_arrow.names, file.metadata.num_rows
    columns = _columns(path, names)
    if columns is None:
        raise _no_columns(path, names)
    if count == 0:
        raise PairsError(f"{path}: holds no pairs")
    return Pairs(_ParquetPairs(path, [names[column] for column in columns]), count)


class _ParquetPairs:
    """The pairs of a Parquet list, read anew by each iteration."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self.path = path
        self.columns = columns  # names of those that are input and target

    def __iter__(self) -> Iterator[Pair]:
        count = itertools.count(1)
        with pyarrow.parquet.ParquetFile(self.path) as file:
            for batch in file.iter_batches(columns=self.columns, batch_size=4096):
                columns = (batch.column(name).to_pylist() for name in self.columns)
                for *names, number in zip(*columns, count):
                    given = ["" if name is None else str(name) for name in names]
                    yield _pair(self.path, f"row {number}", given)
