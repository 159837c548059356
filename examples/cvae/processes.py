"""What a process knows of the others that train with it: torchrun starts them, DDP joins them.

Each process takes its share of every batch. All of them draw the same order and the same noise, so
the batches are those of one process, and only the first one writes files.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
TOLD = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # by torchrun, beside WORLD_SIZE


class ProcessError(Exception):
    """Why these processes cannot train together."""


@dataclass(frozen=True)
class Processes:
    """How many processes there are, and which of them this one is."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # among those of this machine
    # names this call of torchrun, whose restarts share it; "" where none started the processes
    launch: str = ""

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, wanted: torch.device) -> torch.device:
        """A GPU for each process of this machine, or what is wanted."""
        if self.count == 1 or wanted.type != "cuda":
            return wanted
        gpus = torch.cuda.device_count()
        if self.local_rank >= gpus:
            raise ProcessError(
                f"process {self.local_rank} of this machine has no GPU: there are {gpus}, "
                "--nproc-per-node may not be more"
            )
        return torch.device("cuda", self.local_rank)

    def share(self, length: int) -> tuple[slice, int]:
        """The part of a batch that this process takes, and how many of its items count.

        Where there are fewer items than processes, some take an item that does not count, because
        every process has to take part in each step.
        """
        begin, end = (r * length // self.count for r in (self.rank, self.rank + 1))
        begin = min(begin, length - 1)
        return slice(begin, max(begin + 1, end)), end - min(begin, end)

    def weight(self, counted: int, length: int) -> float:
        """Of this process's mean over its share: DDP averages shares that may differ in size."""
        return counted * self.count / length

    def joined(self, model: nn.Module) -> nn.Module:
        """The model, its gradients averaged over the processes."""
        return nn.parallel.DistributedDataParallel(model) if self.count > 1 else model

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes, on the CPU."""
        if self.count == 1:
            return value.cpu()
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        value = value.detach().to(device, copy=True)
        dist.all_reduce(value)
        return value.cpu()

    def from_first(self, work: Callable[[], T]) -> T:
        """What `work` gives in the first process, or the exception that it raises there."""
        sent: list = [None, None]
        if self.first:
            sent = _outcome(work)
        if self.count > 1:
            dist.broadcast_object_list(sent)
        return _result(sent)

    def in_turn(self, work: Callable[[], T]) -> T:
        """What `work` gives, first in the first process of the machine: it downloads for all."""
        if self.count == 1:
            return work()
        mine: list = [None, None]
        for turn in (True, False):
            if turn == (self.local_rank == 0):
                mine = _outcome(work)
            errors: list = [None] * self.count
            dist.all_gather_object(errors, mine[1])
            for error in errors:
                if error is not None:
                    raise error
        return _result(mine)


ALONE = Processes()


def _outcome(work: Callable[[], T]) -> list:
    """[what it gives, None] or [None, its exception]."""
    try:
        return [work(), None]
    except Exception as error:
        return [None, error]


def _result(outcome: list):
    value, error = outcome
    if error is not None:
        raise error
    return value


def _told(name: str, otherwise: int) -> int:
    """A number that torchrun sets."""
    text = os.environ.get(name, str(otherwise))
    try:
        return int(text)
    except ValueError:
        raise ProcessError(f"{name} must be a number, got {text!r}") from None


def _served() -> bool:
    """Whether torchrun has a store for the processes, which it keeps across restarts."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _store(rank: int, count: int) -> dist.Store:
    """What processes tell each other by."""
    address, port = os.environ["MASTER_ADDR"], _told("MASTER_PORT", 0)
    return dist.TCPStore(address, port, count, is_master=rank == 0 and not _served())


def _launch(store: dist.Store) -> str:
    """The name that the first process to come gives this call of torchrun."""
    return store.compare_set("launch", "", uuid.uuid4().hex).decode()


def _meeting_place(store: dist.Store) -> dist.Store:
    """Where processes find each other, without what those before a restart left there.

    gloo would wait for the addresses of the dead. The number of restarts is that of this machine:
    on several machines they may differ.
    """
    return dist.PrefixStore(f"attempt {_told('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _place() -> tuple[int, int, int]:
    """RANK, WORLD_SIZE and LOCAL_RANK."""
    count = _told("WORLD_SIZE", 1)
    missing = [name for name in TOLD if name not in os.environ] if count != 1 else []
    if missing:
        names = ", ".join(missing)
        raise ProcessError(f"WORLD_SIZE is {count} without {names}: torchrun sets them")
    rank, local_rank = _told("RANK", 0), _told("LOCAL_RANK", 0)
    if not 0 <= rank < count:
        raise ProcessError(f"there is no RANK {rank} where WORLD_SIZE is {count}")
    return rank, count, local_rank


@contextmanager
def together(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun started; this one alone, where it was started by hand."""
    rank, count, local_rank = _place()
    if count == 1 and not _served():
        yield ALONE
        return
    store = _store(rank, count)
    processes = Processes(rank, count, local_rank, _launch(store))
    if count == 1:
        yield processes
        return
    device = processes.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=_meeting_place(store),
        rank=rank,
        world_size=count,
    )
    try:
        yield processes
    finally:
        dist.destroy_process_group()
