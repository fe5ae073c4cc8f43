"""Chunks on all cores: those that this process may use, in the order of the chunks."""

import os

import pytest

from lep.corpus.parallel import in_order, usable_cores


def process(_: int) -> int:
    return os.getpid()


def test_chunks_come_back_in_order() -> None:
    assert list(in_order(str, iter(range(50)), here=3)) == [str(i) for i in range(50)]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_no_more_processes_than_cores_that_may_be_used() -> None:
    """As a Slurm job is kept to its cores, on a machine that has more."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
        workers = set(in_order(process, iter(range(40)), here=0))
        assert len(workers) == 1
        assert os.getpid() not in workers
    finally:
        os.sched_setaffinity(0, before)
    assert usable_cores() == len(before)


def test_all_cores_where_the_system_has_no_affinity(monkeypatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for cores, expected in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert usable_cores() == expected
