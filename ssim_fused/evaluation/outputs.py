"""Several files that get the same results."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path

from .compare import Result
from .writers import Writer

_WRITE_EVERY = 0.5  # seconds
_WRITE_MOST = 1024  # results

Outputs = dict[str, Path]  # by kind: "csv", "json", "parquet"


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
