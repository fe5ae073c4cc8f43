"""Where joint training should start: the tables of a run of `recipes/joint-grid.yaml`.

    python lab/make_pair.py --data DATA && python lab/make_strengths.py --data DATA          (once)
    lep run recipes/joint-grid.yaml
    python benchmarks/joint_grid.py [--run runs/joint-grid]

`benchmarks/paper_grid.md` has the output. Differences are paired by seed, with 95% t-intervals over
the seeds. The predictions are those of `docs/log.md`, written before the run; "undecided" means
that a bound of an interval is on the other side than its mean.
"""

import argparse
from pathlib import Path

from paper_grid import COLUMNS, ORIGINAL, STRENGTHS, itemised, shown, table

from lep.report.grid import Block, Cell, grid_blocks
from lep.report.run_record import RunRecord

# Row titles: the start, and the model of the run.
MODELS = {
    "original": ("whole", ORIGINAL),
    "mean rows": ("whole", "own initialisation"),
    "mean rows, joint training": ("whole", "joint training"),
    "mean rows, half as much of it": ("all-rows", "joint training"),
    "new rows of the base": ("new-rows", "new-rows"),
    "new rows of the base, joint training": ("new-rows", "new-rows + joint training"),
    "all rows of the base": ("all-rows", "conversion"),
    "all rows of the base, joint training": ("all-rows", "conversion + joint training"),
}
JOINT = [title for title in MODELS if title.endswith("joint training")]
TASKS, TEXT, ENGLISH = "exact match ru", "bits/byte ru", "exact match en"
Blocks = dict[tuple[str, str], Block]


def figure(blocks: Blocks, strength: str, title: str, column: str) -> Cell:
    start, model = MODELS[title]
    return blocks[start, strength].models[model][column]


def figures(blocks: Blocks) -> str:
    """A row per strength and model, means over the seeds with the half width of the interval."""
    rows = [
        [strength, title, *(shown(figure(blocks, strength, title, column)) for column in COLUMNS)]
        for strength in STRENGTHS
        for title, (start, model) in MODELS.items()
        if model in blocks[start, strength].models
    ]
    return table(["strength", "model", *COLUMNS.values()], rows)


def verdict(differences: dict[str, Cell], low: float, high: float) -> str:
    """Whether every difference lies between two bounds, by its interval where it decides."""

    def side(cell: Cell) -> str:
        half = cell.half or 0.0
        if low <= cell.mean - half and cell.mean + half <= high:
            return "holds"
        apart = cell.mean + half < low or cell.mean - half > high
        return "does not hold" if apart else "undecided"

    sides = {side(cell) for cell in differences.values()}
    worst = next(each for each in ("does not hold", "undecided", "holds") if each in sides)
    listed = "; ".join(f"{name} {shown(cell, '+')}" for name, cell in differences.items())
    return f"**{worst}**. {listed}."


def predictions(blocks: Blocks) -> list[str]:
    """The predictions with what came out."""
    mean, new, every = JOINT

    def apart(one: str, other: str, column: str) -> dict[str, Cell]:
        return {
            s: figure(blocks, s, one, column) - figure(blocks, s, other, column) for s in STRENGTHS
        }

    infinite = float("inf")
    tasks = {s: figure(blocks, s, mean, TASKS) for s in STRENGTHS}
    orders = {
        s: sorted(JOINT, key=lambda title, s=s: -figure(blocks, s, title, TASKS).mean)
        for s in STRENGTHS
    }
    order = "; ".join(f"{s}: {' > '.join(titles)}" for s, titles in orders.items())
    same = len({tuple(titles) for titles in orders.values()}) == 1
    return [
        f"1. {mean}: .56 to .68 of the Russian tasks: {verdict(tasks, 0.56, 0.68)}",
        "2. It keeps the original's English tasks to .01: "
        + verdict(apart(mean, "original", ENGLISH), -0.01, 0.01),
        f"3. {new}: .02 to .08 fewer Russian tasks than {mean}: "
        + verdict(apart(new, mean, TASKS), -0.08, -0.02),
        "4. And .01 bits per byte better in Russian text: "
        + verdict(apart(new, mean, TEXT), -infinite, -0.01),
        f"5. {every}: .03 better in Russian text than {mean}: "
        + verdict(apart(every, mean, TEXT), -infinite, -0.03),
        "6. And .2 or more of the English tasks are lost: "
        + verdict(apart(every, "original", ENGLISH), -infinite, -0.2),
        f"7. The order by Russian tasks is the same at all strengths: "
        f"**{'holds' if same else 'does not hold'}**. {order}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/joint-grid"))
    folder = parser.parse_args().run
    run = grid_blocks(folder, RunRecord.load(folder))
    blocks = {(block.labels["start"], block.labels["strength"]): block for block in run}
    print(figures(blocks))
    print("", *map(itemised, predictions(blocks)), sep="\n")


if __name__ == "__main__":
    main()
