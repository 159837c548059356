"""Many processes: under ``torchrun`` each takes its share of the pairs, and rank 0 merges."""

from __future__ import annotations

import datetime
import glob
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from .outputs import Outputs, cannot_write
from .pairs import Pair
from .run import Outcome
from .writers import JOURNAL, ResultsError, files_of, read_results, remove_results, rewrite

_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")  # beside WORLD_SIZE

# ranks wait for the slowest, whose share may take hours longer; torch's own limit is half an hour
_PATIENCE = datetime.timedelta(days=14)


class RanksError(ValueError):
    """The environment names other processes, which cannot be found: why."""


def _told(name: str, otherwise: int) -> int:
    """A number that ``torchrun`` sets."""
    text = os.environ.get(name, str(otherwise))
    try:
        return int(text)
    except ValueError:
        raise RanksError(f"{name} must be a number, got {text!r}") from None


def _meeting_place(rank: int, size: int) -> dist.Store:
    """Where ranks have found each other, without what those before a restart left there.

    ``torchrun`` keeps its store across restarts, and gloo would wait for the addresses of the dead.
    The number of restarts is that of this machine: on several machines they may differ.
    """
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise RanksError(f"WORLD_SIZE is {size} without {', '.join(missing)}: torchrun sets them")
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], _told("MASTER_PORT", 0)
    everybodys = dist.TCPStore(address, port, size, is_master=rank == 0 and not served)
    restarts = _told("TORCHELASTIC_RESTART_COUNT", 0)
    store = dist.PrefixStore(f"attempt {restarts}", everybodys)
    # by the store's own limit, minutes: a rank that has not begun will not
    store.set(f"rank {rank}", "")
    store.wait([f"rank {other}" for other in range(size)])
    return store


class Ranks:
    """Which process this is, and how many there are; one, where ``torchrun`` is not at work.

    Raises:
        RanksError: RANK, WORLD_SIZE and the like are not what ``torchrun`` sets, or some are not
            set.
    """

    def __init__(self) -> None:
        self.rank, self.size = _told("RANK", 0), _told("WORLD_SIZE", 1)
        self.local_size = _told("LOCAL_WORLD_SIZE", 1)  # how many share its cores
        if not 0 <= self.rank < self.size:
            raise RanksError(f"there is no RANK {self.rank} where WORLD_SIZE is {self.size}")
        if self.local_size < 1:
            raise RanksError(f"LOCAL_WORLD_SIZE must be positive, got {self.local_size}")
        if self.size > 1:
            dist.init_process_group(
                "gloo",
                store=_meeting_place(self.rank, self.size),
                rank=self.rank,
                world_size=self.size,
                timeout=_PATIENCE,
            )

    def share(self, pairs: Iterable[Pair]) -> Iterable[Pair]:
        """Every size-th pair."""
        return itertools.islice(pairs, self.rank, None, self.size)

    def own(self, outputs: Outputs) -> Outputs:
        """Files of this process alone."""
        if self.size == 1:
            return outputs
        return {kind: _part(path, self.rank) for kind, path in outputs.items()}

    def parts(self, outputs: Outputs) -> dict[str, list[Path]]:
        """Files that processes of this run, or of an earlier one of any size, have left."""
        found = {}
        for kind, path in outputs.items():
            part = re.compile(rf"{re.escape(path.name)}\.rank\d+({re.escape(JOURNAL)})?")
            files = path.parent.glob(f"{glob.escape(path.name)}.rank*")
            names = {p.name.removesuffix(JOURNAL) for p in files if part.fullmatch(p.name)}
            found[kind] = sorted(map(path.with_name, names))
        return found

    def wait(self) -> None:
        """For the others."""
        if self.size > 1:
            dist.barrier()

    def agree(self, problem: ResultsError | None) -> ResultsError | None:
        """The first process's problem that is not None, for all."""
        return next((p for p in self._gathered(problem) if p is not None), None)

    def merge(self, outputs: Outputs, outcome: Outcome, append: bool) -> None:
        """The outcomes of all in that of each; the files of all in the outputs, or behind them."""
        if self.size == 1:
            return
        others = self._gathered((outcome.summary, outcome.failures, outcome.interrupted))
        for rank, (summary, failures, interrupted) in enumerate(others):
            if rank != self.rank:
                outcome.summary.merge(summary)
                outcome.failures += failures
                outcome.interrupted |= interrupted
        if self.rank == 0:
            parts = self.parts(outputs)
            for kind, path in outputs.items():
                outcome.failures += self._missing(kind, path)
                try:
                    merge_files(kind, path, parts[kind], append)
                except OSError as error:
                    outcome.failures.append(cannot_write(path, error))
        self.wait()

    def _missing(self, kind: str, path: Path) -> list[str]:
        """Parts that all ranks have written, but that are not in this node's folder."""
        parts = (_part(path, rank) for rank in range(self.size))
        return [
            f"{part}: is not there, perhaps on another node: bring it here and --resume"
            for part in parts
            if not files_of(kind, part)
        ]

    def close(self) -> None:
        """Leave the others."""
        if self.size > 1:
            dist.destroy_process_group()

    def _gathered(self, value: Any) -> list[Any]:
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def merge_files(kind: str, path: Path, parts: list[Path], append: bool) -> None:
    """One file of the parts, which are removed; behind what it holds, if they are to be added."""
    files = [path, *parts] if append else parts
    rewrite(kind, path, itertools.chain.from_iterable(read_results(kind, p) for p in files))
    for part in parts:
        remove_results(kind, part)


def _part(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.rank{rank}")
