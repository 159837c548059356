"""Several files that get the same results."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .compare import Result
from .pictures import holds_picture
from .writers import Writer

_WRITE_EVERY = 0.5  # seconds
_WRITE_MOST = 1024  # results

# ends the names of what a run makes beside an output: parts of ranks, journals, what replaces it
_BESIDE = r"(\.rank\d+)?(\.new)?(\.part|\.table)?"

Outputs = dict[str, Path]  # by kind: "csv", "json", "parquet"


class OutputsError(ValueError):
    """An output that would take the place of an input or of another output: which."""


def check_apart(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Neither an output nor what is made beside it is an input or another output.

    Raises:
        OutputsError: two are the same file.
    """
    outputs = list(outputs)
    for i, path in enumerate(outputs):
        for other in (*inputs, *outputs[:i], *outputs[i + 1 :]):
            if _same(path, other) or _beside(path, other):
                raise OutputsError(f"{path}: what is written there would destroy {other}")


def check_no_pictures(outputs: Iterable[Path]) -> None:
    """No output is a picture, whatever folder or list may name it as an input.

    Raises:
        OutputsError: one is.
    """
    for path in filter(holds_picture, outputs):
        raise OutputsError(f"{path}: is a picture, which results would destroy")


def check_folders(outputs: Iterable[Path]) -> None:
    """The folders of what is written at the end are there.

    Raises:
        OutputsError: one is not.
    """
    for path in outputs:
        if not path.parent.is_dir():
            raise OutputsError(f"{path}: there is no folder {path.parent}")


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A new file, which takes a path's place once it is whole; a device or pipe is itself."""
    if path.exists() and not path.is_file():
        yield path
        return
    place = Path(os.path.realpath(path))
    new = place.with_name(place.name + ".new")
    try:
        yield new
        os.replace(new, place)
    finally:
        new.unlink(missing_ok=True)


def _same(path: Path, other: Path) -> bool:
    """One file, by a link or another name, too. Devices and pipes keep nothing that is lost."""
    if os.path.exists(path) and not os.path.isfile(path):
        return False
    if os.path.realpath(path) == os.path.realpath(other):
        return True
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


def _beside(path: Path, other: Path) -> bool:
    folder, other_folder = (os.path.realpath(place.parent) for place in (path, other))
    named = re.fullmatch(re.escape(path.name) + _BESIDE, other.name)
    return folder == other_folder and other.name != path.name and named is not None


class Files:
    """The files that results go to. One that fails is left, named, and the others go on.

    open: makes the writer of a kind and a path.

    Attributes:
        failures: what could not be written, and why.
    """

    def __init__(self, outputs: Outputs, open: Callable[[str, Path], Writer]) -> None:
        self.failures: list[str] = []
        self._block: list[Result] = []
        self._written = time.monotonic()
        self._open: dict[Path, Writer] = {}
        for kind, path in outputs.items():
            self._try(path, functools.partial(self._start, open, kind, path))

    def _start(self, open: Callable[[str, Path], Writer], kind: str, path: Path) -> None:
        self._open[path] = open(kind, path)

    def _try(self, path: Path, do: Callable[[], None]) -> None:
        try:
            do()
        except OSError as error:
            self.failures.append(cannot_write(path, error))
            writer = self._open.pop(path, None)
            if writer is not None:
                writer.abandon()

    @property
    def all_failed(self) -> bool:
        """Whether there were files, and none is left."""
        return bool(self.failures) and not self._open

    def add(self, result: Result) -> None:
        """One more result, which is in the files within half a second of the next."""
        self._block.append(result)
        late = time.monotonic() - self._written > _WRITE_EVERY
        if late or len(self._block) >= _WRITE_MOST:
            self._write()

    def _write(self) -> None:
        for path, writer in list(self._open.items()):
            self._try(path, functools.partial(writer.write, self._block))
        self._block = []
        self._written = time.monotonic()

    def close(self) -> None:
        """Write what is left."""
        self._write()
        for path, writer in list(self._open.items()):
            self._try(path, writer.close)
        self._open = {}


def cannot_write(path: Path, error: OSError) -> str:
    """What a failed write is called."""
    return f"{path}: cannot be written: {error.strerror or error}"
