"""Many processes: under ``torchrun`` each takes its share of the pairs, and rank 0 merges."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from .outputs import Outputs, cannot_write
from .pairs import Pair
from .run import Outcome
from .writers import JOURNAL, read_results, remove_results, rewrite


class Ranks:
    """Which process this is, and how many there are; one, where ``torchrun`` is not at work."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        if self.size > 1:
            dist.init_process_group("gloo")

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
            pattern = f"{_escaped(path.name)}.rank*[0-9]"
            files = [*path.parent.glob(pattern), *path.parent.glob(pattern + JOURNAL)]
            found[kind] = sorted({p.with_name(p.name.removesuffix(JOURNAL)) for p in files})
        return found

    def wait(self) -> None:
        """For the others."""
        if self.size > 1:
            dist.barrier()

    def agree(self, message: str | None) -> str | None:
        """The first process's message that is not None, for all."""
        return next((m for m in self._gathered(message) if m is not None), None)

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
                try:
                    merge_files(kind, path, parts[kind], append)
                except OSError as error:
                    outcome.failures.append(cannot_write(path, error))
        self.wait()

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


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
