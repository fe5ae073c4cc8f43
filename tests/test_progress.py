"""Progress: silent when short, a line a minute where nobody watches a bar."""

import sys

import pytest

from lep import progress
from lep.progress import Lines


@pytest.fixture
def clock(monkeypatch):
    """A clock that each item moves by 25 seconds."""
    now = [1_000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Lines, "latest", now[0])
    monkeypatch.setattr(progress, "is_terminal", lambda: False)

    def ticking(items):
        for item in items:
            now[0] += 25
            yield item

    return ticking


def test_a_line_a_minute(clock, capfd) -> None:
    assert list(progress.progress(clock(range(8)), "steps", 8)) == list(range(8))
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "steps: 3 of 8 after 1 min 15 s, about 2 min 5 s left",
        "steps: 6 of 8 after 2 min 30 s, about 50 s left",
    ]


def test_loops_share_the_minute_and_unknown_totals_are_left_out(clock, capfd) -> None:
    for _ in range(2):
        list(progress.progress(clock(range(2)), "looks"))
    assert capfd.readouterr().err == "looks: 1 after 25 s\n"


def test_only_the_first_process_speaks(clock, capfd, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    list(progress.progress(clock(range(8)), "steps", 8))
    progress.announce("model 1 of 2")
    assert capfd.readouterr().err == ""


def test_silenced_libraries_do_not_silence_progress(clock, capfd) -> None:
    """The benchmark's harness draws bars into files; its stream is replaced meanwhile."""
    from lep.benchmark.harness import quiet

    with quiet():
        print("harness", file=sys.stderr)
        list(progress.progress(clock(range(3)), "answers", 3))
    err = capfd.readouterr().err
    assert err == "answers: 3 of 3 after 1 min 15 s, about 0 s left\n"


def test_a_loop_that_knows_its_goal_alone(clock, capfd) -> None:
    """How far it has come, over all of its rounds."""
    meter = progress.Meter("tokens", 1_000)
    for amount in clock((100, 200, 600)):
        meter.reach(amount)
    meter.close()
    assert capfd.readouterr().err == "tokens: 600 of 1,000 after 1 min 15 s, about 40 s left\n"


def test_what_starts_up_with_the_first_step_is_no_rate(clock, capfd) -> None:
    """After a first step of 100 seconds, each takes 25: nothing is said of what is left before."""

    def steps():
        yield from clock(range(3))  # which are not reported
        for step in clock(range(9)):
            lines.reach(step + 1)

    lines = progress.Lines("steps", 9)
    list(steps())
    assert capfd.readouterr().err.splitlines() == [
        "steps: 1 of 9 after 1 min 40 s",
        "steps: 4 of 9 after 2 min 55 s, about 2 min 5 s left",
        "steps: 7 of 9 after 4 min 10 s, about 50 s left",
    ]


def test_a_goal_that_is_passed() -> None:
    """The last round brings more than what was missing: no time is left, and none is owed."""
    assert progress.Lines("tokens", 1_000).text(75) == "tokens: 0 of 1,000 after 1 min 15 s"
    passed = progress.Lines("tokens", 1_000)
    passed.done = 1_047
    assert passed.text(75) == "tokens: 1,047 of 1,000 after 1 min 15 s, about 0 s left"
