"""One call of the command: resume, take a share, compare, merge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .compare import Result, Settings
from .outputs import Outputs, cannot_write
from .pairs import Pairs
from .ranks import Ranks
from .run import Outcome, evaluate, finished, resume
from .writers import NotWritten, ResultsError, key_of, remove_results


def run_session(
    pairs: Pairs,
    settings: Settings,
    outputs: Outputs,
    ranks: Ranks,
    *,
    resuming: bool,
    threads: int,
    outcome: Outcome,
    show: Callable[[int, int], None],
) -> None:
    """Compare pairs, on all ranks, into the outputs and into the outcome, which is one for all.

    resuming: leave out what the outputs have. show: is told how many this process has done, and of
    how many.

    Raises:
        ResultsError: the outputs cannot be resumed; NotWritten, where that is the disk's fault.
    """
    done: set[int] = set()
    problem = _prepare(outputs, ranks, settings, resuming) if ranks.rank == 0 else None
    problem = ranks.agree(problem)
    if problem is not None:
        raise problem
    if resuming:
        done = finished(outputs, pairs.each, outcome.summary if ranks.rank == 0 else None)
    rest = (pair for pair in pairs.each if key_of(pair.input, pair.target) not in done)
    total = -(-max(pairs.total - len(done), 0) // ranks.size)
    count = 0

    def advance(result: Result) -> None:
        nonlocal count
        count += 1
        show(count, total)

    evaluate(
        ranks.share(rest),
        settings,
        ranks.own(outputs),
        append=resuming and ranks.size == 1,
        threads=threads,
        outcome=outcome,
        advance=advance,
    )
    ranks.merge(outputs, outcome, resuming)


def _prepare(
    outputs: Outputs, ranks: Ranks, settings: Settings, resuming: bool
) -> ResultsError | None:
    """What earlier runs left, brought together or removed; what is wrong with it."""
    parts = ranks.parts(outputs)
    try:
        if resuming:
            resume(outputs, parts, settings)
        else:
            for kind, path in outputs.items():
                # ranks write elsewhere until they merge: what is in the output must not be resumed
                for old in (path, *parts[kind]) if ranks.size > 1 else parts[kind]:
                    remove_results(kind, old)
    except ResultsError as error:
        return error
    except OSError as error:
        return NotWritten(cannot_write(Path(error.filename or next(iter(outputs.values()))), error))
    return None
