"""Verdicts on the joint grid, on made-up figures for which they must hold, or must not."""

import sys

import pytest
from conftest import ROOT

from lep.report.grid import Block, Cell

sys.path.append(str(ROOT / "benchmarks"))
import joint_grid

# What each model is better or worse by, by column, so that every prediction holds.
HOLDS = {
    "original": {"exact match ru": 0.9, "exact match en": 0.9},
    "mean rows, joint training": {"exact match ru": 0.62, "exact match en": 0.9},
    "new rows of the base, joint training": {"exact match ru": 0.57, "bits/byte ru": 1.48},
    "all rows of the base, joint training": {"exact match en": 0.6, "bits/byte ru": 1.46},
}


def blocks(changes: dict[tuple[str, str], float], noise: float = 0.001) -> joint_grid.Blocks:
    """The figures of `HOLDS` at three strengths with three seeds, changed by (model, column)."""
    grid: joint_grid.Blocks = {}
    for strength in joint_grid.STRENGTHS:
        for title, (start, model) in joint_grid.MODELS.items():
            labels = {"start": start, "strength": strength}
            block = grid.setdefault((start, strength), Block(labels, [0, 1, 2], {}))
            row = {column: 1.5 if "byte" in column else 0.5 for column in joint_grid.COLUMNS}
            row |= HOLDS.get(title, {})
            row |= {column: value for (name, column), value in changes.items() if name == title}
            block.models[model] = {
                column: Cell(
                    {
                        f"{title}{i}": value + noise * (i - 1) * (len(title) % 3 + 1)
                        for i in range(3)
                    }
                )
                for column, value in row.items()
            }
    return grid


def words(lines: list[str]) -> list[str]:
    return [line.split("**")[1] for line in lines]


def test_all_predictions_hold() -> None:
    lines = joint_grid.predictions(blocks({}))
    assert words(lines) == ["holds"] * 7, lines
    table = joint_grid.figures(blocks({})).splitlines()
    assert len(table) == 2 + 3 * len(joint_grid.MODELS)
    assert "| weak | mean rows, joint training | 1.500 ± " in table[4]


@pytest.mark.parametrize(
    ("number", "model", "column", "value"),
    [
        (1, "mean rows, joint training", "exact match ru", 0.72),
        (2, "mean rows, joint training", "exact match en", 0.85),
        (3, "new rows of the base, joint training", "exact match ru", 0.64),
        (4, "new rows of the base, joint training", "bits/byte ru", 1.5),
        (5, "all rows of the base, joint training", "bits/byte ru", 1.49),
        (6, "all rows of the base, joint training", "exact match en", 0.85),
    ],
)
def test_a_prediction_that_does_not_hold(number, model, column, value) -> None:
    lines = joint_grid.predictions(blocks({(model, column): value}))
    assert words(lines)[number - 1] == "does not hold", lines


def test_wide_intervals_leave_a_prediction_undecided() -> None:
    assert words(joint_grid.predictions(blocks({}, noise=0.05)))[:3] == ["undecided"] * 3


def test_orders_that_differ() -> None:
    grid = blocks({})
    row = grid["all-rows", "strong"].models["conversion + joint training"]
    row["exact match ru"] = Cell({str(seed): 0.99 for seed in range(3)})
    assert words(joint_grid.predictions(grid))[6] == "does not hold"
