"""Many pairs: decoding and comparing on all cores, in bounded memory, written as they come."""

from __future__ import annotations

import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from .compare import Result, Settings, compare_files, failed
from .outputs import Files, Outputs, cannot_write
from .pairs import Pair
from .summary import Summary
from .writers import (
    NotWritten,
    ResultsError,
    files_of,
    key_of,
    open_writer,
    read_results,
    remove_results,
    rewrite,
)

_IN_FLIGHT = 4  # pairs for each thread that wait for their turn or for their elders


def result_of(pair: Pair, settings: Settings) -> Result:
    """A pair's names and values, in the order of the columns."""
    names = {"input": pair.input or None, "target": pair.target or None}
    if pair.error is not None:
        return names | failed(pair.error)
    return names | compare_files(pair.input, pair.target, settings)


def _in_order(
    pairs: Iterable[Pair], settings: Settings, threads: int
) -> Generator[Result, None, None]:
    """Results in the order of their pairs, of which few are in memory at a time."""
    waiting: deque[Future[Result]] = deque()
    rest = iter(pairs)
    with ThreadPoolExecutor(threads) as pool:
        try:
            for pair in itertools.islice(rest, _IN_FLIGHT * threads):
                waiting.append(pool.submit(result_of, pair, settings))
            while waiting:
                result = waiting.popleft().result()
                for pair in itertools.islice(rest, 1):
                    waiting.append(pool.submit(result_of, pair, settings))
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class Outcome:
    """What a run came to.

    Attributes:
        summary: of the results, those of earlier runs that it resumed included.
        failures: outputs that could not be written, and why.
        interrupted: whether Ctrl-C ended it, or is to end it.
    """

    def __init__(self, keep_worst: int = 10) -> None:
        self.summary = Summary(keep_worst)
        self.failures: list[str] = []
        self.interrupted = False


def resume(outputs: Outputs, parts: dict[str, list[Path]], settings: Settings) -> None:
    """Bring together what earlier runs have written, in each of the outputs, less what failed.

    parts: further files of each kind, which are removed.

    Raises:
        ResultsError: a file holds something else, or was made with other settings.
        NotWritten: a file cannot be written.
    """
    files = list(outputs.items())
    files += [(kind, part) for kind, of_kind in parts.items() for part in of_kind]
    if not any(files_of(kind, file) for kind, file in files):
        return
    for kind, path in outputs.items():
        try:
            rewrite(kind, path, _once(files, settings))
        except OSError as error:
            raise NotWritten(cannot_write(path, error)) from None
    for kind, of_kind in parts.items():
        for part in of_kind:
            remove_results(kind, part)


def _good(kind: str, path: Path) -> Iterator[tuple[int, Result]]:
    """Results that are no errors, by key."""
    for result in read_results(kind, path):
        if result["error"] is None:
            yield key_of(result["input"], result["target"]), result


def _once(files: list[tuple[str, Path]], settings: Settings) -> Iterator[Result]:
    """The first result of each pair, if it fits the settings: all kinds hold the same values.

    Without those of pictures that are newer than the file of results.
    """
    seen = set()
    for kind, path in files:
        written = min((file.stat().st_mtime for file in files_of(kind, path)), default=0.0)
        for key, result in _good(kind, path):
            if key in seen or any(_changed(result[side], written) for side in ("input", "target")):
                continue
            if not settings.fit(result):
                raise ResultsError(
                    f"{path}: was made with other settings: padding {result['padding']!r}, luma "
                    f"{result['luma']!r}, border {result['crop_border']}, data range "
                    f"{result['data_range']:g}, MS-SSIM {result['ms_ssim']} of "
                    f"{result['width']} x {result['height']} {result['dtype']}"
                )
            seen.add(key)
            yield result


def _changed(picture: str, written: float) -> bool:
    """Whether a picture is newer than that; one that is gone is not."""
    try:
        return os.stat(picture).st_mtime > written
    except (OSError, ValueError):
        return False


def finished(outputs: Outputs, pairs: Iterable[Pair], summary: Summary | None) -> set[int]:
    """Keys of those pairs that resumed outputs have; the summary, if any, gets their results."""
    wanted = {key_of(pair.input, pair.target) for pair in pairs}
    keys = set()
    kind, path = next(iter(outputs.items()))
    for key, result in _good(kind, path):
        if key in wanted:
            keys.add(key)
            if summary is not None:
                summary.add(result)
    return keys


def evaluate(
    pairs: Iterable[Pair],
    settings: Settings,
    outputs: Outputs,
    *,
    append: bool,
    threads: int,
    outcome: Outcome,
    advance: Callable[[Result], None] = lambda result: None,
) -> None:
    """Compare pairs; what they come to goes to the outcome and to the outputs.

    ``advance`` is called with each result. Ctrl-C, an outcome that says ``interrupted``, and
    outputs that all fail end it early; what is finished by then is in the outputs.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a pair a thread: no pair waits for its neighbours
    files = Files(outputs, functools.partial(open_writer, append=append))
    results = _in_order(pairs, settings, threads)
    try:
        for result in results if not files.all_failed else ():
            files.add(result)
            outcome.summary.add(result)
            advance(result)
            if files.all_failed or outcome.interrupted:
                break
    except KeyboardInterrupt:
        outcome.interrupted = True
    finally:
        results.close()
        files.close()
        outcome.failures += files.failures
        torch.set_num_threads(before)
