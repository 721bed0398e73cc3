"""One model over several processes of a machine (tensor parallel): what one is asked, all do, in step.

The model's layers are split by transformers' own plan for the architecture (Shoeybi et al., 2019); the processes add up
their parts inside each layer, so every one of them has to make every call.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch.distributed as dist


class Team:
    """A worker in this process, and its equals in `processes - 1` others. The others end with this one.

    make: called with the rank in each process, this one's is 0; picklable. A call goes to all; rank 0's answer counts.
    """

    def __init__(self, make: Callable[[int], Any], processes: int, cuda: bool) -> None:
        self.pipes: list[Connection] = []
        if processes > 1:
            context = multiprocessing.get_context("spawn")
            address = f"tcp://127.0.0.1:{_free_port()}"
            for rank in range(1, processes):
                mine, theirs = context.Pipe()
                follower = context.Process(
                    target=_follow, args=(make, rank, processes, address, cuda, theirs), daemon=True
                )
                follower.start()
                theirs.close()
                self.pipes.append(mine)
            _join(address, 0, processes, cuda)
        self.own = make(0)

    def call(self, method: str, *arguments: Any) -> Any:
        """The method's answer in this process; what it raises is raised here."""
        for pipe in self.pipes:
            pipe.send((method, arguments))
        return getattr(self.own, method)(*arguments)


def _join(address: str, rank: int, processes: int, cuda: bool) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))  # transformers asks for these
    dist.init_process_group("nccl" if cuda else "gloo", init_method=address, rank=rank, world_size=processes)


def _follow(
    make: Callable[[int], Any], rank: int, processes: int, address: str, cuda: bool, orders: Connection
) -> None:
    _join(address, rank, processes, cuda)
    own = make(rank)
    while True:
        try:
            method, arguments = orders.recv()
        except EOFError:  # the first process is gone
            return
        # The first process raises the same, and tells it; this one waits for what it does next.
        with contextlib.suppress(Exception):
            getattr(own, method)(*arguments)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
