"""Run a function over chunks of text on all cores, in order, with few chunks in memory."""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from multiprocessing import get_context
from typing import TypeVar

Chunk = TypeVar("Chunk")
Answer = TypeVar("Answer")


def usable_cores() -> int:
    """The cores that this process may run on: a job often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    function: Callable[[Chunk], Answer], chunks: Iterator[Chunk], *, here: int
) -> Iterator[Answer]:
    """Apply a function to `here` chunks in this process, and to others in one a usable core."""
    yield from map(function, islice(chunks, here))
    following = list(islice(chunks, 1))
    if not following:
        return
    workers = usable_cores()
    # A worker only runs regular expressions; a fork spares callers the `if __name__ == "__main__"`.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting: list[Future[Answer]] = []
        for chunk in chain(following, chunks):
            waiting.append(pool.submit(function, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
