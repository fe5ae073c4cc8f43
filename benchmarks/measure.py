"""Run a command and measure wall and CPU seconds and the peak memory of all its processes."""

import os
import resource
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

PAUSE_SECONDS = 0.2  # between samples
SAMPLING_SHARE = 0.03  # of a core, at most


@dataclass(frozen=True)
class Measured:
    """The cost of a command in seconds and bytes; memory is the sampled proportional set size."""

    wall: float
    cpu: float
    peak_bytes: int


def measured(command: list[str], **options) -> Measured:
    """Run a command to its end. Raises CalledProcessError if it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen(command, **options)
    peak, done = [0], threading.Event()

    def sample() -> None:
        pause = PAUSE_SECONDS
        while not done.wait(pause):
            start = time.perf_counter()
            peak[0] = max(peak[0], sum(_memory(pid) for pid in _family(process.pid)))
            pause = max(PAUSE_SECONDS, (time.perf_counter() - start) / SAMPLING_SHARE)

    sampler = threading.Thread(target=sample)
    sampler.start()
    code = process.wait()
    wall = time.perf_counter() - started
    done.set()
    sampler.join()
    if code:
        raise subprocess.CalledProcessError(code, command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(wall, cpu, peak[0])


def _family(root: int) -> list[int]:
    """A process and its descendants."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8")
            except OSError:
                continue
            parents[int(entry)] = int(stat.rsplit(")", 1)[1].split()[1])
    family = [root]
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    return family


def _memory(pid: int) -> int:
    """The proportional set size of a process in bytes; 0 if it has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
