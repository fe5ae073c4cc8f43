"""Progress of long loops: a bar on a terminal, elsewhere a line a minute."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

SECONDS_BETWEEN_LINES, SECONDS_OF_A_LOOP = 60.0, 10.0  # a shorter loop says nothing
SHORTEST = 2.0  # seconds that a loop takes before its bar is shown
T = TypeVar("T")


class Lines:
    """How far one loop is, in lines on standard error: at most one a minute from all loops.

    They go to the stream that the process started with: others silence what libraries print.
    """

    latest = time.monotonic()  # of any loop

    def __init__(self, label: str, total: int | None) -> None:
        self.label, self.total = label, total
        self.done, self.started = 0, time.monotonic()
        self.first: tuple[int, float] | None = None  # amount, seconds; what starts up is in it

    def reach(self, amount: int) -> None:
        """Take note of it, and print a line if the loop is long and the last minute had none."""
        self.done = amount
        now = time.monotonic()
        if self.first is None and amount:
            self.first = amount, now - self.started
        silence = now - Lines.latest
        due = now - self.started >= SECONDS_OF_A_LOOP and silence >= SECONDS_BETWEEN_LINES
        if due and is_first() and not is_terminal():
            Lines.latest = now
            print(self.text(now - self.started), file=sys.__stderr__, flush=True)

    def one_more(self) -> None:
        self.reach(self.done + 1)

    def text(self, seconds: float) -> str:
        """The line after so many seconds of the loop."""
        if self.total is None:
            return f"{self.label}: {self.done:,} after {duration(seconds)}"
        line = f"{self.label}: {self.done:,} of {self.total:,} after {duration(seconds)}"
        first, spent = self.first or (0, 0.0)
        if self.done <= first:
            return line
        left = (seconds - spent) * max(0, self.total - self.done) / (self.done - first)
        return f"{line}, about {duration(left)} left"


class Meter:
    """How far a loop has come that knows its goal and not its steps."""

    def __init__(self, label: str, goal: int | None) -> None:
        self.lines, self.bar = Lines(label, goal), None
        if is_terminal() and is_first():
            from tqdm import tqdm

            self.bar = tqdm(desc=label, total=goal, leave=False, delay=SHORTEST)

    def reach(self, amount: int) -> None:
        if self.bar is None:
            self.lines.reach(amount)
        else:
            self.bar.update(amount - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def is_terminal() -> bool:
    """Whether somebody may watch a bar."""
    return sys.__stderr__ is not None and sys.__stderr__.isatty()


def is_first() -> bool:
    """Whether this is the process that speaks, of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def announce(step: str) -> None:
    """Say on standard error what begins, if it is a step of minutes."""
    if is_first():
        print(step, file=sys.__stderr__, flush=True)


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """The same items. `total` is their number, where they do not know it themselves."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if is_terminal() and is_first():
        from tqdm import tqdm

        yield from tqdm(items, desc=label, total=total, leave=False, delay=SHORTEST)
        return
    lines = Lines(label, total)
    for item in items:
        yield item
        lines.one_more()


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> [duration(each) for each in (42.3, 59.7, 75, 1_575, 3_680)]
    ['42 s', '1 min 0 s', '1 min 15 s', '26 min', '1 h 01 min']
    """
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 10:
        return f"{minutes} min {rest} s"
    minutes = int(seconds / 60 + 0.5)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
