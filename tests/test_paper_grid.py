"""Verdicts on the paper's grid, on made-up figures for which they must hold, or must not."""

import importlib.util
import zlib

import numpy as np
import pytest
from conftest import ROOT

from lep.report.grid import Block, Cell

spec = importlib.util.spec_from_file_location("paper_grid", ROOT / "benchmarks" / "paper_grid.py")
paper_grid = importlib.util.module_from_spec(spec)
spec.loader.exec_module(paper_grid)

MODELS = [
    paper_grid.ORIGINAL,
    *paper_grid.MAPS,
    "exact",
    "task-arithmetic",
    "direct",
    *(
        f"{m} + {what}"
        for m in (*paper_grid.MAPS, "direct")
        for what in ("self-calibration", "tuning")
    ),
]
COLUMNS = [*paper_grid.COLUMNS, "copy ru", "copy en"]


class FakeGrid(paper_grid.Grid):
    """Figures by (vocabulary, strength, model, column), where None in a rule stands for any."""

    def __init__(
        self, *rules: tuple[tuple[str | None, ...], float], chosen: str = "new-rows"
    ) -> None:
        self.choice = chosen
        self.blocks = {
            (v, s): Block(
                {"vocabulary": v, "strength": s},
                [0, 1, 2],
                {m: {c: self.figure((v, s, m, c), rules) for c in COLUMNS} for m in MODELS},
            )
            for v in (*paper_grid.VOCABULARIES, "New-rows", "Replay")
            for s in paper_grid.STRENGTHS
        }

    def figure(self, key, rules) -> Cell:
        value = 1.0
        for pattern, given in rules:
            if all(
                part is None or name.endswith(part) for part, name in zip(pattern, key, strict=True)
            ):
                value = given
        noise = np.random.default_rng(zlib.crc32("/".join(key).encode())).normal(0, 0.001, 3)
        return Cell({f"{key}{i}": value + each for i, each in enumerate(noise - noise.mean())})

    def chosen(self, vocabulary, strength) -> list[str]:
        return [self.choice] * 3


REPLACED = [
    ((v, None, None, c), value)
    for v in ("BPE", "Unigram")
    for c, value in (
        ("copy ru", 0.5),
        ("copy en", 0.5),
        ("answer bits/byte ru", 2.0),
        ("answer bits/byte en", 2.0),
    )
]
MAPS_HARM = [((None, None, m, "bits/byte en"), 1.5) for m in paper_grid.MAPS]
LOST = [((None, "strong", m, "answer bits/byte en"), 1.2) for m in paper_grid.MAPS]
RAISED = [
    ((None, None, "self-calibration", "copy ru"), 2.0),
    ((None, None, "tuning", "exact match ru"), 2.0),
]
DIRECT = [((None, "strong", "direct", "answer bits/byte ru"), 0.8)]
CALIBRATED = [
    ((None, None, "direct + self-calibration", c), value)
    for c, value in (("exact match en", 1.5), ("answer bits/byte en", 0.5), ("bits/byte en", 0.5))
]

NEW_ROWS = [
    ((v, None, "direct + self-calibration", c), value)
    for v, c, value in (
        ("New-rows", "copy ru", 1.3),
        ("New-rows", "exact match ru", 1.3),
        ("Extended", "exact match ru", 1.5),
    )
]
REPLAY = [(("Extended", None, "conversion + self-calibration", "exact match en"), 0.8)]


@pytest.mark.parametrize(
    ("prediction", "holds", "fails"),
    [
        (
            "overlap_is_conversion",
            FakeGrid(),
            FakeGrid((("Optimized", None, "overlap", "exact match en"), 1.1)),
        ),
        (
            "replaced_lose_more",
            FakeGrid(*REPLACED),
            FakeGrid(*REPLACED, (("Optimized", None, None, "copy en"), 0.5)),
        ),
        (
            "strength_parts_the_maps",
            FakeGrid(*LOST),
            FakeGrid(*LOST, ((None, "weak", "swap", "bits/byte en"), 1.03)),
        ),
        (
            "maps_harm_english_text",
            FakeGrid(*MAPS_HARM),
            FakeGrid(*MAPS_HARM, ((None, "weak", "swap", None), 1.0)),
        ),
        (
            "training_repairs",
            FakeGrid(*RAISED),
            FakeGrid(*RAISED, ((None, "weak", "tuning", "exact match ru"), 1.0)),
        ),
        (
            "calibrated_direct_is_best",
            FakeGrid(*CALIBRATED),
            FakeGrid(
                *CALIBRATED,
                ((None, "weak", "direct + self-calibration", "answer bits/byte ru"), 1.2),
            ),
        ),
        (
            "new_rows_keep_english",
            FakeGrid(*NEW_ROWS),
            FakeGrid(
                *NEW_ROWS, (("New-rows", None, "direct + self-calibration", "exact match en"), 0.97)
            ),
        ),
        (
            "replay_keeps_english",
            FakeGrid(*REPLAY),
            FakeGrid(*REPLAY, (("Replay", None, "conversion", "bits/byte en"), 1.04)),
        ),
        (
            "auto_keeps_known_rows",
            FakeGrid(chosen="exact, output new-rows"),
            FakeGrid(chosen="new-rows, output swap"),
        ),
    ],
)
def test_verdicts(prediction, holds, fails) -> None:
    verdict = getattr(paper_grid, prediction)
    assert [verdict(grid)[0] for grid in (holds, fails)] == [True, False]


def test_direct_must_leave_english_as_it_is() -> None:
    verdict = paper_grid.direct_beats_when_strong
    still = FakeGrid(*DIRECT)
    for strength in paper_grid.STRENGTHS:
        models = still.blocks["Extended", strength].models
        models["direct"] |= {
            c: cell for c, cell in models[paper_grid.ORIGINAL].items() if c.endswith("en")
        }
    assert verdict(still)[0]
    assert not verdict(FakeGrid(*DIRECT))[0]  # its English moved, if by noise


def test_a_gain_that_is_the_same_for_every_seed_is_named() -> None:
    grid = FakeGrid(*RAISED)
    models = grid.blocks["BPE", "middle"].models
    for gain, holds in ((0.5, True), (0.0, False)):
        before = models["swap"]["copy ru"].values.values()
        models["swap + self-calibration"]["copy ru"] = Cell(
            {f"s{i}": v + gain for i, v in enumerate(before)}
        )
        verdict, figures = paper_grid.training_repairs(grid)
        assert verdict is holds
        assert ("swap + self-calibration, BPE, middle: +0.500 for every seed" in figures) is holds


def test_averages_are_taken_by_seed() -> None:
    cells = [Cell({"a": 1.0, "b": 2.0}), Cell({"c": 3.0, "d": 6.0})]
    assert list(paper_grid.average(cells).values.values()) == [2.0, 4.0]
